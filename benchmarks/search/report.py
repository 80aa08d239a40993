"""What a search found: every trial as a table, the front beside the baselines as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import tables
from benchmarks.compare import Group, Result, difference
from benchmarks.pictures import BASELINE_LOOKS, COLOURS
from benchmarks.plan import label
from benchmarks.results import write_csv, write_text
from benchmarks.search.measures import OBJECTIVES
from benchmarks.search.search import DEFAULT, LIVE, Search, command, spec_of

STATES = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed"}
LiveRows = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def write_report(search: Search, live: LiveRows, group: Group | None, folder: Path) -> None:
    """Write README.md, front.csv, trials.csv, front.png and front.svg into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "trials.csv", _trials(search))
    write_csv(folder / "front.csv", [{"method": name, **values} for name, values in front_rows(search).items()])
    plot(search, folder / "front")
    write_text(folder / "README.md", "\n".join(_lines(search, live, group)).rstrip() + "\n")


def front_rows(search: Search) -> dict[str, dict[str, float]]:
    """Return the objectives of the front, best first, and of the baselines, by label."""
    front = sorted(search.study.front, key=lambda trial: -search.signs[0] * trial.values[0])
    found = {label(spec_of(trial)): list(trial.values) for trial in front}
    found = {**found, **{name: values for name, values in search.baselines().items() if name not in found}}
    return {name: dict(zip(search.objectives, values, strict=True)) for name, values in found.items()}


def _trials(search: Search) -> list[dict[str, Any]]:
    rows = []
    for trial in search.study.trials:
        values = trial.values or [""] * len(search.objectives)
        named = trial.user_attrs.get("spec")
        rows.append(
            {
                "trial": trial.user_attrs["place"],
                "state": STATES[trial.state.name],
                **dict(zip(search.objectives, values, strict=True)),
                "videos": len(trial.user_attrs.get("videos", {})),
                "method": label((named[0], named[1])) if named else "",
                "error": trial.user_attrs.get("error", ""),
            }
        )
    return rows


def _lines(search: Search, live: LiveRows, group: Group | None) -> list[str]:
    trials, plan = search.study.trials, search.plan
    states = [STATES[trial.state.name] for trial in trials]
    counts = ", ".join(f"{states.count(name)} {name}" for name in STATES.values() if name in states)
    way = "replayed over recordings of stock, without SAM 2" if search.options.replay else "live"
    titles = ", ".join(OBJECTIVES[name].title for name in search.objectives)
    rows = front_rows(search)
    cells = [[_name(name, search), *(f"{value:.4g}" for value in values.values())] for name, values in rows.items()]
    head = ["method", *(OBJECTIVES[name].title for name in search.objectives)]
    lines = [
        f"# Search: {search.space.name}, {search.options.sampler}",
        "",
        f"{len(trials)} trials ({counts}), {way}: {plan.dataset.name}, {plan.dataset.split}, "
        f"{len(plan.dataset.names)} videos, SAM 2 {plan.runs[0][0].config['model']}. Objectives: {titles}. Every "
        f"trial is in trials.csv. Made by `{command(search.options)}`. {tables.machine(plan.runs[0][0].config)}",
        "",
        "## The front, and the baselines",
        "",
        "Baselines are bold. Chosen on these very videos: figures to report are those of videos that took no part.",
        "",
        *tables.markdown(head, cells),
        "",
        "![Trials, front and baselines](front.png)",
        "",
    ]
    if live:
        lines += _live(search, live)
    if group is not None:
        lines += _confirmed(search, group)
    return lines


def _name(name: str, search: Search) -> str:
    return f"**{name}**" if name in search.known else f"`{name}`"


def _live(search: Search, live: LiveRows) -> list[str]:
    from scipy.stats import spearmanr

    head = ["method", *(f"replay: {name}" for name in search.objectives), *(f"live: {name}" for name in LIVE)]
    cells = [
        [_name(name, search), *(f"{value:.2f}" for value in (*replayed, *tracked))]
        for name, (replayed, tracked) in sorted(live.items(), key=lambda item: -item[1][1][0])
    ]
    lines = ["## The best of the replay, tracked", "", *tables.markdown(head, cells), ""]
    columns = np.array([[*replayed, *tracked] for replayed, tracked in live.values()])
    told = []
    for i, name in enumerate(search.objectives):
        pair = columns[:, i], columns[:, len(search.objectives)]
        if all(len(np.unique(side)) > 1 for side in pair):
            told.append(f"{name} {float(spearmanr(*pair).statistic):+.2f}")
    if told:
        lines += [f"Rank correlation with the live J&F over these {len(live)} methods: {', '.join(told)}.", ""]
    return lines


def _confirmed(search: Search, group: Group) -> list[str]:
    columns = ("J&F", "vs stock (95 %)", "vs every_nth", "vs random", "recovery", "false masks", "MiB", "tokens")
    head, *rows = tables.cells(group, columns, lambda result: _name(result.label, search), always=True)
    default = group.find(label(DEFAULT))
    lines = [f"## On videos that took no part: {group.title}", "", *tables.markdown(head, rows), ""]
    for result in group.results:
        if default is not None and result.label not in (*search.known, default.label):
            lines += [f"- `{result.label}` {versus(result, default)}"]
    return [*lines, ""]


def versus(result: Result, default: Result) -> str:
    """Return a sentence that says whether a run is better than the default, equal or worse."""
    found = difference(result, default)
    if found is None or not found.shown:
        return f"is not compared with the default: {len(result.by_video())} videos are too few for an interval."
    verdict = "better than" if found.low > 0 else "worse than" if found.high < 0 else "not told apart from"
    held = result.occupancy("peak_mib") / default.occupancy("peak_mib")
    return f"is {verdict} the default: J&F {tables.interval(found)} points, {held:.2f} times its MiB."


def plot(search: Search, stem: Path) -> None:
    """Draw the first objective over each of the others; of a single one, what was found over the trials."""
    first, *others = range(len(search.objectives))
    figure = Figure(figsize=(6.2 * max(1, len(others)), 5.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, max(1, len(others)), squeeze=False)[0]
    complete, front = search.study.complete, search.study.front
    for panel, x in zip(panels, others or [None], strict=True):

        def place(trial: Any, x: int | None = x) -> tuple[float, float]:
            return trial.user_attrs["place"] if x is None else trial.values[x], trial.values[first]

        panel.scatter(*zip(*map(place, complete), strict=True), s=14, color="#b6bcc6", label="trials", zorder=2)
        found = sorted(map(place, front))
        style = "-o" if len(search.objectives) == 2 else "o"  # of more than two the front is no line
        panel.plot(*zip(*found, strict=True), style, color=COLOURS[0], ms=5, lw=1.2, label="front", zorder=3)
        for name, baseline in search.baselines().items():
            look = BASELINE_LOOKS[name]
            if x is None:
                panel.axhline(baseline[first], color=look.colour, lw=1.2, ls="--", label=name)
                continue
            panel.scatter(
                [baseline[x]], [baseline[first]], s=look.area * 0.6, marker=look.marker, label=name, zorder=4,
                facecolors="none", edgecolors=look.colour, linewidths=2.0,
            )  # fmt: skip
        panel.set_xlabel(OBJECTIVES[search.objectives[x]].title if x is not None else "trial")
        panel.grid(color="#e6e8ec", lw=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(OBJECTIVES[search.objectives[first]].title)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    title = f"{search.space.name}: {len(complete)} trials of {search.options.sampler}, {search.plan.dataset.name}"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.savefig(stem.with_suffix(".png"))
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
