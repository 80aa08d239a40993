"""Scores made of scores: novelty, surprise, change over time, combinations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import check_choice, check_range, in_float32
from sam2_keyframe.scorers.features import FeatureShift, describe, vector_change
from sam2_keyframe.scorers.masks import MaskIoU
from sam2_keyframe.types import RECORDS, FrameRecord, History, Scorer, TrackedFrame

WARM_UP = 5
"""Past scores without which nothing is called unusual."""


def standardise(value: Tensor, name: str, records: Sequence[FrameRecord], window: int) -> Tensor:
    """Return how far a score lies above its running mean, in standard deviations; 0 where it lies below.

    Mean and standard deviation are over those of the last `window` records in which the score is a number. With fewer
    than `WARM_UP` of them the result is 0. The standard deviation counts as at least 1e-3 and 1 % of the mean, so that
    a still scene does not make rounding look unusual.
    """
    past = [score for record in list(records)[-window:] if math.isfinite(score := record.scores.get(name, math.nan))]
    if len(past) < WARM_UP:
        return value * 0
    mean = sum(past) / len(past)
    spread = math.sqrt(sum((score - mean) ** 2 for score in past) / len(past))
    return ((value - mean) / max(spread, 1e-3, 0.01 * abs(mean))).clamp(min=0)


@dataclass(frozen=True, repr=False)
class Novelty(Comparable):
    """Distance of the object's features to those of the closest keyframe held, in [0, 2].

    Attributes:
        feature: As in `FeatureShift`.
        distance: As in `FeatureShift`.
        name: Name of the score in records, filters and tables.

    Source: novelty as the distance to the nearest neighbour in the archive (J. Lehman and K. Stanley, 2011, k = 1).
    """

    feature: Literal["pointer", "memory", "image"] = "pointer"
    distance: Literal["cosine", "l2"] = "cosine"
    name: str = "novelty"

    all_keyframes: ClassVar[bool] = True
    """Tells the bank to keep what was described of every keyframe, not of the last alone."""

    def __post_init__(self) -> None:
        FeatureShift(self.feature, self.distance)

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim distance; NaN while no keyframe is held."""
        vector = describe(frame, self.feature)
        found = [reference.get(f"object/{self.feature}") for reference in history.keyframes]
        held = [other for other in found if other is not None]
        if vector is None or not held:
            return frame.unknown()
        return vector_change(vector, torch.stack(held), self.distance).amin()


@dataclass(frozen=True, repr=False)
class Surprise(Comparable):
    """How far a score lies above its own running mean, in standard deviations, at least 0.

    0 for the first five frames that have the score. The standard deviation counts as at least 1e-3 and 1 % of the
    mean.

    Attributes:
        of: The score to watch; it is recorded under its own name too, the default as `mask_iou_previous`.
        window: Frames the mean and the standard deviation are over, 5 to 300.
        name: Name of the score in records, filters and tables.

    Source: the z-score, as adaptive thresholds in shot detection use it (Y. Yusoff et al., 2000).
    """

    of: Scorer = field(default_factory=lambda: MaskIoU(reference="previous", name="mask_iou_previous"))
    window: int = 30
    name: str = "surprise"

    def __post_init__(self) -> None:
        check_range(self, "window", WARM_UP, RECORDS, whole=True)
        _check_names(self, self.parts)

    @property
    def parts(self) -> tuple[Scorer, ...]:
        """The scorers it is made of."""
        return (self.of,)

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim deviation; NaN where the watched score is."""
        return standardise(frame.measure(self.of, history), self.of.name, history.records, self.window)


@dataclass(frozen=True, repr=False)
class Spatiotemporal(Comparable):
    """A spatial change times the frames since the last keyframe: large changes count at once, small ones in time.

    Attributes:
        of: The spatial change; it is recorded under its own name too.
        name: Name of the score in records, filters and tables.

    Source: ours; the product of spatial change and temporal distance.
    """

    of: Scorer = field(default_factory=MaskIoU)
    name: str = "spatiotemporal"

    def __post_init__(self) -> None:
        _check_names(self, self.parts)

    @property
    def parts(self) -> tuple[Scorer, ...]:
        """The scorers it is made of."""
        return (self.of,)

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim product, in change times frames; NaN without a keyframe."""
        change = frame.measure(self.of, history)
        if history.keyframe is None:
            return frame.unknown()
        return change * abs(frame.frame_idx - history.keyframe.frame_idx)


@dataclass(frozen=True, repr=False)
class Combine(Comparable):
    """Several scores as one; each is recorded under its own name too. NaN where one of them is.

    Attributes:
        parts: Two scorers or more, with different names.
        weights: One factor a part, >= 0; None means 1 for each.
        how: `"sum"`, `"max"` or `"product"` of the weighted parts.
        scale: `"raw"`, or `"z"`: each part in standard deviations above its running mean first, as in `Surprise`.
        window: Frames the running mean is over, 5 to 300.
        name: Name of the score in records, filters and tables.

    Source: score-level fusion by sum, maximum and product rule (J. Kittler et al., 1998).
    """

    parts: tuple[Scorer, ...]
    weights: tuple[float, ...] | None = None
    how: Literal["sum", "max", "product"] = "sum"
    scale: Literal["raw", "z"] = "raw"
    window: int = 30
    name: str = "combine"

    def __post_init__(self) -> None:
        if isinstance(self.parts, Scorer):
            raise TypeError(f"Combine({self.parts!r}): give the scorers as one tuple, Combine((MaskIoU(), SSIM()))")
        object.__setattr__(self, "parts", tuple(self.parts))
        check_choice(self, "how", ("sum", "max", "product"))
        check_choice(self, "scale", ("raw", "z"))
        check_range(self, "window", WARM_UP, RECORDS, whole=True)
        if len(self.parts) < 2:
            raise ValueError(f"Combine(parts={self.parts!r}): give at least two scorers")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            if len(self.weights) != len(self.parts) or not all(0 <= weight < math.inf for weight in self.weights):
                raise ValueError(f"Combine(weights={self.weights!r}): give {len(self.parts)} finite numbers >= 0")
        _check_names(self, self.parts)

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim combination."""
        values = [frame.measure(part, history) for part in self.parts]
        if self.scale == "z":
            values = [
                standardise(value, part.name, history.records, self.window)
                for value, part in zip(values, self.parts, strict=True)
            ]
        if self.weights is not None:
            values = [value * weight for value, weight in zip(values, self.weights, strict=True)]
        together = torch.stack(values)
        if self.how == "max":
            return together.amax()
        return together.sum() if self.how == "sum" else together.prod()


def _check_names(owner: Scorer, parts: Sequence[Scorer]) -> None:
    """Raise ValueError when two different scorers inside the owner share a name; TypeError for a part that is none."""
    seen: dict[str, Scorer] = {owner.name: owner}
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Scorer) or isinstance(part, type):
            raise TypeError(f"{type(owner).__name__} is made of scorers such as MaskIoU(), not {part!r}")
        if seen.setdefault(part.name, part) != part:
            raise ValueError(f"{part!r} and {seen[part.name]!r} share a name: give one of them another name=...")
        waiting.extend(getattr(part, "parts", ()))
