"""The rolling buffer keeps exactly what its rule says, whatever the order of arrival."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memories import scored

import sam2_keyframe.rules.eviction as buffer_module
from sam2_keyframe.rules import similarity as relations
from sam2_keyframe.rules.eviction import (
    EVICTION,
    LeastSignificant,
    LeastUsed,
    MostRedundant,
    MostSimilar,
    Oldest,
    Random,
    RelevanceFreshness,
    RollingBuffer,
)
from sam2_keyframe.types import FrameRecord

arrivals = st.lists(st.integers(0, 200), unique=True, max_size=30).flatmap(
    lambda frames: st.tuples(st.just(frames), st.lists(st.floats(0, 1), min_size=len(frames), max_size=len(frames)))
)


def _fill(buffer: RollingBuffer, arrived: tuple[list[int], list[float]], now: int) -> list[FrameRecord]:
    records = [scored(frame_idx, significance) for frame_idx, significance in zip(*arrived, strict=True)]
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
    best = sorted(records, key=lambda r: (r.scores["mask_iou"], r.frame_idx))[max(0, len(records) - capacity) :]
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
            buffer.push(scored(frame_idx, 0.0), 40)
        for record in buffer:
            counts[record.frame_idx] += 1
    spread = 5 * math.sqrt(600 * 0.125 * 0.875)
    assert all(abs(count - 75) < spread for count in counts.values())


def test_an_unknown_significance_is_not_evicted_first() -> None:
    buffer = RollingBuffer(1, LeastSignificant())
    buffer.push(scored(1, math.nan), 3)
    left = buffer.push(scored(2, 0.9), 3)
    assert left is not None
    assert left.frame_idx == 2


@given(
    arrived=arrivals,
    capacity=st.integers(0, 8),
    half_life=st.floats(1, 100),
    reverse=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_fading_significance_does_not_depend_on_the_order(
    arrived: tuple[list[int], list[float]], capacity: int, half_life: float, reverse: bool, order: random.Random
) -> None:
    now = -1 if reverse else 201
    pairs = list(zip(*arrived, strict=True))
    order.shuffle(pairs)
    buffer = RollingBuffer(capacity, LeastSignificant(half_life=half_life))
    _fill(buffer, ([f for f, _ in pairs], [s for _, s in pairs]), now)
    ranked = sorted(pairs, key=lambda p: (p[1] * 0.5 ** (abs(now - p[0]) / half_life), -abs(now - p[0])), reverse=True)
    assert sorted(record.frame_idx for record in buffer) == sorted(f for f, _ in ranked[:capacity])


def test_fading_by_hand() -> None:
    """With a half-life of 10 frames, 0.8 forty frames ago is worth 0.05 and loses against 0.1 seven frames ago."""
    held = [scored(60, 0.8), scored(93, 0.1)]
    assert LeastSignificant(half_life=10).victim(held, 100).frame_idx == 60
    assert LeastSignificant().victim(held, 100).frame_idx == 93
    assert LeastSignificant(half_life=10).victim([scored(20, math.nan), *held], 100).frame_idx == 60


# -- rules that compare the memories -----------------------------------------------------------------------------------


def _numbers(seed: int, frames: list[int]) -> list[FrameRecord]:
    """Return records that were each compared with all before; few distinct values, so that there are ties."""
    draw = random.Random(seed)
    return [
        scored(
            idx,
            0.0,
            similarity={before: draw.choice([0.2, 0.5, 0.7, 0.9, math.nan]) for before in frames[:i]},
            offset=idx,
        )
        for i, idx in enumerate(frames)
    ]


def _alike(a: FrameRecord, b: FrameRecord) -> float:
    value = {**a.similarity, **b.similarity}.get(a.frame_idx if a.frame_idx in b.similarity else b.frame_idx, math.nan)
    return -1.0 if math.isnan(value) else value


def _most_similar(held: list[FrameRecord], now: int) -> int:
    *others, newcomer = held
    ranked = [(-_alike(newcomer, other), -abs(now - other.frame_idx), other.frame_idx) for other in others]
    return min(ranked, default=(0, 0, newcomer.frame_idx))[2]


def _most_redundant(held: list[FrameRecord], now: int) -> int:
    def rest(record: FrameRecord) -> list[float]:
        return sorted((_alike(record, other) for other in held if other is not record), reverse=True)

    if len(held) == 1:
        return held[0].frame_idx
    closest = max(_alike(a, b) for a, b in itertools.combinations(held, 2))
    pairs = [pair for pair in itertools.combinations(held, 2) if _alike(*pair) == closest]
    among = {record.frame_idx: record for pair in pairs for record in pair}.values()
    best = max(rest(record) for record in among)
    return max((r for r in among if rest(r) == best), key=lambda r: abs(now - r.frame_idx)).frame_idx


def _upper_bound(held: list[FrameRecord], now: int) -> int:
    total = max(1, sum(r.survived for r in held) + max(r.offset for r in held))
    worst, leaves = math.inf, max(held[:-1] or held, key=lambda r: abs(now - r.frame_idx))
    for record in sorted(held[:-1], key=lambda r: -abs(now - r.frame_idx)):
        bound = record.relevance + 1.5 * (math.log(total) / (record.survived + 8)) ** 0.5
        if bound < worst:
            worst, leaves = bound, record
    return leaves.frame_idx


def _least_used(held: list[FrameRecord], now: int) -> int:
    told = [r for r in held if not math.isnan(r.relevance)] or held
    rates = {r.frame_idx: (r.usage / abs(now - r.frame_idx), -abs(now - r.frame_idx)) for r in told}
    return min(rates, key=rates.__getitem__)


NAIVE = {
    "MostSimilar": _most_similar,
    "MostRedundant": _most_redundant,
    "RelevanceFreshness": _upper_bound,
    "LeastUsed": _least_used,
}


@pytest.mark.parametrize("name", NAIVE)
@given(
    frames=st.lists(st.integers(0, 60), unique=True, max_size=16),
    capacity=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_against_a_naive_reference(name: str, frames: list[int], capacity: int, seed: int) -> None:
    """Step by step, in any order of arrival and with frames tracked in between, both keep the same."""
    draw, buffer, naive, now = random.Random(seed), RollingBuffer(capacity, EVICTION[name]()), {}, 61
    for record in _numbers(seed, frames):
        left = buffer.push(record, now)
        naive[record.frame_idx] = record
        if len(naive) > capacity:
            gone = NAIVE[name](list(naive.values()), now)
            assert left == naive.pop(gone)
            naive = {idx: replace(r, survived=r.survived + 1) for idx, r in naive.items()}
        else:
            assert left is None
        shares = {idx: draw.choice([0.25, 0.5, 1.0]) for idx in naive if draw.random() < 0.8}
        buffer.used({**shares, 999: 0.5})
        for idx, share in shares.items():
            was = naive[idx]
            relevance = share if math.isnan(was.relevance) else 0.2 * was.relevance + 0.8 * share
            naive[idx] = replace(was, usage=was.usage + share, relevance=relevance)
        now += 1
        assert [r.frame_idx for r in buffer] == list(naive)
        for kept in buffer:
            assert (kept.survived, kept.usage) == (naive[kept.frame_idx].survived, naive[kept.frame_idx].usage)


@given(frames=st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=8), seed=st.integers(0, 999))
def test_what_is_held_decides_not_its_order(frames: list[int], seed: int) -> None:
    """`MostRedundant` and `LeastUsed` look at the newcomer as at any other."""
    draw = random.Random(seed)
    held = [replace(r, usage=draw.random(), relevance=0.5) for r in _numbers(seed, frames)]
    shuffled = draw.sample(held, len(held))
    for rule in (MostRedundant(), LeastUsed()):
        assert rule.victim(held, 61) == rule.victim(shuffled, 61)


def test_redundancy_by_hand() -> None:
    """Frames 1 and 2 are most alike; 2 is also like 3, so 1, 3 and 4 describe the past better than 2, 3 and 4."""
    held = [
        scored(1, 0.0),
        scored(2, 0.0, similarity={1: 0.9}),
        scored(3, 0.0, similarity={1: 0.1, 2: 0.6}),
        scored(4, 0.0, similarity={1: 0.3, 2: 0.2, 3: 0.4}),
    ]
    assert MostRedundant().victim(held, 5).frame_idx == 2
    assert MostSimilar().victim(held, 5).frame_idx == 3
    level = [replace(record, similarity=dict.fromkeys(record.similarity, 0.5)) for record in held]
    assert MostRedundant().victim(level, 5).frame_idx == 1
    assert MostRedundant().victim(level, 0).frame_idx == 4
    assert MostSimilar().victim(level, 5).frame_idx == 1


def test_a_duplicate_newcomer_leaves_only_when_it_is_the_redundant_one() -> None:
    held = [scored(1, 0.0), scored(2, 0.0, similarity={1: 0.2})]
    copy = scored(3, 0.0, similarity={1: 0.1, 2: 1.0})
    assert MostRedundant().victim([*held, copy], 4).frame_idx == 2  # like 1 too
    assert MostRedundant().victim([*held, replace(copy, similarity={1: 0.6, 2: 1.0})], 4).frame_idx == 3


def test_freshness_by_hand() -> None:
    """Sum T = 9 + 1 + 40 = 50: 0.10 + 1.5 sqrt(3.912 / 17) = 0.820 beats 0.05 + 1.5 sqrt(3.912 / 9) = 1.039."""
    held = [
        scored(5, 0.0, relevance=0.10, survived=9, offset=5),
        scored(20, 0.0, relevance=0.05, survived=1, offset=20),
        scored(40, 0.0, relevance=0.0, survived=0, offset=40),
    ]
    assert RelevanceFreshness().victim(held, 41).frame_idx == 5
    assert RelevanceFreshness(c=0).victim(held, 41).frame_idx == 20
    assert RelevanceFreshness(c=0).victim([replace(held[0], relevance=math.nan), *held[1:]], 41).frame_idx == 20
    assert RelevanceFreshness().victim(held[2:], 41).frame_idx == 40


def test_usage_by_hand() -> None:
    """12 over 40 frames is 0.3 a frame, 2 over 5 frames 0.4; a frame that nothing was compared with yet stays."""
    held = [
        scored(60, 0.0, usage=12.0, relevance=0.9),
        scored(95, 0.0, usage=2.0, relevance=0.1),
        scored(99, 0.0),
    ]
    assert LeastUsed().victim(held, 100).frame_idx == 60
    assert LeastUsed().victim(held[1:], 100).frame_idx == 95
    assert LeastUsed().victim(held[2:], 100).frame_idx == 99


def test_a_frame_that_comes_again_is_the_newcomer() -> None:
    buffer = RollingBuffer(2, MostSimilar())
    for record in (scored(1, 0.0), scored(2, 0.0, similarity={1: 0.5}), scored(1, 0.7)):
        assert buffer.push(record, 9) is None
    assert [(r.frame_idx, r.scores["mask_iou"]) for r in buffer] == [(2, 0.0), (1, 0.7)]


def test_an_unknown_share_tells_nothing() -> None:
    buffer = RollingBuffer(2, LeastUsed())
    buffer.push(scored(1, 0.0), 2)
    buffer.used({1: math.nan})
    (record,) = buffer
    assert record.usage == 0
    assert math.isnan(record.relevance)


@pytest.mark.parametrize(
    ("rule", "wrong", "error"),
    [
        *[(LeastSignificant, {"half_life": 0}, ValueError), (LeastSignificant, {"half_life": math.nan}, ValueError)],
        *[(RelevanceFreshness, {"c": -1}, ValueError), (RelevanceFreshness, {"offset": 0}, ValueError)],
        *[(MostRedundant, {"relation": "cosine"}, TypeError), (LeastUsed, {"relation": Oldest()}, TypeError)],
    ],
)
def test_bad_choices(rule: type, wrong: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{rule.__name__}\(.*{next(iter(wrong))}="):
        rule(**wrong)


@pytest.mark.parametrize("name", EVICTION)
def test_every_rule(name: str) -> None:
    """Made without arguments, rebuilt by its repr, content with records that say nothing, and with no room."""
    rule = EVICTION[name]()
    assert eval(repr(rule), {**vars(buffer_module), **vars(relations)}) == rule
    buffer = RollingBuffer(3, rule)
    for frame_idx in range(10):
        buffer.push(scored(frame_idx, math.nan), 10)
    assert len(buffer) == 3
    newcomer = scored(1, 0.0)
    assert RollingBuffer(0, rule).push(newcomer, 2) == newcomer


@pytest.mark.parametrize("name", EVICTION)
def test_discard(name: str) -> None:
    buffer = RollingBuffer(2, EVICTION[name]())
    buffer.push(scored(1, 0.5), 2)
    buffer.discard(1)
    buffer.discard(7)
    assert len(buffer) == 0
    assert 1 not in buffer
