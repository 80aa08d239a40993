"""What is kept: a run's directory (configuration, finished videos, tables made of them), and files of many runs."""

from __future__ import annotations

import csv
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import yaml

from benchmarks.tracking import Tracked, summary

SCHEMA = 1
"""Version of the results on disk."""
IDENTITY = ("schema", "method", "data", "split", "model", "weights", "image_size", "device", "dtype", "threads", "seed")
"""Parts of a configuration that must agree for a run to go on."""
MADE_WITH = ("annotations", "shared_features")
"""Parts that must agree as well; results without a digest of their annotations can still be compared."""
PACKAGES = ("sam2-keyframe", "torch", "sam2")
"""Packages whose versions must agree for a run to go on."""


@dataclass(frozen=True)
class Run:
    """One method on one dataset with one model: the directory of its results, and what its `config.yaml` says."""

    path: Path
    config: Mapping[str, Any]

    @property
    def label(self) -> str:
        return str(self.config["method"]["label"])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; ValueError when another one writes it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another process is writing {self.path}; wait for it or choose another --out"
                raise ValueError(message) from error
            yield

    def prepare(self) -> None:
        """Describe the locked directory, or check that it is of the same configuration; clear what was cut off."""
        (self.path / "videos").mkdir(exist_ok=True)
        file = self.path / "config.yaml"
        if file.exists():
            check_config(file, self.config)
        else:
            write_text(file, yaml.safe_dump(dict(self.config), sort_keys=False, width=120))
        for left in [*self.path.glob(".tmp-*"), self.path / "failed"]:
            if left.is_file():
                left.unlink()
            shutil.rmtree(left, ignore_errors=True)

    def done(self, name: str) -> bool:
        return (self.path / "videos" / name).is_dir()

    def write_video(
        self, name: str, frames: list[dict[str, Any]], objects: list[dict[str, Any]], tracked: Tracked
    ) -> None:
        """Write a finished video: all of it or nothing, whenever the process ends; one that is finished stays."""
        folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.path))
        write_csv(folder / "frames.csv", frames)
        write_csv(folder / "objects.csv", objects)
        facts = {"peak_device_mib": tracked.peak_device_mib, "size": list(tracked.size)}
        (folder / "video.json").write_text(json.dumps({**facts, "commit": self.config["commit"]}))
        packed = {f"{obj_id}": np.stack([masks[t] for t in sorted(masks)]) for obj_id, masks in tracked.masks.items()}
        starts = {f"{obj_id}_first": np.array(min(masks)) for obj_id, masks in tracked.masks.items()}
        np.savez_compressed(folder / "masks.npz", **packed, **starts)  # type: ignore[arg-type]
        folder.chmod(0o755)
        try:
            os.rename(folder, self.path / "videos" / name)
        except OSError:
            if not self.done(name):
                raise
            shutil.rmtree(folder)

    def write_failure(self, name: str, error: BaseException | str) -> None:
        """Write down why a video failed; the next run tries it again."""
        (self.path / "failed").mkdir(exist_ok=True)
        told = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        write_text(self.path / "failed" / name, told)

    def failures(self) -> dict[str, str]:
        """Return the errors of the videos that failed and were not finished since, by name."""
        files = sorted((self.path / "failed").glob("[!.]*"))
        return {file.name: file.read_text() for file in files if not self.done(file.name)}

    def finish(self, names: Iterable[str]) -> dict[str, Any]:
        """Write `frames.csv`, `objects.csv` and `metrics.json` from the finished videos; return the metrics.

        Commit and versions are those that the videos were tracked with.

        Raises:
            ValueError: A video's files are of another version, or broken.
        """
        folders = [self.path / "videos" / name for name in names if self.done(name)]
        begun = yaml.safe_load((self.path / "config.yaml").read_text())
        videos = [_read_video(folder, begun["commit"]) for folder in folders]
        objects = [row for rows, _, _ in videos for row in rows]
        commits = ", ".join(sorted({commit for _, _, commit in videos if commit})) or None
        for table in ("frames.csv", "objects.csv"):
            join_tables([folder / table for folder in folders], self.path / table)
        found = summary(objects) if objects else {}
        if "time" in found and (beside := self.time_beside_stock()):
            found["time"]["beside_stock"] = beside
        metrics = {
            "schema": SCHEMA,
            "name": self.path.name,
            "config": {**self.config, "versions": begun["versions"], "commit": commits},
            "videos": len(folders),
            "objects": len(objects),
            "failed": self.failures(),
            **found,
            "peak_device_mib": max((peak for _, peak, _ in videos if peak is not None), default=None),
        }
        write_text(self.path / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        return metrics

    def time_beside_stock(self) -> dict[str, Any] | None:
        """Return what `write_time_beside_stock` was given; None before."""
        file = self.path / "time.json"
        return dict(json.loads(file.read_text())) if file.exists() else None

    def write_time_beside_stock(self, time: Mapping[str, Any]) -> None:
        write_text(self.path / "time.json", json.dumps(time) + "\n")


def make_run(out: Path, config: Mapping[str, Any]) -> Run:
    """Return the run of a configuration: its directory is named from it."""
    whole = _identity(config) | {"repr": config["method"]["repr"]}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:6]
    words = [config["data"]["name"], config["split"], config["model"], config["method"]["label"]]
    slug = re.sub(r"[^A-Za-z0-9.=+-]+", "-", "_".join(words).replace("/", "-")).strip("-")[:120]
    return Run(out / f"{slug}-{digest}", config)


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError when a run's directory belongs to another version, configuration or data."""
    try:
        found = yaml.safe_load(file.read_text())
        before, now = (_identity(each) | _made_with(each) for each in (found, config))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a configuration of this version ({error}); choose another --out") from error
    shown = "; ".join(f"{key} was {before[key]!r} and is {now[key]!r}" for key in now if before[key] != now[key])
    if shown:
        raise ValueError(f"{file.parent} holds results made otherwise: {shown}. Choose another --out or remove it.")


