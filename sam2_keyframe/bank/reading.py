"""The plan of one read: which memories, pointers and tokens memory attention gets at one frame of one object.

It is made once, by `plan_reading`, for the patches of all hosts and for `replay`. A host then shows what was planned in
the form that it looks for.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import (
    Attend,
    Foveated,
    Modulated,
    Plan,
    SalientTokens,
    TokenLayout,
    Whole,
    scheme_for,
)
from sam2_keyframe.attention.schemes import SUREST
from sam2_keyframe.bank.statistics import pointer_tokens
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import Prompts
from sam2_keyframe.types import Memory, Moment

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Geometry:
    """Sizes of what a SAM 2 stores a frame and object, and how far it reads. The defaults are the official models'.

    Attributes:
        image_size: Side of the square that the model sees, in pixels.
        memory_dim: Channels of a spatial memory.
        memory_side: Side of its grid; memories are bfloat16.
        mask_side: Side of the mask logits, a quarter of the image; float32.
        pointer_dim: Length of an object pointer, in float32.
        num_maskmem: Spatial memories read on a frame, the prompted frames counting as one.
        pointers: Object pointers read at most (`max_obj_ptrs_in_encoder`).
        stride: `memory_temporal_stride_for_eval`.
        prompts: Prompted frames attended to at most (`max_cond_frames_in_attn`); -1: all.
        past_pointers_only: Whether pointers of prompted frames still to come are left out.
        reads_pointers: Whether any are read (`use_obj_ptrs_in_encoder`).
        every_prompt_points: Whether the pointers of all prompted frames are read, not only of those attended to.
        beside_nbytes: Bytes that the host alone stores a frame and object beside what the plugin keeps of it.
    """

    image_size: int = 1024
    memory_dim: int = 64
    memory_side: int = 64
    mask_side: int = 256
    pointer_dim: int = 256
    num_maskmem: int = 7
    pointers: int = 16
    stride: int = 1
    prompts: int = -1
    past_pointers_only: bool = True
    reads_pointers: bool = True
    every_prompt_points: bool = False
    beside_nbytes: int = 0

    def moment(self, frame_idx: int, reverse: bool, num_frames: int) -> Moment:
        """Return where tracking stands at a frame of a video of `num_frames`."""
        return Moment(frame_idx, reverse, self.num_maskmem - 1, min(num_frames, self.pointers) - 1, self.stride)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What memory attention reads at one frame of one object.

    Attributes:
        moment: The frame to be tracked.
        prompts: Prompted frames that may be read.
        read: Those of them that are attended to as such, in order.
        slots: The memories that lie where SAM 2 looks for tracked frames, by that index.
        anchors: The memories that are read beside the prompted frames.
        pointers: Tracked frames whose pointers are read, by the index at which SAM 2 looks for them: another than
            their own changes the distance that it codes.
        found: Prompted frames beyond those in `read` that SAM 2 comes upon where it looks for memories of tracked ones.
        layout: How each spatial memory is attended to, in the order of `spatial`; None: all of them whole.
        attended: Frames whose spatial memory is attended to, in order, where the host knows which.
        tokens: Keys that memory attention reads, spatial and pointer tokens.
        pointing: How many pointers are read.
        queries: Tokens of the frame that run through memory attention.
    """

    moment: Moment
    prompts: Mapping[int, Entry]
    read: Sequence[int]
    slots: Mapping[int, Memory]
    anchors: Sequence[Memory]
    pointers: Mapping[int, int]
    found: Sequence[int]
    layout: TokenLayout | None
    attended: tuple[int, ...]
    tokens: int
    pointing: int
    queries: int


