"""The heat map and the tables of docs/scorers.md, made from reaction.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies import reaction as _reaction

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- made by `python -m benchmarks.scorers write` -->\n", "<!-- end of what it made -->"
AGAINST = {
    "keyframe": "Against the keyframe: the full change",
    "previous": "Against the previous frame: mean over the change",
}
MUCH, NOTHING = 0.5, 0.05
"""Shares of a scorer's largest mean on a change of the object: from here on it reacts, below this it ignores."""


def readable(value: float) -> str:
    """Return a number with two digits that count, never in powers of ten.

    >>> [readable(x) for x in (123.4, 12.34, 1.234, 0.1234, 0.01234, 0.00123, 0.00004, 0.0)]
    ['123', '12', '1.2', '0.12', '0.012', '0.0012', '<0.0001', '0']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if abs(value) < 0.0001:
        return "<0.0001"
    return f"{value:.{max(0, min(4, 1 - math.floor(math.log10(abs(value)))))}f}"


def summary(rows: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and standard deviation over the scenes, by scorer and change."""
    return {
        name: {change: (float(np.mean(values)), float(np.std(values))) for change, values in row.items()}
        for name, row in rows.items()
    }


def shares(rows: dict[str, dict[str, list[float]]], nuisances: list[str]) -> dict[str, dict[str, float]]:
    """Return each mean as a share of the scorer's largest mean on a change of the object."""
    found = {}
    for name, row in summary(rows).items():
        top = max(mean for change, (mean, _) in row.items() if change not in nuisances)
        found[name] = {change: mean / max(top, 1e-12) for change, (mean, _) in row.items()}
    return found


def numbers(rows: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the lines of a table of means and standard deviations."""
    changes = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(changes) + " |", "|---|" + "---:|" * len(changes)]
    for name, row in summary(rows).items():
        cells = (readable(mean) + (f" ± {readable(spread)}" if spread else "") for mean, spread in row.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def verdicts(rows: dict[str, dict[str, list[float]]], nuisances: list[str]) -> list[str]:
    """Return the lines of a table of what each scorer reacts to and what it ignores."""
    lines = [
        "| | changes of the object it reacts to | ignores | nuisances it reacts to | ignores |",
        "|---|---|---|---|---|",
    ]
    for name, row in shares(rows, nuisances).items():
        kinds = [[c for c in row if c not in nuisances], nuisances]
        cells = []
        for kind in kinds:
            much = sorted((c for c in kind if row[c] >= MUCH), key=lambda c: -row[c])
            cells += [", ".join(much), ", ".join(c for c in kind if row[c] < NOTHING)]
        lines.append(f"| {name} | {' | '.join(cell or '-' for cell in cells)} |")
    return lines


def page(found: dict[str, Any]) -> str:
    """Return the part of docs/scorers.md that is made from the results."""
    nuisances = found["nuisances"]
    parts = [
        f"Mean ± standard deviation over {found['scenes']} scenes. A scorer *reacts* to what moves it by at least "
        f"{MUCH:.0%} of its\nlargest mean on a change of the object, and *ignores* what moves it by less than "
        f"{NOTHING:.0%} of that.",
        "",
    ]
    for kind, title in AGAINST.items():
        parts += [f"### {title}", "", *verdicts(found[kind], nuisances), "", *numbers(found[kind]), ""]
    parts += ["### Quality scores at the end of each clip", "", *numbers(found["quality"])]
    return "\n".join(parts)


def replace_between(path: Path, text: str) -> None:
    """Put text between the lines START and END of a file."""
    before, start, rest = path.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{path} has lost the lines {START.strip()!r} and {END!r}: put them around the tables")
    path.write_text(f"{before}{START}\n{text}\n\n{END}{after}")


def publish_reaction() -> None:
    """Write the picture and the tables of the page from reaction.json."""
    found = json.loads((_reaction.RESULTS / "reaction.json").read_text())
    replace_between(DOCS / "scorers.md", page(found))
    draw(found)


def draw(found: dict[str, Any]) -> None:
    """Write docs/scorers.png: a row a scorer, changes of the object in blue, nuisances in orange."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nuisances = found["nuisances"]
    changes = list(found["changes"])
    names = list(dict.fromkeys([*found["keyframe"], *found["previous"]]))
    objects = len(changes) - len(nuisances)
    figure, panels = pyplot.subplots(1, 2, figsize=(15, 9.4), sharey=True, layout="constrained")
    for axes, (kind, title) in zip(panels, AGAINST.items(), strict=True):
        known = shares(found[kind], nuisances)
        values = np.array([[known.get(name, {}).get(change, math.nan) for change in changes] for name in names])
        for start, stop, colours in ((0, objects, "Blues"), (objects, len(changes), "Oranges")):
            extent = (start - 0.5, stop - 0.5, len(names) - 0.5, -0.5)
            axes.imshow(values[:, start:stop], colours, vmin=0, vmax=1, aspect="auto", extent=extent)
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                ink = "white" if value > 0.6 else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xlim(-0.5, len(changes) - 0.5)
        axes.axvline(objects - 0.5, color="black", linewidth=2)
        axes.set_xticks(range(len(changes)), changes, rotation=40, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=12)
    figure.suptitle(
        "Mean score in percent of the scorer's largest on a change of the object (left of the line, blue); "
        "right of it nuisances (orange)"
    )
    figure.savefig(DOCS / "scorers.png", dpi=100)
    pyplot.close(figure)
