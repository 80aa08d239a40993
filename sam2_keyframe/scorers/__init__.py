"""Significance scorers: small frozen dataclasses with one `score` method, run on the predictor's device.

Compared with a number, a scorer is a rule: `MaskIoU() > 0.5`. Change scorers measure change against a reference frame:
0 is "same", higher is more worth keeping, NaN is "nothing to compare with". Quality scorers say how trustworthy the
mask is.
"""

from sam2_keyframe.scorers.combine import Combine, Novelty, Spatiotemporal, Surprise
from sam2_keyframe.scorers.distractors import Distractor
from sam2_keyframe.scorers.edges import EdgeChangeRatio
from sam2_keyframe.scorers.features import FeatureShift
from sam2_keyframe.scorers.flow import OpticalFlow
from sam2_keyframe.scorers.masks import MaskIoU, MaskShape
from sam2_keyframe.scorers.pixels import SSIM, FrameDifference, Histogram
from sam2_keyframe.scorers.quality import (
    Area,
    BackwardIoU,
    KalmanOverlap,
    MaskQuality,
    ObjectScore,
    PredictedIoU,
    Stability,
)

SCORERS: dict[str, type] = {
    "combine": Combine,
    "distractor": Distractor,
    "edge_change_ratio": EdgeChangeRatio,
    "feature_shift": FeatureShift,
    "frame_difference": FrameDifference,
    "histogram": Histogram,
    "mask_iou": MaskIoU,
    "mask_quality": MaskQuality,
    "mask_shape": MaskShape,
    "novelty": Novelty,
    "object_score": ObjectScore,
    "optical_flow": OpticalFlow,
    "predicted_iou": PredictedIoU,
    "spatiotemporal": Spatiotemporal,
    "ssim": SSIM,
    "stability": Stability,
    "surprise": Surprise,
}
"""Every scorer by name: `SCORERS["mask_iou"]()`. `Combine` alone needs an argument, its parts."""

TOLD: dict[str, type] = {"area": Area, "backward_iou": BackwardIoU, "kalman_overlap": KalmanOverlap}
"""Scorers of what is told of a frame whatever is measured: rules ask for them."""

__all__ = [
    "SCORERS",
    "SSIM",
    "TOLD",
    "Area",
    "BackwardIoU",
    "Combine",
    "Distractor",
    "EdgeChangeRatio",
    "FeatureShift",
    "FrameDifference",
    "Histogram",
    "KalmanOverlap",
    "MaskIoU",
    "MaskQuality",
    "MaskShape",
    "Novelty",
    "ObjectScore",
    "OpticalFlow",
    "PredictedIoU",
    "Spatiotemporal",
    "Stability",
    "Surprise",
]
