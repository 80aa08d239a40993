"""Scorers on pixels as SAM 2 hands them on: normalised and back, so that equal channels differ by rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from tracked import frame

import sam2_keyframe as sk
from sam2_keyframe.patches.frames import scoring_image
from sam2_keyframe.scorers import Distractor, Histogram, MaskShape
from sam2_keyframe.scorers.masks import canonical
from sam2_keyframe.types import History
from sam2_keyframe.video.source import normalise


def _seen(pixels: np.ndarray, size: int = 256) -> Any:
    """A frame of these (H, W, 3) pixels, as the predictor's input of that size."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None]
    image = torch.nn.functional.interpolate(image, (size, size), mode="area")[0].round().to(torch.uint8)
    return frame(0, 256, image=lambda _: scoring_image(normalise(image, torch.device("cpu"))[None]))


def _change(scorer: Any, before: np.ndarray, now: np.ndarray, size: int = 256) -> float:
    then = _seen(before, size)
    scorer.score(then, History())
    return float(scorer.score(_seen(now, size), History(then.reference(), then.reference())))


@pytest.mark.parametrize("size", [256, 512])
def test_brightness_of_grey_video_does_not_count(size: int) -> None:
    for level, other in ((50, 60), (0, 1), (0, 2), (1, 2), (100, 101), (10, 20)):
        grey = np.full((64, 64, 3), level, np.uint8)
        assert _change(Histogram(), grey, np.full_like(grey, other), size) == 0
    photo = np.repeat(data.camera()[..., None], 3, 2)
    for bright in (photo, photo // 20):
        assert _change(Histogram(), bright, (bright * 0.6).astype(np.uint8), size) == 0


def test_red_is_in_one_bin() -> None:
    red = np.full((64, 64, 3), (220, 0, 0), np.uint8)
    for level in (1, 3, 5):
        other = np.full_like(red, (220, level, level))
        assert _change(Histogram(bins=(16, 4)), red, other) == 0
    assert _change(Histogram(), red, np.full_like(red, (0, 220, 0))) == 1


@pytest.mark.parametrize("bins", [3, 5, 15, 16, 17])
def test_every_level_is_in_the_bin_that_it_has_among_256(bins: int) -> None:
    """Rounding in the pixels moves none to the next bin."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.repeat(np.repeat(levels, 16, 0), 16, 1)[..., None].repeat(3, 2)
    counted = Histogram("rgb", bins=bins)._bins(_seen(pixels))[::16, ::16].flatten()
    exact = np.minimum(np.arange(256) * bins // 255, bins - 1)
    assert counted.tolist() == (exact * bins * bins + exact * bins + exact).tolist()


def test_dimming_a_dark_grey_clip_is_no_scene_boundary() -> None:
    still = np.repeat(data.camera()[::2, ::2, None] // 20, 3, 2)
    clip = np.stack([still] * 6 + [(still * 0.6).astype(np.uint8)] * 6)
    masks = np.zeros((12, 256, 256), bool)
    masks[:, 80:120, 80:120] = True
    assert sk.replay(clip, masks, "scene_hsv").keyframes[1] == []
    clip[6:] = (200, 30, 30)
    assert 6 in sk.replay(clip, masks, "scene_hsv").keyframes[1]


def test_parts_far_from_their_centre_are_not_nothing() -> None:
    """An object that a pole divides: both slivers lie beyond the square that the shape is looked at in."""
    slivers = torch.zeros(256, 256, dtype=torch.bool)
    slivers[100:112, 60:66] = slivers[100:112, 140:146] = True
    disc = (torch.arange(256) - 128).square()[:, None] + (torch.arange(256) - 128).square() < 900

    def logits(mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, 6.0, -6.0)[None, None]

    def change(a: torch.Tensor, b: torch.Tensor) -> float:
        then = frame(0, 1024, pred_masks=lambda _: logits(a))
        MaskShape().score(then, History())
        now = frame(0, 1024, pred_masks=lambda _: logits(b))
        return float(MaskShape().score(now, History(then.reference())))

    nothing = torch.zeros_like(slivers)
    assert change(slivers, nothing) == change(nothing, slivers) == 1
    assert change(slivers, disc) == change(disc, slivers) == 1
    assert change(slivers, slivers) == 0
    assert canonical(disc)[96:].sum() == canonical(nothing).sum() == 0


def test_a_distractor_is_told_from_the_mask_that_is_kept() -> None:
    """Where motion chose the second candidate, the first one is the alternative; without an object there is none."""
    masks = torch.full((1, 2, 64, 64), -6.0)
    masks[:, 0, 10:20, 10:50] = 6.0
    masks[:, 1, 10:20, 10:20] = 6.0
    edit: dict[str, Any] = {
        "candidate_masks": lambda _: masks,
        "candidate_ious": lambda _: torch.tensor([[0.9, 0.8]]),
        "object_score_logits": lambda _: torch.ones(1, 1),
    }
    assert Distractor().score(frame(0, 256, **edit), History()) == 0  # the large mask holds the small one
    chosen = frame(0, 256, **edit)
    chosen.measured["predicted_iou"] = torch.tensor(0.8)
    assert Distractor().score(chosen, History()) == 0.75
    chosen.measured.clear()
    hidden = frame(0, 256, **{**edit, "object_score_logits": lambda _: -torch.ones(1, 1)})
    hidden.measured["predicted_iou"] = torch.tensor(0.8)
    assert Distractor().score(hidden, History()) == 0
