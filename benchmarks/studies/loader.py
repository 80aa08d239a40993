"""What reading frames as they are needed adds to the time of a frame, against frames that are in memory already.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.loader                # micro at 256 px; loader/micro.json
    OMP_NUM_THREADS=1 python -m benchmarks.studies.loader --model tiny   # official tiny at 1024 px, random weights

480p JPEGs and H.264; passes over lazy and over preloaded frames take turns in one process, and the best of each counts.
Turns of a frame each would hide the reading, which goes on during the other's turn. `inside_ms` is what the tracking
thread spends on asking for a frame, `inside_cpu_ms` what of that is work and not waiting. `cpu_ratio`
compares the processor time of the tracking thread as a whole: right where the model runs on that thread alone
(OMP_NUM_THREADS=1), and less disturbed by other programs. What `ratio` has beyond it is waiting, for Python's lock and,
where there are few, for a core: reading needs one. Also the time to the first masks of a 10,000-frame video.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.results import surroundings, write_json
from benchmarks.studies.long_video import footage, write_folder, write_video
from benchmarks.studies.overhead import load
from sam2_keyframe.video.source import FrameSource, LazyFrames, init_state, without_bars

RESULTS = Path(__file__).parent / "loader"
SIDES = ("lazy", "preloaded")


class Timed:
    """A state's `images`, and the seconds and the processor time that asking for them took."""

    def __init__(self, images: Any):
        self.images, self.seconds, self.used = images, 0.0, 0.0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, t: int) -> Any:
        start, used = time.perf_counter(), time.thread_time()
        image = self.images[t]
        self.seconds += time.perf_counter() - start
        self.used += time.thread_time() - used
        return image


def frames_480p(count: int) -> Iterator[np.ndarray]:
    """Return generated frames scaled to 854x480."""
    return (np.asarray(Image.fromarray(frame).resize((854, 480))) for frame in footage(count, 256)[0])


def take_turns(predictor: Any, source: Path, passes: int) -> dict[str, Any]:
    """Return milliseconds a frame over whole passes in turn, their ratio, and what of it is spent on frames."""
    states = {side: init_state(predictor, source) for side in SIDES}
    held = states["preloaded"]["images"]
    states["preloaded"]["images"] = torch.stack([held[t] for t in range(len(held))])  # read by the same code
    held.source.close()
    for state in states.values():
        predictor.add_new_points_or_box(state, 0, 1, box=np.array([300.0, 150.0, 550.0, 350.0]))
        state["images"] = Timed(state["images"])
    found: dict[str, dict[str, list[float]]] = {
        name: {side: [] for side in SIDES} for name in ("passes", "cpu", "inside", "inside_cpu")
    }
    for turn in range(passes + 1):
        for side in SIDES if turn % 2 else SIDES[::-1]:
            timed = states[side]["images"]
            timed.seconds = timed.used = 0.0
            start, used = time.perf_counter(), time.thread_time()
            with without_bars():
                count = sum(1 for _ in predictor.propagate_in_video(states[side], start_frame_idx=0))
            seconds = time.perf_counter() - start, time.thread_time() - used, timed.seconds, timed.used
            for name, value in zip(found, seconds, strict=True):
                found[name][side] += [1000 * value / count] if turn else []  # the first is for warming up
    states["lazy"]["images"].images.source.close()
    best = {name: {side: min(values) for side, values in each.items()} for name, each in found.items()}
    lazy, ready = best["passes"]["lazy"], best["passes"]["preloaded"]
    sizes = sorted({predictor.image_size, 1024})
    return {
        "lazy_ms": lazy, "preloaded_ms": ready, "ratio": lazy / ready, "inside_ms": best["inside"]["lazy"],
        "inside_cpu_ms": best["inside_cpu"]["lazy"],
        "inside_cpu_share": best["inside_cpu"]["lazy"] / best["cpu"]["preloaded"],
        "cpu_ratio": best["cpu"]["lazy"] / best["cpu"]["preloaded"],
        "reading_alone": {side: reading_alone(source, side, predictor) for side in sizes},
        **{name: found[name] for name in ("passes", "cpu", "inside")},
    }  # fmt: skip


def reading_alone(source: Path, side: int, predictor: Any) -> dict[str, float]:
    """Return milliseconds a frame where nothing is tracked."""
    with FrameSource(source) as frames:
        images = Timed(LazyFrames(frames, side, predictor.device))
        start = time.perf_counter()
        for t in range(len(images)):
            images[t]
        elapsed = 1000 * (time.perf_counter() - start) / len(images)
        return {"ms": elapsed, "inside_cpu_ms": 1000 * images.used / len(images)}


def first_mask(predictor: Any, path: Path) -> dict[str, float]:
    """Return seconds until a long video can be prompted, and until its first two masks are there."""
    start = time.perf_counter()
    state = init_state(predictor, path)
    opened = time.perf_counter() - start
    predictor.add_new_points_or_box(state, 0, 1, box=np.array([30.0, 30.0, 90.0, 90.0]))
    with without_bars():
        tracking = predictor.propagate_in_video(state)
        next(tracking)
        next(tracking)
    seconds = {"frames": len(state["images"]), "opened_s": opened, "two_masks_s": time.perf_counter() - start}
    state["images"].source.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["micro", "tiny"], default="micro")
    parser.add_argument("--frames", type=int, help="default: 120, for tiny 4")
    parser.add_argument("--passes", type=int, help="default: 4, for tiny 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    small = args.model == "micro"
    frames, passes = args.frames or (120 if small else 4), args.passes or (4 if small else 1)
    predictor = load(args.model, args.device)
    found: dict[str, Any] = {
        "model": args.model, "image_size": predictor.image_size, "frames": frames, "frame_size": "854x480",
        "device": args.device, "torch_threads": torch.get_num_threads(), "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0], **surroundings(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        base = Path(folder)
        write_folder(base / "frames", frames_480p(frames))
        found["folder"] = take_turns(predictor, base / "frames", passes)
        if small:
            write_video(base / "clip.mp4", frames_480p(frames))
            write_video(base / "long.mp4", footage(10_000, 128)[0])
            found["video"] = take_turns(predictor, base / "clip.mp4", passes)
            found["first_mask"] = first_mask(predictor, base / "long.mp4")
    write_json(args.results / f"{args.model}.json", found)


if __name__ == "__main__":
    main()