def plan_reading(
    memories: Sequence[Memory],
    pointers: Mapping[int, int],
    prompts: Mapping[int, Entry],
    read: Sequence[int],
    moment: Moment,
    geometry: Geometry,
    grid: tuple[int, int],
    attend: Attend,
    plans: MutableMapping[int, Plan],
    device: torch.device,
    queries: Plan | None = None,
    tracked: Mapping[int, Entry] | None = None,
) -> Reading:
    """Return the plan of a read of chosen memories.

    Args:
        memories: What to attend to besides prompted frames, each with its temporal code.
        pointers: As in `Reading`.
        prompts: Prompted frames that may be read.
        read: Those of them that are attended to as such.
        moment: The frame to be tracked.
        geometry: How far the model reads.
        grid: (h, w) of a spatial memory.
        attend: Which tokens of a memory are attended to.
        plans: What was planned of memories before, by frame; what is planned now is added.
        device: Where attention runs.
        queries: Which tokens of the frame run through memory attention; None leaves all of them to the host.
        tracked: The host's tracked frames, where the scheme goes by the scores of those whose pointers are read.

    Raises:
        ValueError: The scheme's windows do not divide the grid.
    """
    window, places = moment.behind(moment.pointers), moment.places()
    slots: dict[int, Memory] = {}
    anchors = []
    for memory in memories:
        place = places[memory.code] if memory.code < moment.slots else None
        if place is not None and (place in pointers or place not in window):
            slots[place] = memory
        else:  # in a slot within SAM 2's pointer window its pointer would be read, too
            anchors.append(memory)
    # Where SAM 2 may attend to no more prompted frames, it looks for the others among the tracked ones.
    others = [t for t in prompts if t not in read and t not in slots and t not in pointers]
    found = [t for t in others if t in places]
    tokens, asked = (len(read) + len(found) + len(memories)) * grid[0] * grid[1], geometry.memory_side**2
    layout = None
    spatial: list[tuple[int | None, Mapping[str, Any], Memory | None]] = []
    if attend != Whole() or queries is not None:
        spatial += [(t, prompts[t], None) for t in read]
        spatial += [(memory.frame_idx, memory.entry, memory) for memory in anchors]
        for place in reversed(places):
            if place in slots:
                spatial.append((slots[place].frame_idx, slots[place].entry, slots[place]))
            elif place in found:
                spatial.append((place, prompts[place], None))
        layout = replace(plan_layout(attend, spatial, moment, grid, plans, device), queries=queries)
        tokens, asked = layout.tokens, layout.asked
    sources: list[Mapping[str, Any] | None] = []  # of the pointers, as SAM 2 concatenates them; None: a prompt's
    if prompts and geometry.reads_pointers:
        pointing = prompts if geometry.every_prompt_points else read
        sources += [None for t in pointing if not geometry.past_pointers_only or moment.distance(t) >= 0]
        sources += [memory.entry for memory in anchors if memory.pointer]
        for place in window:
            if place in pointers:
                sources.append({} if tracked is None else tracked[pointers[place]])
            elif place in others and not geometry.every_prompt_points:
                sources.append(None)
        tokens += len(sources) * pointer_tokens(next(iter(prompts.values())))
    if isinstance(attend, Modulated) and layout is not None and len(layout.plans) > 1 and tracked is not None:
        scores = _scores([None if memory is None else entry for _, entry, memory in spatial], device)
        layout = replace(layout, scales=(attend.scales(scores), attend.scales(_scores(sources, device))))
    shown = (memory.frame_idx for memory in memories)
    attended = tuple(sorted([*read, *found, *(idx for idx in shown if idx is not None)]))
    return Reading(
        moment, prompts, read, slots, anchors, pointers, found, layout, attended, tokens, len(sources), asked
    )


def _scores(entries: Sequence[Mapping[str, Any] | None], device: torch.device) -> Tensor:
    """Return the object scores of entries, (n,) float32 on the device; None is a prompted frame."""
    scores = [None if entry is None else entry["object_score_logits"] for entry in entries]
    surest = torch.full((1,), SUREST, device=device)
    flat = [surest if s is None else s.to(device, torch.float32, non_blocking=True).reshape(1) for s in scores]
    return torch.cat(flat) if flat else surest[:0]


