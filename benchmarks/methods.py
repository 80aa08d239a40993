"""Does the machinery work: every method on occlusion clips of the test split and on real clips, beside stock."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence

import sam2_keyframe.methods
from benchmarks import campaign, tables
from benchmarks.compare import Group, Result, generated_first
from benchmarks.models import check_model, memory_slots
from benchmarks.plan import BASELINES, Spec, label
from sam2_keyframe import METHODS, make_method

SEEDS = 3
FEW = 8
"""Videos below which no method is called better or worse."""


def add_methods_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `methods`."""
    campaign.add_campaign_arguments(
        parser, "methods", challenges=("occlusion",), clips=30, frames=72, split="test", method=list(METHODS)
    )
    parser.add_argument("--method", nargs="+", help="methods beside stock (default: all)")


def main_methods(options: argparse.Namespace) -> int:
    """Run every method, then write the results and their table; returns the exit code."""
    slots = memory_slots(check_model(options.model, options.checkpoints))
    chosen, left_out = choose(list(dict.fromkeys([*BASELINES, *options.method])), slots)

    def run(options: argparse.Namespace) -> int:
        return campaign.run_plans(campaign.make_plans(campaign.places(options), chosen), options.workers, timed=True)

    labels = [] if options.only_table else [*map(label, chosen)]
    return campaign.conduct(options, run, lambda groups: table(groups, left_out, labels))


def choose(names: Sequence[str], slots: int) -> tuple[list[Spec], dict[str, str]]:
    """Return the runs of some methods, those with a random seed `SEEDS` times, and why the other methods have none.

    Raises:
        ValueError: A name is unknown.
    """
    runs: list[Spec] = []
    left_out = {}
    for name in names:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
        parameters = inspect.signature(METHODS[name]).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty and each.kind != each.VAR_KEYWORD]
        try:
            if needed:
                raise ValueError(f"needs {', '.join(needed)} of the video")
            make_method(name).check_fits(slots)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        seeded = any(each.name == "seed" for each in parameters)
        runs += [(name, [f"seed={seed}"]) for seed in range(SEEDS)] if seeded else [(name, [])]
    return runs, left_out


def table(groups: Sequence[Group], left_out: Mapping[str, str], chosen: Sequence[str] = ()) -> str:
    """Return the Markdown text that shows the results, generated clips before real ones.

    Args:
        groups: The results.
        left_out: Methods that are not run, and why.
        chosen: Labels of those that are: one that finished no video is named below the table.
    """
    lines = ["# Does the machinery work", "", "Made from the files beside it by `python -m benchmarks methods`.", ""]
    columns = ("J&F", "vs stock (95 %)", "frames", "MiB", "tokens", "keyframes", "time / stock")
    for group in generated_first(groups):
        head, *rows = tables.cells(group, columns, _name)
        lines += [f"## {group.title}", "", *tables.markdown(head, rows), "", *_sentences(group), ""]
        absent = [f"`{label}`" for label in chosen if not group.find(label)]
        lines += [f"Not in this table: {', '.join(absent)} (finished no video).", ""] if absent else []
    lines += [f"Not in the tables: `{name}` ({why})." for name, why in left_out.items()]
    return "\n".join(lines).rstrip() + "\n"


def _name(result: Result) -> str:
    failed = len(result.metrics["failed"])
    name = f"**{result.label}**" if result.label in BASELINES else f"`{result.label}`"
    return name + (" †" if _looks_ahead(result) else "") + (f" ({failed} videos failed)" if failed else "")


def _looks_ahead(result: Result) -> bool:
    return result.method["name"] in sam2_keyframe.methods.NON_CAUSAL


def _sentences(group: Group) -> list[str]:
    memory = "Frames and MiB: most held for an object, averaged over objects; tokens: attended to, mean over frames."
    first = group.results[0].metrics
    clips = f"{first['videos']} videos, {first['objects']} objects."
    lines = [f"{clips} J&F: percent. Intervals: paired bootstrap over videos. {memory}"]
    if timed := next((result.beside_stock for result in group.results if result.beside_stock), None):
        lines.append(
            f"Time: median over {timed['frames']} frames of {timed['video']}, method and stock in turn in one process."
        )
    if any(map(_looks_ahead, group.results)):
        lines.append("†: not causal, it chooses with frames still to come.")
    if group.reference and first["videos"] >= FEW:  # drawing from fewer says little
        found = {result.label: gain for result in group.results if (gain := group.gain(result))}
        better = [f"`{label}`" for label, gain in found.items() if round(gain.low, 1) > 0]
        worse = [f"`{label}`" for label, gain in found.items() if round(gain.high, 1) < 0]
        lines.append(f"Interval above 0: {', '.join(better) or 'none'}. Below 0: {', '.join(worse) or 'none'}.")
    commits = sorted({str(result.metrics["config"].get("commit")) for result in group.results})
    return [*lines, f"{tables.machine(group.config)} Commit {', '.join(commits)}."]
