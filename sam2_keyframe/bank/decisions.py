"""What becomes a keyframe, what is attended to and what leaves, decided on records alone.

The memory bank runs it beside SAM 2, `replay` without SAM 2: the same code decides in both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from sam2_keyframe.bank.holdings import Decision, Holdings
from sam2_keyframe.bank.pending import Pending
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.rules.eviction import RollingBuffer
from sam2_keyframe.rules.filters import as_filter
from sam2_keyframe.scorers import ObjectScore, PredictedIoU
from sam2_keyframe.types import (
    BASE_SCORES,
    RECORDS,
    FrameRecord,
    Held,
    History,
    KeyframeFilter,
    Moment,
    Reference,
    TrackedFrame,
)

QUALITY = (PredictedIoU(), ObjectScore())
"""Measured on every frame that is measured at all."""


class Selection(Holdings):
    """One object's choices under one method.

    Args:
        method: The choices.
        usable: Whether a frame's spatial memory is at hand.

    Attributes:
        prompts: What describes the prompted frames.
        references: What describes the corrected frames and, where something compares with all of them, those held.
        compares_all: Whether something compares with every frame held.
        last: Where tracking stood last.
        last_key: The newest keyframe.
    """

    def __init__(self, method: KeyframeMemory, usable: Callable[[int], bool] = lambda frame_idx: True) -> None:
        super().__init__(method, usable)
        self.keep = as_filter(method.keep)
        self.prompts: dict[int, Reference] = {}
        self.references: dict[int, Reference] = {}
        self.last: Moment | None = None
        self.last_key: int | None = None
        self.compares_all = method.relation is not None or method.select.on_device
        self.compares_all |= any(getattr(scorer, "all_keyframes", False) for scorer in method.scorers())

    def forget(self, frame_idx: int) -> None:
        """Forget a frame that was replaced, dropped, or will be tracked again."""
        super().forget(frame_idx)
        self.references.pop(frame_idx, None)

    # -- before a frame is tracked ------------------------------------------------------------------------------

    def begin(self, moment: Moment) -> None:
        """Take up tracking at `moment`: what lies ahead in this direction will be tracked again, so it leaves."""
        self.minor.capacity = self.method.minor_slots(moment.slots)
        for frame_idx in self.held():
            if not moment.past(frame_idx) and frame_idx not in self.corrected:
                self.forget(frame_idx)
        if self.restarts(moment):
            self.decided = {idx: seen for idx, seen in self.decided.items() if moment.past(idx)}
            for frames in (self.window, self.trusted):
                frames[:] = sorted(filter(moment.past, frames), key=moment.distance, reverse=True)
            self._restart(moment)
        self.last = moment
        prompts = [idx for idx in self.prompts if moment.past(idx)]
        newest = min(prompts, key=moment.distance, default=None)
        if newest is not None:
            if not self._overtaken(newest, self.history.keyframe):
                self.history.keyframe = self.prompts[newest]
            if not self._overtaken(newest, self.history.previous):
                self.history.previous = self.prompts[newest]

    def _overtaken(self, frame_idx: int, known: Reference | None) -> bool:
        """Return whether a frame that is known lies between another and where tracking stands.

        A frame is decided while the next one is tracked, by when a prompt in between is known.
        """
        if known is None or self.last is None or not self.last.past(known.frame_idx):
            return False
        return self.last.distance(known.frame_idx) < self.last.distance(frame_idx)

    def restarts(self, moment: Moment) -> bool:
        """Return whether tracking at `moment` does not carry on from the last frame."""
        return self.last is None or self.last.reverse != moment.reverse or not moment.past(self.last.frame_idx)

    def _restart(self, moment: Moment) -> None:
        """Start a pass: of the past, what lies behind `moment` in the same direction still counts."""
        before, self.history = self.history, History(records=deque(maxlen=RECORDS))
        self.last_key = min(filter(moment.past, self.keyframes()), key=moment.distance, default=None)
        if self.last_key is not None:
            self.history.keyframe = self.references.get(self.last_key)
        if self.last is not None and self.last.reverse != moment.reverse:
            self.buffer.refresh()
        else:
            self.history.records.extend(r for r in before.records if moment.past(r.frame_idx))  # type: ignore[attr-defined]
            if before.keyframe is not None and moment.past(before.keyframe.frame_idx):
                self.history.keyframe = before.keyframe

    # -- after a frame is tracked -------------------------------------------------------------------------------

    def measure(self, frame: TrackedFrame) -> dict[str, Tensor]:
        """Describe a frame and return all its scores by name, 0-dim, computed in float32 outside autocast."""
        with torch.inference_mode(), torch.autocast(frame.pred_masks.device.type, enabled=False):
            for scorer in (self.method.scorer, *self.method.measure, *QUALITY):
                if scorer is not None:
                    frame.measure(scorer, self.history)
            frame.measured["area"] = (frame.pred_masks > 0).float().mean()
            self.method.select.describe(frame)
            if self.method.relation is not None:
                self.method.relation.describe(frame)
        return frame.measured

    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor | None:
        """Return what the method's relation measures between a frame and the memories held, (len(held),)."""
        relation = self.method.relation
        if relation is None or not held:
            return None
        with torch.inference_mode():
            return relation.relate(frame, held)

    def send(
        self,
        frame: TrackedFrame | None,
        moment: Moment,
        cond: Collection[int],
        held: Sequence[Held],
        retrieved: tuple[Sequence[int], Tensor] | None = None,
    ) -> Pending:
        """Measure a tracked frame and send its numbers to the host without waiting for them.

        Args:
            frame: The frame; None where the method measures nothing.
            moment: Where tracking stands.
            cond: The prompted frames.
            held: What the method's relation compares the frame with.
            retrieved: Frames among which the device chose, and the positions it chose.
        """
        prompted = [moment.distance(idx) for idx in cond if moment.past(idx)]
        since = math.inf if self.last_key is None else moment.distance(self.last_key)
        gap = int(min(prompted, default=0) if since == math.inf else min([*prompted, since]))
        record = FrameRecord(moment.frame_idx, math.nan, gap=gap, offset=max(prompted, default=0), since=since)
        pending = Pending(record, bool(prompted))
        if retrieved is not None:
            pending.candidates, pending.attended = retrieved
        if frame is not None:
            pending.send(self.measure(frame), self.relate(frame, held), [memory.frame_idx for memory in held])
            pending.reference = frame.reference()
        return pending

    def decide(self, pending: Pending) -> tuple[FrameRecord, bool]:
        """Decide a frame whose numbers are here; return its record and whether it became a keyframe."""
        record = pending.read(None if self.method.scorer is None else self.method.scorer.name)
        frame_idx, past = record.frame_idx, self.history.records
        decision = Decision(pending.prompted and self.method.gate.accept(record, past))
        decision.kept = decision.trusted and self.keep.accept(record, past)
        rule = self.method.pointers
        if rule != "recent":
            decision.points = rule.accept(record, past) if isinstance(rule, KeyframeFilter) else decision.kept
        filled = isinstance(self.method.fill, KeyframeFilter) and self.method.fill.accept(record, past)
        self.buffer.used(record.similarity)
        past.append(record)  # type: ignore[attr-defined]
        before = self.history.previous
        if not self._overtaken(frame_idx, before):
            self.history.previous = pending.reference
        if filled and self.last is not None:
            self.slide(frame_idx, self.last.slots)
        if decision.kept and self.method.keep_before:
            self._keep_before(frame_idx, before)
        self.decided[frame_idx] = record, decision
        if decision.trusted and self.last is not None:
            self.trust(frame_idx, self.last)
        if decision.kept:
            self.accept(record, pending.reference)
        elif decision.trusted and self.minor.capacity:
            self._hold(record, self.minor, pending.reference)
        return record, decision.kept

    def _keep_before(self, frame_idx: int, reference: Reference | None) -> None:
        """Make the last trustworthy frame before a keyframe one too, while its memory is still there."""
        moment = self.last
        for idx, (record, decision) in sorted(self.decided.items(), key=lambda seen: abs(seen[0] - frame_idx)):
            if moment is None or abs(idx - frame_idx) >= moment.slots or decision.kept:
                return
            if decision.trusted and self.usable(idx):
                decision.kept = True
                self.minor.discard(idx)
                self._hold(record, self.buffer, reference if reference and reference.frame_idx == idx else None)
                return

    def before_keyframe(self) -> int | None:
        """Return the frame that `keep_before` would make a keyframe next, so that its memory stays."""
        trusted = [idx for idx, (_, decision) in self.decided.items() if decision.trusted]
        if not self.method.keep_before or self.last is None:
            return None
        return min(trusted, key=self.last.distance, default=None)

    def accept(self, record: FrameRecord, reference: Reference | None) -> None:
        """Make a frame a keyframe: later ones are compared with it."""
        self.last_key = record.frame_idx
        if reference is not None and not self._overtaken(record.frame_idx, self.history.keyframe):
            self.history.keyframe = reference
        self._hold(record, self.buffer, reference)

    def _hold(self, record: FrameRecord, buffer: RollingBuffer, reference: Reference | None) -> None:
        self.ageing[record.frame_idx] = (record, buffer)
        if reference is not None and self.compares_all:
            self.references[record.frame_idx] = reference

    def correct(self, frame_idx: int, reference: Reference | None) -> None:
        """Take in a tracked frame that the user corrected: it becomes a keyframe unasked."""
        names = (*BASE_SCORES, *(scorer.name for scorer in self.method.scorers()))
        record = FrameRecord(frame_idx, math.nan, dict.fromkeys(names, math.nan))
        if self.method.protect_corrections:
            self.corrected[frame_idx] = record
            if reference is not None:
                self.references[frame_idx] = reference
        else:
            self._hold(record, self.buffer, reference)
        now = None if self.last is None else self.last.then()
        if now is None or now.past(frame_idx):
            self._pass(record, reference, now)

    def pass_over(self, frame_idx: int) -> None:
        """Pass a corrected frame that is not tracked over again: from here on it is the newest keyframe."""
        self._pass(self.corrected[frame_idx], self.references.get(frame_idx), self.last)

    def _pass(self, record: FrameRecord, reference: Reference | None, now: Moment | None) -> None:
        self.decided[record.frame_idx] = record, Decision(trusted=True, kept=True)
        if self.last is not None:
            self.trust(record.frame_idx, self.last)
        key = self.last_key
        if key is None or now is None or now.distance(record.frame_idx) <= now.distance(key):
            self.last_key = record.frame_idx
            if reference is not None:
                self.history.keyframe = reference

    def age(self, moment: Moment) -> tuple[list[tuple[int, bool]], list[FrameRecord]]:
        """Move frames that are no longer recent into their buffers.

        Returns:
            The frames that entered, each with whether it is a minor one, and the keyframes that left.
        """
        entered, gone = [], []
        for record, buffer in list(self.ageing.values()):
            if moment.distance(record.frame_idx) > self.method.recent:
                del self.ageing[record.frame_idx]
                left = buffer.push(record, moment.frame_idx)
                entered.append((record.frame_idx, buffer is self.minor))
                if left is not None:
                    self.references.pop(left.frame_idx, None)
                    gone += [left] if buffer is self.buffer else []
        known = [self.references[idx] for idx in self.keyframes() if idx in self.references]
        self.history.keyframes = [*self.prompts.values(), *known]
        return entered, gone

    def references_kept(self, pending: Pending | None) -> list[Reference]:
        """Return every reference that is kept, for the account of bytes."""
        single = (self.history.keyframe, self.history.previous, pending.reference if pending else None)
        return [*self.prompts.values(), *self.references.values(), *(r for r in single if r is not None)]
