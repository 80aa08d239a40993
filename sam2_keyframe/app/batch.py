"""Many videos in one go: a folder of them, with prompts beside them; what is finished is not done again.

Each video has a folder of its own in `--out`, as `track` writes it, and a `run.json` once it is whole. `videos.csv`
tells of all of them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam2_keyframe._checks import brief, did_you_mean
from sam2_keyframe.app import models, output, track
from sam2_keyframe.app.masks import file_names, frame_names
from sam2_keyframe.app.options import parse_prompts
from sam2_keyframe.app.uploads import ENDINGS
from sam2_keyframe.app.workers import Engine, Failure
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.video.decode import folder_images, has_images
from sam2_keyframe.video.source import FrameSource

DONE, TABLE, ABOUT = "run.json", "videos.csv", "batch.json"

TOLD_EVERY = 10.0
"""Seconds between two states of the table."""

COLUMNS = {"video", "frame", "object", "mask", "x0", "y0", "x1", "y1", "x", "y", "label"}


@dataclass
class Prompted:
    """The prompts of one video, as the command line takes them.

    Attributes:
        masks: `FRAME:file.png`, or a file named after its frame.
        boxes: `OBJ@FRAME:x0,y0,x1,y1`.
        points: `OBJ@FRAME:x,y` or `OBJ@FRAME:x,y,-`.
        named: Masks that are named after their frames, as in a folder of them.
    """

    masks: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    named: list[Path] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.masks or self.boxes or self.points or self.named)

    def digest(self) -> str:
        """Return what tells these prompts from others: the texts, and the contents of masks."""
        digest = hashlib.sha256(json.dumps([self.boxes, self.points, self.masks]).encode())
        for path in [*self.named, *(Path(text.split(":", 1)[1]) for text in self.masks)]:
            digest.update(f"{path.name} {_digest(path)};".encode())
        return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def find_videos(folder: Path) -> dict[str, Path]:
    """Return the videos of a folder by name: its video files, and its folders of pictures.

    Raises:
        ValueError: There is none, or two have one name.
    """
    if not folder.is_dir():
        raise ValueError(f"--prompts goes with a folder of videos, and {folder} is none")
    found = [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and (path.suffix.lower() in ENDINGS if path.is_file() else path.is_dir() and has_images(path))
    ]
    names = Counter(path.stem if path.is_file() else path.name for path in found)
    if not found:
        raise ValueError(f"{folder} holds no video: put video files or folders of pictures into it")
    if double := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{folder} holds two videos called {double[0]!r}: rename one of them")
    return {path.stem if path.is_file() else path.name: path for path in found}


def read_prompts(path: Path, videos: Mapping[str, Path]) -> dict[str, Prompted]:
    """Return the prompts of each video by its name.

    Args:
        path: A table `.csv` with the columns video, frame, object and, in a row, x0, y0, x1, y1, or x, y, label, or
            mask (a file, from the table's folder); a `.json` {video: [{"frame", "object", "box" | "points" |
            "mask"}]}; or a folder with a mask NAME.png of frame 0, or a folder NAME of masks named after their frames.
        videos: The videos that there are.

    Raises:
        ValueError: It cannot be read, or is about a video that is not there.
    """
    if path.is_dir():
        return _mask_folders(path, videos)
    if not path.is_file():
        raise ValueError(f"--prompts {path}: no such file or folder")
    if path.suffix.lower() == ".csv":
        rows: list[Row] = _table(path)
    elif path.suffix.lower() == ".json":
        rows = _listed(path)
    else:
        raise ValueError(f"--prompts {path}: give a .csv, a .json or a folder of masks")
    found: dict[str, Prompted] = {}
    for place, name, row in rows:
        known = name if name in videos else Path(name).stem
        if known not in videos:
            raise ValueError(f"--prompts {path}, {place}: there is no video {name!r}{did_you_mean(name, videos)}")
        _add(found.setdefault(known, Prompted()), row, f"--prompts {path}, {place}", path.parent)
    return found


def _mask_folders(path: Path, videos: Mapping[str, Path]) -> dict[str, Prompted]:
    found = {}
    for each in sorted(path.iterdir()):
        name = each.name if each.is_dir() else each.stem
        if each.name.startswith(".") or (each.is_file() and each.suffix.lower() != ".png"):
            continue
        if name not in videos:
            raise ValueError(f"--prompts {path}: there is no video {name!r}, as {each.name} says")
        found[name] = Prompted(named=folder_images(each)) if each.is_dir() else Prompted(masks=[f"0:{each}"])
    return found


Row = tuple[str, str, Mapping[str, Any]]


def _table(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        unknown = sorted(set(reader.fieldnames or ()) - COLUMNS)
        if unknown or "video" not in (reader.fieldnames or ()):
            wrong = f"an unknown column {unknown[0]!r}" if unknown else "no column 'video'"
            raise ValueError(f"--prompts {path}: {wrong}; there are {', '.join(sorted(COLUMNS))}")
        rows = [(reader.line_num, {key: (value or "").strip() for key, value in row.items() if key}) for row in reader]
    found: list[Row] = []
    for line, row in rows:
        given: dict[str, Any] = {key: row[key] for key in ("frame", "object", "mask") if row.get(key)}
        for kind, parts in (("box", ("x0", "y0", "x1", "y1")), ("point", ("x", "y"))):
            if any(row.get(part) for part in parts):
                given[kind] = [row.get(part, "") for part in parts]
        if row.get("label"):
            given["label"] = row["label"]
        found.append((f"line {line}", row["video"], given))
    return found


def _listed(path: Path) -> list[Row]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--prompts {path}: no JSON ({brief(error)})") from None
    if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
        raise ValueError(f'--prompts {path}: write {{"video": [{{"frame": 0, "object": 1, "box": [x0, y0, x1, y1]}}]}}')
    found: list[Row] = []
    for name, rows in content.items():
        for i, row in enumerate(rows):
            place = f"{name} [{i}]"
            unknown = sorted(set(row) - {"frame", "object", "box", "points", "mask"}) if isinstance(row, dict) else row
            if unknown or not isinstance(row, dict):
                raise ValueError(
                    f"--prompts {path}, {place}: {brief(repr(unknown))}; write frame, object, and box, points or mask"
                )
            points = row.get("points", [])
            if not isinstance(points, list) or not all(isinstance(p, list) and len(p) in (2, 3) for p in points):
                raise ValueError(f"--prompts {path}, {place}: write points as [[x, y], [x, y, 0]], 0 for background")
            rest = {key: value for key, value in row.items() if key != "points"}
            found += [(place, name, rest)] if rest.keys() & {"box", "mask"} or not points else []
            about = {key: row[key] for key in ("frame", "object") if key in row}
            found += [(place, name, {**about, "point": p[:2], "label": (*p, 1)[2]}) for p in points]
    return found


def _add(to: Prompted, row: Mapping[str, Any], place: str, folder: Path) -> None:
    """Add a prompt in the command line's words, whose parser says what is wrong with it."""
    kinds = [kind for kind in ("mask", "box", "point") if kind in row]
    if len(kinds) != 1:
        raise ValueError(f"{place}: give one of a box (x0, y0, x1, y1), a point (x, y) and a mask")
    where = {}
    for key, default in (("frame", 0), ("object", 1)):
        where[key] = str(row.get(key, default))
        if not where[key].isdecimal():
            raise ValueError(f"{place}: {key} is {row[key]!r}; write a whole number")
    at = f"{where['object']}@{where['frame']}:"
    if kinds == ["mask"]:
        if "object" in row:
            raise ValueError(f"{place}: the objects of a mask are its values; leave 'object' empty")
        to.masks.append(f"{where['frame']}:{folder / str(row['mask'])}")
    elif kinds == ["box"]:
        to.boxes.append(at + _joined(row["box"]))
    else:
        label = str(row.get("label", 1))
        if label not in ("0", "1", "-", "+"):
            raise ValueError(f"{place}: label is {label!r}; write 1 on the object, 0 beside it")
        to.points.append(at + _joined(row["point"]) + (",-" if label in ("0", "-") else ""))


