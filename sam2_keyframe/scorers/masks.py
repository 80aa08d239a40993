"""Change of the object's mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import Against, check_choice, earlier, in_float32, mask_of
from sam2_keyframe.types import History, TrackedFrame


def mask_change(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - IoU of two bool masks of one shape, in [0, 1]: 0 when both are empty, 1 when one is."""
    union = (a | b).sum()
    return (a ^ b).sum() / union.clamp(min=1)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the (k, 4) int64 boxes x0, y0, x1, y1 of (k, h, w) bool masks, edge to edge; all 0 for an empty one."""
    sides = []
    for line in (masks.any(1).int(), masks.any(2).int()):
        end = line.shape[1] - line.flip(1).argmax(1)  # the first of equal ones is meant
        sides.append((line.argmax(1), end * line.amax(1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], 1)


@dataclass(frozen=True, repr=False)
class MaskIoU(Comparable):
    """1 - IoU of the object's mask with the reference's, in [0, 1].

    Reacts to motion, scale, shape and occlusion alike; blind to appearance. Both masks empty: 0; one empty: 1.

    Attributes:
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        name: Name of the score in records, filters and tables.

    Source: the Jaccard distance (P. Jaccard, 1912).
    """

    reference: Against = "keyframe"
    name: str = "mask_iou"

    def __post_init__(self) -> None:
        check_choice(self, "reference", ("keyframe", "previous"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim change; NaN without a reference."""
        mask = mask_of(frame)
        reference = earlier(history, self.reference)
        before = reference.get("object/mask") if reference else None
        return frame.unknown() if before is None else mask_change(mask, before)


def canonical(mask: Tensor, side: int = 96) -> Tensor:
    """Return a bool mask centred and scaled to one area, (side + side / 16, side) float32 in [0, 1]; all 0 when empty.

    The square looked at reaches twice the root of the area to each side of the centroid, so a mask up to 16 times
    as long as wide fits. Interpolated, because the original's pixels fall between the new ones. The last rows, as many
    cells as the area has, hold the share of it that lies outside: of parts far from each other where, is not told.
    """
    height, width = mask.shape
    weight = mask.float()
    area = weight.sum().clamp(min=1)
    across, down = (torch.arange(0.5, n, device=mask.device) for n in (width, height))
    x, y = (weight.sum(0) * across).sum() / area, (weight.sum(1) * down).sum() / area
    reach = 2 * area.sqrt()
    outside = (((across - x).abs() > reach) | ((down - y).abs() > reach)[:, None]) * weight
    steps = (torch.arange(0.5, side, device=mask.device) * (2 / side) - 1) * reach
    columns, rows = x + steps, y + steps
    columns, rows = columns * (2 / width) - 1, rows * (2 / height) - 1
    grid = torch.stack([columns.expand(side, -1), rows[:, None].expand(-1, side)], -1)
    inside = grid_sample(weight[None, None], grid[None], align_corners=False)[0, 0]
    return torch.cat([inside, (outside.sum() / area).expand(side // 16, side)])


@dataclass(frozen=True, repr=False)
class MaskShape(Comparable):
    """Change of the mask's shape or of its size, whatever its place, in [0, 1].

    Both masks empty: 0; one empty: 1.

    Attributes:
        measure: `"shape"`: 1 - IoU after moving both centroids to one point and scaling both to one area, so that
            translation and scale do not count (rotation does). `"area"`: 1 - smaller area / larger area.
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        name: Name of the score in records, filters and tables.

    Source: ours; normalisation by the zeroth and first moments (M.-K. Hu, 1962). The IoU of interpolated masks is
    the sum of minima over the sum of maxima.
    """

    measure: Literal["shape", "area"] = "shape"
    reference: Against = "keyframe"
    name: str = "mask_shape"

    def __post_init__(self) -> None:
        check_choice(self, "measure", ("shape", "area"))
        check_choice(self, "reference", ("keyframe", "previous"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim change; NaN without a reference."""
        mask = mask_of(frame)
        if self.measure == "shape":
            # Eight bits a pixel: this is kept with every reference.
            key, now = "object/shape", lambda: (canonical(mask) * 255).round().to(torch.uint8)
        else:
            key, now = "object/area", lambda: mask.float().mean()
        value = frame.describe(key, now).float()
        reference = earlier(history, self.reference)
        before = reference.get(key) if reference else None
        if before is None:
            return frame.unknown()
        return (value - before).abs().sum() / value.maximum(before.float()).sum().clamp(min=1e-12)
