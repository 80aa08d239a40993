"""Which scorer, threshold and capacity: a grid on development clips, its winners on test clips and on real ones."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import campaign, tables
from benchmarks.compare import Difference, Group, Result, difference, load_groups
from benchmarks.plan import BASELINES, Spec, combinations, label
from benchmarks.results import check_kept

CHALLENGES = ("deformation", "scale", "occlusion", "leave_and_return", "look_alike", "long")
CHANGE = ("deformation", "scale")
"""Clips on which shape or scale changes."""
METHODS = ("first", "fifo", "every_nth", "random")
"""Run beside the grid, which needs no scorer to beat them."""
BOTH = "MaskIoU(), OpticalFlow()"


@dataclass(frozen=True)
class Family:
    """One way to decide what a keyframe is, with the values of its one number.

    Attributes:
        rule: Its rule, with {} in place of its one number.
        values: Its six numbers.
        parts: Families it is made of, whose winners it has to beat.
        instead: The family with a fixed threshold that it is the adaptive form of.
    """

    rule: str
    values: tuple[float, ...]
    parts: tuple[str, ...] = ()
    instead: str = ""

    def runs(self) -> list[Spec]:
        """Return its runs: every threshold at every capacity."""
        rules = ",".join(map(self.rule.format, self.values))
        return combinations((), "keyframe", (), [f"change={rules}", "keyframes=1,3,5"])[len(BASELINES) :]

    def members(self, group: Group) -> list[Result]:
        """Return a group's runs of this family, in the grid's order; without those that lack videos."""
        ranked = {result.label: result for result in group.ranked}
        return [ranked[name] for name in map(label, self.runs()) if name in ranked]


SPREADS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
FAMILIES: dict[str, Family] = {
    "mask IoU": Family("MaskIoU() > {}", (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)),
    "mask shape": Family("MaskShape() > {}", (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)),
    "SSIM": Family("SSIM() > {}", (0.1, 0.2, 0.3, 0.35, 0.4, 0.5)),
    "optical flow": Family("OpticalFlow() > {}", (0.005, 0.01, 0.02, 0.03, 0.05, 0.08)),
    "object pointer": Family("FeatureShift() > {}", (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)),
    "IoU + flow, sum": Family(
        f"Combine(({BOTH}), weights=(1.0, 20.0)) > {{}}", (0.2, 0.4, 0.6, 0.8, 1.2, 1.6), ("mask IoU", "optical flow")
    ),
    "IoU + flow, z": Family(
        f"Combine(({BOTH}), scale='z') > {{}}", (0.25, 0.5, 1, 1.5, 2, 3), ("mask IoU", "optical flow")
    ),
    "mask IoU, adaptive": Family("Adaptive(MaskIoU(), k={})", SPREADS, instead="mask IoU"),
    "mask IoU, quantile": Family("Quantile(MaskIoU(), {})", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95), instead="mask IoU"),
    "optical flow, adaptive": Family("Adaptive(OpticalFlow(), k={}, fixed=0.02)", SPREADS, instead="optical flow"),
}
"""Families of the grid: 6 thresholds x 3 capacities each. Thresholds were laid out by keep-rate, from most frames to
hardly any, on one clip of deformation and one of occlusion (development); the weight of flow makes both parts count."""
Families = Mapping[str, Family]
Winners = Mapping[str, Result]


def winners(dev: Group, families: Families) -> dict[str, Result]:
    """Return each family's run of the highest J&F; of equals the one that keeps fewer frames."""

    def merit(result: Result) -> tuple[float, float]:
        return round(result.jf, 6), -(result.metrics["keep_rate"] or 0.0)

    return {name: max(found, key=merit) for name, family in families.items() if (found := family.members(dev))}


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `study`."""
    campaign.add_campaign_arguments(parser, "study", challenges=CHALLENGES, clips=2, frames=48)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help="families of the grid (default: all)")
    parser.add_argument("--test-clips", type=int, default=5, help="test clips a challenge (default: %(default)s)")


def main_study(options: argparse.Namespace) -> int:
    """Run the grid and its winners, then write the results and their tables; returns the exit code."""
    if unknown := sorted(set(options.families) - set(FAMILIES)):
        raise ValueError(f"no family is called {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    families = {name: FAMILIES[name] for name in options.families}
    return campaign.conduct(options, lambda options: _run(options, families), lambda groups: write(groups, families))


def _run(options: argparse.Namespace, families: Families) -> int:
    others: list[Spec] = [(name, []) for name in (*BASELINES, *METHODS)]
    grid = [run for family in families.values() for run in family.runs()]
    generated, *real = campaign.places(options)
    dev = campaign.make_plans([campaign.changed(generated, split="dev")], [*others, *grid])
    places = [campaign.changed(generated, split="test", clips=options.test_clips), *real]
    campaign.make_plans(places, others)  # what is wrong with them is said before the grid is run
    for file in options.results.glob("synthetic*_dev.json"):
        check_kept(dev[0][0].runs[0][0].config, file)
    code = campaign.run_plans(dev, options.workers)
    won = winners(load_groups(dev[0][1])[0], families)
    chosen = [*others, *((result.method["name"], result.method["set"]) for result in won.values())]
    return max(code, campaign.run_plans(campaign.make_plans(places, chosen), options.workers, timed=True))


def write(groups: Sequence[Group], families: Families) -> str:
    """Return the README: what was run, the grid, the winners elsewhere, and the questions with their figures.

    Raises:
        ValueError: There is no grid on development clips, or more than one.
    """
    found = [group for group in groups if group.config["split"] == "dev"]
    if not found:
        raise ValueError("there are no results of the grid on development clips; run it without --only-table")
    if len(found) > 1:
        titles = "; ".join(group.title for group in found)
        raise ValueError(f"there are grids on several kinds of development clips ({titles}); move all but one away")
    (dev,) = found
    others = sorted((g for g in groups if g is not dev), key=lambda g: g.config["split"] != "test")
    members = {name: runs for name, family in families.items() if (runs := family.members(dev))}
    won = winners(dev, families)
    lines = [
        "# Which scorer, threshold and capacity",
        "",
        f"{sum(map(len, members.values()))} runs of the grid on {dev.title}; the best choice of each family again on "
        "clips that took no part in choosing it. J&F in percent; differences in points with paired 95 % bootstrap "
        "intervals over videos. Made from the files beside it by `python -m benchmarks study`. "
        + tables.machine(dev.config),
        "",
        *_grid(dev, members, won),
        *_thresholds(members),
        *_capacities(members),
    ]
    for group in others:
        lines += _elsewhere(group, won)
    lines += [*_changes(dev, others, members, won), *_comparisons(others, families, won)]
    return "\n".join(lines).rstrip() + "\n"


Members = Mapping[str, Sequence[Result]]
"""The grid's runs, by family."""