def _joined(numbers: Any) -> str:
    return ",".join(map(str, numbers)) if isinstance(numbers, list) else str(numbers)


# -- the work --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What is done to every video; calling it makes a worker.

    Attributes:
        videos: The folder of videos.
        out: The folder of results.
        model: As `--model`, and so are those down to `image_size`.
        device: Where it runs.
        checkpoint: Weights of an official size.
        image_size: Side of the square that the model sees.
        name: Of the method, for pictures.
        method: The method.
        frames: The first frames alone; None: all.
        on_error: As in `track`, and so are the others.
        binary: Whether masks show one object, white on black.
        overlay: Whether `overlay.mp4` is written.
        draw: Whether pictures are.
        exports: More forms of the masks.
        threads: CPU threads of a worker; 0 leaves them as they are.
    """

    videos: Path
    out: Path
    model: str
    device: str
    checkpoint: Path | None
    image_size: int | None
    name: str
    method: KeyframeMemory
    frames: int | None = None
    on_error: str = "stop"
    binary: bool = False
    overlay: bool = True
    draw: bool = True
    exports: tuple[str, ...] = ()
    threads: int = 0

    def about(self) -> dict[str, Any]:
        """Return what has to agree for a batch to go on."""
        names = ("model", "image_size", "frames", "on_error", "binary", "overlay", "draw", "exports")
        chosen = {name: getattr(self, name) for name in names}
        return {**chosen, "method": repr(self.method), "exports": list(self.exports)}

    def __call__(self) -> Callable[[tuple[str, Path, Prompted]], dict[str, Any]]:
        """Return a worker: the model, loaded once."""
        for path, what in ((self.videos, "videos"), (self.out / ABOUT, "results")):
            if not path.exists():
                raise ValueError(
                    f"a worker does not see the {what}, {path}: give a folder that all machines share, under one path"
                )
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        predictor, stamp = models.load_model(self.model, self.device, self.checkpoint, self.image_size)
        return lambda task: self._track(predictor, stamp, *task)

    def _track(self, predictor: Any, stamp: str, name: str, path: Path, prompted: Prompted) -> dict[str, Any]:
        with (
            output.new_folder(self.out / name, (*track.WRITTEN, DONE)) as folder,
            FrameSource(path, num_frames=self.frames) as source,
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.on_error == "stop":
                    track.check_source(path, source)
            names = frame_names(path, len(source))
            places = {each: t for t, each in enumerate(names)}
            masks = [*prompted.masks]
            for mask in prompted.named:
                t = places.get(mask.stem, int(mask.stem) if mask.stem.isdecimal() else None)
                if t is None:
                    raise ValueError(f"the mask {mask} is named after no frame of {path}")
                masks.append(f"{t}:{mask}")
            prompts = parse_prompts(
                masks, prompted.boxes, prompted.points, frames=len(source), size=source.size, binary=self.binary
            )
            report = track.track(
                predictor, source, self.method, prompts, folder,
                name=self.name, stamp=stamp, on_error=self.on_error, mask_names=names, overlay=self.overlay,
                draw=self.draw, exports=self.exports, file_names=file_names(path, len(source)),
                about={"source": path.name, "model": self.model},
            )  # fmt: skip
            if report.signal:
                raise RuntimeError(report.stopped)
            if report.stopped:
                raise ValueError(report.stopped)
            held = [stats.peak_bytes for stats in report.stats.values()]
            done = {
                "frames": report.frames,
                "lost": len(report.lost),
                "objects": len(report.stats),
                "seconds": round(report.seconds, 3),
                "bank_bytes": sum(held),
                "prompts": prompted.digest(),
            }
            (folder / DONE).write_text(json.dumps({**done, "batch": self.about()}) + "\n")
        return done


def run_batch(
    batch: Batch,
    prompts: Mapping[str, Prompted],
    videos: Mapping[str, Path],
    engine: Engine,
    tell: Callable[[str], None],
) -> int:
    """Track the videos that are not finished; returns 0, or 1 when one failed.

    Raises:
        ValueError: The results are of another batch, or a worker cannot be made.
        OSError: They cannot be written.
    """
    batch.out.mkdir(parents=True, exist_ok=True)
    _check_batch(batch)
    with (batch.out / ".lock").open("w") as lock:
        if not output.locked(lock):
            raise ValueError(f"--out {batch.out}: another process is writing there; wait for it")
        todo, told = [], dict[str, dict[str, Any]]()
        for name, path in videos.items():
            given = prompts.get(name, Prompted())
            done = _finished(batch, name)
            if not given:
                told[name] = {"status": "failed", "error": "no prompt"}
            elif done is not None and done["prompts"] == given.digest():
                told[name] = {"status": "done", **done}
            else:
                todo.append((name, path, given))
        skipped = sum(each["status"] == "done" for each in told.values())
        if skipped:
            tell(f"{skipped} of {len(videos)} videos are finished already")
        _write_table(batch.out, videos, told)
        written = time.monotonic()
        for (name, _, _), result in engine.run(todo, batch):
            if isinstance(result, Failure):
                told[name] = {"status": "failed", "error": result.error}
                tell(f"{name}: failed: {result.error}")
            else:
                told[name] = {"status": "done", **result}
                tell(f"{name}: {result['frames']} frames in {result['seconds']:.1f} s")
            if time.monotonic() > written + TOLD_EVERY:  # of many videos it is long, and each folder tells of itself
                _write_table(batch.out, videos, told)
                written = time.monotonic()
        _write_table(batch.out, videos, told)
    failed = {name: each["error"] for name, each in told.items() if each["status"] == "failed"}
    tell(f"{len(videos) - len(failed)} of {len(videos)} videos done, in {batch.out}; each told of in {TABLE}")
    for name, error in failed.items():
        tell(f"failed: {name}: {error}")
    return int(bool(failed))


def _check_batch(batch: Batch) -> None:
    """Refuse a folder of other results; describe a new one."""
    file, about = batch.out / ABOUT, batch.about()
    if file.is_file():
        try:
            found = json.loads(file.read_text())
        except ValueError:
            found = {}
        for name, value in about.items():
            if found.get(name) != value:
                raise ValueError(
                    f"--out {batch.out} holds results of another batch: {name} was {brief(found.get(name))}, and is "
                    f"{brief(value)} now; choose another --out"
                )
        return
    if foreign := [path.name for path in batch.out.iterdir() if not path.name.startswith(".")]:
        raise ValueError(f"--out {batch.out}: holds other files ({foreign[0]}); choose a new or an empty folder")
    _write(file, json.dumps(about, indent=1) + "\n")


def _finished(batch: Batch, name: str) -> dict[str, Any] | None:
    """Return what is told of a video that is finished, or None."""
    try:
        found = json.loads((batch.out / name / DONE).read_text())
    except (OSError, ValueError):
        return None
    return {key: found.get(key) for key in ("frames", "lost", "objects", "seconds", "bank_bytes", "prompts")}


def _write_table(out: Path, videos: Sequence[str] | Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]) -> None:
    columns = ("status", "frames", "lost", "objects", "seconds", "bank_bytes", "error")
    lines = [["video", *columns]]
    for name in videos:
        row = told.get(name, {"status": "to do"})
        lines.append([name, *(str(row.get(column, "")) for column in columns)])
    file = out / f".{TABLE}"
    with file.open("w", newline="") as table:
        csv.writer(table, lineterminator="\n").writerows(lines)
    file.replace(out / TABLE)


def _write(file: Path, text: str) -> None:
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(text)
    unfinished.replace(file)
