"""The command `sam2-keyframe replay`: a method over the masks of a run, without SAM 2."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam2_keyframe.app.masks import BINARY_HELP, frame_names, read_masks
from sam2_keyframe.app.options import add_method_arguments, chosen_method, local_path
from sam2_keyframe.app.output import new_folder, write_png
from sam2_keyframe.bank.statistics import MIB
from sam2_keyframe.replay.recording import RECORDING

OUTPUTS = ("timeline.csv", "summary.json", "timeline.png")
"""What a replay writes."""

EXAMPLE = "example: sam2-keyframe replay dog.mp4 run --set change=0.2 --out replayed"


def add_parser(commands: Any, say: Callable[[str], None]) -> None:
    """Add the command; `say` prints a line of results."""
    run = commands.add_parser("replay", help="try a method on the masks of a run, without SAM 2", epilog=EXAMPLE)
    run.set_defaults(run=lambda options: _replay(options, say))
    run.add_argument("source", type=local_path, help="the video file or folder of frames that the masks belong to")
    run.add_argument(
        "masks",
        type=local_path,
        help=f"a run's folder or its {RECORDING}; or a folder of PNGs of object ids, from anywhere",
    )
    run.add_argument("--binary", action="store_true", help=BINARY_HELP)
    run.add_argument("--out", type=local_path, required=True, help=f"folder for {', '.join(OUTPUTS)}")
    add_method_arguments(run)


def _replay(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    from sam2_keyframe.app import pictures
    from sam2_keyframe.replay import Recording, replay
    from sam2_keyframe.video.confidence import with_confidence
    from sam2_keyframe.video.source import FrameSource

    start = time.perf_counter()
    name, method = chosen_method(options.method, options.memory, options.set)
    with new_folder(options.out, OUTPUTS) as folder:
        with FrameSource(options.source) as source:
            if options.masks.is_dir() and not (options.masks / RECORDING).is_file():
                names = frame_names(options.source, len(source))
                result = replay(source, read_masks(options.masks, names, options.binary), method)
            else:
                result = replay(source, Recording.load(options.masks), with_confidence(method))
        _write_table(folder / "timeline.csv", result.timeline())
        (folder / "summary.json").write_text(json.dumps(result.summary(), indent=2) + "\n")
        if any(each.rows for each in result.stats.values()):
            title = f"{name} replayed, masks held fixed"
            write_png(folder / "timeline.png", pictures.timeline(result.stats, method=method, title=title))
    if result.unknown:
        say(f"note: {result.unknown_note}")
    frames = len({row.frame_idx for each in result.stats.values() for row in each.rows})
    say(
        f"replayed {len(result.stats)} object{'s' * (len(result.stats) != 1)} over {frames} frames in "
        f"{time.perf_counter() - start:.1f} s, without SAM 2"
    )
    say("object  keyframes    memories (SAM 2 alone)     MiB (SAM 2 alone)     tokens a frame")
    for obj_id, each in result.stats.items():
        last = each.last
        if last is not None:
            held = f"{each.peak_frames} ({last.stock.frames})"
            taken = f"{each.peak_bytes / MIB:.2f} ({last.stock.nbytes / MIB:.2f})"
            kept = f"{each.keyframes} of {each.frames}"
            say(f"{obj_id!s:>6}  {kept:>9}  {held:>24}  {taken:>20}  {each.peak_tokens:>17,}")
    say("masks were held fixed: under this method SAM 2 might have drawn others")
    for name in sorted(path.name for path in options.out.iterdir()):
        say(f"  {options.out / name}")
    return 0


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    """Return a value as `frames.csv` has it: frames with spaces between them, 0 or 1, nothing where unknown."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value
