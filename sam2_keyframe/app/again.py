"""The command line and the Python that do again what was done in the app."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from sam2_keyframe.app.options import Prompt

Places = Mapping[tuple[int, int], Prompt]


def mask_name(place: tuple[int, int]) -> str:
    """Return what the mask of a prompt is called in an export."""
    return f"prompts/{place[0]:05d}_{place[1]}.png"


def command(source: str, model: Sequence[str], method: str, choices: Sequence[str], prompts: Places) -> str:
    """Return the command that tracks the same prompts; corrections are not in it."""
    parts = ["sam2-keyframe", "track", source, "--model", *model, "--method", method]
    for choice in choices:
        parts += ["--set", choice]
    for place, prompt in sorted(prompts.items()):
        at = f"{place[1]}@{place[0]}:"
        if prompt.mask is not None:
            parts += ["--mask", f"{place[0]}:{mask_name(place)}"]
        if prompt.box is not None:
            parts += ["--box", at + ",".join(f"{number:g}" for number in prompt.box)]
        for x, y, label in prompt.points:
            parts += ["--point", f"{at}{x:g},{y:g}{'' if label else ',-'}"]
    return shlex.join([*parts, "--out", "run"])


def script(source: str, model: str, method: str, prompts: Places, corrections: Places, until: int) -> str:
    """Return Python that makes the same masks to the bit, corrections included.

    Args:
        source: The video.
        model: What `load_model` takes.
        method: What `wrap` takes after the predictor.
        prompts: By frame and object.
        corrections: Likewise.
        until: The frame behind the last one tracked.
    """
    lines = [
        "import contextlib",
        "",
        "import numpy as np",
        "import torch",
        "from PIL import Image",
        "",
        "import sam2_keyframe as sk",
        "from sam2_keyframe import *  # what choices are written with",
        "from sam2_keyframe.app.models import load_model",
        "from sam2_keyframe.app.pictures import label_map",
        "",
        f"predictor, _ = load_model({model})",
        "on_gpu = predictor.device.type == 'cuda'",
        "half = torch.autocast('cuda', torch.bfloat16) if on_gpu else contextlib.nullcontext()",
        "masks = {}  # by frame, (H, W) object ids",
        "",
        "",
        "def track(start, last):",
        "    count = last - start",
        "    for t, obj_ids, logits in predictor.propagate_in_video(state, start, count):",
        "        masks[t] = label_map(obj_ids, logits)",
        "",
        "",
        f"with sk.wrap(predictor, {method}, keep_masks=False), half:",
        f"    state = sk.init_state(predictor, {source!r})",
    ]
    marks = sorted({t for t, _ in prompts} | {t + 1 for t, _ in corrections if t < until} | {until})
    for start, end in itertools.pairwise(marks):
        for place, prompt in sorted(corrections.items()):
            if place[0] == start - 1:
                lines += _correction(place, prompt)
        for place, prompt in sorted(prompts.items()):
            if place[0] == start:
                lines += _prompt(place, prompt)
        lines.append(f"    track({start}, {end - 1})")
    for place, prompt in sorted(corrections.items()):
        if place[0] == until - 1:
            lines += _correction(place, prompt)
    return "\n".join([*lines, ""])


def _prompt(place: tuple[int, int], prompt: Prompt) -> list[str]:
    t, obj_id = place
    lines = []
    if prompt.mask is not None:
        picture = f"np.asarray(Image.open({mask_name(place)!r})) == {obj_id}"
        lines.append(f"    predictor.add_new_mask(state, {t}, {obj_id}, {picture})")
    if prompt.points or prompt.box is not None:
        lines.append(f"    predictor.add_new_points_or_box(state, {t}, {obj_id}, {_clicks(prompt)})")
    return lines


def _correction(place: tuple[int, int], prompt: Prompt) -> list[str]:
    t, obj_id = place
    if prompt.mask is not None:
        picture = f"np.asarray(Image.open({mask_name(place)!r})) == {obj_id}"
        lines = [f"    output = predictor.add_new_mask(state, {t}, {obj_id}, {picture})"]
    else:
        lines = [f"    output = predictor.add_new_mask(state, {t}, {obj_id}, masks[{t}] == {obj_id})"]
    if prompt.points or prompt.box is not None:
        lines.append(f"    output = predictor.add_new_points_or_box(state, {t}, {obj_id}, {_clicks(prompt)})")
    return [
        *lines,
        f"    masks[{t}][masks[{t}] == {obj_id}] = 0",
        f"    masks[{t}][(output[2][output[1].index({obj_id}), 0] > 0).cpu().numpy()] = {obj_id}",
    ]


def _clicks(prompt: Prompt) -> str:
    given: dict[str, Any] = {}
    if prompt.points:
        given["points"] = [[x, y] for x, y, _ in prompt.points]
        given["labels"] = [label for *_, label in prompt.points]
    if prompt.box is not None:
        given["box"] = list(prompt.box)
    return ", ".join(f"{name}={value!r}" for name, value in given.items())
