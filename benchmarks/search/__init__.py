"""Thresholds, capacities, codecs found by search: the front of accuracy against occupancy, on development clips.

    python -m benchmarks search keyframe --trials 60
    python -m benchmarks search shelves --replay --trials 200 --live 8 --confirm

The same command goes on where it was stopped; started several times, or with --workers, its processes share one study.
"""

from __future__ import annotations

import argparse

from benchmarks.campaign import changed
from benchmarks.engine import in_processes
from benchmarks.search.report import write_report
from benchmarks.search.search import add_search_arguments, confirm, confirm_live, open_search, say

__all__ = ["add_search_arguments", "main_search"]


def main_search(options: argparse.Namespace) -> int:
    """Search, confirm, report; returns the exit code."""
    search = open_search(options)
    if options.workers > 1:  # what one that dies leaves undone is done below
        in_processes(options.workers, _hunt, changed(options, workers=1))
    search.run()
    if not search.study.complete:
        failed = [trial.user_attrs["error"] for trial in search.study.trials if "error" in trial.user_attrs]
        raise ValueError(f"no trial could be measured on every video; the last one: {failed[-1] if failed else 'none'}")
    live = confirm_live(search) if options.live else {}
    group = confirm(search, live) if options.confirm else None
    folder = options.report or options.out / "report"
    write_report(search, live, group, folder)
    say(f"{folder}/README.md, {folder}/front.png")
    return 0


def _hunt(options: argparse.Namespace) -> None:
    open_search(options).run()
