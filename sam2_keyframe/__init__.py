"""Training-free keyframe memory for SAM 2 video predictors: `wrap(predictor)` and `unwrap(predictor)`.

Importing the package changes nothing.
"""

from sam2_keyframe.attention.maths import ATTEND, Foveated, Modulated, Pool, SalientTokens, Whole
from sam2_keyframe.attention.queries import QUERIES, NearObject
from sam2_keyframe.bank.compression import CODECS, PCA, Cast, Chain, Downsample, Identity, Int8, Offload, Prune
from sam2_keyframe.bank.statistics import FrameStats, MemoryStats, Occupancy
from sam2_keyframe.methods import METHODS, NON_CAUSAL, KeyframeMemory, make_method
from sam2_keyframe.plugin import Handle, forget, memory_stats, unwrap, wrap
from sam2_keyframe.replay import Geometry, Recording, Replay, record, replay
from sam2_keyframe.rules.eviction import (
    EVICTION,
    LeastSignificant,
    LeastUsed,
    MostRedundant,
    MostSimilar,
    Oldest,
    Random,
    RelevanceFreshness,
    RollingBuffer,
)
from sam2_keyframe.rules.filters import (
    FILTERS,
    Adaptive,
    Always,
    And,
    EffectiveScore,
    EveryNth,
    Frames,
    Grid,
    Hysteresis,
    MaxGap,
    MinGap,
    MotionScaled,
    Never,
    Not,
    Or,
    Quality,
    Quantile,
    SceneBoundary,
    StableArea,
    Threshold,
    Visible,
)
from sam2_keyframe.rules.genetic import choose_frames, coverage
from sam2_keyframe.rules.motion import MOTION, Kalman
from sam2_keyframe.rules.retrieval import SELECTION, DropRedundant, Nearest, Reconstruct, Relevant
from sam2_keyframe.rules.similarity import RELATIONS, AttentionShare, CellCosine, DescriptorCosine, ImageCosine
from sam2_keyframe.scorers import *  # noqa: F403 - every scorer is public
from sam2_keyframe.scorers import __all__ as _scorers
from sam2_keyframe.video.source import FrameSource, init_state
from sam2_keyframe.video.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "ATTEND",
    "Adaptive",
    "Always",
    "And",
    "AttentionShare",
    "CODECS",
    "Cast",
    "CellCosine",
    "Chain",
    "DescriptorCosine",
    "Downsample",
    "DropRedundant",
    "EVICTION",
    "EffectiveScore",
    "EveryNth",
    "FILTERS",
    "Foveated",
    "FrameSource",
    "FrameStats",
    "Frames",
    "Geometry",
    "Grid",
    "Handle",
    "Hysteresis",
    "Identity",
    "ImageCosine",
    "Int8",
    "Kalman",
    "KeyframeMemory",
    "LeastSignificant",
    "LeastUsed",
    "METHODS",
    "MOTION",
    "MaxGap",
    "MemoryStats",
    "MinGap",
    "Modulated",
    "MostRedundant",
    "MostSimilar",
    "MotionScaled",
    "NON_CAUSAL",
    "NearObject",
    "Nearest",
    "Never",
    "Not",
    "Occupancy",
    "Offload",
    "Oldest",
    "Or",
    "PCA",
    "Pool",
    "Prune",
    "QUERIES",
    "Quality",
    "Quantile",
    "RELATIONS",
    "Random",
    "Reconstruct",
    "Recording",
    "RelevanceFreshness",
    "Relevant",
    "Replay",
    "RollingBuffer",
    "SELECTION",
    "SceneBoundary",
    "StableArea",
    "SalientTokens",
    "Stream",
    "Threshold",
    "Visible",
    "Whole",
    "__version__",
    "choose_frames",
    "coverage",
    "forget",
    "init_state",
    "make_method",
    "memory_stats",
    "record",
    "replay",
    "unwrap",
    "wrap",
    *_scorers,
]
