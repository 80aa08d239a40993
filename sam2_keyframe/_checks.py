"""Checks of what the choices of a method are given, with errors that name the value."""

from __future__ import annotations

import dataclasses
import difflib
import math
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np

from sam2_keyframe.types import Relation


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return the end of a message about an unknown name: the known one that is most like it, or nothing."""
    texts = {str(each).lower(): str(each) for each in known}
    close = difflib.get_close_matches(str(name).lower(), texts, 1)
    return f"; did you mean {texts[close[0]]!r}?" if close else ""


def brief(text: object, width: int = 160) -> str:
    """Return a text on one line, cut between words where it is longer."""
    return textwrap.shorten(str(text), width, placeholder=" ...")


def plain_number(value: Any) -> Any:
    """Return Python's number for one of NumPy's, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plain(owner: object, field: str) -> Any:
    """Return a field's value, and make it Python's number where it is NumPy's, so that a `repr` can be read again."""
    given = getattr(owner, field)
    value = plain_number(given)
    if value is not given:
        object.__setattr__(owner, field, value)
    return value


def check_whole(owner: object, *fields: str, least: int = 1, most: int | None = None) -> None:
    """Raise ValueError unless each field holds a whole number of at least `least`, and at most `most`."""
    for field in fields:
        value = plain(owner, field)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and least <= value <= (value if most is None else most)):
            span = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{type(owner).__name__}({field}={value!r}): must be a whole number {span}")


def check_number(owner: object, *fields: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise ValueError unless each field holds a finite number from `low` to `high`."""
    for field in fields:
        value = plain(owner, field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and low <= value <= high):
            span = f" in [{low:g}, {high:g}]" if math.isfinite(low) or math.isfinite(high) else ""
            raise ValueError(f"{type(owner).__name__}({field}={value!r}): must be a finite number{span}")


def check_relation(owner: object, relation: object) -> None:
    """Raise TypeError unless `relation` is one."""
    if not isinstance(relation, Relation):
        raise TypeError(f"{type(owner).__name__}(relation={relation!r}): give a relation such as CellCosine()")


def short_repr(owner: Any) -> str:
    """Return a dataclass's `repr` without the fields that have their defaults; it rebuilds the object."""
    if not dataclasses.is_dataclass(owner):
        return object.__repr__(owner)
    given: list[str] = []
    by_name = False
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if type(value) is type(default) and value == default:
            by_name = True
        else:
            by_name |= bool(given) and not hasattr(value, "accept")
            given.append(f"{field.name}={value!r}" if by_name else repr(value))
    return f"{type(owner).__name__}({', '.join(given)})"
