"""`make bench` and `make official`: complete benchmarks in one command each, report included."""

from __future__ import annotations

import argparse
import sys

from benchmarks._compare import load_groups
from benchmarks.report import write_report
from benchmarks.run import add_arguments, execute
from benchmarks.sweep import combinations

CHALLENGES = ("deformation", "scale", "occlusion", "leave_and_return", "look_alike", "long")
CLIPS, FRAMES = 2, 60
METHODS = ("first", "fifo", "every_nth", "random", "keyframe", "adaptive", "samurai", "dam4sam", "sam3")
"""Beside stock and window; `python -m benchmarks methods` runs them all."""


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`: its defaults are small and its clips those of the test split."""
    _add(parser)
    parser.set_defaults(challenges=CHALLENGES, clips=CLIPS, frames=FRAMES, split="test", workers=2)


def add_official_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `official`."""
    _add(parser)
    parser.set_defaults(model="large", split=None)


def _add(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="methods to run (default: %(default)s)")


def main_preset(options: argparse.Namespace) -> int:
    """Run the methods with times, then write the report; returns the exit code."""
    code = execute(options, combinations(options.method, "keyframe", [], []), share=False)
    report = options.out / "report"
    write_report(load_groups(options.out), report)
    sys.stderr.write(f"{report}/README.md, {report}/index.html\n")
    return code
