"""Which of SAM 2's learned temporal codes each memory gets."""

from __future__ import annotations

from collections.abc import Sequence

from sam2_keyframe.types import Moment


def assign_codes(temporal: str, newest: Sequence[int], held: Sequence[int], moment: Moment) -> dict[int, int]:
    """Return the code of each frame: 0 is the newest, `moment.slots` the row of conditioning frames.

    Args:
        temporal: "slot", "rank", "anchor" or "prompt", as in `KeyframeMemory`.
        newest: Recent frames, each at an index that SAM 2 looks up.
        held: Keyframes, nearest first.
        moment: The frame being tracked.
    """
    if temporal in ("anchor", "prompt"):
        return {**dict.fromkeys(held, moment.slots), **_ranks(newest, moment)}
    if temporal == "rank":
        return _ranks([*newest, *held], moment)
    slots = {moment.slot(code): code for code in range(moment.slots)}
    true = {idx: slots[idx] for idx in (*newest, *held) if idx in slots}
    free = [code for code in range(moment.slots) if code not in true.values()]
    older = [idx for idx in held if idx not in true]
    return {**true, **dict(zip(older, free[len(free) - len(older) :], strict=True))}


def _ranks(frames: Sequence[int], moment: Moment) -> dict[int, int]:
    return {idx: rank for rank, idx in enumerate(sorted(frames, key=moment.distance))}
