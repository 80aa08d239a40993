"""J, F and J&F as DAVIS 2017 defines them, with recall and decay.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016;
Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", 2017. Values equal those of the official
`davis2017-evaluation` package, with one difference: there the frame numbers that bound the decay's quarters are kept
in 8 bits and wrap around from 256 scored frames on (under NumPy 2; before it, from 257 on); here they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BOUND_TH = 0.008
"""Tolerance of the boundary measure, as a share of the image diagonal."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Statistics:
    """One measure over the scored frames of one object, each a share in [0, 1] (decay in [-1, 1]).

    Attributes:
        mean: Mean over frames.
        recall: Share of frames above 0.5.
        decay: Mean of the first quarter minus mean of the last; positive: it got worse.
    """

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """Accuracy of one object in one video: region similarity J and boundary accuracy F."""

    j: Statistics
    f: Statistics

    @property
    def jf(self) -> float:
        """J&F: the mean of J's mean and F's mean, in [0, 1]."""
        return (self.j.mean + self.f.mean) / 2


def jaccard(
    prediction: NDArray[np.generic], truth: NDArray[np.generic], void: NDArray[np.generic] | None = None
) -> float:
    """Return the region similarity J of two masks: intersection over union in [0, 1].

    Two empty masks agree: 1.

    Args:
        prediction: (H, W); nonzero is object.
        truth: (H, W).
        void: (H, W); nonzero pixels count for nothing.

    Raises:
        ValueError: When shapes differ or are not two-dimensional.
    """
    predicted, true = _prepare(prediction, truth, void)
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def boundary_f(
    prediction: NDArray[np.generic],
    truth: NDArray[np.generic],
    void: NDArray[np.generic] | None = None,
    bound_th: float = BOUND_TH,
) -> float:
    """Return the boundary accuracy F of two masks: the F-measure of their outlines in [0, 1].

    An outline pixel is matched when the other outline passes within a disk around it. A mask that fills the frame has
    no outline, exactly like an empty one. Two masks without outline agree: 1; where only one has an outline: 0.

    Args:
        prediction: (H, W); nonzero is object.
        truth: (H, W).
        void: (H, W); nonzero pixels become background in both masks.
        bound_th: Radius of the disk in pixels when at least 1, else as a share of the diagonal, rounded up.

    Raises:
        ValueError: When shapes differ or are not two-dimensional.
    """
    predicted, true = _prepare(prediction, truth, void)
    return _f(predicted, true, bound_th if bound_th >= 1 else math.ceil(bound_th * math.hypot(*predicted.shape)))


def boundary_f_of_size(
    prediction: NDArray[np.generic], truth: NDArray[np.generic], void: NDArray[np.generic] | None = None
) -> float:
    """Return F as MOSEv2 measures it: the tolerance goes by the object's size, so that small objects get no gift.

    The disk's radius is 0.1 times the square root of the true mask's area, rounded up, and at most 0.008 of the
    diagonal, not rounded; where the true mask is empty it does not matter.

    Args:
        prediction: (H, W); nonzero is object.
        truth: (H, W).
        void: (H, W); nonzero pixels become background in both masks.

    Source: Ding et al., MOSEv2, 2025; `f_measure_adaptive` of henghuiding/MOSE-api. A cap that is no whole number gives
    there a disk off its centre by less than a pixel; here it is a disk of that radius.
    """
    predicted, true = _prepare(prediction, truth, void)
    return _f(predicted, true, min(math.ceil(0.1 * math.sqrt(true.sum())), BOUND_TH * math.hypot(*true.shape)))


def _f(predicted: Mask, true: Mask, radius: float) -> float:
    predicted, true = _crop(predicted, true)
    predicted_outline, true_outline = _outline(predicted), _outline(true)
    predicted_length, true_length = np.count_nonzero(predicted_outline), np.count_nonzero(true_outline)
    if not predicted_length or not true_length:
        return float(predicted_length == true_length)
    precision = np.count_nonzero(predicted_outline & _within(true_outline, radius)) / predicted_length
    recall = np.count_nonzero(true_outline & _within(predicted_outline, radius)) / true_length
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: Sequence[float]) -> Statistics:
    """Return mean, recall and decay of one measure over the scored frames of one object.

    Args:
        values: One number in [0, 1] a frame, in order. No frames at all give NaN throughout.
    """
    frames = np.asarray(values, dtype=np.float64)
    if not len(frames):
        return Statistics(math.nan, math.nan, math.nan)
    bounds = (np.round(np.linspace(1, len(frames), 5) + 1e-10) - 1).astype(int)
    first, last = frames[bounds[0] : bounds[1] + 1], frames[bounds[3] : bounds[4] + 1]
    return Statistics(float(frames.mean()), float((frames > 0.5).mean()), float(first.mean() - last.mean()))


def score(j: Sequence[float], f: Sequence[float]) -> ObjectScore:
    """Return an object's score from its J and F on every scored frame, in order."""
    return ObjectScore(statistics(j), statistics(f))


def score_masks(
    predictions: Sequence[NDArray[np.generic]], truths: Sequence[NDArray[np.generic]], *, skip_ends: bool = True
) -> ObjectScore:
    """Return the score of one object whose masks are all at hand.

    Args:
        predictions: (H, W) a frame, the first frame's too; nonzero is object.
        truths: (H, W) a frame.
        skip_ends: Leave out the first and the last frame, as DAVIS 2017 does.

    Raises:
        ValueError: When numbers of frames or shapes differ.
    """
    if len(predictions) != len(truths):
        raise ValueError(f"{len(predictions)} predicted masks for {len(truths)} true ones; give one for each frame")
    pairs = list(zip(predictions, truths, strict=True))
    if skip_ends:
        pairs = pairs[1:-1]
    return score([jaccard(p, t) for p, t in pairs], [boundary_f(p, t) for p, t in pairs])


def _prepare(
    prediction: NDArray[np.generic], truth: NDArray[np.generic], void: NDArray[np.generic] | None
) -> tuple[Mask, Mask]:
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(
            f"masks must be (H, W) and of one size, got {prediction.shape} predicted and {truth.shape} true; "
            "resize the prediction to the annotation's size first"
        )
    predicted, true = prediction.astype(bool), truth.astype(bool)
    if void is None:
        return predicted, true
    if void.shape != truth.shape:
        raise ValueError(f"void pixels have shape {void.shape}, the masks {truth.shape}; give one value a pixel")
    known = ~void.astype(bool)
    return predicted & known, true & known


def _crop(predicted: Mask, true: Mask) -> tuple[Mask, Mask]:
    """Return both masks cut to the object and one pixel around it: nothing outside has or matches an outline."""
    object_ = predicted | true
    rows, columns = np.flatnonzero(object_.any(1)), np.flatnonzero(object_.any(0))
    if not len(rows):
        return predicted, true
    box = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    return predicted[box], true[box]


def _outline(mask: Mask) -> Mask:
    """Return where a mask differs from its right, lower or lower right neighbour; the frame's edge is no outline."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    differs: Mask = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return differs


def _within(outline: Mask, radius: float) -> Mask:
    """Return the pixels that lie at most `radius` pixels from an outline."""
    distance = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near: Mask = np.less(distance**2, math.floor(radius**2) + 0.5)  # squared distances are whole numbers
    return near
