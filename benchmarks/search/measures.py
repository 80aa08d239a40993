"""What a search measures of a method on a video: live, with SAM 2, or by replaying recordings without it."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d, normalize

from benchmarks import metrics
from benchmarks.datasets import Video
from benchmarks.models import shared_features
from benchmarks.plan import Plan, Spec, label
from benchmarks.results import Run, make_run, read_csv
from benchmarks.search.space import Space, build
from benchmarks.timing import beside_stock
from benchmarks.tracking import MIB, frame_rows, object_rows, precision, track
from sam2_keyframe import KeyframeMemory, wrap
from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.replay import Recording, Replay, record, replay
from sam2_keyframe.replay.steps import unpack
from sam2_keyframe.video.source import FrameSource, init_state

Row = Mapping[str, float]
"""Objectives of one object in one video; NaN where it has none."""
DESCRIPTOR = "object/image"
"""Of a recording: image features averaged in the mask."""


@dataclass(frozen=True)
class Objective:
    """One of the things that a search looks for.

    Attributes:
        title: With its unit.
        maximise: Whether more is better.
        live: Its value from a row of `objects.csv`; None: only a replay knows it.
        replayed: Whether a replay knows it.
    """

    title: str
    maximise: bool
    live: Callable[[Mapping[str, str]], float] | None = None
    replayed: bool = False


def _percent(column: str) -> Callable[[Mapping[str, str]], float]:
    return lambda row: 100 * float(row[column])


OBJECTIVES = {
    "jf": Objective("J&F, %", True, _percent("jf")),
    "recovery": Objective("recovery, %", True, _percent("recovery")),
    "false_masks": Objective("false masks, %", False, _percent("false_masks")),
    "mib": Objective("MiB held (peak)", False, lambda row: float(row["memory_peak_nbytes"]) / MIB, True),
    "tokens": Objective("tokens attended (mean)", False, lambda row: float(row["memory_tokens"]), True),
    "time": Objective("time of a frame / stock's", False, lambda row: math.nan),
    "coverage": Objective("coverage, %", True, None, True),
    "clean": Objective("clean, %", True, None, True),
}
"""By name. `coverage`: how alike a frame's object is to the likest of the memories attended to, but for the newest:
cosine of image features averaged in the mask, mean over the frames on which there is one. `clean`: J of the recorded
masks that are attended to, mean over them and over frames."""
AROUND = ("recovery", "false_masks")
"""Those that only absences have."""


def check_objectives(names: Sequence[str], replayed: bool) -> None:
    """Raise ValueError for objectives that are unknown, or that nothing measures here."""
    if unknown := [name for name in names if name not in OBJECTIVES]:
        raise ValueError(
            f"nothing measures {', '.join(unknown)}; objectives are {', '.join(OBJECTIVES)}"
            f"{did_you_mean(unknown[0], OBJECTIVES)}"
        )
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"--objectives {' '.join(names)}: give each once")
    known = [name for name, each in OBJECTIVES.items() if (each.replayed if replayed else each.live is not None)]
    if wrong := [name for name in names if name not in known]:
        why = "holds masks fixed and has no SAM 2, and so cannot know" if replayed else "does not measure"
        what = "a replay" if replayed else "a live run"
        remedy = "leave --replay out" if replayed else "add --replay"
        raise ValueError(f"{what} {why} {', '.join(wrong)}: choose from {', '.join(known)}, or {remedy}")


def mean_of(rows: Sequence[Row], names: Sequence[str]) -> list[float]:
    """Return the means over objects of some objectives; NaN where none has one."""
    found = np.array([[row[name] for name in names] for row in rows], float)
    return [float(np.mean(kept)) if len(kept := column[~np.isnan(column)]) else math.nan for column in found.T]


class Bench(Protocol):
    """Measures methods on videos."""

    @property
    def names(self) -> tuple[str, ...]:
        """The videos, in the order in which they are measured."""
        ...

    def check(self, space: Space) -> None:
        """Raise ValueError for a space of which something cannot be measured here."""
        ...

    def held(self, spec: Spec) -> AbstractContextManager[None]:
        """Hold a method's results for this process."""
        ...

    def measure(self, spec: Spec, name: str) -> list[Row]:
        """Return a row an object of a video, all objectives that are known here in each."""
        ...

    def finish(self, spec: Spec) -> None:
        """Write what is left to write of a method that was measured on every video."""
        ...


