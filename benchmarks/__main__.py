"""Memory methods measured: runs, sweeps and reports, and the sets of runs that README's figures are from.

From any other folder than the repository's: `python PATH/TO/REPOSITORY/benchmarks run ...`.
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
    from benchmarks import bench, conformance, default, engine, methods, plan, report, search, study
    from sam2_keyframe.app.signals import Stopped, stops
except ImportError as error:
    if error.name is None or error.name.startswith("benchmarks."):
        raise
    # the package itself, or what it is measured with
    sys.stderr.write(f"benchmarks: {error}; in the repository's folder: pip install -e '.[bench]'\n")
    sys.exit(2)

COMMANDS = {
    "run": (engine.main_run, plan.add_run_arguments, "one method over a dataset"),
    "sweep": (engine.main_sweep, plan.add_sweep_arguments, "methods, and a grid of choices, over a dataset"),
    "report": (report.main_report, report.add_report_arguments, "plots, tables and pictures from results"),
    "bench": (bench.main_bench, bench.add_bench_arguments, "every method on a few test clips, and a report"),
    "official": (bench.main_bench, bench.add_official_arguments, "every method with official weights"),
    "methods": (methods.main_methods, methods.add_methods_arguments, "every method beside stock, as tables"),
    "default": (default.main_default, default.add_default_arguments, "whether a method hurts, by kind of clip"),
    "conformance": (
        conformance.main_conformance,
        conformance.add_conformance_arguments,
        "our published rules beside their upstreams",
    ),
    "search": (search.main_search, search.add_search_arguments, "the front of accuracy against occupancy, by search"),
    "study": (study.main_study, study.add_study_arguments, "scorers, thresholds, capacities; winners elsewhere"),
}
OTHERS = """\
scripts with commands of their own (python -m benchmarks.NAME --help):
  search.samplers       NSGA-II beside random search at equal budget: the hypervolume of their fronts
  tradeoff              what smaller memories and fewer tokens cost
  gpu                   tests and tables of times on a GPU; many objects of the micro model on a CPU
  notebooks             run the notebooks and keep their outputs
  micro.train, micro.evaluate, micro.methods, micro.card
                        the embedded model: training, evaluation, the figures of its card
  studies.absence, studies.attention, studies.codecs, studies.hosts, studies.loader, studies.long_video
  studies.overhead, studies.prompts, studies.queries, studies.scale, studies.scorers, studies.tree
                        one-off measurements of time, bytes and errors, beside their results
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 when a video failed, 2 with a sentence on bad input, 128 + number after a signal."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=OTHERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, title="commands", metavar="COMMAND")
    for name, (_, add, text) in COMMANDS.items():
        add(commands.add_parser(name, help=text, description=text))
    shown = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    options = parser.parse_args(shown)
    try:
        with stops():
            return COMMANDS[options.command][0](options)
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
