"""The command `sam2-keyframe`: track a video, replay a run, run the demo, list the building blocks.

Everything that a user can get wrong ends in one line on stderr, which names the value and the remedy, and exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.app.signals import Stopped, reason, stops
from sam2_keyframe.bank.statistics import MIB
from sam2_keyframe.methods import METHODS

TRACEBACK = "SAM2_KEYFRAME_TRACEBACK"
"""Environment variable: set, errors show where they come from."""

LISTED = 12
"""Objects that the summary of a run names."""

LOG_EVERY = 15.0
"""Seconds between two lines of progress where there is no terminal."""

LIVE = {"ahead": 2, "threads": 1}
"""How cameras and streams are read: frames that wait are frames that come late."""

TRACK_EXAMPLE = "example: sam2-keyframe track dog.mp4 --model tiny --box 120,80,340,400 --out out"
VIEW_EXAMPLE = "example: sam2-keyframe view run-stock run-keyframe --out both.html"

HEADINGS = {
    "memory": "memory: KeyframeMemory(shelves, then choices of the whole memory), with --memory or in Python",
    "scorers": "scorers: higher is more worth keeping; change scorers say 0 for unchanged; MaskIoU() > 0.5 is a rule",
    "rules": "rules: accept or reject a frame; combine with & | ~, comparisons in parentheses",
    "eviction": "eviction rules: which keyframe leaves a full buffer",
    "retrieval": "retrieval rules: which keyframes are attended to, where there are more than slots",
    "relations": "relations: how alike a frame is to the memories held, for eviction and retrieval",
    "codecs": "codecs: how a memory is stored; fewer bytes, less exact",
    "attention": "token schemes: which tokens of a memory are attended to",
    "queries": "tokens of the frame being tracked that run through memory attention",
    "motion": "mask choice by motion",
    "returns": "what a mask that appears anew or jumps has to show before it is believed",
    "trees": "several paths instead of one",
    "verification": "checks of doubtful masks",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for what the user can mend, 128 + number after a signal."""
    options = _parser().parse_args(argv)
    options.words = list(sys.argv[1:] if argv is None else argv)
    try:
        with stops():
            code: int = options.run(options)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        _complain(f"{reason(number)}; nothing was left behind")
        return 128 + number
    except BrokenPipeError:  # whoever read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get(TRACEBACK):
            raise
        _complain(str(error))
        return 2
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = did_you_mean(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        _complain(f"{message}{hint} (see {self.prog} --help)")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    from sam2_keyframe import __version__
    from sam2_keyframe.app.app_command import add_app
    from sam2_keyframe.app.exports import FILES
    from sam2_keyframe.app.masks import BINARY_HELP
    from sam2_keyframe.app.models import CHOICES, default_device
    from sam2_keyframe.app.options import add_method_arguments, local_path, source_of
    from sam2_keyframe.app.replay_command import add_parser
    from sam2_keyframe.app.workers import add_engine_arguments

    parser = _Parser(prog="sam2-keyframe", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="track | view | replay | demo | app | list")
    run = commands.add_parser("track", help="track objects through a video", epilog=TRACK_EXAMPLE)
    run.set_defaults(run=_track)
    run.add_argument(
        "source",
        type=source_of,
        help="video file, folder of frames, number of a camera, or address (rtsp, https); with --prompts, of videos",
    )
    run.add_argument("--model", help=f"required: {CHOICES}")
    run.add_argument(
        "--checkpoint", type=Path, help="weights for an official size; without it, checkpoints/ is searched"
    )
    run.add_argument("--image-size", type=int, help="side of the square that the model sees (official models: 1024)")
    run.add_argument(
        "--out", type=local_path, required=True, help="folder for masks/, overlay.mp4, frames.csv and pictures"
    )
    run.add_argument("--mask", action="append", default=[], metavar="[FRAME:]FILE.png", help="palette ids are objects")
    run.add_argument("--binary", action="store_true", help=BINARY_HELP)
    run.add_argument("--box", action="append", default=[], metavar="[OBJ@FRAME:]x0,y0,x1,y1")
    run.add_argument("--point", action="append", default=[], metavar="[OBJ@FRAME:]x,y[,-]", help="-: not the object")
    run.add_argument(
        "--prompts", type=local_path, metavar="FILE.csv|FILE.json|FOLDER",
        help="track a folder of videos, each by its prompts in a table, a JSON file or a folder of masks",
    )  # fmt: skip
    run.add_argument("--workers", type=int, default=1, help="with --prompts: videos tracked at a time (default: 1)")
    add_engine_arguments(run)
    add_method_arguments(run)
    run.add_argument(
        "--on-error", choices=("stop", "hold", "skip"), default="stop",
        help="at a frame that cannot be read: end there (default), repeat the last masks, or leave it out",
    )  # fmt: skip
    run.add_argument("--frames", "--max-frames", type=int, help="track the first FRAMES frames only")
    run.add_argument(
        "--follow", action="store_true",
        help="print a line of JSON a frame and object as it is tracked: box, area, scores, the mask's run lengths",
    )  # fmt: skip
    run.add_argument(
        "--export", action="append", default=[], metavar="KIND", help=f"masks for other tools, too: {', '.join(FILES)}"
    )
    run.add_argument(
        "--suggest-prompts", type=int, nargs="?", const=3, default=0, metavar="COUNT",
        help="name the frames on which a click would help most (3); the video is tracked twice more to find them",
    )  # fmt: skip
    run.add_argument("--no-overlay", action="store_true", help="write no overlay.mp4")
    run.add_argument("--no-pictures", action="store_true", help="write no index.html, timeline.png and memory.png")
    run.add_argument("--device", default=None, help=f"cpu, cuda, cuda:1, ... (default here: {default_device()})")
    add_parser(commands, say)
    side = commands.add_parser("view", help="put the pages of two runs or more side by side", epilog=VIEW_EXAMPLE)
    side.set_defaults(run=_view)
    side.add_argument("runs", type=local_path, nargs="+", metavar="RUN", help="folder of a run, or its index.html")
    side.add_argument("--out", type=local_path, default=Path("view.html"), help="the page (default: view.html)")
    demo = commands.add_parser("demo", help="watch stock and keyframe memory on a generated clip, in under a minute")
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--out", type=local_path, default=Path("demo-out"), help="folder for the results (default: demo-out)"
    )
    add_app(commands, say)
    listing = commands.add_parser("list", help="print methods, scorers, filters, eviction rules and codecs")
    listing.set_defaults(run=_list)
    return parser


