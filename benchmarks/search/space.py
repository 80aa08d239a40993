"""What is searched: a method's own arguments, or a memory written out, with parameters in both; read from YAML.

A space is a mapping. `method: keyframe` or `memory: KeyframeMemory(...)` says what is built; every other key is a
parameter: a list of choices, a range `{low: 1, high: 5}` (whole numbers where both are; `step` and `log` as in Optuna),
or one fixed value. `{name}` in a text stands for the parameter of that name, and such a text may be one of the choices
of another parameter. Parameters called as an argument of the method, or as a choice of the whole memory, set it.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.plan import Spec, label
from sam2_keyframe import METHODS, KeyframeMemory, make_method
from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.app.options import parse_set, parse_value

SPACES = Path(__file__).with_name("spaces.yaml")
"""Examples."""
BUILT = ("method", "memory")
"""Keys of a space that say what is built."""
RANGE = ("low", "high", "step", "log")
"""Keys of a range."""
PLACE = re.compile(r"\{(\w+)\}")
"""Where a text names a parameter."""


@dataclass(frozen=True)
class Choices:
    """One of some texts."""

    texts: tuple[str, ...]

    def suggest(self, trial: Any, name: str) -> str:
        return str(trial.suggest_categorical(name, list(self.texts)))

    def points(self) -> tuple[str, ...]:
        return self.texts


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones where both bounds are."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Any, name: str) -> str:
        if self.whole:
            return str(trial.suggest_int(name, self.low, self.high, step=int(self.step or 1), log=self.log))
        return f"{trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log):.3g}"

    def points(self) -> tuple[str, ...]:
        """Return its numbers as texts; none where they are not finitely many."""
        if self.whole:
            return tuple(map(str, range(int(self.low), int(self.high) + 1, int(self.step or 1))))
        count = 0 if self.step is None else int((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(f"{self.low + i * (self.step or 0.0):.3g}" for i in range(count))


Parameter = Choices | Range


@dataclass(frozen=True)
class Space:
    """A space as the file has it.

    Attributes:
        name: Its name.
        built: A method's name, or a memory's text.
        parameters: By name.
        definition: What the file says, for comparison.
    """

    name: str
    built: str
    parameters: Mapping[str, Parameter]
    definition: Mapping[str, Any]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The parameters that set an argument of the method or a choice of the memory."""
        valid = {*_arguments(self.built), *KeyframeMemory.CHOICES} - set(PLACE.findall(self.built))
        return tuple(name for name in self.parameters if name in valid)

    def spec(self, values: Mapping[str, str]) -> Spec:
        """Return what a text for every parameter comes to."""

        def filled(text: str) -> str:
            return PLACE.sub(lambda place: filled(values[place[1]]), text)

        return filled(self.built), [f"{name}={filled(values[name])}" for name in self.arguments]

    def suggest(self, trial: Any) -> Spec:
        """Return what a trial of Optuna tries. All parameters are drawn, so that all of them are inherited."""
        return self.spec({name: each.suggest(trial, name) for name, each in self.parameters.items()})

    def grid(self) -> list[dict[str, str]]:
        """Return a text for every parameter, once for each method that they come to.

        Raises:
            ValueError: A range has no step.
        """
        endless = [name for name, each in self.parameters.items() if not each.points()]
        if endless:
            raise ValueError(
                f"space {self.name}: {', '.join(endless)} {'is a range' if len(endless) == 1 else 'are ranges'} "
                "without a step, of which no grid is made: give one, as in {low: 0.1, high: 0.9, step: 0.1}, or "
                "another --sampler"
            )
        texts = (each.points() for each in self.parameters.values())
        found = (dict(zip(self.parameters, point, strict=True)) for point in itertools.product(*texts))
        return list({label(self.spec(values)): values for values in reversed(list(found))}.values())[::-1]

    def members(self) -> Iterator[tuple[str, Spec]]:
        """Yield methods in which every choice, and the ends of every range, occur; each with what it is there for."""
        first = {name: _ends(each)[0] for name, each in self.parameters.items()}
        yield "", self.spec(first)
        for name, each in self.parameters.items():
            for text in _ends(each)[1:]:
                # inside the first choices of others that name it, or it would not occur
                yield f"{name}={text}", self.spec({**first, **self._reaching(name), name: text})

    def _reaching(self, name: str) -> dict[str, str]:
        """Return choices of the other parameters in which a parameter occurs."""
        found: dict[str, str] = {}
        for other, each in self.parameters.items():
            text = next((text for text in _ends(each) if name in PLACE.findall(text)), None)
            if other != name and text is not None:
                return {**self._reaching(other), other: text}
        return found


def build(spec: Spec) -> KeyframeMemory:
    """Return the method of a spec.

    Raises:
        ValueError: It cannot be built.
    """
    name, replacements = spec
    return make_method(parse_value(name) if "(" in name else name, **parse_set(replacements))


