"""What every filter shares: `&`, `|`, `~`, and the scores it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sam2_keyframe.types import FrameRecord, KeyframeFilter


class Combinable:
    """Gives a filter `&`, `|` and `~`."""

    def __and__(self, other: KeyframeFilter) -> And:
        """Accept what both accept."""
        return And(self, other) if _is_filter(other) else NotImplemented  # type: ignore[arg-type]

    def __or__(self, other: KeyframeFilter) -> Or:
        """Accept what either accepts."""
        return Or(self, other) if _is_filter(other) else NotImplemented  # type: ignore[arg-type]

    def __invert__(self) -> Not:
        """Accept what this one rejects."""
        return Not(self)  # type: ignore[arg-type]

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""
        return frozenset()


def _is_filter(other: object) -> bool:
    return isinstance(other, KeyframeFilter) and not isinstance(other, type)


def reads(rule: object) -> frozenset[str]:
    """Return the names of the scores that a filter reads, as far as it tells."""
    names: frozenset[str] = getattr(rule, "reads", frozenset())
    return names


@dataclass(frozen=True)
class _Pair(Combinable):
    """Two filters asked together."""

    first: KeyframeFilter
    second: KeyframeFilter

    @property
    def reads(self) -> frozenset[str]:
        """Names of the scores that both filters read."""
        return reads(self.first) | reads(self.second)


class And(_Pair):
    """Accept what both filters accept."""

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether both accept."""
        return self.first.accept(record, past) and self.second.accept(record, past)


class Or(_Pair):
    """Accept what either filter accepts."""

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether either accepts."""
        return self.first.accept(record, past) or self.second.accept(record, past)


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


def score_of(record: FrameRecord, name: str | None) -> float:
    """Return the named score, or the significance where the name is None; NaN: unknown.

    Raises:
        ValueError: The record has no such score.
    """
    if name is None:
        return record.significance
    try:
        return record.scores[name]
    except KeyError:
        raise ValueError(
            f"a filter reads the score {name!r}, which frame {record.frame_idx} does not have; it has "
            f"{', '.join(sorted(record.scores)) or 'none'}. Add the scorer to the method's `measure`."
        ) from None


def latest(past: Sequence[FrameRecord], count: int) -> Iterator[FrameRecord]:
    """Yield the newest `count` records, newest first, and look at no others."""
    return islice(reversed(past), max(count, 0))


def known(past: Sequence[FrameRecord], name: str | None, count: int) -> list[float]:
    """Return the finite values of a score among the newest `count` records, newest first."""
    return [value for record in latest(past, count) if math.isfinite(value := score_of(record, name))]


def named(*names: str | None) -> frozenset[str]:
    """Return the names of scores given; None stands for the significance, which always is there."""
    return frozenset(name for name in names if name is not None)
