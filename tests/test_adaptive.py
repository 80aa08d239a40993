"""Filters that look at past frames: what they promise, and what they do frame by frame."""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from memories import scored

from sam2_keyframe.rules.adaptive import (
    Adaptive,
    MotionScaled,
    Quantile,
    SceneBoundary,
    StableArea,
)
from sam2_keyframe.rules.filters import MaxGap, Visible
from sam2_keyframe.scorers import OpticalFlow, PredictedIoU
from sam2_keyframe.types import FrameRecord, KeyframeFilter

values = st.lists(
    st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([0.0, 0.1, 1.0]), min_size=3, max_size=40
)


def _past(scores: Sequence[float]) -> list[FrameRecord]:
    return [scored(i, score) for i, score in enumerate(scores)]


def _accepted_when_left_out(rule: KeyframeFilter, scores: Sequence[float]) -> int:
    """Return how many of the values are accepted, each compared with all the others."""
    records = _past(scores)
    return sum(rule.accept(record, records[:i] + records[i + 1 :]) for i, record in enumerate(records))


# -- what is promised --------------------------------------------------------------------------------------------------


@given(scores=values, k=st.floats(0, 4))
@example(scores=[0.0] * 9 + [1.0], k=1.0)
@example(scores=[0.1] * 30, k=0.0)
@example(scores=[0.0, 0.0, -5.5e-201], k=2.0)  # the squares of such distances are 0
@example(scores=[0.0, 0.0, -1e200], k=2.0)  # and those of such ones too large to be numbers
def test_adaptive_keeps_its_promise(scores: list[float], k: float) -> None:
    n = len(scores) - 1
    kept = _accepted_when_left_out(Adaptive(k=k, last=max(n, 2), warmup=2), scores)
    assert kept <= 1 + n / (1 + k * k) + 1e-9


@pytest.mark.parametrize(("low", "high", "k"), [(15, 16, 0.999), (4, 1, 1.99), (24, 7, 1.999)])
def test_the_promise_of_adaptive_cannot_be_sharper(low: int, high: int, k: float) -> None:
    """Two levels, and k just below what divides them: as many are accepted as the promise allows."""
    scores = [0.0] * low + [1.0] * high
    n = len(scores) - 1
    kept = _accepted_when_left_out(Adaptive(k=k, last=n, warmup=2), scores)
    assert kept == high == math.floor(1 + n / (1 + k * k))


@given(scores=values, q=st.floats(0.01, 0.99))
def test_quantile_keeps_its_promise(scores: list[float], q: float) -> None:
    kept = _accepted_when_left_out(Quantile(q=q, last=max(len(scores) - 1, 2), warmup=2), scores)
    assert kept <= max(1, (1 - q) * len(scores) + 1e-9)


@pytest.mark.parametrize(
    ("q", "count", "kept"), [(0.9, 11, 1), (0.9, 21, 2), (0.5, 11, 5), (0.75, 30, 7), (0.99, 9, 1)]
)
def test_quantile_uses_what_it_may(q: float, count: int, kept: int) -> None:
    """Of distinct values exactly the whole part of (1 - q)(n + 1) is accepted, and never none."""
    scores = [math.sin(i * i) for i in range(count)]
    assert _accepted_when_left_out(Quantile(q=q, last=count, warmup=2), scores) == kept


RULES = [
    (Adaptive(k=0.5), 1 / 31 + 30 / 31 / 1.25),
    (Adaptive(k=1.0), 16 / 31),
    (Adaptive(k=2.0), 7 / 31),
    (Quantile(q=0.9), 0.1),
    (Quantile(q=0.7, last=30), 0.3),
]


