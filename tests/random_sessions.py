"""One random session on equal predictors: unwrapped, under `stock`, and under bounded methods.

Each session runs four times: unwrapped; under `stock`, where every mask, every error and every tensor left behind must
be the same to the last bit; and under `keyframe` as it is and with a small capacity, where no call may fail that did
not fail unwrapped, and where more spatial memories than the method has room for are neither held nor attended to.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from random_calls import FLAGS, FRAMES, Call, Clear, Prompt, Remove, Reset, Resume, Session, Track, Wrap
from torch import Tensor

import sam2_keyframe as sk
from benchmarks.models import shared_features
from sam2_keyframe.synthetic import make_clip

SIZE = 64
"""Side of the frames, and of what the model sees."""

METHODS: Mapping[str, Mapping[str, Any]] = {
    "stock": {},
    "keyframe": {},
    "small": {"keyframes": 2, "others": 0, "fill": False, "change": 0.0, "pointers": "selected", "keep_masks": False},
}
"""Choices by what a run is called; `small` is `keyframe` with little room, where nearly every frame is a keyframe."""


class Differs(Exception):
    """A wrapped run did what it must not."""


@dataclass
class Outcome:
    """What a call gave: SAM 2's (frame index, object ids, mask logits), and its error, "" where there was none."""

    masks: list[tuple[int, tuple[Any, ...], Tensor]] = field(default_factory=list)
    error: str = ""


