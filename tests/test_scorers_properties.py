"""What every scorer promises: no change is 0, numbers are finite, outside does not count, no value is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tracked import FAKE, Count, change, fake_tensors, frame, history, repainted

from sam2_keyframe import BLOCKS
from sam2_keyframe import scorers as sk
from sam2_keyframe.types import FrameMemo, History, Scorer, TrackedFrame

CHANGES: list[Any] = [
    sk.FrameDifference(),
    sk.FrameDifference(colour=True, noise_floor=0, region="object"),
    *(sk.Histogram(space) for space in ("hsv", "rgb", "luminance")),
    *(sk.Histogram(metric=metric, region="object") for metric in ("chi_square", "correlation", "intersection")),
    sk.OpticalFlow(),
    sk.OpticalFlow("percentile", region="object"),
    sk.OpticalFlow("relative"),
    sk.OpticalFlow("direction", region="object"),
    sk.EdgeChangeRatio(),
    sk.EdgeChangeRatio(compensate=True),
    sk.EdgeChangeRatio(compensate=True, region="object"),
    sk.SSIM(),
    sk.SSIM(region="object"),
    sk.MaskIoU(),
    sk.MaskShape(),
    sk.MaskShape("area"),
    *(
        sk.FeatureShift(feature, distance)
        for feature in ("pointer", "memory", "image")
        for distance in ("cosine", "l2")
    ),
    sk.Novelty(),
    sk.Novelty("memory", "l2"),
    sk.Surprise(),
    sk.Spatiotemporal(),
    sk.Combine((sk.MaskIoU(), sk.SSIM()), weights=(1.0, 0.5)),
    sk.Combine((sk.MaskIoU(), sk.FrameDifference()), how="product", scale="z"),
]
SCORERS: list[Any] = [*CHANGES, sk.PredictedIoU(), sk.ObjectScore(), sk.Stability(), sk.MaskQuality(), sk.Distractor()]
each_change = pytest.mark.parametrize("scorer", CHANGES, ids=repr)
each = pytest.mark.parametrize("scorer", SCORERS, ids=repr)


@each
def test_registered_named_and_rebuilt_from_its_repr(scorer: Any) -> None:
    assert isinstance(scorer, Scorer)
    assert BLOCKS["scorers"][type(scorer).__name__] is type(scorer)
    assert eval(repr(scorer), vars(sk)) == scorer
    assert [field.name for field in dataclasses.fields(scorer)][-1] == "name"


@each_change
def test_same_frame_is_zero_and_no_reference_is_unknown(scorer: Any) -> None:
    first = frame()
    assert torch.isnan(scorer.score(first, History()))
    assert abs(change(scorer, frame(), frame(index=1), records=8)) < 1e-6


@each_change
def test_another_frame_is_a_change(scorer: Any) -> None:
    def move(logits: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(logits, -6.0)
        out[..., 2:14, 5:8] = 6.0
        return out

    assert change(scorer, frame(0), frame(1, index=9, pred_masks=move), records=8) > 1e-3


EXTREMES: dict[str, dict[str, Callable[..., Any]]] = {
    "black": {"image": torch.zeros_like},
    "white": {"image": torch.ones_like},
    "no object": {"pred_masks": lambda x: torch.full_like(x, -1024.0)},
    "all object": {"pred_masks": lambda x: torch.full_like(x, 10.0)},
    "zero features": {key: torch.zeros_like for key in ("obj_ptr", "image_embed", "maskmem_features")},
    "half": {key: lambda x: x.half() for key in ("image", "obj_ptr", "image_embed", "maskmem_features", "pred_masks")},
    "bfloat16": {key: lambda x: x.bfloat16() for key in ("obj_ptr", "image_embed", "pred_masks", "candidate_ious")},
}


@each
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("size", [1, 9, 48])
def test_finite_on_extreme_input(scorer: Any, kind: str, size: int) -> None:
    odd = EXTREMES[kind]
    for before, now in ((odd, {}), ({}, odd), (odd, odd)):
        value = change(scorer, frame(0, size, **before), frame(1, size, index=1, **now), records=8)
        assert abs(value) < 1e6


EMPTY = EXTREMES["no object"]
OF_MASKS: list[Any] = [
    sk.MaskIoU(),
    sk.MaskShape(),
    sk.MaskShape("area"),
    sk.FeatureShift("memory"),
    sk.FeatureShift("image", "l2"),
    sk.Histogram(region="object"),
    sk.Histogram(metric="correlation", region="object"),
]


@pytest.mark.parametrize("scorer", OF_MASKS, ids=repr)
def test_one_empty_mask_is_one_and_two_are_zero(scorer: Any) -> None:
    for before, now in ((EMPTY, {}), ({}, EMPTY)):
        assert change(scorer, frame(**before), frame(index=1, **now)) == pytest.approx(1, abs=1e-6)
    assert change(scorer, frame(**EMPTY), frame(3, index=1, **EMPTY)) == 0


OF_OBJECTS: list[Any] = [
    *(s for s in CHANGES if getattr(s, "region", "") == "object"),
    sk.OpticalFlow(region="object"),
    sk.EdgeChangeRatio(region="object"),
    sk.FrameDifference(region="object"),
    sk.Histogram("rgb", region="object"),
]


@pytest.mark.parametrize("scorer", OF_OBJECTS, ids=repr)
def test_object_region_ignores_changes_outside(scorer: Any) -> None:
    """To the last bit: whether the object's surroundings change too, now or at the reference, makes no difference."""
    alone = change(scorer, frame(0, 256), frame(1, 256, 1))
    assert alone > 1e-3
    assert change(scorer, frame(0, 256), frame(1, 256, 1, image=repainted(2))) == alone
    assert change(scorer, frame(0, 256, image=repainted(3)), frame(1, 256, 1, image=repainted(2))) == alone
    assert change(scorer, frame(0, 256), frame(0, 256, 1, image=repainted(2))) < 1e-6
    if getattr(scorer, "measure", "") == "direction":  # a start from rest, in tests/test_scorers_flow.py more
        return
    whole = dataclasses.replace(scorer, region="frame")
    now = frame(1, 256, 1, image=repainted(2))
    assert abs(change(whole, frame(0, 256), now) - change(whole, frame(0, 256), frame(1, 256, 1))) > 1e-3


