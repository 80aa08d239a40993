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


@pytest.mark.parametrize("step", [2, 6, 12])
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
            region = cv2.dilate(np.uint8(discs[0] | discs[1]), np.ones((17, 17), np.uint8))
            for a, b, inside, moved in ((*views, discs[0], step), (*views[::-1], discs[1], -step)):
                flow = dense_flow(*(torch.from_numpy(v) for v in (a, b)), torch.from_numpy(region).float()).numpy()
                levels = [np.uint8(np.round(255 * v)) for v in (a, b)]
                other = cv2.calcOpticalFlowFarneback(*levels, None, 0.5, 5, 15, 3, 5, 1.2, 0).transpose(2, 0, 1)
                truth = np.float32([moved, 0])[:, None]
                for found, errors in ((flow, ours), (other, theirs)):
                    errors.append(float(np.hypot(*(found[:, inside] - truth)).mean()))
    assert np.mean(ours) <= np.mean(theirs)


def test_what_has_no_weight_changes_nothing() -> None:
    a, b = (torch.rand(64, 80, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    weight = torch.zeros(64, 80)
    weight[10:40, 20:60] = 1
    other = torch.where(weight > 0, a, 1 - a), torch.where(weight > 0, b, b * 0.1)
    assert torch.equal(dense_flow(a, b, weight), dense_flow(*other, weight))
    assert torch.isfinite(dense_flow(a, b, weight * 0)).all()
