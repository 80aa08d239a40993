"""Change of the picture itself: differences, histograms, structural similarity, edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from sam2_keyframe._checks import plain
from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import (
    Against,
    Region,
    check_choice,
    check_range,
    earlier,
    in_float32,
    mean_over,
    region_of,
)
from sam2_keyframe.scorers.features import vector_change
from sam2_keyframe.types import History, Reference, TrackedFrame

_STEPS = 255 * 128  # whole 8-bit levels are exact


def luminance(frame: TrackedFrame) -> Tensor:
    """Return the frame's (h, w) float32 luminance in [0, 1] (ITU-R BT.601).

    It is kept under `frame/luma` as 15 bits, which half precision's 11 do not replace: SSIM would be off by 1e-4.
    """

    def make() -> Tensor:
        red, green, blue = frame.image.float()
        luma: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
        return (luma * _STEPS).round().to(torch.int16)

    kept = frame.shared.describe("frame/luma", make)
    luma: Tensor = frame.shared.once("luma", lambda: kept / _STEPS)
    return luma


def luminance_at(reference: Reference | None, like: Tensor) -> Tensor | None:
    """Return the luminance kept with a reference, in [0, 1]; None when it has none of the same size."""
    kept = reference.get("frame/luma") if reference else None
    return None if kept is None or kept.shape != like.shape else kept / _STEPS


@dataclass(frozen=True, repr=False)
class FrameDifference(Comparable):
    """Mean absolute difference of the pixels, in [0, 1].

    Attributes:
        colour: Compare the three colours instead of the luminance; kept in 8 bits each.
        noise_floor: Differences up to this count as none, in [0, 1]; the default is five of 255 levels.
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        region: Over the whole `"frame"` or the `"object"` (its dilated mask, now and at the reference).
        name: Name of the score in records, filters and tables.

    Source: pair-wise pixel comparison (H. Zhang, A. Kankanhalli, S. Smoliar, 1993).
    """

    colour: bool = False
    noise_floor: float = 0.02
    reference: Against = "keyframe"
    region: Region = "frame"
    name: str = "frame_difference"

    def __post_init__(self) -> None:
        check_range(self, "noise_floor", 0, 1)
        check_choice(self, "reference", ("keyframe", "previous"))
        check_choice(self, "region", ("frame", "object"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim change; NaN without a reference."""
        reference = earlier(history, self.reference)
        region = region_of(frame, reference) if self.region == "object" else None
        if self.colour:
            kept = frame.shared.describe("frame/colour", lambda: (frame.image * 255).round().to(torch.uint8))
            then = reference.get("frame/colour") if reference else None
            now, before = kept / 255, None if then is None or then.shape != kept.shape else then / 255
        else:
            now = luminance(frame)
            before = luminance_at(reference, now)
        if before is None or reference is None or (self.region == "object" and region is None):
            return frame.unknown()

        def compare() -> Tensor:
            change = (now - before).abs()
            if self.noise_floor:
                change = change * (change > self.noise_floor)
            return change.mean(0) if self.colour else change

        key = f"difference/{self.colour}/{self.noise_floor}/{reference.frame_idx}"
        return mean_over(frame.shared.once(key, compare), region)


