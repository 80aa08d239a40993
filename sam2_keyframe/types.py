"""What flows between the parts: tracked frames, records, references, memories, and the three protocols.

Scores are tensors, decisions are numbers: a `Scorer` looks at a `TrackedFrame` on the predictor's device, a
`KeyframeFilter` and an eviction rule look at a `FrameRecord` of plain host numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

BASE_SCORES = ("predicted_iou", "object_score", "area")
"""Scores that every observed frame carries, whatever its scorer: see `FrameRecord.scores`."""

RECORDS = 300
"""Records of past frames that filters and scorers may look at."""


class Described:
    """Makes each descriptor and intermediate result of a frame once."""

    __slots__ = ()
    kept: dict[str, Tensor]
    scratch: dict[str, Any]

    def describe(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """Return the descriptor `key`, made at its first use and kept for later comparison.

        A change scorer describes the current frame under a key and compares with `Reference.get(key)` of an
        earlier one. Descriptors of the whole frame belong in `TrackedFrame.shared`, so that objects share them.
        """
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the intermediate result `key`, made at its first use and dropped with the frame."""
        if key not in self.scratch:
            self.scratch[key] = make()
        return self.scratch[key]


@dataclass(slots=True)
class FrameMemo(Described):
    """What is computed once a frame and shared by the scorers of all objects; dropped at the next frame.

    Attributes:
        make_image: Brings the frame's pixels to scoring resolution; called when a scorer first asks for them.
        kept: Descriptors that stay with the frame when it becomes a reference.
        scratch: Intermediate results, forgotten with the frame.
    """

    make_image: Callable[[], Tensor]
    kept: dict[str, Tensor] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Tensor:
        """(3, h, w) float32 RGB in [0, 1] at scoring resolution (at most 256 on a side)."""
        image: Tensor = self.once("image", self.make_image)
        return image


