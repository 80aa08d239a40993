"""Which scorer, threshold and capacity: a grid on development clips, its winners on test clips and on real ones.

`python -m benchmarks study --data FOLDER` runs the grid, picks each family's best choice on the development clips,
runs these on clips that took no part in the choice, and writes `results/study/`: a JSON file a dataset and a README
made from them. Interrupted, the same command goes on; `--only-table` writes the README again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _study_text as text
from benchmarks._beside import time_runs
from benchmarks._compare import Group, Result, load_groups
from benchmarks._parts import add_real_data, keep_plan
from benchmarks._store import write_text
from benchmarks.run import add_arguments, carry_out, make_plan
from benchmarks.sweep import BASELINES, combinations

RESULTS = Path(__file__).parent / "results" / "study"
CHALLENGES = ("deformation", "scale", "occlusion", "leave_and_return", "look_alike", "long")
CLIPS, TEST_CLIPS, FRAMES = 2, 6, 48
METHODS = ("first", "fifo", "every_nth", "random")
"""Run beside the grid, which needs no scorer to beat them."""

CAPACITIES = "capacity=1,3,5"
BOTH = "MaskIoU(), OpticalFlow()"


@dataclass(frozen=True)
class Family:
    """One way to decide what a keyframe is, with the values of its one number.

    Attributes:
        fixed: Replacements that all of its runs have.
        keep: Its six thresholds, as `--grid` takes them.
        parts: Families it is made of, whose winners it has to beat.
        instead: The family with a fixed threshold that it is the adaptive form of.
    """

    fixed: tuple[str, ...]
    keep: str
    parts: tuple[str, ...] = ()
    instead: str = ""

    def runs(self) -> list[tuple[str, list[str]]]:
        """Return its runs: every threshold at every capacity."""
        return combinations((), "keyframe", self.fixed, [self.keep, CAPACITIES])[len(BASELINES) :]


FAMILIES: dict[str, Family] = {
    "mask IoU": Family(("scorer=MaskIoU()",), "keep=0.05,0.1,0.2,0.3,0.5,0.8"),
    "mask shape": Family(("scorer=MaskShape()",), "keep=0.05,0.1,0.2,0.3,0.5,0.8"),
    "SSIM": Family(("scorer=SSIM()",), "keep=0.05,0.1,0.2,0.3,0.5,0.8"),
    "optical flow": Family(("scorer=OpticalFlow()",), "keep=0.01,0.02,0.04,0.08,0.16,0.3"),
    "object pointer": Family(("scorer=FeatureShift()",), "keep=0.02,0.05,0.1,0.2,0.4,0.8"),
    "IoU + flow, sum": Family(
        (f"scorer=Combine(({BOTH}), weights=(1.0, 4.0))",),
        "keep=0.1,0.2,0.4,0.8,1.2,1.6",
        ("mask IoU", "optical flow"),
    ),
    "IoU + flow, z": Family(
        (f"scorer=Combine(({BOTH}), scale='z')",), "keep=0.5,1,2,3,4,6", ("mask IoU", "optical flow")
    ),
    "mask IoU, adaptive": Family(
        ("scorer=MaskIoU()",),
        "keep=" + ",".join(f"Adaptive(k={k})" for k in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)),
        instead="mask IoU",
    ),
    "mask IoU, quantile": Family(
        ("scorer=MaskIoU()",),
        "keep=" + ",".join(f"Quantile({q})" for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)),
        instead="mask IoU",
    ),
    "optical flow, adaptive": Family(
        ("scorer=OpticalFlow()",),
        "keep=" + ",".join(f"Adaptive(k={k}, fixed=0.04)" for k in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)),
        instead="optical flow",
    ),
}
"""Families of the grid: 6 thresholds x 3 capacities each."""


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
    dev = make_plan(_with(options, data="synthetic", split="dev"), [*others, *grid], share=True)
    code = carry_out(dev, options.workers)
    kept = keep_plan(dev, options.results)
    won = winners(load_groups(kept)[0], families)
    chosen = [
        *others,
        *((r.metrics["config"]["method"]["name"], r.metrics["config"]["method"]["set"]) for r in won.values()),
    ]
    places = [_with(options, data="synthetic", split="test", clips=options.test_clips)]
    if options.data:
        places.append(_with(options, split=None, challenges=()))
    for place in places:
        plan = make_plan(place, chosen, share=True)
        code = max(code, carry_out(plan, options.workers))
        if place.data == "synthetic":
            time_runs(plan)
        keep_plan(plan, options.results)
    return code


def winners(dev: Group, families: Mapping[str, Family]) -> dict[str, Result]:
    """Return each family's run of the highest J&F; of equals the one that keeps fewer frames."""
    found = {}
    for name, family in families.items():
        results = members(dev, family)
        if results:
            found[name] = max(results, key=lambda result: (round(result.jf, 6), -(result.metrics["keep_rate"] or 0.0)))
    return found


def members(group: Group, family: Family) -> list[Result]:
    """Return a group's runs of one family, in the grid's order."""
    by_label = {result.label: result for result in group.results}
    labels = [" ".join([name, *replacements]) for name, replacements in family.runs()]
    return [by_label[label] for label in labels if label in by_label]


def _dev(groups: Sequence[Group]) -> Group:
    found = [group for group in groups if group.config["split"] == "dev"]
    if not found:
        raise ValueError("there are no results of the grid on development clips; run it without --only-table")
    return found[0]


def _with(options: argparse.Namespace, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **changes})
