"""How trustworthy a frame's mask is: higher is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import check_range, in_float32
from sam2_keyframe.types import History, TrackedFrame


@dataclass(frozen=True, repr=False)
class PredictedIoU(Comparable):
    """SAM 2's own estimate of the chosen mask's IoU, in [0, 1]: the best of the candidates'; 1 on a prompted frame.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: SAM 2's IoU head (arXiv 2408.00714); SAM 2 keeps the candidate that it rates best.
    """

    quality: ClassVar[bool] = True
    name: str = "predicted_iou"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim estimate."""
        return frame.candidate_ious.float().max()


@dataclass(frozen=True, repr=False)
class ObjectScore(Comparable):
    """SAM 2's logit that the object is visible; > 0: visible.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: SAM 2's occlusion head (arXiv 2408.00714).
    """

    quality: ClassVar[bool] = True
    name: str = "object_score"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim logit."""
        return frame.object_score_logits[0, 0]


@dataclass(frozen=True, repr=False)
class Stability(Comparable):
    """IoU of the masks at a high and at a low threshold of the logits, in [0, 1]; 1 is a sharp mask.

    The mask at the high threshold lies inside the other, so their IoU is the ratio of the areas. Where even the low
    threshold leaves nothing, 1, as in SAM 2.

    Attributes:
        delta: The thresholds are + and - this many logits, > 0.
        name: Name of the score in records, filters and tables.

    Source: the stability score of Segment Anything (arXiv 2304.02643).
    """

    quality: ClassVar[bool] = True
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


@dataclass(frozen=True, repr=False)
class MaskQuality(Comparable):
    """Sureness that the object is there x the best predicted IoU x sureness of the mask's own pixels, in [0, 1].

    The sigmoid of the object score, the highest of the candidates' predicted IoUs, and the mean over the mask of the
    sigmoid of its logits. 0 for an empty mask; at most 1/2 where SAM 2 holds the object hidden.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: the frame quality of MOSEv2's baseline (H. Ding et al., arXiv 2508.05630).
    """

    quality: ClassVar[bool] = True
    name: str = "mask_quality"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim product."""
        logits = frame.pred_masks.float()
        inside = logits > 0
        sureness = (logits.sigmoid() * inside).sum() / inside.sum().clamp(min=1)
        return frame.object_score_logits[0, 0].float().sigmoid() * frame.candidate_ious.float().amax() * sureness


@dataclass(frozen=True, repr=False)
class Area(Comparable):
    """Share of the frame that the mask covers, in [0, 1]; 0: the mask is empty.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: ours.
    """

    quality: ClassVar[bool] = True
    name: str = "area"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim share."""
        return (frame.pred_masks > 0).float().mean()


@dataclass(frozen=True, repr=False)
class KalmanOverlap(Comparable):
    """IoU of the chosen mask's box with the predicted one, in [0, 1]; NaN until the motion is stable.

    Known where the memory chooses masks by motion (`choice=Kalman()`).

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: SAMURAI (arXiv 2411.11922).
    """

    quality: ClassVar[bool] = True
    name: str = "kalman_overlap"

    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return NaN: the overlap is there before scores are asked for, or not at all."""
        return frame.unknown()


@dataclass(frozen=True, repr=False)
class BackwardIoU(Comparable):
    """Mean IoU of the mask's boxes, tracked back over the last frames, with those chosen then, in [0, 1].

    Known of the frames that a check looked at (`verify=Backward()`); NaN of the others, which are not doubtful.

    Attributes:
        name: Name of the score in records, filters and tables.

    Source: SENTRY (arXiv 2606.24449).
    """

    quality: ClassVar[bool] = True
    name: str = "backward_iou"

    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return NaN: the overlap is there before scores are asked for, or not at all."""
        return frame.unknown()
