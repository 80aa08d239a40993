"""Keyframe filters that look at one record: what each accepts, alone and combined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memories import scored

import sam2_keyframe as sk
from sam2_keyframe.conditions import And, Not, ask, looks, scorers_of
from sam2_keyframe.rules.filters import (
    RULES,
    Always,
    EffectiveScore,
    EveryNth,
    Frames,
    MaxGap,
    MinGap,
    Visible,
)
from sam2_keyframe.scorers import MaskIoU, OpticalFlow, PredictedIoU
from sam2_keyframe.types import FrameRecord, KeyframeFilter

numbers = st.floats(-10, 10) | st.just(math.nan)
records = st.builds(
    FrameRecord,
    frame_idx=st.integers(0, 99),
    scores=st.fixed_dictionaries(
        {"predicted_iou": st.floats(0, 1), "object_score": numbers, "optical_flow": numbers, "mask_iou": numbers}
    ),
    gap=st.integers(0, 40),
    offset=st.integers(0, 99),
    since=st.integers(0, 40) | st.just(math.inf),
)
filters = st.sampled_from(
    [Always(), ~Always(), MaskIoU() > 0.5, OpticalFlow() < 1.0, Visible(), PredictedIoU() > 0.3, MinGap(9)]
)


@given(record=records, a=filters, b=filters)
def test_combinations_are_boolean_algebra(record: FrameRecord, a: Visible, b: Visible) -> None:
    x, y = a.accept(record, []), b.accept(record, [])
    assert (a & b).accept(record, []) == (x and y)
    assert (a | b).accept(record, []) == (x or y)
    assert (~a).accept(record, []) == (not x)
    assert (~(a & b)).accept(record, []) == ((~a) | (~b)).accept(record, [])
    assert {*scorers_of(a & ~b)} == {*scorers_of(a), *scorers_of(b)} == {*scorers_of(a | b)}
    assert looks(a & ~b) == (looks(a) or looks(b)) == looks(a | b)
    assert (a & b) != (a | b)


@given(record=records)
def test_what_each_accepts(record: FrameRecord) -> None:
    def above(value: float, bound: float) -> bool:
        return math.isnan(value) or value > bound

    assert (MaskIoU() > 0.5).accept(record, []) == above(record.scores["mask_iou"], 0.5)
    assert (OpticalFlow() > 2).accept(record, []) == above(record.scores["optical_flow"], 2)
    assert (OpticalFlow() < 2).accept(record, []) == above(-record.scores["optical_flow"], -2)
    assert Visible().accept(record, []) == above(record.scores["object_score"], 0)
    assert (PredictedIoU() > 0.7).accept(record, []) == (record.scores["predicted_iou"] > 0.7)
    assert EveryNth(7).accept(record, []) == (record.offset in range(0, 100, 7))
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
    record = FrameRecord(1, {"object_score": math.log(3), "predicted_iou": 0.8})
    assert EffectiveScore(0.39).accept(record, [])
    assert not EffectiveScore(0.41).accept(record, [])
    hidden = FrameRecord(1, {"object_score": -1000.0, "predicted_iou": 1.0})
    assert not EffectiveScore(0.0).accept(hidden, [])


def test_a_static_scene_still_has_keyframes() -> None:
    """Nothing changes for 200 frames: `MaxGap` alone makes keyframes, exactly 60 frames apart."""
    rule, past, kept, last = sk.Adaptive() | MaxGap(60), [], [], 0
    for frame_idx in range(1, 201):
        record = scored(frame_idx, 0.01, gap=frame_idx - last)
        if rule.accept(record, past):
            kept.append(frame_idx)
            last = frame_idx
        past.append(record)
    assert kept == [60, 120, 180]


@pytest.mark.parametrize("bound", ["x", None, True, math.nan, math.inf])
def test_a_bound_is_a_number(bound: Any) -> None:
    with pytest.raises(ValueError, match=r"MaskIoU\(\) > .*finite number"):
        MaskIoU().__gt__(bound)


@dataclass(frozen=True)
class Reading:
    """A rule of one's own; `answer` is what it says, or the name of a score that it reads."""

    answer: Any

    def accept(self, record: FrameRecord, past: Any) -> Any:
        return record.scores[self.answer] > 0 if isinstance(self.answer, str) else self.answer


def test_what_an_own_rule_says_wrongly_is_named() -> None:
    record = scored(4, 0.5)
    assert ask(Reading(np.True_), record, []) is True
    for rule in (Reading(None), Visible() & Reading(None), Not(Reading(1.0)), Reading(None) | Visible()):
        with pytest.raises(TypeError, match=r"Reading.accept\(\) returned (None|1.0): it must return True or False"):
            ask(rule, scored(4, 0.5, {"object_score": 1.0}), [])
    with pytest.raises(ValueError, match=r"Reading\(answer='brightness'\) reads the score 'brightness', which nothing"):
        ask(Visible() | Reading("brightness"), scored(4, 0.5, {"object_score": -1.0}), [])


