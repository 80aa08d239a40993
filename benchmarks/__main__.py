"""`python -m benchmarks run | sweep | report | bench | official | methods | default | study`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TQDM_DISABLE", "1")  # SAM 2 shows a bar a clip; tqdm reads this when it is imported

from benchmarks import default, methods, presets, report, run, study, sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 when a video failed, 2 with a sentence on bad input, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    mains = {}
    for name, function, add, text in (
        ("run", run.main_run, run.add_run_arguments, "one method over a dataset"),
        ("sweep", sweep.main_sweep, sweep.add_sweep_arguments, "methods, and a grid of choices, over a dataset"),
        ("report", report.main_report, report.add_report_arguments, "plots, tables and pictures from results"),
        ("bench", presets.main_preset, presets.add_bench_arguments, "every method on a few test clips, and a report"),
        ("official", presets.main_preset, presets.add_official_arguments, "every method with official weights"),
        ("methods", methods.main_methods, methods.add_methods_arguments, "every method beside stock, as tables"),
        ("default", default.main_default, default.add_default_arguments, "whether a method hurts, by kind of clip"),
        ("study", study.main_study, study.add_study_arguments, "scorers, thresholds, capacities; winners elsewhere"),
    ):
        add(commands.add_parser(name, help=text, description=text))
        mains[name] = function
    options = parser.parse_args(arguments)
    try:
        return mains[options.command](options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"benchmarks {options.command}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
