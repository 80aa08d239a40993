"""How trustworthy a frame's mask is: higher is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_keyframe.scorers._common import check_range, in_float32
from sam2_keyframe.types import History, TrackedFrame


@dataclass(frozen=True)
class PredictedIoU:
    """SAM 2's own estimate of the chosen mask's IoU, in [0, 1]: the best of the candidates'; 1 on a prompted frame.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: SAM 2's IoU head (arXiv 2408.00714); SAM 2 keeps the candidate that it rates best.
    """

    name: str = "predicted_iou"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim estimate."""
        return frame.candidate_ious.float().max()


@dataclass(frozen=True)
class ObjectScore:
    """SAM 2's logit that the object is visible; > 0: visible.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: SAM 2's occlusion head (arXiv 2408.00714).
    """

    name: str = "object_score"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim logit."""
        return frame.object_score_logits[0, 0]


@dataclass(frozen=True)
class Stability:
    """IoU of the masks at a high and at a low threshold of the logits, in [0, 1]; 1 is a sharp mask.

    The mask at the high threshold lies inside the other, so their IoU is the ratio of the areas. Where even the low
    threshold leaves nothing, 1, as in SAM 2.

    Attributes:
        delta: The thresholds are + and - this many logits, > 0.
        name: Name of the score in records, filters and tables.

    Source: the stability score of Segment Anything (arXiv 2304.02643).
    """

    delta: float = 1.0
    name: str = "stability"

    def __post_init__(self) -> None:
        check_range(self, "delta", 1e-6)

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim ratio."""
        logits = frame.pred_masks.float()
        high, low = (logits > self.delta).sum(), (logits > -self.delta).sum()
        return torch.where(low > 0, high / low.clamp(min=1), 1.0)