@dataclass(frozen=True, slots=True)
class Reference:
    """The descriptors of an earlier frame of the same object, by the keys that scorers chose.

    Attributes:
        frame_idx: Index of that frame in the video.
        values: Descriptors, on the predictor's device.
    """

    frame_idx: int
    values: Mapping[str, Tensor]

    def get(self, key: str) -> Tensor | None:
        """Return the descriptor `key`, or None when that frame was never described by it."""
        return self.values.get(key)


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame(Described):
    """All a scorer may look at: one object on one frame. Tensors stay on the predictor's device.

    Attributes:
        frame_idx: Index of the frame in the video.
        image_embed: (1, C, H/16, W/16) top-level image features; None on a frame adopted without them.
        maskmem_features: (1, C_mem, H/16, W/16) the memory encoder's output.
        pred_masks: (1, 1, H/4, W/4) mask logits; > 0 is object.
        candidate_masks: (1, K, H/4, W/4) the mask decoder's candidates, before one is chosen and before SAM 2
            blanks an occluded frame. On a prompted frame this is `pred_masks`.
        candidate_ious: (1, K) the decoder's own estimates in [0, 1]; 1 on a prompted frame.
        obj_ptr: (1, C) object pointer.
        object_score_logits: (1, 1); > 0: the object is visible.
        shared: What scorers of any object have computed for this frame; `shared.image` has its pixels.
        attention: Returns the shares (n,) of SAM 2's own attention that the object on this frame pays to n memories
            (a proxy, see `AttentionShare`); None where SAM 2 is not at hand.
        kept: Descriptors of this object on this frame, kept for later comparison.
        scratch: Intermediate results of this object on this frame.
        measured: Scores measured on this frame so far, by name.
    """

    frame_idx: int
    image_embed: Tensor | None
    maskmem_features: Tensor
    pred_masks: Tensor
    candidate_masks: Tensor
    candidate_ious: Tensor
    obj_ptr: Tensor
    object_score_logits: Tensor
    shared: FrameMemo
    attention: Callable[[Sequence[Tensor]], Tensor] | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Tensor] = field(default_factory=dict)

    @property
    def image(self) -> Tensor:
        """(3, h, w) float32 RGB in [0, 1] at scoring resolution; made once a frame, shared by all objects."""
        return self.shared.image

    def measure(self, scorer: Scorer, history: History) -> Tensor:
        """Return the scorer's 0-dim score of this frame, computed once and recorded under `scorer.name`.

        Raises:
            TypeError: The scorer returned something else.
        """
        known = self.measured.get(scorer.name)
        if known is not None:
            return known
        score: Any = scorer.score(self, history)
        if not isinstance(score, Tensor):
            raise TypeError(
                f"{type(scorer).__name__}.score() returned {score!r}: it must return a 0-dim tensor on the frame's "
                "device, computed from tensors, as in (frame.pred_masks > 0).float().mean()"
            )
        if score.ndim or score.device != self.pred_masks.device:
            raise TypeError(
                f"{type(scorer).__name__}.score() returned a tensor of shape {tuple(score.shape)} on {score.device}: "
                f"it must return a 0-dim one on {self.pred_masks.device}; reduce a map to one number, as by .mean()"
            )
        self.measured[scorer.name] = score
        return score

    def reference(self) -> Reference:
        """Return what was described so far, to compare later frames with."""
        return Reference(self.frame_idx, {**self.shared.kept, **self.kept})

    def unknown(self) -> Tensor:
        """Return the 0-dim score of a frame that has nothing to be compared with (NaN: filters call it new)."""
        return torch.full((), float("nan"), device=self.pred_masks.device)


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """The same frame as host numbers: all that a filter or an eviction rule may look at.

    Attributes:
        frame_idx: Index of the frame in the video.
        scores: Every score by name, a combination's parts too, and always `predicted_iou` (of the chosen mask,
            in [0, 1]), `object_score` (logit; > 0: visible) and `area` (share of the frame, in [0, 1]). NaN: unknown.
        similarity: To the memories held when it was tracked, by frame index, where a rule asks for it: what the
            method's `relation` measures, higher is more alike.
        gap: Frames since the last keyframe or prompted frame.
        offset: Frames since the object's first prompted frame.
        since: Frames since the last keyframe, prompts aside; infinite before the first.
        survived: How often the frame stayed when the buffer was too full.
        relevance: Its similarity to the frames tracked since, smoothed; NaN before the first.
        usage: That similarity, added up over the frames tracked since.
        passed: What rules before a rule that learns from past frames said of this one.
    """

    frame_idx: int
    scores: Mapping[str, float] = field(default_factory=dict)
    similarity: Mapping[int, float] = field(default_factory=dict)
    gap: int = 0
    offset: int = 0
    since: float = math.inf
    survived: int = 0
    relevance: float = math.nan
    usage: float = 0.0
    passed: dict[KeyframeFilter, bool] = field(default_factory=dict, repr=False, compare=False)


@dataclass(slots=True)
class History:
    """What a scorer may know of an object's past.

    Attributes:
        keyframe: The last keyframe (at first the prompted frame); None before there is one.
        previous: The frame tracked just before.
        keyframes: The prompted frames and the keyframes held, oldest first.
        records: Host numbers of past frames, oldest first, at most the last `RECORDS`.
    """

    keyframe: Reference | None = None
    previous: Reference | None = None
    keyframes: Sequence[Reference] = ()
    records: Sequence[FrameRecord] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """One frame's spatial memory as it will be attended to.

    Attributes:
        frame_idx: The frame it shows; None where the device chose it, or where it was merged from several.
        entry: SAM 2's stored output of that frame (`maskmem_features`, `maskmem_pos_enc`, `obj_ptr`, ...).
        code: Row of SAM 2's learned temporal code, 0 (newest) to `num_maskmem` - 2; `num_maskmem` - 1 is the row
            of conditioning frames.
        pointer: Whether its own pointer is read with it, as a prompted frame's is.
    """

    frame_idx: int | None
    entry: Mapping[str, Any]
    code: int
    pointer: bool = False


