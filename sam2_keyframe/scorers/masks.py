"""Change of the object's mask."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sam2_keyframe.scorers._common import Against, check_choice, earlier, in_float32, mask_of
from sam2_keyframe.types import History, TrackedFrame


def mask_change(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - IoU of two bool masks of one shape, in [0, 1]: 0 when both are empty, 1 when one is."""
    union = (a | b).sum()
    return (a ^ b).sum() / union.clamp(min=1)


@dataclass(frozen=True)
class MaskIoU:
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