class Run:
    """One session on one predictor.

    Args:
        predictor: It; not wrapped.
        folders: A folder of frames for each video.
        masks: (T, H, W) object ids, for each video.
        method: A name in `METHODS`; None leaves the predictor unwrapped throughout.
    """

    def __init__(self, predictor: Any, folders: list[Path], masks: list[Tensor], method: str | None) -> None:
        self.predictor, self.folders, self.masks, self.method = predictor, folders, masks, method
        self.states: dict[int, Any] = {}
        self.open: dict[int, Iterator[Any]] = {}
        self.wrapped = False
        self.wrap(True)

    def wrap(self, on: bool) -> None:
        """Wrap or unwrap."""
        if self.method is not None and on:
            name = "stock" if self.method == "stock" else "keyframe"
            self.handle = sk.wrap(self.predictor, name, **METHODS[self.method])
        elif self.method is not None:
            sk.unwrap(self.predictor)
        self.wrapped = on

    def do(self, call: Call) -> Outcome:
        """Make a call."""
        outcome = Outcome()
        if isinstance(call, Wrap):
            self.wrap(call.on)
            return outcome
        try:
            for frame_idx, obj_ids, logits in self._answers(call):
                outcome.masks.append((frame_idx, tuple(obj_ids), logits.clone()))
        except Differs:
            raise
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome

    def _answers(self, call: Any) -> Iterator[Any]:
        predictor, video = self.predictor, call.video
        if video not in self.states:
            self.states[video] = predictor.init_state(str(self.folders[video]))
        state = self.states[video]
        if isinstance(call, Prompt):
            yield self._prompt(state, call)
        elif isinstance(call, Track):
            self.open[video] = predictor.propagate_in_video(state, call.start, call.count, call.reverse)
            yield from self._take(video, call.take)
        elif isinstance(call, Resume):
            yield from self._take(video, call.take)
        elif isinstance(call, Clear):
            yield predictor.clear_all_prompts_in_frame(state, call.frame, call.obj)
        elif isinstance(call, Remove):
            obj_ids, changed = predictor.remove_object(state, call.obj, strict=call.strict)
            yield from ((frame_idx, obj_ids, logits) for frame_idx, logits in changed)
        elif isinstance(call, Reset):
            predictor.reset_state(state)

    def _prompt(self, state: Any, call: Prompt) -> Any:
        if call.kind == "mask":
            mask = self.masks[call.video][call.frame] == call.obj
            return self.predictor.add_new_mask(state, call.frame, call.obj, mask)
        x, y = SIZE / 4 * (1 + call.obj % 3), SIZE / 4 * (1 + call.frame % 3)
        how: dict[str, Any] = {"clear_old_points": call.kind != "more points"}
        if "points" in call.kind:
            how |= {"points": [[x, y]], "labels": [int(call.frame % 4 != 3)]}
        if "box" in call.kind:
            how["box"] = [x - SIZE / 4, y - SIZE / 4, x + SIZE / 8, y + SIZE / 4]
        return self.predictor.add_new_points_or_box(state, call.frame, call.obj, **how)

    def _take(self, video: int, count: int | None) -> Iterator[Any]:
        taken = 0
        while count is None or taken < count:
            answer = next(self.open.get(video, iter(())), None)
            if answer is None:
                self.open.pop(video, None)
                return
            taken += 1
            if self._bounded:
                self._check_held(self.states[video], answer[0])
            yield answer

    # -- bounds -------------------------------------------------------------------------------------------------

    @property
    def _bounded(self) -> bool:
        return self.wrapped and self.method not in (None, "stock")

    def _room(self, state: Any, obj_idx: int) -> int:
        """Return how many spatial memories the method has room for, besides conditioning frames."""
        method, slots = self.handle.method, self.predictor.num_maskmem - 1
        reach = (slots - 1) * self.predictor.memory_temporal_stride_for_eval + 1  # free slots go to the frames in there
        room = max(method.newest + method.keyframes.n, reach if method.fill else 0)
        if method.protect_corrections:  # tracked frames that the user touched
            touched = {*state["point_inputs_per_obj"][obj_idx], *state["mask_inputs_per_obj"][obj_idx]}
            room += len(touched - state["output_dict_per_obj"][obj_idx]["cond_frame_outputs"].keys())
        return room

    def _check_held(self, state: Any, frame_idx: int) -> None:
        """Count each object's memories in SAM 2's own dict, where it was just tracked."""
        for obj_id, stats in sk.memory_stats(state).items():
            obj_idx = state["obj_id_to_idx"][obj_id]
            outputs, room = state["output_dict_per_obj"][obj_idx], self._room(state, obj_idx)
            if stats.last is None or stats.last.frame_idx != frame_idx or frame_idx in outputs["cond_frame_outputs"]:
                continue
            stored = outputs["non_cond_frame_outputs"].values()
            held = sum(entry["maskmem_features"].numel() > 0 for entry in stored)
            if held > room:
                raise Differs(f"object {obj_id} holds {held} memories on frame {frame_idx}, with room for {room}")

    def check_attended(self, module: Any, args: Any, given: Mapping[str, Any]) -> None:
        """Count the memories that memory attention is given; a hook of it."""
        if not self._bounded:
            return
        grid = given["curr"][0].shape[0] if isinstance(given["curr"], list) else given["curr"].shape[0]
        spatial = (given["memory"].shape[0] - given["num_obj_ptr_tokens"]) / grid
        most = max(
            len(outputs["cond_frame_outputs"]) + self._room(state, obj_idx)
            for state in self.states.values()
            for obj_idx, outputs in state["output_dict_per_obj"].items()
        )
        if spatial > most:
            raise Differs(f"{spatial:g} memories attended to, with {most} prompted frames and places at most")

    def stored(self) -> dict[tuple[Any, ...], Tensor]:
        """Return every tensor that SAM 2 stores, by video, object, kind, frame and name."""
        return {
            (video, obj_idx, kind, frame_idx, name): value
            for video, state in self.states.items()
            for obj_idx, outputs in state["output_dict_per_obj"].items()
            for kind in ("cond_frame_outputs", "non_cond_frame_outputs")
            for frame_idx, entry in outputs[kind].items()
            for name, value in entry.items()
            if isinstance(value, Tensor)
        }