@runtime_checkable
class Scorer(Protocol):
    """A significance score: 0 is "same", higher is more worth keeping. Implementations are frozen dataclasses."""

    @property
    def name(self) -> str:
        """Name of the score in records, filters and tables."""
        ...

    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return a 0-dim float32 tensor on the frame's device, without reading any value on the host."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A memory that the bank holds, as relations see it.

    Attributes:
        frame_idx: The frame it shows.
        features: Returns its (1, C_mem, H/16, W/16) features, restored where they are compressed.
        reference: Its descriptors; None on a memory that was adopted without them.
    """

    frame_idx: int
    features: Callable[[], Tensor]
    reference: Reference | None


@runtime_checkable
class Relation(Protocol):
    """How alike a frame is to the memories held: what eviction and retrieval rules may ask for."""

    def describe(self, frame: TrackedFrame) -> None:
        """Keep with the frame what later ones are compared with."""
        ...

    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
        """Return (len(held),) float32 on the frame's device, higher is more alike; reads nothing on the host.

        `held` is never empty; the frame is described too. NaN where a memory has nothing to be compared with.
        """
        ...


@runtime_checkable
class KeyframeFilter(Protocol):
    """A decision on recorded numbers, in plain Python. Implementations are frozen dataclasses."""

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame passes; `past` holds the records of earlier frames, oldest first."""
        ...


class Payload(Protocol):
    """A compressed memory."""

    @property
    def nbytes(self) -> int:
        """Bytes that the compressed memory takes, everything needed to restore it included."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors it consists of."""
        ...


@runtime_checkable
class Compressor(Protocol):
    """A storage codec for one memory's features."""

    def compress(self, features: Tensor, previous: Any = None) -> Payload:
        """Return the compressed form of (1, C, h, w) features; `previous` is an earlier one of the same object."""
        ...

    def restore(self, payload: Any) -> Tensor:
        """Return (1, C, h, w) features in the dtype that was compressed."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Where tracking stands: a frame, a direction, and how far SAM 2 reads from there.

    Attributes:
        frame_idx: The frame being tracked.
        reverse: Whether tracking runs towards frame 0.
        slots: Memories SAM 2 reads besides conditioning frames (`num_maskmem` - 1).
        pointers: Distance up to which it reads object pointers.
        stride: Its `memory_temporal_stride_for_eval`.
    """

    frame_idx: int
    reverse: bool
    slots: int
    pointers: int
    stride: int = 1

    def distance(self, frame_idx: int) -> int:
        """Return how many frames ago, in tracking order, a frame was; negative: still to come."""
        return frame_idx - self.frame_idx if self.reverse else self.frame_idx - frame_idx

    def past(self, frame_idx: int) -> bool:
        """Return whether a frame lies on the side already tracked."""
        return frame_idx > self.frame_idx if self.reverse else frame_idx < self.frame_idx

    def near(self, distance: int) -> int:
        """Return the index of the frame `distance` frames ago in tracking order."""
        return self.frame_idx + distance if self.reverse else self.frame_idx - distance

    def behind(self, count: int) -> range:
        """Return the `count` frames before this one in tracking order, the nearest first."""
        if self.reverse:
            return range(self.frame_idx + 1, self.frame_idx + count + 1)
        return range(self.frame_idx - 1, self.frame_idx - count - 1, -1)

    def places(self) -> list[int]:
        """Return the frame index that SAM 2 looks up for each temporal code, 0 (newest) to `slots` - 1.

        Source: the stride arithmetic of sam2/modeling/sam2_base.py, _prepare_memory_conditioned_features: the
        newest frame first, then multiples of the stride from two frames ago on.
        """
        newest, second = self.near(1), self.near(2)
        grid = second // self.stride * self.stride
        if self.reverse and grid != second:
            grid += self.stride
        step = self.stride if self.reverse else -self.stride
        return [newest, *range(grid, grid + (self.slots - 1) * step, step)][: self.slots]

    def slot(self, code: int) -> int:
        """Return the frame index that SAM 2 looks up for the temporal code `code`, 0 (newest) to `slots` - 1."""
        return self.places()[code]

    @property
    def reach(self) -> int:
        """Largest distance of a spatial memory that SAM 2 may look up."""
        return (self.slots - 1) * self.stride + 1

    def then(self) -> Moment:
        """Return the moment one frame later in tracking order."""
        return replace(self, frame_idx=self.near(-1))
