"""Commands that run a set of methods on generated clips and on a folder of real ones, and keep what they find.

Each keeps one JSON file a dataset in a folder of results, and a README made from these files. Interrupted, the same
command goes on; `--only-table` writes the README again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.compare import Group, load_groups
from benchmarks.datasets import open_dataset
from benchmarks.engine import carry_out
from benchmarks.plan import Plan, Spec, add_arguments, make_plan
from benchmarks.results import check_kept, keep_results, write_text
from benchmarks.timing import time_runs

RESULTS = Path(__file__).parent / "results"


def add_campaign_arguments(parser: argparse.ArgumentParser, name: str, **defaults: object) -> None:
    """Add the options of a campaign whose results lie in `results/NAME`."""
    add_arguments(parser)
    next(a for a in parser._actions if a.dest == "data").help = "folder of real clips to run too, laid out as DAVIS"
    parser.add_argument("--results", type=Path, default=RESULTS / name, help="where tables go (default: %(default)s)")
    parser.add_argument("--only-table", action="store_true", help="run nothing, write the tables again")
    parser.set_defaults(data=None, workers=2, **defaults)


def conduct(
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], int],
    text: Callable[[Sequence[Group]], str],
    show: bool = False,
) -> int:
    """Run a campaign unless only its tables are wanted, then write its README; returns the exit code."""
    options.results.mkdir(parents=True, exist_ok=True)
    code = 0 if options.only_table else run(options)
    written = text(load_groups(options.results))
    write_text(options.results / "README.md", written)
    sys.stderr.write(written if show else f"{options.results}/README.md\n")
    return code


def places(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the options for the generated clips and, where a folder is given, for its real ones.

    Raises:
        ValueError: The folder holds no dataset; said before hours of generated clips.
    """
    if options.data:
        open_dataset(options.data, sequences=options.sequences)
    generated = changed(options, data="synthetic", sequences=())
    return [generated, *([changed(options, split=None, challenges=())] if options.data else [])]


def changed(options: argparse.Namespace, **changes: object) -> argparse.Namespace:
    """Return options with some of them replaced."""
    return argparse.Namespace(**{**vars(options), **changes})


def make_plans(
    options: Sequence[argparse.Namespace], specs: Sequence[Spec], counted: bool = False
) -> list[tuple[Plan, Path]]:
    """Return a plan for each place, whose runs share image features, and the file that will keep its results.

    Nothing is run or written. With `counted` the file's name tells the number of videos too.

    Raises:
        ValueError: Bad input; or a file holds runs that these may not be compared with.
    """
    found = []
    for each in options:
        plan = make_plan(each, specs, share=True)
        number = f"_{len(plan.dataset.names)}" if counted else ""
        file = each.results / f"{plan.dataset.name}_{plan.dataset.split}{number}.json"
        check_kept(plan.runs[0][0].config, file)
        found.append((plan, file))
    return found


def run_plans(plans: Sequence[tuple[Plan, Path]], workers: int, timed: bool = False) -> int:
    """Carry out plans and keep what finished; times are measured on generated clips. Returns the exit code.

    Raises:
        ValueError: Every video of a dataset failed.
    """
    code = 0
    for plan, file in plans:
        code = max(code, carry_out(plan, workers))
        if timed and plan.dataset.name.startswith("synthetic"):
            time_runs(plan)
        metrics = [json.loads((run.path / "metrics.json").read_text()) for run, _ in plan.runs]
        finished = [each for each in metrics if each["objects"]]
        if not finished:
            raise ValueError(f"every video of {plan.dataset.name} failed under every method; the lines above say why")
        keep_results(finished, file)
    return code
