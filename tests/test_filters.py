"""Keyframe filters that look at one record: what each accepts, alone and combined."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sam2_keyframe.rules.filters as filters_module
from sam2_keyframe.rules.filters import (
    FILTERS,
    Adaptive,
    Always,
    And,
    EffectiveScore,
    EveryNth,
    Frames,
    Grid,
    MaxGap,
    MinGap,
    Never,
    Quality,
    Threshold,
    Visible,
    as_filter,
    reads,
)
from sam2_keyframe.types import FrameRecord, KeyframeFilter

numbers = st.floats(-10, 10) | st.just(math.nan)
records = st.builds(
    FrameRecord,
    frame_idx=st.integers(0, 99),
    significance=numbers,
    scores=st.fixed_dictionaries({"predicted_iou": st.floats(0, 1), "object_score": numbers, "flow": numbers}),
    gap=st.integers(0, 40),
    offset=st.integers(0, 99),
    since=st.integers(0, 40) | st.just(math.inf),
)
filters = st.sampled_from([Always(), Never(), Threshold(0.5), Threshold(1.0, of="flow"), Visible(), Quality(0.3)])


@given(record=records, a=filters, b=filters)
def test_combinations_are_boolean_algebra(record: FrameRecord, a: Visible, b: Visible) -> None:
    x, y = a.accept(record, []), b.accept(record, [])
    assert (a & b).accept(record, []) == (x and y)
    assert (a | b).accept(record, []) == (x or y)
    assert (~a).accept(record, []) == (not x)
    assert (~(a & b)).accept(record, []) == ((~a) | (~b)).accept(record, [])
    assert reads(a & ~b) == reads(a) | reads(b) == reads(a | b)
    assert (a & b) != (a | b)


@given(record=records)
def test_what_each_accepts(record: FrameRecord) -> None:
    def above(value: float, bound: float) -> bool:
        return math.isnan(value) or value > bound

    assert Threshold(0.5).accept(record, []) == above(record.significance, 0.5)
    assert Threshold(2, of="flow").accept(record, []) == above(record.scores["flow"], 2)
    assert Visible().accept(record, []) == above(record.scores["object_score"], 0)
    assert Quality(0.7).accept(record, []) == (record.scores["predicted_iou"] > 0.7)
    assert EveryNth(7).accept(record, []) == (record.offset in range(0, 100, 7))
    assert Grid(7).accept(record, []) == (record.frame_idx in range(0, 100, 7))
    assert Frames([50, 3, 3]).accept(record, []) == (record.frame_idx in {3, 50})  # type: ignore[arg-type]
    assert MinGap(12).accept(record, []) == (record.gap in range(12, 100))
    assert MinGap(12, prompts=False).accept(record, []) == (record.since == math.inf or record.since in range(12, 100))
    assert MaxGap(12).accept(record, []) == (record.gap in range(12, 100))


@given(record=records)
def test_the_effective_score(record: FrameRecord) -> None:
    logit, iou = record.scores["object_score"], record.scores["predicted_iou"]
    effective = max(0.0, 2 / (1 + math.exp(-logit)) - 1) * iou
    if not math.isclose(effective, 0.25):
        assert EffectiveScore(0.25).accept(record, []) == (math.isnan(logit) or effective > 0.25)


def test_effective_scores_by_hand() -> None:
    """2 sigmoid(ln 3) - 1 = 2 * 3/4 - 1 = 1/2, so with a predicted IoU of 0.8 the effective score is 0.4."""
    record = FrameRecord(1, 0.0, {"object_score": math.log(3), "predicted_iou": 0.8})
    assert EffectiveScore(0.39).accept(record, [])
    assert not EffectiveScore(0.41).accept(record, [])
    hidden = FrameRecord(1, 0.0, {"object_score": -1000.0, "predicted_iou": 1.0})
    assert not EffectiveScore(0.0).accept(hidden, [])


def test_a_static_scene_still_has_keyframes() -> None:
    """Nothing changes for 200 frames: `MaxGap` alone makes keyframes, exactly 60 frames apart."""
    rule, past, kept, last = Adaptive() | MaxGap(60), [], [], 0
    for frame_idx in range(1, 201):
        record = FrameRecord(frame_idx, 0.01, gap=frame_idx - last)
        if rule.accept(record, past):
            kept.append(frame_idx)
            last = frame_idx
        past.append(record)
    assert kept == [60, 120, 180]


def test_a_number_is_a_threshold() -> None:
    assert as_filter(0.25) == Threshold(0.25)
    assert as_filter(math.inf) == Never()
    assert as_filter(Visible()) == Visible()


@pytest.mark.parametrize("above", ["x", None, True, math.nan])
def test_a_bound_is_a_number(above: Any) -> None:
    with pytest.raises(ValueError, match=r"Threshold\(above="):
        Threshold(above)


def test_a_score_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="score 'ssim', which frame 4 does not have; it has area"):
        Threshold(0.1, of="ssim").accept(FrameRecord(4, 0.0, {"area": 0.1}), [])


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *[(Quality, 1.5), (Quality, math.nan), (EffectiveScore, -0.1), (EveryNth, 0), (EveryNth, 2.5)],
        *[(MinGap, True), (MaxGap, 0), (Grid, -1), (Frames, (2, -1)), (Frames, (2.5,))],
    ],
)
def test_bad_numbers(kind: type, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(.*must be a (whole|finite) number"):
        kind(value)


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_has_a_default_and_reads_what_it_says(name: str) -> None:
    """Each is made without arguments but `Threshold`, and is content with records of the scores that it reads."""
    rule = FILTERS[name](0.5) if name == "Threshold" else FILTERS[name]()
    assert isinstance(rule, KeyframeFilter)
    past = [FrameRecord(i, i / 10, dict.fromkeys(rule.reads, i / 10), gap=i, since=i) for i in range(20)]
    assert rule.accept(past[-1], past[:-1]) in (True, False)
    assert rule.accept(past[0], []) in (True, False)
    assert eval(repr(rule), vars(filters_module)) == rule


@pytest.mark.parametrize(
    "rule",
    [Visible() & ~Quality(0.3) | EveryNth(2), Threshold(0.1, of="flow"), MinGap(3, False), Frames((9, 2)), And(
        Grid(2), MaxGap(4)
    )],
)  # fmt: skip
def test_repr_rebuilds(rule: object) -> None:
    assert eval(repr(rule), vars(filters_module)) == rule
