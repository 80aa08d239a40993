"""The default may not hurt: a method against stock, paired by clip, on kinds of clips with a bound for each.

`python -m benchmarks default --split dev --set keep=0.2` tries a candidate on development clips;
`python -m benchmarks default --data FOLDER` reports the default on test clips and on real ones. Both write
`results/default/`: a JSON file a dataset and a README with a verdict for every candidate and bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import _tables as tables
from benchmarks._compare import Difference, Group, difference, load_groups
from benchmarks._parts import add_real_data, keep_plan, make_plans, parts
from benchmarks._store import write_text
from benchmarks.run import add_arguments, carry_out
from benchmarks.sweep import BASELINES

RESULTS = Path(__file__).parent / "results" / "default"
BOUNDS = {"static": -0.5, "deformation": -0.5, "occlusion": 0.0, "leave_and_return": 0.0}
"""Least difference to stock in J&F, in points, by kind of generated clip."""
REAL = -0.5
"""The same for real clips."""
CLIPS, FRAMES = 40, 60


def add_default_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `default`."""
    add_arguments(parser)
    add_real_data(parser)
    parser.add_argument("--method", default="keyframe", help="the candidate (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a choice, as in --set keep=0.2"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where tables go (default: %(default)s)")
    parser.set_defaults(challenges=tuple(BOUNDS), clips=CLIPS, frames=FRAMES, split="test", workers=2)


def main_default(options: argparse.Namespace) -> int:
    """Run stock and the candidate, then write and show the verdicts; returns the exit code."""
    boundless = sorted(set(options.challenges) - set(BOUNDS))
    if boundless:
        raise ValueError(f"no bound is known for {', '.join(boundless)}; choose --challenges from {', '.join(BOUNDS)}")
    code = 0
    options.results.mkdir(parents=True, exist_ok=True)
    chosen = [(BASELINES[0], []), (options.method, list(options.set))]
    for plan in make_plans(parts(options), chosen, options.results):
        code = max(code, carry_out(plan, options.workers))
        keep_plan(plan, options.results)
    text = verdicts(load_groups(options.results))
    write_text(options.results / "README.md", text)
    sys.stderr.write(text)
    return code


def verdict(found: Difference, bound: float) -> str:
    """Return "holds" when the whole interval is at or above the bound, "open" when the mean is, else "broken".

    Clips too few for an interval leave it open at best.
    """
    return "holds" if found.shown and found.low >= bound else "open" if found.mean >= bound else "broken"


def verdicts(groups: Sequence[Group]) -> str:
    """Return the Markdown text that shows, for every candidate and kind of clip, difference, bound and verdict."""
    lines = [
        "# The default may not hurt",
        "",
        "J&F of a candidate minus stock's, in points, paired by clip, with its 95 % bootstrap interval. holds: the "
        "whole interval is at or above the bound; open: only its mean is; broken: not even that. Chosen on development "
        "clips (dev), reported on test clips (test) and real ones. Made by `python -m benchmarks default`.",
        "",
    ]
    for group in sorted(groups, key=lambda group: (not _generated(group), group.config["split"])):
        lines += [f"## {group.title}", ""]
        rows = [row for result in group.results if result is not group.reference for row in _rows(group, result.label)]
        lines += tables.markdown(["candidate", "clips", "number", "vs stock (95 %)", "bound", "verdict"], rows)
        lines += ["", tables.machine(group.config), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(group: Group, label: str) -> list[list[str]]:
    result = next(result for result in group.results if result.label == label)
    kinds: dict[str, tuple[float, Callable[[str], bool]]] = {"real": (REAL, lambda _: True)}
    if _generated(group):
        kinds = {kind: (bound, _is_of(kind)) for kind, bound in BOUNDS.items()}
    rows = []
    for kind, (bound, keep) in kinds.items():
        found = difference(result, group.reference, keep=keep) if group.reference else None
        number = found.videos if found else sum(map(keep, result.by_video()))
        if number:
            row = [f"`{label}`", kind.replace("_", " "), str(number), tables.interval(found)]
            shown = verdict(found, bound) if found else "too few clips"
            rows.append([*row, f"{bound:+.1f}" if bound else "0", shown])
    return rows


def _generated(group: Group) -> bool:
    return bool(group.config["data"]["name"].startswith("synthetic"))


def _is_of(kind: str) -> Callable[[str], bool]:
    return lambda name: name.rpartition("-")[0] == kind
