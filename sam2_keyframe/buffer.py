"""The rolling buffer of keyframes, and the rules for which of them leaves when it is full.

Rules are plain Python on `FrameRecord`s; the memories themselves stay with the bank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sam2_keyframe.types import FrameRecord


@runtime_checkable
class Evict(Protocol):
    """Chooses which keyframe leaves a full buffer."""

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return one of `held` (never empty, the newcomer included); `now` is the frame being tracked."""
        ...


@dataclass(frozen=True)
class Oldest:
    """The keyframe farthest from the current frame leaves: a first-in, first-out queue in either direction."""

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the farthest record."""
        return max(held, key=lambda record: abs(now - record.frame_idx))


@dataclass(frozen=True)
class LeastSignificant:
    """The keyframe of the lowest significance leaves; of equals the farthest. The newcomer may be the one.

    An unknown significance (NaN) ranks highest: nothing comparable was known when the frame came.
    """

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the least significant record."""
        return min(held, key=lambda record: (_known(record.significance), -abs(now - record.frame_idx)))


@dataclass(frozen=True)
class Random:
    """Keep a uniform sample of all keyframes seen: each frame has a fixed random priority and the lowest stay.

    Attributes:
        seed: Chooses the priorities; the same seed keeps the same frames.

    Source: reservoir sampling by priorities (Vitter 1985; here hashed, so that the choice is repeatable).
    """

    seed: int = 0

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the record of the highest priority number."""
        return max(held, key=lambda record: self.priority(record.frame_idx))

    def priority(self, frame_idx: int) -> int:
        """Return the frame's fixed random number, uniform over 64 bits."""
        digest = hashlib.blake2b(f"{self.seed}/{frame_idx}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


class RollingBuffer:
    """At most `capacity` keyframe records, in order of arrival.

    Args:
        capacity: Records held at most, at least 0.
        evict: Which record leaves when one too many is there.
    """

    def __init__(self, capacity: int, evict: Evict) -> None:
        self.capacity = capacity
        self.evict = evict
        self._held: dict[int, FrameRecord] = {}

    def push(self, record: FrameRecord, now: int) -> FrameRecord | None:
        """Add a record; return the one that left, which may be the newcomer, or None."""
        self._held[record.frame_idx] = record
        if len(self._held) <= self.capacity:
            return None
        return self._held.pop(self.evict.victim(list(self._held.values()), now).frame_idx)

    def discard(self, frame_idx: int) -> None:
        """Forget a frame, if it is held."""
        self._held.pop(frame_idx, None)

    def __contains__(self, frame_idx: object) -> bool:
        return frame_idx in self._held

    def __iter__(self) -> Iterator[FrameRecord]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)


def _known(significance: float) -> float:
    return math.inf if math.isnan(significance) else significance


EVICTION: dict[str, type] = {cls.__name__: cls for cls in (Oldest, LeastSignificant, Random)}
"""Eviction rules by name."""
