"""What memory is for: scores of how an object's absences and returns are dealt with, beside J&F of the whole video.

An absence is a run of scored frames on which the object shows no pixel, a return the run of frames on which it does
after one. All shares are in [0, 1]; what a video has none of is NaN.

Source of J&F over disappearance and reappearance and of the boundary measure: Ding et al., "MOSEv2: A More Challenging
Dataset for Video Object Segmentation in Complex Scenes", 2025, as its `MOSEv2/sam2_rcms/tools/score.py` computes them.
There J is (intersection + 1) / (union + 1); here it is DAVIS's, so that a false mask scores 0 and not 1 / (area + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

RECOVERY = 30
"""Frames after a return over which recovery is measured."""

SCORES = ("recovery", "found", "false_masks", "jf_gone", "jf_back", "jf_size")
"""Names of the scores in tables and results."""

FOUND = 0.5
"""J over them above which the object counts as found again."""


@dataclass(frozen=True, slots=True)
class Absences:
    """How one method dealt with the absences of one object.

    Attributes:
        returns: Number of returns.
        recovery: J over the first 30 scored frames of each return, or as many as it has; mean over returns.
        found: Share of returns with a J above 0.5 over these.
        false_masks: Share of the absent frames on which the method shows a mask nevertheless.
        jf_gone: J&F over the frames of each absence, with MOSEv2's F; mean over absences, of which one that has begun
            when scoring begins does not count.
        jf_back: J&F over the frames of each return, with MOSEv2's F; mean over returns.
        jf_size: J&F over all scored frames, with MOSEv2's F, whose tolerance goes by the object's size.
    """

    returns: int
    recovery: float
    found: float
    false_masks: float
    jf_gone: float
    jf_back: float
    jf_size: float

    def columns(self) -> dict[str, float]:
        """Return the scores by name."""
        return asdict(self)


def absences(seen: Sequence[bool], shown: Sequence[bool], j: Sequence[float], f_size: Sequence[float]) -> Absences:
    """Return the scores of one object from its scored frames, in order.

    >>> found = absences([1, 0, 0, 1, 1], [1, 1, 0, 0, 1], [1.0, 0.0, 1.0, 0.0, 0.8], [1.0, 0.0, 1.0, 0.0, 1.0])
    >>> found.returns, found.recovery, found.found, found.false_masks, found.jf_gone, round(found.jf_back, 3)
    (1, 0.4, 0.0, 0.5, 0.5, 0.45)

    Args:
        seen: Whether the object shows on a frame, by the true mask.
        shown: Whether the method's mask has a pixel.
        j: Region similarity of the two.
        f_size: Boundary accuracy with the tolerance of MOSEv2, `metrics.boundary_f_of_size`.

    Raises:
        ValueError: When these are not of one length.
    """
    counts = {len(each) for each in (seen, shown, j, f_size)}
    if len(counts) > 1:
        raise ValueError(f"seen, shown, j and f_size have {sorted(counts)} frames; give one value of each a frame")
    true, both = np.asarray(seen, bool), (np.asarray(j, float) + np.asarray(f_size, float)) / 2
    edges = [0, *(np.flatnonzero(np.diff(true)) + 1).tolist(), len(true)] if len(true) else [0]
    runs = list(pairwise(edges))
    gone = [both[a:b].mean() for a, b in runs if a and not true[a]]
    back = [(a, b) for a, b in runs if a and true[a]]
    recovered = [float(np.mean(j[a : min(b, a + RECOVERY)])) for a, b in back]
    return Absences(
        returns=len(back),
        recovery=mean_or_nan(recovered),
        found=mean_or_nan([value > FOUND for value in recovered]),
        false_masks=mean_or_nan(np.asarray(shown, bool)[~true].tolist()),
        jf_gone=mean_or_nan(gone),
        jf_back=mean_or_nan([both[a:b].mean() for a, b in back]),
        jf_size=mean_or_nan(both.tolist()),
    )


def mean_or_nan(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan
