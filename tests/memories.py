"""Memories written out for tests: a rule for keyframes, and what else a test is about."""

from __future__ import annotations

import math
from typing import Any

import sam2_keyframe as sk
from sam2_keyframe.types import FrameRecord

GOOD = sk.Visible() & (sk.PredictedIoU() > 0.5)
LOOSE = GOOD & (sk.MaskIoU() > 0.05)


AGAIN = [name for name in sk.METHODS if name not in sk.NON_CAUSAL and sk.make_method(name).again is not None]
"""Methods that have frames inferred a second time, which not every host does."""


def memory(when: Any = LOOSE, n: int = 5, recent: int = 1, others: sk.Others | None = None, **more: Any) -> Any:
    """Return a memory of recent frames, keyframes and others; `more` are choices of the keyframes or of the whole."""
    shelf = {name: more.pop(name) for name in ("evict", "codec", "code", "read", "before") if name in more}
    shelves = [sk.Recent(recent), sk.Keyframes(n, when, **shelf), *([] if others is None else [others])]
    return sk.KeyframeMemory(*shelves, **more)


def scored(frame_idx: int, score: float = math.nan, scores: Any = None, **more: Any) -> FrameRecord:
    """Return a record whose `MaskIoU` is `score`, with other scores by name."""
    return FrameRecord(frame_idx, {"mask_iou": score, **(scores or {})}, **more)
