"""The study's tables in Markdown, made from its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks import _tables as tables
from benchmarks._compare import Difference, Group, Result, difference
from benchmarks._families import Family, members

Families = Mapping[str, Family]
Winners = Mapping[str, Result]
CHANGE = ("deformation", "scale")
"""Clips on which shape or scale changes."""


def write(groups: Sequence[Group], families: Families, won: Winners) -> str:
    """Return the README: what was run, the grid, the winners elsewhere, and the questions with their figures."""
    dev = next(group for group in groups if group.config["split"] == "dev")
    others = sorted((g for g in groups if g is not dev), key=lambda g: g.config["split"] != "test")
    runs = sum(len(members(dev, family)) for family in families.values())
    lines = [
        "# Which scorer, threshold and capacity",
        "",
        f"{runs} runs of the grid on {dev.title}; the best choice of each family again on clips that took no part in "
        "choosing it. J&F in percent; differences in points with paired 95 % bootstrap intervals over videos. Made "
        "from the files beside it by `python -m benchmarks study`. " + tables.machine(dev.config),
        "",
        *_grid(dev, families, won),
        *_thresholds(dev, families),
        *_capacities(dev, families),
    ]
    for group in others:
        lines += _elsewhere(group, won)
    lines += _changes(dev, others, families, won)
    lines += _comparisons(others, families, won)
    return "\n".join(lines).rstrip() + "\n"


def _grid(dev: Group, families: Families, won: Winners) -> list[str]:
    rows = []
    for name, family in families.items():
        jf = [result.jf for result in members(dev, family)]
        if not jf:
            continue
        best = _against_stock(dev, won[name])
        choice = " ".join(won[name].metrics["config"]["method"]["set"][len(family.fixed) :])
        rows.append([name, f"{max(jf):.1f}", f"`{choice}`", best, f"{np.mean(jf):.1f}", f"{min(jf):.1f}"])
    for result in dev.results:
        if result.metrics["config"]["method"]["name"] != "keyframe":
            rows.append([f"**{result.label}**", f"{result.jf:.1f}", "", _against_stock(dev, result), "", ""])
    head = ["family", "best J&F", "at", "vs stock (95 %)", "mean of its runs", "worst"]
    return ["## The grid, development clips", "", *tables.markdown(head, rows), ""]


def _thresholds(dev: Group, families: Families) -> list[str]:
    lines = [
        "## Thresholds, development clips",
        "",
        "Mean J&F over the capacities, and the share of frames that become keyframes.",
        "",
    ]
    rows = []
    for name, family in families.items():
        by_value: dict[str, list[Result]] = {}
        for result in members(dev, family):
            by_value.setdefault(_choice(result, "keep"), []).append(result)
        cells = [
            f"{value}: {np.mean([r.jf for r in found]):.1f} ({np.mean([r.metrics['keep_rate'] for r in found]):.0f} %)"
            for value, found in by_value.items()
        ]
        if cells:
            rows.append([name, *cells])
    width = max(map(len, rows), default=1)
    padded = [[*row, *[""] * (width - len(row))] for row in rows]
    return [*lines, *tables.markdown(["family", *map(str, range(1, width))], padded), ""]


def _capacities(dev: Group, families: Families) -> list[str]:
    values: dict[str, None] = {}
    rows = []
    for name, family in families.items():
        found: dict[str, list[float]] = {}
        for result in members(dev, family):
            found.setdefault(_choice(result, "capacity"), []).append(result.jf)
        values |= dict.fromkeys(found)
        if found:
            rows.append([name, *(f"{np.mean(jf):.1f}" for jf in found.values())])
    return ["## Capacity, development clips: mean J&F", "", *tables.markdown(["family", *values], rows), ""]


def _elsewhere(group: Group, won: Winners) -> list[str]:
    names = {result.label: name for name, result in won.items()}
    rows = []
    for result in group.results:
        memory = result.metrics["occupancy"]["memory"]
        beside = result.metrics["time"].get("beside_stock")
        rate = result.metrics["keep_rate"]
        choice = " ".join(part for part in result.metrics["config"]["method"]["set"] if not part.startswith("scorer="))
        name = f"{names[result.label]}, `{choice}`" if result.label in names else f"**{result.label}**"
        row = [name, f"{result.jf:.1f}", _against_stock(group, result), f"{memory['peak_frames']:.1f}"]
        row += [f"{memory['peak_mib']:.2f}", f"{memory['tokens']:.0f}", f"{rate:.0f} %" if rate else ""]
        rows.append([*row, f"{beside['ratio']:.2f}" if beside else ""])
    head = ["choice", "J&F", "vs stock (95 %)", "frames", "MiB", "tokens", "keyframes", "time / stock"]
    return [f"## The winners: {group.title}", "", *tables.markdown(head, rows), ""]


def _changes(dev: Group, others: Sequence[Group], families: Families, won: Winners) -> list[str]:
    if not any(map(_changing, dev.videos)):
        return ["## Shape and scale change", "", f"None of the clips is of {' or '.join(CHANGE)}.", ""]
    lines = [
        "## Shape and scale change",
        "",
        f"Clips of {' and '.join(CHANGE)} only. Spread: highest minus lowest J&F over a family's runs of one capacity "
        "(mean over capacities), that is, what a badly chosen threshold costs.",
        "",
    ]
    test = next((group for group in others if group.config["split"] == "test"), None)
    rows = []
    for name, family in families.items():
        by_capacity: dict[str, list[float]] = {}
        for result in members(dev, family):
            mean = _mean(result, _changing)
            by_capacity.setdefault(_choice(result, "capacity"), []).append(mean)
        if not by_capacity:
            continue
        spread = float(np.mean([max(jf) - min(jf) for jf in by_capacity.values()]))
        everything = [jf for found in by_capacity.values() for jf in found]
        winner = _find(test, won[name].label) if test else None
        shown = ""
        if test and test.reference and winner:
            shown = tables.interval(difference(winner, test.reference, keep=_changing))
        rows.append([name, f"{np.mean(everything):.1f}", f"{spread:.1f}", shown])
    head = ["family", "mean J&F of its runs, dev", "spread over thresholds, dev", "its winner vs stock, test (95 %)"]
    return [*lines, *tables.markdown(head, rows), ""]


def _comparisons(others: Sequence[Group], families: Families, won: Winners) -> list[str]:
    pairs = [(name, other) for name, family in families.items() for other in (*family.parts, family.instead) if other]
    pairs += [(name, "every_nth") for name, family in families.items() if not family.parts and not family.instead]
    rows = []
    for name, other in pairs:
        if name not in won or (other in families and other not in won):
            continue
        cells = []
        for group in others:
            ours = _find(group, won[name].label)
            theirs = _find(group, won[other].label if other in won else other)
            cells.append(_with_verdict(difference(ours, theirs)) if ours and theirs else "")
        rows.append([f"{name} minus {other.replace('_', ' ')}", *cells])
    head = ["winners", *(f"{group.config['data']['name']}, {group.config['split']}" for group in others)]
    text = "A combination against its parts, adaptive thresholds against fixed ones, scorers against every fifth frame."
    return ["## Does it beat", "", text, "", *tables.markdown(head, rows), ""]


def _with_verdict(found: Difference | None) -> str:
    if found is None or not found.shown:
        return tables.interval(found)
    shown = "better" if round(found.low, 1) > 0 else "worse" if round(found.high, 1) < 0 else "not told apart"
    return f"{tables.interval(found)}, {shown}"


def _find(group: Group, label: str) -> Result | None:
    return next((result for result in group.results if result.label == label), None)


def _against_stock(group: Group, result: Result) -> str:
    if group.reference is None or result is group.reference:
        return ""
    return tables.interval(difference(result, group.reference))


def _choice(result: Result, name: str) -> str:
    parts = result.metrics["config"]["method"]["set"]
    return next((str(part).partition("=")[2] for part in parts if part.startswith(f"{name}=")), "")


def _changing(video: str) -> bool:
    return video.rpartition("-")[0] in CHANGE


def _mean(result: Result, keep: Callable[[str], bool]) -> float:
    return float(np.mean([jf for name, values in result.by_video().items() if keep(name) for jf in values]))
