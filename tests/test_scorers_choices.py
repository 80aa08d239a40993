"""Which settings, parts and names of scorers are refused, and that the others go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam2_keyframe import KeyframeMemory, Keyframes
from sam2_keyframe import scorers as sk
from sam2_keyframe.app.output import Table


@pytest.mark.parametrize(
    "build",
    [
        lambda: sk.MaskIoU(reference="first"),  # type: ignore[arg-type]
        lambda: sk.SSIM(region="mask"),  # type: ignore[arg-type]
        lambda: sk.Histogram(bins=(4, 4, 4)),
        lambda: sk.Histogram("rgb", bins=64),
        lambda: sk.FrameDifference(noise_floor=-1),
        lambda: sk.OpticalFlow("percentile", 120),
        lambda: sk.OpticalFlow("relative", region="object"),
        lambda: sk.Stability(0),
        lambda: sk.Combine((sk.MaskIoU(),)),
        lambda: sk.Combine((sk.MaskIoU(), sk.MaskIoU(reference="previous"))),
        lambda: sk.Combine((sk.MaskIoU(), sk.SSIM()), weights=(1.0,)),
        lambda: sk.Combine((sk.MaskIoU(), sk.SSIM()), weights=(1.0, float("nan"))),
        lambda: sk.Surprise(window=2),
        lambda: sk.Surprise(window=7.5),  # type: ignore[arg-type]
        lambda: sk.Combine((sk.MaskIoU(), sk.SSIM()), window=7.5),  # type: ignore[arg-type]
        lambda: sk.Stability(True),
    ],
)
def test_bad_choices_are_refused(build: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"choose|give|takes|share"):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: sk.Surprise(of=sk.MaskIoU),  # type: ignore[arg-type]
        lambda: sk.Spatiotemporal(of=sk.MaskIoU),  # type: ignore[arg-type]
        lambda: sk.Combine((sk.MaskIoU(), sk.SSIM)),  # type: ignore[arg-type]
        lambda: sk.Combine((sk.MaskIoU(), "ssim")),  # type: ignore[arg-type]
    ],
)
def test_parts_are_scorers_not_classes_or_names(build: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="is made of scorers"):
        build()


def test_a_combination_takes_its_parts_as_one_tuple() -> None:
    with pytest.raises(TypeError, match="as one tuple"):
        sk.Combine(sk.MaskIoU(), sk.OpticalFlow())  # type: ignore[arg-type]


def test_lists_are_taken_as_tuples() -> None:
    built = sk.Combine([sk.MaskIoU(), sk.SSIM()], weights=[2, 1])  # type: ignore[arg-type]
    assert built == sk.Combine((sk.MaskIoU(), sk.SSIM()), weights=(2, 1))
    assert hash(built) == hash(sk.Combine((sk.MaskIoU(), sk.SSIM()), weights=(2, 1)))


def test_a_surprise_goes_with_what_it_watches_by_default() -> None:
    method = KeyframeMemory(Keyframes(5, sk.Surprise() > 1), measure=(sk.MaskIoU(), sk.Spatiotemporal()))
    assert [scorer.name for scorer in method.scorers] == ["surprise", "mask_iou_previous", "mask_iou", "spatiotemporal"]


def test_a_score_hides_nothing_that_is_recorded_of_every_frame(tmp_path: Path) -> None:
    """`PredictedIoU` is SAM 2's estimate whatever is measured, and tables have no column twice."""
    for name in ("predicted_iou", "object_score", "area"):
        with pytest.raises(ValueError, match=f"two scores are called '{name}'"):
            KeyframeMemory(Keyframes(5, sk.SSIM(name=name) > 0.1))
    for name in ("", "held", *Table(tmp_path / "frames.csv", []).columns):
        with pytest.raises(ValueError, match=f"name '{name}' is a column's"):
            KeyframeMemory(measure=(sk.SSIM(name=name),))
        with pytest.raises(ValueError, match=f"name '{name}' is a column's"):
            KeyframeMemory(Keyframes(5, sk.Spatiotemporal(sk.SSIM(name=name)) > 0.1))
    KeyframeMemory(Keyframes(5, sk.PredictedIoU() > 0.1), measure=(sk.PredictedIoU(), sk.ObjectScore()))
