"""Two workers of Ray against one: how much of their processor time goes into tracking, and how even it is.

    python -m benchmarks.studies.scale --clips 8

Clips are tracked in turn by one worker and by two, each time on a Ray started for it. On a machine with other work wall
time says little, so each task tells what processor time its worker took for it: with two workers, the time to the end
is that of the busier one. Efficiency is time of one worker / (2 x time of the busier of two); beside it wall time.
Written to `results/scale/README.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks import tables
from benchmarks.datasets import Synthetic
from benchmarks.models import load_predictor
from benchmarks.results import write_text
from benchmarks.tracking import track
from sam2_keyframe.app.workers import Engine
from sam2_keyframe.methods import make_method

RESULTS = Path(__file__).parents[1] / "results" / "scale"


@dataclass(frozen=True)
class Timed:
    """Makes a worker that tracks a clip and tells its process and the processor seconds.

    Attributes:
        data: The clips.
    """

    data: Synthetic

    def __call__(self) -> Callable[[str], Any]:
        torch.set_num_threads(1)
        predictor, method = load_predictor(None, "cpu", 128), make_method("keyframe")

        def work(name: str) -> tuple[int, float]:
            began = time.process_time()
            track(predictor, self.data.open(name), method, timed=False)
            return os.getpid(), time.process_time() - began

        return work


def measure(data: Synthetic, workers: int) -> tuple[list[float], float]:
    """Return the processor seconds of each worker, the busiest first, and the wall time from first task to last."""
    spent: dict[int, float] = {}
    began = time.perf_counter()
    for name, result in Engine("ray", workers).run(data.names, Timed(data)):
        if not isinstance(result, tuple):
            raise RuntimeError(f"{name}: {result.error}")
        spent[result[0]] = spent.get(result[0], 0.0) + result[1]
    return sorted(spent.values(), reverse=True), time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="clips (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="frames a clip (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="times that each is measured (default: %(default)s)")
    options = parser.parse_args(arguments)
    data = Synthetic("dev", ("occlusion",), options.clips, options.frames, 128)
    rows = []
    for repeat in range(options.repeats):
        (one, *_), wall_one = measure(data, 1)
        two, wall_two = measure(data, 2)
        spent = " + ".join(f"{seconds:.1f}" for seconds in two)
        rows.append(
            [
                *(f"{repeat + 1}", f"{one:.1f} s", f"{spent} s", f"{100 * one / (2 * two[0]):.0f} %"),
                *(f"{100 * one / sum(two):.0f} %", f"{wall_one:.0f} s, {wall_two:.0f} s", f"{os.getloadavg()[0]:.0f}"),
            ]
        )
        sys.stderr.write(f"{rows[-1]}\n")
    head = ["repeat", "one worker", "two workers", "efficiency", "of it time a task", "wall time", "load"]
    lines = [
        "# Two workers of Ray against one",
        "",
        f"{options.clips} clips of {options.frames} frames at 128 px, micro model, method `keyframe`, one thread a "
        f"worker, {os.cpu_count()} cores. Processor seconds in the workers, without loading; efficiency: one worker / "
        "(2 x the busier of two), of which the time a task (one / sum of both) is one part and evenness the other. "
        "Wall time of one and of two workers, with the start of Ray; load: of the machine at the end. Made by "
        f"`python -m benchmarks.studies.scale --clips {options.clips} --frames {options.frames}`.",
        "",
        *tables.markdown(head, rows),
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / "README.md", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
