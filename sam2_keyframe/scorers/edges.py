"""Edges that enter and leave the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import (
    Against,
    Region,
    check_choice,
    check_range,
    dilate,
    earlier,
    in_float32,
    region_of,
)
from sam2_keyframe.types import History, TrackedFrame


def levels(frame: TrackedFrame) -> Tensor:
    """Return the frame's (h, w) float32 luminance in whole 8-bit levels (ITU-R BT.601)."""

    def make() -> Tensor:
        red, green, blue = frame.image.float()
        luma: Tensor = (255 * 0.299 * red).add(green, alpha=255 * 0.587).add(blue, alpha=255 * 0.114)
        return luma.round()

    made: Tensor = frame.shared.once("levels", make)
    return made


def edges(levels: Tensor, threshold: float) -> Tensor:
    """Return the (h, w) bool edges of a picture in whole 8-bit levels: Sobel gradients thinned across the edge.

    Equal to OpenCV's `Canny` with both thresholds the same and the Euclidean gradient. Tracking weaker edges along
    stronger ones (hysteresis) has no fixed number of steps and is left out.
    """
    picture = pad(levels[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    down = (picture[:-2] + picture[2:]).add(picture[1:-1], alpha=2)
    across = (picture[:, :-2] + picture[:, 2:]).add(picture[:, 1:-1], alpha=2)
    to_left, to_bottom = down[:, :-2] - down[:, 2:], across[2:] - across[:-2]
    size = to_left.square().addcmul(to_bottom, to_bottom)
    # The line of the gradient: 0 level, 1 rising, 2 upright, 3 falling. Of the 3 x 3 neighbours, counted row by row,
    # number 3 - line comes before the pixel on it and 5 + line after.
    line = (torch.atan2(to_bottom, to_left) * (4 / math.pi)).round().remainder(4).long()[None]
    around = unfold(size[None, None], 3, padding=1).view(9, *size.shape)
    other = 3 - line
    before, after = around[:4].gather(0, other)[0], around[5:].gather(0, line)[0]
    # Of two equal neighbours the first is the edge, but on a diagonal none is; sizes are whole numbers.
    largest = before.maximum(after - (other[0] & 1)).clamp(min=threshold * threshold)
    return size > largest


@dataclass(frozen=True, repr=False)
class EdgeChangeRatio(Comparable):
    """The larger of the shares of edge pixels that entered and that left, in [0, 1].

    An edge pixel has entered when no edge of the reference lies within `radius` of it, and left when no edge of the
    current frame does. No edges on either frame: 0; on one only: 1.

    Attributes:
        threshold: Least Sobel gradient of an edge, in 8-bit levels: a step of 1 level has gradient 4.
        radius: Displacement that is forgiven, in pixels at scoring resolution.
        compensate: First shift the reference's edges so that most of them meet one of the current frame, and leave out
            edges that only one of the frames can show. Over an object this undoes the object's own translation.
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        region: Over the whole `"frame"` or the `"object"` (its dilated mask, now and at the reference).
        name: Name of the score in records, filters and tables.

    Source: R. Zabih, J. Miller, K. Mai, A Feature-Based Algorithm for Detecting and Classifying Scene Breaks, 1995.
    Differences: thinned Sobel edges without hysteresis, square dilation, registration by correlation of the edges.
    """

    threshold: float = 100.0
    radius: int = 2
    compensate: bool = False
    reference: Against = "keyframe"
    region: Region = "frame"
    name: str = "edge_change_ratio"

    def __post_init__(self) -> None:
        check_range(self, "threshold", 0, 1443)
        check_range(self, "radius", 0, 64, whole=True)
        check_choice(self, "reference", ("keyframe", "previous"))
        check_choice(self, "region", ("frame", "object"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim ratio; NaN without a reference."""
        key = f"frame/edges/{self.threshold:g}"
        now = frame.shared.describe(key, lambda: edges(levels(frame), self.threshold))
        reference = earlier(history, self.reference)
        region = region_of(frame, reference, margin=2) if self.region == "object" else None
        before = reference.get(key) if reference else None
        if reference is None or before is None or before.shape != now.shape:
            return frame.unknown()
        if self.region == "object":
            return frame.unknown() if region is None else self._ratio(torch.stack([now, before]) * region)
        settings = f"{self.threshold:g}/{self.radius}/{self.compensate}"
        ratio: Tensor = frame.shared.once(
            f"edge_change/{settings}/{reference.frame_idx}", lambda: self._ratio(torch.stack([now, before]).float())
        )
        return ratio

    def _ratio(self, pair: Tensor) -> Tensor:
        """Return the 0-dim ratio of (2, h, w) edges, 1 or 0, of this frame and of the reference."""
        aligned = torch.stack([pair[0], _aligned(pair)]) if self.compensate else pair
        near = dilate(aligned, self.radius).flip(0)
        matched = (aligned * near).nansum((1, 2))
        share = matched / (matched + (aligned > near).sum((1, 2))).clamp(min=1)
        return (1 - share).amax() * pair.amax()


def _aligned(pair: Tensor) -> Tensor:
    """Return the second of (2, h, w) planes, shifted so that most of its ones meet the first's; NaN beyond its border.

    Shifts reach half the plane's size in each direction.
    """
    height, width = pair.shape[1:]
    top, left = height // 2, width // 2
    first, second = torch.fft.rfft2(pair)
    meetings = torch.fft.irfft2(first.conj() * second, s=(height, width)).roll((top, left), (0, 1))
    best = meetings.argmax()[None]
    framed = pad(pair[1], (left, width - left, top, height - top), value=math.nan)
    shifted = framed.unfold(0, height, 1).unfold(1, width, 1)
    return shifted[best // width, best % width][0]
