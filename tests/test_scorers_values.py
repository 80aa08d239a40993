"""Numbers of the scorers against hand arithmetic, NumPy and known motion, and what must not count."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, interpolate
from tracked import change, frame, history

from sam2_keyframe import scorers as sk
from sam2_keyframe.scorers.flow import flow_since
from sam2_keyframe.types import FrameRecord, History, TrackedFrame

PARTS = (sk.MaskIoU(), sk.SSIM(), sk.Histogram())
MEASURED = {"mask_iou": 0.2, "ssim": 0.7, "histogram": 0.4}


def measured(**scores: float) -> TrackedFrame:
    """A frame whose scores are known already."""
    return dataclasses.replace(frame(), measured={name: torch.tensor(value) for name, value in scores.items()})


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("sum", None, 1.3),
        ("sum", (3.0, 0.5, 0.0), 0.95),
        ("product", None, 0.056),
        ("product", (2.0, 3.0, 0.5), 0.168),
        ("max", None, 0.7),
        ("max", (4.0, 1.0, 0.0), 0.8),
    ],
)
def test_combine_by_hand(how: Any, weights: Any, expected: float) -> None:
    score = sk.Combine(PARTS, weights, how).score(measured(**MEASURED), History())
    assert float(score) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("how", "expected"), [("sum", 8.0), ("max", 6.0)])
def test_combine_of_standard_deviations_by_hand(how: Any, expected: float) -> None:
    """Means 0.1 and 0.5, deviations 0.05 and 0.1, of the six numbers in the window: 2 and 2; weights 1 and 3."""
    rows = [(9.0, 9.0), (0.05, 0.4), (0.15, 0.6), *[(float("nan"), float("nan"))], *[(0.05, 0.4), (0.15, 0.6)] * 2]
    past = [FrameRecord(i, {"mask_iou": a, "ssim": b}) for i, (a, b) in enumerate(rows)]
    scorer = sk.Combine(PARTS[:2], (1.0, 3.0), how, scale="z", window=7)
    score = scorer.score(measured(mask_iou=0.2, ssim=0.7), History(records=past))
    assert float(score) == pytest.approx(expected, rel=1e-4)


def test_mask_quality_by_hand() -> None:
    """sigmoid(ln 4) = 0.8, best candidate 0.9; of the mask's pixels half at 3/4, half at 1/2 and a bit."""

    def logits(like: torch.Tensor) -> torch.Tensor:
        mask = torch.full_like(like, -9.0)
        mask[..., :4, :2], mask[..., :4, 2:4] = np.log(3), 1e-6
        return mask

    edit = {
        "pred_masks": logits,
        "candidate_ious": lambda like: torch.tensor([[0.2, 0.9, 0.4]]),
        "object_score_logits": lambda like: torch.full_like(like, np.log(4)),
    }
    score = sk.MaskQuality().score(frame(**edit), History())
    assert float(score) == pytest.approx(0.8 * 0.9 * 0.625, rel=1e-5)
    edit["pred_masks"] = lambda like: torch.full_like(like, -1024.0)
    assert float(sk.MaskQuality().score(frame(**edit), History())) == 0


DISTANCES = {
    "cosine": lambda a, b: 1 - float(cosine_similarity(torch.tensor(a), torch.tensor(b), dim=0)),
    "l2": lambda a, b: float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b))),
}


def corner(logits: torch.Tensor) -> torch.Tensor:
    """Covers 1, 1/2, 1/2 and 1/4 of the four upper left of 4 x 4 cells, of 16 x 16 pixels."""
    out = torch.full_like(logits, -6.0)
    out[..., :6, :6] = 6.0
    return out


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("feature", ["memory", "image"])
def test_features_are_averaged_inside_the_mask(feature: Any, distance: Any) -> None:
    """Against a NumPy mean; to the last bit unchanged by what lies in cells outside."""
    name = {"memory": "maskmem_features", "image": "image_embed"}[feature]
    cover = np.zeros((4, 4), np.float32)
    cover[:2, :2] = [[1, 0.5], [0.5, 0.25]]
    frames = frame(0, pred_masks=corner), frame(1, index=1, pred_masks=corner)
    means = [(getattr(f, name)[0].float().numpy() * cover).sum((1, 2)) / cover.sum() for f in frames]
    scorer = sk.FeatureShift(feature, distance)
    found = change(scorer, *frames)
    assert found == pytest.approx(DISTANCES[distance](*means), abs=1e-6)

    def outside(grid: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.from_numpy(cover) > 0, grid, 7 - grid)

    again = frame(1, index=1, pred_masks=corner, **{name: outside})
    assert change(scorer, frame(0, pred_masks=corner), again) == found


@pytest.mark.parametrize("distance", DISTANCES)
def test_pointers_are_compared_whole(distance: Any) -> None:
    before, now = frame(0), frame(1, index=1)
    expected = DISTANCES[distance](before.obj_ptr[0].numpy(), now.obj_ptr[0].numpy())
    assert change(sk.FeatureShift("pointer", distance), before, now) == pytest.approx(expected, abs=1e-6)


def test_quality_by_hand() -> None:
    """20 logits: three above 2.5, five above 0.5, nine above -0.5, 14 above -2.5."""
    logits = torch.tensor([4.0] * 3 + [1.0] * 2 + [0.0] * 4 + [-1.0] * 5 + [-3.0] * 6).view(1, 1, 4, 5)
    made = frame(
        pred_masks=lambda _: logits,
        candidate_ious=lambda _: torch.tensor([[0.3, 0.8, 0.6]]),
        object_score_logits=lambda _: torch.tensor([[-2.5]]),
    )
    for scorer, expected in (
        (sk.Stability(2.5), 3 / 14),
        (sk.Stability(0.5), 5 / 9),
        (sk.PredictedIoU(), 0.8),
        (sk.ObjectScore(), -2.5),
    ):
        assert float(scorer.score(made, History())) == pytest.approx(expected)