@pytest.mark.parametrize(("rule", "promised"), RULES)
@pytest.mark.parametrize("shape", ["uniform", "normal", "heavy", "two levels"])
def test_the_share_kept_in_random_order(rule: Adaptive | Quantile, promised: float, shape: str) -> None:
    """Over 2,000 independent values, after the window is full, at most what is promised on average."""
    draw = random.Random(0)
    make = {
        "uniform": draw.random,
        "normal": lambda: draw.gauss(0, 1),
        "heavy": lambda: draw.paretovariate(1),
        "two levels": lambda: float(draw.random() < 0.3),
    }[shape]
    past, kept = deque[FrameRecord](maxlen=300), 0
    for frame_idx in range(rule.last + 2000):
        record = scored(frame_idx, make())
        kept += frame_idx >= rule.last and rule.accept(record, past)
        past.append(record)
    assert kept / 2000 <= promised + 0.02  # three standard deviations of a share of 0.1 are 0.02
    assert kept or shape == "two levels"


@given(score=st.floats(-1e3, 1e3), count=st.integers(10, 60))
@pytest.mark.parametrize("rule", [Adaptive(k=0), Adaptive(), Quantile(q=0.01), Quantile()])
def test_a_score_that_stays_the_same_is_never_kept(rule: KeyframeFilter, score: float, count: int) -> None:
    assert not rule.accept(scored(count, score), _past([score] * count))


@pytest.mark.parametrize("rule", [Adaptive(), Quantile()])
def test_a_score_that_keeps_rising_is_kept(rule: KeyframeFilter) -> None:
    records = _past([0.01 * i for i in range(60)])
    assert all(rule.accept(records[i], records[:i]) for i in range(31, 60))


# -- what they compute -------------------------------------------------------------------------------------------------


@given(past=st.lists(st.floats(0, 1) | st.just(math.nan), max_size=60), score=st.floats(0, 1) | st.just(math.nan))
def test_against_statistics(past: list[float], score: float) -> None:
    record, records = scored(60, score), _past(past)
    window = [value for value in past[-20:] if not math.isnan(value)]
    adaptive = Adaptive(k=1.5, last=20, warmup=5, fixed=0.4)
    quantile = Quantile(q=0.75, last=20, warmup=5, fixed=0.4)
    if math.isnan(score) or len(window) < 5:
        assert adaptive.accept(record, records) == quantile.accept(record, records) == (not score <= 0.4)
        return
    bound = statistics.fmean(window) + 1.5 * statistics.pstdev(window)
    if not math.isclose(score, bound, abs_tol=1e-9):
        assert adaptive.accept(record, records) == (score > bound)
    cut = sorted(window)[min(math.ceil(0.75 * (len(window) + 1)), len(window)) - 1]
    assert quantile.accept(record, records) == (score > cut)


def test_they_read_their_scorer() -> None:
    past = [scored(i, 9.0, {"optical_flow": 0.1 * (i % 2)}) for i in range(20)]
    rule = Adaptive(OpticalFlow())
    assert rule.accept(scored(20, 0.0, {"optical_flow": 0.2}), past)
    assert not rule.accept(scored(20, 9.0, {"optical_flow": 0.05}), past)


# -- what they learn from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [Adaptive(), Quantile(q=0.85), Visible() & (Adaptive() | MaxGap(500)), MaxGap(500) | Adaptive()], ids=repr
)
def test_an_absence_teaches_nothing(rule: KeyframeFilter) -> None:
    """Every change is the largest possible while the object is hidden; afterwards keyframes come as before."""
    past, kept = deque[FrameRecord](maxlen=300), []
    for i in range(200):
        hidden = 40 <= i < 80
        change = 1.0 if hidden else 0.4 if i % 10 == 0 else 0.1
        frame = scored(i, change, {"object_score": -5.0 if hidden else 5.0}, gap=1)
        if rule.accept(frame, past) and not hidden:
            kept.append(i)
        past.append(frame)
    assert [i for i in kept if i >= 40] == list(range(80, 200, 10))


