"""Connected parts on the device against SciPy and scikit-image, and the distractor score against its definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tracked import Count, change, frame

from sam2_keyframe.scorers import Distractor
from sam2_keyframe.scorers.distractors import largest_part
from sam2_keyframe.scorers.masks import mask_boxes
from sam2_keyframe.types import History

ndimage = pytest.importorskip("scipy.ndimage")
EIGHT = np.ones((3, 3))


def spiral(side: int) -> np.ndarray:
    """One path, a pixel wide, that winds inwards."""
    mask = np.zeros((side, side), bool)
    position, step = np.array([0, 0]), np.array([0, 1])
    mask[0, 0] = True

    def is_free(place: np.ndarray, beyond: np.ndarray) -> bool:
        inside = [((p >= 0) & (p < side)).all() for p in (place, beyond)]
        return bool(inside[0] and not mask[tuple(place)] and not (inside[1] and mask[tuple(beyond)]))

    while True:
        if not is_free(position + step, position + 2 * step):
            step = np.array([step[1], -step[0]])
            if not is_free(position + step, position + 2 * step):
                return mask
        position = position + step
        mask[tuple(position)] = True


def snake(side: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def comb(side: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[:, ::2] = mask[-1] = True
    return mask


def hilbert(side: int) -> np.ndarray:
    """A Hilbert curve, each of its steps two pixels long."""
    path = np.zeros((1, 2), int)
    size = 1
    while size < side // 2:
        flip = path[:, ::-1]
        below, aside, last = np.array([[0, size], [size, size], [2 * size - 1, size - 1]])
        path = np.concatenate([flip, path + below, path + aside, last - flip])
        size *= 2
    mask = np.zeros((side, side), bool)
    mask[tuple(2 * path.T)] = True
    mask[tuple((path[1:] + path[:-1]).T)] = True
    return mask


def blobs(side: int, seed: int) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 2) > 0.02)


def noise(share: float) -> Callable[[int], np.ndarray]:
    return lambda side: np.random.default_rng(0).random((side, side)) < share


SHAPES: dict[str, Callable[[int], np.ndarray]] = {
    "spiral": spiral,
    "snake": snake,
    "comb": comb,
    "hilbert": hilbert,
    "blobs": lambda side: blobs(side, 0),
    **{f"noise {share}": noise(share) for share in (0.05, 0.3, 0.38, 0.407, 0.43, 0.6)},  # 0.407 percolates
    "empty": lambda side: np.zeros((side, side), bool),
    "full": lambda side: np.ones((side, side), bool),
}


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("name", SHAPES)
def test_largest_part_equals_scipy_and_scikit_image(name: str, side: int) -> None:
    mask = SHAPES[name](side)
    views = [np.rot90(flipped, turn).copy() for flipped in (mask, mask[::-1]) for turn in range(4)]
    found = largest_part(torch.from_numpy(np.stack(views))).numpy()
    for view, part in zip(views, found, strict=True):
        labels, _ = ndimage.label(view, EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        assert part.sum() == sizes.max()
        if view.any():
            label = labels[part][0]
            assert np.array_equal(part, labels == label)
            assert sizes[label - 1] == sizes.max()
    labels = pytest.importorskip("skimage.measure").label(views[0], connectivity=2)
    assert found[0].sum() == np.bincount(labels.ravel(), minlength=2)[1:].max()


def test_hard_shapes_are_one_part() -> None:
    for shape in (spiral, snake, comb, hilbert):
        assert ndimage.label(shape(64), EIGHT)[1] == 1
        assert 0.4 < shape(64).mean() < 0.8


def test_boxes_equal_scipy() -> None:
    masks = np.stack([blobs(40, seed) & (np.random.default_rng(seed).random((40, 40)) < 0.01) for seed in range(12)])
    masks = np.concatenate([masks, np.zeros((1, 40, 40), bool)])[:, :, :31]
    for mask, box in zip(masks, mask_boxes(torch.from_numpy(masks.copy())).tolist(), strict=True):
        slices = ndimage.find_objects(mask.astype(int)) if mask.any() else [(slice(0, 0), slice(0, 0))]
        (rows, columns) = slices[0]
        assert box == [columns.start, rows.start, columns.stop, rows.stop]


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    boxes = []
    for mask in (a, b):
        y, x = np.nonzero(mask)
        boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    (ax, ay, aX, aY), (bx, by, bX, bY) = boxes
    shared = max(0, min(aX, bX) - max(ax, bx)) * max(0, min(aY, bY) - max(ay, by))
    return shared / ((aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - shared)


def by_definition(masks: np.ndarray, ious: np.ndarray) -> float:
    """DAM4SAM's introspection test as it is described, in Python."""
    chosen = masks[ious.argmax()]
    worst = 1.0
    for k, mask in enumerate(masks):
        rest = mask & ~chosen
        if k == ious.argmax() or not rest.any():
            continue
        labels, _ = ndimage.label(rest, EIGHT)
        part = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
        worst = min(worst, box_iou(chosen, chosen | part))
    return 1 - worst


