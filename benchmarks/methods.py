"""Does the machinery work: every method on occlusion clips and on real clips, beside stock.

`python -m benchmarks methods --data FOLDER` tracks, measures times, and writes `results/methods/`: a JSON file a
dataset and a README made from them. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import sam2_keyframe.methods
from benchmarks import _tables as tables
from benchmarks._beside import time_runs
from benchmarks._compare import Group, Result, difference, load_groups
from benchmarks._models import check_model, memory_slots
from benchmarks._parts import add_real_data, keep_plan, make_plans, parts
from benchmarks._store import write_text
from benchmarks.run import add_arguments, carry_out
from benchmarks.sweep import BASELINES
from sam2_keyframe import METHODS, make_method

RESULTS = Path(__file__).parent / "results" / "methods"
CLIPS, FRAMES, SEEDS = 30, 72, 3
FEW = 8
"""Videos below which no method is called better or worse."""


def add_methods_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `methods`: its generated clips are occlusion clips of the test split."""
    add_arguments(parser)
    add_real_data(parser)
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="methods beside stock (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where tables go (default: %(default)s)")
    parser.add_argument("--only-table", action="store_true", help="run nothing, write the table again")
    parser.set_defaults(challenges=("occlusion",), clips=CLIPS, frames=FRAMES, split="test", workers=2)


def main_methods(options: argparse.Namespace) -> int:
    """Run every method, then write the results and their table; returns the exit code."""
    code = 0
    options.results.mkdir(parents=True, exist_ok=True)
    slots = memory_slots(check_model(options.model, options.checkpoints))
    chosen, left_out = choose(list(dict.fromkeys([*BASELINES, *options.method])), slots)
    split = [] if options.only_table else parts(options)
    for part, plan in zip(split, make_plans(split, chosen, options.results), strict=True):
        code = max(code, carry_out(plan, options.workers))
        if part.data == "synthetic":
            time_runs(plan)
        keep_plan(plan, options.results)
    labels = [] if options.only_table else [" ".join([name, *replacements]) for name, replacements in chosen]
    write_text(options.results / "README.md", table(load_groups(options.results), left_out, labels))
    sys.stderr.write(f"{options.results}/README.md\n")
    return code


def choose(names: Sequence[str], slots: int) -> tuple[list[tuple[str, list[str]]], dict[str, str]]:
    """Return the runs of some methods, each a name and its replacements, and why the other methods have none.

    A method with a random seed is run with `SEEDS` of them.

    Raises:
        ValueError: A name is unknown.
    """
    runs: list[tuple[str, list[str]]] = []
    left_out = {}
    for name in names:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
        parameters = inspect.signature(METHODS[name]).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty and each.kind != each.VAR_KEYWORD]
        if needed:
            left_out[name] = f"needs {', '.join(needed)} of the video"
            continue
        try:
            make_method(name).check_fits(slots)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        seeded = any(each.name == "seed" for each in parameters)
        runs += [(name, [f"seed={seed}"]) for seed in range(SEEDS)] if seeded else [(name, [])]
    return runs, left_out


def table(groups: Sequence[Group], left_out: dict[str, str], chosen: Sequence[str] = ()) -> str:
    """Return the Markdown text that shows the results, generated clips before real ones.

    Args:
        groups: The results.
        left_out: Methods that are not run, and why.
        chosen: Labels of those that are: one that finished no video is named below the table.
    """
    lines = ["# Does the machinery work", "", "Made from the files beside it by `python -m benchmarks methods`.", ""]
    for group in sorted(groups, key=lambda group: not group.config["data"]["name"].startswith("synthetic")):
        lines += [f"## {group.title}", ""]
        timed = any("beside_stock" in result.metrics["time"] for result in group.results)
        head = ["method", "J&F", "vs stock (95 %)", "frames", "MiB", "tokens", "keyframes"]
        rows = [_row(group, result, timed) for result in group.results]
        lines += tables.markdown([*head, "time / stock"] if timed else head, rows)
        lines += ["", *_sentences(group), ""]
        absent = [f"`{label}`" for label in chosen if label not in {result.label for result in group.results}]
        lines += [f"Not in this table: {', '.join(absent)} (finished no video).", ""] if absent else []
    for name, why in left_out.items():
        lines.append(f"Not in the tables: `{name}` ({why}).")
    return "\n".join(lines).rstrip() + "\n"


def _row(group: Group, result: Result, timed: bool) -> list[str]:
    memory = result.metrics["occupancy"]["memory"]
    beside = result.metrics["time"].get("beside_stock")
    rate = result.metrics.get("keep_rate")
    row = [
        _name(result),
        f"{result.jf:.1f}",
        tables.interval(difference(result, group.reference)) if group.reference not in (None, result) else "",
        f"{memory['peak_frames']:.1f}",
        f"{memory['peak_mib']:.2f}",
        f"{memory['tokens']:.0f}",
        f"{rate:.0f} %" if rate else "",
    ]
    return [*row, f"{beside['ratio']:.2f}" if beside else ""] if timed else row


def _name(result: Result) -> str:
    failed = len(result.metrics["failed"])
    mark = " †" if result.metrics["config"]["method"]["name"] in _non_causal() else ""
    name = f"**{result.label}**" if result.label in BASELINES else f"`{result.label}`"
    return name + mark + (f" ({failed} videos failed)" if failed else "")


def _non_causal() -> frozenset[str]:
    return frozenset(getattr(sam2_keyframe.methods, "NON_CAUSAL", ()))


def _sentences(group: Group) -> list[str]:
    memory = "Frames and MiB: most held for an object, averaged over objects; tokens: attended to, mean over frames."
    clips = f"{group.results[0].metrics['videos']} videos, {group.results[0].metrics['objects']} objects."
    lines = [f"{clips} J&F: percent. Intervals: paired bootstrap over videos. {memory}"]
    timed = next(
        (r.metrics["time"]["beside_stock"] for r in group.results if "beside_stock" in r.metrics["time"]), None
    )
    if timed:
        lines.append(
            f"Time: median over {timed['frames']} frames of {timed['video']}, method and stock in turn in one process."
        )
    if any(result.metrics["config"]["method"]["name"] in _non_causal() for result in group.results):
        lines.append("†: not causal, it chooses with frames still to come.")
    lines += _told_apart(group)
    commits = sorted({str(result.metrics["config"].get("commit")) for result in group.results})
    lines.append(f"{tables.machine(group.config)} Commit {', '.join(commits)}.")
    return lines


def _told_apart(group: Group) -> list[str]:
    """Name the methods whose interval leaves 0 out; nothing where so few videos are drawn from that it says little."""
    if group.reference is None or group.results[0].metrics["videos"] < FEW:
        return []
    found = {r.label: difference(r, group.reference) for r in group.results if r is not group.reference}
    better = [f"`{label}`" for label, gain in found.items() if gain is not None and round(gain.low, 1) > 0]
    worse = [f"`{label}`" for label, gain in found.items() if gain is not None and round(gain.high, 1) < 0]
    return [f"Interval above 0: {', '.join(better) or 'none'}. Below 0: {', '.join(worse) or 'none'}."]
