"""What the app does, without a page: load a video, say what to track, track, look, correct, replay, export.

One `Studio` is one person's. Models are loaded once and shared: each run gets a copy of the model's structure over the
same weights, so that two methods, or two people, do not meet on one predictor.
"""

from __future__ import annotations

import copy
import inspect
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sam2_keyframe.app import again, pictures
from sam2_keyframe.app.draw import Pixels, need
from sam2_keyframe.app.exports import check_exports, export
from sam2_keyframe.app.models import load_model
from sam2_keyframe.app.options import Prompt, parse_registered
from sam2_keyframe.app.output import TABLE, Table, Video, write_mask, write_png
from sam2_keyframe.app.run import Place, Run, give
from sam2_keyframe.app.track import FPS, FPS_RANGE, new_state, precision
from sam2_keyframe.app.uploads import Limits, inside, open_source
from sam2_keyframe.conditions import Threshold, thresholds_of
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.methods import METHODS, make_method
from sam2_keyframe.replay import Replay, replay
from sam2_keyframe.replay.recording import RECORDING
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import BASE_SCORES
from sam2_keyframe.video.source import FrameSource

EXAMPLE = {"challenge": "long", "seed": 7015, "frames": 36, "size": 256, "photos": False}
"""The clip of `sam2-keyframe demo`: an object beside a look-alike is covered, leaves and returns."""

STOCK = "stock"
MINE = "mine"
"""What the two runs are called; the first is SAM 2 alone, beside the method that was chosen."""

MOST_OBJECTS = 12
"""Objects that one person may track at once."""