class _Videos:
    """The videos of a plan, opened once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.video: Callable[[str], Video] = functools.lru_cache(maxsize=32)(plan.dataset.open)

    @property
    def names(self) -> tuple[str, ...]:
        return self.plan.dataset.names

    @functools.cached_property
    def predictor(self) -> Any:
        torch.set_num_threads(self.plan.threads)
        return self.plan.load_predictor()

    def check_absences(self, objectives: Sequence[str]) -> None:
        """Refuse objectives around absences where no object is ever away."""
        asked = [name for name in objectives if name in AROUND]
        if asked and not any(map(self._away, self.names)):
            raise ValueError(
                f"nothing measures {' and '.join(asked)} here: no object is away on a scored frame of these videos and "
                "comes back; take videos with absences, as --challenges absence_leaving,absence_partial"
            )

    def _away(self, name: str) -> bool:
        video = self.video(name)
        for each in video.tracks:
            seen = [bool(video.mask(t, each.obj_id).any()) for t in each.scored]
            gone = seen.index(False) if False in seen else len(seen)
            if any(seen[gone:]):
                return True
        return False


class Live(_Videos):
    """Methods tracked by SAM 2. What is finished lies in a folder a method, as `run` writes it, and is not done again.

    Args:
        plan: Of the data and the model; its runs do not matter.
        folder: For the results.
        timed: Whether times beside stock are measured.
    """

    def __init__(self, plan: Plan, folder: Path, timed: bool = False) -> None:
        super().__init__(plan)
        self.folder, self.timed = folder, timed
        self._pair: list[Any] = []

    def check(self, space: Space) -> None:
        """See `Bench`; all that can be built can be run."""

    def run(self, spec: Spec) -> tuple[Run, KeyframeMemory]:
        """Return the folder and the method of a spec."""
        method = build(spec)
        about = {"name": spec[0], "set": spec[1], "label": label(spec), "repr": repr(method)}
        return make_run(self.folder, {**self.plan.runs[0][0].config, "method": about}), method

    @contextmanager
    def held(self, spec: Spec) -> Iterator[None]:
        run, _ = self.run(spec)
        with ExitStack() as lock:
            while True:
                try:
                    lock.enter_context(run.lock())
                    break
                except ValueError:  # another process of this search measures the same method: wait for its results
                    time.sleep(1.0)
            run.prepare()
            yield

    def measure(self, spec: Spec, name: str) -> list[Row]:
        run, method = self.run(spec)
        if not run.done(name):
            video = self.video(name)
            torch.manual_seed(self.plan.seed)
            with self._features:
                tracked = track(self.predictor, video, method, timed=False)
            frames = frame_rows(video, tracked)
            run.write_video(name, frames, object_rows(video, frames), tracked)
        found = read_csv(run.path / "videos" / name / "objects.csv")
        rows = [{key: each.live(row) for key, each in OBJECTIVES.items() if each.live is not None} for row in found]
        if self.timed and name == self.names[0]:
            ratio = self._time(run, method, name)
            rows = [{**row, "time": ratio} for row in rows]
        return rows

    def finish(self, spec: Spec) -> None:
        self.run(spec)[0].finish(self.names)

    @functools.cached_property
    def _features(self) -> AbstractContextManager[Any]:
        return _Held(self.predictor) if self.plan.share else nullcontext()

    def _time(self, run: Run, method: KeyframeMemory, name: str) -> float:
        known = run.time_beside_stock()
        if known is None:
            if not self._pair:
                self._pair = [self.plan.load_predictor() for _ in range(2)]
            torch.manual_seed(self.plan.seed)
            known = beside_stock(self._pair, self.video(name), method)
            run.write_time_beside_stock(known)
        return float(known["ratio"])


class _Held(AbstractContextManager[None]):
    """Image features, held over all methods and videos of a search as far as memory goes."""

    def __init__(self, predictor: Any) -> None:
        self._entered, self._features = False, shared_features(predictor)

    def __enter__(self) -> None:
        if not self._entered:
            self._features.__enter__()
            self._entered = True

    def __exit__(self, *error: Any) -> None:
        """Stays as it is: the predictor is this search's own."""


