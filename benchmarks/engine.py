"""How to run: a plan's videos worked through in this process or in several; each result is on disk when it is done.

An engine is called with a plan and the names of the videos to work through, and calls `work` wherever it likes; what is
on disk when it returns is what there is.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch

from benchmarks.compare import beside
from benchmarks.datasets import Video
from benchmarks.models import shared_features
from benchmarks.plan import Plan, combinations, make_plan
from benchmarks.results import Run
from benchmarks.tracking import Tracked, frame_rows, object_rows, track
from benchmarks.video_page import write_video_page
from sam2_keyframe import KeyframeMemory

Engine = Callable[[Plan, Sequence[str]], None]


def main_run(options: argparse.Namespace) -> int:
    """Run one method; returns the exit code."""
    plan = replace(make_plan(options, [(options.method, options.set)], share=False), pages=True)
    code = carry_out(plan, options.workers)
    for line in beside(plan.runs[0][0].path):
        _say(line)
    return code


def main_sweep(options: argparse.Namespace) -> int:
    """Run the sweep; returns the exit code."""
    methods = combinations(options.method, options.base, options.set, options.grid)
    if options.set and options.method:
        given = f"--set {' '.join(options.set)} is for --base {options.base} alone"
        _say(f"note: {given}; {', '.join(options.method)} and the baselines run as they are")
    return carry_out(make_plan(options, methods, share=not options.timed), options.workers)


def carry_out(plan: Plan, workers: int = 1, engine: Engine | None = None) -> int:
    """Track what is not finished yet and write the metrics; returns 0, or 1 when a video failed.

    Args:
        plan: What to run.
        workers: In how many processes, unless an engine is given.
        engine: How to run it.

    Raises:
        ValueError: A results folder belongs to another version or configuration, or another process writes it.
        OSError: The results cannot be written.
    """
    engine = engine or (serial if workers == 1 else functools.partial(processes, workers=workers))
    with ExitStack() as locks:
        for run, _ in plan.runs:
            locks.enter_context(run.lock())
            run.prepare()
        if todo := [name for name in plan.dataset.names if not all(run.done(name) for run, _ in plan.runs)]:
            engine(plan, todo)
        return max([_conclude(run, plan.dataset.names) for run, _ in plan.runs], default=0)


def _conclude(run: Run, names: Sequence[str]) -> int:
    for name in names:
        if not run.done(name) and name not in run.failures():
            run.write_failure(name, RuntimeError("its worker process ended; was there too little memory?"))
    metrics = run.finish(names)
    for name, error in metrics["failed"].items():
        _say(f"failed: {name} under {run.label}: {error}")
    if metrics["objects"] and metrics["accuracy"]["jf"] is not None:
        shown = f"J&F {metrics['accuracy']['jf']:.1f}, {metrics['occupancy']['memory']['peak_mib']:.2f} MiB"
        _say(f"{run.label}: {shown} -> {run.path}")
    return int(bool(metrics["failed"]))


def serial(plan: Plan, names: Sequence[str]) -> None:
    """Work through videos in this process."""
    remaining = iter(names)
    work(plan, lambda: next(remaining, None))


def processes(plan: Plan, names: Sequence[str], workers: int) -> None:
    """Work through videos in several processes; one that dies takes its video along, no more."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    started = [context.Process(target=_work_process, args=(plan, names, counter)) for _ in range(workers)]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join()
    finally:
        for process in started:
            process.terminate()
            process.join()


def _work_process(plan: Plan, names: Sequence[str], counter: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def take() -> str | None:
        with counter.get_lock():
            counter.value += 1
            return names[counter.value - 1] if counter.value <= len(names) else None

    try:
        work(plan, take)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: that one held the locks."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def work(plan: Plan, take: Callable[[], str | None]) -> None:
    """Track videos until `take` names none; each is scored and written while the next is tracked."""
    torch.set_num_threads(plan.threads)
    predictor = plan.load_predictor()
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as scoring:
        while (name := take()) is not None:
            runs = [(run, method) for run, method in plan.runs if not run.done(name)]
            try:
                video = plan.dataset.open(name)
            except Exception as error:  # a video that fails must not end the run
                for run, _ in runs:
                    run.write_failure(name, error)
                continue
            with shared_features(predictor) if plan.share else nullcontext():
                for run, method in runs:
                    started = time.perf_counter()
                    try:
                        torch.manual_seed(plan.seed)
                        tracked = track(predictor, video, method, timed=not plan.share)
                    except Exception as error:
                        run.write_failure(name, error)
                        continue
                    seconds = time.perf_counter() - started
                    if pending is not None:
                        pending.result()  # at most one video waits for its scores
                    pending = scoring.submit(_score, run, video, tracked, seconds, method if plan.pages else None)


def _score(run: Run, video: Video, tracked: Tracked, seconds: float, shown: KeyframeMemory | None) -> None:
    try:
        frames = frame_rows(video, tracked)
        objects = object_rows(video, frames)
        run.write_video(video.name, frames, objects, tracked)
        if shown is not None:
            write_video_page(run.path / "videos" / video.name, video, tracked, frames, run.label, shown)
        accuracy = " ".join(f"{100 * row['jf']:.1f}" for row in objects)
        _say(f"{video.name}  {run.label}  J&F {accuracy}  {seconds:.1f} s")
    except Exception as error:
        run.write_failure(video.name, error)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
