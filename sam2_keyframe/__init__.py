"""Training-free keyframe memory for SAM 2 video predictors: `wrap(predictor)` and `unwrap(predictor)`.

Importing the package changes nothing.
"""

from sam2_keyframe.attention.maths import Foveated, Modulated, Pool, SalientTokens, Whole
from sam2_keyframe.attention.queries import NearObject
from sam2_keyframe.bank.compression import PCA, Chain, Downsample, Identity, Int8, Offload, Prune
from sam2_keyframe.bank.statistics import FrameStats, MemoryStats
from sam2_keyframe.blocks import BLOCKS
from sam2_keyframe.conditions import Combinable, Comparable, Threshold
from sam2_keyframe.memory import KeyframeMemory, Keyframes, LongTerm, Others, Prompts, Ranked, Recent
from sam2_keyframe.methods import METHODS, NON_CAUSAL, make_method
from sam2_keyframe.patches.transformers import keep_frames
from sam2_keyframe.plugin import Handle, forget, load_memory, memory_stats, save_memory, unwrap, wrap
from sam2_keyframe.replay import Geometry, Recording, Replay, record, replay
from sam2_keyframe.rules.adaptive import Adaptive, MotionScaled, Quantile, SceneBoundary, StableArea
from sam2_keyframe.rules.eviction import (
    LeastSignificant,
    LeastUsed,
    MostRedundant,
    MostSimilar,
    Oldest,
    Random,
    RelevanceFreshness,
)
from sam2_keyframe.rules.filters import Always, EffectiveScore, EveryNth, Frames, MaxGap, MinGap, Visible
from sam2_keyframe.rules.genetic import choose_frames
from sam2_keyframe.rules.motion import Kalman
from sam2_keyframe.rules.retrieval import DropRedundant, MostAlike, Nearest, Reconstruct, Relevant
from sam2_keyframe.rules.returns import Confirm
from sam2_keyframe.rules.similarity import AttentionShare, CellCosine, DescriptorCosine, ImageCosine, PrototypeCosine
from sam2_keyframe.rules.tree import Tree
from sam2_keyframe.rules.verify import Backward
from sam2_keyframe.scorers import (
    SSIM,
    Area,
    BackwardIoU,
    Combine,
    Distractor,
    EdgeChangeRatio,
    FeatureShift,
    FrameDifference,
    Histogram,
    KalmanOverlap,
    MaskIoU,
    MaskQuality,
    MaskShape,
    Novelty,
    ObjectScore,
    OpticalFlow,
    PredictedIoU,
    Spatiotemporal,
    Stability,
    Surprise,
)  # fmt: skip
from sam2_keyframe.video.source import FrameSource, init_state
from sam2_keyframe.video.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "BLOCKS",
    "METHODS",
    "NON_CAUSAL",
    "PCA",
    "SSIM",
    "Adaptive",
    "Always",
    "Area",
    "AttentionShare",
    "Backward",
    "BackwardIoU",
    "CellCosine",
    "Chain",
    "Combinable",
    "Combine",
    "Comparable",
    "Confirm",
    "DescriptorCosine",
    "Distractor",
    "Downsample",
    "DropRedundant",
    "EdgeChangeRatio",
    "EffectiveScore",
    "EveryNth",
    "FeatureShift",
    "Foveated",
    "FrameDifference",
    "FrameSource",
    "FrameStats",
    "Frames",
    "Geometry",
    "Handle",
    "Histogram",
    "Identity",
    "ImageCosine",
    "Int8",
    "Kalman",
    "KalmanOverlap",
    "KeyframeMemory",
    "Keyframes",
    "LeastSignificant",
    "LeastUsed",
    "LongTerm",
    "MaskIoU",
    "MaskQuality",
    "MaskShape",
    "MaxGap",
    "MemoryStats",
    "MinGap",
    "Modulated",
    "MostAlike",
    "MostRedundant",
    "MostSimilar",
    "MotionScaled",
    "NearObject",
    "Nearest",
    "Novelty",
    "ObjectScore",
    "Offload",
    "Oldest",
    "OpticalFlow",
    "Others",
    "Pool",
    "PredictedIoU",
    "Prompts",
    "PrototypeCosine",
    "Prune",
    "Quantile",
    "Random",
    "Ranked",
    "Recent",
    "Reconstruct",
    "Recording",
    "RelevanceFreshness",
    "Relevant",
    "Replay",
    "SalientTokens",
    "SceneBoundary",
    "Spatiotemporal",
    "Stability",
    "StableArea",
    "Stream",
    "Surprise",
    "Threshold",
    "Tree",
    "Visible",
    "Whole",
    "__version__",
    "choose_frames",
    "forget",
    "init_state",
    "keep_frames",
    "load_memory",
    "make_method",
    "memory_stats",
    "record",
    "replay",
    "save_memory",
    "unwrap",
    "wrap",
]
