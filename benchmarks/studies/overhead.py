"""What the plugin itself costs: time inside our code, and device bytes over 300 frames.

    python -m benchmarks.studies.overhead time|bytes|selection     # writes overhead/*.json

Time: two equal predictors, one of them wrapped, track the same clip frame by frame in turn; the attended memories are
pinned to stock's, so that fewer of them cannot hide the cost. Bytes: the 300 frames are one clip repeated forth and
back. Selection: every method's choices on the micro model, at frame 100 and at the last one.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import sam2_keyframe as sk
from benchmarks.models import random_official
from benchmarks.results import write_json
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches.wrapping import Wrapping
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.video.source import init_state, without_bars

RESULTS = Path(__file__).parent / "overhead"
PINNED = {"window": sk.make_method("window"), "keyframe": sk.make_method("keyframe", change=~sk.Always())}


class Clock:
    """Seconds spent in our wrappers, the host's own methods inside them left out."""

    def __init__(self) -> None:
        self.own = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time every wrapper that is put in place in this block."""
        wrap = Wrapping.wrap

        def timed_wrap(wrapping: Wrapping, name: str, wrapper: Callable[..., Any]) -> None:
            def timed(original: Callable[..., Any], call: Any) -> Any:
                inside = 0.0

                def host(*args: Any, **kwargs: Any) -> Any:
                    nonlocal inside
                    start = time.perf_counter()
                    try:
                        return original(*args, **kwargs)
                    finally:
                        inside += time.perf_counter() - start

                start = time.perf_counter()
                result = wrapper(host, call)
                self.own += time.perf_counter() - start - inside
                return result

            wrap(wrapping, name, timed)

        with mock.patch.object(Wrapping, "wrap", timed_wrap):
            yield


def load(model: str, device: str) -> Any:
    """Return the embedded model, or the official tiny architecture with random weights at 1024 px."""
    return load_micro_predictor(device) if model == "micro" else random_official("tiny", device)


def start(predictor: Any, frames: Any, mask: Any) -> tuple[Any, Any]:
    """Return a state with the first mask given, and its tracking."""
    state = init_state(predictor, frames)
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(mask))
    return state, predictor.propagate_in_video(state)


def measure_time(model: str, device: str, frames: int) -> dict[str, Any]:
    """Return, by method, our share of the frame's time and the ratio to the unwrapped predictor."""
    clip = make_clip("deformation", seed=1, frames=frames, size=256)
    bare = load(model, device)
    found: dict[str, Any] = {}
    for name, method in PINNED.items():
        ours, clock = copy.deepcopy(bare), Clock()
        with clock.running():
            sk.wrap(ours, method)
        tracks = [start(predictor, clip.frames, clip.masks[0] == 1)[1] for predictor in (bare, ours)]
        rows = []
        for _ in range(frames):
            clock.own, pair = 0.0, []
            for track in tracks:
                began = time.perf_counter()
                next(track)
                if device == "cuda":
                    torch.cuda.synchronize()
                pair.append(time.perf_counter() - began)
            rows.append((*pair, clock.own))
        late = rows[max(1, frames // 4) :]
        stock, inside = (statistics.median(row[i] for row in late) for i in (0, 2))
        found[name] = {
            "stock_ms": 1000 * stock,
            "own_ms": 1000 * inside,
            "share_percent": 100 * inside / stock,
            "ratio": statistics.median(wrapped / bare for bare, wrapped, _ in late),
            "method": repr(method),
        }
    return found


def measure_selection(device: str, frames: int, methods: list[str]) -> dict[str, Any]:
    """Return, by method, our share of the micro model's frame at frame 100 and at the last one, and the ratio."""
    clip = make_clip("deformation", seed=2, frames=50, size=256)
    order = back_and_forth(len(clip.frames), frames)
    found: dict[str, Any] = {}
    for name in methods:
        predictor, clock = load("micro", device), Clock()
        with clock.running():
            sk.wrap(predictor, name, **({"frames": (10, 20, 30)} if name in sk.NON_CAUSAL else {}))
        _, track = start(predictor, clip.frames[order], clip.masks[0] == 1)
        own, total = [], []
        for _ in range(frames):
            clock.own, began = 0.0, time.perf_counter()
            next(track)
            total.append(time.perf_counter() - began)
            own.append(clock.own)
        early, late = (statistics.median(own[part]) for part in (slice(80, 121), slice(frames - 41, None)))
        found[name] = {
            "own_ms_at_100": 1000 * early,
            "share_percent_at_100": 100 * early / statistics.median(total[80:121]),
            f"own_ms_at_{frames}": 1000 * late,
            "later_over_earlier": late / early,
        }
    return found


def back_and_forth(count: int, frames: int) -> list[int]:
    """Return the order of `frames` frames that play a clip of `count` forth and back."""
    turn = 2 * count - 2
    return [min(i % turn, turn - i % turn) for i in range(frames)]


def real_clip(folder: Path, mask: Path) -> tuple[Any, Any]:
    """Return the frames of a folder, (T, H, W, 3) uint8, and the first object's mask from a palette PNG."""
    with sk.FrameSource(folder) as source:
        frames = np.stack([source.frame(index) for index in range(len(source))])
    return frames, (np.asarray(Image.open(mask)) == 1)


def measure_bytes(device: str, frames: int, clip: tuple[Any, Any]) -> dict[str, Any]:
    """Return, by method, the device bytes of one object's memory after each frame, as the statistics count them."""
    images, mask = clip
    order = back_and_forth(len(images), frames)
    predictor, found = load("micro", device), {}
    for name in ("stock", "window", "keyframe"):
        with sk.wrap(predictor, name):
            state, track = start(predictor, images[order], mask)
            for _ in track:
                pass
        rows = list(sk.memory_stats(state)[1].rows)
        found[name] = {
            "nbytes": [row.memory.nbytes for row in rows],
            "host_nbytes": rows[-1].host_nbytes,
            "frames_held": [row.memory.frames for row in rows],
        }
    return found


def main() -> None:
    """Measure and write one file a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "bytes", "selection"])
    parser.add_argument("--model", choices=["micro", "tiny"], default="micro", help="tiny: random weights, 1024 px")
    parser.add_argument("--device", default="cpu")
    lengths = "60 for micro, 12 for tiny, 300 for bytes, 160 for selection"
    parser.add_argument("--frames", type=int, default=0, help=lengths)
    parser.add_argument("--methods", nargs="+", default=list(sk.METHODS), help="for selection")
    parser.add_argument("--clip", nargs=2, type=Path, metavar=("FRAMES", "MASK"), help="bytes on a clip of your own")
    options = parser.parse_args()
    default = {"bytes": 300, "selection": 160}.get(options.what, 60 if options.model == "micro" else 12)
    frames = options.frames or default
    with without_bars():
        if options.what == "time":
            results = measure_time(options.model, options.device, frames)
        elif options.what == "selection":
            results = measure_selection(options.device, frames, options.methods)
        else:
            made = make_clip("deformation", seed=2, frames=50, size=256)
            clip = real_clip(*options.clip) if options.clip else (made.frames, made.masks[0] == 1)
            results = measure_bytes(options.device, frames, clip)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {options.device}"
    name = options.clip[0].name if options.clip else options.model
    length = f"_{frames}" if options.what == "selection" else ""
    told = {"frames": frames, "machine": machine, "torch": torch.__version__, "results": results}
    write_json(RESULTS / f"{options.what}{length}_{name}_{options.device}.json", told)


if __name__ == "__main__":
    main()
