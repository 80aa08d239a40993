"""The rolling buffer keeps exactly what its rule says, whatever the order of arrival."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_keyframe.buffer import EVICTION, LeastSignificant, Oldest, Random, RollingBuffer
from sam2_keyframe.types import FrameRecord

arrivals = st.lists(st.integers(0, 200), unique=True, max_size=30).flatmap(
    lambda frames: st.tuples(
        st.just(frames), st.lists(st.floats(0, 1), min_size=len(frames), max_size=len(frames))
    )
)


def _fill(buffer: RollingBuffer, arrived: tuple[list[int], list[float]], now: int) -> list[FrameRecord]:
    records = [FrameRecord(frame_idx, significance) for frame_idx, significance in zip(*arrived, strict=True)]
    left = [buffer.push(record, now) for record in records]
    assert len(buffer) <= buffer.capacity
    gone = [record.frame_idx for record in left if record is not None]
    assert sorted(gone + [record.frame_idx for record in buffer]) == sorted(arrived[0])
    return records


@given(arrived=arrivals, capacity=st.integers(0, 8), reverse=st.booleans())
def test_oldest_keeps_the_nearest(arrived: tuple[list[int], list[float]], capacity: int, reverse: bool) -> None:
    buffer = RollingBuffer(capacity, Oldest())
    now = -1 if reverse else 201
    _fill(buffer, arrived, now)
    nearest = sorted(arrived[0], reverse=not reverse)[:capacity]
    assert sorted(r.frame_idx for r in buffer) == sorted(nearest)


@given(arrived=arrivals, capacity=st.integers(0, 8))
def test_least_significant_keeps_the_most(arrived: tuple[list[int], list[float]], capacity: int) -> None:
    buffer = RollingBuffer(capacity, LeastSignificant())
    records = _fill(buffer, arrived, 201)
    best = sorted(records, key=lambda r: (r.significance, r.frame_idx))[max(0, len(records) - capacity) :]
    assert sorted(r.frame_idx for r in buffer) == sorted(r.frame_idx for r in best)


@given(arrived=arrivals, capacity=st.integers(0, 8), seed=st.integers(0, 9), order=st.randoms())
def test_random_does_not_depend_on_the_order(
    arrived: tuple[list[int], list[float]], capacity: int, seed: int, order: object
) -> None:
    shuffled = list(zip(*arrived, strict=True))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    kept = []
    for pairs in (list(zip(*arrived, strict=True)), shuffled):
        buffer = RollingBuffer(capacity, Random(seed))
        _fill(buffer, ([f for f, _ in pairs], [s for _, s in pairs]), 201)
        kept.append(sorted(r.frame_idx for r in buffer))
    assert kept[0] == kept[1]


def test_random_is_uniform() -> None:
    """Each of 40 frames stays equally often over 600 seeds: within 5 standard deviations of 5 / 40."""
    counts = dict.fromkeys(range(40), 0)
    for seed in range(600):
        buffer = RollingBuffer(5, Random(seed))
        for frame_idx in counts:
            buffer.push(FrameRecord(frame_idx, 0.0), 40)
        for record in buffer:
            counts[record.frame_idx] += 1
    spread = 5 * math.sqrt(600 * 0.125 * 0.875)
    assert all(abs(count - 75) < spread for count in counts.values())


def test_an_unknown_significance_is_not_evicted_first() -> None:
    buffer = RollingBuffer(1, LeastSignificant())
    buffer.push(FrameRecord(1, math.nan), 3)
    left = buffer.push(FrameRecord(2, 0.9), 3)
    assert left is not None
    assert left.frame_idx == 2


@pytest.mark.parametrize("name", EVICTION)
def test_discard(name: str) -> None:
    buffer = RollingBuffer(2, EVICTION[name]())
    buffer.push(FrameRecord(1, 0.5), 2)
    buffer.discard(1)
    buffer.discard(7)
    assert len(buffer) == 0
    assert 1 not in buffer
