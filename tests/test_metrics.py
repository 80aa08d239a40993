"""J and F against values derived by hand and against dilation by scikit-image and SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, maximum_filter, minimum_filter
from skimage.morphology import disk

from benchmarks.metrics import boundary_f, jaccard, score_masks, statistics

TOLERANCE = 1e-12


def square(top: int, left: int, side: int, size: tuple[int, int] = (40, 40)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def reference_f(prediction: np.ndarray, truth: np.ndarray, bound_th: float = 0.008) -> float:
    """F by the definition: outlines by minimum and maximum filters, matched by dilation with a disk."""

    def outline(mask: np.ndarray) -> np.ndarray:  # a pixel and its right, lower and lower right neighbour disagree
        values = mask.astype(np.uint8)
        corner = {"size": 2, "origin": -1, "mode": "nearest"}
        return maximum_filter(values, **corner) != minimum_filter(values, **corner)

    radius = math.ceil(bound_th * np.linalg.norm(truth.shape))
    a, b = outline(prediction), outline(truth)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision = (a & binary_dilation(b, disk(radius))).sum() / a.sum()
    recall = (b & binary_dilation(a, disk(radius))).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


EMPTY, FULL, SQUARE = np.zeros((40, 40), bool), np.ones((40, 40), bool), square(10, 10, 8)


@pytest.mark.parametrize(
    ("prediction", "truth", "j", "f"),
    [
        (EMPTY, EMPTY, 1.0, 1.0),
        (EMPTY, SQUARE, 0.0, 0.0),
        (SQUARE, EMPTY, 0.0, 0.0),
        (FULL, FULL, 1.0, 1.0),
        (FULL, SQUARE, 64 / 1600, 0.0),  # a full frame has no outline: nothing to recall
        (FULL, EMPTY, 0.0, 1.0),  # neither has an outline: F cannot tell them apart, as in the official evaluation
        (SQUARE, SQUARE, 1.0, 1.0),
        (square(10, 11, 8), SQUARE, 56 / 72, 1.0),  # one pixel off lies within the disk (radius 1)
        (square(25, 25, 8), SQUARE, 0.0, 0.0),
    ],
)
def test_edge_cases(prediction, truth, j, f):
    assert jaccard(prediction, truth) == pytest.approx(j, abs=TOLERANCE)
    assert boundary_f(prediction, truth) == pytest.approx(f, abs=TOLERANCE)


def test_f_by_hand():
    # An 8x8 square's outline runs along rows 9 and 17 and columns 9 and 17: a ring of 4 * 9 - 4 = 32 pixels.
    # Moved 3 to the right, its columns stand at 12 and 20. Radius ceil(0.008 * 56.57) = 1 matches a pixel and its
    # four neighbours. On row 9 the rings share columns 12..17, which match, and so do 11 and 18 beside them.
    # Of the first ring's row: columns 11..17, 7 pixels; row 17 the same; its right column 17 (rows 10..16, 7 pixels):
    # rows 10 and 16 touch the other ring's rows, the other 5 do not; its left column 9 matches nothing. 7 + 7 + 2 = 16.
    truth, prediction = square(10, 10, 8), square(10, 13, 8)
    assert boundary_f(prediction, truth) == pytest.approx(16 / 32, abs=TOLERANCE)
    assert jaccard(prediction, truth) == pytest.approx(40 / 88, abs=TOLERANCE)


def test_void_pixels():
    truth, prediction, void = square(10, 10, 8), square(10, 10, 10), np.zeros((40, 40), np.uint8)
    void[:, 18:] = 1
    void[18:] = 1
    assert jaccard(prediction, truth, void) == 1.0
    assert boundary_f(prediction, truth, void) == 1.0
    assert jaccard(prediction, truth) == pytest.approx(64 / 100, abs=TOLERANCE)
    assert boundary_f(prediction, truth) < 1
    assert jaccard(prediction, truth, np.ones_like(void)) == 1.0  # nothing is known: both empty


@pytest.mark.parametrize(
    ("size", "radius"), [((20, 30), 1), ((100, 75), 1), ((120, 160), 2), ((240, 427), 4), ((480, 854), 8)]
)
def test_f_at_several_sizes(size, radius):
    assert math.ceil(0.008 * math.hypot(*size)) == radius
    rng = np.random.default_rng(size[0])
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(3):
        masks = []
        for _ in range(2):
            centre, axes = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.1, 0.5, 2) * size
            masks.append(((y - centre[0]) / axes[0]) ** 2 + ((x - centre[1]) / axes[1]) ** 2 < 1)
        moved = np.roll(masks[0], radius, 1)
        for prediction in (masks[1], moved):
            expected = reference_f(prediction, masks[0])
            assert boundary_f(prediction, masks[0]) == pytest.approx(expected, abs=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 24), st.integers(2, 24), st.sampled_from([0.02, 0.3, 0.5, 0.98]))
def test_any_masks(seed, height, width, density):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, height, width)) < density
    assert boundary_f(prediction, truth, bound_th=0.1) == pytest.approx(
        reference_f(prediction, truth, 0.1), abs=TOLERANCE
    )
    assert boundary_f(prediction, truth) == pytest.approx(boundary_f(truth, prediction), abs=TOLERANCE)


def test_several_objects_are_scored_apart():
    truth, prediction = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    truth[5:15, 5:15], truth[20:30, 20:30] = 1, 2
    prediction[5:15, 5:15], prediction[20:30, 20:25] = 1, 2
    assert [jaccard(prediction == i, truth == i) for i in (1, 2)] == [1.0, 0.5]


def test_statistics_by_hand():
    # Eight frames: quarters are bounded by frames round(1, 2.75, 4.5, 6.25, 8) = 1, 3, 5 (half up), 6, 8.
    values = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    result = statistics(values)
    assert result.mean == pytest.approx(0.65, abs=TOLERANCE)
    assert result.recall == pytest.approx(5 / 8, abs=TOLERANCE)  # 0.5 itself is not above 0.5
    assert result.decay == pytest.approx(0.9 - (0.5 + 0.4 + 0.3) / 3, abs=TOLERANCE)
    assert statistics([0.7]).decay == 0
    assert math.isnan(statistics([]).mean)


def test_decay_of_long_videos_does_not_wrap():
    values = [1.0] * 900 + [0.0] * 100
    assert statistics(values).decay == pytest.approx(1 - 151 / 251, abs=TOLERANCE)  # frames 751..1001 of 1000


def test_the_first_and_last_frame_are_left_out():
    truth = [SQUARE] * 4
    predictions = [EMPTY, SQUARE, SQUARE, EMPTY]
    assert score_masks(predictions, truth).jf == 1.0
    assert score_masks(predictions, truth, skip_ends=False).jf == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: jaccard(EMPTY, np.zeros((40, 41))),
        lambda: boundary_f(EMPTY[None], EMPTY[None]),
        lambda: boundary_f(EMPTY, EMPTY, np.zeros((2, 2))),
        lambda: score_masks([EMPTY], [EMPTY, EMPTY]),
    ],
)
def test_bad_input_is_a_sentence(call):
    with pytest.raises(ValueError, match=r"size|one value a pixel|one for each frame"):
        call()