def _track(options: argparse.Namespace) -> int:
    from sam2_keyframe.app import models, output, track, two_passes
    from sam2_keyframe.app.exports import check_exports
    from sam2_keyframe.app.masks import file_names, frame_names
    from sam2_keyframe.app.options import chosen_method, parse_prompts, parse_set
    from sam2_keyframe.video.live import is_live, without_password
    from sam2_keyframe.video.source import FrameSource

    if options.model is None:
        raise ValueError(f"--model is missing: choose {models.CHOICES}")
    exports = check_exports(options.export)
    asked: dict[str, Any] | None = None
    if options.method == two_passes.METHOD and options.memory is None and "frames" not in parse_set(options.set):
        name, (asked, rest) = options.method, two_passes.divide(parse_set(options.set))
    else:
        name, method = chosen_method(options.method, options.memory, options.set)
    if options.suggest_prompts < 0:
        raise ValueError(f"--suggest-prompts {options.suggest_prompts}: give at least 1, or leave it out")
    live, inform = is_live(options.source), tell if options.follow else say
    if live and options.suggest_prompts:
        raise ValueError("--suggest-prompts goes through the video again, which what is live cannot: leave it out")
    if live and asked is not None:
        raise ValueError(f"--method {name} tracks the whole video first, which what is live cannot: choose another")
    if options.frames is not None and options.frames < 1:
        raise ValueError(f"--frames {options.frames}: give at least 1")
    if options.prompts is not None:
        if asked is not None:
            raise ValueError(f"--method {name} looks for the frames of one video: give them, --set 'frames=(0, 30)'")
        if options.follow or options.suggest_prompts:
            raise ValueError("--follow and --suggest-prompts are for one video: leave them out, or --prompts")
        return _track_folder(options, name, method, tuple(exports))
    if options.workers != 1 or options.engine != "local":
        raise ValueError("--workers and --engine are for many videos: give a folder of them and --prompts")
    with (
        output.new_folder(options.out, track.WRITTEN) as folder,
        FrameSource(options.source, num_frames=options.frames, **(LIVE if live else {})) as source,
    ):
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            if options.on_error == "stop":
                track.check_source(options.source, source)
            else:
                track.read_frame(source, 0)
        for note in notes:
            inform(f"note: {note.message}")
        prompts = parse_prompts(
            options.mask, options.box, options.point, frames=len(source), size=source.size, binary=options.binary
        )
        device = options.device or models.default_device()
        predictor, stamp = models.load_model(options.model, device, options.checkpoint, options.image_size)
        if stamp:
            inform(f"note: {stamp}")
        if asked is not None:
            inform(f"note: {name} tracks the whole video first, under {two_passes.FIRST}: no causal method is like it")
            recording = two_passes.first_pass(predictor, source, prompts, options.on_error, Progress("first pass"))
            method, line = two_passes.with_frames(recording, asked, rest)
            inform(line)
        report = track.track(
            predictor, source, method, prompts, folder,
            name=name, stamp=stamp, on_error=options.on_error, progress=Progress("tracking"),
            mask_names=frame_names(options.source, len(source)),
            overlay=not options.no_overlay, draw=not options.no_pictures,
            exports=exports, file_names=file_names(options.source, len(source)),
            suggestions=options.suggest_prompts,
            follow=print_line if options.follow else None,
            about={
                "source": without_password(getattr(options.source, "name", str(options.source))),
                "model": options.model,
                "command": shlex.join(["sam2-keyframe", *map(without_password, options.words)]),
            },
        )  # fmt: skip
        total = report.frames if live else len(source) - prompts[0].frame_idx
    if report.ended:
        inform(f"note: {report.ended}")
    _summary(options.out, report, name, total, inform)
    if report.lost:
        done = "skipped" if options.on_error == "skip" else "held, and left out at the end"
        lost = f"{len(report.lost)} of {total} frames could not be read"
        inform(f"note: {lost} and were {done}, from frame {report.lost[0]} on")
    if not report.stopped:
        return 0
    _complain(f"{report.stopped}; the results of {report.frames} of {total} frames are whole, in {options.out}")
    return 128 + report.signal if report.signal else 2


