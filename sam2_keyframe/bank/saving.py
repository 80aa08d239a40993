"""A bank as plain values and tensors, and back: what `save_memory` writes and `load_memory` reads.

Nothing in a file names code. `Packer` writes values without their kinds; `Unpacker` reads them by the kinds that the
classes below declare, and refuses whatever is of another one. Codecs and rules come from the method of the predictor
that goes on, never from the file.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from sam2_keyframe._checks import brief, plain_number
from sam2_keyframe.attention.maths import Part, Plan
from sam2_keyframe.bank.bank import MemoryBank
from sam2_keyframe.bank.compression import Packed
from sam2_keyframe.bank.decisions import Decision
from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.bank.statistics import ROWS, MemoryStats, has_memory
from sam2_keyframe.bank.store import Entry, Merged
from sam2_keyframe.conditions import parts_of
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.types import RECORDS, FrameRecord, KeyframeFilter, Moment, Reference

Saved = dict[int, dict[str, Any]]
"""Stored frames by index; each value of an entry is a tensor, a list of tensors or None."""

DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


@dataclass
class SavedBank:
    """What a bank is, its host's frames apart.

    Attributes:
        held: Frames that it mirrors.
        compressed: Compressed memories, each with the shelf whose codec it is of.
        moved: Frames whose mask logits left the device.
        plans: Which tokens of a memory are attended to.
        encoding: The position encoding, where memories are compressed.
        buffer: Records of `Keyframes`.
        others: Records of `Others`.
        room: How many `Others` holds.
        ageing: Records still recent, each with whether it is a keyframe's.
        corrected: As in `Selection`, and so are those down to `previous`.
        records: What scorers and rules may know of the past.
        known: What describes the keyframes held, oldest first.
        stats: The statistics.
        track: The Kalman filter's two tensors.
        returns: The last mask shown and the frames since, where the method asks more of a return.
        long_term: Merged memories.
        span: First and last frame tracked.
        evicted: Keyframes that left and are in no row yet.
        absent: Frames before the first prompt.
        shown: Keyframes in the buffer as of the last frame.
    """

    held: list[int]
    compressed: dict[int, tuple[Literal["keyframes", "others"], Packed]]
    moved: set[int]
    plans: dict[int, Plan]
    encoding: list[Tensor] | None
    buffer: list[FrameRecord]
    others: list[FrameRecord]
    room: int
    ageing: list[tuple[FrameRecord, bool]]
    corrected: dict[int, FrameRecord]
    decided: dict[int, tuple[FrameRecord, Decision]]
    window: list[int]
    trusted: list[int]
    prompts: dict[int, Reference]
    references: dict[int, Reference]
    last: Moment | None
    last_key: int | None
    closed: int | None
    keyframe: Reference | None
    previous: Reference | None
    records: list[FrameRecord]
    known: list[Reference]
    stats: MemoryStats
    track: tuple[Tensor | None, Tensor | None] | None
    returns: tuple[Tensor | None, Tensor | None] | None
    long_term: list[Merged]
    span: tuple[int, int] | None
    evicted: list[int]
    absent: set[int]
    shown: tuple[int, ...]


def snapshot(bank: MemoryBank, cond: Mapping[int, Entry]) -> SavedBank:
    """Return what a bank is as the next frame finds it: the last one decided, what the host replaced forgotten.

    Raises:
        ValueError: Its method has more than this to remember.
    """
    if bank.method.again is not None:
        raise ValueError(f"{bank.method.again}: what it remembers of the last frames cannot be saved; choose None")
    bank.settle()
    bank.reconcile(cond)
    store, selection, method = bank.store, bank.selection, bank.method
    store.land()
    keyframes = method.keyframes.codec
    return SavedBank(
        held=list(store.entries),
        compressed={
            idx: ("keyframes" if codec == keyframes else "others", payload)  # type: ignore[misc]
            for idx, (codec, payload) in store.payloads.items()
        },
        moved=store.moved,
        plans=store.plans,
        encoding=store._encoding,
        buffer=list(selection.buffer),
        others=list(selection.others),
        room=selection.others.capacity,
        ageing=[(record, buffer is selection.buffer) for record, buffer in selection.ageing.values()],
        corrected=selection.corrected,
        decided=selection.decided,
        window=selection.window,
        trusted=selection.trusted,
        prompts=selection.prompts,
        references=selection.references,
        last=selection.last,
        last_key=selection.last_key,
        closed=selection.closed,
        keyframe=selection.history.keyframe,
        previous=selection.history.previous,
        records=list(selection.history.records),
        known=list(selection.history.keyframes),
        stats=bank.stats,
        track=None if bank.track is None else (bank.track._state, bank.track._stable),
        returns=None if bank.returns is None else (bank.returns._last, bank.returns._since),
        long_term=bank.long_term._held,
        span=bank.span,
        evicted=bank.evicted,
        absent=bank.absent,
        shown=bank.keyframes,
    )


def rebuild(saved: SavedBank, method: KeyframeMemory, tracked: Saved, geometry: Geometry) -> MemoryBank:
    """Return the bank of an object whose tracked frames the host has again; no wrapping owns it yet.

    Raises:
        ValueError: It does not hold together, or does not fit the model.
    """
    codecs = {"keyframes": method.keyframes.codec, "others": method.others.codec}
    shape = (1, geometry.memory_dim, geometry.memory_side, geometry.memory_side)
    check({*saved.compressed, *saved.moved} <= {*saved.held} <= {*tracked}, "it tells of frames that it does not hold")
    check(all(packed.shape == shape for _, packed in saved.compressed.values()), "a compressed memory has other sizes")
    check(not saved.compressed or bool(saved.encoding), "its memories have no position encoding")
    slots = {saved.last.slots} if saved.last is not None else set()
    check(slots <= {geometry.num_maskmem - 1}, "it was read in other slots")
    check((saved.track is None) == (method.choice is None), "its Kalman filter is missing, or one too many")
    check((saved.returns is None) == (method.confirm is None), "what was shown last is missing, or one too many")
    parts = [part for plan in saved.plans.values() for part in plan]
    check(all(_fits(part, geometry.memory_side) for part in parts), "its tokens lie outside the grid")

    bank = MemoryBank(method, None, tracked)  # type: ignore[arg-type]
    store, selection = bank.store, bank.selection
    store.entries = {idx: tracked[idx] for idx in saved.held}
    store.payloads = {idx: (codecs[shelf], packed) for idx, (shelf, packed) in saved.compressed.items()}
    store.spatial = {idx for idx, entry in store.entries.items() if idx in store.payloads or has_memory(entry)}
    store.moved, store.plans, store._encoding = saved.moved, saved.plans, saved.encoding
    for frame_idx in store.payloads:
        store.entry(frame_idx)  # it can be restored
    for buffer, records in ((selection.buffer, saved.buffer), (selection.others, saved.others)):
        buffer._held = {record.frame_idx: record for record in records}
    selection.others.capacity = saved.room
    selection.ageing = {
        record.frame_idx: (record, selection.buffer if keyframe else selection.others)
        for record, keyframe in saved.ageing
    }
    for name in ("corrected", "decided", "window", "trusted", "prompts", "references", "last", "last_key", "closed"):
        setattr(selection, name, getattr(saved, name))
    history = selection.history
    history.keyframe, history.previous, history.keyframes = saved.keyframe, saved.previous, saved.known
    history.records = deque(saved.records, maxlen=RECORDS)
    bank.stats = saved.stats
    if bank.track is not None and saved.track is not None:
        bank.track._state, bank.track._stable = saved.track
        check(saved.track[0] is None or saved.track[0].shape == (5, 4), "its Kalman filter is of another kind")
    if bank.returns is not None and saved.returns is not None:
        bank.returns._last, bank.returns._since = saved.returns
        shape_of_last = (geometry.mask_side, geometry.mask_side)
        check(saved.returns[0] is None or saved.returns[0].shape == shape_of_last, "its last mask has another size")
    bank.long_term._held = saved.long_term
    check(all(merged.features.shape == shape for merged in saved.long_term), "a merged memory has other sizes")
    bank.span, bank.evicted, bank.absent, bank.keyframes = saved.span, saved.evicted, saved.absent, saved.shown
    return bank


def _fits(part: Part, side: int) -> bool:
    if part.size < 1 or side % part.size:
        return False
    index, windows = part.index, (side // part.size) ** 2
    whole = index is None or (index.dtype == torch.int64 and index.ndim == 2)
    return whole and (index is None or not index.numel() or 0 <= int(index.min()) <= int(index.max()) < windows)


def conditioning(bank: MemoryBank | None, cond: Mapping[int, Mapping[str, Any]]) -> tuple[Saved, dict[int, Reference]]:
    """Return an object's prompted frames and keyframes as prompted frames of another video, and what describes them.

    They come in their order, the last at index -1: before frame 0.
    """
    found = {idx: dict(entry) for idx, entry in cond.items()}
    described: dict[int, Reference] = {}
    if bank is not None:
        selection = bank.selection
        known = (selection.history.keyframe, *selection.prompts.values(), *selection.references.values())
        described = {reference.frame_idx: reference for reference in known if reference is not None}
        for idx in selection.keyframes():
            if bank.store.usable(idx):
                found[idx] = dict(bank.store.entry(idx))
    places = {idx: place for place, idx in enumerate(sorted(found), -len(found))}
    references = {places[idx]: Reference(places[idx], ref.values) for idx, ref in described.items() if idx in places}
    return {place: found[idx] for idx, place in places.items()}, references


def check(holds: bool, why: str, *value: Any) -> None:
    """Raise ValueError with a reason, and the value that it is about, unless something holds."""
    if not holds:
        raise ValueError(f"{brief(repr(value[0]))} {why}" if value else why)


# -- values and tensors ----------------------------------------------------------------------------------------------


class Packer:
    """Turns values into what JSON can hold, and collects their tensors.

    Args:
        device: The model's; of each tensor is told whether it lies there.

    Attributes:
        tensors: Each tensor once, in the order in which its memory lies.
        layouts: Whether each lies on the device, and the order of its dimensions in memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tensors: list[Tensor] = []
        self.layouts: list[tuple[bool, list[int]]] = []
        self._known: dict[Any, int] = {}
        self._alive: list[Tensor] = []

    def pack(self, value: Any) -> Any:
        """Return a value as numbers, texts, lists, and an object for a tensor.

        Raises:
            TypeError: It is of a kind that cannot be saved.
        """
        value = plain_number(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value)}
        if dataclasses.is_dataclass(value) and hasattr(value, "accept"):
            return repr(value)
        if dataclasses.is_dataclass(value):
            return [self.pack(getattr(value, field.name)) for field in dataclasses.fields(value)]
        if isinstance(value, Mapping):
            return [[self.pack(key), self.pack(each)] for key, each in value.items()]
        if isinstance(value, list | tuple | set | deque):
            return [self.pack(each) for each in value]
        if isinstance(value, torch.dtype):
            return str(value)
        if isinstance(value, torch.device):
            return value == self.device
        raise TypeError(f"cannot save {brief(repr(value))}: it is of a kind that no memory file holds")

    def _tensor(self, tensor: Tensor) -> int:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if key not in self._known:
            dims, strides = range(tensor.ndim), tensor.stride()
            repeated = any(stride == 0 and size > 1 for stride, size in zip(strides, tensor.shape, strict=True))
            order = list(dims) if repeated else sorted(dims, key=lambda dim: (-strides[dim], dim))
            self._alive.append(tensor)  # so that no other one comes to lie where it lies
            self._known[key] = len(self.tensors)
            self.layouts.append((tensor.device == self.device, order))
            self.tensors.append(tensor.detach().permute(order).cpu().clone(memory_format=torch.contiguous_format))
        return self._known[key]


