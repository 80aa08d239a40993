"""Results read back: groups that may be compared, differences with intervals, and who is on the front."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.plan import REFERENCES
from benchmarks.results import protocol, read_metrics

ENOUGH = 5
"""Videos from which on an interval is shown: drawing from fewer says little about others."""


@dataclass(frozen=True)
class Result:
    """One run read from disk: its directory (None when only its metrics are at hand), and its `metrics.json`."""

    path: Path | None
    metrics: Mapping[str, Any]

    @property
    def method(self) -> Mapping[str, Any]:
        """The method's "name", its replacements ("set"), its "label" and its "repr"."""
        found: Mapping[str, Any] = self.metrics["config"]["method"]
        return found

    @property
    def label(self) -> str:
        return str(self.method["label"])

    @property
    def jf(self) -> float:
        return float(self.metrics["accuracy"]["jf"])

    @property
    def beside_stock(self) -> Mapping[str, Any]:
        """Its time measured beside stock's; nothing where it was not."""
        found: Mapping[str, Any] = self.metrics.get("time", {}).get("beside_stock", {})
        return found

    def occupancy(self, name: str) -> float:
        """Return an occupancy of the method: "frames", "mib", "tokens", or one of them with "peak_" before it."""
        return float(self.metrics["occupancy"]["memory"][name])

    def choice(self, name: str) -> str:
        """Return what a choice was replaced with; nothing where it was not."""
        pairs = dict(part.split("=", 1) for part in self.method["set"])
        return str(pairs.get(name, ""))

    def by_video(self, score: str = "jf") -> dict[str, list[float]]:
        """Return the objects' J&F, or one of `absence.SCORES`, in percent by video; objects that have none left out."""
        if score == "jf":
            return {name: list(values) for name, values in self.metrics["sequences"].items()}
        found = self.metrics.get("absences", {}).get(score, {})
        kept = {name: [value for value in values if value is not None] for name, values in found.items()}
        return {name: values for name, values in kept.items() if values}


@dataclass(frozen=True)
class Group:
    """Runs on the same videos under the same protocol with the same model: the only ones that may be compared.

    Attributes:
        config: What they share.
        results: The runs, best J&F first; those that lack videos come last.
        study: Folder of the results they were kept in; empty for runs of one's own.
    """

    config: Mapping[str, Any]
    results: list[Result] = field(default_factory=list)
    study: str = ""

    @property
    def title(self) -> str:
        """Data, split and model."""
        side = f" at {self.config['image_size']} px" if self.config["image_size"] else ""
        study = f"{self.study}: " if self.study else ""
        data = f"{study}{self.config['data']['name']}, {self.config['split']}, {len(self.videos)} videos"
        return f"{data}, SAM 2 {self.config['model']}{side}"

    @property
    def slug(self) -> str:
        """A folder's name that no other group has."""
        digest = hashlib.sha256(protocol(self.config).encode()).hexdigest()[:6]
        words = [self.study, self.config["data"]["name"], self.config["split"], self.config["model"], digest]
        return re.sub(r"[^A-Za-z0-9.-]+", "-", "_".join(filter(None, words)))

    @property
    def generated(self) -> bool:
        """Whether the videos are generated clips."""
        return str(self.config["data"]["name"]).startswith("synthetic")

    @property
    def reference(self) -> Result | None:
        """Stock SAM 2 on the same videos."""
        return self.find(REFERENCES[0])

    def find(self, label: str) -> Result | None:
        """Return the run of a label."""
        return next((result for result in self.results if result.label == label), None)

    @property
    def videos(self) -> set[str]:
        """Names of the videos that any of the runs finished."""
        return {name for result in self.results for name in result.by_video()}

    @property
    def ranked(self) -> list[Result]:
        """The runs that finished all of these videos: the means of others are not of the same videos."""
        videos = self.videos
        return [result for result in self.results if videos <= result.by_video().keys()]

    def front(self, x: str) -> list[Result]:
        """Return the ranked runs that no other beats in J&F at as little occupancy `x`, least occupancy first."""
        front: list[Result] = []
        for result in sorted(self.ranked, key=lambda result: (result.occupancy(x), -result.jf)):
            if not front or result.jf > front[-1].jf:
                front.append(result)
        return front

    def gain(
        self,
        result: Result,
        keep: Callable[[str], bool] = lambda _: True,
        of: str = REFERENCES[0],
        score: str = "jf",
    ) -> Difference | None:
        """Return a run's difference in a score from `of`; None of that method itself and where it was not run."""
        other = self.find(of) or next((each for each in self.results if _differs_in_seed(each, of)), None)
        if other is None or result.label == other.label or _differs_in_seed(result, of):
            return None
        return difference(result, other, keep, score)


def _differs_in_seed(result: Result, name: str) -> bool:
    """Return whether a run is of a method as it is, but for its seed."""
    parts = result.method["set"]
    return result.method["name"] == name and all(part.startswith("seed=") for part in parts)


@dataclass(frozen=True)
class Difference:
    """A score of a method minus another's, in points, with a 95 % interval over videos."""

    mean: float
    low: float
    high: float
    videos: int

    @property
    def shown(self) -> bool:
        """Whether the interval is of enough videos to be shown."""
        return self.videos >= ENOUGH


def difference(
    method: Result, reference: Result | None, keep: Callable[[str], bool] = lambda _: True, score: str = "jf"
) -> Difference | None:
    """Return the paired difference in a score over the videos that both have and `keep` accepts; None of under two."""
    ours, theirs = method.by_video(score), reference.by_video(score) if reference else {}
    shared = [name for name in ours if keep(name) and name in theirs and len(ours[name]) == len(theirs[name])]
    if len(shared) < 2:
        return None
    sums = [sum(ours[name]) - sum(theirs[name]) for name in shared]
    return Difference(*interval(sums, [len(ours[name]) for name in shared]), len(shared))


