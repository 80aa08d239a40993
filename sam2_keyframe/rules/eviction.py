"""The rolling buffer of keyframes, and the rules for which of them leaves when it is full.

Rules are plain Python on `FrameRecord`s; the memories themselves stay with the bank. A rule with a field `relation`
says what similarity it needs: the bank measures that between each frame and the memories held, for the records. The
similarity of two records that were never compared is unknown, and unknown counts as nothing alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from sam2_keyframe._checks import check_relation, check_whole
from sam2_keyframe.conditions import check_scorer
from sam2_keyframe.rules.similarity import AttentionShare, DescriptorCosine
from sam2_keyframe.scorers import MaskIoU
from sam2_keyframe.types import FrameRecord, Relation, Scorer


@runtime_checkable
class Evict(Protocol):
    """Chooses which keyframe leaves a full buffer."""

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return one of `held`, which is never empty and ends with the newcomer; `now` is the frame being tracked."""
        ...


@dataclass(frozen=True)
class Oldest:
    """The keyframe farthest from the current frame leaves: a first-in, first-out queue in either direction."""

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the farthest record."""
        return max(held, key=lambda record: _age(record, now))


@dataclass(frozen=True)
class LeastSignificant:
    """The keyframe of the lowest score leaves, so that the most significant stay; of equals the farthest.

    The newcomer may be the one that leaves. An unknown score (NaN) ranks highest: nothing comparable was known when
    the frame came. Which keyframes stay does not depend on the order in which they came.

    Attributes:
        scorer: What is measured.
        half_life: Frames after which a score counts half, above 0; None: it never fades. A fading rule needs a score
            of at least 0.
    """

    scorer: Scorer = MaskIoU()  # noqa: RUF009 - scorers are frozen
    half_life: float | None = None

    def __post_init__(self) -> None:
        """Check the choices."""
        check_scorer(self.scorer, "LeastSignificant")
        if self.half_life is not None and not self.half_life > 0:
            raise ValueError(f"LeastSignificant(half_life={self.half_life!r}): must be above 0, or None")

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the least significant record."""

        def worth(record: FrameRecord) -> float:
            fading = 1.0 if self.half_life is None else 0.5 ** (_age(record, now) / self.half_life)
            return _known(record.scores[self.scorer.name] * fading)

        return _lowest(held, now, worth)


