"""One object on one frame, as `replay` needs it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

DESCRIPTORS = ("object/pointer", "object/memory", "object/image", "object/descriptor")
"""Descriptors that a recording keeps, by the keys that scorers and relations know them under."""


class Kind(IntEnum):
    """What happened to an object on a frame."""

    FORWARD = 0
    REVERSE = 1
    PROMPT = 2
    CORRECTION = 3
    CLEARED = 4
    RESET = 5


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One object on one frame.

    Attributes:
        obj_id: The object.
        frame_idx: Index of the frame.
        kind: Tracked forward or in reverse, prompted, corrected after it was tracked, no longer prompted; or forgotten
            with all that was known of the object.
        mask: What `pack` makes of its (S/4, S/4) mask.
        scores: What cannot be computed again from the mask, by name: `predicted_iou`, `object_score`, ...
        descriptors: (C,) float32 by the keys of `DESCRIPTORS`; those that SAM 2 did not give are missing.
    """

    obj_id: Any
    frame_idx: int
    kind: Kind
    mask: bytes = b""
    scores: Mapping[str, float] = field(default_factory=dict)
    descriptors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def pack(mask: NDArray[np.bool_]) -> bytes:
    """Return a bool mask as compressed bits: 100 to 600 bytes for one object on 256 x 256."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpack(packed: bytes, side: int) -> NDArray[np.bool_]:
    """Return the (side, side) bool mask that was packed."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=side * side)
    return bits.astype(bool).reshape(side, side)
