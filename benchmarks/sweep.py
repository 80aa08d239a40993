"""Run several methods, and every combination of some choices, over one dataset."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

from benchmarks._values import split_values
from benchmarks.run import add_arguments, execute

BASELINES = ("stock", "window")
"""Always in the picture."""


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    parser.add_argument("--method", nargs="+", default=[], help="methods to run as they are, beside stock and window")
    parser.add_argument("--base", default="keyframe", help="method that the grid varies (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a choice of --base, in all of its grid"
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=A,B,...",
        help="values of a choice, as in --grid 'scorer=SSIM(),MaskIoU()' --grid keep=0.1,0.2",
    )
    parser.add_argument("--timed", action="store_true", help="measure times: image features are not shared then")
    add_arguments(parser)


def main_sweep(options: argparse.Namespace) -> int:
    """Run the sweep; returns the exit code."""
    methods = combinations(options.method, options.base, options.set, options.grid)
    if options.set and options.method:
        sys.stderr.write(
            f"note: --set {' '.join(options.set)} is for --base {options.base} alone; {', '.join(options.method)} "
            "and the baselines run as they are\n"
        )
    return execute(options, methods, not options.timed)


def combinations(
    methods: Sequence[str], base: str, fixed: Sequence[str], grid: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """Return the methods of a sweep, each a name and its `name=value` replacements, none twice.

    >>> combinations(["fifo"], "keyframe", ["recent=1"], ["keep=0.1,0.2"])[2:]
    [('fifo', []), ('keyframe', ['recent=1', 'keep=0.1']), ('keyframe', ['recent=1', 'keep=0.2'])]

    Args:
        methods: Names of methods to run as they are, after the baselines.
        base: The method that the grid varies.
        fixed: Replacements that every combination has.
        grid: `name=value,value,...`; every combination of them is run. Without one, `base` with `fixed` alone is.

    Raises:
        ValueError: A part of the grid is not `name=value,...`.
    """
    axes = []
    for axis in grid:
        name, equals, values = axis.partition("=")
        if not equals:
            raise ValueError(f"{axis!r} is not name=value,value,... as in keep=0.1,0.2")
        axes.append([f"{name}={value}" for value in dict.fromkeys(split_values(values))])
    found: list[tuple[str, list[str]]] = [(name, []) for name in dict.fromkeys([*BASELINES, *methods])]
    if axes or fixed:
        found += [(base, [*fixed, *choice]) for choice in itertools.product(*axes)]
    return found
