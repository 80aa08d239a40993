"""`index.html`: a run in one file that opens offline: the video with its masks, what is remembered, scores, memory.

The page itself, markup and script, is `page.html` beside this file; here its data are gathered while a run goes on. The
masks are outlines at the size of the video, which a browser draws, so that they can be switched off.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.app.draw import Pixels, colour_of, need
from sam2_keyframe.app.output import Video
from sam2_keyframe.app.suggest import Suggestion
from sam2_keyframe.bank.statistics import MIB, FrameStats
from sam2_keyframe.conditions import thresholds_of
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.video.confidence import told

PAGE = "index.html"
FILM = "page.mp4"
"""The video while it is being written; it ends up in the page."""

MOST, CELLS = 3000, 6000
"""Frames that a page shows, and frames times objects: of longer videos every second, third, ... frame."""

SIDE = 640
"""Longest side of the page's video, in pixels."""

BUDGET = 1_200_000
"""Bytes of outlines; where they take more they are simplified."""

TEMPLATE = Path(__file__).with_name("page.html")
MARK = "<!-- RUNS -->"


class Page:
    """Gathers a run, frame by frame, and writes its page.

    Args:
        folder: Where it goes.
        frames: How many are to come, as far as is known; 0 where it is not.
        objects: How many objects are tracked.
        fps: Frames a second of the video.

    Raises:
        ImportError: PyAV, OpenCV or Pillow is missing.
    """

    def __init__(self, folder: Path, frames: int, objects: int, fps: float) -> None:
        self._cv2 = need("cv2")
        self.path, self._film = folder / PAGE, folder / FILM
        self._room = max(1, min(MOST, CELLS // max(objects, 1)))
        self._every = max(1, math.ceil(frames / self._room))
        self.fps = fps
        self._video = Video(self._film, fps, still=True)
        self._frames: list[int] = []
        self._times: list[float | None] = []
        self._rows: list[dict[int, FrameStats | None]] = []
        self._masks: list[dict[int, list[NDArray[np.int32]]]] = []
        self._more: dict[int, dict[str, Mapping[int, float]]] = {}
        self._size = (0, 0)
        self._seen = 0

    def add(
        self,
        t: int,
        time: float | None,
        frame: Pixels,
        labels: NDArray[Any],
        rows: Mapping[int, FrameStats | None],
    ) -> None:
        """Take in a frame, its object ids by pixel, and each object's row; None where it was prompted.

        Args:
            t: The frame's number.
            time: Its time in seconds.
            frame: (H, W, 3) uint8 RGB.
            labels: (H, W) object ids.
            rows: By object.
        """
        self._seen += 1
        if (self._seen - 1) % self._every or len(self._frames) >= self._room:
            return
        scale = min(1.0, SIDE / max(frame.shape[:2]))
        width, height = (max(2, round(side * scale) // 2 * 2) for side in (frame.shape[1], frame.shape[0]))
        small, ids = frame, labels.astype(np.uint8)
        if (height, width) != frame.shape[:2]:
            small = self._cv2.resize(frame, (width, height), interpolation=self._cv2.INTER_AREA)
            ids = self._cv2.resize(ids, (width, height), interpolation=self._cv2.INTER_NEAREST)
        self._size = (width, height)
        self._video.add(small)
        self._frames.append(t)
        self._times.append(time)
        self._rows.append(dict(rows))
        find = (self._cv2.RETR_CCOMP, self._cv2.CHAIN_APPROX_SIMPLE)
        self._masks.append(
            {
                int(obj_id): [part[:, 0] for part in self._cv2.findContours((ids == obj_id).astype(np.uint8), *find)[0]]
                for obj_id in np.unique(ids)
                if obj_id
            }
        )

    def tell(self, obj_id: int, name: str, values: Mapping[int, float]) -> None:
        """Add a score of an object by its name and the frames' numbers; before `write`."""
        self._more.setdefault(obj_id, {})[name] = values

    def close(self) -> None:
        """Let go of the video; where no page was written, nothing is left."""
        with ExitStack() as last:
            last.callback(self._film.unlink, missing_ok=True)
            self._video.close()

    def write(
        self,
        title: str,
        name: str,
        method: KeyframeMemory,
        *,
        stamp: str = "",
        about: Mapping[str, str] | None = None,
        slots: int = 6,
        suggestions: Sequence[Suggestion] = (),
    ) -> None:
        """Write the page.

        Args:
            title: What was tracked.
            name: Of the method.
            method: The method, whose bounds are drawn.
            stamp: A warning.
            about: More to tell, by name.
            slots: Memories that SAM 2 reads besides prompted frames.
            suggestions: Frames to click on.

        Raises:
            OSError: It cannot be written; nothing is left of it.
        """
        if not self._frames:
            return
        self._video.close()
        film = self._film.read_bytes()
        significance = method.significance.name if method.significance is not None else None
        bounds = [
            {"score": rule.scorer.name, "op": rule.side, "bound": rule.bound}
            for rule in thresholds_of(method.keyframes.when)
        ]
        more = {"method": repr(method), **(about or {})}
        if self._every > 1:
            more["frames"] = f"{len(self._frames)} of {self._seen}: every {self._every}. from the first one shown"
        elif self._seen > len(self._frames):
            more["frames"] = f"the first {len(self._frames)} of {self._seen}"
        run: dict[str, Any] = {
            "title": title,
            "name": name,
            "stamp": stamp,
            "fps": self._video.fps,
            "size": self._size,
            "video": hashlib.blake2b(film, digest_size=12).hexdigest(),
            "frames": self._frames,
            "times": [None if time is None else round(time, 3) for time in self._times],
            "slots": slots,
            "significance": significance,
            "bounds": [bound for bound in bounds if bound["score"] == significance] or bounds,
            "suggestions": [dataclasses.asdict(each) for each in suggestions],
            "about": list(more.items()),
            "objects": self._objects(),
        }
        write_page(self.path, [run], {str(run["video"]): film})

    def _objects(self) -> dict[str, Any]:
        outlines = _outlines(self._cv2, self._masks)
        found = {}
        for place, obj_id in enumerate(dict.fromkeys(obj_id for rows in self._rows for obj_id in rows)):
            rows = [each.get(obj_id) for each in self._rows]
            given = [obj_id in each and each[obj_id] is None for each in self._rows]
            scores = [{} if row is None else told(row.scores) for row in rows]
            for name, values in self._more.get(obj_id, {}).items():
                for t, each in zip(self._frames, scores, strict=True):
                    each[name] = values.get(t, math.nan)
            names = list(dict.fromkeys(name for each in scores for name in each))
            red, green, blue = colour_of(obj_id, place)
            found[str(obj_id)] = {
                "colour": f"#{red:02x}{green:02x}{blue:02x}",
                "masks": [each.get(obj_id, []) for each in outlines],
                "prompted": [int(each) for each in given],
                "keyframe": [None if row is None or row.keyframe is None else int(row.keyframe) for row in rows],
                "attended": [None if row is None else list(row.attended) for row in rows],
                "held": [None if row is None else list(row.keyframes) for row in rows],
                "scores": {name: [_short(each.get(name, math.nan)) for each in scores] for name in names},
                **{
                    f"{before}mib": [None if row is None else round(getattr(row, side).nbytes / MIB, 3) for row in rows]
                    for before, side in (("", "memory"), ("stock_", "stock"), ("window_", "window"))
                },
                "tokens": [None if row is None else row.memory.tokens for row in rows],
                "stock_tokens": [None if row is None else row.stock.tokens for row in rows],
            }
        return found


def _short(value: float) -> float | None:
    return None if not math.isfinite(value) else float(f"{value:.4g}")


def _outlines(cv2: Any, masks: Sequence[Mapping[int, Sequence[NDArray[np.int32]]]]) -> list[dict[int, list[list[int]]]]:
    """Return outlines as x, y and steps from point to point, simplified as far as the page's size asks for.

    How far that is, is found on a sample. What is smaller than the steps by which outlines are simplified is left out.
    """
    coarse, sample = 0.0, masks[:: 1 + len(masks) // 100]

    def made(of: Sequence[Mapping[int, Sequence[NDArray[np.int32]]]]) -> list[dict[int, list[list[int]]]]:
        return [
            {
                obj_id: [_steps(cv2, part, coarse) for part in parts if np.ptp(part, 0).max() >= coarse]
                for obj_id, parts in each.items()
            }
            for each in of
        ]

    while len(json.dumps(made(sample), separators=(",", ":"))) * len(masks) > BUDGET * len(sample):
        coarse = 2 * coarse or 0.7
    return made(masks)


def _steps(cv2: Any, part: NDArray[np.int32], coarse: float) -> list[int]:
    points = cv2.approxPolyDP(part[:, None], coarse, True)[:, 0] if coarse else part
    steps: list[int] = np.diff(points, axis=0, prepend=np.zeros((1, 2), points.dtype)).flatten().tolist()
    return steps


def write_page(path: Path, runs: Sequence[Mapping[str, Any]], films: Mapping[str, bytes]) -> None:
    """Write a page of one run or several.

    Args:
        path: The file.
        runs: What `Page` gathered of each.
        films: Their videos, H.264 in MP4, by the key under which a run names its own.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition(MARK)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(before)
            for run in runs:
                data = json.dumps(run, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
                file.write(f'<script type="application/json" class="run">{data}</script>\n')
            for key, film in films.items():
                text = base64.b64encode(film).decode("ascii")
                file.write(f'<script type="text/plain" class="video" data-key="{html.escape(key)}">{text}</script>\n')
            file.write(after)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_page(run: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the runs and the videos of a run's page.

    Args:
        run: The folder of a run, or a page.

    Raises:
        ValueError: There is no page, or it is none of ours.
    """
    path = run / PAGE if run.is_dir() else run
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{run}: there is no {PAGE} in it; `sam2-keyframe track` writes one") from None
    runs = [json.loads(data) for data in re.findall(r'<script type="application/json" class="run">(.*)</script>', text)]
    found = re.findall(r'<script type="text/plain" class="video" data-key="(\w+)">([A-Za-z0-9+/=]*)</script>', text)
    films = {key: base64.b64decode(data) for key, data in found}
    if not runs or any(each.get("video") not in films for each in runs):
        raise ValueError(f"{path}: no page of a run; `sam2-keyframe track` writes {PAGE}")
    return runs, films


def view(runs: Sequence[Path], path: Path) -> None:
    """Write a page with several runs side by side: one cursor for all, a line each in the timeline.

    Args:
        runs: Folders of runs, or pages.
        path: The file.

    Raises:
        ValueError: One has no page.
        OSError: It cannot be written.
    """
    if path.suffix != ".html" or path.is_dir():
        raise ValueError(f"--out {path}: name the page that is to be written, such as view.html")
    shown: list[dict[str, Any]] = []
    films: dict[str, bytes] = {}
    for run in runs:
        found, theirs = read_page(run)
        shown += [{**each, "folder": str(run)} for each in found]
        films |= theirs
    names = [each["name"] for each in shown]
    for each in shown:  # two runs of one method are told apart by their folders
        if names.count(each["name"]) > 1:
            each["name"] = f"{each['name']} ({Path(each['folder']).name})"
    for each in shown:
        del each["folder"]
    write_page(path, shown, films)
