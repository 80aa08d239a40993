"""What smaller memories and fewer tokens cost: J&F against bytes and against tokens, with intervals.

    python -m benchmarks.tradeoff run --split dev     # to choose a setting
    python -m benchmarks.tradeoff run --data FOLDER   # to report all, on test clips and on real ones, laid out as DAVIS
    python -m benchmarks.tradeoff run --recommended   # to report one setting on more test clips
    python -m benchmarks.tradeoff table
    python -m benchmarks.tradeoff plot

Every codec, every token scheme and some of both run on our default method; on development clips only those that might
be recommended. `table` and `plot` write `results/tradeoff/` from the JSON files that `run` puts there. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

from benchmarks import _tradeoff_text as text
from benchmarks._compare import load_groups
from benchmarks._parts import add_real_data, keep_plan, make_plans, parts
from benchmarks._store import write_text
from benchmarks.run import add_arguments, carry_out

RESULTS = Path(__file__).parent / "results" / "tradeoff"
DEV_CLIPS, TEST_CLIPS, MORE_CLIPS, FRAMES = 60, 30, 300, 36
SMALL = "Chain(PCA(0.4), Int8())"
Run = tuple[str, list[str]]

CODECS: Mapping[str, tuple[str, ...]] = {
    "number format": ("Int8()", "Cast('float8_e4m3fn')"),
    "PCA": ("PCA(0.5)", "PCA(0.25)", "PCA(0.125)"),
    "PCA, running basis": ("PCA(0.5, basis='running')", "PCA(0.25, basis='running')"),
    "PCA, 8 bits": ("Chain(PCA(0.5), Int8())", SMALL, "Chain(PCA(0.25), Int8())"),
    "Prune": ("Prune(0.5)", "Prune(0.25)"),
    "Downsample": ("Downsample(2)", "Downsample(4)"),
}
"""`Identity`, `Offload` and the other casts change no bit of what SAM 2 stores, bfloat16, so that there is no curve."""
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "Pool": ("Pool(2)", "Pool(4)"),
    "Foveated": ("Foveated(0.25, 4)", "Foveated(0.2, 4)", "Foveated(0.05, 4)"),
    "SalientTokens": ("SalientTokens(0.25)", "SalientTokens(0.05)"),
    "prompt too": ("Foveated(0.2, 2, conditioning=True)", "Pool(2, conditioning=True)"),
}
FEWER = (["capacity=1", "minor=0", "fill=False"], ["minor=0", "fill=False"])
"""Fewer memories instead of smaller ones: for comparison."""


def setting(codec: str | None = None, scheme: str | None = None, *more: str) -> Run:
    """Return a method's name and its replacements: the memories held stored by a codec, attended to by a scheme."""
    stored = [] if codec is None else [f"compressor={codec}", f"minor_compressor={codec}"]
    return "keyframe", [*stored, *([] if scheme is None else [f"attend={scheme}"]), *more]


PLAIN = [setting(SMALL, scheme) for scheme in ("Pool(2)", "Foveated(0.2, 4)", "SalientTokens(0.25)")]
"""All five memories, stored and read smaller."""


def families() -> dict[str, list[Run]]:
    """Return every setting besides the uncompressed method, by what it makes smaller."""
    codecs = {name: [setting(codec) for codec in found] for name, found in CODECS.items()}
    schemes = {name: [setting(None, scheme) for scheme in found] for name, found in SCHEMES.items()}
    fewer = [("keyframe", [*few]) for few in FEWER]
    both: dict[str, list[Run]] = {"codec and scheme": [*PLAIN, *candidates()[3:]], "fewer memories": fewer}
    return {"compact": [("compact", [])], **codecs, **schemes, **both}


def runs() -> list[Run]:
    """Return every setting once, as a method's name and its replacements: stock and the uncompressed method first."""
    shown = [run for name, found in families().items() for run in found if name != "codec and scheme"]
    return [("stock", []), ("keyframe", []), *shown, *PLAIN]


def candidates() -> list[Run]:
    """Return what development clips decide about: at least 4x smaller, 2x fewer keys."""
    fewer = ("minor=1", "fill=False"), ("minor=2", "fill=False"), ("capacity=1", "minor=1", "fill=False")
    return [
        setting(),
        *PLAIN[1:],
        *(setting(SMALL, scheme) for scheme in ("Foveated(0.25, 4)", "Foveated(0.05, 2)")),
        setting(SMALL, "Foveated(0.45, 4)", *fewer[0]),
        setting(SMALL, "Foveated(0.3, 4)", *fewer[1]),
        setting(SMALL, "Foveated(0.6, 4)", *fewer[2]),
        setting(SMALL, "Foveated(0.6, 4)", "minor=0", "fill=False"),
        setting(SMALL, None, "capacity=1", "minor=0", "fill=False"),
    ]


def recommended() -> list[Run]:
    """Return the recommended setting, which `compact` names, and what it is compared with."""
    return [("stock", []), ("keyframe", []), ("compact", [])]


def label(run: Run) -> str:
    """Return the label under which a run is kept."""
    return " ".join([run[0], *run[1]])


def _run(options: argparse.Namespace) -> int:
    code = 0
    settings, clips = (candidates(), DEV_CLIPS) if options.split == "dev" else (runs(), TEST_CLIPS)
    if options.recommended:
        settings, clips = recommended(), MORE_CLIPS
    options.clips = options.clips or clips
    options.results.mkdir(parents=True, exist_ok=True)
    for plan in make_plans(parts(options), settings, options.results, counted=True):
        code = max(code, carry_out(plan, options.workers))
        keep_plan(plan, options.results, counted=True)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table", "plot"):
        command = commands.add_parser(name)
        if name == "run":
            add_arguments(command)
            add_real_data(command)
            command.add_argument(
                "--recommended", action="store_true", help="only the recommended setting and its parts"
            )
            command.set_defaults(challenges=("occlusion",), clips=None, frames=FRAMES, split="test")
        command.add_argument("--results", type=Path, default=RESULTS, help="where tables go (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            return _run(options)
        groups = load_groups(options.results)
        if options.command == "plot":
            drawn = {name: [*map(label, found)] for name, found in families().items()}
            text.plot(groups, options.results, drawn)
        else:
            order = list(dict.fromkeys(map(label, [*runs(), *candidates()])))
            write_text(options.results / "README.md", text.table(groups, order))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks tradeoff: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
