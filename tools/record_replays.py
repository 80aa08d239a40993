"""Write what `tests/test_recorded_replays.py` expects: recordings of runs, and what each method makes of them.

In use, from the root of a checkout whose behaviour is to be kept::

    PYTHONPATH=. python tools/record_replays.py tests/data            # runs, recordings and rows anew
    PYTHONPATH=. python tools/record_replays.py tests/data dam4sam    # rows of some methods over the recordings there

Each clip is tracked once by the micro model under `stock`; the recording goes to ``NAME.npz.gz``. Then every method is
replayed over it, and its rows go to ``replays.json.gz``. A method that a replay refuses has no rows there. Run this
again only where a change of the rows is meant, and say in the commit which rows changed and why.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import compare_versions as live
import torch

import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip

RUNS = {"occlusion": False, "leave_and_return": True, "look_alike": False, "late_prompt": True}
"""Clips of `compare_versions`, and whether they are tracked in reverse."""

FRAMES, SIZE = 24, 128


def rows(recording: Any, method: str, frames: Any = None) -> dict[str, list[Any]] | None:
    """Return what a method makes of a recording, a row a frame by object; None where a replay refuses it.

    A row: frame, frames attended, keyframe, evicted, significance (None where unknown), memories held, bytes, tokens.
    """
    try:
        result = sk.replay(frames, recording, method, **live.ARGUMENTS.get(method, {}))
    except ValueError:
        return None
    return {
        str(obj_id): [
            [row.frame_idx, list(row.attended), row.keyframe, list(row.evicted), known(row.significance), *taken(row)]
            for row in stats.rows
        ]
        for obj_id, stats in result.stats.items()
    }


def taken(row: Any) -> tuple[int, int, int]:
    """Return the memories held, the bytes and the tokens of a row."""
    return row.memory.frames, row.memory.nbytes, row.memory.tokens


def known(value: float) -> float | None:
    """Return a number, or None for NaN, which equals nothing."""
    return None if value != value else float(value)


def load(folder: Path, name: str) -> Any:
    """Return a recording that was written."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "recording.npz")
        file.write_bytes(gzip.decompress((folder / f"{name}.npz.gz").read_bytes()))
        return sk.Recording.load(file)


def track(folder: Path) -> None:
    """Run the clips and write their recordings."""
    predictor = load_micro_predictor(image_size=SIZE)
    for name, reverse in RUNS.items():
        challenge, seed, objects = live.CLIPS[name]
        clip = make_clip(challenge, seed, frames=FRAMES, size=SIZE, objects=objects, photos=False)
        state = sk.init_state(predictor, clip.frames)
        with sk.wrap(predictor, "stock"), sk.record(predictor, state) as recording:
            for _ in live.session(predictor, state, clip.masks, reverse, name == "late_prompt"):
                pass
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "recording.npz")
            recording.save(file)
            (folder / f"{name}.npz.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))


def main(folder: Path, methods: list[str]) -> None:
    """Write recordings and rows, or the rows of some methods over the recordings that are there."""
    torch.set_num_threads(1)
    file, expected = folder / "replays.json.gz", {name: {} for name in RUNS}
    if methods:
        expected = json.loads(gzip.decompress(file.read_bytes()))
    else:
        track(folder)
    for name, known_rows in expected.items():
        recording = load(folder, name)
        known_rows |= {method: rows(recording, method) for method in methods or sk.METHODS}
    file.write_bytes(gzip.compress(json.dumps(expected).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