def load_space(name: str, file: Path = SPACES) -> Space:
    """Return a space of a file.

    Raises:
        ValueError: The file or the space is malformed, or one of its choices cannot be built; the message names it.
        OSError: The file cannot be read.
    """
    try:
        found = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise ValueError(f"{file}: write a mapping of spaces by name, as benchmarks/search/spaces.yaml does")
    if name not in found:
        raise ValueError(f"{file} has no space {name!r}; it has {', '.join(found)}{did_you_mean(name, found)}")
    space = _space(name, {str(key): value for key, value in found[name].items()})
    for what, spec in space.members():
        try:
            build(spec)
        except (ValueError, TypeError) as error:
            raise ValueError(f"space {name}{f', {what}' if what else ''}: {label(spec)}: {error}") from None
    return space


def _space(name: str, definition: Mapping[str, Any]) -> Space:
    given = [key for key in BUILT if key in definition]
    if len(given) != 1:
        raise ValueError(f"space {name}: give either method: NAME or memory: KeyframeMemory(...)")
    built = str(definition[given[0]]).strip()
    if given == ["method"] and built not in METHODS:
        raise ValueError(
            f"space {name}: there is no method {built!r}; choose one of {', '.join(METHODS)}"
            f"{did_you_mean(built, METHODS)}"
        )
    if given == ["memory"] and not built.startswith("KeyframeMemory("):
        raise ValueError(f"space {name}: memory: {built!r}: write a memory out, as in KeyframeMemory(Recent(1))")
    parameters = {
        key: _parameter(f"space {name}, {key}", value) for key, value in definition.items() if key not in BUILT
    }
    space = Space(name, built, parameters, definition)
    named = {key: set(PLACE.findall(" ".join(_texts(each)))) for key, each in parameters.items()}
    asked = set(PLACE.findall(built)).union(*named.values())
    missing = sorted(asked - parameters.keys())
    if missing:
        raise ValueError(f"space {name}: {{{missing[0]}}} stands in a text and there is no key {missing[0]!r}; add it")
    unknown = [key for key in parameters if key not in asked and key not in space.arguments]
    if unknown:
        raise ValueError(
            f"space {name}: unknown key {', '.join(unknown)}: neither an argument of {built.partition('(')[0]} nor a "
            f"choice of the whole memory ({', '.join(KeyframeMemory.CHOICES)}), and no text has it in braces"
            f"{did_you_mean(unknown[0], [*_arguments(built), *asked, *BUILT])}"
        )
    reached = {key: named[key] for key in parameters}
    for _ in parameters:  # as deep as texts can stand in each other without a circle
        reached = {key: set().union(*(named[other] for other in others)) for key, others in reached.items()}
    if circle := [key for key, others in reached.items() if others]:
        raise ValueError(f"space {name}: {', '.join(circle)} stand in each other without end; take one of them out")
    return space


def _arguments(built: str) -> list[str]:
    return list(inspect.signature(METHODS[built]).parameters) if built in METHODS else []


def _parameter(where: str, value: Any) -> Parameter:
    if isinstance(value, list):
        if not value or any(isinstance(each, list | dict) or each is None for each in value):
            raise ValueError(f"{where}: {value!r}: give a list of numbers, words and texts")
        return Choices(tuple(dict.fromkeys(map(str, value))))
    if not isinstance(value, dict):
        if value is None:
            raise ValueError(f"{where}: nothing is given: write a list of choices, or a range {{low: 1, high: 5}}")
        return Choices((str(value),))
    if unknown := [key for key in value if key not in RANGE]:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r} of a range; valid are {', '.join(RANGE)}"
            f"{did_you_mean(unknown[0], RANGE)}"
        )
    log = value.get("log", False)
    numbers = {key: value[key] for key in RANGE[:3] if key in value}
    bad = [key for key, number in numbers.items() if isinstance(number, bool) or not isinstance(number, int | float)]
    if bad or {"low", "high"} - value.keys() or not isinstance(log, bool):
        raise ValueError(f"{where}: {value!r}: write numbers, as in {{low: 0.1, high: 0.9, step: 0.1}} or log: true")
    found = Range(**numbers, log=log)
    step = 1 if found.whole and found.step is None else found.step
    fits = np.isfinite(list(numbers.values())).all() and found.low < found.high and (step is None or step > 0)
    if not fits or (log and (found.low <= 0 or found.step is not None)) or (found.whole and step != int(step or 1)):
        raise ValueError(
            f"{where}: {value!r}: low lies below high, step above 0 (whole between whole numbers); log takes a low "
            "above 0 and no step"
        )
    return found


def _texts(parameter: Parameter) -> tuple[str, ...]:
    return parameter.texts if isinstance(parameter, Choices) else ()


def _ends(parameter: Parameter) -> tuple[str, ...]:
    """Return a parameter's choices, or the ends of its range."""
    if isinstance(parameter, Choices):
        return parameter.texts
    return f"{parameter.low:.3g}", f"{parameter.high:.3g}"
