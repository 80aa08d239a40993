"""What a run leaves behind for `replay`: masks, SAM 2's own estimates and small descriptors of each frame."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_keyframe.types import Moment

DESCRIPTORS = ("object/pointer", "object/memory", "object/image", "object/descriptor")
"""Descriptors that a recording keeps, by the keys that scorers and relations know them under."""

RECORDING = "recording.npz"
"""What `track` calls the file."""

VERSION = 1


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


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One object on one frame.

    Attributes:
        obj_id: The object.
        frame_idx: Index of the frame.
        kind: Tracked forward or in reverse, prompted, corrected after it was tracked, or no longer prompted.
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


@dataclass
class Recording:
    """What happened in a run, in order.

    Attributes:
        geometry: Of the model that ran.
        num_frames: Frames of the video.
        frame_size: Height and width of its frames.
        steps: One a frame and object.
        complete: Whether SAM 2's descriptors and estimates are in it; not so for masks from elsewhere.
    """

    geometry: Geometry
    num_frames: int
    frame_size: tuple[int, int]
    steps: list[Step] = field(default_factory=list)
    complete: bool = True

    @property
    def obj_ids(self) -> list[Any]:
        """Ids of the objects, in the order in which they appeared."""
        return list(dict.fromkeys(step.obj_id for step in self.steps))

    def descriptors(self, obj_id: Any, key: str = "object/image") -> tuple[list[int], Tensor]:
        """Return the frames on which an object was described, and its (n, C) float32 descriptors for `choose_frames`.

        Args:
            obj_id: The object.
            key: One of `DESCRIPTORS`.

        Raises:
            ValueError: There are none.
        """
        found = {s.frame_idx: s.descriptors[key] for s in self.steps if s.obj_id == obj_id and key in s.descriptors}
        if not found:
            raise ValueError(f"no {key!r} of object {obj_id!r} is in this recording; its objects are {self.obj_ids}")
        frames = sorted(found)
        return frames, torch.from_numpy(np.stack([found[frame_idx] for frame_idx in frames]))

    def save(self, path: str | Path) -> None:
        """Write a `.npz` file; object ids become whole numbers or text.

        Raises:
            OSError: It cannot be written; nothing is left of it.
        """
        obj_ids = self.obj_ids
        scores = sorted({name for step in self.steps for name in step.scores})
        about = {
            "sam2_keyframe": VERSION,
            "geometry": asdict(self.geometry),
            "num_frames": self.num_frames,
            "frame_size": self.frame_size,
            "complete": self.complete,
            "obj_ids": [int(i) if isinstance(i, Integral) else str(i) for i in obj_ids],
            "scores": scores,
        }
        place = {obj_id: index for index, obj_id in enumerate(obj_ids)}
        columns: dict[str, NDArray[Any]] = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "obj": np.array([place[step.obj_id] for step in self.steps], np.int32),
            "frame": np.array([step.frame_idx for step in self.steps], np.int32),
            "kind": np.array([step.kind for step in self.steps], np.uint8),
            "masks": np.frombuffer(b"".join(step.mask for step in self.steps), np.uint8),
            "ends": np.cumsum([len(step.mask) for step in self.steps], dtype=np.int64),
            "scores": np.array([[s.scores.get(n, math.nan) for n in scores] for s in self.steps], np.float32),
        }
        for key in DESCRIPTORS:
            known = [step.descriptors.get(key) for step in self.steps]
            blank = next((np.full_like(vector, math.nan) for vector in known if vector is not None), None)
            if blank is not None:
                columns[key.replace("/", "_")] = np.stack([blank if vector is None else vector for vector in known])
        try:
            with Path(path).open("wb") as file:
                np.savez(file, **columns)  # type: ignore[arg-type]
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Return a recording that was saved.

        Raises:
            ValueError: The file is no recording, or one of another version.
            OSError: It cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            about = json.loads(columns["about"].tobytes())
            version = about["sam2_keyframe"]
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise ValueError(
                f"{path} is no recording of a run: give the recording.npz that `sam2-keyframe track` writes"
            ) from None
        if version != VERSION:
            raise ValueError(
                f"{path} was recorded by another version (format {version}, not {VERSION}): record the run again"
            )
        keys = [key for key in DESCRIPTORS if key.replace("/", "_") in columns]
        vectors = {key: columns[key.replace("/", "_")] for key in keys}
        masks, ends = columns["masks"].tobytes(), columns["ends"].tolist()
        steps = [
            Step(
                about["obj_ids"][obj],
                frame_idx,
                Kind(kind),
                masks[start:end],
                {n: value for n, value in zip(about["scores"], row, strict=True) if not math.isnan(value)},
                {key: vectors[key][i] for key in keys if not np.isnan(vectors[key][i, 0])},
            )
            for i, (obj, frame_idx, kind, start, end, row) in enumerate(
                zip(
                    *(columns[name].tolist() for name in ("obj", "frame", "kind")),
                    [0, *ends][:-1],
                    ends,
                    columns["scores"].tolist(),
                    strict=True,
                )
            )
        ]
        size = (int(about["frame_size"][0]), int(about["frame_size"][1]))
        return cls(Geometry(**about["geometry"]), about["num_frames"], size, steps, about["complete"])