@pytest.mark.parametrize(
    ("slip", "says"),
    {
        "no parentheses": (lambda: sk.Visible() & sk.MaskIoU() > 0.5, r"score, not a rule.*Visible\(\) & \(MaskIoU"),
        "none on the left": (lambda: sk.MaskIoU() > 0.5 & sk.Visible(), r"0.5 is no rule.*parentheses"),
        "chained": (lambda: 0.2 < sk.SSIM() < 0.5, r"neither true nor false.*\(S > 0.2\) & \(S < 0.5\)"),
        "and": (lambda: sk.Visible() and sk.MaxGap(3), "combine rules with & and |"),
        "a class compared": (lambda: sk.MaskIoU > 0.5, r"MaskIoU is a class: write MaskIoU\(\) > 0.5"),
        "a class combined": (lambda: sk.Visible() & sk.MaxGap, "MaxGap is a class"),
        "a class on the left": (lambda: sk.Visible | sk.MaxGap(3), "Visible is a class"),
        "a scorer as a rule": (lambda: sk.Keyframes(2, sk.MaskIoU()), r"Keyframes: MaskIoU\(\) is a score"),
        "a class as a rule": (lambda: sk.Keyframes(2, sk.Visible), "Visible is a class"),
        "a number as a rule": (lambda: sk.Others(2, 0.5), "Others: 0.5 is no rule"),
        "a score inverted": (lambda: ~sk.MaskIoU(), "score, not a rule"),
        "at least": (lambda: sk.MaskIoU() >= 0.5, r"write MaskIoU\(\) > 0.5"),
        "a shelf's class": (lambda: sk.KeyframeMemory(sk.Recent), r"write Recent\("),
        "a rule as a shelf": (lambda: sk.KeyframeMemory(sk.Visible()), "give shelves"),
        "a scorer's class": (lambda: sk.Adaptive(sk.MaskIoU), r"write MaskIoU\(\)"),
        "measured by a class": (lambda: sk.KeyframeMemory(measure=(sk.SSIM,)), r"write SSIM\(\)"),
        "one scorer": (lambda: sk.KeyframeMemory(measure=sk.SSIM()), "tuple of scorers"),
    }.values(),
)  # fmt: skip
def test_slips_get_a_sentence(slip: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        slip()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *[(EffectiveScore, math.nan), (EffectiveScore, -0.1), (EveryNth, 0), (EveryNth, 2.5)],
        *[(MinGap, True), (MaxGap, 0), (Frames, (2, -1)), (Frames, (2.5,))],
    ],
)
def test_bad_numbers(kind: type, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(.*must be a (whole|finite) number"):
        kind(value)


@pytest.mark.parametrize("name", [name for name in RULES if name != "Threshold"])
def test_every_rule_is_content_with_what_it_reads(name: str) -> None:
    rule = RULES[name](5) if name in ("EveryNth", "MinGap", "MaxGap") else RULES[name]()
    assert isinstance(rule, KeyframeFilter)
    read = ("object_score", "predicted_iou", "area", *(scorer.name for scorer in scorers_of(rule)))
    past = [FrameRecord(i, dict.fromkeys(read, i / 10), gap=i, since=i) for i in range(20)]
    assert rule.accept(past[-1], past[:-1]) in (True, False)
    assert rule.accept(past[0], []) in (True, False)
    assert looks(rule) or rule.accept(FrameRecord(3), []) in (True, False)
    assert eval(repr(rule), vars(sk)) == rule


@pytest.mark.parametrize(
    "rule",
    [
        Visible() & ~(PredictedIoU() > 0.3) | EveryNth(2), OpticalFlow() < 0.1, MinGap(3, False), Frames((9, 2)),
        And(EveryNth(2), MaxGap(4)), Visible() & (EveryNth(3) & MaxGap(2)), (Visible() | MaxGap(2)) & ~Visible(1.0),
        ~(Visible() & (MaskIoU("previous") > -1)), sk.Adaptive(OpticalFlow(), k=1.0),
        Visible() | (Visible() | MaxGap(9)),
    ],
    ids=repr,
)  # fmt: skip
def test_repr_rebuilds(rule: object) -> None:
    assert eval(repr(rule), vars(sk)) == rule


def test_slips_of_own_scorers_and_rules_are_sentences() -> None:
    class NoDataclass(sk.Comparable):
        def score(self, frame: Any, history: Any) -> Any: ...

    with pytest.raises(TypeError, match=r"is no scorer \(NoDataclass has no name\)"):
        _ = NoDataclass() > 0.1

    @dataclass(frozen=True)
    class Between(sk.Combinable):
        scorer: Any

        def accept(self, record: Any, past: Any) -> bool:
            return bool(record.scores[self.scorer.name] > 0)

    with pytest.raises(TypeError, match=r"MaskIoU is a class; write MaskIoU\(\)"):
        sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, Between(sk.MaskIoU)))  # type: ignore[arg-type]
