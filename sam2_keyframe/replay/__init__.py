"""Trying a method on a video in seconds: scorers, filters, eviction and retrieval over given masks, without SAM 2.

Masks are held fixed. Under another method SAM 2 might have drawn others, so a replay says what a method would have
kept and what that takes, not how good its masks would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.bank.statistics import MIB, FrameStats, MemoryStats
from sam2_keyframe.conditions import parts_of
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.methods import make_method
from sam2_keyframe.replay.given_masks import from_masks
from sam2_keyframe.replay.player import Player
from sam2_keyframe.replay.recorder import record
from sam2_keyframe.replay.recording import Recording
from sam2_keyframe.rules.filters import EffectiveScore, Visible
from sam2_keyframe.types import Scorer
from sam2_keyframe.video.source import FrameSource

__all__ = ["Geometry", "Recording", "Replay", "from_masks", "record", "replay"]


@dataclass
class Replay:
    """What a method would have kept, had SAM 2 drawn these very masks.

    Attributes:
        method: The method.
        stats: By object, a row a tracked frame (all of them, however many) and totals, as `memory_stats` gives them.
            `milliseconds` is NaN.
        prompts: By object, its prompted frames.
        held: By object and row, the frames that were held besides the prompted and the recent ones.
    """

    method: KeyframeMemory
    stats: dict[Any, MemoryStats]
    prompts: dict[Any, list[int]]
    held: dict[Any, list[list[int]]]

    @property
    def unknown(self) -> list[str]:
        """Scores that the method decides by and no frame has, so that every frame passed: SAM 2's own, without it."""
        rows = [
            row for each in self.stats.values() for row in each.rows if not row.scores.get("object_score", 1.0) <= 0
        ]
        missing = {name for row in rows for name, value in row.scores.items() if math.isnan(value)}
        missing -= {name for row in rows for name, value in row.scores.items() if not math.isnan(value)}
        asked: set[str] = set()
        for part in (part for rule in self.method.rules for part in parts_of(rule)):
            asked |= {part.name} if isinstance(part, Scorer) else set()
            asked |= {"predicted_iou", "object_score"} if isinstance(part, EffectiveScore) else set()
            # At 0, whether the object is visible is told by whether its mask is empty, too.
            asked |= {"object_score"} if isinstance(part, Visible) and part.above > 0 else set()
        return sorted(missing & asked)

    @property
    def unknown_note(self) -> str:
        """What `unknown` means, in a sentence; "" where everything is known."""
        if not self.unknown:
            return ""
        names = " and ".join(self.unknown)
        return (
            f"{names} {'is' if len(self.unknown) == 1 else 'are'} not known of these masks, so what the method decides "
            "by that accepted every frame: count on none of its keyframes; replay the recording of a run instead"
        )

    @property
    def keyframes(self) -> dict[Any, list[int]]:
        """The frames that became keyframes, by object, in the order in which they did."""
        return {obj_id: [r.frame_idx for r in each.rows if r.keyframe] for obj_id, each in self.stats.items()}

    def timeline(self) -> list[dict[str, Any]]:
        """Return a row a tracked frame and object: decisions, scores by name, and occupancy, as plain values."""
        return [
            {"frame": row.frame_idx, "object": obj_id, **_decisions(row), "held": held, **row.scores, **_occupancy(row)}
            for obj_id, each in self.stats.items()
            for row, held in zip(each.rows, self.held[obj_id], strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """Return what was kept and what it takes, by object, in plain numbers for JSON."""
        return {
            "method": repr(self.method),
            "masks": "held fixed: under this method SAM 2 might have drawn others",
            "unknown": self.unknown,
            "objects": {str(obj_id): self._totals(obj_id) for obj_id in self.stats},
        }

    def _totals(self, obj_id: Any) -> dict[str, Any]:
        stats, columns = self.stats[obj_id], [_occupancy(row) for row in self.stats[obj_id].rows]
        values = {name: [column[name] for column in columns] for name in (columns[0] if columns else ())}
        return {
            "prompts": self.prompts[obj_id],
            "tracked": stats.frames,
            "keyframes": self.keyframes[obj_id],
            "evicted": stats.evicted,
            "most": {name: max(each) for name, each in values.items()},
            "mean": {name: sum(each) / len(each) for name, each in values.items()},
        }

    def __repr__(self) -> str:
        lines = ["<replay, masks held fixed: under this method SAM 2 might have drawn others"]
        for obj_id, each in self.stats.items():
            last = each.last
            alone = "" if last is None else f"; SAM 2 alone: {last.stock.frames}, {last.stock.nbytes / MIB:.2f} MiB"
            lines.append(
                f" object {obj_id}: {each.keyframes} of {each.frames} frames are keyframes; at most "
                f"{each.peak_frames} memories, {each.peak_bytes / MIB:.2f} MiB, {each.peak_tokens:,} tokens{alone}"
            )
        if self.unknown:
            lines.append(f" {self.unknown_note}")
        return "\n".join([*lines, f" {self.method!r}>"])


def replay(
    frames: Any,
    masks: Any,
    /,
    method: str | KeyframeMemory = "keyframe",
    *,
    prompts: Mapping[Any, Sequence[int]] | None = None,
    geometry: Geometry | None = None,
    **overrides: Any,
) -> Replay:
    """Run a method's choices over a video and given masks, without SAM 2.

    Over the recording of a live run of the same method, keyframes, attended frames and occupancy are those of that
    run. Change scores are computed afresh, because what is kept changes what later frames are compared with. Frames
    are decoded only when a scorer asks for pixels.

    Args:
        frames: The video: a `FrameSource` or what one is made of. None, where no scorer needs pixels.
        masks: A `Recording` or the path of a saved one. Or masks from elsewhere: (T, H, W) object ids or bool, or
            {obj_id: (T, H, W) bool}; see `from_masks`. Their predicted IoU is unknown, which gates accept
            (`Replay.unknown` names it), and an empty mask has no object.
        method: As in `wrap`.
        prompts: Prompted frames by object, for masks from elsewhere; None: each object's first frame with a mask.
        geometry: What memories are counted and read as; None: as the recorded model's, or as the official models' at
            1024 px for masks from elsewhere. Pixels and masks stay at the recorded size.
        **overrides: Choices of the method to replace, as in `wrap`.

    Raises:
        ValueError: Masks or prompts are malformed, the video is shorter than the recording or of another length than
            masks from elsewhere, or the method needs what is not there: SAM 2's features without a recording,
            `AttentionShare`, `Relevant`, or a choice of masks.
        TypeError: A choice is of the wrong kind.
        OSError: A file cannot be read.
    """
    chosen = make_method(method, **overrides)
    if isinstance(masks, str | Path):
        masks = Recording.load(masks)
    if not isinstance(masks, Recording):
        masks = from_masks(masks, prompts, geometry)
    elif prompts is not None:
        raise ValueError(
            "prompts= names the prompted frames of masks from elsewhere and a recording has its own; "
            "a method's Prompts go in make_method(name, prompts=...)"
        )
    geometry = geometry or masks.geometry
    chosen.check_fits(geometry.num_maskmem - 1)
    source = frames if frames is None or isinstance(frames, FrameSource) else FrameSource(frames)
    try:
        player = Player(masks, source, chosen, geometry)
        player.check()
        played = player.play()
    finally:
        if source is not None and source is not frames:
            source.close()
    return Replay(
        chosen,
        {obj_id: thing.bank.stats for obj_id, thing in played.items()},
        {obj_id: sorted(thing.cond) for obj_id, thing in played.items()},
        {obj_id: thing.held for obj_id, thing in played.items()},
    )


def _decisions(row: FrameStats) -> dict[str, Any]:
    decided = {"significance": row.significance, "keyframe": row.keyframe}
    return {**decided, "attended": list(row.attended), "evicted": list(row.evicted)}


def _occupancy(row: FrameStats) -> dict[str, int]:
    """Return nine numbers under the names that `frames.csv` has for them."""
    taken = {"": row.memory, "stock_": row.stock, "window_": row.window}
    return {
        f"{who}{what}": number
        for who, each in taken.items()
        for what, number in (("frames", each.frames), ("bytes", each.nbytes), ("tokens", each.tokens))
    }