def blob(dy: int, dx: int, scale: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(logits: torch.Tensor) -> torch.Tensor:
        out = torch.full((1, 1, 256, 256), -6.0)
        out[..., dy : dy + 20 * scale, dx : dx + 30 * scale] = 6.0
        out[..., dy + 5 * scale : dy + 15 * scale, dx + 10 * scale : dx + 30 * scale] = -6.0
        return out

    return make


def test_mask_shape_ignores_translation_and_scale_but_not_shape() -> None:
    start = frame(0, 64, pred_masks=blob(20, 30, 2))
    shape, area, iou = sk.MaskShape(), sk.MaskShape("area"), sk.MaskIoU()
    moved = frame(0, 64, 1, pred_masks=blob(120, 150, 2))
    grown = frame(0, 64, 1, pred_masks=blob(20, 30, 4))
    other = frame(0, 64, 1)
    assert change(iou, start, moved) == 1
    assert change(shape, start, moved) == 0
    assert change(area, start, moved) == 0
    assert change(shape, start, grown) < 0.06
    assert change(area, start, grown) == pytest.approx(0.75)
    assert change(shape, start, other) > 0.3


def test_hue_and_saturation_ignore_brightness() -> None:
    bright, dark = frame(0), frame(0, index=1, image=lambda x: x * 0.5)
    assert change(sk.Histogram("hsv"), bright, dark) < 0.1
    assert change(sk.Histogram("luminance"), bright, dark) > 0.5


@each
def test_under_autocast_the_same_number(scorer: Any) -> None:
    plain = change(scorer, frame(0), frame(1, index=1), records=8)
    with torch.autocast("cpu", torch.bfloat16):
        assert change(scorer, frame(0), frame(1, index=1), records=8) == plain


@pytest.mark.slow
@each
def test_on_the_device_no_value_is_read(scorer: Any) -> None:
    """On tensors without values, reading or branching on one raises, and a result on another device shows."""
    with fake_tensors():
        before, now = (frame(0, 64, index, device="fake") for index in range(2))
        scorer.score(before, History())
        past = history(before, 8)
        score = scorer.score(now, past)
    assert score.device.type == FAKE
    assert score.shape == ()
    assert {value.device.type for value in past.keyframe.values.values()} <= {FAKE}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: 1 if x.sum() > 0 else 2,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.ones(x.shape),
    ],
)
def test_the_check_above_can_fail(read: Callable[[torch.Tensor], Any]) -> None:
    with fake_tensors(), pytest.raises((RuntimeError, NotImplementedError)):
        read(frame(device="fake").obj_ptr)


@pytest.mark.gpu
@each
def test_on_cuda_nothing_waits_for_the_device(scorer: Any) -> None:
    before, now = (frame(index, 64, index, device="cuda") for index in range(2))
    scorer.score(before, History())  # the first call may load libraries
    past = history(before, 8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        score = scorer.score(now, past)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = change(scorer, frame(0), frame(1, index=1), records=8)
    assert float(score) == pytest.approx(expected, abs=1e-3)


FEW = [s for s in SCORERS if not isinstance(s, (sk.OpticalFlow, sk.Distractor))]  # the cost table reports those


@pytest.mark.parametrize("scorer", FEW, ids=repr)
def test_at_most_sixty_operations(scorer: Any) -> None:
    before, now = frame(0, 256), frame(1, 256, 1)
    scorer.score(before, History())
    with Count() as count:
        scorer.score(now, history(before, 8))
    assert count.total <= 60


@each_change
def test_eight_objects_each_get_the_number_of_one(scorer: Any) -> None:
    """Each with a mask, features and a keyframe of its own; what is computed of the whole frames is shared."""

    def pixels() -> list[FrameMemo]:
        return [frame(index).shared for index in range(3)]

    def place(k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def make(logits: torch.Tensor) -> torch.Tensor:
            out = torch.full_like(logits, -6.0)
            out[..., k : k + 5 + k % 3, 9 - k : 14] = 6.0
            return out

        return make

    def view(index: int, k: int, shared: FrameMemo) -> TrackedFrame:
        made = frame(10 + 8 * index + k, index=index, pred_masks=place((k + index) % 8))
        return dataclasses.replace(made, shared=shared, image_embed=frame(index).image_embed)

    def score(k: int, memos: list[FrameMemo]) -> float:
        first, second, third = (view(index, k, memo) for index, memo in enumerate(memos))
        scorer.score(first, History())
        scorer.score(second, history(first, 8))
        past = dataclasses.replace(history((first, second)[k % 2], 8), previous=second.reference())
        return float(scorer.score(third, past))

    alone = [score(k, pixels()) for k in range(8)]
    together = pixels()
    assert [score(k, together) for k in range(8)] == alone
    assert len(set(alone)) > 1
