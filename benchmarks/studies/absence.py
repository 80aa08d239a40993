"""Which rule finds an object again after a long absence, and which sees it where it is not: candidates side by side.

    python -m benchmarks.studies.absence --split test --clips 24 --out bench-absence

Clips of the ways to be away in turn, so that what is done at any time holds as many of each. What is finished stays:
the same command goes on. `--table` writes rows and tables of the clips that every candidate has finished.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import tables
from benchmarks.compare import Group, Result, load_groups
from benchmarks.engine import carry_out, processes, serial
from benchmarks.plan import Plan, Spec, add_arguments, label, make_plan
from benchmarks.results import keep_results

RESULTS = Path(__file__).parent.parent / "results" / "absence"
WAYS = ("absence_partial", "absence_filled", "absence_leaving")
SCORES = {"jf": "J&F", "recovery": "recovery", "found": "found", "false_masks": "false masks"}
NOTE = """\
Clips of 300 frames at 256 px, absences of 30 to 80 frames, the embedded model. Percent; recovery is J over the first 30
frames after a return, found the share of returns with more than 0.5 of it, false masks the share of absent frames on
which a mask is shown. Differences are paired by clip, with 95 % bootstrap intervals; five clips or more have one."""
GATED = "KeyframeMemory(Recent(1), Keyframes(5, Visible() & EveryNth(5)), fill=False)"
CONFIRMED: Spec = ("keyframe", ["confirm=Confirm()"])
CANDIDATES: dict[str, Spec] = {
    "stock": ("stock", []),
    "every_nth": ("every_nth", []),
    "random": ("random", []),
    "every_nth behind a gate": (GATED, []),
    "samurai": ("samurai", []),
    "keyframe": ("keyframe", []),
    "keyframe, confirmed": CONFIRMED,
}
"""Candidates by what the tables call them."""
COMPARED = ("jf", "recovery", "false_masks")


def in_turn(plan: Plan, names: Sequence[str], workers: int) -> None:
    """Work through clips by seed, of each seed the ways in turn."""

    def place(name: str) -> tuple[int, int]:
        way, seed = name.rsplit("-", 1)
        return int(seed), WAYS.index(way)

    ordered = sorted(names, key=place)
    if workers == 1:
        serial(plan, ordered)
    else:
        processes(plan, ordered, workers)


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
    command = f"`python -m benchmarks.studies.absence --split {plan.dataset.split} ...`, then `--table`"
    lines = [f"# Candidates on {plan.dataset.split} clips with long absences", "", f"{NOTE} Made by {command}.", ""]
    for way in ("absence", *WAYS):
        if found := [name for name in names if name.startswith(way)]:
            title = "all" if way == "absence" else way.replace("_", " ")
            lines += [f"## {title}, {len(found)} clips", "", *_scores(group, found), "", *_against(group, found), ""]
    (RESULTS / f"{plan.dataset.split}.md").write_text("\n".join(lines).rstrip() + "\n")


def _scores(group: Group, names: Sequence[str]) -> list[str]:
    rows = []
    for title, result in _found(group):
        means = [[value for name in names for value in result.by_video(score).get(name, [])] for score in SCORES]
        rows.append([title, *(f"{np.mean(values):.1f}" if values else "" for values in means)])
    return tables.markdown(["rule", *SCORES.values()], rows)


def _against(group: Group, names: Sequence[str]) -> list[str]:
    """Return the table of what the confirmed memory, and each of the others, gain over what they are compared with."""
    rows = []
    pairs = [(title, "stock") for title in CANDIDATES] + [(list(CANDIDATES)[-1], title) for title in CANDIDATES]
    for title, other in dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]):
        result, of = group.find(label(CANDIDATES[title])), label(CANDIDATES[other])
        if result is not None and group.find(of) is not None:
            gains = [tables.interval(group.gain(result, names.__contains__, of, score)) for score in COMPARED]
            rows.append([f"{title} - {other}", *gains])
    return tables.markdown(["difference", *(SCORES[score] for score in COMPARED)], rows)


def _found(group: Group) -> Iterator[tuple[str, Result]]:
    for title, spec in CANDIDATES.items():
        result = group.find(label(spec))
        if result is not None:
            yield title, result


def main(arguments: list[str] | None = None) -> int:
    """Run the candidates, or write what is finished of them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help=f"run nothing, write rows and tables to {RESULTS.name}")
    add_arguments(parser)
    parser.set_defaults(challenges=WAYS, frames=300, clips=6, out=Path("bench-absence"))
    options = parser.parse_args(arguments)
    plan = make_plan(options, list(CANDIDATES.values()), share=True)
    if not options.table:
        return carry_out(plan, engine=functools.partial(in_turn, workers=options.workers))
    write(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
