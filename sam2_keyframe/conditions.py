"""Conditions on frames: a scorer compared with a number is a rule, and rules combine with `&`, `|` and `~`.

A rule answers one question about a `FrameRecord`, in plain Python. It carries the scorers that it reads, so that a
memory measures what its rules ask for and nothing else: `Visible() & (MaskIoU() > 0.5)`. An unknown score (NaN:
nothing to compare with) passes, as new and as trustworthy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from sam2_keyframe._checks import plain, short_repr
from sam2_keyframe.types import FrameRecord, KeyframeFilter, Scorer


class _Compared(type):
    """Says of a class that is compared in place of an instance what to write."""

    def __gt__(cls, bound: object) -> NoReturn:
        raise TypeError(f"{cls.__name__} is a class: write {cls.__name__}() > {bound!r}")

    def __lt__(cls, bound: object) -> NoReturn:
        raise TypeError(f"{cls.__name__} is a class: write {cls.__name__}() < {bound!r}")


class Comparable(metaclass=_Compared):
    """Gives a scorer `>` and `<`, which make a rule of it: `MaskIoU() > 0.5`.

    Attributes:
        quality: Whether the score says how trustworthy a mask is, rather than what is new about the frame.
    """

    quality: ClassVar[bool] = False

    def __gt__(self, bound: float) -> Threshold:
        """Accept what scores more than a number."""
        return Threshold(self, bound)  # type: ignore[arg-type]

    def __lt__(self, bound: float) -> Threshold:
        """Accept what scores less than a number."""
        return Threshold(self, bound, "<")  # type: ignore[arg-type]

    def __ge__(self, bound: object) -> NoReturn:
        raise TypeError(f"a score is compared with > or <: write {self!r} > {bound!r}")

    def __le__(self, bound: object) -> NoReturn:
        raise TypeError(f"a score is compared with > or <: write {self!r} < {bound!r}")

    def _no_rule(self, other: object = None) -> NoReturn:
        raise TypeError(_bound_missing(self))

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _no_rule
    __repr__ = short_repr


class Combinable:
    """Gives a rule `&`, `|` and `~`.

    Attributes:
        blind: Whether the rule goes by where a frame lies alone, so that nothing has to be measured for it.
        learns: Whether it learns from past frames: from those that passed what stands to the left of the `&` before it.
    """

    blind: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def __and__(self, other: KeyframeFilter) -> And:
        """Accept what both accept."""
        return And(check_rule(self, "with &"), check_rule(other, "with &"))

    def __rand__(self, other: KeyframeFilter) -> And:
        """Accept what both accept."""
        return And(check_rule(other, "with &"), check_rule(self, "with &"))

    def __or__(self, other: KeyframeFilter) -> Or:
        """Accept what either accepts."""
        return Or(check_rule(self, "with |"), check_rule(other, "with |"))

    def __ror__(self, other: KeyframeFilter) -> Or:
        """Accept what either accepts."""
        return Or(check_rule(other, "with |"), check_rule(self, "with |"))

    def __invert__(self) -> Not:
        """Accept what this one rejects."""
        return Not(check_rule(self, "with ~"))

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is a rule, which is neither true nor false: combine rules with & and | instead of `and` and "
            "`or`, put each comparison in parentheses, as in Visible() & (MaskIoU() > 0.5), and write "
            "(S > 0.2) & (S < 0.5) for 0.2 < S < 0.5"
        )

    __repr__ = short_repr


def check_rule(rule: Any, where: str) -> KeyframeFilter:
    """Return a rule.

    Raises:
        TypeError: It is none; the message says what to write.
    """
    if isinstance(rule, type):
        raise TypeError(f"{where}: {rule.__name__} is a class; give a rule such as Visible(), or MaskIoU() > 0.5")
    if isinstance(rule, KeyframeFilter):
        return rule
    if isinstance(rule, Scorer):
        raise TypeError(f"{where}: {_bound_missing(rule)}")
    raise TypeError(
        f"{where}: {rule!r} is no rule; give one such as Visible() or MaskIoU() > 0.5, and put comparisons in "
        "parentheses: Visible() & (MaskIoU() > 0.5)"
    )


def _bound_missing(scorer: object) -> str:
    return (
        f"{scorer!r} is a score, not a rule: compare it with a number, in parentheses, as in "
        f"Visible() & ({scorer!r} > 0.5)"
    )


@dataclass(frozen=True, repr=False)
class Threshold(Combinable):
    """Accept a frame whose score is above a bound, or below one. `MaskIoU() > 0.5` is short for it.

    Attributes:
        scorer: What is measured.
        bound: In the unit of the score.
        side: ">": the score must exceed the bound. "<": it must be less.

    Raises:
        TypeError: `scorer` is no scorer.
        ValueError: `bound` is no finite number.
    """

    scorer: Scorer
    bound: float
    side: Literal[">", "<"] = ">"

    def __post_init__(self) -> None:
        """Check both."""
        check_scorer(self.scorer, "Threshold")
        bound = plain(self, "bound")
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise ValueError(f"{self.scorer!r} {self.side} {bound!r}: compare a score with a finite number")
        if self.side not in (">", "<"):
            raise ValueError(f"Threshold(side={self.side!r}): choose '>' or '<'")

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the score lies on that side of the bound, or is unknown."""
        score = record.scores[self.scorer.name]
        return not (score <= self.bound if self.side == ">" else score >= self.bound)

    def __repr__(self) -> str:
        if isinstance(self.scorer, Comparable):
            return f"{self.scorer!r} {self.side} {self.bound!r}"
        return short_repr(self)


