"""Pieces of Markdown that reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._compare import Difference


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers; "|" in cells is escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|---" + "|---:" * (len(head) - 1) + "|", *lines[1:]]


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


def machine(config: Mapping[str, Any]) -> str:
    """Return a sentence that names device, precision, threads and versions."""
    versions = ", ".join(f"{name} {value}" for name, value in config["versions"].items() if name in ("torch", "sam2"))
    return f"{config['device']}, {config['dtype']}, {config['threads']} thread(s) a process, {versions}."
