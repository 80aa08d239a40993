"""`python -m benchmarks run | sweep | report | bench | official | methods | default | study`, in the repository.

From any other folder: `python PATH/TO/REPOSITORY/benchmarks run ...`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python PATH/benchmarks`, whose folder is then the only one that is searched
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TQDM_DISABLE", "1")  # SAM 2 shows a bar a clip; tqdm reads this when it is imported

try:
    from benchmarks import default, methods, presets, report, run, study, sweep
    from sam2_keyframe.app.signals import Stopped, stops
except ImportError as error:
    if error.name is None or error.name.startswith("benchmarks."):
        raise
    # the package itself, or what it is measured with
    sys.stderr.write(f"benchmarks: {error}; in the repository's folder: pip install -e '.[bench]'\n")
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 when a video failed, 2 with a sentence on bad input, 128 + number after a signal."""
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
        with stops():
            return mains[options.command](options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"benchmarks {options.command}: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(
            f"benchmarks {options.command}: {error or 'stopped'}; finished videos are kept and skipped next\n"
        )
        return 128 + error.number if isinstance(error, Stopped) else 130


if __name__ == "__main__":
    sys.exit(main())