@dataclass(frozen=True)
class _Pair(Combinable):
    """Two rules asked together."""

    first: KeyframeFilter
    second: KeyframeFilter
    sign: ClassVar[str]

    def __repr__(self) -> str:
        right = isinstance(self.second, Threshold | _Pair)  # of & and |, the left operand needs none of its own kind
        left = isinstance(self.first, Threshold) or (
            isinstance(self.first, _Pair) and type(self.first) is not type(self)
        )
        return f"{_enclosed(self.first, left)} {self.sign} {_enclosed(self.second, right)}"


class And(_Pair):
    """Accept what both rules accept; the second learns from frames that the first accepted."""

    sign = "&"

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether both accept."""
        passed = ask(self.first, record, past)
        if not self._teaches:
            return passed and ask(self.second, record, past)
        record.passed[self.first] = passed
        return passed and ask(self.second, record, Past(past, self.first))

    @cached_property
    def _teaches(self) -> bool:
        return any(getattr(rule, "learns", False) for rule in parts_of(self.second))


class Or(_Pair):
    """Accept what either rule accepts."""

    sign = "|"

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether either accepts."""
        return ask(self.first, record, past) or ask(self.second, record, past)


@dataclass(frozen=True, repr=False)
class Not(Combinable):
    """Accept what the rule rejects."""

    inner: KeyframeFilter

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the inner rule rejects."""
        return not ask(self.inner, record, past)

    def __repr__(self) -> str:
        return f"~{_enclosed(self.inner, isinstance(self.inner, Threshold | _Pair))}"


def _enclosed(rule: object, needed: bool) -> str:
    return f"({rule!r})" if needed else repr(rule)


def ask(rule: KeyframeFilter, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
    """Return what a rule says of a frame.

    Raises:
        TypeError: It says neither True nor False.
        ValueError: It reads a score that nothing measures.
    """
    try:
        answer = rule.accept(record, past)
    except KeyError as error:
        name = error.args[0] if error.args else None
        if not isinstance(name, str) or name in record.scores:
            raise
        raise ValueError(
            f"{rule!r} reads the score {name!r}, which nothing measures; measured are "
            f"{', '.join(sorted(record.scores)) or 'none'}. Give the rule its scorer as a field, or the memory "
            "measure=(...,)"
        ) from error
    if answer is True or answer is False:
        return answer
    if isinstance(answer, np.bool_):
        return bool(answer)
    raise TypeError(f"{type(rule).__name__}.accept() returned {answer!r}: it must return True or False")


# -- what a rule consists of ---------------------------------------------------------------------------------------


def check_scorer(scorer: Any, where: str) -> Scorer:
    """Return a scorer.

    Raises:
        TypeError: It is none; the message says what is missing.
    """
    if isinstance(scorer, type):
        raise TypeError(f"{where}: {scorer.__name__} is a class; write {scorer.__name__}()")
    if isinstance(scorer, Scorer):
        return scorer
    missing = [name for name in ("name", "score") if not hasattr(scorer, name)]
    own = f" ({type(scorer).__name__} has no {' and no '.join(missing)})" if len(missing) == 1 else ""
    raise TypeError(f"{where}: {scorer!r} is no scorer{own}; give one such as MaskIoU()")


def parts_of(rule: object) -> Iterator[object]:
    """Yield a rule and, in order, the rules and scorers that it consists of."""
    yield rule
    if dataclasses.is_dataclass(rule):
        for field in dataclasses.fields(rule):
            value = getattr(rule, field.name)
            for each in value if isinstance(value, tuple | list) else (value,):
                if isinstance(each, type) and (hasattr(each, "accept") or hasattr(each, "score")):
                    raise TypeError(f"{rule!r}: {each.__name__} is a class; write {each.__name__}()")
                if isinstance(each, KeyframeFilter | Scorer):
                    yield from parts_of(each)


def scorers_of(rule: object) -> Iterator[Scorer]:
    """Yield the scorers that a rule reads, in order, each with those that it is made of."""
    yield from (part for part in parts_of(rule) if isinstance(part, Scorer))


def thresholds_of(rule: object) -> Iterator[Threshold]:
    """Yield the comparisons of a score with a number that a rule consists of, in order."""
    yield from (part for part in parts_of(rule) if isinstance(part, Threshold))


def looks(rule: object) -> bool:
    """Return whether frames have to be measured for a rule; a rule of one's own may read whatever is measured."""
    if isinstance(rule, _Pair):
        return looks(rule.first) or looks(rule.second)
    return looks(rule.inner) if isinstance(rule, Not) else not getattr(rule, "blind", False)


