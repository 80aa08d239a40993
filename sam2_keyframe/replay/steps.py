"""One object on one frame, as `replay` needs it; and the sizes of the model that tracked it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.types import Moment

DESCRIPTORS = ("object/pointer", "object/memory", "object/image", "object/descriptor")
"""Descriptors that a recording keeps, by the keys that scorers and relations know them under."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of what a SAM 2 stores a frame and object, and how far it reads. The defaults are the official models'.

    Attributes:
        image_size: Side of the square that the model sees, in pixels.
        memory_dim: Channels of a spatial memory.
        memory_side: Side of its grid; memories are bfloat16.
        mask_side: Side of the mask logits, a quarter of the image; float32.
        pointer_dim: Length of an object pointer, in float32.
        num_maskmem: Spatial memories read on a frame, the prompted frames counting as one.
        pointers: Object pointers read at most (`max_obj_ptrs_in_encoder`).
        stride: `memory_temporal_stride_for_eval`.
        prompts: Prompted frames attended to at most (`max_cond_frames_in_attn`); -1: all.
        past_pointers_only: Whether pointers of prompted frames still to come are left out.
    """

    image_size: int = 1024
    memory_dim: int = 64
    memory_side: int = 64
    mask_side: int = 256
    pointer_dim: int = 256
    num_maskmem: int = 7
    pointers: int = 16
    stride: int = 1
    prompts: int = -1
    past_pointers_only: bool = True

    def moment(self, frame_idx: int, reverse: bool, num_frames: int) -> Moment:
        """Return where tracking stands at a frame of a video of `num_frames`."""
        return Moment(frame_idx, reverse, self.num_maskmem - 1, min(num_frames, self.pointers) - 1, self.stride)


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
