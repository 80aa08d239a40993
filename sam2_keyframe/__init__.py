"""Training-free keyframe memory for SAM 2 video predictors: `wrap(predictor)` and `unwrap(predictor)`.

Importing the package changes nothing.
"""

from sam2_keyframe.buffer import EVICTION, LeastSignificant, Oldest, Random, RollingBuffer
from sam2_keyframe.filters import FILTERS, Always, EveryNth, MinGap, Never, Quality, Threshold, Visible
from sam2_keyframe.methods import METHODS, KeyframeMemory, make_method
from sam2_keyframe.plugin import Handle, forget, memory_stats, unwrap, wrap
from sam2_keyframe.scorers import *  # noqa: F403 - every scorer is public
from sam2_keyframe.scorers import __all__ as _scorers
from sam2_keyframe.stats import FrameStats, MemoryStats, Occupancy

__all__ = [  # noqa: PLE0604
    "EVICTION",
    "FILTERS",
    "METHODS",
    "Always",
    "EveryNth",
    "FrameStats",
    "Handle",
    "KeyframeMemory",
    "LeastSignificant",
    "MemoryStats",
    "MinGap",
    "Never",
    "Occupancy",
    "Oldest",
    "Quality",
    "Random",
    "RollingBuffer",
    "Threshold",
    "Visible",
    "forget",
    "make_method",
    "memory_stats",
    "unwrap",
    "wrap",
    *_scorers,
]
