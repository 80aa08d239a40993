"""The `output_dict` that SAM 2 is shown: chosen memories in the slots it will ask for.

SAM 2 looks memories and pointers up by frame index, in one dict. So the entry at the index of slot c carries the
spatial memory that shall get temporal code c and the pointer of the frame that truly lies there; an entry of zero
tokens carries a pointer alone; and a memory whose slot must not show a pointer goes in among the conditioning frames
at an index beyond the current one, whose pointer SAM 2 does not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.bank.reading import Reading
from sam2_keyframe.types import Memory, Moment

Entries = dict[int, Mapping[str, Any]]


def memory_view(reading: Reading, non_cond: Mapping[int, Mapping[str, Any]], tpos: Tensor) -> dict[str, Entries]:
    """Return the dict to show.

    Where memories are shown among the conditioning frames, only those prompted frames are beside them that are to be
    attended to as such; SAM 2 finds the others in its slots. It has to be allowed to attend to all that are shown.

    Args:
        reading: What is to be read.
        non_cond: Tracked frames that the host holds.
        tpos: (num_maskmem, 1, 1, C) the learned temporal code, SAM 2's `maskmem_tpos_enc`.
    """
    device, moment, prompts, pointers = tpos.device, reading.moment, reading.prompts, reading.pointers
    shown: Entries = {}
    for place, memory in reading.slots.items():
        if place in pointers and not place == memory.frame_idx == pointers[place]:
            shown[place] = {**memory.entry, "obj_ptr": non_cond[pointers[place]]["obj_ptr"].to(device)}
        elif place == memory.frame_idx:
            shown[place] = _on_device(memory.entry, device)
        else:
            shown[place] = memory.entry
    slots = moment.places()
    for place, source in pointers.items():
        if place not in shown:
            entry = _on_device(non_cond[source], device)
            shown[place] = _pointer_only(entry) if place in slots else entry
    if not reading.anchors:
        return {"cond_frame_outputs": dict(prompts), "non_cond_frame_outputs": shown}
    anchors: Entries = {}
    for memory in reading.anchors:
        if memory.pointer and memory.frame_idx is not None:
            anchors[memory.frame_idx] = _on_device(memory.entry, device)
        else:
            entry = memory.entry if memory.code >= moment.slots else _recoded(memory, tpos)
            anchors[_beyond(moment, prompts, len(anchors))] = entry
    for t, entry in prompts.items():
        if t not in reading.read:
            shown.setdefault(t, entry)
    return {"cond_frame_outputs": {**{t: prompts[t] for t in reading.read}, **anchors}, "non_cond_frame_outputs": shown}


def in_dtype(view: dict[str, Entries], dtype: torch.dtype) -> dict[str, Entries]:
    """Return a view whose memories have the model's dtype: they are stored in bfloat16.

    SAM 2 concatenates them with pointers, which are float32, so that all becomes that. Where no pointer is read, and
    without autocast, it fails (facebookresearch/sam2 issues 308, 577).
    """
    return {
        key: {t: {**entry, "maskmem_features": entry["maskmem_features"].to(dtype)} for t, entry in entries.items()}
        for key, entries in view.items()
    }


def _on_device(entry: Mapping[str, Any], device: Any) -> Mapping[str, Any]:
    """Return the entry with its pointer where SAM 2 reads it: those of long past frames rest on the CPU."""
    pointer: Tensor = entry["obj_ptr"]
    return entry if pointer.device == device else {**entry, "obj_ptr": pointer.to(device)}


def _pointer_only(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    features: Tensor = entry["maskmem_features"]
    if features.numel() == 0:
        return entry
    blank = features.new_empty((*features.shape[:2], 0, features.shape[3]))
    return {**entry, "maskmem_features": blank, "maskmem_pos_enc": [blank]}


def _recoded(memory: Memory, tpos: Tensor) -> Mapping[str, Any]:
    """Return the entry with a position encoding that turns the conditioning row into the row of its code."""
    change = (tpos[memory.code] - tpos[-1]).view(1, -1, 1, 1)
    encoding: Tensor = memory.entry["maskmem_pos_enc"][-1]
    return {**memory.entry, "maskmem_pos_enc": [encoding.to(change.device) + change]}


def _beyond(moment: Moment, cond: Mapping[int, Any], taken: int) -> int:
    """Return a free index on the side that is still to come, where SAM 2 reads no pointer."""
    if moment.reverse:
        return min([0, moment.frame_idx, *cond]) - 1 - taken
    return max([moment.frame_idx, *cond]) + 1 + taken
