"""Thresholds, capacities, codecs found by search: the front of accuracy against occupancy, on development clips."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.campaign import changed
from benchmarks.compare import Group, load_groups
from benchmarks.engine import carry_out
from benchmarks.models import memory_slots
from benchmarks.plan import BASELINES, Plan, Spec, add_arguments, label, make_plan
from benchmarks.results import PACKAGES, check_kept, keep_results, protocol
from benchmarks.search.measures import AROUND, OBJECTIVES, Bench, Live, Replayed, check_objectives, mean_of
from benchmarks.search.space import SPACES, Space, build, load_space

WAYS = ("absence_leaving", "absence_partial", "absence_filled")
"""Clips of a search unless others are asked for: on those without absences memories hardly differ."""
WHERE = ("out", "report", "storage", "study", "spaces", "workers", "checkpoints", "device")
"""Options that say where, not what."""
DEFAULT: Spec = ("keyframe", [])
"""Beside the winners on test clips."""
LIVE = ("jf", "recovery", "false_masks", "mib", "tokens")
"""What the best of a replay are confirmed by."""


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `search`."""
    parser.add_argument("space", help="a space of --spaces")
    parser.add_argument("--spaces", type=Path, default=SPACES, help="YAML of spaces (default: the examples)")
    parser.add_argument("--trials", type=int, default=60, help="of the whole study (default: %(default)s)")
    parser.add_argument("--sampler", default="nsga2", help="nsga2, tpe, grid or random (default: %(default)s)")
    names = ", ".join(OBJECTIVES)
    parser.add_argument("--objectives", nargs="+", help=f"of {names} (default: jf mib; replayed: coverage clean mib)")
    parser.add_argument("--population", type=int, default=20, help="of nsga2; random starts of tpe (default: 20)")
    parser.add_argument(
        "--prune-after", type=int, default=3, metavar="N",
        help="stop a trial after N videos or more when another is as good in all objectives on each; 0: never",
    )  # fmt: skip
    parser.add_argument("--sampler-seed", type=int, default=0, help="what is drawn (default: %(default)s)")
    parser.add_argument("--study", help="name of the study (default: the space's, sampler and seed)")
    parser.add_argument("--storage", help="a journal, or a database's URL, as sqlite:///study.db (default: in --out)")
    parser.add_argument("--replay", action="store_true", help="first pass: over recordings of stock, without SAM 2")
    parser.add_argument("--live", type=int, default=0, metavar="K", help="track the best K of a replay, too")
    parser.add_argument(
        "--confirm", nargs="?", const="test", metavar="SPLIT",
        help="run the best again on clips that took no part: test, or a folder's split",
    )  # fmt: skip
    parser.add_argument("--confirm-clips", type=int, default=5, help="test clips a challenge (default: %(default)s)")
    parser.add_argument("--winners", type=int, default=3, help="how many to confirm (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="where tables and pictures go (default: report in --out)")
    add_arguments(parser)
    parser.set_defaults(out=Path("search-out"), challenges=WAYS, frames=96)


def command(options: argparse.Namespace) -> str:
    """Return the command line of a search, without where its files lie."""
    parser = argparse.ArgumentParser()
    add_search_arguments(parser)
    parts = ["python -m benchmarks search", options.space]
    for action in parser._actions:
        value = getattr(options, action.dest, action.default)
        if not action.option_strings or value == parser.get_default(action.dest) or action.dest in WHERE:
            continue
        texts = [] if value is True else list(map(str, value)) if isinstance(value, list) else [str(value)]
        texts = [",".join(value)] if isinstance(value, tuple) else texts
        parts += [action.option_strings[0], *texts]
    return shlex.join(parts).replace("'python -m benchmarks search'", "python -m benchmarks search")


@dataclass
class Search:
    """A search with everything that it needs, checked.

    Attributes:
        options: Of the command line.
        space: What is searched.
        plan: Of the data and the model.
        bench: Measures.
        objectives: By name.
        study: The study of Optuna.
        trials: How many it is to have.
        known: Objectives of the baselines that were measured.
    """

    options: argparse.Namespace
    space: Space
    plan: Plan
    bench: Bench
    objectives: tuple[str, ...]
    study: Any
    trials: int
    known: dict[str, list[float]] = field(default_factory=dict)

    @property
    def signs(self) -> NDArray[np.float64]:
        """1 for objectives of which more is better, -1 for the others."""
        return np.array([1.0 if OBJECTIVES[name].maximise else -1.0 for name in self.objectives])

    def run(self) -> None:
        """Measure the baselines, then try until the study has as many trials as were asked for."""
        self.baselines()
        self.study.search(self.trials, self._told)

    def baselines(self) -> dict[str, list[float]]:
        """Return the objectives of every baseline, by label."""
        for name in BASELINES:
            if name not in self.known:
                self.known[name] = measure(self.bench, (name, []), self.objectives)
        return self.known

    def _try(self, trial: Any) -> Sequence[float]:
        started = time.perf_counter()
        spec = self.space.suggest(trial)
        trial.set_user_attr("spec", list(spec))
        build(spec).check_fits(memory_slots(self.plan.checkpoint))
        rows: list[Any] = []
        by_video: dict[str, list[float]] = {}
        names, least = self.bench.names, self.options.prune_after
        with self.bench.held(spec):
            for count, name in enumerate(names, 1):
                found = self.bench.measure(spec, name)
                rows += found
                by_video[name] = mean_of(found, self.objectives)
                if 0 < least <= count < len(names) and self.beaten(by_video):
                    trial.set_user_attr("videos", _plain(by_video))
                    self._tell(trial, "stopped early", spec, started)
                    raise _pruned(f"after {count} videos")
            self.bench.finish(spec)
        trial.set_user_attr("videos", _plain(by_video))
        values = mean_of(rows, self.objectives)
        for name, value in zip(self.objectives, values, strict=True):
            if math.isnan(value):
                raise ValueError(f"{name} has no value on any of these videos")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.objectives, values, strict=True))
        self._tell(trial, shown, spec, started)
        return values

    def _told(self, trial: Any) -> Sequence[float]:
        """Try, and say why where a trial fails."""
        try:
            return self._try(trial)
        except Exception as error:
            if "videos" not in trial.user_attrs:
                say(f"trial {trial.user_attrs['place']}: failed: {error}")
            raise

    def _tell(self, trial: Any, what: str, spec: Spec, started: float) -> None:
        seconds = time.perf_counter() - started
        say(f"trial {trial.user_attrs['place']}: {what}  {label(spec)}  {seconds:.1f} s")

    def beaten(self, by_video: Mapping[str, Sequence[float]]) -> bool:
        """Return whether a finished trial is as good in every objective on each of these videos, and better in one."""
        ours = np.array(list(by_video.values()), float)
        for rival in self.study.complete:
            theirs = np.array([rival.user_attrs["videos"][name] for name in by_video], float)
            gained = np.nan_to_num(self.signs * (ours - theirs))  # nobody gains where there is nothing to measure
            if (gained <= 0).all() and (gained < 0).any():
                return True
        return False

    def best(self, count: int) -> list[Any]:
        """Return trials of the front: the best in the first objective, and others evenly along it."""
        unique = {label(spec_of(trial)): trial for trial in reversed(self.study.front)}
        front = sorted(unique.values(), key=lambda trial: -self.signs[0] * trial.values[0])
        places = np.unique(np.linspace(0, len(front) - 1, min(count, len(front))).round().astype(int))
        return [front[place] for place in places]


