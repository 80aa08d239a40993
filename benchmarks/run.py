"""Run memory methods over a dataset: each result on disk as soon as its video is done, so that runs can go on."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._models import check_model, fingerprint, load_predictor, memory_slots, shared_features
from benchmarks._store import SCHEMA, Run, make_run, surroundings
from benchmarks._track import Tracked, frame_rows, object_rows, track
from benchmarks._values import parse_pair
from benchmarks.datasets import Dataset, Video, open_dataset
from sam2_keyframe import KeyframeMemory, make_method
from sam2_keyframe.app.models import check_place


@dataclass(frozen=True)
class Plan:
    """What a worker needs: runs, videos, model.

    Attributes:
        runs: Runs with their methods; all of them track a video before the next one is opened.
        dataset: The videos.
        checkpoint: Weights; None for the embedded model.
        device: Where to run.
        image_size: Side of the square the model sees; None: its own.
        threads: CPU threads of a worker.
        seed: Seed of torch's generator before each video.
        share: Share image features between runs, and so report no times.
    """

    runs: tuple[tuple[Run, KeyframeMemory], ...]
    dataset: Dataset
    checkpoint: Path | None
    device: str
    image_size: int | None
    threads: int
    seed: int
    share: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` and `sweep` have in common."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="synthetic", help="synthetic, or a dataset's folder (default: %(default)s)")
    data.add_argument("--split", help="dev or test of synthetic clips, or a list in ImageSets")
    data.add_argument("--sequences", type=_words, default=(), help="only these videos of a folder, with commas")
    data.add_argument("--challenges", type=_words, default=(), help="synthetic: only these challenges, with commas")
    data.add_argument("--clips", type=int, default=2, help="synthetic: clips a challenge (default: %(default)s)")
    data.add_argument("--frames", type=int, default=48, help="synthetic: frames a clip (default: %(default)s)")
    data.add_argument("--size", type=int, default=256, help="synthetic: height and width (default: %(default)s)")
    data.add_argument("--objects", type=int, default=1, help="synthetic: objects a clip (default: %(default)s)")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", default="micro", help="micro, tiny, small, base_plus, large or PATH.pt (default: %(default)s)"
    )
    model.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of official checkpoints")
    model.add_argument("--image-size", type=int, help="side of the square the model sees (default: the model's own)")
    model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    model.add_argument("--threads", type=int, default=1, help="CPU threads of a worker (default: %(default)s)")
    model.add_argument("--seed", type=int, default=0, help="seed of torch's generator (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="results folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, a video each (default: %(default)s)")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    parser.add_argument("--method", default="keyframe", help="a name in sam2_keyframe.METHODS (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a choice, as in --set keep=0.2"
    )
    add_arguments(parser)


def main_run(options: argparse.Namespace) -> int:
    """Run one method; returns the exit code."""
    return execute(options, [(options.method, list(options.set))], share=False)


def execute(options: argparse.Namespace, methods: Sequence[tuple[str, list[str]]], share: bool) -> int:
    """Run methods, each a name and its `name=value` replacements; returns 0, or 1 when a video failed.

    Raises:
        ValueError: Bad input, in a sentence.
        OSError: The results cannot be written.
    """
    return carry_out(make_plan(options, methods, share), options.workers)


def make_plan(options: argparse.Namespace, methods: Sequence[tuple[str, list[str]]], share: bool) -> Plan:
    """Return what is to be run; nothing is written.

    Raises:
        ValueError: Bad input, in a sentence.
    """
    if options.workers < 1 or options.threads < 1:
        raise ValueError(f"workers={options.workers}, threads={options.threads}: give at least one")
    check_place(options.device, options.image_size)
    unused = "sequences" if options.data == "synthetic" else "challenges"
    if getattr(options, unused):
        raise ValueError(
            f"--{unused} {','.join(getattr(options, unused))}: generated clips are chosen with --challenges, a "
            f"folder's videos with --sequences; for {options.data} leave --{unused} empty"
        )
    keywords = ("sequences", "challenges", "clips", "frames", "size", "objects")
    parts = {name: getattr(options, name) for name in keywords}
    dataset = open_dataset(options.data, options.split, **parts)
    if options.data == "synthetic":
        parts |= {name: list(parts[name]) for name in ("sequences", "challenges")}
    else:
        parts = {"sequences": sorted(dataset.names)}
    checkpoint = check_model(options.model, options.checkpoints)
    shared = {
        "schema": SCHEMA,
        "data": {"name": dataset.name, "path": options.data, **parts},
        "split": dataset.split,
        "model": checkpoint.stem if checkpoint else "micro",
        "weights": fingerprint(checkpoint),
        "image_size": options.image_size,
        "device": options.device,
        "dtype": "bfloat16" if options.device.startswith("cuda") else "float32",
        "threads": options.threads,
        "seed": options.seed,
        "annotations": dataset.fingerprint,
        "shared_features": share,
        **surroundings(),
    }
    slots = memory_slots(checkpoint)
    runs: list[tuple[Run, KeyframeMemory]] = []
    for name, replacements in methods:
        label = " ".join([name, *replacements])
        choices = dict(map(parse_pair, replacements))
        if len(choices) < len(replacements):
            raise ValueError(f"{label}: a choice is given twice; give it once")
        try:
            method = make_method(name, **choices)
            method.check_fits(slots)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        spec = {"name": name, "set": replacements, "label": label, "repr": repr(method)}
        run = make_run(options.out, {"method": spec, **shared})
        if run.path not in [other.path for other, _ in runs]:
            runs.append((run, method))
    return Plan(
        tuple(runs), dataset, checkpoint, options.device, options.image_size, options.threads, options.seed, share
    )


def carry_out(plan: Plan, workers: int) -> int:
    """Track what is not finished yet and write the metrics; returns 0, or 1 when a video failed.

    Raises:
        ValueError: A results folder belongs to another version or configuration, or another process writes it.
        OSError: The results cannot be written.
    """
    with ExitStack() as locks:
        for run, _ in plan.runs:
            locks.enter_context(run.lock())
            run.prepare()
        todo = [name for name in plan.dataset.names if not all(run.done(name) for run, _ in plan.runs)]
        _work_all(plan, todo, workers)
        return _conclude(plan, plan.dataset.names)


def _conclude(plan: Plan, names: Sequence[str]) -> int:
    code = 0
    for run, _ in plan.runs:
        for name in names:
            if not run.done(name) and name not in run.failures():
                run.write_failure(name, RuntimeError("its worker process ended; was there too little memory?"))
        metrics = run.finish(names)
        for name, error in metrics["failed"].items():
            _say(f"failed: {name} under {run.config['method']['label']}: {error}")
            code = 1
        if metrics["objects"] and metrics["accuracy"]["jf"] is not None:
            shown = f"J&F {metrics['accuracy']['jf']:.1f}, {metrics['occupancy']['memory']['mib']:.2f} MiB"
            _say(f"{run.config['method']['label']}: {shown} -> {run.path}")
    return code


def _work_all(plan: Plan, names: list[str], workers: int) -> None:
    """Work through videos in this process or in several; a process that dies takes its video along, no more."""
    if not names:
        return
    if workers == 1:
        remaining = iter(names)
        work(plan, lambda: next(remaining, None))
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    processes = [context.Process(target=_work_process, args=(plan, names, counter)) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work_process(plan: Plan, names: list[str], counter: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def take() -> str | None:
        with counter.get_lock():
            index = counter.value
            counter.value += 1
        return names[index] if index < len(names) else None

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
    """Track videos one after the other; each is scored and written while the next is tracked.

    Args:
        plan: Runs, videos, model.
        take: Returns the name of the next video; None when there is none left.
    """
    torch.set_num_threads(plan.threads)
    predictor = load_predictor(plan.checkpoint, plan.device, plan.image_size)
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
                    pending = scoring.submit(_score, run, video, tracked, seconds)


def _score(run: Run, video: Video, tracked: Tracked, seconds: float) -> None:
    try:
        frames = frame_rows(video, tracked)
        objects = object_rows(video, frames)
        run.write_video(video.name, frames, objects, tracked)
        accuracy = " ".join(f"{100 * row['jf']:.1f}" for row in objects)
        _say(f"{video.name}  {run.config['method']['label']}  J&F {accuracy}  {seconds:.1f} s")
    except Exception as error:
        run.write_failure(video.name, error)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