def test_what_stands_to_the_left_decides_what_is_learned() -> None:
    """Badly rated frames change a lot. To the right of `&` they teach nothing, in whatever the rules are nested."""
    good = PredictedIoU() > 0.5
    frames = [
        scored(i, 0.9 if i % 2 else 0.1 + 0.01 * (i % 3), {"predicted_iou": 0.2 if i % 2 else 0.8, "object_score": 5.0})
        for i in range(40)
    ]
    frame = scored(40, 0.3, {"predicted_iou": 0.8, "object_score": 5.0})
    assert not Adaptive().accept(frame, frames)
    for rule in (good & Adaptive(), good & (Adaptive() | MaxGap(900)), Visible() & good & (MaxGap(900) | Adaptive())):
        assert rule.accept(frame, frames), rule
        past: list[FrameRecord] = []
        for each in frames:  # as they come, each verdict is kept with its frame
            rule.accept(each, past)
            past.append(each)
        assert rule.accept(replace(frame, passed={}), past), rule
    assert not (Adaptive() & good).accept(frame, frames)
    assert not (MaxGap(900) | Adaptive()).accept(frame, frames)


class _Counting(Sequence[FrameRecord]):
    """A past that counts the records looked at."""

    def __init__(self, records: Sequence[FrameRecord]) -> None:
        self.records, self.seen = records, 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> FrameRecord:  # type: ignore[override]
        self.seen += 1
        return self.records[index]


@pytest.mark.parametrize(
    ("rule", "most"),
    [(Adaptive(), 30), (Quantile(), 100), (SceneBoundary(), 6), (StableArea(), 9)],
)
def test_no_more_is_looked_at_than_needed(rule: KeyframeFilter, most: int) -> None:
    """Of 300 records; the last keyframe is 7 frames ago."""
    scores = {"histogram": 0.1, "area": 0.2}
    past = _Counting([scored(i, 0.2, scores) for i in range(300)])
    rule.accept(scored(300, 0.9, scores, gap=7, since=7), past)
    assert past.seen <= most + 1  # one to see where the past ends


# -- the others --------------------------------------------------------------------------------------------------------


def _run(rule: KeyframeFilter, frames: Sequence[FrameRecord]) -> list[int]:
    """Return the keyframes, as tracking forward from a prompt on frame 0 finds them."""
    past, kept = deque[FrameRecord](maxlen=300), []
    for frame in frames:
        last = kept[-1] if kept else None
        since = math.inf if last is None else frame.frame_idx - last
        record = replace(frame, since=since, gap=frame.frame_idx - (last or 0), offset=frame.frame_idx)
        if rule.accept(record, past):
            kept.append(frame.frame_idx)
        past.append(record)
    return kept


def test_motion_scales_the_bound_by_hand() -> None:
    """Mean motion of the last 4 frames over that of all, each with the frame itself."""

    def at(significance: float, motions: Sequence[float]) -> tuple[float, bool]:
        records = [scored(i, significance, {"optical_flow": motion}) for i, motion in enumerate(motions)]
        rule = MotionScaled(above=0.4, last=4)
        return rule.scale(records[-1], records[:-1]), rule.accept(records[-1], records[:-1])

    assert at(0.45, [1, 1, 1, 1, 1, 1]) == (1.0, True)
    assert at(0.45, [1, 1, 1, 1, 2, 2, 2, 2]) == (pytest.approx(2 / 1.5), False)  # the bound is 0.53
    assert at(0.35, [2, 2, 2, 2, 1, 1, 1, 1]) == (pytest.approx(1 / 1.5), True)  # the bound is 0.27
    assert at(0.75, [0] * 20 + [5, 5, 5, 5]) == (2.0, False)
    assert at(0.25, [5] * 20 + [0, 0, 0, 0]) == (0.5, True)
    assert at(0.45, [0, 0, 0, 0]) == (1.0, True)
    assert at(0.45, [math.nan, math.nan]) == (1.0, True)
    assert at(math.nan, [1, 1, 1, 1])[1]
    assert at(0.45, [1, math.nan, math.nan, math.nan, math.nan, 3]) == (pytest.approx(1.5), False)


@given(motions=st.lists(st.floats(0, 1e6) | st.just(math.nan), min_size=1, max_size=50))
def test_motion_scales_within_bounds(motions: list[float]) -> None:
    records = [scored(i, 0.0, {"optical_flow": motion}) for i, motion in enumerate(motions)]
    assert 0.5 <= MotionScaled(last=5).scale(records[-1], records[:-1]) <= 2.0


