"""Edges that enter and leave the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, unfold

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
from sam2_keyframe.scorers.dense_flow import translation
from sam2_keyframe.scorers.pixels import luminance, luminance_at
from sam2_keyframe.types import History, TrackedFrame


def edges(luma: Tensor, threshold: float) -> Tensor:
    """Return the (h, w) bool edges of a luminance in [0, 1]: Sobel gradients thinned across the edge.

    Equal to OpenCV's `Canny` with both thresholds the same and the Euclidean gradient. Tracking weaker edges along
    stronger ones (hysteresis) has no fixed number of steps and is left out.
    """
    step = torch.arange(-1.0, 2.0, device=luma.device)
    sobel = step * (2 - step.abs())[:, None]
    levels = pad((luma * 255).round()[None, None], (1, 1, 1, 1), mode="replicate")
    gx, gy = conv2d(levels, torch.stack([sobel, sobel.T])[:, None])[0]  # small whole numbers: exact in TF32 too
    size = gx.square() + gy.square()
    flat, steep = gx.abs(), gy.abs()
    tan_22 = 2**0.5 - 1
    is_flat, is_upright = steep < tan_22 * flat, steep * tan_22 > flat
    # Which of the 3 x 3 neighbours, counted row by row, comes before the pixel across the edge; 8 less it comes after.
    before = torch.where(gx * gy < 0, 2, 0).masked_fill(is_flat, 3).masked_fill(is_upright, 1)[None]
    around = unfold(size[None, None], 3, padding=1).view(9, *size.shape)
    # Of two equal neighbours the first is the edge, but on a diagonal none is; sizes are whole numbers.
    margin = ~(is_flat | is_upright)
    strong: Tensor = size > threshold * threshold
    thin: Tensor = strong & (size > around.gather(0, before)[0]) & (size >= around.gather(0, 8 - before)[0] + margin)
    return thin


@dataclass(frozen=True)
class EdgeChangeRatio:
    """The larger of the shares of edge pixels that entered and that left, in [0, 1].

    An edge pixel has entered when no edge of the reference lies within `radius` of it, and left when no edge of the
    current frame does. No edges on either frame: 0; on one only: 1.

    Attributes:
        threshold: Least Sobel gradient of an edge, in 8-bit levels: a step of 1 level has gradient 4.
        radius: Displacement that is forgiven, in pixels at scoring resolution.
        compensate: Also shift the reference's edges by the frames' translation, edges that only one of the frames
            can show left out, and take the smaller ratio.
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        region: Over the whole `"frame"` or the `"object"` (its dilated mask, now and at the reference).
        name: Name of the score in records, filters and tables.

    Source: R. Zabih, J. Miller, K. Mai, A Feature-Based Algorithm for Detecting and Classifying Scene Breaks, 1995.
    Differences: thinned Sobel edges without hysteresis, square dilation, registration by phase correlation.
    """

    threshold: float = 100.0
    radius: int = 2
    compensate: bool = False
    reference: Against = "keyframe"
    region: Region = "frame"
    name: str = "edge_change_ratio"

    def __post_init__(self) -> None:
        check_range(self, "threshold", 0, 1443)
        check_range(self, "radius", 0, 64)
        check_choice(self, "reference", ("keyframe", "previous"))
        check_choice(self, "region", ("frame", "object"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim ratio; NaN without a reference."""
        luma = luminance(frame)
        key = f"frame/edges/{self.threshold:g}"
        now = frame.shared.describe(key, lambda: edges(luma, self.threshold))
        reference = earlier(history, self.reference)
        region = region_of(frame, reference, margin=2) if self.region == "object" else None
        before, old_luma = reference.get(key) if reference else None, luminance_at(reference, luma)
        if before is None or old_luma is None or (self.region == "object" and region is None):
            return frame.unknown()
        new, old = now.float(), before.float()
        if region is not None:
            new = new * region
        still = self._ratio(new, old if region is None else old * region)
        if not self.compensate:
            return still
        moved, shared = _shift(old, translation(luma, old_luma))
        # A large object near the centre can outweigh the background in the registration.
        return still.minimum(self._ratio(new * shared, moved if region is None else moved * region))

    def _ratio(self, new: Tensor, old: Tensor) -> Tensor:
        both = torch.stack([new, old])
        unmatched = both * (1 - dilate(both, self.radius).flip(0))
        return (unmatched.sum((1, 2)) / both.sum((1, 2)).clamp(min=1)).amax()


def _shift(plane: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return plane(p + offset), 0 where that lies outside, and where it lies inside, both (h, w) float."""
    height, width = plane.shape
    rows = torch.arange(height, device=plane.device) + offset[1]
    columns = torch.arange(width, device=plane.device) + offset[0]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
    moved = plane[rows.clamp(0, height - 1)[:, None], columns.clamp(0, width - 1)[None]]
    return moved * inside, inside.float()
