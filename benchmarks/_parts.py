"""Commands that run on generated clips and on a folder of real ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks._compare import keep_results
from benchmarks.run import Plan


def add_real_data(parser: argparse.ArgumentParser) -> None:
    """Let `--data` name a folder of real clips that is run beside generated ones."""
    for action in parser._actions:
        if action.dest == "data":
            action.help = "folder of real clips to run too, laid out as DAVIS"
    parser.set_defaults(data=None)


def parts(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the options for the generated clips and, where a folder is given, for its real ones."""
    synthetic = {**vars(options), "data": "synthetic", "sequences": ()}
    real = {**vars(options), "split": None, "challenges": ()}
    return [argparse.Namespace(**each) for each in ([synthetic, real] if options.data else [synthetic])]


def keep_plan(plan: Plan, folder: Path) -> Path:
    """Write a plan's finished runs into one file of a results folder, named from data and split; returns it.

    Raises:
        ValueError: Every video failed.
    """
    metrics = [json.loads((run.path / "metrics.json").read_text()) for run, _ in plan.runs]
    finished = [each for each in metrics if each["objects"]]
    if not finished:
        raise ValueError(f"every video of {plan.dataset.name} failed under every method; the lines above say why")
    file = folder / f"{plan.dataset.name}_{plan.dataset.split}.json"
    keep_results(finished, file)
    return file
