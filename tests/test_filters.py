"""Keyframe filters: what each accepts, alone and combined."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_keyframe.filters import Always, EveryNth, MinGap, Never, Quality, Threshold, Visible, as_filter, reads
from sam2_keyframe.types import FrameRecord

numbers = st.floats(-10, 10) | st.just(math.nan)
records = st.builds(
    FrameRecord,
    frame_idx=st.integers(0, 99),
    significance=numbers,
    scores=st.fixed_dictionaries({"predicted_iou": st.floats(0, 1), "object_score": numbers, "flow": numbers}),
    gap=st.integers(0, 40),
    offset=st.integers(0, 99),
)
filters = st.sampled_from([Always(), Never(), Threshold(0.5), Threshold(1.0, of="flow"), Visible(), Quality(0.3)])


@given(record=records, a=filters, b=filters)
def test_combinations_are_boolean_algebra(record: FrameRecord, a: Visible, b: Visible) -> None:
    x, y = a.accept(record, []), b.accept(record, [])
    assert (a & b).accept(record, []) == (x and y)
    assert (a | b).accept(record, []) == (x or y)
    assert (~a).accept(record, []) == (not x)
    assert (~(a & b)).accept(record, []) == ((~a) | (~b)).accept(record, [])
    assert reads(a & ~b) == reads(a) | reads(b)


@given(record=records)
def test_what_each_accepts(record: FrameRecord) -> None:
    def above(value: float, bound: float) -> bool:
        return math.isnan(value) or value > bound

    assert Threshold(0.5).accept(record, []) == above(record.significance, 0.5)
    assert Threshold(2, of="flow").accept(record, []) == above(record.scores["flow"], 2)
    assert Visible().accept(record, []) == above(record.scores["object_score"], 0)
    assert Quality(0.7).accept(record, []) == (record.scores["predicted_iou"] > 0.7)
    assert EveryNth(7).accept(record, []) == (record.offset in range(0, 100, 7))
    assert MinGap(12).accept(record, []) == (record.gap in range(12, 100))


def test_a_number_is_a_threshold() -> None:
    assert as_filter(0.25) == Threshold(0.25)
    assert as_filter(math.inf) == Never()
    assert as_filter(Visible()) == Visible()


def test_a_score_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="score 'ssim', which frame 4 does not have; it has area"):
        Threshold(0.1, of="ssim").accept(FrameRecord(4, 0.0, {"area": 0.1}), [])


@pytest.mark.parametrize(("kind", "value"), [(Quality, 1.5), (EveryNth, 0), (MinGap, True), (EveryNth, 2.5)])
def test_bad_numbers(kind: type, value: object) -> None:
    with pytest.raises(ValueError, match=r"must be a whole number|lies in"):
        kind(value)


@pytest.mark.parametrize("rule", [Visible() & ~Quality(0.3) | EveryNth(2), Threshold(0.1, of="flow"), MinGap(3)])
def test_repr_rebuilds(rule: object) -> None:
    import sam2_keyframe.filters as names

    assert eval(repr(rule), vars(names)) == rule
