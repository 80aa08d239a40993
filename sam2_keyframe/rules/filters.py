"""Keyframe filters: decisions on recorded numbers, in plain Python.

A filter answers one question about a `FrameRecord`. Filters combine with `&`, `|` and `~`. An unknown score (NaN:
nothing to compare with, or a frame prompted by the user) counts as new and as trustworthy, so it is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sam2_keyframe._checks import check_number, check_whole, plain, plain_number
from sam2_keyframe.rules.adaptive import Adaptive, Hysteresis, MotionScaled, Quantile, SceneBoundary, StableArea
from sam2_keyframe.rules.logic import And, Combinable, Not, Or, named, reads, score_of
from sam2_keyframe.types import FrameRecord, KeyframeFilter

__all__ = [
    "FILTERS",
    "Adaptive",
    "Always",
    "And",
    "Combinable",
    "EffectiveScore",
    "EveryNth",
    "Frames",
    "Grid",
    "Hysteresis",
    "MaxGap",
    "MinGap",
    "MotionScaled",
    "Never",
    "Not",
    "Or",
    "Quality",
    "Quantile",
    "SceneBoundary",
    "StableArea",
    "Threshold",
    "Visible",
    "as_filter",
    "reads",
]


@dataclass(frozen=True)
class Always(Combinable):
    """Accept every frame."""

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True)
class Never(Combinable):
    """Accept no frame."""

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True)
class Threshold(Combinable):
    """Accept a frame whose score is above a bound.

    Attributes:
        above: The bound; a score must exceed it. In the unit of the score.
        of: Name of the score; None for the method's significance.
    """

    above: float
    of: str | None = None

    def __post_init__(self) -> None:
        """Check the bound."""
        above = plain(self, "above")
        if isinstance(above, bool) or not isinstance(above, int | float) or math.isnan(above):
            raise ValueError(f"Threshold(above={above!r}): must be a number")

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the score exceeds the bound or is unknown."""
        return not score_of(record, self.of) <= self.above

    @property
    def reads(self) -> frozenset[str]:
        """The score's name, where one was given."""
        return named(self.of)


@dataclass(frozen=True)
class Visible(Combinable):
    """Accept a frame on which SAM 2 sees the object.

    Attributes:
        above: Bound on the object score logit; SAM 2 itself blanks the mask at 0 and below.
    """

    above: float = 0.0

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the object score exceeds the bound."""
        return not score_of(record, "object_score") <= self.above

    @property
    def reads(self) -> frozenset[str]:
        """The object score."""
        return named("object_score")


@dataclass(frozen=True)
class Quality(Combinable):
    """Accept a frame whose mask SAM 2 itself rates well.

    Attributes:
        above: Bound on the predicted IoU, in [0, 1].

    Source: the gate of SAMURAI (Yang et al. 2411.11922) and SAM2Long (Ding et al. 2410.16268).
    """

    above: float = 0.5

    def __post_init__(self) -> None:
        """Check the bound."""
        check_number(self, "above", low=0, high=1)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the predicted IoU exceeds the bound."""
        return not score_of(record, "predicted_iou") <= self.above

    @property
    def reads(self) -> frozenset[str]:
        """The predicted IoU."""
        return named("predicted_iou")


@dataclass(frozen=True)
class EffectiveScore(Combinable):
    """Accept a frame whose mask is both there and well rated.

    The effective score is max(0, 2 sigmoid(object score) - 1) times the predicted IoU, in [0, 1].

    Attributes:
        above: Bound on the effective score, in [0, 1].

    Source: the frame filter of SAM 3's tracker (arXiv 2511.16719); there the score is averaged over the objects,
    which SAM 2 tracks one by one.
    """

    above: float = 0.01

    def __post_init__(self) -> None:
        """Check the bound."""
        check_number(self, "above", low=0, high=1)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the effective score exceeds the bound or is unknown."""
        seen = math.tanh(score_of(record, "object_score") / 2)  # 2 sigmoid(s) - 1
        return not (seen <= 0 or seen * score_of(record, "predicted_iou") <= self.above)

    @property
    def reads(self) -> frozenset[str]:
        """The object score and the predicted IoU."""
        return named("object_score", "predicted_iou")


@dataclass(frozen=True)
class _Distance(Combinable):
    """A filter by a distance in frames."""

    n: int = 5

    def __post_init__(self) -> None:
        """Check the distance."""
        check_whole(self, "n")


@dataclass(frozen=True)
class EveryNth(_Distance):
    """Accept every n-th frame, counted from the object's first prompt.

    Attributes:
        n: Distance between accepted frames, at least 1.
    """

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame lies on the grid."""
        return record.offset % self.n == 0


@dataclass(frozen=True)
class Grid(_Distance):
    """Accept the frames whose index in the video is a multiple of n, wherever the prompts are.

    Attributes:
        n: Distance between accepted frames, at least 1.
    """

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame lies on the grid."""
        return record.frame_idx % self.n == 0


@dataclass(frozen=True)
class Frames(Combinable):
    """Accept chosen frames and no others, as `choose_frames` finds them.

    Attributes:
        chosen: Frame indices, at least 0; any iterable of them, kept sorted.
    """

    chosen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the frames and sort them."""
        chosen = tuple(sorted(set(map(plain_number, self.chosen))))
        for idx in chosen:
            if isinstance(idx, bool) or not isinstance(idx, int) or idx < 0:
                raise ValueError(f"Frames(chosen={self.chosen!r}): {idx!r} must be a whole number of at least 0")
        object.__setattr__(self, "chosen", chosen)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame was chosen."""
        return record.frame_idx in self.chosen


@dataclass(frozen=True)
class MinGap(_Distance):
    """Accept a frame at least n frames after the last keyframe or prompt; every frame before the first of them.

    Attributes:
        n: Least distance in frames, at least 1.
        prompts: Whether prompts count; False: only keyframes do.
    """

    prompts: bool = True

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the gap is wide enough."""
        return (record.gap if self.prompts else record.since) >= self.n


@dataclass(frozen=True)
class MaxGap(_Distance):
    """Accept a frame when the last keyframe or prompt is n frames ago or more.

    The question of `MinGap`, asked with `|` instead of `&`: `Adaptive() | MaxGap(60)` has a keyframe every 60 frames
    even where nothing changes (the first that passes the gate).

    Attributes:
        n: Distance in frames after which a keyframe is due, at least 1.
    """

    n: int = 60

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether a keyframe is due."""
        return record.gap >= self.n


def as_filter(keep: KeyframeFilter | float) -> KeyframeFilter:
    """Return the filter that `keep` stands for: a number is a `Threshold` on the significance, infinity `Never`.

    Raises:
        TypeError: `keep` is neither a number nor a filter.
        ValueError: `keep` is NaN.
    """
    keep = plain_number(keep)
    if isinstance(keep, bool) or not isinstance(keep, int | float | KeyframeFilter):
        raise TypeError(f"keep={keep!r}: give a number (a threshold on the significance) or a keyframe filter")
    if not isinstance(keep, int | float):
        return keep
    if math.isnan(keep):
        raise ValueError("keep=nan: give a number that a significance can be compared with")
    return Never() if keep == math.inf else Threshold(float(keep))


_ALL: tuple[type, ...] = (
    Threshold, Adaptive, Quantile, MotionScaled, Hysteresis, SceneBoundary, Visible, Quality, EffectiveScore,
    StableArea, EveryNth, Grid, MinGap, MaxGap, Frames, Always, Never,
)  # fmt: skip

FILTERS: dict[str, type] = {cls.__name__: cls for cls in _ALL}
"""Filters by name."""