def _track_folder(options: argparse.Namespace, name: str, method: Any, exports: tuple[str, ...]) -> int:
    """Track a folder of videos."""
    from sam2_keyframe.app import batch, models
    from sam2_keyframe.app.workers import engine_of

    if options.mask or options.box or options.point:
        raise ValueError("--prompts has the prompts of all videos: leave --mask, --box and --point out")
    if not isinstance(options.source, Path):
        raise ValueError(f"--prompts goes with a folder of videos, not with {options.source}")
    videos = batch.find_videos(options.source)
    prompts = batch.read_prompts(options.prompts, videos)
    engine = engine_of(options)
    device = options.device or models.default_device()
    todo = batch.Batch(
        options.source.absolute(), options.out.absolute(), options.model, device, options.checkpoint,
        options.image_size, name, method, options.frames, options.on_error, options.binary,
        not options.no_overlay, not options.no_pictures, exports,
        threads=1 if device == "cpu" and (engine.workers > 1 or engine.name == "ray") else 0,
    )  # fmt: skip
    return batch.run_batch(todo, prompts, {name: path.absolute() for name, path in videos.items()}, engine, say)


def _summary(out: Path, report: Any, method: str, total: int, say: Callable[[str], None]) -> None:
    objects = len(report.stats)
    say(
        f"tracked {objects} object{'s' * (objects != 1)} through {report.frames} of {total} frames in "
        f"{report.seconds:.1f} s with the method {method!r}"
    )
    for place, (obj_id, stats) in enumerate(report.stats.items()):
        if place == LISTED:
            say(f"  ... and {objects - LISTED} more objects: see frames.csv")
            break
        if stats.last is not None:
            now, alone = stats.last.memory, stats.last.stock
            keyframes = f"{stats.keyframes} keyframe{'s' * (stats.keyframes != 1)}, {len(stats.last.keyframes)} held"
            say(
                f"  object {obj_id}: {keyframes}; holds {now.frames} {'memory' if now.frames == 1 else 'memories'}, "
                f"{now.nbytes / MIB:.2f} MiB (SAM 2 alone: {alone.frames}, {alone.nbytes / MIB:.2f} MiB)"
            )
    if report.suggestions:
        say("a click would help most on")
    for each in report.suggestions:
        say(f"  frame {each.frame}, object {each.object}: {each.reason}")
    for name in sorted(path.name for path in out.iterdir()):
        say(f"  {out / name}")