def open_search(options: argparse.Namespace) -> Search:
    """Return a search, its study opened; nothing has been measured.

    Raises:
        ValueError: Bad input, in a sentence.
        ImportError: Optuna is not installed.
    """
    from benchmarks.search.study import Study, check_sampler, make_sampler

    check_sampler(options.sampler)
    for name, least in (
        ("trials", 1),
        ("population", 2),
        ("prune_after", 0),
        ("live", 0),
        ("winners", 1),
        ("sampler_seed", 0),
    ):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(options, name)}: give at least {least}")
    if options.live and not options.replay:
        raise ValueError("--live runs what a replay found: add --replay, or leave it out")
    replayed = options.replay
    objectives = tuple(options.objectives or (("coverage", "clean", "mib") if replayed else ("jf", "mib")))
    check_objectives(objectives, replayed)
    generated = options.data == "synthetic"
    if generated and options.split not in (None, "dev"):
        raise ValueError(
            f"--split {options.split}: a search looks at development clips alone; --confirm runs its winners on others"
        )
    if options.confirm and options.confirm == (options.split or ("dev" if generated else None)):
        raise ValueError(f"--confirm {options.confirm}: the search has seen these clips; name another split")
    if not generated and tuple(options.challenges) == WAYS:
        options = changed(options, challenges=())
    space = load_space(options.space, options.spaces)
    grid = space.grid() if options.sampler == "grid" else []
    plan = make_plan(options, [(name, []) for name in BASELINES], share="time" not in objectives)
    if options.confirm:
        _confirm_plan(options, [DEFAULT])  # what is wrong with it is said before hours of search
    bench: Any = (
        Replayed(plan, options.out / "recordings")
        if replayed
        else Live(plan, options.out / ("timed" if "time" in objectives else "runs"), "time" in objectives)
    )
    bench.check_absences([name for name in objectives if name in AROUND])
    bench.check(space)
    about = {
        "space": dict(space.definition),
        "objectives": list(objectives),
        "measured": "by replay" if replayed else "live",
        "sampler": options.sampler,
        "sampler_seed": options.sampler_seed,
        "population": options.population,
        "prune_after": options.prune_after,
        "versions": {name: plan.runs[0][0].config["versions"].get(name) for name in PACKAGES},
        **json.loads(protocol(plan.runs[0][0].config)),
    }
    name = options.study or "-".join(
        [space.name, *(["replay"] if replayed else []), options.sampler, str(options.sampler_seed)]
    )
    study = Study(
        name,
        options.storage or str(options.out / "study.journal"),
        about,
        ["maximize" if OBJECTIVES[each].maximise else "minimize" for each in objectives],
        make_sampler(options.sampler, options.sampler_seed, options.population, grid),
        options.out / "processes",
    )
    trials = min(options.trials, len(grid)) if grid else options.trials
    return Search(options, space, plan, bench, objectives, study, trials)


