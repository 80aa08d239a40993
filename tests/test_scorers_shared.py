"""What one object's scorer computed of a frame, the next object's does not compute again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tracked import Count, frame, history

from sam2_keyframe import scorers as sk
from sam2_keyframe.types import History

MOST = [  # a histogram's distance and the mean of a flow are small and come again
    (sk.FrameDifference(), 3),
    (sk.FrameDifference(colour=True), 3),
    (sk.Histogram(), 14),
    (sk.OpticalFlow(), 7),
    (sk.SSIM(), 3),
    (sk.EdgeChangeRatio(), 0),
    (sk.EdgeChangeRatio(compensate=True), 0),
    (sk.FrameDifference(region="object"), 12),
    (sk.Histogram(region="object"), 24),
    (sk.Histogram("luminance", region="object"), 24),
    (sk.SSIM(region="object"), 12),
]


@pytest.mark.parametrize(("scorer", "most"), MOST, ids=repr)
def test_a_second_object_costs_only_what_is_its_own(scorer: Any, most: int) -> None:
    before, now = frame(0, 256), frame(1, 256, 1)
    counts, scores = [], []
    for _ in range(2):
        old = dataclasses.replace(before, kept={}, scratch={}, measured={})
        new = dataclasses.replace(now, kept={}, scratch={}, measured={})
        scorer.score(old, History())
        past = history(old)
        with Count() as count:
            scores.append(scorer.score(new, past))
        counts.append(count.total)
    assert torch.equal(*scores)
    assert counts[1] <= most < counts[0]


def test_settings_do_not_share_each_others_results() -> None:
    """Every setting on one frame, after all the others, has the number it has alone."""
    scorers = [
        *(sk.FrameDifference(colour, floor) for colour in (False, True) for floor in (0, 0.02)),
        *(sk.Histogram(space, bins=bins) for space in ("hsv", "rgb") for bins in (8, 16)),
        *(
            sk.EdgeChangeRatio(threshold, radius, compensate)
            for threshold in (20, 40)
            for radius in (1, 2)
            for compensate in (False, True)
        ),
    ]
    before, now = frame(0, 256), frame(1, 256, 1)
    for scorer in scorers:
        scorer.score(before, History())
    together = [float(scorer.score(now, history(before))) for scorer in scorers]
    for scorer, score in zip(scorers, together, strict=True):
        alone = frame(0, 256), frame(1, 256, 1)
        scorer.score(alone[0], History())
        assert float(scorer.score(alone[1], history(alone[0]))) == score


@pytest.mark.parametrize(
    "build",
    [
        lambda: sk.EdgeChangeRatio(radius=2.5),  # type: ignore[arg-type]
        lambda: sk.Histogram(bins=True),
        lambda: sk.Histogram(bins=(4, 4.5)),  # type: ignore[arg-type]
        lambda: sk.Histogram(bins=8.0),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_whole_number_is_refused_at_once(build: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        build()


def test_a_list_of_bins_is_as_good_as_a_tuple() -> None:
    listed = sk.Histogram(bins=[4, 8])  # type: ignore[arg-type]
    assert listed == sk.Histogram(bins=(4, 8))
    assert hash(listed) == hash(sk.Histogram(bins=(4, 8)))
