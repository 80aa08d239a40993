"""One method on one video: prompts, tracking, statistics; then scores."""

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
        """Return an object's predicted (H, W) mask on a frame."""
        height, width = self.size
        return np.unpackbits(self.masks[obj_id][t], count=height * width).reshape(height, width).astype(bool)


def track(predictor: Any, video: Video, method: KeyframeMemory, *, timed: bool = True) -> Tracked:
    """Track every object of a video from its prompt to the end, causally.

    An object that appears late is prompted when its first frame is reached, and never tracked before.

    Args:
        predictor: A SAM 2 video predictor.
        video: What to track.
        method: The memory method.
        timed: Keep frame times; they mean nothing when image features are shared between runs.
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
    if not timed:
        for rows in tracked.stats.values():
            for row in rows.values():
                row.milliseconds = math.nan
    if device.type == "cuda":
        tracked.peak_device_mib = torch.cuda.max_memory_allocated(device) / MIB
    return tracked


def _track(predictor: Any, video: Video) -> Tracked:
    state = init_state(predictor, video.frames)
    tracked = Tracked((state["video_height"], state["video_width"]))
    prompts = video.prompts()
    starts, frames = list(prompts), len(video.frames)
    for start, stop in zip(starts, [*starts[1:], frames], strict=True):
        for obj_id in prompts[start]:
            mask = video.mask(start, obj_id)
            if mask.shape != tracked.size:
                raise ValueError(
                    f"{video.name}: frames are {tracked.size} pixels and masks {mask.shape}; they must agree"
                )
            predictor.add_new_mask(state, frame_idx=start, obj_id=obj_id, mask=mask)
        for t, obj_ids, logits in predictor.propagate_in_video(
            state, start_frame_idx=start, max_frame_num_to_track=stop - start - 1
        ):
            packed = np.packbits((logits[:, 0] > 0).cpu().numpy().reshape(len(obj_ids), -1), axis=1)
            for obj_id, mask in zip(obj_ids, packed, strict=True):
                tracked.masks.setdefault(obj_id, {})[t] = mask
            if t % 500 == 499:  # before the plugin forgets rows; once in a while, because asking waits for the device
                _collect(state, tracked)
    _collect(state, tracked)
    return tracked


def _collect(state: Any, tracked: Tracked) -> None:
    for obj_id, stats in memory_stats(state).items():
        tracked.stats.setdefault(obj_id, {}).update({row.frame_idx: row for row in stats.rows})


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return bfloat16 on a GPU, as in SAM 2's own evaluation (`tools/vos_inference.py`); float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def frame_rows(video: Video, tracked: Tracked) -> list[dict[str, Any]]:
    """Return a row for every object and frame, scored where the dataset's protocol says so."""
    rows = []
    for each in video.tracks:
        scored = set(each.scored)
        for t in sorted(tracked.masks[each.obj_id]):
            row: dict[str, Any] = {"video": video.name, "obj_id": each.obj_id, "frame_idx": t, "j": "", "f": ""}
            if t in scored:
                truth, predicted = video.mask(t, each.obj_id), tracked.mask(t, each.obj_id)
                row["j"], row["f"] = metrics.jaccard(predicted, truth), metrics.boundary_f(predicted, truth)
            rows.append(row | _stats_columns(tracked.stats.get(each.obj_id, {}).get(t)))
    return rows


def _stats_columns(stats: FrameStats | None) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in ("predicted_iou", "object_score"):
        columns[name] = stats.scores.get(name, "") if stats else ""
    columns["significance"] = stats.significance if stats else ""
    columns["keyframe"] = int(bool(stats.keyframe)) if stats else ""
    columns["attended"] = " ".join(map(str, stats.attended)) if stats else ""
    columns["milliseconds"] = stats.milliseconds if stats else ""
    for side in SIDES:
        for count in COUNTS:
            columns[f"{side}_{count}"] = getattr(getattr(stats, side), count) if stats else ""
    return columns


def object_rows(video: Video, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every object: accuracy over its scored frames, occupancy and time over its tracked ones."""
    return [
        _object_row(video, track.obj_id, [row for row in rows if row["obj_id"] == track.obj_id])
        for track in video.tracks
    ]


def _object_row(video: Video, obj_id: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    scored = [row for row in rows if row["j"] != ""]
    score = metrics.score([row["j"] for row in scored], [row["f"] for row in scored])
    last = [row["j"] for row in scored][math.floor(0.75 * len(scored)) :]
    seen = [row for row in rows if row["memory_frames"] != ""]
    times = [row["milliseconds"] for row in seen[1:]]
    result: dict[str, Any] = {
        "video": video.name,
        "challenge": video.challenge,
        "obj_id": obj_id,
        "scored_frames": len(scored),
        "tracked_frames": len(seen),
        "jf": score.jf,
        "j": score.j.mean,
        "j_recall": score.j.recall,
        "j_decay": score.j.decay,
        "f": score.f.mean,
        "f_recall": score.f.recall,
        "f_decay": score.f.decay,
        "j_last": float(np.mean(last)) if last else math.nan,
        "keyframes": sum(row["keyframe"] for row in seen),
        "milliseconds": float(np.median(times)) if times else math.nan,
    }
    for side in SIDES:
        for count in COUNTS:
            values = [row[f"{side}_{count}"] for row in seen]
            result[f"{side}_{count}"] = float(np.mean(values)) if values else math.nan
            result[f"{side}_peak_{count}"] = max(values, default=0)
    return result


def summary(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over objects: accuracy in percent, occupancy with bytes in MiB, time in milliseconds.

    As in the official DAVIS 2017 evaluation every object counts once, however many its video has.
    """

    def mean(column: str, factor: float = 1.0) -> float | None:
        values = np.array([float(row[column]) for row in objects])
        values = values[~np.isnan(values)]
        return float(values.mean() * factor) if len(values) else None

    accuracy = ("jf", "j", "f", "j_recall", "j_decay", "f_recall", "f_decay", "j_last")
    occupancy = {
        side: {
            **{count: mean(f"{side}_{count}") for count in ("frames", "tokens")},
            "mib": mean(f"{side}_nbytes", 1 / MIB),
            **{f"peak_{count}": mean(f"{side}_peak_{count}") for count in ("frames", "tokens")},
            "peak_mib": mean(f"{side}_peak_nbytes", 1 / MIB),
        }
        for side in SIDES
    }
    challenges = sorted({str(row["challenge"]) for row in objects} - {""})
    return {
        "accuracy": {name: mean(name, 100) for name in accuracy},
        "occupancy": occupancy,
        "time": {"frame_ms": mean("milliseconds")},
        "keep_rate": _keep_rate(objects),
        "sequences": sequences(objects),
        "challenges": {name: summary_of([row for row in objects if row["challenge"] == name]) for name in challenges},
    }


def _keep_rate(objects: Sequence[Mapping[str, Any]]) -> float | None:
    rates = [float(row["keyframes"]) / float(row["tracked_frames"]) for row in objects if float(row["tracked_frames"])]
    return float(np.mean(rates) * 100) if rates else None


def summary_of(objects: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean J&F of some objects, in percent."""
    return float(np.mean([float(row["jf"]) for row in objects]) * 100)


def sequences(objects: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the J&F of every video's objects in percent, by video; 4 digits after the point."""
    found: dict[str, list[float]] = {}
    for row in objects:
        found.setdefault(str(row["video"]), []).append(round(100 * float(row["jf"]), 4))
    return found
