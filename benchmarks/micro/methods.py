"""Compare memory methods on the micro model: 30 long occlusion clips, paired by clip.

    python -m benchmarks.micro.methods          # writes benchmarks/results/micro/methods.json

Methods in ``EQUAL`` attend to equally many memories; the difference between the best and the worst of them, with a
bootstrap interval over clips, says whether the model can tell a good policy from a bad one. Interrupted, it goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sam2_keyframe
from benchmarks.compare import interval
from benchmarks.micro import clips as fixed
from benchmarks.micro.evaluate import RESULTS, load, score, track
from sam2_keyframe.synthetic import make_clip

log = logging.getLogger("micro.methods")
EQUAL = ("window", "every_nth", "random", "keyframe")
"""Methods that fill all of the model's slots: one prompt and six memories."""


def measure(seed: int, methods: list[str], weights: Path | None) -> dict[str, float]:
    """J&F of each method on one clip."""
    if weights not in _loaded:
        torch.set_num_threads(1)
        _loaded[weights] = load(weights)
    predictor = _loaded[weights]
    clip = make_clip(fixed.LONG_CHALLENGE, seed, fixed.LONG_FRAMES, fixed.SIZE)
    found = {}
    for name in methods:
        with sam2_keyframe.wrap(predictor, name):
            masks = track(predictor, clip.frames, clip.masks[0])
        found[name] = round(sum(score(masks, clip.masks)) / 2, 3)
    return found


_loaded: dict[Path | None, Any] = {}


def summarise(rows: list[dict[str, Any]], methods: list[str]) -> dict[str, Any]:
    """Means, and the paired difference of the best and the worst of equally many memories."""
    means = {name: round(float(np.mean([r["J&F"][name] for r in rows])), 2) for name in methods}
    equal = sorted((name for name in methods if name in EQUAL), key=lambda name: means[name])
    result: dict[str, Any] = {"mean J&F": means, "clips": len(rows)}
    if len(equal) > 1:
        worst, best = equal[0], equal[-1]
        gaps = [r["J&F"][best] - r["J&F"][worst] for r in rows]
        result["best against worst of equally many memories"] = [
            best,
            worst,
            *(round(part, 2) for part in interval(gaps)),
        ]
    return result | {"rows": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[*EQUAL])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="a training checkpoint")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    missing = [seed for seed in fixed.LONG_SEEDS if seed not in {row["seed"] for row in rows}]
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        tasks = {pool.submit(measure, seed, args.methods, args.weights): seed for seed in missing}
        for task in as_completed(tasks):
            rows.append({"seed": tasks[task], "J&F": task.result()})
            rows.sort(key=lambda row: row["seed"])
            log.info("%s", rows[-1])
            args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    result = summarise(rows, args.methods)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    log.info("%s", json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))


if __name__ == "__main__":
    main()
