"""Which scorer, threshold and capacity: a grid on development clips, its winners on test clips and on real ones.

`python -m benchmarks study --data FOLDER` runs the grid, picks each family's best choice on the development clips,
runs these on clips that took no part in the choice, and writes `results/study/`: a JSON file a dataset and a README
made from them. Interrupted, the same command goes on; `--only-table` writes the README again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import _study_text as text
from benchmarks._beside import time_runs
from benchmarks._compare import Group, check_kept, load_groups
from benchmarks._families import FAMILIES, Family, winners
from benchmarks._parts import add_real_data, keep_plan, make_plans, parts
from benchmarks._store import write_text
from benchmarks.run import add_arguments, carry_out
from benchmarks.sweep import BASELINES

RESULTS = Path(__file__).parent / "results" / "study"
CHALLENGES = ("deformation", "scale", "occlusion", "leave_and_return", "look_alike", "long")
CLIPS, TEST_CLIPS, FRAMES = 2, 5, 48
METHODS = ("first", "fifo", "every_nth", "random")
"""Run beside the grid, which needs no scorer to beat them."""


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `study`."""
    add_arguments(parser)
    add_real_data(parser)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help="families of the grid (default: all)")
    parser.add_argument(
        "--test-clips", type=int, default=TEST_CLIPS, help="test clips a challenge (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where tables go (default: %(default)s)")
    parser.add_argument("--only-table", action="store_true", help="run nothing, write the tables again")
    parser.set_defaults(challenges=CHALLENGES, clips=CLIPS, frames=FRAMES, workers=2)


def main_study(options: argparse.Namespace) -> int:
    """Run the grid and its winners, then write the results and their tables; returns the exit code."""
    unknown = sorted(set(options.families) - set(FAMILIES))
    if unknown:
        raise ValueError(f"no family is called {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    families = {name: FAMILIES[name] for name in options.families}
    options.results.mkdir(parents=True, exist_ok=True)
    code = 0 if options.only_table else _run(options, families)
    groups = load_groups(options.results)
    write_text(options.results / "README.md", text.write(groups, families, winners(_dev(groups), families)))
    sys.stderr.write(f"{options.results}/README.md\n")
    return code


def _run(options: argparse.Namespace, families: Mapping[str, Family]) -> int:
    others: list[tuple[str, list[str]]] = [(name, []) for name in (*BASELINES, *METHODS)]
    grid = [run for family in families.values() for run in family.runs()]
    synthetic, *real = parts(options)
    (dev,) = make_plans([_with(synthetic, split="dev")], [*others, *grid], options.results)
    places = [_with(synthetic, split="test", clips=options.test_clips), *real]
    make_plans(places, others, options.results)  # what is wrong with them is said before the grid is run
    for file in options.results.glob("synthetic*_dev.json"):
        check_kept(dev.runs[0][0].config, file)
    code = carry_out(dev, options.workers)
    kept = keep_plan(dev, options.results)
    won = winners(load_groups(kept)[0], families)
    chosen = [
        *others,
        *((r.metrics["config"]["method"]["name"], r.metrics["config"]["method"]["set"]) for r in won.values()),
    ]
    for place, plan in zip(places, make_plans(places, chosen, options.results), strict=True):
        code = max(code, carry_out(plan, options.workers))
        if place.data == "synthetic":
            time_runs(plan)
        keep_plan(plan, options.results)
    return code


def _dev(groups: Sequence[Group]) -> Group:
    found = [group for group in groups if group.config["split"] == "dev"]
    if not found:
        raise ValueError("there are no results of the grid on development clips; run it without --only-table")
    if len(found) > 1:
        titles = "; ".join(group.title for group in found)
        raise ValueError(f"there are grids on several kinds of development clips ({titles}); move all but one away")
    return found[0]


def _with(options: argparse.Namespace, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **changes})
