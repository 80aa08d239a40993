"""What becomes a keyframe, what is attended to and what leaves, decided on records alone.

The memory bank runs it beside SAM 2, `replay` without SAM 2: the same code decides in both.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_keyframe.attention.queries import NearObject
from sam2_keyframe.conditions import ask
from sam2_keyframe.memory import ALWAYS, KeyframeMemory, Keyframes, Others, Ranked
from sam2_keyframe.rules.eviction import Oldest, RollingBuffer
from sam2_keyframe.types import (
    RECORDS,
    FrameRecord,
    Held,
    History,
    KeyframeFilter,
    Moment,
    Reference,
    TrackedFrame,
)

SPARE = 2
"""Frames that a `Recent` with a rule holds beyond the slots, for those that become keyframes."""


@dataclass(slots=True)
class Decision:
    """What was decided about a frame.

    Attributes:
        kept: Whether it became a keyframe.
        points: Whether its pointer may be read.
        before: Whether it may become a keyframe because the next one is.
    """

    kept: bool = False
    points: bool = True
    before: bool = False


@dataclass(slots=True)
class Pending:
    """A frame whose numbers are on their way to the host.

    Attributes:
        record: What is known of it without them.
        prompted: Whether a prompted frame lies in its past, so that it may become a keyframe at all.
        reference: What describes it.
        candidates: Frames of which the device chose some to attend to.
        attended: Which of them, (k,) positions among `candidates`.
        chosen: Those frames, once the numbers were read.
    """

    record: FrameRecord
    prompted: bool
    reference: Reference | None = None
    candidates: Sequence[int] = ()
    attended: Tensor | None = None
    chosen: tuple[int, ...] = ()
    _names: tuple[str, ...] = ()
    _related: Sequence[int] = ()
    _numbers: Tensor | None = None
    _event: torch.cuda.Event | None = None

    @property
    def frame_idx(self) -> int:
        """Index of the frame."""
        return self.record.frame_idx

    def send(self, measured: Mapping[str, Tensor], similarity: Tensor | None, related: Sequence[int]) -> None:
        """Start the one copy of a frame and object to the host without waiting for it.

        Only CUDA copies beside other work, into memory that torch pins; elsewhere the numbers are read where they are.

        Args:
            measured: 0-dim scores by name.
            similarity: (len(related),) to the memories held, or None.
            related: Their frames.
        """
        self._names = tuple(measured)
        self._related = () if similarity is None else related
        parts = [torch.stack([value.float() for value in measured.values()]), similarity, self.attended]
        numbers = torch.cat([part.float() for part in parts if part is not None])
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        self._numbers = numbers

    def read(self) -> FrameRecord:
        """Return the record with its numbers: the one host read a frame and object."""
        if self._numbers is None:
            return self.record
        if self._event is not None:
            self._event.synchronize()
        numbers = self._numbers.tolist()
        scores = dict(zip(self._names, numbers, strict=False))
        rest = numbers[len(scores) :]
        similarity = dict(zip(self._related, rest, strict=False))
        self.chosen = tuple(self.candidates[int(i)] for i in rest[len(similarity) :])
        return replace(self.record, scores=scores, similarity=similarity)


class Selection:
    """One object's choices under one method: what its memory holds, and what of it is read at a frame.

    Args:
        method: The choices.
        usable: Whether a frame's spatial memory is at hand.

    Attributes:
        history: What scorers and filters may know of the past.
        buffer: The keyframes that are no longer recent.
        others: The frames of `Others` that are no longer recent.
        ageing: Frames to be held that are still recent, each with the buffer it will enter.
        corrected: Frames that the user corrected, where the method protects them.
        decided: Frames in reach of a pointer: their record and what was decided.
        window: Frames that a `Recent` with a rule reads, oldest first.
        trusted: Frames whose pointers are read by rank, oldest first.
        prompts: What describes the prompted frames.
        references: What describes the corrected frames and, where something compares with all of them, those held.
        compares_all: Whether something compares with every frame held.
        last: Where tracking stood last.
        last_key: The newest keyframe.
        closed: The frame that closed the buffer, where the method closes it.
    """

    def __init__(self, method: KeyframeMemory, usable: Callable[[int], bool] = lambda frame_idx: True) -> None:
        self.method = method
        self.usable = usable
        self.history = History(records=deque(maxlen=RECORDS))
        self.buffer = RollingBuffer(method.keyframes.n, method.keyframes.evict)
        self.others = RollingBuffer(method.others.n, Oldest())
        self._buffers = self.buffer, self.others
        self.ageing: dict[int, tuple[FrameRecord, RollingBuffer]] = {}
        self.corrected: dict[int, FrameRecord] = {}
        self.decided: dict[int, tuple[FrameRecord, Decision]] = {}
        self.window: list[int] = []
        self.trusted: list[int] = []
        self.prompts: dict[int, Reference] = {}
        self.references: dict[int, Reference] = {}
        self.last: Moment | None = None
        self.last_key: int | None = None
        self.closed: int | None = None
        self.compares_all = method.relation is not None or method.keyframes.read.on_device
        self.compares_all |= any(getattr(scorer, "all_keyframes", False) for scorer in method.scorers)

    def fork(self, usable: Callable[[int], bool]) -> Selection:
        """Return choices of their own that begin where these stand."""
        fork = copy.copy(self)
        fork.usable = usable
        fork.history = replace(self.history, records=deque(self.history.records, maxlen=RECORDS))
        fork._buffers = fork.buffer, fork.others = self.buffer.fork(), self.others.fork()
        mine = {id(self.buffer): fork.buffer, id(self.others): fork.others}
        fork.ageing = {idx: (record, mine[id(buffer)]) for idx, (record, buffer) in self.ageing.items()}
        fork.decided = {idx: (record, replace(decision)) for idx, (record, decision) in self.decided.items()}
        for name in ("corrected", "prompts", "references", "window", "trusted"):
            setattr(fork, name, copy.copy(getattr(self, name)))
        return fork

    # -- what comes and goes ------------------------------------------------------------------------------------

    def held(self) -> list[int]:
        """Return the frames held: corrected ones, keyframes and others, those still ageing included."""
        return self._in(*self._buffers)

    def keyframes(self) -> list[int]:
        """Return the keyframes held, corrected frames and those still ageing included."""
        return self._in(self.buffer)

    def in_buffer(self) -> tuple[int, ...]:
        """Return what people are told of as keyframes held: those in the buffer, at most `n` of `Keyframes`, by frame.

        A newer one is among the recent frames still, and a corrected frame is held besides.
        """
        return tuple(sorted(record.frame_idx for record in self.buffer))

    def _in(self, *buffers: RollingBuffer) -> list[int]:
        buffered = [record.frame_idx for buffer in buffers for record in buffer]
        return [*self.corrected, *buffered, *[idx for idx, (_, buffer) in self.ageing.items() if buffer in buffers]]

    def slide(self, frame_idx: int, slots: int) -> None:
        """Let a frame into a `Recent` with a rule: the newest always, older ones where they lie on the grid."""
        stride = self.method.recent.every or 1
        if self.window and self.window[-1] % stride:
            self.window.pop()
        self.window.append(frame_idx)
        del self.window[: -slots - SPARE]

    def trust(self, frame_idx: int, last: Moment) -> None:
        """Let a frame's pointer be read by rank."""
        if isinstance(self.method.pointers, Ranked):
            self.trusted = sorted({*self.trusted, frame_idx}, key=last.distance, reverse=True)[-last.pointers :]

    def forget(self, frame_idx: int) -> None:
        """Forget a frame that was replaced, dropped, or will be tracked again."""
        for buffer in self._buffers:
            buffer.discard(frame_idx)
        for frames in (self.window, self.trusted):
            if frame_idx in frames:
                frames.remove(frame_idx)
        for known in (self.ageing, self.corrected, self.decided, self.references):
            known.pop(frame_idx, None)

    def trim(self, moment: Moment) -> None:
        """Forget the records that no pointer rule will ask for."""
        near = moment.behind(moment.pointers)
        self.decided = {idx: seen for idx, seen in self.decided.items() if idx in near}

    # -- before a frame is tracked ------------------------------------------------------------------------------

    def begin(self, moment: Moment) -> None:
        """Take up tracking at `moment`: what lies ahead in this direction will be tracked again, so it leaves."""
        self.others.capacity = self.method.room_for_others(moment.slots)
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
        turned = self.last is not None and self.last.reverse != moment.reverse
        if turned or (self.closed is not None and not moment.past(self.closed)):
            self.closed = None
        self.last_key = min(filter(moment.past, self.keyframes()), key=moment.distance, default=None)
        if self.last_key is not None:
            self.history.keyframe = self.references.get(self.last_key)
        if turned:
            self.buffer.refresh()
        else:
            self.history.records.extend(r for r in before.records if moment.past(r.frame_idx))  # type: ignore[attr-defined]
            if before.keyframe is not None and moment.past(before.keyframe.frame_idx):
                self.history.keyframe = before.keyframe

    def near(self, moment: Moment) -> tuple[Tensor | None, float]:
        """Return what `queries` measured of the frame just before `moment`: its windows near the object, and the share.

        (None, NaN) where the object was not tracked there: after a prompt, a correction, or where a pass begins.
        """
        last, previous = moment.near(1), self.history.previous
        if last not in self.decided or previous is None or previous.frame_idx != last:
            return None, math.nan
        return previous.get(NearObject.key), self.decided[last][0].scores.get(NearObject.name, math.nan)

    # -- after a frame is tracked -------------------------------------------------------------------------------

    def measure(self, frame: TrackedFrame) -> dict[str, Tensor]:
        """Describe a frame and return all its scores by name, 0-dim, computed in float32 outside autocast."""
        with torch.inference_mode(), torch.autocast(frame.pred_masks.device.type, enabled=False):
            for scorer in (*self.method.scorers, *ALWAYS):
                frame.measure(scorer, self.history)
            if isinstance(self.method.queries, NearObject):
                frame.measure(self.method.queries, self.history)
            self.method.keyframes.read.describe(frame)
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
        record = FrameRecord(moment.frame_idx, gap=gap, offset=max(prompted, default=0), since=since)
        pending = Pending(record, bool(prompted))
        if retrieved is not None:
            pending.candidates, pending.attended = retrieved
        if frame is not None:
            pending.send(self.measure(frame), self.relate(frame, held), [memory.frame_idx for memory in held])
            pending.reference = frame.reference()
        return pending

    def decide(self, pending: Pending) -> tuple[FrameRecord, bool]:
        """Decide a frame whose numbers are here; return its record and whether it became a keyframe."""
        record, method, past = pending.read(), self.method, self.history.records
        frame_idx, decision, pointers = record.frame_idx, Decision(), method.pointers
        asked = method.asked if pending.prompted else ()
        taken = next((shelf for shelf in asked if self._takes(shelf, record)), None)
        decision.kept = isinstance(taken, Keyframes)
        once = method.keyframes.once
        if once is not None and self.closed is None and pending.prompted and ask(once, record, past):
            self.closed = frame_idx
        if method.keyframes.before is not None:
            decision.before = pending.prompted and ask(method.keyframes.before, record, past)
        ranked = isinstance(pointers, Ranked) and pending.prompted and ask(pointers.when, record, past)
        if isinstance(pointers, KeyframeFilter):
            decision.points = ask(pointers, record, past)
        elif pointers == "selected":
            decision.points = decision.kept
        shown = method.recent.when is not None and ask(method.recent.when, record, past)
        self.buffer.used(record.similarity)
        past.append(record)  # type: ignore[attr-defined]
        before = self.history.previous
        if not self._overtaken(frame_idx, before):
            self.history.previous = pending.reference
        if shown and self.last is not None:
            self.slide(frame_idx, self.last.slots)
        if decision.kept and method.keyframes.before is not None:
            self._keep_before(frame_idx, before)
        self.decided[frame_idx] = record, decision
        if ranked and self.last is not None:
            self.trust(frame_idx, self.last)
        if decision.kept:
            self.accept(record, pending.reference)
        elif taken is not None:
            self._hold(record, self.others, pending.reference)
        return record, decision.kept

    def _takes(self, shelf: Keyframes | Others, record: FrameRecord) -> bool:
        there = self.closed is None if isinstance(shelf, Keyframes) else self.others.capacity > 0
        return there and ask(shelf.when, record, self.history.records)

    def _keep_before(self, frame_idx: int, reference: Reference | None) -> None:
        """Make the last frame before a keyframe that may be one become one too, while its memory is still there."""
        moment = self.last
        for idx, (record, decision) in sorted(self.decided.items(), key=lambda seen: abs(seen[0] - frame_idx)):
            if moment is None or abs(idx - frame_idx) >= moment.slots or decision.kept:
                return
            if decision.before and self.usable(idx):
                decision.kept = True
                self.others.discard(idx)
                self._hold(record, self.buffer, reference if reference and reference.frame_idx == idx else None)
                return

    def before_keyframe(self) -> int | None:
        """Return the frame that would become a keyframe with the next one, so that its memory stays."""
        if self.method.keyframes.before is None or self.last is None:
            return None
        ready = [idx for idx, (_, decision) in self.decided.items() if decision.before]
        return min(ready, key=self.last.distance, default=None)

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
        names = (scorer.name for scorer in (*self.method.scorers, *ALWAYS))
        record = FrameRecord(frame_idx, dict.fromkeys(names, math.nan))
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
        self.decided[record.frame_idx] = record, Decision(kept=True, before=True)
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
            The frames that entered, each with whether it is a keyframe, and the keyframes that left.
        """
        entered, gone = [], []
        for record, buffer in list(self.ageing.values()):
            if moment.distance(record.frame_idx) > self.method.lag:
                del self.ageing[record.frame_idx]
                left = buffer.push(record, moment.frame_idx)
                entered.append((record.frame_idx, buffer is self.buffer))
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

    # -- what is read -------------------------------------------------------------------------------------------

    def choose(self, moment: Moment, prompts: int) -> tuple[list[int], list[int], int]:
        """Return the newest frames to attend to, the frames held to choose from, and how many of those to attend to.

        More are held than attended to only where the rule for reading keyframes decides on the device.

        Args:
            moment: The frame to be tracked.
            prompts: Conditioning frames that are attended to.
        """
        method, select = self.method, self.method.keyframes.read
        keyframes, others = (
            [r for r in buffer if moment.past(r.frame_idx) and self.usable(r.frame_idx)] for buffer in self._buffers
        )
        if method.keyframes.once is not None and self.closed is None:
            keyframes = []
        corrected = self._corrected(moment)
        room = self._room(moment, len(keyframes) + len(others) + len(corrected))
        if select.on_device:
            chosen: Sequence[FrameRecord] = keyframes + others
        else:
            newest = self.history.records[-1] if self.history.records else None
            chosen = []
            for pool in [keyframes + others] if select.chooses else [keyframes, others]:
                left = room - len(corrected) - len(chosen)
                chosen = [*chosen, *select.choose(pool, newest, left, moment, prompts)]
        held = sorted([*corrected, *[record.frame_idx for record in chosen]], key=moment.distance)
        count = min(len(held), room)
        if method.recent.when is None:
            return self._newest(moment, held, count), held, room
        free = moment.slots + 1 - prompts - count  # as many as SAM 2 codes, prompts included
        recent = [idx for idx in self.window if idx not in held and self.usable(idx)]
        return recent[-max(1, min(free, method.recent.n)) :], held, room

    def to_come(self, moment: Moment) -> list[int]:
        """Return the newest frames that `choose` may name at `moment`, whatever is decided until then."""
        if self.method.recent.when is not None:
            return self.window
        select = self.method.keyframes.read
        buffered = [record.frame_idx for buffer in self._buffers for record in buffer]
        corrected = self._corrected(moment)
        # A rule that chooses may leave any of its slots to the newest frames.
        least = len(corrected) + (0 if select.chooses and not select.on_device else len(buffered))
        return self._newest(moment, [*corrected, *buffered], min(least, self._room(moment, least)))

    def _newest(self, moment: Moment, held: Collection[int], count: int) -> list[int]:
        """Return the newest frames beside those held, and those that fill up the slots that `count` of them leave."""
        places = self.method.grid(moment).places()
        there = [idx for idx in places if idx not in held and self.usable(idx)]
        newest = [idx for idx in there if idx in places[: self.method.newest]]
        if self.method.fill:
            free = moment.slots - len(newest) - count
            newest += there[len(newest) :][: max(free, 0)]
        return newest

    def _corrected(self, moment: Moment) -> list[int]:
        """Return the nearest corrected frames, so few that they do not crowd out the rest."""
        if not self.corrected:
            return []
        there = [idx for idx in self.corrected if moment.past(idx) and self.usable(idx)]
        return sorted(there, key=moment.distance)[: -(-self._room(moment) // 2)]

    def _room(self, moment: Moment, anchors: int = 0) -> int:
        """Return the slots for frames held: those beside the newest, or as many as `anchors`, which take none."""
        if self.method.anchored and anchors and not self.method.keyframes.read.chooses:
            return anchors
        return max(0, moment.slots - self.method.newest)

    def pointers(self, moment: Moment, stored: Collection[int], prompted: bool) -> dict[int, int]:
        """Return the frames whose pointers are read, by the index at which SAM 2 looks for them.

        Args:
            moment: The frame to be tracked.
            stored: Frames that the host holds.
            prompted: Whether the pointer of a prompted frame is read, so that there may be no other.
        """
        near = moment.behind(moment.pointers)
        if isinstance(self.method.pointers, Ranked):
            ranked = [idx for idx in reversed(self.trusted) if idx in stored and moment.past(idx)]
            newest = [idx for idx in near[:1] if idx in stored and idx not in ranked]
            return dict(zip(near, newest + ranked, strict=False))
        there = [idx for idx in near if idx in stored]
        chosen = there if self.method.pointers == "recent" else [idx for idx in there if self._points(idx)]
        if not chosen and not prompted:
            chosen = there[:1]
        return {idx: idx for idx in chosen}

    def _points(self, frame_idx: int) -> bool:
        if frame_idx in self.decided:
            return self.decided[frame_idx][1].points
        return self.method.pointers != "selected"  # a rule on scores knows nothing against it
