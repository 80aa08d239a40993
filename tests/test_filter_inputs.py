"""What filters and scorers are given: numbers of any kind, and nothing that would be passed over in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sam2_keyframe as sk
from sam2_keyframe.rules.adaptive import Adaptive, StableArea
from sam2_keyframe.rules.filters import Frames, Visible
from sam2_keyframe.rules.similarity import ImageCosine


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adaptive(last=301),
        lambda: StableArea(within=301),
    ],
)
def test_more_frames_than_are_remembered_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"whole number from . to 300"):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    rules = (
        Adaptive(k=np.float64(0.5), last=np.int64(20)), sk.MaskIoU() > np.float32(0.5), Visible(np.float64(1.0)),
        Frames(np.array([4, 2])),
    )  # fmt: skip
    for rule in rules:
        assert eval(repr(rule), vars(sk)) == rule
    assert Frames(np.array([4, 2])).chosen == (2, 4)
    assert sk.make_method("keyframe", change=np.float32(0.5)) == sk.make_method("keyframe", change=0.5)
    assert repr(sk.MaskIoU() > np.float64(0.5)) == repr(sk.MaskIoU() > 0.5)
    given = (
        sk.Histogram(bins=np.int64(16)), sk.PCA(np.float64(0.25)), sk.PCA(np.int64(4)), sk.Prune(np.float64(0.5)),
        sk.Downsample(np.int64(4)), sk.Foveated(np.float64(0.2), np.int64(2)), sk.Pool(np.int64(4)),
        sk.SalientTokens(np.float64(0.1)),
    )  # fmt: skip
    for choice in given:
        assert "np." not in repr(choice)
        assert eval(repr(choice), vars(sk)) == choice
    assert eval(repr(sk.FrameDifference(noise_floor=np.float64(0.5))), vars(sk)).noise_floor == 0.5


def test_part_of_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"side=2.5.*whole number"):
        ImageCosine(side=2.5)  # type: ignore[arg-type]
