"""How to run: a plan's videos worked through in this process or in several; each result is on disk when it is done.

An engine is called with a plan and the names of the videos to work through, and calls `work` wherever it likes; what is
on disk when it returns is what there is.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.compare import beside
from benchmarks.datasets import Video
from benchmarks.models import shared_features
from benchmarks.plan import Plan, combinations, make_plan
from benchmarks.remote import local_copy
from benchmarks.results import Run
from benchmarks.tracking import Tracked, frame_rows, object_rows, track
from benchmarks.video_page import write_video_page
from sam2_keyframe import KeyframeMemory
from sam2_keyframe.app.workers import Engine as Workers
from sam2_keyframe.app.workers import Failure, connect, end_with_parent, engine_of

Engine = Callable[[Plan, Sequence[str]], None]


def main_run(options: argparse.Namespace) -> int:
    """Run one method; returns the exit code."""
    plan = replace(make_plan(options, [(options.method, options.set)], share=False), pages=True)
    code = carry_out(plan, options.workers, chosen_engine(options))
    for line in beside(plan.runs[0][0].path):
        _say(line)
    return code


def main_sweep(options: argparse.Namespace) -> int:
    """Run the sweep; returns the exit code."""
    methods = combinations(options.method, options.base, options.set, options.grid)
    if options.set and options.method:
        given = f"--set {' '.join(options.set)} is for --base {options.base} alone"
        _say(f"note: {given}; {', '.join(options.method)} and the baselines run as they are")
    return carry_out(make_plan(options, methods, share=not options.timed), options.workers, chosen_engine(options))


def chosen_engine(options: argparse.Namespace) -> Engine | None:
    """Return the engine that `--engine` and what goes with it name; None for the processes of this machine."""
    workers = engine_of(options)
    return functools.partial(on_ray, workers=workers) if workers.name == "ray" else None


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
    in_processes(workers, _work_process, plan, names, multiprocessing.get_context("spawn").Value("i", 0))


def _work_process(plan: Plan, names: Sequence[str], counter: Any) -> None:
    def take() -> str | None:
        with counter.get_lock():
            counter.value += 1
            return names[counter.value - 1] if counter.value <= len(names) else None

    work(plan, take)


def in_processes(count: int, task: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in so many processes at once; one that dies ends no other."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_process, args=(task, *arguments)) for _ in range(count)]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join()
    finally:
        for process in started:
            process.terminate()
            process.join()


def _process(task: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()  # the parent holds the locks
    try:
        task(*arguments)
    except KeyboardInterrupt:
        sys.exit(130)


# -- Ray: a task is a video under one method; what comes back is written here, by the driver alone ---------------------

WHOLE = 2**30
"""Bytes up to which a video's frames are read once and shared by the methods that track it."""


def on_ray(plan: Plan, names: Sequence[str], workers: Workers) -> None:
    """Work through videos on Ray; results are written as they come, whole or not at all."""
    ray, ours = connect(workers)
    try:
        shared = ray.put(plan)
        # Takes no core of the workers': it reads and decodes, once a video, wherever there is room.
        load = ray.remote(num_cpus=0, max_retries=workers.retries, scheduling_strategy="SPREAD")(_load)

        def tasks() -> Iterator[tuple[str, int, Any]]:
            for name in names:
                video = load.remote(shared, name)
                for i, (run, _) in enumerate(plan.runs):
                    if not run.done(name):
                        yield name, i, [video]  # in a list it stays a reference until a worker asks for it

        for (name, i, _), result in workers.run(tasks(), TrackOnRay(plan)):
            run = plan.runs[i][0]
            if isinstance(result, Failure):
                run.write_failure(name, result.error)
                continue
            frames, objects, tracked, seconds, page = result
            run.write_video(name, frames, objects, tracked)
            for file, content in page.items():
                (run.path / "videos" / name / file).write_bytes(content)
            _tell(name, run, objects, seconds)
    finally:
        if ours:
            ray.shutdown()


def _load(plan: Plan, name: str) -> Video:
    """Return a video, its frames in memory where they are small enough, for Ray's object store."""
    video = plan.dataset.open(name)
    if len(plan.runs) == 1 or isinstance(video.frames, np.ndarray):
        return video
    first = _pixels(video.frames[0])
    if first.nbytes * len(video.frames) > WHOLE:
        return video
    return replace(video, frames=np.stack([first, *map(_pixels, video.frames[1:])]))


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class TrackOnRay:
    """Makes a worker: the model, loaded once; image features are shared while it is given one video after another.

    Attributes:
        plan: What is run.
    """

    plan: Plan

    def __call__(self) -> Callable[[tuple[str, int, Any]], Any]:
        import ray

        plan = self.plan
        _check_seen(str(plan.runs[0][0].config["data"]["path"]))
        torch.set_num_threads(plan.threads)
        predictor = plan.load_predictor()
        sharing, known = ExitStack(), ""

        def work(task: tuple[str, int, Any]) -> Any:
            nonlocal known
            name, i, (reference,) = task
            try:
                video: Video = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause or error from None
            if plan.share and name != known:
                sharing.close()
                sharing.enter_context(shared_features(predictor))
                known = name
            torch.manual_seed(plan.seed)
            started = time.perf_counter()
            tracked = track(predictor, video, plan.runs[i][1], timed=not plan.share)
            seconds = time.perf_counter() - started
            frames = frame_rows(video, tracked)
            objects = object_rows(video, frames)
            page = {}
            if plan.pages:
                with tempfile.TemporaryDirectory() as folder:
                    run, method = plan.runs[i]
                    write_video_page(Path(folder), video, tracked, frames, run.label, method)
                    page = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            tracked.stats.clear()  # which the rows tell
            return frames, objects, tracked, seconds, page

        return work


def _check_seen(data: str) -> None:
    """Raise ValueError where this machine does not see the data; fetch it where it is at an address."""
    if "://" in data:
        local_copy(data)
    elif data != "synthetic" and not Path(data).is_dir():
        raise ValueError(
            f"the worker on {platform.node()} does not see the data folder {data}: give a folder that all machines "
            "share, under one absolute path, or an address that fsspec reads"
        )


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
        _tell(video.name, run, objects, seconds)
    except Exception as error:
        run.write_failure(video.name, error)


def _tell(name: str, run: Run, objects: Sequence[Mapping[str, Any]], seconds: float) -> None:
    accuracy = " ".join(f"{100 * row['jf']:.1f}" for row in objects)
    _say(f"{name}  {run.label}  J&F {accuracy}  {seconds:.1f} s")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
