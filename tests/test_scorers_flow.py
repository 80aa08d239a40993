"""Optical flow on the object alone, its direction, and what it does not count as motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tracked import change, frame, repainted

from sam2_keyframe import scorers as sk
from sam2_keyframe.scorers.dense_flow import dense_flow
from sam2_keyframe.types import History, TrackedFrame

cv2 = pytest.importorskip("cv2")
data = pytest.importorskip("skimage.data")


def test_flow_ignores_a_change_of_light() -> None:
    moved = change(sk.OpticalFlow(), frame(0, 128), frame(0, 128, 1, image=lambda x: x.roll(5, 2)))
    darker = change(sk.OpticalFlow(), frame(0, 128), frame(0, 128, 1, image=lambda x: 0.6 * x + 0.05))
    assert darker < 0.1 / 128
    assert moved > 3 / 128


def test_flow_under_autocast_the_same_number() -> None:
    plain = change(sk.OpticalFlow(), frame(0), frame(1, index=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert change(sk.OpticalFlow(), frame(0), frame(1, index=1)) == plain


def shifted(x: int, y: int, seed: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda image: image.roll((y, x), (1, 2))


def direction(scorer: sk.OpticalFlow, frames: list[TrackedFrame]) -> float:
    """The score of the last of three frames; the middle one is the reference and the previous frame."""
    first, middle, last = frames
    scorer.score(first, History())
    scorer.score(middle, History(first.reference(), first.reference()))
    return float(scorer.score(last, History(middle.reference(), middle.reference())))


@pytest.mark.parametrize(("turn", "expected"), [((8, 0), 0.0), ((4, 4), 1.0), ((0, 0), 2.0)])
def test_direction_of_the_object_alone(turn: tuple[int, int], expected: float) -> None:
    """To the right by 4 px, then on, down or back: 1 - cos of 0, 90 and 180 degrees."""
    scorer = sk.OpticalFlow("direction", region="object")
    edits = [shifted(0, 0), shifted(4, 0), shifted(*turn)]
    alone = direction(scorer, [frame(0, 256, i, image=edit) for i, edit in enumerate(edits)])
    assert alone == pytest.approx(expected, abs=0.1)
    around = [lambda image, i=i, edit=edit: repainted(i)(edit(image)) for i, edit in enumerate(edits)]
    assert direction(scorer, [frame(0, 256, i, image=edit) for i, edit in enumerate(around)]) == alone


def photo(name: str) -> np.ndarray:
    """(320, 320) float32 luminance in [0, 1]."""
    image = cv2.resize(np.ascontiguousarray(getattr(data, name)()[..., :3]), (320, 320), interpolation=cv2.INTER_AREA)
    return np.float32(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) / 255


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 6, 12, 30])
def test_flow_of_an_object_alone_is_no_worse_than_opencv_on_the_whole(step: int) -> None:
    """A textured disc before another photograph: mean end-point error inside it, over six pairs and two directions."""
    names = ("astronaut", "chelsea", "coffee")
    ours, theirs = [], []
    y, x = np.mgrid[:256, :256]
    for back in names:
        for skin in names:
            if skin == back:
                continue
            views, discs = [], []
            for cx in (110, 110 + step):
                disc = np.hypot(x - cx, y - 120) < 40
                view = photo(back)[:256, :256].copy()
                view[disc] = photo(skin)[40 : 40 + 256, 150 - cx : 150 - cx + 256][disc]
                views.append(view)
                discs.append(disc)
            near = [0.25 * cv2.dilate(np.float32(disc), np.ones((17, 17), np.uint8)) + 0.75 * disc for disc in discs]
            for a, b, way, inside, moved in ((*views, 1, discs[0], step), (*views[::-1], -1, discs[1], -step)):
                weight = torch.from_numpy(np.float32(near[::way]))
                flow = dense_flow(*(torch.from_numpy(v) for v in (a, b)), weight).numpy()
                levels = [np.uint8(np.round(255 * v)) for v in (a, b)]
                other = cv2.calcOpticalFlowFarneback(*levels, None, 0.5, 5, 15, 3, 5, 1.2, 0).transpose(2, 0, 1)
                truth = np.float32([moved, 0])[:, None]
                for found, errors in ((flow, ours), (other, theirs)):
                    errors.append(float(np.hypot(*(found[:, inside] - truth)).mean()))
    assert np.mean(ours) <= np.mean(theirs)


@pytest.mark.parametrize(("move", "pan"), [(4, 0), (12, 0), (30, 0), (0, 20), (12, 20)])
@pytest.mark.parametrize(("back", "skin"), [("astronaut", "coffee"), ("rocket", "chelsea"), ("coffee", "astronaut")])
def test_relative_motion_of_an_object_is_what_it_moved(back: str, skin: str, move: int, pan: int) -> None:
    """A textured disc before another photograph, both moved by the camera: within 1 px."""
    y, x = np.mgrid[:256, :256]
    frames = []
    for index, (moved, panned) in enumerate(((0, 0), (move, pan))):
        cx = 100 + moved + panned
        disc = np.hypot(x - cx, y - 120) < 40
        view = photo(back)[:256, 40 - panned : 296 - panned].copy()
        view[disc] = photo(skin)[40:296, 150 - cx : 406 - cx][disc]
        pixels = torch.from_numpy(view).expand(3, -1, -1)
        mask = torch.from_numpy(np.where(disc, 8.0, -8.0))[None, None]
        made = {"image": lambda _, pixels=pixels: pixels, "pred_masks": lambda _, mask=mask: mask}
        frames.append(frame(0, 256, index, **made))
    assert 256 * change(sk.OpticalFlow("relative"), *frames) == pytest.approx(move, abs=1)


def test_what_has_no_weight_changes_nothing() -> None:
    a, b = (torch.rand(64, 80, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    weight = torch.zeros(2, 64, 80)
    weight[0, 10:40, 20:60] = weight[1, 14:44, 25:65] = 1
    other = torch.where(weight[0] > 0, a, 1 - a), torch.where(weight[1] > 0, b, b * 0.1)
    assert torch.equal(dense_flow(a, b, weight), dense_flow(*other, weight))
    assert torch.isfinite(dense_flow(a, b, weight * 0)).all()
