"""Tables in Markdown, and the columns that tables of runs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import Difference, Group, Result


def markdown(head: Sequence[Any], rows: Iterable[Sequence[Any]], align: str = "---:") -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers; "|" in cells is escaped."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|---|" + f"{align}|" * (len(head) - 1), *lines[1:]]


def points(value: float, digits: int = 1) -> str:
    """Return a difference in points with its sign; never -0.0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def interval(found: Difference | None, digits: int = 1) -> str:
    """Return a difference and its interval, as in `+0.3 (-0.1 to +0.8)`; nothing where there is none.

    Of too few videos for an interval it says how many there are.
    """
    if found is None:
        return ""
    low, mean, high = (points(value, digits) for value in (found.low, found.mean, found.high))
    return f"{mean} ({low} to {high})" if found.shown else f"{mean} ({found.videos} videos)"


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Return a number with so many digits after the point; nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}{unit}"


def _score(name: str) -> Callable[[Group, Result], str]:
    return lambda _, result: number(result.metrics["accuracy"].get(name), 1)


def _versus(of: str, score: str = "jf") -> Callable[[Group, Result], str]:
    return lambda group, result: interval(group.gain(result, of=of, score=score))


COLUMNS: Mapping[str, Callable[[Group, Result], str]] = {
    "J&F": lambda _, result: number(result.jf, 1),
    "vs stock (95 %)": _versus("stock"),
    "vs every_nth": _versus("every_nth"),
    "vs random": _versus("random"),
    "recovery": _score("recovery"),
    "recovery vs stock": _versus("stock", "recovery"),
    "found": _score("found"),
    "false masks": _score("false_masks"),
    "false masks vs stock": _versus("stock", "false_masks"),
    "gone": _score("jf_gone"),
    "back": _score("jf_back"),
    "J": lambda _, result: number(result.metrics["accuracy"]["j"], 1),
    "F": lambda _, result: number(result.metrics["accuracy"]["f"], 1),
    "frames": lambda _, result: number(result.occupancy("peak_frames"), 1),
    "MiB": lambda _, result: number(result.occupancy("peak_mib"), 2),
    "tokens": lambda _, result: number(result.occupancy("tokens"), 0),
    "keyframes": lambda _, result: number(result.metrics.get("keep_rate") or None, 0, " %"),
    "ms": lambda _, result: number(result.metrics.get("time", {}).get("frame_ms"), 1),
    "time / stock": lambda _, result: number(result.beside_stock.get("ratio"), 2),
}
"""Columns of a table of runs."""
ABSENCE = ("recovery", "recovery vs stock", "found", "false masks", "false masks vs stock", "gone", "back")
"""Of them those around absences."""
OPTIONAL = ("vs every_nth", "vs random", *ABSENCE, "ms", "time / stock")
"""Of them those that are left out where no run has anything to say."""


def cells(
    group: Group, columns: Sequence[str], name: Callable[[Result], str], first: str = "method", always: bool = False
) -> list[list[str]]:
    """Return the cells of a table with a row a run, its head first.

    Columns in `OPTIONAL` are left out where they would be empty, unless they are wanted `always`.
    """
    found = {column: [COLUMNS[column](group, result) for result in group.results] for column in columns}
    shown = {c: texts for c, texts in found.items() if always or any(texts) or c not in OPTIONAL}
    rows = zip(map(name, group.results), *shown.values(), strict=True)
    return [[first, *shown], *map(list, rows)]


def machine(config: Mapping[str, Any]) -> str:
    """Return a sentence that names device, precision, threads and versions."""
    versions = ", ".join(f"{name} {value}" for name, value in config["versions"].items() if name in ("torch", "sam2"))
    return f"{config['device']}, {config['dtype']}, {config['threads']} thread(s) a process, {versions}."


def replace_between(path: Path, start: str, end: str, text: str) -> None:
    """Put text between two lines of a file that mark where it goes.

    Raises:
        ValueError: It has lost them.
    """
    before, found, rest = path.read_text().partition(start)
    _, last, after = rest.partition(end)
    if not (found and last):
        raise ValueError(f"{path} has lost the lines {start.strip()!r} and {end!r}: put them around the tables")
    path.write_text(f"{before}{start}{text}{end}{after}")