def _by_choice(runs: Iterable[Result], name: str) -> dict[str, list[Result]]:
    """Return runs by what a choice was replaced with."""
    found: dict[str, list[Result]] = {}
    for result in runs:
        found.setdefault(result.choice(name), []).append(result)
    return found


def _mean(runs: Iterable[Result], keep: Callable[[str], bool] = lambda _: True) -> float:
    """Return the mean over runs of their J&F on the videos that are kept."""
    return float(
        np.mean([jf for run in runs for name, values in run.by_video().items() if keep(name) for jf in values])
    )


def _grid(dev: Group, members: Members, won: Winners) -> list[str]:
    rows = []
    for name, runs in members.items():
        jf = [result.jf for result in runs]
        choice = f"`change={won[name].choice('change')} keyframes={won[name].choice('keyframes')}`"
        gain = tables.interval(dev.gain(won[name]))
        rows.append([name, f"{max(jf):.1f}", choice, gain, f"{np.mean(jf):.1f}", f"{min(jf):.1f}"])
    for result in dev.results:
        if result.method["name"] != "keyframe":
            rows.append([f"**{result.label}**", f"{result.jf:.1f}", "", tables.interval(dev.gain(result)), "", ""])
    head = ["family", "best J&F", "at", "vs stock (95 %)", "mean of its runs", "worst"]
    return ["## The grid, development clips", "", *tables.markdown(head, rows), ""]


