"""What one object's memory holds, and what of it is read at a frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.rules.eviction import Oldest, RollingBuffer
from sam2_keyframe.types import RECORDS, FrameRecord, History, KeyframeFilter, Moment

SPARE = 2
"""Frames that a filtered fill holds beyond its slots, for those that become keyframes."""


@dataclass(slots=True)
class Decision:
    """What was decided about a frame.

    Attributes:
        trusted: Whether it passed the gate.
        kept: Whether it became a keyframe.
        points: Whether its pointer may be read.
    """

    trusted: bool = False
    kept: bool = False
    points: bool = True


class Holdings:
    """The frames of one object by what they are held for.

    Args:
        method: The choices.
        usable: Whether a frame's spatial memory is at hand.

    Attributes:
        history: What scorers and filters may know of the past.
        buffer: The keyframes that left the recent frames.
        minor: Trustworthy frames that are no keyframes, where the method keeps some.
        ageing: Frames to be held that are still recent, each with the buffer it will enter.
        corrected: Frames that the user corrected, where the method protects them.
        decided: Frames in reach of a pointer: their record and what was decided.
        window: Frames that a filtered fill reads, oldest first.
        trusted: Frames whose pointers are read by rank, oldest first.
    """

    def __init__(self, method: KeyframeMemory, usable: Callable[[int], bool]) -> None:
        self.method = method
        self.usable = usable
        self.history = History(records=deque(maxlen=RECORDS))
        self.buffer = RollingBuffer(method.capacity, method.evict)
        self.minor = RollingBuffer(method.minor, Oldest())
        self.ageing: dict[int, tuple[FrameRecord, RollingBuffer]] = {}
        self.corrected: dict[int, FrameRecord] = {}
        self.decided: dict[int, tuple[FrameRecord, Decision]] = {}
        self.window: list[int] = []
        self.trusted: list[int] = []

    # -- what comes and goes --------------------------------------------------------------------------------------

    def held(self) -> list[int]:
        """Return the frames held: corrected ones, keyframes and minor ones, those still ageing included."""
        return self._in(self.buffer, self.minor)

    def keyframes(self) -> list[int]:
        """Return the keyframes held, corrected frames and those still ageing included."""
        return self._in(self.buffer)

    def _in(self, *buffers: RollingBuffer) -> list[int]:
        buffered = [record.frame_idx for buffer in buffers for record in buffer]
        return [*self.corrected, *buffered, *(idx for idx, (_, buffer) in self.ageing.items() if buffer in buffers)]

    def slide(self, frame_idx: int, slots: int) -> None:
        """Let a frame into the filtered fill: the newest of them always, older ones where they lie on the grid."""
        stride = self.method.stride or 1
        if self.window and self.window[-1] % stride:
            self.window.pop()
        self.window.append(frame_idx)
        del self.window[: -slots - SPARE]

    def trust(self, frame_idx: int, last: Moment) -> None:
        """Let a frame's pointer be read by rank."""
        if self.method.pointers == "ranked":
            self.trusted = sorted({*self.trusted, frame_idx}, key=last.distance, reverse=True)[-last.pointers :]

    def forget(self, frame_idx: int) -> None:
        """Forget a frame that was replaced, dropped, or will be tracked again."""
        for buffer in (self.buffer, self.minor):
            buffer.discard(frame_idx)
        for frames in (self.window, self.trusted):
            if frame_idx in frames:
                frames.remove(frame_idx)
        for known in (self.ageing, self.corrected, self.decided):
            known.pop(frame_idx, None)

    def trim(self, moment: Moment) -> None:
        """Forget the records that no pointer rule will ask for."""
        self.decided = {i: seen for i, seen in self.decided.items() if 0 < moment.distance(i) <= moment.pointers}

    # -- what is read ---------------------------------------------------------------------------------------------

    def choose(self, moment: Moment, prompts: int) -> tuple[list[int], list[int], int]:
        """Return the newest frames to attend to, the frames held to choose from, and how many of those to attend to.

        More are held than attended to only where the method's `select` decides on the device.

        Args:
            moment: The frame to be tracked.
            prompts: Conditioning frames that are attended to.
        """
        method = self.method
        held, count = self._select(moment, prompts)
        if isinstance(method.fill, KeyframeFilter):
            free = moment.slots - min(len(held), count) + (1 - prompts if method.anchored else 0)
            newest = [idx for idx in self.window if idx not in held and self.usable(idx)]
            return newest[-max(1, free) :], held, count
        grid = method.grid(moment)
        places = [(code, grid.slot(code)) for code in range(moment.slots)]
        places = [(code, idx) for code, idx in places if self.usable(idx) and idx not in held]
        newest = [idx for code, idx in places if code < method.recent]
        if method.fill:
            free = moment.slots - len(newest) - min(len(held), count)
            newest += [idx for _, idx in places[len(newest) :]][: max(free, 0)]
        return newest, held, count

    def _select(self, moment: Moment, prompts: int) -> tuple[list[int], int]:
        select = self.method.select

        def there(frame_idx: int) -> bool:
            return moment.past(frame_idx) and self.usable(frame_idx)

        keyframes, minor = ([r for r in buffer if there(r.frame_idx)] for buffer in (self.buffer, self.minor))
        corrected = sorted(filter(there, self.corrected), key=moment.distance)
        room = max(0, moment.slots - self.method.recent)
        corrected = corrected[: -(-room // 2)]  # the nearest, so that they do not crowd out the rest
        if self.method.anchored and not select.chooses:
            room = len(keyframes) + len(minor) + len(corrected)
        if select.on_device:
            chosen: Sequence[FrameRecord] = keyframes + minor
        else:
            newest = self.history.records[-1] if self.history.records else None
            pools = [keyframes + minor] if select.chooses else [keyframes, minor]
            chosen = []
            for pool in pools:
                left = room - len(corrected) - len(chosen)
                chosen = [*chosen, *select.choose(pool, newest, left, moment, prompts)]
        return sorted([*corrected, *(record.frame_idx for record in chosen)], key=moment.distance), room

    def pointers(self, moment: Moment, stored: Collection[int], prompted: bool) -> dict[int, int]:
        """Return the frames whose pointers are read, by the index at which SAM 2 looks for them.

        Args:
            moment: The frame to be tracked.
            stored: Frames that the host holds.
            prompted: Whether the pointer of a prompted frame is read, so that there may be no other.
        """
        near = [moment.near(distance) for distance in range(1, moment.pointers + 1)]
        if self.method.pointers == "ranked":
            ranked = [idx for idx in reversed(self.trusted) if idx in stored and moment.past(idx)]
            newest = [idx for idx in near[:1] if idx in stored and idx not in ranked]
            return dict(zip(near, newest + ranked, strict=False))
        near = [idx for idx in near if idx in stored]
        chosen = [idx for idx in near if self._points(idx)]
        if not chosen and not prompted:
            chosen = near[:1]
        return {idx: idx for idx in chosen}

    def _points(self, frame_idx: int) -> bool:
        if self.method.pointers == "recent":
            return True
        if frame_idx in self.decided:
            return self.decided[frame_idx][1].points
        return self.method.pointers != "selected"  # a rule on scores knows nothing against it
