"""Samplers beside each other at equal budget: the hypervolume of what each has found, over seeds.

    python -m benchmarks.search.samplers shelves --replay --trials 200 --out search-samplers

Every search is a study of its own in one storage: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import tables
from benchmarks.campaign import changed
from benchmarks.pictures import COLOURS
from benchmarks.results import write_text
from benchmarks.search.measures import OBJECTIVES
from benchmarks.search.search import Search, add_search_arguments, command, open_search

Losses = Mapping[tuple[str, int], Sequence[NDArray[np.float64] | None]]
"""What each trial lost, objective by objective, by sampler and seed; None of one that was not measured to its end."""
MARGIN = 0.1
"""How far beyond the worst value of any trial the reference point lies, of the range of all trials."""


def losses_of(search: Search) -> list[NDArray[np.float64] | None]:
    """Return the objectives of every trial by place, turned so that less is better; None where it has none."""
    values = [trial.values for trial in search.study.trials]
    return [None if each is None else -search.signs * np.array(each) for each in values]


def hypervolumes(found: Losses, budgets: Sequence[int]) -> dict[tuple[str, int], list[float]]:
    """Return each search's dominated share of the box around all trials, after so many trials.

    The box goes from the best value of any trial of any search in each objective to its worst and a tenth further.
    """
    from optuna._hypervolume import compute_hypervolume  # Optuna shows it in plots alone

    every = np.array([loss for losses in found.values() for loss in losses if loss is not None])
    low, span = every.min(0), np.ptp(every, axis=0)
    span[span == 0] = 1.0
    corner = np.full(every.shape[1], 1 + MARGIN)
    shares = {}
    for key, losses in found.items():
        shares[key] = []
        for budget in budgets:
            points = np.array([(loss - low) / span for loss in losses[:budget] if loss is not None])
            volume = float(compute_hypervolume(points, corner)) if len(points) else 0.0
            shares[key].append(volume / float(np.prod(corner)))
    return shares


def write(search: Search, found: Losses, folder: Path) -> None:
    """Write samplers.json, samplers.png and README.md into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    most = max(map(len, found.values()))
    budgets = sorted({*range(10, most, 10), most})
    shares = hypervolumes(found, budgets)
    rows = [
        {"sampler": sampler, "seed": seed, "trials": budgets, "hypervolume": [round(each, 5) for each in values]}
        for (sampler, seed), values in shares.items()
    ]
    about = {"space": search.space.name, "objectives": list(search.objectives), "data": search.plan.dataset.name}
    write_text(folder / "samplers.json", json.dumps({**about, "runs": rows}, indent=1) + "\n")
    _plot(budgets, shares, folder / "samplers.png")
    write_text(folder / "README.md", _text(search, found, budgets, shares))


def _text(search: Search, found: Losses, budgets: Sequence[int], shares: Mapping[tuple[str, int], list[float]]) -> str:
    shown = [place for place, budget in enumerate(budgets) if budget in {50, 100, budgets[-1]}]
    cells = []
    for (sampler, seed), values in shares.items():
        done = sum(loss is not None for loss in found[sampler, seed])
        cells.append([f"{sampler}, seed {seed}", *(f"{values[place]:.4f}" for place in shown), done])
    names = list(dict.fromkeys(sampler for sampler, _ in shares))
    for name in names:
        mine = [values for (sampler, _), values in shares.items() if sampler == name]
        cells.append([f"**{name}, mean**", *(f"{np.mean([each[p] for each in mine]):.4f}" for p in shown), ""])
    head = ["search", *(f"after {budgets[place]}" for place in shown), "measured to the end"]
    way = "replayed" if search.options.replay else "tracked"
    titles = ", ".join(OBJECTIVES[name].title for name in search.objectives)
    made = command(changed(search.options, sampler_seed=0, sampler="nsga2")).replace(" search ", ".search.samplers ", 1)
    lines = [
        f"# Samplers: {search.space.name}",
        "",
        f"{budgets[-1]} trials a search, {way}: {search.plan.dataset.name}, {search.plan.dataset.split}, "
        f"{len(search.plan.dataset.names)} videos. Hypervolume of {titles}: the share of the box around all trials "
        "that is dominated, higher is better. Trials that were stopped early count as trials. Made by "
        f"`{made}`.",
        "",
        *tables.markdown(head, cells),
        "",
        *_wins(names, shares),
        "![Hypervolume over trials](samplers.png)",
    ]
    return "\n".join(lines) + "\n"


def _wins(names: Sequence[str], shares: Mapping[tuple[str, int], list[float]]) -> list[str]:
    first, *others = names
    lines = []
    for other in others:
        pairs = [
            (values[-1], shares[other, seed][-1])
            for (sampler, seed), values in shares.items()
            if sampler == first and (other, seed) in shares
        ]
        more = sum(ours > theirs for ours, theirs in pairs)
        lines += [f"At the whole budget {first} has the larger one than {other} with {more} of {len(pairs)} seeds.", ""]
    return lines


def _plot(budgets: Sequence[int], shares: Mapping[tuple[str, int], list[float]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.6), dpi=120, layout="constrained")
    panel = figure.subplots()
    names = list(dict.fromkeys(sampler for sampler, _ in shares))
    for (sampler, _), values in shares.items():
        panel.plot(budgets, values, color=COLOURS[names.index(sampler)], lw=0.8, alpha=0.5)
    for name in names:
        mine = np.array([values for (sampler, _), values in shares.items() if sampler == name])
        panel.plot(budgets, mine.mean(0), color=COLOURS[names.index(name)], lw=2.4, label=f"{name}, mean")
    panel.set_xlabel("trials")
    panel.set_ylabel("hypervolume")
    panel.grid(color="#e6e8ec", lw=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search with every sampler and seed, then write what each has found; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_search_arguments(parser)
    parser.add_argument("--samplers", nargs="+", default=["nsga2", "random"], help="(default: nsga2 random)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_DISABLE", "1")  # SAM 2 shows a bar a clip; tqdm reads this when it is imported
    found: dict[tuple[str, int], Any] = {}
    bench: Any = None
    try:
        for seed in options.seeds:
            for sampler in options.samplers:
                search = open_search(changed(options, sampler=sampler, sampler_seed=seed, study=None))
                bench = search.bench = bench or search.bench  # replays are remembered from one search to the next
                search.run()
                found[sampler, seed] = losses_of(search)
                sys.stderr.write(f"{sampler}, seed {seed}: {len(found[sampler, seed])} trials\n")
                write(search, found, options.report or options.out / "samplers")
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"benchmarks search.samplers: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
