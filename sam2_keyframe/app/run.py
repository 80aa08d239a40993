"""One method on one video, frame by frame, with a way back: what the app shows is always one uninterrupted sweep.

Going back to a frame leaves everything as it was when that frame had just been tracked, memory included. A bounded
memory cannot be rewound, so copies of it are put aside now and then; what lies between one and the frame is tracked
again, to the same bits.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_keyframe.app.draw import need
from sam2_keyframe.app.options import Prompt
from sam2_keyframe.app.output import write_mask
from sam2_keyframe.app.pictures import label_map
from sam2_keyframe.app.track import new_state, precision
from sam2_keyframe.bank.statistics import FrameStats, MemoryStats
from sam2_keyframe.conditions import thresholds_of
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches import driver_of, objects_of
from sam2_keyframe.patches.driving import ENDLESS
from sam2_keyframe.plugin import memory_stats, wrap
from sam2_keyframe.replay import Recording, record
from sam2_keyframe.replay.steps import Kind, Step
from sam2_keyframe.video.source import FrameSource, LazyFrames

Place = tuple[int, int]
"""A frame and an object."""

EVERY, MOST = 16, 12
"""A copy of the memory is put aside every so many frames; above so many copies every other one is let go."""


@dataclass
class _Aside:
    """The state of a video before frame `frame_idx` was tracked: what it holds, its tensors shared."""

    frame_idx: int
    data: bytes
    shared: list[Any]


def put_aside(state: Any, frame_idx: int) -> _Aside:
    """Return a copy of an inference state that shares its tensors and frames, which nothing changes in place."""
    shared: list[Any] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> int | None:
            if not isinstance(thing, Tensor | LazyFrames):
                return None
            shared.append(thing)
            return len(shared) - 1

    store = io.BytesIO()
    Pickler(store, protocol=pickle.HIGHEST_PROTOCOL).dump(state)
    return _Aside(frame_idx, store.getvalue(), shared)


def taken_back(aside: _Aside) -> Any:
    """Return an inference state as it was put aside; it can be taken back again."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, index: int) -> Any:
            return aside.shared[index]

    return Unpickler(io.BytesIO(aside.data)).load()


def give(predictor: Any, state: Any, prompt: Prompt) -> tuple[list[int], Tensor]:
    """Prompt one object, a mask before clicks that refine it; return object ids and their mask logits."""
    driver, output = driver_of(predictor), None
    if prompt.mask is not None:
        output = driver.correct(state, prompt.frame_idx, {prompt.obj_id: {"mask": torch.from_numpy(prompt.mask)}})
    clicks: dict[str, Any] = {}
    if prompt.points:
        clicks["points"] = np.array([point[:2] for point in prompt.points], np.float32)
        clicks["labels"] = np.array([point[2] for point in prompt.points], np.int32)
    if prompt.box is not None:
        clicks["box"] = np.array(prompt.box, np.float32)
    if clicks:
        output = driver.correct(state, prompt.frame_idx, {prompt.obj_id: clicks})
    if output is None:
        raise ValueError(f"object {prompt.obj_id} has an empty prompt on frame {prompt.frame_idx}")
    return list(output[1]), output[2]


