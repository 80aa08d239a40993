"""10,000 frames in constant memory: measure a file, a stream and stock SAM 2, each in a process of its own.

    python -m benchmarks.studies.long_video run       # writes {file,stream,stock}.csv, then the report
    python -m benchmarks.studies.long_video report    # summary.json and memory.png from those files

Columns, every 100 frames: `frames_mib` pixels held, `bank_mib` memories and mask logits that the state holds,
`books_mib` SAM 2's bookkeeping and our statistics, `entries` stored frames, `rss_mib` the resident size; every
1,000 frames also `objects` and `tensors`, the live Python objects and tensors after a collection, and `tensor_mib`, the
latter's bytes. The footage repeats every 250 frames, so that what is held can be the same, and not only as much, every
1,000 frames. `report` ends with an error where file or stream are not flat (`judge`).
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "long_video"
KINDS = ("file", "stream", "stock")
BOOKS = ("point_inputs_per_obj", "mask_inputs_per_obj", "frames_tracked_per_obj")
COLUMNS = ("frames_mib", "bank_mib", "books_mib", "entries", "rss_mib", "objects", "tensors", "tensor_mib")
MIB = 2**20
LOOP = 126  # frames of the clip that is played forth and back: a period of 250


def footage(count: int, size: int = 128, loop: int = LOOP) -> tuple[Iterator[NDArray[np.uint8]], NDArray[np.bool_]]:
    """Return `count` frames of a generated clip of `loop` played forth and back, and the object's mask on the first."""
    from sam2_keyframe.synthetic import make_clip

    clip = make_clip("leave_and_return", seed=3, frames=loop, size=size, objects=1)
    turn = [*range(loop), *range(loop - 2, 0, -1)]
    return (clip.frames[t] for t in itertools.islice(itertools.cycle(turn), count)), clip.masks[0] == 1


def write_video(path: Path, frames: Iterator[NDArray[np.uint8]]) -> None:
    """Encode frames as H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_folder(folder: Path, frames: Iterator[NDArray[np.uint8]]) -> None:
    """Write JPEGs; a frame that recurs is a hard link, so that the disk holds each once."""
    from PIL import Image

    folder.mkdir()
    known: dict[bytes, Path] = {}
    for t, frame in enumerate(frames):
        path = folder / f"{t:06d}.jpg"
        key = frame.tobytes()
        if key in known:
            os.link(known[key], path)
        else:
            Image.fromarray(frame).save(path, quality=95)
            known[key] = path


def outputs(
    kind: str, predictor: Any, count: int, folder: Path, loop: int = LOOP
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Track `count` frames; yield each frame's index and the inference state."""
    import sam2_keyframe as sk
    from sam2_keyframe.video.source import init_state, without_bars
    from sam2_keyframe.video.stream import Stream

    frames, mask = footage(count if kind != "file" else count + 32, loop=loop)  # to the end, frames are read ahead
    if kind == "stream":
        with Stream(predictor, "keyframe") as stream:
            for t, frame in enumerate(frames):
                stream.step(frame, masks={1: mask} if t == 0 else None)
                yield t, stream._state or {}
        return
    with without_bars():
        if kind == "file":
            write_video(folder / "long.mp4", frames)
            state = init_state(predictor, folder / "long.mp4")
            sk.wrap(predictor, "keyframe", keep_masks=False)
        else:
            write_folder(folder / "frames", frames)
            state = predictor.init_state(str(folder / "frames"))
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(mask))
        for t, _, _ in predictor.propagate_in_video(state, max_frame_num_to_track=count - 1):
            yield t, state


def frame_bytes(images: Any) -> int:
    """Return the bytes of pixels that a state's `images` hold, once the frames ahead are there."""
    if not hasattr(images, "source"):
        return sum(image.nbytes for image in images.values()) if isinstance(images, dict) else int(images.nbytes)
    full, end = 19 * 3 * images.image_size**2, time.monotonic() + 5  # two frames behind, the current one, 16 ahead
    while images.source.held_bytes < full and time.monotonic() < end:
        time.sleep(0.01)
    return int(images.source.held_bytes)


def python_bytes(roots: Iterable[Any]) -> int:
    """Return the bytes of everything that can be reached from some objects, tensors and code left out."""
    seen: set[int] = set()
    total, todo = 0, list(roots)
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType | torch.Tensor):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        todo.extend(gc.get_referents(each))
    return total


def measure(state: dict[str, Any]) -> dict[str, float]:
    """Return what the state and the process hold now."""
    import sam2_keyframe as sk

    entries = [
        entry
        for output_dict in state["output_dict_per_obj"].values()
        for key in ("cond_frame_outputs", "non_cond_frame_outputs")
        for entry in output_dict[key].values()
    ]
    stored = {
        id(value): value.nbytes for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)
    }
    records = [per for name in BOOKS for per in state[name].values()]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "frames_mib": frame_bytes(state["images"]) / MIB,
        "bank_mib": sum(stored.values()) / MIB,
        "books_mib": python_bytes([*records, *sk.memory_stats(state).values()]) / MIB,
        "entries": len(entries),
        "rss_mib": resident / MIB,
    }