@dataclass(frozen=True)
class Random:
    """Keep a uniform sample of all keyframes seen: each frame has a fixed random priority and the lowest stay.

    Attributes:
        seed: Chooses the priorities; the same seed keeps the same frames.

    Source: reservoir sampling by priorities (Vitter 1985; here hashed, so that the choice is repeatable).
    """

    seed: int = 0

    def __post_init__(self) -> None:
        """Check the seed."""
        check_whole(self, "seed", least=0)

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the record of the highest priority number."""
        return max(held, key=lambda record: self.priority(record.frame_idx))

    def priority(self, frame_idx: int) -> int:
        """Return the frame's fixed random number, uniform over 64 bits."""
        digest = hashlib.blake2b(f"{self.seed}/{frame_idx}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class MostRedundant:
    """Of the two keyframes most alike, the one that is also more like a third leaves; of equals the farther.

    If that tells nothing either, the next most similar decides, and so on. The newcomer is a keyframe like any
    other. Which one leaves depends on what is held, so what stays depends on the order of arrival.

    Attributes:
        relation: What measures how alike two memories are.

    Source: ours; keeping a bank diverse by its closest pair is common, see READMem (Vujasinovic et al. 2305.12823).
    """

    relation: Relation = DescriptorCosine()  # noqa: RUF009 - relations are frozen

    def __post_init__(self) -> None:
        """Check the relation."""
        check_relation(self, self.relation)

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the record that the others describe best."""
        alike = similarities(held)

        def redundancy(i: int) -> tuple[list[float], int]:
            return sorted(alike[i][:i] + alike[i][i + 1 :], reverse=True), _age(held[i], now)

        return held[max(range(len(held)), key=redundancy)]


@dataclass(frozen=True)
class MostSimilar:
    """The keyframe most like the newcomer leaves; of equals the farthest. The newcomer always enters.

    What stays depends on the order of arrival.

    Attributes:
        relation: What measures how alike two memories are.

    Source: ours, in place of the learned choice of the Space Time Recurrent Memory Network (2109.06474), which
    overwrites one of a fixed number of slots. Nothing of it is learned here.
    """

    relation: Relation = DescriptorCosine()  # noqa: RUF009 - relations are frozen

    def __post_init__(self) -> None:
        """Check the relation."""
        check_relation(self, self.relation)

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the held record most like the newcomer; the newcomer only where nothing else is held."""
        alike = similarities(held)[-1]
        return held[max(range(len(held) - 1), key=lambda i: (alike[i], _age(held[i], now)), default=0)]


@dataclass(frozen=True)
class RelevanceFreshness:
    """The keyframe of the lowest relevance + c sqrt(ln(sum T) / (T + offset)) leaves, never the newcomer.

    T is how often a keyframe stayed when the buffer was too full. The first prompted frame, which no buffer holds
    and which always stays, counts in the sum with the frames since. A keyframe whose relevance is not known yet
    stays. What stays depends on the order of arrival.

    Attributes:
        c: Weight of freshness against relevance, at least 0.
        offset: Added to T, above 0; the larger, the less a fresh keyframe is favoured.
        relation: What measures the relevance, in [0, 1].

    Source: RMem (Zhou et al. 2406.08476), the upper confidence bound by which it refreshes its bank; read in its
    code (MIT). There the relevance is its own network's attention; here it is a proxy of SAM 2's.
    """

    c: float = 1.5
    offset: float = 8
    relation: Relation = AttentionShare()  # noqa: RUF009 - relations are frozen

    def __post_init__(self) -> None:
        """Check the numbers and the relation."""
        if not 0 <= self.c < math.inf or not 0 < self.offset < math.inf:
            raise ValueError(
                f"RelevanceFreshness(c={self.c!r}, offset={self.offset!r}): c must be at least 0 and offset above 0"
            )
        check_relation(self, self.relation)

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the record of the lowest upper confidence bound; the newcomer only where nothing else is held."""
        total = sum(record.survived for record in held) + max(record.offset for record in held)

        def bound(record: FrameRecord) -> float:
            fresh = math.sqrt(math.log(max(total, 1)) / (record.survived + self.offset))
            return _known(record.relevance + self.c * fresh)

        return _lowest(held[:-1] or held, now, bound)


@dataclass(frozen=True)
class LeastUsed:
    """The keyframe of the least usage a frame leaves; of equals the farthest.

    Usage is the similarity to the frames tracked since, added up. A keyframe that no frame was compared with stays.

    Attributes:
        relation: What measures the usage, at least 0.

    Source: XMem (Cheng and Schwing 2207.07115), where tokens rather than frames leave; read in its code (MIT).
    """

    relation: Relation = AttentionShare()  # noqa: RUF009 - relations are frozen

    def __post_init__(self) -> None:
        """Check the relation."""
        check_relation(self, self.relation)

    def victim(self, held: Sequence[FrameRecord], now: int) -> FrameRecord:
        """Return the least used record."""
        return _lowest(held, now, lambda r: math.inf if math.isnan(r.relevance) else r.usage / max(_age(r, now), 1))


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

    def fork(self) -> RollingBuffer:
        """Return a buffer of its own that holds the same."""
        buffer = RollingBuffer(self.capacity, self.evict)
        buffer._held = dict(self._held)
        return buffer

    def push(self, record: FrameRecord, now: int) -> FrameRecord | None:
        """Add a record; return the one that left, which may be the newcomer, or None.

        Those that stay when one has to leave have `survived` once more.
        """
        self._held.pop(record.frame_idx, None)
        self._held[record.frame_idx] = record
        if len(self._held) <= self.capacity:
            return None
        left = self._held.pop(self.evict.victim(list(self._held.values()), now).frame_idx)
        for frame_idx, stays in self._held.items():
            self._held[frame_idx] = replace(stays, survived=stays.survived + 1)
        return left

    def used(self, shares: Mapping[int, float]) -> None:
        """Take in how similar the frame just tracked is to the memories held, by frame index; NaN tells nothing.

        `usage` grows by the share; `relevance` becomes 0.2 of what it was + 0.8 of the share, at first the share.
        """
        for frame_idx, record in self._held.items():
            share = shares.get(frame_idx, math.nan)
            if not math.isnan(share):
                relevance = share if math.isnan(record.relevance) else 0.2 * record.relevance + 0.8 * share
                self._held[frame_idx] = replace(record, usage=record.usage + share, relevance=relevance)

    def refresh(self) -> None:
        """Forget what the frames tracked so far made of those held, as where tracking turns round."""
        fresh = {"survived": 0, "relevance": math.nan, "usage": 0.0}
        self._held = {idx: replace(record, **fresh) for idx, record in self._held.items()}  # type: ignore[arg-type]

    def discard(self, frame_idx: int) -> None:
        """Forget a frame, if it is held."""
        self._held.pop(frame_idx, None)

    def __contains__(self, frame_idx: object) -> bool:
        return frame_idx in self._held

    def __iter__(self) -> Iterator[FrameRecord]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)


def similarities(held: Sequence[FrameRecord]) -> list[list[float]]:
    """Return how alike each two records are, as a symmetric table; -inf where they were never compared.

    Of two records the later one in `held` was compared with the earlier one, or else the other way round. The
    diagonal is 1.
    """
    table = [[1.0] * len(held) for _ in held]
    for i, later in enumerate(held):
        for j, earlier in enumerate(held[:i]):
            value = later.similarity.get(earlier.frame_idx, earlier.similarity.get(later.frame_idx, math.nan))
            table[i][j] = table[j][i] = -math.inf if math.isnan(value) else value
    return table


def _lowest(held: Sequence[FrameRecord], now: int, worth: Callable[[FrameRecord], float]) -> FrameRecord:
    return min(held, key=lambda record: (worth(record), -_age(record, now)))


def _age(record: FrameRecord, now: int) -> int:
    return abs(now - record.frame_idx)


def _known(worth: float) -> float:
    return math.inf if math.isnan(worth) else worth


_ALL: tuple[type, ...] = (
    Oldest, LeastSignificant, MostRedundant, MostSimilar, RelevanceFreshness, LeastUsed, Random,
)  # fmt: skip

EVICTION: dict[str, type] = {cls.__name__: cls for cls in _ALL}
"""Eviction rules by name."""
