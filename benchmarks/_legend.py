"""What a run's point looks like in the plots, and what it is called there: the same in pictures and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

from benchmarks._compare import Result
from benchmarks.sweep import BASELINES

COLOURS = ("#1f6fb4", "#e08214", "#2a9d5c", "#8352a8", "#c2458f", "#8a6a3b", "#17a0b0", "#7f9a1e", "#444444", "#e8b000")
MARKERS = "o^svXp<>dhD"
MANY = 12
"""Runs beyond which they are coloured by family instead of each being named."""


@dataclass(frozen=True)
class Look:
    """How the runs of a family are drawn; baselines hollow and large, so that what lies on them is seen.

    Attributes:
        colour: As in CSS.
        marker: As in matplotlib.
        area: In square points; 0: as small as the points around ask for.
    """

    colour: str
    marker: str
    area: float = 0.0


BASELINE_LOOKS = {BASELINES[0]: Look("#b0402f", "s", 300.0), BASELINES[1]: Look("#565b66", "D", 180.0)}


def families(results: Sequence[Result]) -> dict[str, str]:
    """Return what the runs are called in a legend, by label: the choices in which a method's runs differ.

    Where there are many runs they are named after the first of these choices alone, and share its look.
    """
    several = len({_name(result) for result in results if result.label not in BASELINES}) > 1
    found = {}
    for result in results:
        common = _common(results, _name(result))
        parts = [part for part in result.metrics["config"]["method"]["set"] if part not in common]
        parts = parts[:1] if len(results) > MANY else parts
        found[result.label] = " ".join([_name(result), *parts] if several or not parts else parts)
    return found


def left_out(results: Sequence[Result]) -> str:
    """Return a sentence with the choices that all runs of a method have, which `families` leaves out; or nothing."""
    common = {name: _common(results, name) for name in dict.fromkeys(map(_name, results))}
    return "; ".join(f"{name}: {' '.join(parts)} in every run" for name, parts in common.items() if parts)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the looks of families, baselines first; no two of about a hundred are alike."""
    others = sorted(set(names) - set(BASELINES))
    chosen = {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])  # their numbers have no common factor
        for i, name in enumerate(others)
    }
    return {name: look for name, look in BASELINE_LOOKS.items() if name in set(names)} | chosen


def marker_path(marker: str) -> str:
    """Return a marker as the `d` of an SVG path around 0, one unit across, y down."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform() + Affine2D().scale(1, -1))
    letters = {path.MOVETO: "M", path.LINETO: "L", path.CURVE3: "Q", path.CURVE4: "C", path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in path.iter_segments(simplify=False):
        numbers = "" if code == path.CLOSEPOLY else " ".join(f"{value:.3f}" for value in points)
        parts.append(letters[code] + numbers)
    return "".join(parts)


def _name(result: Result) -> str:
    return str(result.metrics["config"]["method"]["name"])


def _common(results: Sequence[Result], name: str) -> list[str]:
    """Return the replacements that all runs of a method have, in their order; none where it has one run."""
    sets = [result.metrics["config"]["method"]["set"] for result in results if _name(result) == name]
    return [part for part in sets[0] if all(part in each for each in sets)] if len(sets) > 1 else []
