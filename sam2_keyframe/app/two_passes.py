"""`track --method genetic` in two passes: the video is tracked once, frames are chosen, and it is tracked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sam2_keyframe.app.options import Prompt
from sam2_keyframe.app.track import FrameError, new_state, sweep
from sam2_keyframe.methods import KeyframeMemory, make_method
from sam2_keyframe.plugin import wrap
from sam2_keyframe.replay import Recording, record
from sam2_keyframe.replay.steps import Kind
from sam2_keyframe.rules.genetic import choose_frames, coverage
from sam2_keyframe.video.source import FrameSource

METHOD = "genetic"
"""The method whose frames a first pass finds."""

ASKED = ("count", "search", "seed")
"""Arguments of `choose_frames` that `--set` takes for it."""

FIRST = "keyframe"
"""The method of the first pass."""

DESCRIPTOR = "object/image"
"""By what frames are compared: image features averaged in the object's mask."""


def divide(choices: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the choice of frames is asked for, and the choices of the method that will have them.

    Raises:
        ValueError: One of them is unknown or out of range.
        TypeError: One is of the wrong kind.
    """
    asked = {"search": "genetic"} | {name: value for name, value in choices.items() if name in ASKED}
    rest = {name: value for name, value in choices.items() if name not in ASKED}
    if isinstance(asked.get("seed", 0), bool) or not isinstance(asked.get("seed", 0), int):
        raise ValueError(f"seed={asked['seed']!r}: must be a whole number")
    choose_frames(torch.ones(1, 1), **asked)
    make_method(METHOD, frames=(0,), **rest)
    return asked, rest


def first_pass(
    predictor: Any,
    source: FrameSource,
    prompts: Sequence[Prompt],
    on_error: str,
    progress: Callable[[int, int], None],
) -> Recording:
    """Track the video under `FIRST` and return its recording, up to a frame that cannot be read and ends it.

    Raises:
        FrameError: Not even the first frame can be read, or a later one that has a prompt.
    """
    state, done, total = new_state(predictor, source), 0, len(source) - prompts[0].frame_idx
    with wrap(predictor, FIRST, keep_masks=False), record(predictor, state) as recording:
        try:
            for _ in sweep(predictor, state, source, prompts, on_error):
                done += 1
                progress(done, total)
        except FrameError:  # the second pass will meet it, and say so
            if not done:
                raise
    return recording


def with_frames(recording: Recording, asked: Mapping[str, Any], rest: Mapping[str, Any]) -> tuple[KeyframeMemory, str]:
    """Return the method with the frames that best stand for all objects of a recording, and a line about them.

    A frame is described by its objects' descriptors one after the other, each of length 1, or 0 where the object does
    not show. Frames on which a prompt was given are attended to anyway and not chosen.

    Raises:
        ValueError: No object shows on any frame but the prompted ones.
    """
    frames, descriptors = described(recording)
    shown = descriptors.norm(dim=1) > 0
    if not bool(shown.any()):
        raise ValueError(
            "the first pass saw no object after its prompt, so there is no frame to choose: look at what "
            f"--method {FIRST} makes of the prompt"
        )
    visible = shown.tolist()
    places = choose_frames(descriptors, visible, **asked)
    count = len(places)
    greedy = coverage(choose_frames(descriptors, visible, count), descriptors, visible)
    found = coverage(places, descriptors, visible)
    chosen = tuple(frames[place] for place in places)
    line = (
        f"chose frames {', '.join(map(str, chosen))} of {len(frames)}: coverage {found:.2f} (greedy choice: "
        f"{greedy:.2f}); --set 'frames={chosen!r}' takes them again without a first pass"
    )
    return make_method(METHOD, frames=chosen, **rest), line


def described(recording: Recording) -> tuple[list[int], Tensor]:
    """Return the frames without a prompt, and a (T, C) descriptor of each over all objects."""
    prompted = {step.frame_idx for step in recording.steps if step.kind is Kind.PROMPT}
    frames = sorted({step.frame_idx for step in recording.steps} - prompted)
    rows = {frame_idx: row for row, frame_idx in enumerate(frames)}
    columns = []
    for obj_id in recording.obj_ids:
        try:
            known, vectors = recording.descriptors(obj_id, DESCRIPTOR)
        except ValueError:  # it never showed
            continue
        column = torch.zeros(len(frames), vectors.shape[1])
        for frame_idx, vector in zip(known, normalize(vectors, dim=1), strict=True):
            if frame_idx in rows:
                column[rows[frame_idx]] = vector
        columns.append(column)
    return frames, torch.cat(columns, 1) if columns else torch.zeros(len(frames), 1)
