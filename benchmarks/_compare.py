"""Results read back: groups that may be compared, differences with intervals, and who is on the front."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._schema import check_metrics
from benchmarks._store import SCHEMA, protocol, write_text
from benchmarks.sweep import BASELINES

REFERENCE = BASELINES[0]
DRAWS = 10_000
ENOUGH = 5
"""Videos from which on an interval is shown: drawing from fewer says little about others."""


@dataclass(frozen=True)
class Result:
    """One run read from disk.

    Attributes:
        path: Its directory; None when only its metrics are at hand.
        metrics: Its `metrics.json`.
    """

    path: Path | None
    metrics: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The method with its replacements."""
        return str(self.metrics["config"]["method"]["label"])

    @property
    def jf(self) -> float:
        """J&F in percent."""
        return float(self.metrics["accuracy"]["jf"])

    def occupancy(self, name: str) -> float:
        """Return an occupancy of the method: "frames", "mib", "tokens", or one of them with "peak_" before it."""
        return float(self.metrics["occupancy"]["memory"][name])

    def by_video(self) -> dict[str, list[float]]:
        """Return the objects' J&F in percent by video."""
        return {name: list(values) for name, values in self.metrics["sequences"].items()}


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
    def reference(self) -> Result | None:
        """Stock SAM 2 on the same videos."""
        return next((result for result in self.results if result.label == REFERENCE), None)

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


@dataclass(frozen=True)
class Difference:
    """J&F of a method minus another's, in points, with a 95 % interval over videos."""

    mean: float
    low: float
    high: float
    videos: int

    @property
    def shown(self) -> bool:
        """Whether the interval is of enough videos to be shown."""
        return self.videos >= ENOUGH


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
        for result in _read(file):
            if "accuracy" in result.metrics and result.metrics["accuracy"]["jf"] is not None:
                config = result.metrics["config"]
                group = groups.setdefault((study, protocol(config)), Group(config, study=study))
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
    taken = {other.label for other in group.results}
    label = result.label
    while label in taken:
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


def _read(file: Path) -> list[Result]:
    try:
        metrics = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as results: {error}") from error
    if not isinstance(metrics, dict) or metrics.get("schema") != SCHEMA:
        found = metrics.get("schema") if isinstance(metrics, dict) else type(metrics).__name__
        raise ValueError(
            f"{file} is of another version (schema {found}, this one is {SCHEMA}); move it away or run it again"
        )
    check_metrics(metrics, file)
    if "runs" not in metrics:
        return [Result(file.parent if file.name == "metrics.json" else None, metrics)]
    own = [{"method": run["method"], "commit": run.get("commit")} for run in metrics["runs"]]
    return [
        Result(None, {**run, "schema": SCHEMA, "config": {**metrics["config"], **each}})
        for run, each in zip(metrics["runs"], own, strict=True)
    ]


def keep_results(runs: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write the metrics of runs that may be compared into one file, what they share once, without this machine's paths.

    Runs of the same label that the file holds already are replaced, the others stay.

    Raises:
        ValueError: The file holds runs that these may not be compared with.
    """
    fresh: list[Mapping[str, Any]] = [_portable(metrics) for metrics in runs]
    labels = {metrics["config"]["method"]["label"] for metrics in fresh}
    shared = {name: value for name, value in fresh[0]["config"].items() if name != "method"}
    check_kept(fresh[0]["config"], file)
    if file.exists():
        before = [result.metrics for result in _read(file)]
        fresh = [*(m for m in before if m["config"]["method"]["label"] not in labels), *fresh]
    lines = []
    for metrics in fresh:
        config = metrics["config"]
        own = {"method": config["method"], "commit": config.get("commit")}
        lines.append(
            json.dumps(own | {k: _rounded(v) for k, v in metrics.items() if k not in ("schema", "config", *own)})
        )
    head = json.dumps({"schema": SCHEMA, "config": shared})[:-1]
    write_text(file, f'{head}, "runs": [\n' + ",\n".join(lines) + "\n]}\n")


def check_kept(config: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError when a file of kept results, if there is one, holds runs under another protocol."""
    for result in _read(file)[:1] if file.exists() else []:  # those of a file share it
        there, here = (_parts_of(each) for each in (result.metrics["config"], config))
        differing = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
        shown = "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing)
        if differing:
            raise ValueError(f"{file} holds runs under another protocol: {shown}. Give another --results, or move it")


def _parts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    parts = json.loads(protocol(config))
    return {**parts.pop("data"), **parts}


def _portable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(metrics["config"])
    data = dict(config["data"])
    if data.get("path"):
        data["path"] = Path(data["path"]).name
    return {**metrics, "config": {**config, "data": data}}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def difference(
    method: Result, reference: Result, seed: int = 0, keep: Callable[[str], bool] = lambda _: True
) -> Difference | None:
    """Return the paired difference in J&F over the videos both have, with a bootstrap interval over videos.

    Videos are drawn with replacement, each with all its objects; the interval is the middle 95 % of the means.
    None when fewer than two videos are shared: there is nothing to draw from.

    Args:
        method: The run that should be better.
        reference: What it is compared with.
        seed: Seed of the draws.
        keep: Takes a video's name; only videos that it accepts count.
    """
    ours, theirs = method.by_video(), reference.by_video()
    shared = [name for name in ours if keep(name) and name in theirs and len(ours[name]) == len(theirs[name])]
    if len(shared) < 2:
        return None
    sums = np.array([sum(ours[name]) - sum(theirs[name]) for name in shared])
    counts = np.array([len(ours[name]) for name in shared])
    low, high = np.percentile(_draws(sums, counts, seed), [2.5, 97.5])
    return Difference(float(sums.sum() / counts.sum()), float(low), float(high), len(shared))


def _draws(sums: NDArray[np.float64], counts: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    chosen = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    means: NDArray[np.float64] = sums[chosen].sum(1) / counts[chosen].sum(1)
    return means


def worst_videos(group: Group, result: Result, count: int) -> list[tuple[str, float]]:
    """Return the videos on which a method falls furthest below stock, by 0.1 or more, with the difference in points."""
    if group.reference is None:
        return []
    theirs = group.reference.by_video()
    falls = {
        name: float(np.mean(jf) - np.mean(theirs[name])) for name, jf in result.by_video().items() if name in theirs
    }
    seen = [(name, fall) for name, fall in falls.items() if round(fall, 1) < 0]
    return sorted(seen, key=lambda pair: pair[1])[:count]
