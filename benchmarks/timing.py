"""A method's time beside stock's: two equal predictors track the same video in turn, frame by frame."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Generator
from typing import Any

import torch

from benchmarks.datasets import Video
from benchmarks.plan import Plan
from benchmarks.tracking import precision
from sam2_keyframe import KeyframeMemory, make_method, wrap
from sam2_keyframe.video.source import init_state

WARM_UP = 10
"""Frames left out: prompts, first calls, memories that fill."""
MOST = 150
"""Frames after which measuring stops: on long videos more would only take longer."""


def time_runs(plan: Plan) -> None:
    """Measure every run of a plan that has no time beside stock yet, and keep the times.

    All are measured on the first video that is finished. Whatever else the machine does slows both sides alike; the
    ratio is the median over frames of a method's time over stock's on the same frame. A run that cannot be measured is
    named with the reason; its results stay as they are.
    """
    left = [(run, method) for run, method in plan.runs if run.time_beside_stock() is None]
    name = next((name for name in plan.dataset.names if any(run.done(name) for run, _ in left)), None)
    if name is None:
        return
    torch.set_num_threads(plan.threads)
    pair = [plan.load_predictor() for _ in range(2)]
    video = plan.dataset.open(name)
    for run, method in left:
        torch.manual_seed(plan.seed)
        try:
            run.write_time_beside_stock(beside_stock(pair, video, method))
        except Exception as error:  # without a time the other figures still hold
            sys.stderr.write(f"{run.label}: no time beside stock: {error}\n")
            continue
        run.finish(plan.dataset.names)


def beside_stock(pair: list[Any], video: Video, method: KeyframeMemory) -> dict[str, Any]:
    """Return "ratio", "frame_ms", "stock_ms" (medians), "frames" (how many count) and "video".

    Of two equal predictors the first is wrapped with the method, the second with stock; both track the objects of the
    video's first prompted frame.

    Raises:
        ValueError: The video is too short.
    """
    device = torch.device(pair[0].device)
    walks = [_walk(*each) for each in zip(pair, (video, video), (method, make_method("stock")), strict=True)]
    rows: list[list[float]] = []
    with torch.inference_mode(), precision(device):
        for t in range(min(MOST, len(video.frames) - min(video.prompts()))):
            row = [0.0, 0.0]
            for side in (0, 1) if t % 2 else (1, 0):
                started = time.perf_counter()
                next(walks[side])
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                row[side] = time.perf_counter() - started
            rows.append(row)
        for walk in walks:
            walk.close()
    times = rows[WARM_UP:]
    if len(times) < 3:
        raise ValueError(f"{video.name} has {len(rows)} frames; a time beside stock needs {WARM_UP + 3}")
    return {
        "ratio": round(statistics.median(ours / theirs for ours, theirs in times), 4),
        "frame_ms": round(1000 * statistics.median(ours for ours, _ in times), 3),
        "stock_ms": round(1000 * statistics.median(theirs for _, theirs in times), 3),
        "frames": len(times),
        "video": video.name,
    }


def _walk(predictor: Any, video: Video, method: KeyframeMemory) -> Generator[None, None, None]:
    first, obj_ids = next(iter(video.prompts().items()))
    with wrap(predictor, method):
        state = init_state(predictor, video.frames)
        for obj_id in obj_ids:
            predictor.add_new_mask(state, frame_idx=first, obj_id=obj_id, mask=video.mask(first, obj_id))
        for _ in predictor.propagate_in_video(state, start_frame_idx=first):
            yield
