"""How far a tracked frame's mask is to be trusted: four numbers an object, measured with the scores of the method.

They cross to the host with the scores of the frame, in the one copy that is made for these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sam2_keyframe.bank.statistics import FrameStats
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.scorers import Novelty, ObjectScore, PredictedIoU, Stability

DISTANCE = Novelty("memory", name="anchor_distance")
"""Of the object's memory features from those of the closest prompted frame or keyframe held, 1 - cosine."""

AGREEMENT = "agreement"
"""What people are told instead of that distance: 1 less it."""

SCORERS = (PredictedIoU(), ObjectScore(), Stability(), DISTANCE)


@dataclass(frozen=True, slots=True)
class Confidence:
    """One object on one frame; NaN is unknown.

    Attributes:
        predicted_iou: SAM 2's own estimate of the mask's IoU, in [0, 1].
        object_score: SAM 2's logit that the object is visible; > 0: visible.
        agreement: Cosine of the object's features to those of the closest anchor, a prompted frame or a keyframe held,
            in [-1, 1]; 0 where the mask is empty.
        stability: IoU of the masks at a high and a low threshold of the logits, in [0, 1]; 1 is a sharp mask.
    """

    predicted_iou: float
    object_score: float
    agreement: float
    stability: float

    @classmethod
    def of(cls, row: FrameStats) -> Confidence:
        """Return that of a frame's row; NaN is what the method did not measure."""
        scores = told(row.scores)
        return cls(*(scores.get(name, math.nan) for name in ("predicted_iou", "object_score", AGREEMENT, "stability")))


def told(scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores by name as people are told of them: the distance from the anchors as agreement with them."""
    return {AGREEMENT if name == DISTANCE.name else name: _told(name, value) for name, value in scores.items()}


def _told(name: str, value: float) -> float:
    return 1 - value if name == DISTANCE.name else value


def with_confidence(method: KeyframeMemory) -> KeyframeMemory:
    """Return a method that measures confidence besides; what it decides stays as it is.

    A method that gives one of these names to a score of its own keeps that.
    """
    taken = {scorer.name for scorer in method.scorers}
    more = tuple(scorer for scorer in SCORERS if scorer.name not in taken)
    return method.with_choices(measure=(*method.measure, *more)) if more else method
