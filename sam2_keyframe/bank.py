"""The memory bank of one object: what is observed, what becomes a keyframe, what is attended to, what leaves.

The host's dict is the truth. The bank mirrors those of its entries that still hold a spatial memory or a pointer on
the device, checks them against the host before every read, and lets go in place what the method does not retain.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe._codes import assign_codes
from sam2_keyframe._pending import Pending, send
from sam2_keyframe.buffer import RollingBuffer
from sam2_keyframe.filters import as_filter
from sam2_keyframe.methods import KeyframeMemory
from sam2_keyframe.scorers import ObjectScore, PredictedIoU
from sam2_keyframe.stats import FrameStats, MemoryStats, Occupancy, baselines, entry_nbytes, has_memory
from sam2_keyframe.types import (
    BASE_SCORES,
    FrameRecord,
    History,
    KeyframeFilter,
    Memory,
    Moment,
    Reference,
    TrackedFrame,
)

Entry = MutableMapping[str, Any]
"""SAM 2's stored output of one frame."""

QUALITY = (PredictedIoU(), ObjectScore())
"""Measured on every frame that is measured at all."""

RECORDS = 300
"""Records of past frames that filters and scorers may look at."""


class MemoryBank:
    """One object's memory under one method.

    Args:
        method: The choices.
        owner: Whoever made the bank; a bank of another owner is replaced, not read.
        non_cond: The host's dict of tracked frames. What it holds already is adopted.
    """

    def __init__(self, method: KeyframeMemory, owner: object, non_cond: MutableMapping[int, Entry]) -> None:
        self.method = method
        self.keep = as_filter(method.keep)
        self.owner = owner
        self.non_cond = non_cond
        self.stats = MemoryStats()
        self.history = History(records=deque(maxlen=RECORDS))
        self.buffer = RollingBuffer(method.capacity, method.evict)
        self.accepted: dict[int, FrameRecord] = {}  # keyframes that are still among the recent frames
        self.recorded: dict[int, tuple[FrameRecord, bool]] = {}  # frames in reach of a pointer, and whether keyframes
        self.prompts: dict[int, Reference] = {}
        self.references: dict[int, Reference] = {}  # of the keyframes held, where a scorer compares with all
        self.entries: dict[int, Entry] = {idx: entry for idx, entry in non_cond.items() if has_memory(entry)}
        self.fresh: int | None = None  # the frame just tracked, which the host stores when we return
        self.last: Moment | None = None
        self.pending: Pending | None = None
        self.leaving: list[tuple[Entry, Tensor]] = []  # mask logits on their way to the CPU
        self.moved: set[int] = set()  # entries whose mask logits left the device
        self.last_key: int | None = None  # the newest keyframe
        self.span = (min(non_cond), max(non_cond)) if non_cond else None  # first and last frame tracked
        self.evicted: list[int] = []
        self.blank: Tensor | None = None
        self.compares_all = any(getattr(scorer, "all_keyframes", False) for scorer in method.scorers())

    # -- before a frame is tracked ------------------------------------------------------------------------------

    def begin(self, moment: Moment) -> None:
        """Take up tracking at `moment`: what lies ahead in this direction will be tracked again, so it leaves."""
        self.settle()
        for frame_idx in [record.frame_idx for record in self.buffer] + list(self.accepted):
            if not moment.past(frame_idx):
                self._forget(frame_idx)
        restart = self.last is None or self.last.reverse != moment.reverse or not moment.past(self.last.frame_idx)
        if restart:
            self.recorded = {idx: seen for idx, seen in self.recorded.items() if moment.past(idx)}
            self._restart(moment)
        self.last = moment
        prompts = [idx for idx in self.prompts if moment.past(idx)]
        newest = min(prompts, key=moment.distance, default=None)
        reference = self.history.keyframe
        if newest is not None and (reference is None or moment.distance(newest) < moment.distance(reference.frame_idx)):
            self.history.keyframe = self.prompts[newest]
            if self.history.previous is None or not moment.past(self.history.previous.frame_idx):
                self.history.previous = self.prompts[newest]

    def _restart(self, moment: Moment) -> None:
        """Start a pass: of the past, what lies behind `moment` in the same direction still counts."""
        before, self.history = self.history, History(records=deque(maxlen=RECORDS))
        held = [record.frame_idx for record in self.buffer] + list(self.accepted)
        self.last_key = min(filter(moment.past, held), key=moment.distance, default=None)
        if self.last is None or self.last.reverse == moment.reverse:
            self.history.records.extend(r for r in before.records if moment.past(r.frame_idx))  # type: ignore[attr-defined]
            if before.keyframe is not None and moment.past(before.keyframe.frame_idx):
                self.history.keyframe = before.keyframe

    def memories(self, cond: Mapping[int, Entry], moment: Moment) -> tuple[list[Memory], list[int]]:
        """Return the memories to attend to and the frames whose pointers are read, besides the prompted frames."""
        self.settle()
        self.reconcile(cond)
        self._age(moment)
        return self._choose(moment), self._pointers(cond, moment)

    def reconcile(self, cond: Mapping[int, Entry]) -> None:
        """Follow the host: an entry it replaced is new, one it prompted or dropped is forgotten."""
        self.fresh = None
        for frame_idx, entry in list(self.entries.items()):
            stored = self.non_cond.get(frame_idx)
            if stored is entry:
                continue
            self._forget(frame_idx)
            del self.entries[frame_idx]
            self.moved.discard(frame_idx)
            if stored is not None and has_memory(stored):
                self.entries[frame_idx] = stored
        self.prompts = {idx: reference for idx, reference in self.prompts.items() if idx in cond}

    def _choose(self, moment: Moment) -> list[Memory]:
        held = [r.frame_idx for r in self.buffer if moment.past(r.frame_idx) and self._usable(r.frame_idx)]
        held.sort(key=moment.distance)
        places = [(code, moment.slot(code)) for code in range(moment.slots)]
        places = [(code, idx) for code, idx in places if self._usable(idx) and idx not in held]
        newest = [idx for code, idx in places if code < self.method.recent]
        if self.method.fill:
            free = moment.slots - len(newest) - len(held)
            newest += [idx for _, idx in places[len(newest) :]][: max(free, 0)]
        code = assign_codes(self.method.temporal, newest, held, moment)
        return [Memory(idx, self.entries[idx], code[idx]) for idx in newest + held]

    def _usable(self, frame_idx: int) -> bool:
        return frame_idx in self.entries and has_memory(self.entries[frame_idx])

    def _pointers(self, cond: Mapping[int, Entry], moment: Moment) -> list[int]:
        near = [moment.near(distance) for distance in range(1, moment.pointers + 1)]
        near = [idx for idx in near if idx in self.non_cond]
        chosen = [idx for idx in near if self._points(idx)]
        if not chosen and not any(moment.distance(idx) >= 0 for idx in cond):
            return near[:1]
        return chosen

    def _points(self, frame_idx: int) -> bool:
        rule = self.method.pointers
        record, kept = self.recorded.get(frame_idx, (None, False))
        if rule == "recent" or (rule != "selected" and record is None):
            return True
        if isinstance(rule, KeyframeFilter) and record is not None:
            return rule.accept(record, self.history.records)
        return kept

    # -- after a frame is tracked -------------------------------------------------------------------------------

    def observe(self, entry: Entry, frame: TrackedFrame | None, moment: Moment, cond: Mapping[int, Entry]) -> None:
        """Take in a tracked frame; its scores go to the host without waiting for them."""
        frame_idx = moment.frame_idx
        self._forget(frame_idx)
        self.moved.discard(frame_idx)
        self.entries[frame_idx], self.fresh = entry, frame_idx
        prompted = [idx for idx in cond if moment.past(idx)]
        distances = [moment.distance(idx) for idx in prompted]
        since = distances if self.last_key is None else [*distances, moment.distance(self.last_key)]
        record = FrameRecord(frame_idx, math.nan, gap=min(since, default=0), offset=max(distances, default=0))
        names: tuple[str, ...] = ()
        numbers, event, reference = None, None, None
        if frame is not None:
            measured = self.measure(frame)
            names, numbers = tuple(measured), torch.stack([value.float() for value in measured.values()])
            reference = frame.reference()
            numbers, event = send(numbers)
        self.pending = Pending(frame_idx, record, bool(prompted), names, numbers, event, reference)

    @torch.inference_mode()
    def measure(self, frame: TrackedFrame) -> dict[str, Tensor]:
        """Return all scores of a frame by name, as 0-dim tensors, computed in float32 outside autocast."""
        with torch.autocast(frame.pred_masks.device.type, enabled=False):
            for scorer in (self.method.scorer, *self.method.measure, *QUALITY):
                if scorer is not None:
                    frame.measure(scorer, self.history)
            frame.measured["area"] = (frame.pred_masks > 0).float().mean()
        return frame.measured

    def settle(self) -> None:
        """Decide the frame observed last, once its numbers are here."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        scores = pending.read()
        scorer = self.method.scorer
        significance = math.nan if scorer is None else scores[scorer.name]
        record = replace(pending.record, significance=significance, scores=scores)
        past = self.history.records
        kept = pending.trusted and self.method.gate.accept(record, past) and self.keep.accept(record, past)
        past.append(record)  # type: ignore[attr-defined]
        self.history.previous = pending.reference
        self.recorded[record.frame_idx] = (record, kept)
        if kept:
            self._accept(record, pending.reference)
        self._complete(record, kept)

    def _accept(self, record: FrameRecord, reference: Reference | None) -> None:
        self.accepted[record.frame_idx] = record
        self.last_key = record.frame_idx
        self.stats.keyframes += 1
        if reference is not None:
            self.history.keyframe = reference
            if self.compares_all:
                self.references[record.frame_idx] = reference

    def prompted(self, frame_idx: int, entry: Entry, frame: TrackedFrame | None, cond: bool) -> None:
        """Take in a frame that the user prompted or corrected, or a prompt that was taken back (`frame` None).

        A prompted frame is what later ones are compared with; a corrected one becomes a keyframe unasked.
        """
        self.settle()
        self._forget(frame_idx)
        self.entries.pop(frame_idx, None)
        self.moved.discard(frame_idx)
        reference = None
        if frame is not None and self.method.observes:
            self.measure(frame)
            reference = frame.reference()
        if cond:
            if reference is not None:
                self.prompts[frame_idx] = reference
            return
        self.entries[frame_idx] = entry
        if frame is not None and self.method.capacity:
            names = (*BASE_SCORES, *(scorer.name for scorer in self.method.scorers()))
            record = FrameRecord(frame_idx, math.nan, dict.fromkeys(names, math.nan))
            self.recorded[frame_idx] = (record, True)
            self._accept(record, reference)

    def _age(self, moment: Moment) -> None:
        """Move keyframes that are no longer among the recent frames into the rolling buffer."""
        for record in list(self.accepted.values()):
            if moment.distance(record.frame_idx) > self.method.recent:
                del self.accepted[record.frame_idx]
                left = self.buffer.push(record, moment.frame_idx)
                if left is not None:
                    self.references.pop(left.frame_idx, None)
                    self.evicted.append(left.frame_idx)
                    self.stats.evicted += 1
        self.history.keyframes = [*self.prompts.values(), *self.references.values()]

    def _forget(self, frame_idx: int) -> None:
        self.buffer.discard(frame_idx)
        self.accepted.pop(frame_idx, None)
        self.recorded.pop(frame_idx, None)
        self.references.pop(frame_idx, None)
        if self.pending is not None and self.pending.frame_idx == frame_idx:
            self.pending = None

    # -- what leaves --------------------------------------------------------------------------------------------

    def trim(self, moment: Moment) -> None:
        """Let go what the frame at `moment`, the next one, will neither read nor hold."""
        self._land()
        self._age(moment)
        wanted = {memory.frame_idx for memory in self._choose(moment)} | set(self.accepted)
        wanted |= {record.frame_idx for record in self.buffer} | ({self.fresh} if self.fresh is not None else set())
        if moment.stride > 1 and self.method.fill:
            wanted |= {idx for idx in self.entries if 0 < moment.distance(idx) <= moment.reach}
        for frame_idx, entry in list(self.entries.items()):
            distance = moment.distance(frame_idx)
            near = 0 < distance <= moment.pointers
            if self.method.retain == "all":
                if frame_idx not in wanted and not near:
                    del self.entries[frame_idx]
                continue
            if not 0 < distance <= moment.reach:
                self._move_masks(frame_idx, entry)
            if frame_idx in wanted:
                continue
            if has_memory(entry):
                self._drop_memory(entry)
            if not near:
                self._drop_entry(frame_idx, entry)
        self.recorded = {i: seen for i, seen in self.recorded.items() if 0 < moment.distance(i) <= moment.pointers}

    def _drop_memory(self, entry: Entry) -> None:
        """Leave zero tokens in place of a spatial memory, so that SAM 2 can still read the entry."""
        features = entry["maskmem_features"]
        if self.blank is None or self.blank.dtype != features.dtype:
            self.blank = features.new_empty((*features.shape[:2], 0, features.shape[3]))
        entry["maskmem_features"] = self.blank
        entry["maskmem_pos_enc"] = [self.blank]

    def _move_masks(self, frame_idx: int, entry: Entry) -> None:
        masks = entry["pred_masks"]
        if frame_idx in self.moved:
            return
        self.moved.add(frame_idx)
        if masks.device.type != "cpu":
            # The copy does not wait, so the entry takes it over one frame later.
            self.leaving.append((entry, masks.to("cpu", non_blocking=True)))

    def _land(self) -> None:
        """Let the entries take over the mask logits that have reached the CPU."""
        for entry, masks in self.leaving:
            entry["pred_masks"] = masks
        self.leaving.clear()

    def _drop_entry(self, frame_idx: int, entry: Entry) -> None:
        del self.entries[frame_idx]
        self.moved.discard(frame_idx)
        if not self.method.keep_masks:
            if self.non_cond.get(frame_idx) is entry:
                del self.non_cond[frame_idx]
            return
        for key in ("obj_ptr", "object_score_logits"):
            entry[key] = entry[key].to("cpu", non_blocking=True)

    def release(self, device: torch.device) -> None:
        """Bring the pointers of past frames back to the device, so that SAM 2 can read them by itself."""
        self._land()
        for entry in self.non_cond.values():
            for key in ("obj_ptr", "object_score_logits"):
                if entry.get(key) is not None:
                    entry[key] = entry[key].to(device)

    # -- what it takes ------------------------------------------------------------------------------------------

    def account(
        self, cond: Mapping[int, Entry], moment: Moment, attended: tuple[int, ...], tokens: int, milliseconds: float
    ) -> None:
        """Add the row of the frame just tracked to the statistics."""
        entry, device = self.entries[moment.frame_idx], self.entries[moment.frame_idx]["obj_ptr"].device
        first, last = self.span or (moment.frame_idx, moment.frame_idx)
        first, last = self.span = min(first, moment.frame_idx), max(last, moment.frame_idx)
        stock, window = baselines(entry, self.span, cond, moment)
        stored = len(self.non_cond) + (moment.frame_idx not in self.non_cond)  # the host has yet to store this one
        host_nbytes, prompts = 0, sum(entry_nbytes(e, device) for e in cond.values())
        if self.method.retain == "all":
            frames, nbytes = stored, prompts + stored * entry_nbytes(entry, device)
        else:
            frames, nbytes = sum(map(has_memory, self.entries.values())), prompts
            for frame_idx, held in self.entries.items():
                moved = frame_idx in self.moved and held["pred_masks"].device == device
                nbytes += entry_nbytes(held, device) - (held["pred_masks"].nbytes if moved else 0)
            host_nbytes = (stored - len(self.entries) + len(self.moved)) * entry["pred_masks"].nbytes
        nbytes += self._reference_nbytes()
        memory = Occupancy(frames + len(cond), nbytes, tokens)
        self.stats.add(FrameStats(moment.frame_idx, memory, stock, window, attended, milliseconds, host_nbytes))

    def _reference_nbytes(self) -> int:
        single = (self.history.keyframe, self.history.previous, self.pending.reference if self.pending else None)
        references = [*self.prompts.values(), *self.references.values(), *(r for r in single if r is not None)]
        return sum({id(t): t.nbytes for reference in references for t in reference.values.values()}.values())

    def _complete(self, record: FrameRecord, kept: bool) -> None:
        row = self.stats.last
        if row is not None and row.frame_idx == record.frame_idx:
            row.scores, row.significance, row.keyframe = record.scores, record.significance, kept
            row.evicted = tuple(self.evicted)
            self.evicted.clear()