def interval(sums: ArrayLike, counts: ArrayLike | None = None) -> tuple[float, float, float]:
    """Return a mean and its 95 % bootstrap interval: videos are drawn with replacement, each with all its objects.

    Args:
        sums: (N,) the sum over each video's objects.
        counts: (N,) how many these are; one each unless given.
    """
    from scipy.stats import bootstrap  # here, so that worker processes start without it

    pair = np.asarray(sums, float), np.ones(np.shape(sums)) if counts is None else np.asarray(counts)

    def mean(sums: Any, counts: Any, axis: int = -1) -> Any:
        return sums.sum(axis) / counts.sum(axis)

    settings = {"n_resamples": 10_000, "method": "percentile", "rng": np.random.default_rng(0)}
    found = bootstrap(pair, mean, paired=True, vectorized=True, **settings).confidence_interval
    return float(mean(*pair)), float(found.low), float(found.high)


def beside(path: Path) -> list[str]:
    """Return sentences that compare the run in a folder with what was run on the same videos in the folders around it.

    Each of :data:`benchmarks.plan.REFERENCES` that was not run there is named.
    """
    runs = {}
    for file in sorted(path.parent.glob("*/metrics.json")):
        try:
            (metrics,) = read_metrics(file)
        except ValueError:  # of another version: nothing to compare with
            continue
        if metrics.get("accuracy", {}).get("jf") is not None:
            runs[file.parent] = Result(file.parent, metrics)
    if path not in runs:
        return []
    ours = runs[path]
    same = protocol(ours.metrics["config"])
    group = Group(ours.metrics["config"], [r for r in runs.values() if protocol(r.metrics["config"]) == same])
    lines, missing = [], []
    for name in REFERENCES:
        if name == ours.method["name"] and not ours.method["set"]:
            continue
        if not group.find(name):
            missing.append(name)
            continue
        for score, title in {"jf": "J&F", "recovery": "recovery", "false_masks": "false masks"}.items():
            found = group.gain(ours, of=name, score=score)
            if found is not None:
                shown = f" ({found.low:+.1f} to {found.high:+.1f})" if found.shown else f" ({found.videos} videos)"
                lines.append(f"  {title} {found.mean:+.1f}{shown} from {name}")
    if missing:
        lines.append(f"  not compared with {', '.join(missing)}: run them with the same options and --out")
    return lines


def load_groups(folder: Path) -> list[Group]:
    """Read every run below a folder, and the files of rows in it and one level down, and return what belongs together.

    What lies one level down, as in `results/methods/`, is a study of its own: compared with nothing outside it. Of runs
    of the same label in a group all but the first are told apart by where they come from.

    Raises:
        ValueError: There is none, or one is of another version or breaks the schema.
    """
    files = {file: "" for file in (sorted(folder.rglob("metrics.json")) if folder.is_dir() else [folder])}
    files |= {file: "" for file in sorted(folder.glob("*.json")) if file.name != "time.json"}  # of a run's own folder
    files |= {file: file.parent.name for file in sorted(folder.glob("*/*.json")) if file not in files and _rows(file)}
    groups: dict[tuple[str, str], Group] = {}
    for file, study in files.items():
        for metrics in read_metrics(file):
            if metrics.get("accuracy", {}).get("jf") is not None:
                config = metrics["config"]
                group = groups.setdefault((study, protocol(config)), Group(config, study=study))
                result = Result(file.parent if file.name == "metrics.json" else None, metrics)
                group.results.append(_told_apart(result, group, file.relative_to(folder) if file != folder else file))
    if not groups:
        raise ValueError(f"{folder} holds no finished run; make one with python -m benchmarks run --out {folder}")
    for group in groups.values():
        ranked = {result.label for result in group.ranked}
        group.results.sort(key=lambda result: (result.label not in ranked, -result.jf))
    return sorted(groups.values(), key=lambda group: group.title)


def _told_apart(result: Result, group: Group, file: Path) -> Result:
    """Return a run, its file in its label where the group has a run of this label already."""
    source = str(file.parent if file.name == "metrics.json" else file.with_suffix(""))
    label = result.label
    while group.find(label):
        label += f" ({source})"
    config = result.metrics["config"]
    named = {**config, "method": {**config["method"], "label": label}}
    return replace(result, metrics={**result.metrics, "config": named})


def _rows(file: Path) -> bool:
    """Return whether a file below a results folder holds runs: much else is JSON there."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return False
    return isinstance(found, dict) and "schema" in found


def worst_videos(group: Group, result: Result, count: int, best: bool = False) -> list[tuple[str, float]]:
    """Return the videos on which a method falls furthest below stock, by 0.1 or more, with the difference in points.

    With `best`, those on which it rises furthest above it.
    """
    sign, theirs = -1 if best else 1, group.reference.by_video() if group.reference else {}
    falls = [
        (name, float(np.mean(jf) - np.mean(theirs[name]))) for name, jf in result.by_video().items() if name in theirs
    ]
    found = (pair for pair in falls if sign * round(pair[1], 1) < 0)
    return sorted(found, key=lambda pair: sign * pair[1])[:count]


def generated_first(groups: Sequence[Group]) -> list[Group]:
    """Return groups of generated clips before those of real ones."""
    return sorted(groups, key=lambda group: not group.generated)