def plan_layout(
    attend: Attend,
    spatial: Sequence[tuple[int | None, Mapping[str, Any], Memory | None]],
    moment: Moment,
    grid: tuple[int, int],
    plans: MutableMapping[int, Plan],
    device: torch.device,
) -> TokenLayout:
    """Return the layout of one read: the newest memory whole, prompted ones as the scheme says, the rest by it.

    The newest is that of the nearest past frame, tracked or prompted.

    Args:
        attend: The scheme.
        spatial: In the order in which the host concatenates them, each memory's frame, its entry, and what was chosen;
            None for a prompted frame.
        moment: The frame to be tracked.
        grid: (h, w) of a memory.
        plans: What was planned before, by frame; what is planned now is added. Whoever keeps the memories keeps it.
        device: Where attention runs.

    Raises:
        ValueError: The scheme's windows do not divide the grid.
    """
    frames = [frame_idx for frame_idx, _, _ in spatial]
    known = [idx for idx in frames if idx is not None]
    newest = min(known, key=lambda idx: (not moment.past(idx), abs(moment.distance(idx))), default=None)
    layout = []
    for idx, entry, memory in spatial:
        scheme = scheme_for(attend, conditioning=memory is None, newest=idx is not None and idx == newest)
        layout.append(_plan_tokens(scheme, idx, entry, grid, plans, device))
    unmeasured = {memory.frame_idx for _, _, memory in spatial if memory is not None} - plans.keys()
    if not isinstance(attend, SalientTokens) or newest is None or newest not in unmeasured:
        return TokenLayout(grid, tuple(layout))

    def keep(drawn: Tensor) -> None:
        plans[newest] = attend.plan(grid, drawn=drawn)

    return TokenLayout(grid, tuple(layout), frames.index(newest), keep)


def _plan_tokens(
    scheme: Attend,
    frame_idx: int | None,
    entry: Mapping[str, Any],
    grid: tuple[int, int],
    plans: MutableMapping[int, Plan],
    device: torch.device,
) -> Plan:
    known = None if frame_idx is None or scheme == Whole() else plans.get(frame_idx)
    if known is not None:
        return known
    if not isinstance(scheme, Foveated):
        return scheme.plan(grid)  # of salient tokens, a memory that was never the newest
    plan = scheme.plan(grid, entry["pred_masks"].to(device, non_blocking=True))
    if frame_idx is not None:
        plans[frame_idx] = plan
    return plan


def assign_codes(codes: str, code: str, newest: Sequence[int], held: Sequence[int], moment: Moment) -> dict[int, int]:
    """Return SAM 2's learned temporal code for each frame: 0 is the newest, `moment.slots` the row of prompted frames.

    Args:
        codes: "rank" or "slot", as in `KeyframeMemory`.
        code: "time", "anchor" or "prompt", as in `Keyframes`.
        newest: Recent frames, each at an index that SAM 2 looks up.
        held: Keyframes, nearest first.
        moment: The frame being tracked.
    """
    if code != "time":
        return {**dict.fromkeys(held, moment.slots), **assign_codes(codes, "time", newest, (), moment)}
    if codes == "rank":
        return {idx: rank for rank, idx in enumerate(sorted([*newest, *held], key=moment.distance))}
    slots = {place: code for code, place in enumerate(moment.places())}
    true = {idx: slots[idx] for idx in (*newest, *held) if idx in slots}
    free = [code for code in range(moment.slots) if code not in true.values()]
    older = [idx for idx in held if idx not in true]
    return {**true, **dict(zip(older, free[len(free) - len(older) :], strict=True))}


def closest(frame_idx: int, cond: Mapping[int, object], cap: int) -> list[int]:
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


def allowed_prompts(cond: Mapping[int, _Entry], rule: Prompts, moment: Moment) -> Mapping[int, _Entry]:
    """Return the prompted frames that may be attended to: all, or at most so many, the nearest."""
    if not rule.future:
        cond = {t: entry for t, entry in cond.items() if moment.distance(t) >= 0}
    most = rule.most
    if most is None or len(cond) <= most:
        return cond
    first = max(cond) if moment.reverse else min(cond)
    nearest = sorted(cond, key=lambda t: (not moment.past(t) and most == 1, abs(t - moment.frame_idx)))
    kept = nearest[:most] if most == 1 or not rule.keep_first else [first, *(t for t in nearest if t != first)][:most]
    return {t: entry for t, entry in cond.items() if t in kept}
