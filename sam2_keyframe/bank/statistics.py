"""Occupancy and decisions of one object's memory, a row a frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.types import Moment

MIB = 2**20
ROWS = 1000
"""Rows kept; older ones live on in the totals."""


@dataclass(slots=True)
class Occupancy:
    """What a memory takes at one frame.

    Attributes:
        frames: Frames whose spatial memory is held, conditioning frames included.
        nbytes: Bytes on the predictor's device: memories, mask logits, pointers, and all that the plugin keeps of the
            object. Image features that `verify` holds for all objects together are not in it.
        tokens: Keys that memory attention reads on this frame (spatial and pointer tokens).
    """

    frames: int = 0
    nbytes: int = 0
    tokens: int = 0


@dataclass(slots=True)
class FrameStats:
    """One object on one frame.

    Attributes:
        frame_idx: Index of the frame.
        memory: Occupancy under the method, after this frame.
        stock: Occupancy that SAM 2 alone would have here.
        window: Occupancy of the lossless window here.
        attended: Frames whose spatial memory was attended to, by index, conditioning frames included.
        milliseconds: Wall-clock time of SAM 2's inference for this frame and object, ours included. Work that a
            GPU still has to do when the call returns is not in it.
        host_nbytes: Bytes off the device: past mask logits, offloaded memories, all where the state is offloaded.
        queries: Tokens of the frame that ran through memory attention: H/16 x W/16 unless `queries` asks for fewer.
        scores: Every score by name; empty where the method measures nothing.
        significance: The method's score; NaN when unknown.
        keyframe: Whether the frame became a keyframe; None until the next frame has asked for memories.
        evicted: Frames that left the rolling buffer when this frame was decided.
        keyframes: Keyframes held while this frame was tracked: those in the rolling buffer, at most as many as its
            shelf has. One that became one enters it when it leaves the recent frames; corrected frames are held apart.
    """

    frame_idx: int
    memory: Occupancy
    stock: Occupancy
    window: Occupancy
    attended: tuple[int, ...]
    milliseconds: float
    host_nbytes: int = 0
    queries: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    significance: float = float("nan")
    keyframe: bool | None = None
    evicted: tuple[int, ...] = ()
    keyframes: tuple[int, ...] = ()


@dataclass(slots=True)
class MemoryStats:
    """Statistics of one object: the last 1,000 rows, and totals over all frames.

    Attributes:
        rows: `FrameStats`, oldest first.
        frames: Frames tracked.
        keyframes: Frames that became keyframes.
        evicted: Keyframes that left the buffer.
        peak_frames: Most spatial memories held at once.
        peak_bytes: Most bytes on the device at once.
        peak_tokens: Most keys attended to on one frame.
    """

    rows: deque[FrameStats] = field(default_factory=lambda: deque(maxlen=ROWS))
    frames: int = 0
    keyframes: int = 0
    evicted: int = 0
    peak_frames: int = 0
    peak_bytes: int = 0
    peak_tokens: int = 0

    def add(self, row: FrameStats) -> None:
        """Append a row and update the totals."""
        self.rows.append(row)
        self.frames += 1
        self.peak_frames = max(self.peak_frames, row.memory.frames)
        self.peak_bytes = max(self.peak_bytes, row.memory.nbytes)
        self.peak_tokens = max(self.peak_tokens, row.memory.tokens)

    @property
    def last(self) -> FrameStats | None:
        """The newest row, or None before the first frame."""
        return self.rows[-1] if self.rows else None


def baselines(
    entry: Mapping[str, Any],
    span: tuple[int, int],
    cond: Mapping[int, Mapping[str, Any]],
    read: Collection[int],
    moment: Moment,
    every_prompt_points: bool = False,
    beside_nbytes: int = 0,
) -> tuple[Occupancy, Occupancy]:
    """Return what SAM 2 alone and the lossless window would take after tracking the frames of `span`, both included.

    By arithmetic from the size of a stored frame: SAM 2 keeps every entry; the window keeps spatial memory and mask
    logits of the frames that will be read and the pointers of SAM 2's pointer window. Of the prompted frames `cond`, it
    attends to those in `read` as such and comes upon others among the tracked ones. `every_prompt_points` and
    `beside_nbytes` are as in `Geometry`.
    """
    first, last = span
    device = entry["obj_ptr"].device

    stored = range(first, last + 1)
    tracked = len(stored) - sum([frame_idx in stored for frame_idx in cond])
    found = [t for t in moment.places() if t not in read and (t in stored or t in cond)]
    spatial = len(found) + len(read)
    points = [t for t in moment.behind(moment.pointers) if t not in read and (t in stored or t in cond)]
    pointers = len(points) - (sum([t in cond for t in points]) if every_prompt_points else 0)
    pointers += sum([moment.distance(t) >= 0 for t in (cond if every_prompt_points else read)])
    tokens = spatial * entry["maskmem_features"].shape[-2:].numel() + pointers * pointer_tokens(entry)
    whole, prompts = entry_nbytes(entry, device)[0], sum(entry_nbytes(e, device)[0] for e in cond.values())
    small = entry_nbytes({k: entry[k] for k in ("obj_ptr", "object_score_logits")}, device)[0]
    beside = (tracked + len(cond)) * beside_nbytes
    stock = Occupancy(tracked + len(cond), tracked * whole + prompts + beside, tokens)
    held, near = min(tracked, moment.reach), min(tracked, moment.pointers)
    return stock, Occupancy(held + len(cond), held * (whole - small) + near * small + prompts, tokens)


def pointer_tokens(entry: Mapping[str, Any]) -> int:
    """Return the attention tokens that one object pointer is split into."""
    return int(entry["obj_ptr"].shape[-1] // entry["maskmem_features"].shape[1])


def has_memory(entry: Mapping[str, Any]) -> bool:
    """Return whether a stored frame still has a spatial memory that can be attended to."""
    features = entry.get("maskmem_features")
    return features is not None and features.numel() > 0


STORED = ("maskmem_features", "pred_masks", "obj_ptr", "object_score_logits", "high_res_masks")
"""What is stored of a frame, the position encoding that all frames share left out; the last by transformers alone."""


def entry_nbytes(entry: Mapping[str, Any], device: torch.device) -> tuple[int, int]:
    """Return the bytes of a stored frame on a device, and those that lie elsewhere, as where the state is offloaded."""
    here = there = 0
    for key in STORED:
        tensor = entry.get(key)
        if isinstance(tensor, Tensor):
            if tensor.device == device:
                here += tensor.nbytes
            else:
                there += tensor.nbytes
    return here, there