@pytest.mark.parametrize("region", ["frame", "object"])
@pytest.mark.parametrize("percentile", [0.0, 20.0, 80.0, 100.0])
def test_lengths_of_motion_against_numpy(region: Any, percentile: float) -> None:
    before, now = frame(0), frame(1, index=1)
    mean = change(sk.OpticalFlow(region=region), before, now)
    scorer = sk.OpticalFlow("percentile", percentile, region=region)
    found = change(scorer, before, now)
    flow, inside = flow_since(now, before.reference(), region)  # type: ignore[misc]
    lengths = np.hypot(*flow.numpy())[... if inside is None else inside.numpy() > 0].ravel() / 64
    assert found == pytest.approx(np.percentile(lengths, percentile, method="nearest"), rel=1e-5)
    assert mean == pytest.approx(lengths.mean(), rel=1e-4)


def scene(camera: int, own: int, index: int) -> TrackedFrame:
    """A textured square of 64 px before another texture, at 256 px; both shifted to the right by the camera."""
    rng = torch.Generator().manual_seed(5)
    back, skin = (
        interpolate(torch.rand(1, 3, side, side, generator=rng), (4 * side, 4 * side), mode="bicubic")[0].clamp(0, 1)
        for side in (80, 16)
    )
    left = 90 + camera + own
    view = back[:, 32:288, 32 - camera : 288 - camera].clone()
    view[:, 100:164, left : left + 64] = skin
    logits = torch.full((1, 1, 256, 256), -6.0)
    logits[..., 100:164, left : left + 64] = 6.0
    return frame(0, 256, index, image=lambda _: view, pred_masks=lambda _: logits)


@pytest.mark.parametrize(("camera", "own"), [(0, 6), (6, 0), (20, 0), (6, 6), (-12, 6)])
def test_relative_motion_is_the_objects_own(camera: int, own: int) -> None:
    found = 256 * change(sk.OpticalFlow("relative"), scene(0, 0, 0), scene(camera, own, 1))
    assert found == pytest.approx(own, abs=2 if own else 0.5)


def flipped(picture: torch.Tensor) -> torch.Tensor:
    return picture.flip(-1)


def painted(picture: torch.Tensor) -> torch.Tensor:
    return 1 - picture.roll(9, -1)


INVARIANCES: list[tuple[Any, Any, dict[str, Any]]] = [
    *((sk.Histogram(space), sk.SSIM(), {"image": flipped}) for space in ("hsv", "rgb", "luminance")),
    (sk.Histogram(region="object"), sk.SSIM(region="object"), {"image": flipped, "pred_masks": flipped}),
    *(
        (scorer, sk.FeatureShift("image"), dict.fromkeys(("image", "obj_ptr", "image_embed"), painted))
        for scorer in (sk.MaskIoU(), sk.MaskShape(), sk.MaskShape("area"), sk.FeatureShift("memory"))
    ),
    (sk.MaskShape(), sk.MaskIoU(), {"pred_masks": lambda x: x.roll((3, 5), (-2, -1))}),
    (sk.FeatureShift("pointer"), sk.MaskIoU(), {"pred_masks": flipped, "image": painted, "image_embed": painted}),
]


@pytest.mark.parametrize(
    ("scorer", "other", "edit"), INVARIANCES, ids=lambda part: " ".join(part) if isinstance(part, dict) else repr(part)
)
def test_what_does_not_count(scorer: Any, other: Any, edit: dict[str, Any]) -> None:
    """The same edit is a change to another scorer."""
    assert change(scorer, frame(0), frame(0, index=1, **edit)) == pytest.approx(0, abs=1e-6)
    assert change(other, frame(0), frame(0, index=1, **edit)) > 0.1


def test_parts_are_recorded_and_computed_once() -> None:
    both = sk.Combine((sk.MaskIoU(), sk.Spatiotemporal(sk.MaskIoU())), how="max", name="both")
    before, now = frame(0), frame(0, index=4, pred_masks=torch.neg)
    both.score(before, History())
    now.measure(both, history(before))
    assert {name: float(value) for name, value in now.measured.items()} == pytest.approx(
        {"mask_iou": 1.0, "spatiotemporal": 4.0, "both": 4.0}
    )


def test_surprise_counts_standard_deviations_above_the_mean() -> None:
    past = [FrameRecord(i, {"mask_iou": value}) for i, value in enumerate([0.1, 0.3] * 5)]
    before, now = frame(0), frame(0, index=1, pred_masks=torch.neg)
    scorer = sk.Surprise(sk.MaskIoU())
    scorer.score(before, History())
    reference = before.reference()
    assert float(scorer.score(now, History(reference, reference, [], past))) == pytest.approx((1 - 0.2) / 0.1, rel=1e-4)
    assert float(scorer.score(now, History(reference, reference, [], past[:4]))) == 0


def test_novelty_is_the_distance_to_the_closest_keyframe() -> None:
    assert sk.Novelty.all_keyframes  # or the bank keeps the prompts' descriptions alone
    frames = [frame(seed, index=seed) for seed in range(4)]
    for item in frames:
        sk.FeatureShift().score(item, History())
    references = [item.reference() for item in frames[:3]]
    single = [float(sk.FeatureShift().score(frames[3], History(keyframe=one))) for one in references]
    assert float(sk.Novelty().score(frames[3], History(keyframes=references))) == pytest.approx(min(single), abs=1e-6)
