"""Plans of reads for tests, made from what SAM 2 is shown."""

from __future__ import annotations

from typing import Any

import torch

from sam2_keyframe.attention.maths import Whole
from sam2_keyframe.bank.reading import Geometry, Reading, plan_layout, plan_reading
from sam2_keyframe.types import Memory, Moment


def shown_memories(view: Any, selected: Any, moment: Moment) -> list[tuple[int, Any]]:
    """Return (frame index, entry) of every spatial memory in the order in which SAM 2 concatenates them.

    Conditioning frames first, then the slots from the one farthest back to the newest; entries of zero tokens are left
    out (`_prepare_memory_conditioned_features` in sam2/modeling/sam2_base.py).
    """
    cond, tracked = view["cond_frame_outputs"], view["non_cond_frame_outputs"]
    found = [(t, cond[t]) for t in selected]
    for code in reversed(range(moment.slots)):
        t = moment.slot(code)
        found.append((t, tracked.get(t, None if t in selected else cond.get(t))))
    return [(t, entry) for t, entry in found if entry is not None and entry["maskmem_features"].shape[2]]


def view_layout(attend: Any, view: Any, selected: Any, memories: Any, moment: Moment, grid: Any, plans: Any) -> Any:
    """Return the layout of the memories that SAM 2 finds in a view; `memories` are those that are tracked frames."""
    tracked = {id(memory.entry["maskmem_features"]): memory for memory in memories}
    spatial = []
    for t, entry in shown_memories(view, selected, moment):
        memory = tracked.get(id(entry["maskmem_features"]))
        spatial.append((t if memory is None else memory.frame_idx, entry, memory))
    return plan_layout(attend, spatial, moment, grid, plans, torch.device("cpu"))


def whole_reading(memories: Any, pointers: Any, prompts: Any, moment: Moment) -> Reading:
    """Return the plan of reading memories whole, beside all prompted frames."""
    cpu = torch.device("cpu")
    return plan_reading(
        memories, pointers, prompts, list(prompts), moment, Geometry(), (4, 4), Whole(), {}, cpu
    )  # fmt: skip


def replanned(reading: Reading, memories: Any = None, pointers: Any = None) -> Reading:
    """Return a plan with other memories or pointers."""
    chosen = [*reading.slots.values(), *reading.anchors] if memories is None else memories
    places = reading.pointers if pointers is None else pointers
    return whole_reading(chosen, places, reading.prompts, reading.moment)


def chosen(reading: Reading) -> list[Memory]:
    """Return the memories that are tracked frames, the newest first."""
    return sorted([*reading.slots.values(), *reading.anchors], key=lambda memory: memory.code)
