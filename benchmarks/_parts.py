"""Commands that run on generated clips and on a folder of real ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks._compare import check_kept, keep_results
from benchmarks.datasets import open_dataset
from benchmarks.run import Plan, make_plan


def add_real_data(parser: argparse.ArgumentParser) -> None:
    """Let `--data` name a folder of real clips that is run beside generated ones."""
    for action in parser._actions:
        if action.dest == "data":
            action.help = "folder of real clips to run too, laid out as DAVIS"
    parser.set_defaults(data=None)


def parts(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the options for the generated clips and, where a folder is given, for its real ones.

    Raises:
        ValueError: The folder holds no dataset; said before hours of generated clips.
    """
    if options.data:
        open_dataset(options.data, sequences=options.sequences)
    synthetic = {**vars(options), "data": "synthetic", "sequences": ()}
    real = {**vars(options), "split": None, "challenges": ()}
    return [argparse.Namespace(**each) for each in ([synthetic, real] if options.data else [synthetic])]


def make_plans(
    options: Sequence[argparse.Namespace], methods: Sequence[tuple[str, list[str]]], folder: Path, counted: bool = False
) -> list[Plan]:
    """Return the plans of some methods on several data, which share image features; nothing is run or written.

    Args:
        options: For each data.
        methods: Names and replacements.
        folder: Where `keep_plan` will keep the results.
        counted: As there.

    Raises:
        ValueError: Bad input; or the results folder holds runs that theirs may not be compared with.
    """
    plans = [make_plan(each, methods, share=True) for each in options]
    for plan in plans:
        check_kept(plan.runs[0][0].config, _file(plan, folder, counted))
    return plans


def keep_plan(plan: Plan, folder: Path, counted: bool = False) -> Path:
    """Write a plan's finished runs into one file of a results folder, named from data and split; returns it.

    Args:
        plan: What was carried out.
        folder: The results folder.
        counted: Whether the name tells the number of videos too.

    Raises:
        ValueError: Every video failed.
    """
    metrics = [json.loads((run.path / "metrics.json").read_text()) for run, _ in plan.runs]
    finished = [each for each in metrics if each["objects"]]
    if not finished:
        raise ValueError(f"every video of {plan.dataset.name} failed under every method; the lines above say why")
    file = _file(plan, folder, counted)
    keep_results(finished, file)
    return file


def _file(plan: Plan, folder: Path, counted: bool) -> Path:
    number = f"_{len(plan.dataset.names)}" if counted else ""
    return folder / f"{plan.dataset.name}_{plan.dataset.split}{number}.json"