def _thresholds(members: Members) -> list[str]:
    text = "Mean J&F over the capacities, and the share of frames that become keyframes."
    rows = []
    for name, runs in members.items():
        cells = [
            f"{value}: {np.mean([r.jf for r in found]):.1f} ({np.mean([r.metrics['keep_rate'] for r in found]):.0f} %)"
            for value, found in _by_choice(runs, "change").items()
        ]
        rows.append([name, *cells])
    width = max(map(len, rows), default=1)
    rows = [[*row, *[""] * (width - len(row))] for row in rows]
    return ["## Thresholds, development clips", "", text, "", *tables.markdown(["family", *range(1, width)], rows), ""]


def _capacities(members: Members) -> list[str]:
    found = {name: _by_choice(runs, "keyframes") for name, runs in members.items()}
    rows = [[name, *(f"{np.mean([r.jf for r in runs]):.1f}" for runs in each.values())] for name, each in found.items()]
    head = ["family", *dict.fromkeys(itertools.chain(*found.values()))]
    return ["## Capacity, development clips: mean J&F", "", *tables.markdown(head, rows), ""]


def _elsewhere(group: Group, won: Winners) -> list[str]:
    names = {result.label: name for name, result in won.items()}

    def name(result: Result) -> str:
        choice = " ".join(result.method["set"])
        return f"{names[result.label]}, `{choice}`" if result.label in names else f"**{result.label}**"

    columns = ("J&F", "vs stock (95 %)", "frames", "MiB", "tokens", "keyframes", "time / stock")
    head, *rows = tables.cells(group, columns, name, first="choice", always=True)
    return [f"## The winners: {group.title}", "", *tables.markdown(head, rows), ""]


def _changes(dev: Group, others: Sequence[Group], members: Members, won: Winners) -> list[str]:
    lines = ["## Shape and scale change", ""]
    if not any(map(_changing, dev.videos)):
        return [*lines, f"None of the clips is of {' or '.join(CHANGE)}.", ""]
    lines += [
        f"Clips of {' and '.join(CHANGE)} only. Spread: highest minus lowest J&F over a family's runs of one capacity "
        "(mean over capacities), that is, what a badly chosen threshold costs.",
        "",
    ]
    test = next((group for group in others if group.config["split"] == "test"), None)
    rows = []
    for name, runs in members.items():
        found = [[_mean([r], _changing) for r in same] for same in _by_choice(runs, "keyframes").values()]
        spread = np.mean([max(jf) - min(jf) for jf in found])
        winner = test.find(won[name].label) if test else None
        shown = tables.interval(test.gain(winner, _changing)) if test and winner else ""
        rows.append([name, f"{np.mean([jf for same in found for jf in same]):.1f}", f"{spread:.1f}", shown])
    head = ["family", "mean J&F of its runs, dev", "spread over thresholds, dev", "its winner vs stock, test (95 %)"]
    return [*lines, *tables.markdown(head, rows), ""]


def _changing(video: str) -> bool:
    return video.rpartition("-")[0] in CHANGE


def _comparisons(others: Sequence[Group], families: Families, won: Winners) -> list[str]:
    pairs = [(name, other) for name, family in families.items() for other in (*family.parts, family.instead) if other]
    pairs += [(name, "every_nth") for name, family in families.items() if not family.parts and not family.instead]
    rows = []
    for name, other in pairs:
        if name in won and (other not in families or other in won):
            against = won[other].label if other in won else other
            found = [(group.find(won[name].label), group.find(against)) for group in others]
            cells = [_with_verdict(difference(ours, theirs)) if ours and theirs else "" for ours, theirs in found]
            rows.append([f"{name} minus {other.replace('_', ' ')}", *cells])
    head = ["winners", *(f"{group.config['data']['name']}, {group.config['split']}" for group in others)]
    text = "A combination against its parts, adaptive thresholds against fixed ones, scorers against every fifth frame."
    return ["## Does it beat", "", text, "", *tables.markdown(head, rows), ""]


def _with_verdict(found: Difference | None) -> str:
    if found is None or not found.shown:
        return tables.interval(found)
    shown = "better" if round(found.low, 1) > 0 else "worse" if round(found.high, 1) < 0 else "not told apart"
    return f"{tables.interval(found)}, {shown}"