class Unpacker:
    """Reads what a `Packer` made, by the kinds that are expected.

    Args:
        tensors: The tensors.
        layouts: As in `Packer`.
        device: The model's.
        rules: The rules of the method, by `repr`.
    """

    def __init__(
        self, tensors: Sequence[Tensor], layouts: Any, device: torch.device, rules: Mapping[str, KeyframeFilter]
    ) -> None:
        self.device = device
        self.rules = rules
        here = self.read(list[tuple[bool, list[int]]], layouts)
        check(len(here) == len(tensors), "its tensors are not those that it tells of")
        self._tensors = []
        for tensor, (on_device, order) in zip(tensors, here, strict=True):
            check(sorted(order) == list(range(tensor.ndim)), "a tensor's dimensions are out of order")
            back = [order.index(dim) for dim in range(tensor.ndim)]
            self._tensors.append(tensor.to(device if on_device else "cpu").permute(back))

    def read(self, kind: Any, value: Any) -> Any:
        """Return a value of a kind.

        Raises:
            ValueError: It is of another one.
        """
        if kind is Any:
            kind = Tensor | list[Tensor] | None
        origin, inside = get_origin(kind), get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self._one_of(inside, value)
        if origin is Literal:
            check(isinstance(value, str) and value in inside, f"is none of {inside}", value)
            return value
        if kind in (bool, int, str, types.NoneType):
            check(type(value) is kind, f"is no {kind.__name__}", value)
            return value
        if kind is float:
            check(type(value) in (int, float), "is no number", value)
            return value
        if kind is Tensor:
            return self._tensor(value)
        if kind is torch.dtype:
            check(isinstance(value, str) and value in DTYPES, "is no dtype", value)
            return DTYPES[value]
        if kind is torch.device:
            return self.device if self.read(bool, value) else torch.device("cpu")
        if kind is KeyframeFilter:
            check(isinstance(value, str) and value in self.rules, "is no rule of the method", value)
            return self.rules[value]
        check(isinstance(value, list), "is no list", value)
        if kind is torch.Size:
            return torch.Size(self.read(int, each) for each in value)
        if dataclasses.is_dataclass(kind):
            hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
            check(len(value) == len(fields), "has other fields", value)
            return kind(*(self.read(hints[f.name], each) for f, each in zip(fields, value, strict=True)))  # type: ignore[operator]
        return self._container(origin, inside, value)

    def _container(self, origin: Any, inside: tuple[Any, ...], value: list[Any]) -> Any:
        if origin is tuple and inside[-1] is not Ellipsis:
            check(len(value) == len(inside), f"has not {len(inside)} parts", value)
            return tuple(self.read(kind, each) for kind, each in zip(inside, value, strict=True))
        if isinstance(origin, type) and issubclass(origin, Mapping):
            pairs = [self.read(tuple[inside], pair) for pair in value]  # type: ignore[valid-type]
            return dict(pairs)
        each = (self.read(inside[0], part) for part in value)
        return deque(each, maxlen=ROWS) if origin is deque else origin(each)

    def _one_of(self, kinds: Sequence[Any], value: Any) -> Any:
        for kind in kinds:
            try:
                return self.read(kind, value)
            except ValueError as error:
                reason = error
        raise reason

    def _tensor(self, value: Any) -> Tensor:
        there = isinstance(value, dict) and value.keys() == {"tensor"} and type(value["tensor"]) is int
        check(there and 0 <= value["tensor"] < len(self._tensors), "is no tensor of this file", value)
        tensor: Tensor = self._tensors[value["tensor"]]
        return tensor


def rules_of(method: KeyframeMemory) -> dict[str, KeyframeFilter]:
    """Return every rule of a method, and those that they are made of, by `repr`."""
    return {repr(part): part for rule in method.rules for part in parts_of(rule) if isinstance(part, KeyframeFilter)}