class Run:
    """A method on a video, and all that is known of the frames tracked so far.

    Args:
        predictor: Of this run alone: it is wrapped until `close`.
        source: The video.
        method: The method.
        prompts: What is tracked, by frame and object; given as their frame is reached. More may come.
        corrections: What is corrected on tracked frames, likewise.
        folder: Where masks go, as palette PNGs.

    Attributes:
        first: The frame of the first prompt.
        next: The frame to be tracked next.
        rows: By object and frame, what was decided and held.
        steps: What `replay` needs of the frames tracked so far.
    """

    def __init__(
        self,
        predictor: Any,
        source: FrameSource,
        method: KeyframeMemory,
        prompts: Mapping[Place, Prompt],
        corrections: Mapping[Place, Prompt],
        folder: Path,
    ) -> None:
        self.method = method.with_choices(keep_masks=False)  # they are read from the pictures where one is gone back to
        self.predictor, self.source = predictor, source
        self.prompts, self.corrections, self.folder = prompts, corrections, folder
        self._stale = ENDLESS
        self.first = self.next = min(frame_idx for frame_idx, _ in prompts)
        self.rows: dict[int, dict[int, FrameStats]] = {}
        self.steps: list[Step] = []
        self._noted: set[Place] = set()
        self._others: dict[int, dict[int, tuple[int, ...]]] = {}
        self._ends: dict[int, int] = {}
        self.state: Any = None
        self._open = ExitStack()
        self._open.enter_context(wrap(predictor, self.method))
        self._every = EVERY
        self._driver = driver_of(predictor)
        folder.mkdir(parents=True, exist_ok=True)
        self._begin(new_state(predictor, source))
        self._aside: dict[int, _Aside] = {self.first: put_aside(self.state, self.first)}
        self._uncorrected: _Aside | None = None

    def close(self) -> None:
        """Unwrap the predictor and let everything go but the masks."""
        self._recording.close()
        self._open.close()
        self._aside.clear()
        self.state = None

    def _begin(self, state: Any) -> None:
        """Go on with a state, which is recorded from here on."""
        self.state = state
        self._recording = ExitStack()
        self._recorded = self._recording.enter_context(record(self.predictor, state))

    # -- forwards -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, correct: bool = True) -> NDArray[np.int32]:
        """Track the next frame without a result, with its prompts and corrections; return its (H, W) object ids."""
        if self._stale < self.next:
            self.rewind(self.until)
        t = self.next
        due = t - self.first
        if due and due % self._every == 0 and t not in self._aside:
            self._put_aside(t)
        with precision(torch.device(self.predictor.device)):
            for place in sorted(self.prompts):
                if place[0] == t:
                    give(self.predictor, self.state, self.prompts[place])
            _, obj_ids, logits = self._driver.step(self.state, t)
        labels = label_map(list(obj_ids), logits)
        self._note(t)
        self.next = t + 1
        self._uncorrected = None
        write_mask(self.folder / f"{t:05d}.png", labels)
        return self._correct(t) if correct else labels

    def _note(self, t: int) -> None:
        """Keep what the statistics say of a frame, beyond the last thousand, and which frames `Others` holds."""
        for obj_id, stats in memory_stats(self.state).items():
            if stats.last is not None and stats.last.frame_idx == t:
                self.rows.setdefault(obj_id, {})[t] = stats.last
        for obj_id, frames in objects_of(self.state).items():
            if frames.bank is not None:
                choices = frames.bank.selection
                ageing = [idx for idx, (_, buffer) in choices.ageing.items() if buffer is choices.others]
                held = (*(record.frame_idx for record in choices.others), *ageing)
                self._others.setdefault(obj_id, {})[t] = held
        for step in self._recorded.steps:  # where the state was taken back, prompts are noted once more
            place = step.frame_idx, step.obj_id
            if step.kind is not Kind.PROMPT or place not in self._noted:
                self.steps.append(step)
            if step.kind is Kind.PROMPT:
                self._noted.add(place)
        self._recorded.steps.clear()
        self._ends[t] = len(self.steps)

    @torch.inference_mode()
    def _correct(self, t: int) -> NDArray[np.int32]:
        """Apply the corrections of a frame that was just tracked: to the mask it has, or by one in its place."""
        labels = self.labels(t)
        given = [self.corrections[place] for place in sorted(self.corrections) if place[0] == t]
        for prompt in given:
            mask = prompt.mask if prompt.mask is not None else labels == prompt.obj_id
            with precision(torch.device(self.predictor.device)):
                whole = Prompt(t, prompt.obj_id, mask, prompt.box, prompt.points)
                obj_ids, logits = give(self.predictor, self.state, whole)
            corrected = (logits[obj_ids.index(prompt.obj_id), 0] > 0).cpu().numpy()
            labels = np.where(labels == prompt.obj_id, 0, labels)
            labels[corrected] = prompt.obj_id
        if given:
            write_mask(self.folder / f"{t:05d}.png", labels)
        return labels

    # -- backwards ------------------------------------------------------------------------------------------------

    def _put_aside(self, t: int) -> None:
        self._aside[t] = put_aside(self.state, t)
        if len(self._aside) > MOST:
            self._every *= 2
            kept = {t for t in self._aside if (t - self.first) % self._every == 0}
            self._aside = {t: aside for t, aside in self._aside.items() if t in kept}

    def rewind(self, t: int) -> None:
        """Stand before frame `t`, as if it and later ones had not been tracked; what is ahead already stays as it is.

        `t` lies at or after `first`.
        """
        if self.next <= t:
            return
        aside = self._aside[max(s for s in self._aside if s <= t)]
        self._take_back(aside)
        while self.next < t:
            self.step()

    def _take_back(self, aside: _Aside) -> None:
        t = aside.frame_idx
        self._recording.close()
        self._begin(taken_back(aside))
        self.next = t
        self._stale = self._stale if self._stale < t else ENDLESS
        self.steps = self.steps[: self._ends.get(t - 1, 0)]
        self._noted = {(step.frame_idx, step.obj_id) for step in self.steps if step.kind is Kind.PROMPT}
        for by_object in (self.rows, self._others):
            for frames in by_object.values():
                for later in [s for s in frames if s >= t]:
                    del frames[later]
        self._ends = {s: end for s, end in self._ends.items() if s < t}
        self._aside = {s: kept for s, kept in self._aside.items() if s <= t}
        self._uncorrected = None

    def correct(self, t: int) -> NDArray[np.int32]:
        """Go back to tracked frame `t` and apply its corrections, which have changed; return its object ids."""
        if self._uncorrected is None or self._uncorrected.frame_idx != t + 1:
            self.rewind(t)
            self.step(correct=False)
            self._uncorrected = put_aside(self.state, t + 1)
            self._plain = self.labels(t)
        else:
            self._recording.close()
            self._begin(taken_back(self._uncorrected))
            write_mask(self.folder / f"{t:05d}.png", self._plain)
        return self._correct(t)

    def change(self, t: int) -> None:
        """Let what was tracked from frame `t` on count no more, because something was said of that frame."""
        self._stale = min(self._stale, t)

    @property
    def until(self) -> int:
        """The first frame that has no result, from `first` on."""
        return max(self.first, min(self.next, self._stale))

    # -- what is known of it --------------------------------------------------------------------------------------

    def tracked(self, t: int, obj_id: int | None = None) -> bool:
        """Return whether frame `t` was tracked, or an object on it."""
        if not self.first <= t < self.until:
            return False
        return obj_id is None or any(s <= t for s, known in self.prompts if known == obj_id)

    def labels(self, t: int) -> NDArray[np.int32]:
        """Return the (H, W) object ids of a tracked frame."""
        with need("PIL.Image").open(self.folder / f"{t:05d}.png") as image:
            ids: NDArray[np.int32] = np.asarray(image).astype(np.int32)
        return ids

    def stats(self) -> dict[int, MemoryStats]:
        """Return the statistics of all frames by object, with a row for each, however many."""
        return {
            obj_id: MemoryStats(
                rows=deque(rows[t] for t in sorted(rows) if t < self.until),
                frames=sum(t < self.until for t in rows),
                keyframes=sum(bool(row.keyframe) for t, row in rows.items() if t < self.until),
            )
            for obj_id, rows in self.rows.items()
            if rows
        }

    def recording(self) -> Recording:
        """Return what `replay` needs of the frames tracked so far."""
        about = self._recorded
        return Recording(about.geometry, self.next, about.frame_size, list(self.steps), about.complete)

    def why(self, obj_id: int, t: int, s: int) -> tuple[str, str]:
        """Return why frame `s` was attended to while an object was tracked on frame `t`: a kind, and what is known.

        Kinds are "prompt", "corrected", "keyframe", "newest", "other" and "recent" (it fills a slot, as in SAM 2).
        """
        row, then = self.rows[obj_id][t], self.rows.get(obj_id, {}).get(s)
        if (s, obj_id) in self.prompts:
            return "prompt", "you prompted it"
        if (s, obj_id) in self.corrections:
            return "corrected", "you corrected it"
        if s in row.keyframes:
            return "keyframe", score_of(self.method, then)
        if 0 < t - s <= self.method.newest:
            return "newest", "always read"
        others = self._others.get(obj_id, {})
        if s in others.get(t - 1, ()) or s in others.get(t, ()):
            return "other", f"passed {self.method.others.when!r}"
        return "recent", "fills a free slot"


def score_of(method: KeyframeMemory, row: FrameStats | None) -> str:
    """Return a frame's score beside the bound that it was compared with; what is known of both."""
    if row is None or math.isnan(row.significance) or method.significance is None:
        return f"passed {method.keyframes.when!r}"
    bounds = [
        f" {rule.side} {rule.bound:g}"
        for rule in thresholds_of(method.keyframes.when)
        if rule.scorer == method.significance
    ]
    return f"{method.significance.name} {row.significance:.2f}{bounds[0] if len(bounds) == 1 else ''}"