class Trial:
    """Two equal predictors and two short videos to run sessions on.

    Args:
        make: Makes a predictor for 64 x 64 pixels, the same one each time.
        folder: Where the videos are written.

    Attributes:
        sessions: How many were checked.
        tally: Calls by kind, frames by run, and the errors that SAM 2 gave unwrapped.
    """

    def __init__(self, make: Callable[[], Any], folder: Path) -> None:
        self.plain, self.ours = make(), make()
        self.sessions = 0
        self.tally: dict[str, Counter[str]] = {"calls": Counter(), "frames": Counter(), "errors": Counter()}
        clips = [make_clip(each, seed=3, frames=FRAMES, size=SIZE, objects=2) for each in ("look_alike", "occlusion")]
        self.masks = [torch.from_numpy(clip.masks) for clip in clips]
        self.folders = [folder / str(video) for video in range(len(clips))]
        for clip, place in zip(clips, self.folders, strict=True):
            place.mkdir()
            for t, frame in enumerate(clip.frames):
                Image.fromarray(frame).save(place / f"{t:05d}.jpg", quality=95)

    def check(self, session: Session) -> None:
        """Run a session unwrapped and under each of `METHODS`.

        Raises:
            Differs: A wrapped run did what it must not.
        """
        expected, plain = self.run(session, None)
        self.sessions += 1
        self.tally["calls"].update(type(call).__name__ for call in session.calls)
        errors = [each.error.partition("\n")[0] for each in expected if each.error]
        self.tally["errors"].update(re.sub(r"\d+", "N", error) for error in errors)
        self.tally["frames"]["unwrapped"] += sum(len(each.masks) for each in expected)
        for method in METHODS:
            actual, ours = self.run(session, method)
            self.tally["frames"][method] += sum(len(each.masks) for each in actual)
            if method == "stock":
                if check_equal(session, actual, expected):
                    check_stored(ours.stored(), plain.stored())
            else:
                check_sound(session, method, actual, expected)

    def run(self, session: Session, method: str | None) -> tuple[list[Outcome], Run]:
        """Run a session under a method, None for unwrapped; return what each call gave."""
        predictor = self.plain if method is None else self.ours
        with _settings(predictor, FLAGS[session.flags]), shared_features(predictor), redirect_stderr(io.StringIO()):
            run = Run(predictor, self.folders, self.masks, method)
            hook = predictor.memory_attention.register_forward_pre_hook(run.check_attended, with_kwargs=True)
            try:
                return [run.do(call) for call in session.calls], run
            finally:
                run.open.clear()
                hook.remove()
                sk.unwrap(predictor)


@contextmanager
def _settings(predictor: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(predictor, name) for name in values}
    for name, value in values.items():
        setattr(predictor, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(predictor, name, value)


MENDED = "must have the same dtype"
"""An error of SAM 2 in float32, where it reads no pointer: wrapped, it goes on."""


def check_equal(session: Session, actual: list[Outcome], expected: list[Outcome]) -> bool:
    """Demand the same masks and errors of every call, to the last bit; return whether both went on to the end.

    Where SAM 2 alone fails and the plugin goes on, the two are no longer at the same point: the rest is passed over.
    """
    for call, one, two in zip(session.calls, actual, expected, strict=True):
        if MENDED in two.error and not one.error:
            return False
        if one.error != two.error:
            raise Differs(f"under stock, {call} gives {one.error or 'no error'!r}, unwrapped {two.error or 'none'!r}")
        if [mask[:2] for mask in one.masks] != [mask[:2] for mask in two.masks]:
            raise Differs(f"under stock, {call} gives other frames or objects than unwrapped")
        for (frame_idx, _, ours), (_, _, theirs) in zip(one.masks, two.masks, strict=True):
            if not torch.equal(ours, theirs):
                raise Differs(f"under stock, {call} gives other masks on frame {frame_idx} than unwrapped")
    return True


def check_stored(actual: dict[tuple[Any, ...], Tensor], expected: dict[tuple[Any, ...], Tensor]) -> None:
    """Demand the same stored tensors, to the last bit."""
    if actual.keys() != expected.keys():
        raise Differs(f"under stock, other tensors are stored: {sorted(actual.keys() ^ expected.keys())[:4]}")
    for key, value in expected.items():
        if not torch.equal(actual[key], value):
            raise Differs(f"under stock, another {key} is stored")


def check_sound(session: Session, method: str, actual: list[Outcome], expected: list[Outcome]) -> None:
    """Demand that a bounded method gives masks wherever SAM 2 does, and fails only where and as SAM 2 does."""
    for call, one, two in zip(session.calls, actual, expected, strict=True):
        if one.error and one.error != two.error:
            raise Differs(f"under {method}, {call} gives {one.error!r}, unwrapped {two.error or 'no error'!r}")
        if two.error and not one.error:
            return  # from here on the two are no longer at the same point
        if [mask[:2] for mask in one.masks] != [mask[:2] for mask in two.masks]:
            raise Differs(f"under {method}, {call} gives other frames or objects than unwrapped")
        if not all(logits.isfinite().all() for _, _, logits in one.masks):
            raise Differs(f"under {method}, {call} gives masks that are not finite")
