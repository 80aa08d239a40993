"""The default may not hurt: a method against stock, paired by clip, on kinds of clips with a bound for each.

`python -m benchmarks default --split dev --set change=0.2` tries a candidate on development clips;
`python -m benchmarks default --data FOLDER` reports the default on test clips and on real ones. Both write a verdict
for every candidate and bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import campaign, tables
from benchmarks.compare import Difference, Group, Result
from benchmarks.plan import BASELINES, add_choices

BOUNDS = {"static": -0.5, "deformation": -0.5, "occlusion": 0.0, "leave_and_return": 0.0}
"""Least difference to stock in J&F, in points, by kind of generated clip."""
REAL = -0.5
"""The same for real clips."""


def add_default_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `default`."""
    campaign.add_campaign_arguments(parser, "default", challenges=tuple(BOUNDS), clips=40, frames=60, split="test")
    parser.add_argument("--method", default="keyframe", help="the candidate (default: %(default)s)")
    add_choices(parser, "replace a choice, as in --set change=0.2")


def main_default(options: argparse.Namespace) -> int:
    """Run stock and the candidate, then write and show the verdicts; returns the exit code."""
    if boundless := sorted(set(options.challenges) - set(BOUNDS)):
        raise ValueError(f"no bound is known for {', '.join(boundless)}; choose --challenges from {', '.join(BOUNDS)}")

    def run(options: argparse.Namespace) -> int:
        chosen = [(BASELINES[0], []), (options.method, list(options.set))]
        return campaign.run_plans(campaign.make_plans(campaign.places(options), chosen), options.workers)

    return campaign.conduct(options, run, verdicts, show=True)


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
    for group in sorted(groups, key=lambda group: (not group.generated, group.config["split"])):
        rows = [row for result in group.results if result is not group.reference for row in _rows(group, result)]
        table = tables.markdown(["candidate", "clips", "number", "vs stock (95 %)", "bound", "verdict"], rows)
        lines += [f"## {group.title}", "", *table, "", tables.machine(group.config), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(group: Group, result: Result) -> list[list[str]]:
    rows = []
    for kind, bound in (BOUNDS if group.generated else {"real": REAL}).items():
        clips = {name for name in result.by_video() if kind == "real" or name.rpartition("-")[0] == kind}
        found = group.gain(result, clips.__contains__)
        if number := found.videos if found else len(clips):
            row = [f"`{result.label}`", kind.replace("_", " "), str(number), tables.interval(found)]
            rows.append([*row, f"{bound:+.1f}" if bound else "0", verdict(found, bound) if found else "too few clips"])
    return rows