def score(masks: np.ndarray, ious: np.ndarray) -> float:
    logits = torch.from_numpy(np.where(masks, 3.0, -3.0).astype(np.float32))[None]
    now = dataclasses.replace(frame(), candidate_masks=logits, candidate_ious=torch.from_numpy(ious)[None])
    return float(Distractor().score(now, History()))


@pytest.mark.parametrize("seed", range(20))
def test_score_equals_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 96, 128), bool)
    for mask in masks:
        for _ in range(3):
            y, x, h, w = rng.integers(0, 60, 2).tolist() + rng.integers(4, 30, 2).tolist()
            mask[y : y + h, x : x + w] |= blobs(128, int(rng.integers(99)))[:h, :w] | (rng.random((h, w)) < 0.5)
    ious = rng.random(3).astype(np.float32)
    assert score(masks, ious) == pytest.approx(by_definition(masks, ious), abs=1e-6)


def scene(*places: tuple[int, int], side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    for y, x in places:
        mask[y : y + 10, x : x + 10] = True
    return mask


def test_a_look_alike_in_a_rejected_mask_is_a_distractor() -> None:
    here, there = (10, 10), (10, 30)
    ious = np.float32([0.9, 0.5, 0.3])
    alone = np.stack([scene(here)] * 3)
    assert score(alone, ious) == 0
    both = np.stack([scene(here), scene(here, there), scene(here)])
    assert score(both, ious) == pytest.approx(1 - 10 / 30)
    assert score(both[[1, 0, 2]], ious[[1, 0, 2]]) == pytest.approx(1 - 10 / 30)
    assert score(both, ious[[1, 0, 2]]) == 0  # the larger one was chosen: nothing is left of the others
    assert score(np.stack([scene(here), scene(there), scene()]), ious) == pytest.approx(1 - 10 / 30)
    assert score(np.stack([scene(), scene(there), scene(here)]), ious) == 0  # no object, nothing to mistake for it


def test_at_256_px_within_a_cell_of_the_definition() -> None:
    for seed in range(5):
        masks = np.stack(
            [blobs(256, 7 * seed + k) & (ndimage.zoom(blobs(16, seed + k), 16, order=0)) for k in range(3)]
        )
        ious = np.float32([0.2, 0.7, 0.4])
        assert score(masks, ious) == pytest.approx(by_definition(masks, ious), abs=0.06)


def test_a_prompt_has_no_distractor_and_the_candidates_alone_count() -> None:
    prompted = dataclasses.replace(frame(0), candidate_masks=frame(0).pred_masks, candidate_ious=torch.ones(1, 1))
    assert change(Distractor(), frame(1), prompted) == 0
    assert change(Distractor(), frame(1), frame(2)) == change(Distractor(), frame(3), frame(2))


def test_operations_are_counted() -> None:
    """More than the change scorers' bound of 60: parts are found in a fixed number of rounds."""
    now = frame(0, 1024)
    with Count() as count:
        Distractor().score(now, History())
    assert 60 < count.total <= 120