def protocol(config: Mapping[str, Any]) -> str:
    """Return what two runs must have in common to be compared, as a text."""
    return json.dumps({name: part for name, part in _identity(config).items() if name != "method"}, sort_keys=True)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a configuration in IDENTITY; a folder is known by name and sequences, wherever it lies."""
    found = {name: config[name] for name in IDENTITY}
    if found["data"].get("path", "synthetic") != "synthetic":
        found["data"] = {name: part for name, part in found["data"].items() if name in ("name", "sequences")}
    return found


def _made_with(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config.get(name) for name in MADE_WITH} | {name: config["versions"].get(name) for name in PACKAGES}


def _read_video(folder: Path, begun: str | None) -> tuple[list[dict[str, str]], float | None, str | None]:
    """Return a finished video's objects, peak device memory and commit (`begun` where it does not say)."""
    try:
        objects, video = read_csv(folder / "objects.csv"), json.loads((folder / "video.json").read_text())
        summary(objects)
        return objects, video["peak_device_mib"], video.get("commit", begun)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} is not a video of this version ({error!r}); remove it to track it again, or choose another --out"
        ) from error


# -- results of several runs in one file ----------------------------------------------------------------------------


@functools.cache
def validator() -> Any:
    """Return the validator of `schema.json`, the form of a `metrics.json` and of several runs in one file."""
    return jsonschema.Draft202012Validator(json.loads(Path(__file__).with_name("schema.json").read_text()))


def check_metrics(metrics: object, source: object = "results") -> None:
    """Raise ValueError naming the first place where results break the schema."""
    if error := next(validator().iter_errors(metrics), None):
        place = error.json_path.removeprefix("$").lstrip(".") or "the file"
        raise ValueError(f"{source}: {place}: {error.message}; see benchmarks/schema.json")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the metrics of every run in a file, each with its whole configuration.

    Raises:
        ValueError: It cannot be read, is of another version or breaks the schema.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as results: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        kind = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{file} is of another version (schema {kind}, this one is {SCHEMA}); move it away or run it again"
        )
    check_metrics(found, file)
    if "runs" not in found:
        return [found]
    shared = found["config"]
    return [
        {**run, "schema": SCHEMA, "config": {**shared, "method": run["method"], "commit": run.get("commit")}}
        for run in found["runs"]
    ]


def keep_results(runs: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the metrics of runs that may be compared into one file, what they share once, without this machine's paths.

    Runs of the same label that the file holds already are replaced, the others stay.

    Raises:
        ValueError: The file holds runs that these may not be compared with.
    """
    check_kept(runs[0]["config"], file)
    labels = {metrics["config"]["method"]["label"] for metrics in runs}
    before = [m for m in (read_metrics(file) if file.exists() else []) if m["config"]["method"]["label"] not in labels]
    shared = {name: part for name, part in _portable(runs[0]["config"]).items() if name != "method"}
    lines = []
    for metrics in (*before, *runs):
        own = {"method": metrics["config"]["method"], "commit": metrics["config"].get("commit")}
        rest = {name: _rounded(part) for name, part in metrics.items() if name not in ("schema", "config", *own)}
        lines.append(json.dumps(own | rest))
    head = json.dumps({"schema": SCHEMA, "config": shared})[:-1]
    write_text(file, f'{head}, "runs": [\n' + ",\n".join(lines) + "\n]}\n")


def check_kept(config: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError when a file of kept results, if there is one, holds runs under another protocol."""
    for metrics in read_metrics(file)[:1] if file.exists() else []:  # those of a file share it
        there, here = (_flat(json.loads(protocol(each))) for each in (metrics["config"], config))
        differing = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
        shown = "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in differing)
        if differing:
            raise ValueError(f"{file} holds runs under another protocol: {shown}. Give another --results, or move it")


def _flat(parts: dict[str, Any]) -> dict[str, Any]:
    return {**parts.pop("data"), **parts}


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    data = dict(config["data"])
    return {**config, "data": {**data, "path": Path(data["path"]).name} if data.get("path") else data}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


# -- files and surroundings -----------------------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """Return versions, commit and machine, as far as they can be found out."""
    versions = {"python": platform.python_version()}
    for name in (*PACKAGES, "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit(), "machine": platform.machine()}


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../sam2_keyframe", "../patches", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".tmp-", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_json(path: Path, found: object) -> None:
    """Write a file of results, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1, default=float) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns; numbers with all their digits."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table as texts."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def join_tables(files: Sequence[Path], target: Path) -> None:
    """Write tables of the same columns below each other."""
    parts = [file.read_text().partition("\n") for file in files]
    for file, part in zip(files, parts, strict=True):
        if part[0] != parts[0][0]:
            raise ValueError(f"{file} and {files[0]} have different columns; remove the older video to track it again")
    write_text(target, "".join([*(parts[0][:2] if parts else ()), *(part[2] for part in parts)]))
