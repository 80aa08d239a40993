"""Training-free keyframe memory for SAM 2 video predictors: `wrap(predictor)` and `unwrap(predictor)`.

Importing the package changes nothing.
"""

from sam2_keyframe.buffer import EVICTION, LeastSignificant, Oldest, Random, RollingBuffer
from sam2_keyframe.filters import FILTERS, Always, And, EveryNth, MinGap, Never, Not, Or, Quality, Threshold, Visible
from sam2_keyframe.methods import METHODS, KeyframeMemory, make_method
from sam2_keyframe.plugin import Handle, forget, memory_stats, unwrap, wrap
from sam2_keyframe.scorers import *  # noqa: F403 - every scorer is public
from sam2_keyframe.scorers import __all__ as _scorers
from sam2_keyframe.stats import FrameStats, MemoryStats, Occupancy
from sam2_keyframe.stream import Stream
from sam2_keyframe.video import FrameSource, init_state

__all__ = [
    "EVICTION",
    "FILTERS",
    "METHODS",
    "Always",
    "And",
    "EveryNth",
    "FrameSource",
    "FrameStats",
    "Handle",
    "KeyframeMemory",
    "LeastSignificant",
    "MemoryStats",
    "MinGap",
    "Never",
    "Not",
    "Occupancy",
    "Oldest",
    "Or",
    "Quality",
    "Random",
    "RollingBuffer",
    "Stream",
    "Threshold",
    "Visible",
    "forget",
    "init_state",
    "make_method",
    "memory_stats",
    "unwrap",
    "wrap",
    *_scorers,
]