def live() -> dict[str, float]:
    """Return the live Python objects and tensors."""
    gc.collect()
    objects = gc.get_objects()
    nbytes = [o.nbytes for o in objects if type(o) is torch.Tensor]
    return {"objects": len(objects), "tensors": len(nbytes), "tensor_mib": sum(nbytes) / MIB}


def run(
    kind: str, results: Path, count: int = 10_000, image_size: int = 64, every: int = 1000, loop: int = LOOP
) -> None:
    """Measure one kind in this process; live objects are counted every so many frames, the rest ten times as often."""
    from sam2_keyframe.micro import load_micro_predictor

    torch.set_num_threads(1)
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (results / f"{kind}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["frame", *COLUMNS, "seconds"], restval="")
        table.writeheader()
        start = 0.0
        predictor = load_micro_predictor(image_size=image_size)
        for t, state in outputs(kind, predictor, count, Path(folder), loop):
            start = start or time.perf_counter()
            if (t + 1) % (every // 10) == 0:
                row = {"frame": t + 1, "seconds": time.perf_counter() - start, **measure(state)}
                row.update(live() if (t + 1) % every == 0 else {})
                table.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
                file.flush()


def read(kind: str, results: Path) -> list[dict[str, float]]:
    """Return the rows of a kind; a cell that is empty is left out."""
    with (results / f"{kind}.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def summarise(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return range and slope of each column from a fifth of the run on (10,000 frames: frame 2,000)."""
    last = rows[-1]["frame"]
    warm = [row for row in rows if row["frame"] >= last / 5]
    found: dict[str, Any] = {"frames": int(last), "seconds": rows[-1]["seconds"]}
    for row in warm:
        row["held_mib"] = row["frames_mib"] + row["bank_mib"] + row["books_mib"]
    for name in ("held_mib", *COLUMNS):
        x, y = np.array([(row["frame"], row[name]) for row in warm if name in row]).T
        slope = 1000 * float(np.polyfit(x, y, 1)[0])
        found[name] = {"min": y.min(), "max": y.max(), "first": y[0], "last": y[-1], "per_1000_frames": round(slope, 4)}
    return found


def judge(found: dict[str, Any], within: float = 0.01) -> dict[str, bool]:
    """Return what is claimed of a run in constant memory, and whether its summary bears it out."""
    spread = {
        name: found[name]["max"] - found[name]["min"] for name in ("held_mib", "objects", "tensors", "tensor_mib")
    }
    claims = {
        "bytes of frames, bank and bookkeeping constant within 1 %": spread["held_mib"]
        <= within * found["held_mib"]["min"],
        "live Python objects the same at each count (at most 5 apart: locks of waiting threads)": spread["objects"]
        <= 5,
        "live tensors the same at each count": spread["tensors"] == 0,
        "tensor bytes the same at each count": spread["tensor_mib"] == 0,
        "resident size flat: at most 0.1 MiB in 1,000 frames": abs(found["rss_mib"]["per_1000_frames"]) <= 0.1,
    }
    return {claim: bool(holds) for claim, holds in claims.items()}


def report(results: Path) -> None:
    """Write `summary.json` and `memory.png` from the CSV files.

    Raises:
        SystemExit: File or stream are not in constant memory.
    """
    from matplotlib.figure import Figure

    tables = {kind: read(kind, results) for kind in KINDS if (results / f"{kind}.csv").is_file()}
    found = {kind: summarise(rows) for kind, rows in tables.items()}
    for summary in found.values():
        summary["holds"] = judge(summary)
    (results / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    figure = Figure(figsize=(11, 3.8), dpi=120, layout="constrained")
    titles = {"frames_mib": "pixels held, MiB", "bank_mib": "memories held, MiB", "rss_mib": "resident size, MiB"}
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for kind, rows in tables.items():
            axes.plot([row["frame"] for row in rows], [row[name] for row in rows], label=kind)
        axes.set(title=title, xlabel="frames tracked")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(results / "memory.png")
    wrong = [f"{k}: {claim}" for k in found if k != "stock" for claim, holds in found[k]["holds"].items() if not holds]
    if wrong:
        raise SystemExit("not so: " + "; ".join(wrong))


def main() -> None:
    from benchmarks.results import surroundings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "run":
        for kind in args.kinds:
            options = (kind, args.results, args.frames, args.image_size)
            process = multiprocessing.get_context("spawn").Process(target=run, args=options)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)
        config = {
            "frames": args.frames, "image_size": args.image_size, "model": "micro", "method": "keyframe",
            "footage": f"generated clip of {LOOP} frames, 128x128, forth and back", "threads": 1, "device": "cpu",
            **surroundings(),
        }  # fmt: skip
        (args.results / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    report(args.results)


if __name__ == "__main__":
    main()
