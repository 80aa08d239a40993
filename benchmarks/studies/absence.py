"""Which rule finds an object again after a long absence, and which sees it where it is not: candidates side by side.

    python -m benchmarks.studies.absence --clips 6 --out bench-absence

Clips of the three ways to be away in turn, so that what is done at any time holds as many of each. What is finished
stays: the same command goes on. `--table` writes rows and tables of the clips that every candidate has finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.compare import Group, load_groups
from benchmarks.engine import carry_out, serial
from benchmarks.plan import Plan, Spec, add_arguments, label, make_plan
from benchmarks.results import keep_results

RESULTS = Path(__file__).parent.parent / "results" / "absence"
WAYS = ("absence_partial", "absence_filled", "absence_leaving")
SCORES = {"jf": "J&F", "recovery": "recovery", "found": "found", "false_masks": "false masks"}
NOTE = """\
Development clips of 300 frames at 256 px, absences of 30 to 80 frames, the embedded model. Percent; recovery is J over
the first 30 frames after a return, found the share of returns with more than 0.5 of it, false masks the share of absent
frames on which a mask is shown. Differences are paired by clip, with 95 % bootstrap intervals. Made by
`python -m benchmarks.studies.absence --clips 6` and `--table`."""
GATE = "Visible() & (PredictedIoU() > 0.5)"


def split(anchors: int, recent: int, more: str = "") -> Spec:
    """Anchors behind a gate, ten frames apart, beside so many newest frames of any kind."""
    return f"KeyframeMemory(Recent({recent}), Keyframes({anchors}, {GATE} & MinGap(10){more}))", []


GATED = "KeyframeMemory(Recent(1), Keyframes(5, Visible() & EveryNth(5)), fill=False)"
CANDIDATES: dict[str, Spec] = {
    "stock": ("stock", []),
    "every_nth": ("every_nth", []),
    "random": ("random", []),
    "keyframe": ("keyframe", []),
    "samurai": ("samurai", []),
    "every_nth behind a gate": (GATED, []),
    "2 anchors, 4 newest": split(2, 4),
    "3 anchors, 3 newest": split(3, 3),
    "4 anchors, 2 newest": split(4, 2),
    "3 anchors drawn from the past, 3 newest": split(3, 3, ", evict=Random(0)"),
    "2 anchors beside the prompt, 4 newest": split(2, 4, ", code='anchor'"),
}
"""Candidates by what the tables call them."""
NAMES = {label(spec): title for title, spec in CANDIDATES.items()}
VERSUS = (
    ("jf", "stock"),
    ("recovery", "stock"),
    ("false_masks", "stock"),
    ("recovery", "every_nth"),
    ("recovery", GATED),
)


def in_turn(plan: Plan, names: Sequence[str]) -> None:
    """Work through clips by seed, of each seed the ways in turn."""

    def place(name: str) -> tuple[int, int]:
        way, seed = name.rsplit("-", 1)
        return int(seed), WAYS.index(way)

    serial(plan, sorted(names, key=place))


def write(plan: Plan) -> None:
    """Write the rows and tables of the clips that every candidate has finished.

    Raises:
        ValueError: There is none.
    """
    names = [name for name in plan.dataset.names if all(run.done(name) for run, _ in plan.runs)]
    if not names:
        raise ValueError("no clip is finished under every candidate; run the command without --table first")
    RESULTS.mkdir(parents=True, exist_ok=True)
    keep_results([run.finish(names) for run, _ in plan.runs], RESULTS / f"{plan.dataset.split}.json")
    (group,) = load_groups(RESULTS / f"{plan.dataset.split}.json")
    lines = ["# Candidates on clips with long absences", "", NOTE, ""]
    for way in ("absence", *WAYS):
        found = [name for name in names if name.startswith(way)]
        if found:
            lines += [f"## {way.replace('_', ' ')}, {len(found)} clips", "", *_table(group, found), ""]
    (RESULTS / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def _table(group: Group, names: Sequence[str]) -> list[str]:
    head = ["rule", *(title for title in SCORES.values()), *(f"{SCORES[s]} vs {NAMES.get(of, of)}" for s, of in VERSUS)]
    rows = []
    for title, spec in CANDIDATES.items():
        result = group.find(label(spec))
        if result is None:
            continue
        cells = [title]
        for score in SCORES:
            values = [value for name in names for value in result.by_video(score).get(name, [])]
            cells.append(f"{np.mean(values):.1f}" if values else "")
        for score, of in VERSUS:
            cells.append(tables.interval(group.gain(result, names.__contains__, of, score)))
        rows.append(cells)
    return tables.markdown(head, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the candidates, or write what is finished of them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help=f"run nothing, write rows and tables to {RESULTS.name}")
    add_arguments(parser)
    parser.set_defaults(challenges=WAYS, frames=300, clips=6, out=Path("bench-absence"))
    options = parser.parse_args(arguments)
    plan = make_plan(options, list(CANDIDATES.values()), share=True)
    if not options.table:
        return carry_out(plan, engine=in_turn)
    write(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
