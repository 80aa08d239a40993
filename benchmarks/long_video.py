"""10,000 frames in constant memory: measure a file, a stream and stock SAM 2, each in a process of its own.

    python -m benchmarks.long_video run       # writes results/long_video/{file,stream,stock}.csv
    python -m benchmarks.long_video report    # summary.json and memory.png from those files

Columns: `frames_mib` pixels held, `bank_mib` memories and masks of the state, `entries` stored frames, `bookkeeping`
per-frame records of the state, `rss_mib` the process's resident size; every 1,000 frames also `objects` and
`tensors`, the live Python objects and tensors after a collection, and `tensor_mib`, the latter's bytes.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results" / "long_video"
KINDS = ("file", "stream", "stock")
MIB = 2**20
LOOP = 200  # frames of the clip that is played forth and back


def footage(count: int, size: int = 128) -> tuple[Iterator[NDArray[np.uint8]], NDArray[np.bool_]]:
    """Return `count` frames of a generated clip played forth and back, and the object's mask on the first."""
    from sam2_keyframe.synthetic import make_clip

    clip = make_clip("occlusion", seed=3, frames=LOOP, size=size, objects=1)
    turn = [*range(LOOP), *range(LOOP - 2, 0, -1)]
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


def outputs(kind: str, predictor: Any, count: int, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Track `count` frames; yield each frame's index and the inference state."""
    import sam2_keyframe as sk
    from sam2_keyframe.stream import Stream
    from sam2_keyframe.video import init_state, without_bars

    frames, mask = footage(count)
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
        for t, _, _ in predictor.propagate_in_video(state):
            yield t, state


def frame_bytes(images: Any) -> int:
    """Return the bytes of pixels that a state's `images` hold."""
    if hasattr(images, "source"):
        return int(images.source.held_bytes)
    return sum(image.nbytes for image in images.values()) if isinstance(images, dict) else int(images.nbytes)


def measure(state: dict[str, Any]) -> dict[str, float]:
    """Return what the state and the process hold now."""
    entries = [
        entry
        for output_dict in state["output_dict_per_obj"].values()
        for key in ("cond_frame_outputs", "non_cond_frame_outputs")
        for entry in output_dict[key].values()
    ]
    names = ("maskmem_features", "pred_masks", "obj_ptr", "object_score_logits")
    stored = {id(entry[n]): entry[n].nbytes for entry in entries for n in names if entry[n] is not None}
    books = ("point_inputs_per_obj", "mask_inputs_per_obj", "frames_tracked_per_obj")
    records = [per for name in books for per in state[name].values() if isinstance(per, dict)]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "frames_mib": frame_bytes(state["images"]) / MIB,
        "bank_mib": sum(stored.values()) / MIB,
        "entries": len(entries),
        "bookkeeping": sum(map(len, records)),
        "rss_mib": resident / MIB,
    }


def live() -> dict[str, float]:
    """Return the live Python objects and tensors."""
    time.sleep(0.3)  # the frames ahead are there
    gc.collect()
    objects = gc.get_objects()
    nbytes = [o.nbytes for o in objects if type(o) is torch.Tensor]
    return {"objects": len(objects), "tensors": len(nbytes), "tensor_mib": sum(nbytes) / MIB}


def run(kind: str, count: int, image_size: int, results: Path) -> None:
    """Measure one kind in this process."""
    from sam2_keyframe.micro import load_micro_predictor

    torch.set_num_threads(1)
    results.mkdir(parents=True, exist_ok=True)
    columns = ["frame", "frames_mib", "bank_mib", "entries", "bookkeeping", "rss_mib", "objects", "tensors"]
    with tempfile.TemporaryDirectory() as folder, (results / f"{kind}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*columns, "tensor_mib", "seconds"], restval="")
        table.writeheader()
        start = 0.0
        for t, state in outputs(kind, load_micro_predictor(image_size=image_size), count, Path(folder)):
            start = start or time.perf_counter()
            if t % 100 == 99:
                row = {"frame": t + 1, "seconds": time.perf_counter() - start}
                row.update(live() if t % 1000 == 999 else {})
                row.update(measure(state))
                table.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                file.flush()


def read(kind: str, results: Path) -> list[dict[str, float]]:
    """Return the rows of a kind; a cell that is empty is left out."""
    with (results / f"{kind}.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def summarise(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return range and slope of each column after frame 2,000 (the first fifth of a shorter run)."""
    last = rows[-1]["frame"]
    warm = [row for row in rows if row["frame"] >= min(2000, last / 5)]
    found: dict[str, Any] = {"frames": int(last)}
    for name in ("frames_mib", "bank_mib", "entries", "bookkeeping", "rss_mib", "objects", "tensors", "tensor_mib"):
        points = [(row["frame"], row[name]) for row in warm if name in row]
        if len(points) > 1:
            x, y = np.array(points).T
            slope = 1000 * float(np.polyfit(x, y, 1)[0])
            found[name] = {
                "min": y.min(), "max": y.max(), "first": y[0], "last": y[-1], "per_1000_frames": round(slope, 4)
            }  # fmt: skip
    return found


def report(results: Path) -> None:
    """Write `summary.json` and `memory.png` from the CSV files."""
    from matplotlib.figure import Figure

    tables = {kind: read(kind, results) for kind in KINDS if (results / f"{kind}.csv").is_file()}
    (results / "summary.json").write_text(
        json.dumps({k: summarise(rows) for k, rows in tables.items()}, indent=1) + "\n"
    )
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--here", action="store_true", help="run the first kind in this process")
    args = parser.parse_args()
    if args.what == "run" and args.here:
        run(args.kinds[0], args.frames, args.image_size, args.results)
        return
    if args.what == "run":
        for kind in args.kinds:
            options = [
                "--frames",
                str(args.frames),
                "--image-size",
                str(args.image_size),
                "--results",
                str(args.results),
            ]
            command = [sys.executable, "-m", "benchmarks.long_video", "run", "--here", "--kinds", kind, *options]
            subprocess.run(command, check=True)
        config = {
            "frames": args.frames, "image_size": args.image_size, "model": "micro", "method": "keyframe",
            "footage": f"generated clip of {LOOP} frames, 128x128, forth and back", "threads": 1,
            "torch": torch.__version__, "python": platform.python_version(), "device": "cpu",
        }  # fmt: skip
        (args.results / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    report(args.results)


if __name__ == "__main__":
    main()