def hue_saturation(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return hue and saturation, each (h, w) in [0, 1], of a (3, h, w) RGB image; grey has neither.

    Channels half a level of 255 apart count as equal: SAM 2's normalisation, undone, leaves rounding between them.
    """
    red, green, blue = image
    high, low = image.amax(0), image.amin(0)
    span = high - low
    coloured = span > 0.5 / 255
    sector = torch.where(
        high == red,
        (green - blue) / span,
        torch.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    return torch.where(coloured, sector / 6, 0.0).remainder(1), torch.where(coloured, span / high, 0.0)


@dataclass(frozen=True, repr=False)
class Histogram(Comparable):
    """Distance of the colour histograms; blind to where the colours are.

    An object's histogram is taken over its own dilated mask on each frame. A region without pixels has the zero
    histogram: both empty is 0, one empty 1.

    Attributes:
        space: `"hsv"` (hue by saturation, so that brightness does not count), `"rgb"` or `"luminance"`. Hue and
            saturation are binned jointly, and so are red, green and blue.
        metric: `"bhattacharyya"` (in [0, 1]), `"chi_square"` (symmetric, halved, in [0, 1]), `"correlation"` (1 -
            correlation, in [0, 2]) or `"intersection"` (1 - the sum of minima, in [0, 1]).
        bins: Bins of each channel, or one number for all; at most 8,192 in all.
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        region: Over the whole `"frame"` or the `"object"`.
        name: Name of the score in records, filters and tables.

    Source: M. Swain and D. Ballard, Color Indexing, 1991 (intersection); OpenCV's `compareHist` (the others).
    `HISTCMP_CHISQR_ALT` of normalised histograms is four times our chi-square.
    """

    space: Literal["hsv", "rgb", "luminance"] = "hsv"
    metric: Literal["bhattacharyya", "chi_square", "correlation", "intersection"] = "bhattacharyya"
    bins: int | tuple[int, ...] = 16
    reference: Against = "keyframe"
    region: Region = "frame"
    name: str = "histogram"

    def __post_init__(self) -> None:
        check_choice(self, "space", ("hsv", "rgb", "luminance"))
        check_choice(self, "metric", ("bhattacharyya", "chi_square", "correlation", "intersection"))
        check_choice(self, "reference", ("keyframe", "previous"))
        check_choice(self, "region", ("frame", "object"))
        bins = plain(self, "bins")
        if isinstance(bins, list):
            object.__setattr__(self, "bins", tuple(bins))
        sizes = self._sizes()
        counts = all(type(size) is int and size >= 1 for size in sizes)
        if not counts or len(sizes) != self._channels or math.prod(sizes) > 8192:
            raise ValueError(
                f"Histogram(bins={self.bins!r}): {self.space} takes one whole number or {self._channels}, each at "
                "least 1, and at most 8192 bins in all"
            )

    @property
    def _channels(self) -> int:
        return {"hsv": 2, "rgb": 3, "luminance": 1}[self.space]

    def _sizes(self) -> tuple[int, ...]:
        return self.bins if isinstance(self.bins, tuple) else (self.bins,) * self._channels

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim distance; NaN without a reference."""
        whole = self.region == "frame"
        key = f"{self.region}/histogram/{self.space}/{self._sizes()}"
        now = (frame.shared if whole else frame).describe(key, lambda: self._count(frame))
        reference = earlier(history, self.reference)
        before = reference.get(key) if reference else None
        if before is None:
            return frame.unknown()
        if self.metric == "correlation":
            # Equal counts in all bins have no variance: centred they are the zero vector, which equals itself only.
            return vector_change(now - now.mean(), before - before.mean())
        if self.metric == "intersection":
            change = 0.5 * (now - before).abs().sum()
        elif self.metric == "chi_square":
            change = 0.5 * ((now - before).square() / (now + before).clamp(min=1e-12)).sum()
        else:
            change = (0.5 * (now.sqrt() - before.sqrt()).square().sum()).sqrt()
        one_is_empty = (now.amax() > 0) ^ (before.amax() > 0)
        return torch.where(one_is_empty, 1.0, change)

    def _count(self, frame: TrackedFrame) -> Tensor:
        """Return the histogram, flat; it sums to 1, or to 0 over an empty region."""
        index = frame.shared.once(f"bins/{self.space}/{self._sizes()}", lambda: self._bins(frame))
        region = region_of(frame, None) if self.region == "object" else None
        weight = torch.ones(index.shape, device=index.device) if region is None else region
        counts = torch.zeros(math.prod(self._sizes()), device=index.device)
        counts.scatter_add_(0, index.flatten(), weight.flatten())
        return counts / weight.sum().clamp(min=1)

    def _bins(self, frame: TrackedFrame) -> Tensor:
        """Return the number of each pixel's bin, (h, w)."""
        if self.space == "luminance":
            channels: tuple[Tensor, ...] = (luminance(frame),)
        elif self.space == "rgb":
            channels = tuple(frame.image.float())
        else:
            channels = hue_saturation(frame.image.float())
        sizes = self._sizes()
        edge = 1e-4  # of a bin: a level on its edge, red's hue of 0 or 1 too, is in one bin however it was rounded
        index, *more = (
            (channel * size + edge).long() % size if turns else (channel * size + edge).long().clamp(0, size - 1)
            for channel, size, turns in zip(channels, sizes, (self.space == "hsv", False, False), strict=False)
        )
        for digit, size in zip(more, sizes[1:], strict=True):
            index = torch.add(digit, index, alpha=size)
        return index


def gaussian(sigma: float, radius: int, device: torch.device) -> Tensor:
    """Return the (2 * radius + 1,) Gaussian weights; they sum to 1."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    weights = (steps.square() / (-2 * sigma * sigma)).exp()
    normalised: Tensor = weights / weights.sum()
    return normalised


def window_means(planes: Tensor, weights: Tensor) -> Tensor:
    """Return (c, h, w) planes averaged with a separable window of odd length; the input carries its own border.

    A depth-wise convolution: on CUDA the only one of torch's that TF32 never shortens to ten bits of mantissa.
    """
    count, length = planes.shape[0], weights.numel()
    rows = weights.view(1, 1, length, 1).expand(count, 1, length, 1)
    columns = weights.view(1, 1, 1, length).expand(count, 1, 1, length)
    means: Tensor = conv2d(conv2d(planes[None], rows, groups=count), columns, groups=count)[0]
    return means


@dataclass(frozen=True, repr=False)
class SSIM(Comparable):
    """1 - structural similarity of the luminance, in [0, 2].

    A Gaussian window of 11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, population variances. Over the
    whole frame, windows that cross the border are left out where the frame is large enough. Over an object they
    count, with the border repeated.

    Attributes:
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        region: Over the whole `"frame"` or the `"object"` (its dilated mask, now and at the reference).
        name: Name of the score in records, filters and tables.

    Source: Z. Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    """

    reference: Against = "keyframe"
    region: Region = "frame"
    name: str = "ssim"

    def __post_init__(self) -> None:
        check_choice(self, "reference", ("keyframe", "previous"))
        check_choice(self, "region", ("frame", "object"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim change; NaN without a reference."""
        reference = earlier(history, self.reference)
        region = region_of(frame, reference, margin=5) if self.region == "object" else None
        now = luminance(frame)
        before = luminance_at(reference, now)
        if before is None or reference is None or (self.region == "object" and region is None):
            return frame.unknown()
        change: Tensor = frame.shared.once(f"ssim/{reference.frame_idx}", lambda: 1 - ssim_map(now, before))
        if region is None and min(change.shape) > 10:
            change = change[5:-5, 5:-5]
        return mean_over(change, region)


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity at each pixel of two (h, w) float32 images in [0, 1], border repeated."""
    a, b = a - 0.5, b - 0.5  # variances do not change by it, and lose less to rounding
    planes = torch.stack([a, b, a * a, b * b, a * b])
    bordered = pad(planes[None], (5, 5, 5, 5), mode="replicate")[0]
    mean_a, mean_b, square_a, square_b, product = window_means(bordered, gaussian(1.5, 5, a.device))
    variances = (square_a - mean_a * mean_a) + (square_b - mean_b * mean_b)
    covariance = product - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    c1, c2 = 0.01**2, 0.03**2
    top: Tensor = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom: Tensor = (mean_a * mean_a + mean_b * mean_b + c1) * (variances + c2)
    return top / bottom
