"""One method on one video: prompts, tracking, statistics; then rows of scores, and means of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.absence import SCORES, absences, mean_or_nan
from benchmarks.datasets import Mask, Video
from sam2_keyframe import FrameStats, KeyframeMemory, memory_stats, wrap
from sam2_keyframe.video.source import init_state

MIB = 2**20
COUNTS = ("frames", "nbytes", "tokens")
SIDES = ("memory", "stock", "window")


@dataclass
class Tracked:
    """What tracking one video left behind.

    Attributes:
        size: Height and width of the masks.
        masks: Predicted masks, packed 8 pixels a byte, by object id and frame index.
        stats: Statistics by object id and frame index; prompted frames have none.
        peak_device_mib: Most memory in use on the GPU while tracking; None on the CPU.
    """

    size: tuple[int, int]
    masks: dict[int, dict[int, NDArray[np.uint8]]] = field(default_factory=dict)
    stats: dict[int, dict[int, FrameStats]] = field(default_factory=dict)
    peak_device_mib: float | None = None

    def mask(self, t: int, obj_id: int) -> Mask:
        height, width = self.size
        return np.unpackbits(self.masks[obj_id][t], count=height * width).reshape(height, width).astype(bool)

    def collect(self, state: Any) -> None:
        """Take over the statistics of a state."""
        for obj_id, stats in memory_stats(state).items():
            self.stats.setdefault(obj_id, {}).update({row.frame_idx: row for row in stats.rows})


def track(predictor: Any, video: Video, method: KeyframeMemory, *, timed: bool = True) -> Tracked:
    """Track every object of a video from its prompt to the end, causally.

    An object that appears late is prompted when its first frame is reached, and never tracked before. Without `timed`
    the frames' times are left out: they mean nothing when image features are shared between runs.
    """
    device = torch.device(predictor.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    overlap, predictor.non_overlap_masks = predictor.non_overlap_masks, video.exclusive
    try:
        with torch.inference_mode(), precision(device), wrap(predictor, method):
            tracked = _track(predictor, video)
    finally:
        predictor.non_overlap_masks = overlap
    for row in (row for rows in tracked.stats.values() for row in rows.values() if not timed):
        row.milliseconds = math.nan
    if device.type == "cuda":
        tracked.peak_device_mib = torch.cuda.max_memory_allocated(device) / MIB
    return tracked


def _track(predictor: Any, video: Video) -> Tracked:
    state = init_state(predictor, video.frames)
    tracked = Tracked((state["video_height"], state["video_width"]))
    prompts = video.prompts()
    for start, stop in zip(prompts, [*list(prompts)[1:], len(video.frames)], strict=True):
        for obj_id in prompts[start]:
            mask = video.mask(start, obj_id)
            if mask.shape != tracked.size:
                sizes = f"frames are {tracked.size} pixels and masks {mask.shape}"
                raise ValueError(f"{video.name}: {sizes}; they must agree")
            predictor.add_new_mask(state, frame_idx=start, obj_id=obj_id, mask=mask)
        for t, obj_ids, logits in predictor.propagate_in_video(
            state, start_frame_idx=start, max_frame_num_to_track=stop - start - 1
        ):
            packed = np.packbits((logits[:, 0] > 0).cpu().numpy().reshape(len(obj_ids), -1), axis=1)
            for obj_id, mask in zip(obj_ids, packed, strict=True):
                tracked.masks.setdefault(obj_id, {})[t] = mask
            if t % 500 == 499:  # before the plugin forgets rows; once in a while, because asking waits for the device
                tracked.collect(state)
    tracked.collect(state)
    return tracked


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return bfloat16 on a GPU, as in SAM 2's own evaluation (`tools/vos_inference.py`); float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def frame_rows(video: Video, tracked: Tracked) -> list[dict[str, Any]]:
    """Return a row for every object and frame, scored where the dataset's protocol says so."""
    rows = []
    for each in video.tracks:
        for t in sorted(tracked.masks[each.obj_id]):
            row: dict[str, Any] = {"video": video.name, "obj_id": each.obj_id, "frame_idx": t}
            row |= dict.fromkeys(("j", "f", "f_size", "seen", "shown"), "")
            if t in each.scored:
                truth, predicted = video.mask(t, each.obj_id), tracked.mask(t, each.obj_id)
                row["j"], row["f"] = metrics.jaccard(predicted, truth), metrics.boundary_f(predicted, truth)
                row["f_size"] = metrics.boundary_f_of_size(predicted, truth)
                row["seen"], row["shown"] = int(truth.any()), int(predicted.any())
            stats = tracked.stats.get(each.obj_id, {}).get(t)
            columns = _stats_columns(stats) if stats else dict.fromkeys(STATS, "")
            rows.append(row | columns)
    return rows


