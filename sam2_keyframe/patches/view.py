"""The `output_dict` that SAM 2 is shown: chosen memories in the slots it will ask for.

SAM 2 looks memories and pointers up by frame index, in one dict. So the entry at the index of slot c carries the
spatial memory that shall get temporal code c and the pointer of the frame that truly lies there; an entry of zero
tokens carries a pointer alone; and a memory whose slot must not show a pointer goes in among the conditioning frames
at an index beyond the current one, whose pointer SAM 2 does not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from sam2_keyframe.types import Memory, Moment

Entries = dict[int, Mapping[str, Any]]

_Entry = TypeVar("_Entry")


def memory_view(
    memories: Sequence[Memory],
    pointers: Mapping[int, int],
    cond: Mapping[int, Mapping[str, Any]],
    non_cond: Mapping[int, Mapping[str, Any]],
    moment: Moment,
    tpos: Tensor,
) -> tuple[dict[str, Entries], int]:
    """Return the dict to show and how many memories went in among the conditioning frames.

    Args:
        memories: What to attend to, each with its temporal code.
        pointers: Frames of `non_cond` whose pointers are read, by the index within SAM 2's pointer window at which
            it looks for them: another than their own changes the distance that it codes.
        cond: Prompted frames, shown as they are.
        non_cond: Tracked frames that the host holds.
        moment: The frame being tracked.
        tpos: (num_maskmem, 1, 1, C) the learned temporal code, SAM 2's `maskmem_tpos_enc`.
    """
    device = tpos.device
    shown: Entries = {}
    anchors: Entries = {}
    slots = {moment.slot(code): code for code in range(moment.slots)}
    window = {moment.near(distance) for distance in range(1, moment.pointers + 1)}
    for memory in memories:
        place = moment.slot(memory.code) if memory.code < moment.slots else None
        if place is not None and place == memory.frame_idx and (pointers.get(place) == place or place not in window):
            shown[place] = _on_device(memory.entry, device)
        elif place is not None and place in pointers:
            shown[place] = {**memory.entry, "obj_ptr": non_cond[pointers[place]]["obj_ptr"].to(device)}
        elif place is not None and place not in window:
            shown[place] = memory.entry
        elif memory.pointer and memory.frame_idx is not None:
            anchors[memory.frame_idx] = _on_device(memory.entry, device)
        else:
            index = _beyond(moment, cond, len(anchors))
            anchors[index] = memory.entry if place is None else _recoded(memory, tpos)
    for place, source in pointers.items():
        if place in shown:
            continue
        entry = _on_device(non_cond[source], device)
        shown[place] = _pointer_only(entry) if place in slots else entry
    return {"cond_frame_outputs": {**cond, **anchors}, "non_cond_frame_outputs": shown}, len(anchors)


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


def closest(frame_idx: int, cond: Mapping[int, Any], cap: int) -> list[int]:
    """Return the conditioning frames that SAM 2 attends to: all, or at most `cap`, the closest.

    Source: the rule of sam2/modeling/sam2_utils.py, select_closest_cond_frames: the nearest frame before, the nearest
    at or after, then the closest of the rest.
    """
    if cap == -1 or len(cond) <= cap:
        return list(cond)
    before = max((t for t in cond if t < frame_idx), default=None)
    after = min((t for t in cond if t >= frame_idx), default=None)
    chosen = [t for t in (before, after) if t is not None]
    rest = sorted((t for t in cond if t not in chosen), key=lambda t: abs(t - frame_idx))
    return chosen + rest[: cap - len(chosen)]


def beside_prompts(view: dict[str, Entries], anchors: int, read: Sequence[int]) -> None:
    """Leave among the conditioning frames those read and the anchors; SAM 2 looks for the others in the slots.

    Args:
        view: The dict to show, changed in place.
        anchors: How many of its conditioning frames are memories, the last ones.
        read: Conditioning frames that SAM 2 would read of the prompts.
    """
    shown = list(view["cond_frame_outputs"].items())
    prompts = dict(shown[:-anchors])
    for t, entry in prompts.items():
        if t not in read:
            view["non_cond_frame_outputs"].setdefault(t, entry)
    view["cond_frame_outputs"] = {**{t: prompts[t] for t in read}, **dict(shown[-anchors:])}


def come_upon(
    prompts: Mapping[int, Any], read: Sequence[int], shown: Mapping[int, Any], moment: Moment
) -> tuple[list[int], list[int]]:
    """Return the prompted frames beyond those attended to as such whose memories, and whose pointers, SAM 2 reads.

    Where it may attend to no more of them, it looks for the others among the tracked frames.

    Args:
        prompts: Prompted frames.
        read: Those that it attends to as such.
        shown: The tracked frames that it is shown, by index; what is there hides a prompted frame.
        moment: The frame being tracked.
    """
    others = [t for t in prompts if t not in read and t not in shown]
    slots, near = range(moment.slots), range(1, moment.pointers + 1)
    return [t for t in others if t in map(moment.slot, slots)], [t for t in others if t in map(moment.near, near)]


def pointers_read(
    read: Sequence[int], memories: Sequence[Memory], pointers: Mapping[int, int], moment: Moment, past_only: bool
) -> int:
    """Return how many pointers SAM 2 reads: those of tracked frames, of prompts, and of memories shown as prompts.

    Args:
        read: Conditioning frames that it attends to.
        memories: What it attends to besides.
        pointers: Tracked frames whose pointers it finds, by index.
        moment: The frame being tracked.
        past_only: Its `only_obj_ptrs_in_the_past_for_eval`.
    """
    prompts = sum(not past_only or moment.distance(t) >= 0 for t in read)
    return len(pointers) + prompts + sum(memory.pointer for memory in memories)


def frames_attended(read: Sequence[int], memories: Sequence[Memory]) -> tuple[int, ...]:
    """Return the frames whose spatial memory is attended to, in order, where the host knows which."""
    return tuple(sorted([*read, *(memory.frame_idx for memory in memories if memory.frame_idx is not None)]))


def allowed_prompts(cond: Mapping[int, _Entry], most: int | None, moment: Moment) -> Mapping[int, _Entry]:
    """Return the prompted frames that may be attended to: all, or at most `most`, the first and the nearest."""
    if most is None or len(cond) <= most:
        return cond
    first = max(cond) if moment.reverse else min(cond)
    nearest = sorted(cond, key=lambda t: (not moment.past(t) and most == 1, abs(t - moment.frame_idx)))
    kept = nearest[:1] if most == 1 else [first, *(t for t in nearest if t != first)][:most]
    return {t: entry for t, entry in cond.items() if t in kept}