# -- what a rule may know of the past ------------------------------------------------------------------------------


class Past(Sequence[FrameRecord]):
    """The records of earlier frames, oldest first, with the rule that those passed from which one may learn.

    Args:
        records: The records; a `Past` hands on its rules.
        gate: The rule.
    """

    def __init__(self, records: Sequence[FrameRecord], gate: KeyframeFilter) -> None:
        before = records if isinstance(records, Past) else None
        self.records: Sequence[FrameRecord] = records if before is None else before.records
        self.gates: tuple[KeyframeFilter, ...] = (gate,) if before is None else (*before.gates, gate)

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[FrameRecord]:
        return iter(self.records)

    def __reversed__(self) -> Iterator[FrameRecord]:
        return reversed(self.records)


def learned(past: Sequence[FrameRecord]) -> Iterator[FrameRecord]:
    """Yield, newest first, the records that a rule may learn from.

    Those that passed what stands to the left of the `&`s around the rule, and on which the object is not hidden.
    """
    gates = past.gates if isinstance(past, Past) else ()
    for record in reversed(past):
        if record.scores.get("object_score", math.nan) <= 0:
            continue
        for gate in gates:
            if gate not in record.passed:  # it was not asked then, as a shelf before took the frame
                record.passed[gate] = ask(gate, record, ())
        if all(record.passed[gate] for gate in gates):
            yield record


def latest(past: Sequence[FrameRecord], count: int) -> Iterator[FrameRecord]:
    """Yield the newest `count` records, newest first, and look at no others."""
    return islice(reversed(past), max(count, 0))


def known(records: Iterator[FrameRecord], name: str, count: int) -> list[float]:
    """Return the finite values of a score among the first `count` records."""
    values = (record.scores[name] for record in islice(records, max(count, 0)))
    return [value for value in values if math.isfinite(value)]