STATS = ("predicted_iou", "object_score", "significance", "keyframe", "attended", "milliseconds")
STATS += tuple(f"{side}_{count}" for side in SIDES for count in COUNTS)


def _stats_columns(stats: FrameStats) -> dict[str, Any]:
    scores = {name: stats.scores.get(name, "") for name in STATS[:2]}
    counts = {f"{side}_{count}": getattr(getattr(stats, side), count) for side in SIDES for count in COUNTS}
    return {
        **scores,
        "significance": stats.significance,
        "keyframe": int(bool(stats.keyframe)),
        "attended": " ".join(map(str, stats.attended)),
        "milliseconds": stats.milliseconds,
        **counts,
    }


def object_rows(video: Video, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every object: accuracy over its scored frames, occupancy and time over its tracked ones."""
    found = []
    for each in video.tracks:
        ours = [row for row in rows if row["obj_id"] == each.obj_id]
        scored, seen = ([row for row in ours if row[name] != ""] for name in ("j", "memory_frames"))
        j, times = [row["j"] for row in scored], [row["milliseconds"] for row in seen[1:]]
        score = metrics.score(j, [row["f"] for row in scored])
        result: dict[str, Any] = {
            "video": video.name,
            "challenge": video.challenge,
            "obj_id": each.obj_id,
            "scored_frames": len(scored),
            "tracked_frames": len(seen),
            "jf": score.jf,
            "j": score.j.mean,
            "j_recall": score.j.recall,
            "j_decay": score.j.decay,
            "f": score.f.mean,
            "f_recall": score.f.recall,
            "f_decay": score.f.decay,
            "j_last": mean_or_nan(j[math.floor(0.75 * len(j)) :]),
            **absences(*([row[name] for row in scored] for name in ("seen", "shown", "j", "f_size"))).columns(),
            "keyframes": sum(row["keyframe"] for row in seen),
            "milliseconds": float(np.median(times)) if times else math.nan,
        }
        for side in SIDES:
            for count in COUNTS:
                values = [row[f"{side}_{count}"] for row in seen]
                result[f"{side}_{count}"] = mean_or_nan(values)
                result[f"{side}_peak_{count}"] = max(values, default=0)
        found.append(result)
    return found


def summary(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over objects: accuracy in percent, occupancy with bytes in MiB, time in milliseconds.

    As in the official DAVIS 2017 evaluation every object counts once, however many its video has.
    """

    def mean(column: str, factor: float = 1.0) -> float | None:
        found = mean_or_nan([value for row in objects if not math.isnan(value := float(row[column]))])
        return None if math.isnan(found) else found * factor

    occupancy = {
        side: {
            f"{peak}{name}": mean(f"{side}_{peak}{column}", 1 / MIB if name == "mib" else 1.0)
            for peak in ("", "peak_")
            for name, column in (("frames", "frames"), ("tokens", "tokens"), ("mib", "nbytes"))
        }
        for side in SIDES
    }
    accuracy = ("jf", "j", "f", "j_recall", "j_decay", "f_recall", "f_decay", "j_last", *SCORES)
    rates = [float(row["keyframes"]) / float(row["tracked_frames"]) for row in objects if float(row["tracked_frames"])]
    sequences: dict[str, list[float]] = {}
    by_challenge: dict[str, list[float]] = {}
    around: dict[str, dict[str, list[float | None]]] = {name: {} for name in SCORES}
    for row in objects:
        sequences.setdefault(str(row["video"]), []).append(round(100 * float(row["jf"]), 4))
        by_challenge.setdefault(str(row["challenge"]), []).append(float(row["jf"]))
        for name in SCORES:
            score = 100 * float(row[name])
            around[name].setdefault(str(row["video"]), []).append(None if math.isnan(score) else round(score, 4))
    return {
        "accuracy": {name: mean(name, 100) for name in accuracy},
        "occupancy": occupancy,
        "time": {"frame_ms": mean("milliseconds")},
        "keep_rate": mean_or_nan(rates) * 100 if rates else None,
        "sequences": sequences,
        "absences": around,
        "challenges": {name: mean_or_nan(jf) * 100 for name, jf in sorted(by_challenge.items()) if name},
    }