def measure(bench: Bench, spec: Spec, objectives: Sequence[str]) -> list[float]:
    """Return a method's objectives over all videos."""
    with bench.held(spec):
        rows = [row for name in bench.names for row in bench.measure(spec, name)]
        bench.finish(spec)
    return mean_of(rows, objectives)


def confirm_live(search: Search) -> dict[str, tuple[list[float], list[float]]]:
    """Track the best of a replay, the baselines and the default; return what was replayed and what is live, by label.

    Live are J&F, recovery, false masks, MiB and tokens, in this order.
    """
    live = Live(search.plan, search.options.out / "runs")
    specs: dict[str, Spec] = {name: (name, []) for name in BASELINES} | {label(DEFAULT): DEFAULT}
    specs |= {label(spec): spec for spec in map(spec_of, search.best(search.options.live))}
    found = {}
    for name, spec in specs.items():
        values = measure(live, spec, LIVE)
        say(f"live: {', '.join(f'{each} {value:.4g}' for each, value in zip(LIVE, values, strict=True))}  {name}")
        found[name] = (measure(search.bench, spec, search.objectives), values)
    return found


def confirm(search: Search, live: Mapping[str, tuple[list[float], list[float]]]) -> Group:
    """Run the winners on clips that took no part in the search, beside baselines and default; keep and return that.

    Winners are the best few of the front. After a replay they are those that were best of the live ones.
    """
    options = search.options
    winners = [spec_of(trial) for trial in search.best(options.winners)]
    if live:
        tried = {label(spec_of(trial)): spec_of(trial) for trial in search.best(options.live)}
        order = sorted(tried, key=lambda name: -live[name][1][0])
        winners = [tried[name] for name in order[: options.winners]]
    plan, file = _confirm_plan(options, [DEFAULT, *winners])
    carry_out(plan, options.workers)
    kept = [run.finish(plan.dataset.names) for run, _ in plan.runs]
    finished = [metrics for metrics in kept if metrics["objects"]]
    if not finished:
        raise ValueError(f"every video of {plan.dataset.name} failed under every method; the lines above say why")
    keep_results(finished, file)
    (group,) = load_groups(file)
    return group


def _confirm_plan(options: argparse.Namespace, specs: Sequence[Spec]) -> tuple[Plan, Path]:
    """Return the plan of winners on other clips, and the file that keeps its results."""
    clips = {"clips": options.confirm_clips} if options.data == "synthetic" else {"sequences": ()}
    chosen = changed(options, split=options.confirm, out=options.out / "confirm", **clips)
    plan = make_plan(chosen, [*((name, []) for name in BASELINES), *specs], share=True)
    folder = options.report or options.out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{plan.dataset.name}_{plan.dataset.split}.json"
    check_kept(plan.runs[0][0].config, file)
    return plan, file


def spec_of(trial: Any) -> Spec:
    """Return what a trial tried."""
    name, replacements = trial.user_attrs["spec"]
    return name, list(replacements)


def _pruned(why: str) -> Exception:
    import optuna

    return optuna.TrialPruned(why)


def _plain(by_video: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    return {name: [None if math.isnan(value) else value for value in values] for name, values in by_video.items()}


def say(line: str) -> None:
    """Tell how a search goes on."""
    sys.stderr.write(f"{line}\n")
