"""What to run: methods with their choices, a dataset, a model; checked before anything is run or written."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.datasets import Dataset, open_dataset
from benchmarks.models import check_model, fingerprint, load_predictor, memory_slots
from benchmarks.results import SCHEMA, Run, make_run, surroundings
from sam2_keyframe import KeyframeMemory, make_method
from sam2_keyframe.app.models import check_place, default_device
from sam2_keyframe.app.options import parse_set, parse_value, split_values
from sam2_keyframe.app.workers import add_engine_arguments

Spec = tuple[str, list[str]]
"""A method's name, or a memory written out, and its replacements, each `name=value`."""
BASELINES = ("stock", "window", "every_nth", "random")
"""In every sweep, so that they are in every picture and every method is compared with them."""
REFERENCES = ("stock", "every_nth", "random")
"""What a method is compared with: SAM 2 as it is, and rules that look at nothing."""


@dataclass(frozen=True)
class Plan:
    """What an engine needs: runs, videos, model.

    Attributes:
        runs: Runs with their methods; all of them track a video before the next one is opened.
        dataset: The videos.
        checkpoint: Weights; None for the embedded model.
        device: Where to run.
        image_size: Side of the square the model sees; None: its own.
        threads: CPU threads of a worker.
        seed: Seed of torch's generator before each video.
        share: Share image features between runs, and so report no times.
        pages: Write a page a video.
    """

    runs: tuple[tuple[Run, KeyframeMemory], ...]
    dataset: Dataset
    checkpoint: Path | None
    device: str
    image_size: int | None
    threads: int
    seed: int
    share: bool
    pages: bool = False

    def load_predictor(self) -> Any:
        return load_predictor(self.checkpoint, self.device, self.image_size)


def label(spec: Spec) -> str:
    """Return what a run is called: its method with its replacements."""
    return " ".join([spec[0], *spec[1]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on which data, with which model and where to run."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", default="synthetic", help="synthetic, or a dataset's folder or fsspec URL (default: %(default)s)"
    )
    data.add_argument("--split", help="dev or test of synthetic clips, or a list in ImageSets")
    data.add_argument("--sequences", type=_words, default=(), help="only these videos of a folder, with commas")
    data.add_argument("--challenges", type=_words, default=(), help="synthetic: only these challenges, with commas")
    data.add_argument("--clips", type=int, default=2, help="synthetic: clips a challenge (default: %(default)s)")
    data.add_argument("--frames", type=int, default=48, help="synthetic: frames a clip (default: %(default)s)")
    data.add_argument("--size", type=int, default=256, help="synthetic: height and width (default: %(default)s)")
    data.add_argument("--objects", type=int, default=1, help="synthetic: objects a clip (default: %(default)s)")
    model = parser.add_argument_group("model")
    sizes = "micro, tiny, small, base_plus, large or PATH.pt"
    model.add_argument("--model", default="micro", help=f"{sizes} (default: %(default)s)")
    model.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of official checkpoints")
    model.add_argument("--image-size", type=int, help="side of the square the model sees (default: the model's own)")
    model.add_argument("--device", default=default_device())
    model.add_argument("--threads", type=int, default=1, help="CPU threads of a worker (default: %(default)s)")
    model.add_argument("--seed", type=int, default=0, help="seed of torch's generator (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="results folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, a video each (default: %(default)s)")


def add_choices(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--set`."""
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    parser.add_argument("--method", default="keyframe", help="a name in sam2_keyframe.METHODS (default: %(default)s)")
    add_choices(parser, "replace a choice, as in --set change=0.2")
    add_arguments(parser)
    add_engine_arguments(parser)


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    beside = ", ".join(BASELINES)
    parser.add_argument("--method", nargs="+", default=[], help=f"methods to run as they are, beside {beside}")
    parser.add_argument("--base", default="keyframe", help="method that the grid varies (default: %(default)s)")
    add_choices(parser, "a choice of --base, in all of its grid")
    values = "values of a choice, as in --grid 'change=SSIM() > 0.2,MaskIoU() > 0.5' --grid keyframes=1,2"
    parser.add_argument("--grid", action="append", default=[], metavar="NAME=A,B,...", help=values)
    parser.add_argument("--timed", action="store_true", help="measure times: image features are not shared then")
    add_arguments(parser)
    add_engine_arguments(parser)


def combinations(methods: Sequence[str], base: str, fixed: Sequence[str], grid: Sequence[str]) -> list[Spec]:
    """Return what a sweep runs: the baselines and some methods as they are, and a base method at every combination.

    >>> combinations(["fifo"], "keyframe", ["others=1"], ["change=0.1,0.2"])[4:]
    [('fifo', []), ('keyframe', ['others=1', 'change=0.1']), ('keyframe', ['others=1', 'change=0.2'])]

    Raises:
        ValueError: A part of the grid is not `name=value,...`.
    """
    axes = []
    for axis in grid:
        name, equals, values = axis.partition("=")
        if not equals:
            raise ValueError(f"{axis!r} is not name=value,value,... as in change=0.1,0.2")
        axes.append([f"{name}={value}" for value in split_values(values)])
    found: list[Spec] = [(name, []) for name in dict.fromkeys([*BASELINES, *methods])]
    if axes or fixed:
        found += [(base, [*fixed, *choice]) for choice in itertools.product(*axes)]
    return found


def make_plan(options: argparse.Namespace, methods: Sequence[Spec], share: bool) -> Plan:
    """Return what is to be run; nothing is written. Methods that come to the same run are run once.

    Raises:
        ValueError: Bad input, in a sentence.
    """
    if options.workers < 1 or options.threads < 1:
        raise ValueError(f"workers={options.workers}, threads={options.threads}: give at least one")
    check_place(options.device, options.image_size)
    generated = options.data == "synthetic"
    unused = "sequences" if generated else "challenges"
    if given := getattr(options, unused):
        raise ValueError(
            f"--{unused} {','.join(given)}: generated clips are chosen with --challenges, a folder's videos with "
            f"--sequences; for {options.data} leave --{unused} empty"
        )
    keywords = ("sequences", "challenges", "clips", "frames", "size", "objects")
    parts = {name: getattr(options, name) for name in keywords}
    dataset = open_dataset(options.data, options.split, **parts)
    chosen = (
        parts | {name: list(parts[name]) for name in keywords[:2]}
        if generated
        else {"sequences": sorted(dataset.names)}
    )
    checkpoint = check_model(options.model, options.checkpoints)
    shared = {
        "schema": SCHEMA,
        "data": {"name": dataset.name, "path": options.data, **chosen},
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
    runs: dict[Path, tuple[Run, KeyframeMemory]] = {}
    for name, replacements in methods:
        try:
            chosen = parse_value(name) if name.startswith("KeyframeMemory(") else name
            method = make_method(chosen, **parse_set(replacements))
            method.check_fits(slots)
        except ValueError as error:
            raise ValueError(f"{label((name, replacements))}: {error}") from error
        about = {"name": name, "set": replacements, "label": label((name, replacements)), "repr": repr(method)}
        run = make_run(options.out, {"method": about, **shared})
        runs.setdefault(run.path, (run, method))
    place = (checkpoint, options.device, options.image_size)
    return Plan(tuple(runs.values()), dataset, *place, options.threads, options.seed, share)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
