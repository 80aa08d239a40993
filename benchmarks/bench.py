"""`make bench` and `make official`: complete benchmarks in one command each, report included."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.compare import Group, load_groups
from benchmarks.engine import carry_out
from benchmarks.plan import add_arguments, combinations, make_plan
from benchmarks.report import write_report
from benchmarks.results import protocol, write_text
from benchmarks.timing import time_runs

CHALLENGES = ("deformation", "scale", "occlusion", "leave_and_return", "look_alike", "long")
METHODS = ("first", "fifo", "every_nth", "random", "keyframe", "adaptive", "samurai", "dam4sam", "sam3")
"""Beside stock and window; `python -m benchmarks methods` runs them all."""
COLUMN = ("stock", "window", "keyframe")
"""What the official column of docs/measuring.md shows, in this order."""
CELL = re.compile(r"(<!--official (\w+)-->).*?(<!--/-->)")
"""A cell of that column in README, and the name of what stands there."""


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`: its defaults are small and its clips those of the test split."""
    _add(parser)
    parser.set_defaults(challenges=CHALLENGES, clips=2, frames=60, split="test", workers=2, readme=None)


def add_official_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `official`."""
    _add(parser)
    parser.add_argument("--readme", type=Path, help="page whose official column to fill (default: none)")
    parser.set_defaults(model="large", split=None)


def _add(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="methods to run (default: %(default)s)")


def main_bench(options: argparse.Namespace) -> int:
    """Run the methods, measure their times beside stock's, write the report; returns the exit code.

    Raises:
        ValueError: Bad input, in a sentence; also when README's column cannot be filled.
    """
    if options.command == "bench" and options.data != "synthetic":
        raise ValueError(f"--data {options.data}: bench runs on generated clips; give a folder to official or sweep")
    if options.readme and not CELL.search(options.readme.read_text()):
        raise ValueError(f"{options.readme} has no <!--official ...--> cells to fill; leave --readme out")
    plan = make_plan(options, combinations(options.method, "keyframe", [], []), share=False)
    code = carry_out(plan, options.workers)
    time_runs(plan)
    groups = load_groups(options.out)
    report = options.out / "report"
    write_report(groups, report)
    sys.stderr.write(f"{report}/README.md, {report}/index.html\n")
    if options.readme:
        ours = protocol(plan.runs[0][0].config)
        group = next((group for group in groups if protocol(group.config) == ours), None)
        if group is None:
            raise ValueError("the official column stays as it is: every video failed")
        fill(options.readme, official_column(group))
        sys.stderr.write(f"{options.readme}: official column\n")
    return code


def official_column(group: Group) -> dict[str, str]:
    """Return the cells of README's official column by name: what it is from, and a figure of each of `COLUMN`.

    Raises:
        ValueError: The model is not official, one of the methods is missing, or a video failed under one.
    """
    runs = [result for name in COLUMN if (result := group.find(name)) and not result.metrics["failed"]]
    if group.config["model"] == "micro" or len(runs) < len(COLUMN):
        unfit = ", ".join(name for name in COLUMN if name not in [result.label for result in runs])
        reason = f"{unfit} missing or with failed videos" if unfit else "the model is micro"
        raise ValueError(f"the official column stays as it is: {reason}")
    times = [result.beside_stock.get("ratio") for result in runs]
    machine = f"{group.config['device']}, {group.config['dtype']}"
    return {
        "head": f"official weights, data of their own: {group.title} ({machine}); {' / '.join(COLUMN)}",
        "mib": " / ".join(f"{r.occupancy('peak_mib'):.2f}" for r in runs) + " MiB, most held, mean over objects",
        "tokens": " / ".join(f"{r.occupancy('tokens'):,.0f}" for r in runs) + ", mean over frames",
        "time": "not measured" if None in times else " / ".join(f"{ratio:.2f}" for ratio in times),
        "jf": " / ".join(f"{r.jf:.1f}" for r in runs),
    }


def fill(readme: Path, column: Mapping[str, str]) -> None:
    """Write a column's cells between their comments; what stood there goes."""
    write_text(readme, CELL.sub(lambda cell: f"{cell[1]}{column[cell[2]]}{cell[3]}", readme.read_text()))
