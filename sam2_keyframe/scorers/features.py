"""Change of what SAM 2 itself computes about the object: pointer, memory features, image embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import Against, check_choice, earlier, in_float32
from sam2_keyframe.types import History, TrackedFrame


def vector_change(a: Tensor, b: Tensor, distance: str = "cosine") -> Tensor:
    """Return the distance of float32 vectors (..., C) along the last dimension; 0 when both are zero, 1 when one is.

    `"cosine"`: 1 - cos, in [0, 2], computed as half the squared distance of the unit vectors, which is exactly 0
    for equal vectors. `"l2"`: the Euclidean distance over the larger of the two lengths, in [0, 2].
    """
    size_a: Tensor = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    size_b: Tensor = torch.linalg.vector_norm(b, dim=-1, keepdim=True)
    if distance == "l2":
        gap: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
        return (gap / size_a.maximum(size_b).clamp(min=1e-12)[..., 0]).clamp(max=2)
    unit = a / size_a.clamp(min=1e-12) - b / size_b.clamp(min=1e-12)
    one_is_zero = ((size_a > 0) ^ (size_b > 0))[..., 0]
    return 0.5 * (unit.square().sum(-1) + one_is_zero)


@dataclass(frozen=True, repr=False)
class FeatureShift(Comparable):
    """Change of one of SAM 2's own descriptions of the object, in [0, 2].

    The memory features and the image embedding are averaged inside the mask, each position weighted by the share
    of it that the mask covers. An empty mask gives the zero vector: both empty is 0, one empty 1.

    Attributes:
        feature: `"pointer"` (the object pointer, (C,)), `"memory"` (the memory encoder's output) or `"image"` (the
            image embedding). The score is NaN on a frame adopted without an image embedding.
        distance: `"cosine"` (1 - cos) or `"l2"` (relative to the larger of the two lengths).
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        name: Name of the score in records, filters and tables.

    Source: features of SAM 2 (arXiv 2408.00714); the distances are the textbook ones.
    """

    feature: Literal["pointer", "memory", "image"] = "pointer"
    distance: Literal["cosine", "l2"] = "cosine"
    reference: Against = "keyframe"
    name: str = "feature_shift"

    def __post_init__(self) -> None:
        check_choice(self, "feature", ("pointer", "memory", "image"))
        check_choice(self, "distance", ("cosine", "l2"))
        check_choice(self, "reference", ("keyframe", "previous"))

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim change; NaN without a reference."""
        vector = describe(frame, self.feature)
        reference = earlier(history, self.reference)
        before = reference.get(f"object/{self.feature}") if reference else None
        return frame.unknown() if vector is None or before is None else vector_change(vector, before, self.distance)


def describe(frame: TrackedFrame, feature: str) -> Tensor | None:
    """Return the (C,) float32 description of the object, kept under `object/<feature>`; None where SAM 2 has none."""
    if feature == "pointer":
        return frame.describe("object/pointer", lambda: frame.obj_ptr[0].to(torch.float32, copy=True))
    grid = frame.maskmem_features if feature == "memory" else frame.image_embed
    if grid is None:
        return None
    return frame.describe(f"object/{feature}", lambda: pooled(grid, frame.pred_masks))


def pooled(grid: Tensor, pred_masks: Tensor, whole_when_empty: bool = False) -> Tensor:
    """Return a (1, C, h, w) grid averaged inside the mask, each cell weighted by the share of it that is covered.

    Args:
        grid: Features.
        pred_masks: (1, 1, H, W) mask logits.
        whole_when_empty: Whether an empty mask gives the average of the whole grid, not 0.

    Returns:
        (C,) float32.
    """
    cover = adaptive_avg_pool2d((pred_masks[0] > 0).float(), (grid.shape[-2], grid.shape[-1]))[0]
    total = cover.sum()
    if whole_when_empty:
        cover = cover + (total == 0)
        total = cover.sum()
    return (grid[0].float() * cover).sum((1, 2)) / total.clamp(min=1e-12)
