"""Significance scorers: small frozen dataclasses with one `score` method, run on the predictor's device.

Change scorers measure change against a reference frame: 0 is "same", higher is more worth keeping, NaN is "nothing
to compare with". Quality scorers say how trustworthy the mask is.
"""

from sam2_keyframe.scorers.features import FeatureShift
from sam2_keyframe.scorers.masks import MaskIoU
from sam2_keyframe.scorers.quality import ObjectScore, PredictedIoU, Stability

SCORERS: dict[str, type] = {
    "feature_shift": FeatureShift,
    "mask_iou": MaskIoU,
    "object_score": ObjectScore,
    "predicted_iou": PredictedIoU,
    "stability": Stability,
}
"""Every scorer by name: `SCORERS["mask_iou"]()`."""

__all__ = [
    "SCORERS",
    "FeatureShift",
    "MaskIoU",
    "ObjectScore",
    "PredictedIoU",
    "Stability",
]