def test_a_scene_boundary_waits_for_the_gate() -> None:
    """Cuts at frames 4 and 8; frames 4 and 5 are not trustworthy. Nothing else is kept."""
    cuts = [0.0, 0.1, 0.0, 0.9, 0.1, 0.0, 0.0, 0.6, 0.0, 0.0]
    trust = [0.9, 0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9]
    frames = [
        scored(i + 1, 0.0, {"histogram": cut, "predicted_iou": q})
        for i, (cut, q) in enumerate(zip(cuts, trust, strict=True))
    ]
    assert _run((PredictedIoU() > 0.5) & SceneBoundary(), frames) == [6, 8]
    assert _run(SceneBoundary(), frames) == [4, 8]
    backward = [replace(frame, frame_idx=20 - frame.frame_idx) for frame in frames]
    record = replace(backward[5], gap=6)
    assert SceneBoundary().accept(record, backward[:5])
    assert not SceneBoundary().accept(replace(record, gap=2), backward[:5])


def test_a_boundary_behind_a_missing_record_does_not_count() -> None:
    """The keyframe's own record was never made, so fewer records than frames lie between."""
    past = [scored(2, 0.0, {"histogram": 0.9}), scored(6, 0.0, {"histogram": 0.0})]
    assert not SceneBoundary().accept(scored(7, 0.0, {"histogram": 0.0}, gap=4), past)


def test_stable_areas_by_hand() -> None:
    """Medians of the last three non-empty areas, the frame's own included, among the last six frames."""
    rule = StableArea(0.8, 1.2, last=3, within=6)

    def asks(*pixels: float) -> bool:
        records = [scored(i, 0.0, {"area": count / 65536}) for i, count in enumerate(pixels)]
        return rule.accept(records[-1], records[:-1])

    assert not asks(100)  # nothing earlier
    assert asks(100, 100)
    assert asks(100, 100, 120)
    assert not asks(100, 100, 121)
    assert asks(100, 100, 80)
    assert not asks(100, 100, 79)
    assert not asks(100, 100, 0)  # empty
    assert asks(500, 100, 0, 0, 100, 110)  # the empty ones do not count, nor does the fourth last
    assert asks(500, 500, 0, 0, 0, 0, 0, 100)  # too long ago to count: its own median
    assert not asks(500, 500, 0, 0, 100)
    assert asks(100, math.nan)


@given(data=st.data())
def test_unknown_is_accepted(data: st.DataObject) -> None:
    past = [
        scored(i, value, {"optical_flow": value, "area": value, "histogram": value})
        for i, value in enumerate(data.draw(st.lists(st.floats(0, 1), max_size=40)))
    ]
    unknown = scored(
        len(past), math.nan, dict.fromkeys(("optical_flow", "area", "histogram"), math.nan), gap=3, since=3
    )
    for rule in (Adaptive(), Quantile(), MotionScaled(), SceneBoundary(), StableArea()):
        assert rule.accept(unknown, past)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *[(Adaptive, {"k": -1.0}), (Adaptive, {"k": math.inf}), (Adaptive, {"last": 1, "warmup": 1})],
        *[(Adaptive, {"last": 5, "warmup": 6}), (Adaptive, {"fixed": math.nan})],
        *[(Quantile, {"q": 0.0}), (Quantile, {"q": 1.0}), (Quantile, {"q": 90}), (Quantile, {"last": 20.0})],
        *[(Adaptive, {"last": 20.0}), (MotionScaled, {"above": -0.1}), (MotionScaled, {"last": 0})],
        *[(SceneBoundary, {"above": math.nan}), (StableArea, {"low": 0.0}), (StableArea, {"low": 1.3})],
        *[(StableArea, {"last": 0}), (StableArea, {"within": True})],
    ],
)
def test_bad_numbers(kind: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(.*{next(iter(wrong))}=.*must"):
        kind(**wrong)