class Models:
    """Models by name, each loaded once.

    Args:
        names: What `load_model` takes; no other name is loaded.
        device: Where they run.
        image_size: Side of the square that they see; None: as they were trained.
    """

    def __init__(self, names: Sequence[str], device: str, image_size: int | None = None) -> None:
        self.names, self.device, self.image_size = list(names), device, image_size
        self._loaded: dict[str, tuple[Any, str]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[Any, str]:
        """Return a predictor of the caller's own over shared weights, and a warning to show with its masks.

        Raises:
            ValueError: The app was not started with that model, or it cannot be loaded.
            OSError: Its file cannot be read.
            ImportError: SAM 2 is not installed.
        """
        if name not in self.names:
            raise ValueError(f"this app has no model {name!r}; choose {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_model(name, self.device, image_size=self.image_size)
            model, stamp = self._loaded[name]
            shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            return copy.deepcopy(model, shared), stamp


@dataclass(frozen=True)
class Progress:
    """Where tracking stands.

    Attributes:
        frame_idx: The frame just tracked.
        done: Frames done of those to do.
        total: Frames to do.
        rate: Frames a second.
    """

    frame_idx: int
    done: int
    total: int
    rate: float


class Studio:
    """One person's video, prompts, runs and results; everything lies in a temporary folder until `close`.

    Args:
        models: What can be run.
        root: The only folder of the machine from which videos are loaded.
        limits: What is refused.

    Attributes:
        source: The video as it is looked at; None before one was loaded.
        name: What the video is called.
        model: Name of the model chosen.
        method: Name of the method chosen.
        choices: Its choices as texts by name, those alone that were changed.
        prompts: What is tracked, by frame and object.
        corrections: What was corrected on tracked frames, likewise.
        runs: "mine" and, where it is compared with, "stock".
        note: A warning to show with the masks.
    """

    def __init__(self, models: Models, root: Path, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self.models, self.root, self.limits = models, root, limits
        self._place = tempfile.TemporaryDirectory(prefix="sam2-keyframe-app-")
        self.folder = Path(self._place.name)
        self.source: FrameSource | None = None
        self.name = ""
        self.model, self.method, self.note = models.names[0], "keyframe", ""
        self.choices: dict[str, str] = {}
        self.prompts: dict[Place, Prompt] = {}
        self.corrections: dict[Place, Prompt] = {}
        self.runs: dict[str, Run] = {}
        self._preview: Any = None
        self._tracked_with: Any = None
        self._tracking: FrameSource | None = None
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._looking = threading.Lock()

    def close(self) -> None:
        """Let everything go."""
        self.stop()
        with self._busy:
            self._drop()
            self._place.cleanup()

    def _drop(self, keep: Path | None = None) -> None:
        """Let all of a video go, but a folder that the next one lies in."""
        self._drop_runs()
        for source in (self.source, self._tracking):
            if source is not None:
                source.close()
        self.source = self._tracking = self._preview = None
        self.prompts, self.corrections = {}, {}
        for left in self.folder.iterdir():
            if left.is_dir() and left != keep:
                shutil.rmtree(left)
            elif left != keep:
                left.unlink()

    def _drop_runs(self) -> None:
        for run in self.runs.values():
            run.close()
        self.runs, self._tracked_with = {}, None
        for name in (MINE, STOCK):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # -- load -----------------------------------------------------------------------------------------------------

    def load(self, text: str) -> None:
        """Load a video or a folder of pictures of the app's folder.

        Raises:
            ValueError: It lies elsewhere, is no video, or exceeds a limit; what was loaded before stays.
        """
        path = inside(self.root, text)
        self._load([path], str(path.relative_to(self.root.resolve())) or ".")

    def load_upload(self, files: Sequence[Path]) -> None:
        """Load an uploaded video, or pictures in the order of their names. Raises as `load`."""
        files = sorted(files, key=lambda path: path.name)
        if len(files) == 1:
            self._load(files, files[0].name)
            return
        open_source(files, self.limits).close()
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "pictures"
        folder.mkdir()
        for number, file in enumerate(files):
            shutil.copyfile(file, folder / f"{number:05d}{file.suffix.lower()}")
        self._load([folder], "pictures", folder.parent)

    def load_example(self) -> None:
        """Load a generated clip; the outline of its object is its first prompt."""
        clip = make_clip(**EXAMPLE)  # type: ignore[arg-type]
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "example"
        folder.mkdir()
        for t, frame in enumerate(clip.frames):
            need("PIL.Image").fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
        self._load([folder], "example", folder.parent)
        self.prompts[0, 1] = Prompt(0, 1, mask=clip.masks[0] == 1)

    def _load(self, paths: Sequence[Path], name: str, keep: Path | None = None) -> None:
        with self._alone():
            opened = open_source(paths, self.limits)
            try:
                opened.frame(0)
            except (RuntimeError, ValueError, TypeError, OSError) as error:
                opened.close()
                raise ValueError(f"the first frame cannot be read: {error}") from None
            self._drop(keep)
            self.source, self._tracking = opened, open_source(paths, self.limits)
            self.name, self._paths = name, list(paths)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nothing else change this studio meanwhile.

        Raises:
            ValueError: Tracking is under way.
        """
        if not self._busy.acquire(blocking=False):
            raise ValueError("tracking is under way; stop it first")
        try:
            yield
        finally:
            self._busy.release()

    @property
    def frames(self) -> int:
        """Length of the video."""
        return 0 if self.source is None else len(self.source)

    def _need_source(self) -> FrameSource:
        if self.source is None:
            raise ValueError("there is no video yet; load one, or the example clip")
        return self.source

    def frame(self, t: int) -> Pixels:
        """Return frame `t`, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: It cannot be had.
        """
        source = self._need_source()
        if not 0 <= t < len(source):
            raise ValueError(f"there is no frame {t}; the video has frames 0 to {len(source) - 1}")
        with self._looking:
            try:
                return source.frame(t)
            except (RuntimeError, OSError) as error:
                raise ValueError(str(error)) from None

    # -- say what to track ----------------------------------------------------------------------------------------

    def choose(self, model: str, method: str, choices: Mapping[str, str]) -> KeyframeMemory:
        """Choose the model, the method and its choices; return the method.

        Args:
            model: One of the models of this app.
            method: A name in `METHODS`.
            choices: Texts by name; empty ones leave the default. Literals, and what is built from registered classes.

        Raises:
            ValueError: A name or a text is unknown or out of range.
            TypeError: A choice is of the wrong kind.
        """
        if model not in self.models.names:
            raise ValueError(f"this app has no model {model!r}; choose {', '.join(self.models.names)}")
        given = {name: text.strip() for name, text in choices.items() if text.strip()}
        built = make_method(method, **{name: parse_registered(text) for name, text in given.items()})
        if model != self.model:
            self._preview = None
        self.model, self.method, self.choices = model, method, given
        return built

    def memory(self) -> KeyframeMemory:
        """Return the method chosen."""
        return make_method(self.method, **{name: parse_registered(text) for name, text in self.choices.items()})

    def objects(self) -> list[int]:
        """Return the objects that have a prompt."""
        return sorted({obj_id for _, obj_id in self.prompts})

    def corrects(self, t: int, obj_id: int) -> bool:
        """Return whether what is said of an object on a frame corrects a mask that was tracked."""
        mine = self.runs.get(MINE)
        return mine is not None and (t, obj_id) not in self.prompts and mine.tracked(t, obj_id)

    def point(self, t: int, obj_id: int, x: float, y: float, positive: bool = True) -> NDArray[np.int32]:
        """Add a click on an object, or on what it is not; return the (H, W) object ids of the frame.

        Where the object was tracked on that frame, the click corrects its mask, and later frames are to be tracked
        again. Elsewhere it prompts.

        Raises:
            ValueError: There is no such place, object or frame, or tracking is under way.
        """
        height, width = self._need_source().size
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"({x:g}, {y:g}) lies outside of the frame, which is {width} x {height} pixels")
        return self._say(t, obj_id, lambda prompt: prompt.points.append((x, y, int(positive))))

    def box(self, t: int, obj_id: int, corners: Sequence[float]) -> NDArray[np.int32]:
        """Draw a box around an object, x0, y0, x1, y1 in pixels, in place of an earlier one. Else as `point`."""
        height, width = self._need_source().size
        x0, x1 = sorted(min(max(float(x), 0.0), float(width)) for x in corners[::2])
        y0, y1 = sorted(min(max(float(y), 0.0), float(height)) for y in corners[1::2])
        if x1 - x0 < 1 or y1 - y0 < 1:
            raise ValueError("an empty box; draw it from one corner of the object to the other")

        def put(prompt: Prompt) -> None:
            prompt.box, prompt.mask = (x0, y0, x1, y1), None

        return self._say(t, obj_id, put)

    def outline(self, t: int, obj_id: int, corners: Sequence[tuple[float, float]]) -> NDArray[np.int32]:
        """Give an object's mask as what lies inside of a line around it, (x, y) in pixels. Else as `point`."""
        height, width = self._need_source().size
        if not 3 <= len(corners) <= 5000:
            raise ValueError("an outline needs 3 to 5,000 points; draw it around the object")
        picture = need("PIL.Image").new("L", (width, height))
        need("PIL.ImageDraw").Draw(picture).polygon([(float(x), float(y)) for x, y in corners], fill=1)
        mask = np.asarray(picture).astype(bool)
        if not mask.any():
            raise ValueError("an empty outline; draw it around the object")

        def put(prompt: Prompt) -> None:
            prompt.mask, prompt.box = mask, None
            prompt.points.clear()

        return self._say(t, obj_id, put)

    def undo(self, t: int, obj_id: int) -> NDArray[np.int32]:
        """Take back the last that was said of an object on a frame."""

        def take(prompt: Prompt) -> None:
            if prompt.points:
                prompt.points.pop()
            else:
                prompt.box = prompt.mask = None

        if (t, obj_id) not in (self.corrections if self.corrects(t, obj_id) else self.prompts):
            raise ValueError(f"nothing was said of object {obj_id} on frame {t}")
        return self._say(t, obj_id, take)

    def _say(self, t: int, obj_id: int, change: Callable[[Prompt], None]) -> NDArray[np.int32]:
        """Change what was said of an object on a frame; return the frame's object ids."""
        with self._alone():
            if not 0 <= t < self.frames:
                raise ValueError(f"there is no frame {t}; the video has frames 0 to {self.frames - 1}")
            if not 1 <= obj_id <= MOST_OBJECTS:
                raise ValueError(f"object {obj_id}: this app tracks objects 1 to {MOST_OBJECTS}")
            corrects = self.corrects(t, obj_id)
            said = self.corrections if corrects else self.prompts
            before = copy.deepcopy(said.get((t, obj_id)))
            prompt = said.setdefault((t, obj_id), Prompt(t, obj_id))
            change(prompt)
            if prompt.mask is None and prompt.box is None and not prompt.points:
                del said[t, obj_id]
            try:
                if corrects:
                    labels = self.runs[MINE].correct(t)
                    self.runs[MINE].change(t + 1)
                else:
                    labels = self._prompted(t)
                    if MINE in self.runs:
                        self.runs[MINE].change(t)
            except BaseException:
                said.pop((t, obj_id), None)
                if before is not None:
                    said[t, obj_id] = before
                raise
            if STOCK in self.runs:
                self.runs[STOCK].change(t)
            return labels

    def labels(self, t: int, which: str = MINE) -> NDArray[np.int32] | None:
        """Return the (H, W) object ids of a frame: tracked, or what prompts on it make; None where there are none."""
        run = self.runs.get(which)
        if run is not None and run.tracked(t):
            return run.labels(t)
        if which == MINE and any(frame_idx == t for frame_idx, _ in self.prompts):
            with suppress(ValueError), self._alone():  # while tracking is under way they wait
                return self._prompted(t)
        return None

    @torch.inference_mode()
    def _prompted(self, t: int) -> NDArray[np.int32]:
        """Return what SAM 2 makes of the prompts of a frame, which is what tracking begins with."""
        labels: NDArray[np.int32] = np.zeros(self._need_source().size, np.int32)
        mine = self.runs.get(MINE)
        if mine is not None and mine.tracked(t):
            labels = mine.labels(t)
        given = [self.prompts[place] for place in sorted(self.prompts) if place[0] == t]
        if not given:
            return labels
        if self._preview is None:
            predictor, self.note = self.models.get(self.model)
            self._preview = predictor, new_state(predictor, self._tracking_source())
        predictor, state = self._preview
        predictor.reset_state(state)
        with precision(torch.device(predictor.device)):
            for prompt in given:
                obj_ids, logits = give(predictor, state, prompt)
        prompted = pictures.label_map(obj_ids, logits)
        return np.where(prompted > 0, prompted, labels)

    def _tracking_source(self) -> FrameSource:
        if self._tracking is None:
            raise ValueError("there is no video yet; load one, or the example clip")
        return self._tracking

    # -- track ----------------------------------------------------------------------------------------------------

    def track(self, compare: bool = False) -> Iterator[Progress]:
        """Track what is not tracked yet, to the end of the video or until `stop`; yield after each frame.

        What holds of an earlier call is kept: it goes on from the first frame about which something new was said. The
        whole video is tracked anew where another model, method or choice was chosen.

        Args:
            compare: Whether SAM 2 alone tracks the same beside it.

        Raises:
            ValueError: There is no video or prompt, the method does not fit the model, or a frame cannot be read.
        """
        with self._alone():
            self._stop.clear()
            runs = self._prepared(compare)
            total = sum(self.frames - run.until for run in runs)
            start, done = time.perf_counter(), 0
            while not self._stop.is_set():
                run = min(runs, key=lambda each: each.until)
                t = run.until
                if t >= self.frames:
                    return
                try:
                    run.step()
                except (RuntimeError, OSError) as error:
                    raise ValueError(f"frame {t} could not be tracked: {error}") from error
                done += 1
                if all(each.until > t for each in runs):
                    rate = done / len(runs) / max(time.perf_counter() - start, 1e-9)
                    yield Progress(t, done, total, rate)

    def _prepared(self, compare: bool) -> list[Run]:
        """Return the runs to track, made anew where what was chosen has changed."""
        self._need_source()
        if not self.prompts:
            raise ValueError("nothing to track yet; click on an object, or draw a box or an outline around it")
        chosen = (self.model, self.memory(), min(t for t, _ in self.prompts))
        if chosen != self._tracked_with:
            self._drop_runs()
        wanted = {MINE: chosen[1], **({STOCK: make_method("stock")} if compare else {})}
        for name in [name for name in self.runs if name not in wanted]:
            self.runs.pop(name).close()
        for name, method in wanted.items():
            if name not in self.runs:
                predictor, self.note = self.models.get(self.model)
                self.runs[name] = Run(
                    predictor, self._tracking_source(), method, self.prompts, self.corrections, self.folder / name
                )
        self._tracked_with = chosen
        return list(self.runs.values())

    def stop(self) -> None:
        """Let tracking end after the frame that is under way."""
        self._stop.set()

    # -- look -----------------------------------------------------------------------------------------------------

    def bounds(self) -> list[tuple[Threshold, str]]:
        """Return the bounds of the rule for keyframes, each with the choice of the method that moves it, "" if none."""
        memory = self.memory()
        plain = inspect.signature(METHODS[self.method]).parameters
        found = []
        values = {name: each.default for name, each in plain.items()}
        values.update({name: parse_registered(text) for name, text in self.choices.items() if name in plain})
        for rule in thresholds_of(memory.keyframes.when):
            numbers = (name for name, value in values.items() if isinstance(value, Real) and value == rule.bound)
            found.append((rule, next(numbers, "")))
        return found

    def replay(self, choices: Mapping[str, str]) -> Replay:
        """Return what the method with other choices would have kept, had SAM 2 drawn the masks that were tracked.

        Raises:
            ValueError: Nothing was tracked yet, or a choice is unknown.
        """
        mine = self.runs.get(MINE)
        if mine is None or mine.until <= mine.first:
            raise ValueError("nothing was tracked yet; track first, then move the threshold")
        given = {**self.choices, **{name: text for name, text in choices.items() if text.strip()}}
        method = make_method(self.method, **{name: parse_registered(text) for name, text in given.items()})
        with open_source(self._paths, self.limits) as source:
            return replay(source, mine.recording(), method)

    def film(self, stop: Callable[[], bool] = lambda: False) -> Path:
        """Write the overlay of what was tracked as a video that browsers play, stock's beside it; return its path.

        Raises:
            ValueError: Nothing was tracked yet.
        """
        mine = self.runs.get(MINE)
        if mine is None or mine.until <= mine.first:
            raise ValueError("nothing was tracked yet; track first")
        names = [name for name in (STOCK, MINE) if name in self.runs]
        path = self.folder / "overlay.mp4"
        fps = self._need_source().fps or FPS
        scale = max(1, min(4, round(480 / min(self.frame(0).shape[:2]))))
        titles = {MINE: self.method, STOCK: "SAM 2 alone"}
        with closing(Video(path, min(max(fps, FPS_RANGE[0]), FPS_RANGE[1]))) as video:
            for t in range(mine.first, mine.until):
                if stop():
                    break
                frame, panels = self.frame(t), []
                for name in names:
                    labels = self.labels(t, name)
                    masks = np.zeros(frame.shape[:2], np.int32) if labels is None else labels
                    caption = f"{titles[name]}  frame {t}"
                    panels.append(pictures.overlay(frame, masks, scale=scale, caption=caption, stamp=self.note))
                video.add(np.concatenate([np.asarray(panel) for panel in panels], 1))
        return path

    # -- take along -----------------------------------------------------------------------------------------------

    def command(self) -> str:
        """Return the command line that tracks the same prompts; corrections are not in it."""
        choices = [f"{name}={text}" for name, text in self.choices.items()]
        size = [] if self.models.image_size is None else ["--image-size", str(self.models.image_size)]
        return again.command(self.name, [self.model, *size], self.method, choices, self.prompts)

    def script(self) -> str:
        """Return Python that makes the same masks to the bit, corrections included."""
        mine = self.runs.get(MINE)
        choices = {name: parse_registered(text) for name, text in self.choices.items()}
        method = ", ".join([repr(self.method), *(f"{name}={value!r}" for name, value in choices.items())])
        until = self.frames if mine is None else mine.until
        return again.script(self.name, self._model_arguments(), method, self.prompts, self.corrections, until)

    def _model_arguments(self) -> str:
        size = self.models.image_size
        return f"{self.model!r}, {self.models.device!r}{'' if size is None else f', image_size={size}'}"

    def export(self, kinds: Sequence[str] = (), video: bool = True) -> Path:
        """Return a zip of what was tracked: masks, table, recording, pictures, commands, and other tools' files.

        Args:
            kinds: More forms of the masks, of `exports.FILES`.
            video: Whether the overlay is in it.

        Raises:
            ValueError: Nothing was tracked yet, or a kind is unknown.
        """
        mine = self.runs.get(MINE)
        if mine is None or mine.until <= mine.first:
            raise ValueError("nothing was tracked yet; track first, then export")
        kinds = check_exports(kinds)
        with self._alone():
            folder = self.folder / "export" / "sam2-keyframe"
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
            names = [f"{t:05d}" for t in range(mine.first, mine.until)]
            (folder / "masks").mkdir()
            for name in names:
                shutil.copyfile(mine.folder / f"{name}.png", folder / "masks" / f"{name}.png")
            self._write_table(folder / TABLE, mine)
            mine.recording().save(folder / RECORDING)
            stats = mine.stats()
            if any(each.rows for each in stats.values()):
                title = f"method: {self.method}"
                write_png(folder / "timeline.png", pictures.timeline(stats, method=mine.method, title=title))
            said = {**self.prompts, **self.corrections}
            for place, prompt in said.items():
                if prompt.mask is not None:
                    path = folder / again.mask_name(place)
                    path.parent.mkdir(exist_ok=True)
                    write_mask(path, prompt.mask * prompt.obj_id)
            told = "" if not self.corrections else "# without the corrections, which again.py has\n"
            (folder / "again.sh").write_text(f"{told}{self.command()}\n")
            (folder / "again.py").write_text(self.script())
            if self.name in ("example", "pictures"):
                shutil.copytree(self._paths[0], folder / self.name)
            if kinds:
                fps = self._need_source().fps or FPS
                export(lambda: (mine.labels(int(t)) for t in names), [f"{t}.jpg" for t in names], folder, kinds, fps)
        if video:
            shutil.copyfile(self.film(), folder / "overlay.mp4")
        return Path(shutil.make_archive(str(folder.parent / "sam2-keyframe"), "zip", folder.parent, folder.name))

    def _write_table(self, path: Path, run: Run) -> None:
        names = [scorer.name for scorer in run.method.scorers]
        columns = list(dict.fromkeys([*names, *BASE_SCORES])) if run.method.observes else []
        source = self._need_source()
        with closing(Table(path, columns)) as table:
            for t in range(run.first, run.until):
                for obj_id in self.objects():
                    if run.tracked(t, obj_id):
                        table.add(t, obj_id, run.rows.get(obj_id, {}).get(t), source.time(t))


def documented(method: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return what a method is, and by name its arguments' defaults and what they mean."""
    text, _, rest = (inspect.getdoc(METHODS[method]) or "").partition("\n\n")
    arguments = {}
    for name, parameter in inspect.signature(METHODS[method]).parameters.items():
        told = re.search(rf"^ {{4}}{name}: (.*?)(?=^ {{4}}\w|^\S|\Z)", rest, re.M | re.S)
        arguments[name] = (repr(parameter.default), " ".join(told[1].split()) if told else "")
    about = " ".join(re.split(r"^(?:Args|Source):", rest, flags=re.M)[0].split())
    return f"{' '.join(text.split())} {about}".strip(), arguments