class Replayed(_Videos):
    """Methods replayed over recordings of stock SAM 2, which are made where they are missing, and then without it.

    Args:
        plan: Of the data and the model.
        folder: For the recordings.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(plan)
        self.folder = folder
        self.recording: Callable[[str], Recording] = functools.cache(self._recording)
        self._j: Callable[[str, Any], dict[int, float]] = functools.cache(self._quality)
        self._units: Callable[[str, Any], dict[int, torch.Tensor]] = functools.cache(self._described)
        self._source: Callable[[str], FrameSource] = functools.cache(lambda name: FrameSource(self.video(name).frames))
        self._known: dict[tuple[str, str], list[Row]] = {}

    def check(self, space: Space) -> None:
        for what, spec in space.members():
            try:
                found = self.replay(spec, self.names[0])
            except ValueError as error:
                self._refuse(space, what, spec, str(error))
            if found.unknown:
                self._refuse(space, what, spec, found.unknown_note)

    def _refuse(self, space: Space, what: str, spec: Spec, why: str) -> None:
        raise ValueError(
            f"space {space.name}{f', {what}' if what else ''}: a replay cannot know what {label(spec)} does: {why}. "
            "Take it out of the space, or leave --replay out"
        )

    def held(self, spec: Spec) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self, spec: Spec) -> None:
        """See `Bench`; nothing is left."""

    def replay(self, spec: Spec, name: str) -> Replay:
        """Return what a method would have kept on a video."""
        return replay(self._source(name), self.recording(name), build(spec))

    def measure(self, spec: Spec, name: str) -> list[Row]:
        key = repr(build(spec)), name
        if key not in self._known:
            found = self.replay(spec, name)
            self._known[key] = [self._row(name, obj_id, stats.rows) for obj_id, stats in found.stats.items()]
        return self._known[key]

    def _row(self, name: str, obj_id: Any, rows: Sequence[Any]) -> Row:
        units, quality = self._units(name, obj_id), self._j(name, obj_id)
        alike, right = [], []
        for row in rows:
            if row.frame_idx in units:
                older = [units[t] for t in row.attended if t in units and t != row.frame_idx - 1]
                alike.append(float((torch.stack(older) @ units[row.frame_idx]).max()) if older else 0.0)
            if known := [quality[t] for t in row.attended if t in quality]:
                right.append(float(np.mean(known)))
        return {
            "coverage": 100 * float(np.mean(alike)) if alike else math.nan,
            "clean": 100 * float(np.mean(right)) if right else math.nan,
            "mib": max(row.memory.nbytes for row in rows) / MIB if rows else math.nan,
            "tokens": float(np.mean([row.memory.tokens for row in rows])) if rows else math.nan,
        }

    def _described(self, name: str, obj_id: Any) -> dict[int, torch.Tensor]:
        """Return unit descriptors by frame."""
        try:
            frames, vectors = self.recording(name).descriptors(obj_id, DESCRIPTOR)
        except ValueError:  # never described: its mask was always empty
            return {}
        shown = vectors.norm(dim=1) > 0  # an empty mask has no direction
        return {t: unit for t, unit, kept in zip(frames, normalize(vectors, dim=1), shown, strict=True) if kept}

    def _quality(self, name: str, obj_id: Any) -> dict[int, float]:
        """Return J of the recorded masks by frame, where there is truth."""
        video, recording = self.video(name), self.recording(name)
        side = recording.geometry.mask_side
        (each,) = (each for each in video.tracks if each.obj_id == obj_id)
        known = {*each.scored, each.first}
        return {
            step.frame_idx: metrics.jaccard(unpack(step.mask, side), _shrunk(video.mask(step.frame_idx, obj_id), side))
            for step in recording.steps
            if step.obj_id == obj_id and step.mask and step.frame_idx in known
        }

    def _recording(self, name: str) -> Recording:
        path = self.folder / f"{name}.npz"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            recording = self._record(self.video(name))
            fresh = path.with_name(f".{name}.{time.time_ns()}.npz")
            recording.save(fresh)
            fresh.replace(path)  # whole or not at all
            sys.stderr.write(f"recorded {name} under stock in {time.perf_counter() - started:.1f} s\n")
        return Recording.load(path)

    def _record(self, video: Video) -> Recording:
        """Track a video under stock, as `tracking.track` does, and return the recording."""
        predictor = self.predictor
        torch.manual_seed(self.plan.seed)
        before, predictor.non_overlap_masks = predictor.non_overlap_masks, video.exclusive
        prompts = video.prompts()
        try:
            with (
                torch.inference_mode(),
                precision(torch.device(predictor.device)),
                wrap(predictor, "stock"),
            ):
                state = init_state(predictor, video.frames)
                with record(predictor, state) as recording:
                    for start, stop in zip(prompts, [*list(prompts)[1:], len(video.frames)], strict=True):
                        for obj_id in prompts[start]:
                            mask = video.mask(start, obj_id)
                            predictor.add_new_mask(state, frame_idx=start, obj_id=obj_id, mask=mask)
                        steps = predictor.propagate_in_video(
                            state, start_frame_idx=start, max_frame_num_to_track=stop - start - 1
                        )
                        for _ in steps:
                            pass
        finally:
            predictor.non_overlap_masks = before
        return recording


def _shrunk(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Return a mask at a recording's size: pixels at least half covered."""
    found: NDArray[np.bool_] = adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), side)[0].ge(0.5).numpy()
    return found
