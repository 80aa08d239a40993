"""Keyframe filters: decisions on recorded numbers, in plain Python.

A filter answers one question about a `FrameRecord`. Filters combine with `&`, `|` and `~`. An unknown score (NaN:
nothing to compare with, or a frame prompted by the user) counts as new and as trustworthy, so it is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sam2_keyframe.types import FrameRecord, KeyframeFilter


class Combinable:
    """Gives a filter `&`, `|` and `~`."""

    def __and__(self, other: KeyframeFilter) -> KeyframeFilter:
        """Accept what both accept."""
        return And(self, other)  # type: ignore[arg-type]

    def __or__(self, other: KeyframeFilter) -> KeyframeFilter:
        """Accept what either accepts."""
        return Or(self, other)  # type: ignore[arg-type]

    def __invert__(self) -> KeyframeFilter:
        """Accept what this one rejects."""
        return Not(self)  # type: ignore[arg-type]

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""
        return frozenset()


def reads(rule: object) -> frozenset[str]:
    """Return the names of the scores that a filter reads, as far as it tells."""
    names: frozenset[str] = getattr(rule, "reads", frozenset())
    return names


@dataclass(frozen=True)
class And(Combinable):
    """Accept what both filters accept."""

    first: KeyframeFilter
    second: KeyframeFilter

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether both accept."""
        return self.first.accept(record, past) and self.second.accept(record, past)

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that both filters read."""
        return reads(self.first) | reads(self.second)


@dataclass(frozen=True)
class Or(Combinable):
    """Accept what either filter accepts."""

    first: KeyframeFilter
    second: KeyframeFilter

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether either accepts."""
        return self.first.accept(record, past) or self.second.accept(record, past)

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that both filters read."""
        return reads(self.first) | reads(self.second)


@dataclass(frozen=True)
class Not(Combinable):
    """Accept what the filter rejects."""

    inner: KeyframeFilter

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the inner filter rejects."""
        return not self.inner.accept(record, past)

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that the inner filter reads."""
        return reads(self.inner)


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

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the score exceeds the bound or is unknown."""
        return not _score(record, self.of) <= self.above

    @property
    def reads(self) -> frozenset[str]:
        """The score's name, where one was given."""
        return frozenset() if self.of is None else frozenset({self.of})


@dataclass(frozen=True)
class Visible(Combinable):
    """Accept a frame on which SAM 2 sees the object.

    Attributes:
        above: Bound on the object score logit; SAM 2 itself blanks the mask at 0 and below.
    """

    above: float = 0.0

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the object score exceeds the bound."""
        return not _score(record, "object_score") <= self.above

    @property
    def reads(self) -> frozenset[str]:
        """The object score."""
        return frozenset({"object_score"})


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
        if not 0.0 <= self.above <= 1.0:
            raise ValueError(f"Quality(above={self.above!r}): a predicted IoU lies in [0, 1]; choose a bound there")

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the predicted IoU exceeds the bound."""
        return not _score(record, "predicted_iou") <= self.above

    @property
    def reads(self) -> frozenset[str]:
        """The predicted IoU."""
        return frozenset({"predicted_iou"})


@dataclass(frozen=True)
class EveryNth(Combinable):
    """Accept every n-th frame, counted from the object's first prompt.

    Attributes:
        n: Distance between accepted frames, at least 1.
    """

    n: int = 5

    def __post_init__(self) -> None:
        """Check the distance."""
        _at_least("EveryNth", "n", self.n, 1)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame lies on the grid."""
        return record.offset % self.n == 0


@dataclass(frozen=True)
class MinGap(Combinable):
    """Accept a frame at least n frames after the last keyframe or prompt.

    Attributes:
        n: Least distance in frames, at least 1.
    """

    n: int = 5

    def __post_init__(self) -> None:
        """Check the distance."""
        _at_least("MinGap", "n", self.n, 1)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the gap is wide enough."""
        return record.gap >= self.n


def as_filter(keep: KeyframeFilter | float) -> KeyframeFilter:
    """Return the filter that `keep` stands for: a number is a `Threshold` on the significance, infinity `Never`.

    Raises:
        TypeError: `keep` is neither a number nor a filter.
        ValueError: `keep` is NaN.
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float | KeyframeFilter):
        raise TypeError(f"keep={keep!r}: give a number (a threshold on the significance) or a keyframe filter")
    if not isinstance(keep, int | float):
        return keep
    if math.isnan(keep):
        raise ValueError("keep=nan: give a number that a significance can be compared with")
    return Never() if keep == math.inf else Threshold(float(keep))


def _score(record: FrameRecord, name: str | None) -> float:
    if name is None:
        return record.significance
    try:
        return record.scores[name]
    except KeyError:
        raise ValueError(
            f"a filter reads the score {name!r}, which frame {record.frame_idx} does not have; it has "
            f"{', '.join(sorted(record.scores)) or 'none'}. Add the scorer to the method's `measure`."
        ) from None


def _at_least(owner: str, name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}({name}={value!r}): must be a whole number of at least {least}")


FILTERS: dict[str, type] = {
    cls.__name__: cls for cls in (Threshold, Visible, Quality, EveryNth, MinGap, Always, Never)
}
"""Filters by name."""
