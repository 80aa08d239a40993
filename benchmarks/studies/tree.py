"""What three paths cost and give beside one: `sam2long_tree` and `sam2long` on generated clips.

    python -m benchmarks.studies.tree --clips 3

Development clips, one object, prompted with its exact mask. Both methods run in turn in one process; time is that of
the processor. What is finished stays: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sam2_keyframe as sk
from benchmarks import tables
from benchmarks.compare import Difference, interval
from benchmarks.datasets import SEEDS
from benchmarks.metrics import score_masks
from benchmarks.tracking import MIB
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip

RESULTS = Path(__file__).with_suffix("")
CHALLENGES = ("occlusion", "leave_and_return", "look_alike")
THETA = 0.1
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "one path": ("sam2long", {"theta": THETA}),
    "three paths, shown at once": ("sam2long_tree", {"theta": THETA}),
    "three paths, never sure": ("sam2long_tree", {"theta": THETA, "sure": 1e9}),
}
NOTE = f"""\
Micro model, 256 px, one object, theta {THETA}. J&F in percent; time is the processor's, as a ratio to one path's on the
same clip, the median over the clips; memories, MiB and keys are the most that were held or read on a frame. Made by
`python -m benchmarks.studies.tree`."""


def track(predictor: Any, clip: Any, method: str, choices: dict[str, Any]) -> dict[str, float]:
    """Return J&F, seconds, and what was held and read at most."""
    with sk.wrap(predictor, method, **choices):
        state = sk.init_state(predictor, clip.frames)
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        began = time.process_time()
        masks = [logits[0, 0].cpu().numpy() > 0 for _, _, logits in predictor.propagate_in_video(state)]
        seconds = time.process_time() - began
        stats = sk.memory_stats(state)[1]
    found = score_masks(masks, list(clip.masks == 1))
    most = {"memories": stats.peak_frames, "mib": stats.peak_bytes / MIB, "keys": stats.peak_tokens}
    return {"jf": 100 * found.jf, "seconds": seconds, **most}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a page."""
    clips = sorted({row["clip"] for row in rows})
    found = {(row["method"], row["clip"]): row for row in rows}
    clips = [clip for clip in clips if all((method, clip) in found for method in METHODS)]
    head = ["", "J&F", "against one path", "time", "memories", "MiB", "keys"]
    cells = []
    for method in METHODS:
        mine, one = ([found[name, clip] for clip in clips] for name in (method, "one path"))
        gains = [a["jf"] - b["jf"] for a, b in zip(mine, one, strict=True)]
        ratio = float(np.median([a["seconds"] / b["seconds"] for a, b in zip(mine, one, strict=True)]))
        most = [max(row[key] for row in mine) for key in ("memories", "mib", "keys")]
        versus = "" if method == "one path" else tables.interval(Difference(*interval(gains), len(gains)))
        jf = float(np.mean([row["jf"] for row in mine]))
        cells.append([method, f"{jf:.1f}", versus, f"{ratio:.2f}", f"{most[0]}", f"{most[1]:.2f}", f"{most[2]}"])
    lines = ["# Three paths beside one", "", NOTE, "", f"{len(clips)} development clips:", ""]
    return "\n".join([*lines, *tables.markdown(head, cells)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and write rows and table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3, help="of each challenge (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    file, predictor = options.results / "rows.json", load_micro_predictor()
    rows = json.loads(file.read_text()) if file.exists() else []
    for seed in range(SEEDS["dev"], SEEDS["dev"] + options.clips):
        for challenge in CHALLENGES:
            name = f"{challenge}-{seed}"
            clip = make_clip(challenge, seed=seed, frames=options.frames)
            for label, (method, choices) in METHODS.items():
                if not any((row["method"], row["clip"]) == (label, name) for row in rows):
                    rows.append({"method": label, "clip": name, **track(predictor, clip, method, choices)})
                    file.write_text(json.dumps(rows, indent=1) + "\n")
    (options.results / "README.md").write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