def _view(options: argparse.Namespace) -> int:
    from sam2_keyframe.app.page import view

    view(options.runs, options.out)
    say(f"{len(options.runs)} run{'s' * (len(options.runs) != 1)} side by side: {options.out}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from sam2_keyframe.app.demo import demo

    demo(options.out, say, Progress)
    return 0


def _list(options: argparse.Namespace) -> int:
    from sam2_keyframe.blocks import BLOCKS

    say("methods (--method NAME; wrap(predictor, NAME))")
    for name, factory in METHODS.items():
        _entry(name, factory)
    for kind, blocks in BLOCKS.items():
        say(f"\n{HEADINGS[kind]}")
        for name, block in blocks.items():
            _entry(name, block)
    return 0


def _entry(name: str, block: Callable[..., Any]) -> None:
    """Print a building block with its choices and the first lines of its docstring; a range that depends, too."""
    text, _, rest = (inspect.getdoc(block) or "").partition("\n\n")
    ranges = None if " in [" in text else re.search(r"^ {4}(?:metric|measure): (.*?)(?=^ {4}\w|\Z)", rest, re.M | re.S)
    text = " ".join(f"{text} {ranges[1] if ranges else ''}".split())
    say(f"  {name}({', '.join(_choices(block))})\n      {text}")


def _choices(block: Callable[..., Any]) -> Iterator[str]:
    """Yield the parameters of a building block with their defaults."""
    made = {each.name: each.default_factory for each in getattr(block, "__dataclass_fields__", {}).values()}
    for name, parameter in inspect.signature(block).parameters.items():
        factory = made.get(name, dataclasses.MISSING)
        if name == "name":
            continue
        if factory is not dataclasses.MISSING:
            yield f"{name}={factory()!r}"
        else:
            yield name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"


class Progress:
    """A bar on a terminal's stderr; elsewhere, as in a log file, a line now and then, and none in the first seconds.

    Args:
        title: What is under way.
    """

    def __init__(self, title: str) -> None:
        self.title, self.start, self.stream = title, time.perf_counter(), sys.stderr
        self.next = LOG_EVERY

    def __call__(self, done: int, total: int) -> None:
        """Show `done` of `total` frames."""
        taken = max(time.perf_counter() - self.start, 1e-9)
        rate = done / taken
        if not total:  # of what has no end
            if self.stream.isatty():
                self.stream.write(f"\r{self.title} {done} frames, {rate:.1f} a second ")
            elif taken >= self.next:
                self.next = taken + LOG_EVERY
                self.stream.write(f"{self.title.strip()}: {done} frames, {rate:.1f} a second\n")
        elif self.stream.isatty():
            full = 30 * done // max(total, 1)
            bar = "#" * full + "." * (30 - full)
            end = "\n" if done == total else ""
            self.stream.write(f"\r{self.title} [{bar}] {done}/{total} frames, {rate:.1f} a second {end}")
        elif taken >= self.next:
            self.next = taken + LOG_EVERY
            left = (total - done) / max(rate, 1e-9)
            self.stream.write(
                f"{self.title.strip()}: {done} of {total} frames ({100 * done // max(total, 1)} %), "
                f"{rate:.1f} a second, {left:.0f} s left\n"
            )
        self.stream.flush()


def say(line: str) -> None:
    """Print a line of results."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell(line: str) -> None:
    """Print a line to stderr, where stdout is for data."""
    sys.stderr.write(f"{line}\n")


def print_line(t: int, seconds: float | None, labels: Any, rows: Mapping[int, Any]) -> None:
    """Print what was found on a frame, a line of JSON an object; the mask as COCO's run lengths, not compressed."""
    from sam2_keyframe.app.exports import run_lengths
    from sam2_keyframe.video.confidence import told

    for obj_id, row in rows.items():
        line: dict[str, Any] = {"frame": t, "time": seconds, "object": obj_id, **run_lengths(labels == obj_id)}
        if row is not None:
            scores = told(row.scores).items()
            line["scores"] = {name: None if value != value else round(value, 4) for name, value in scores}
        say(json.dumps(line))


def _complain(message: str) -> None:
    sys.stderr.write(f"sam2-keyframe: error: {' '.join(message.split())}\n")


if __name__ == "__main__":
    sys.exit(main())
