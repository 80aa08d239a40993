"""The command `sam2-keyframe replay`: a method over the masks of a run, without SAM 2."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.app.draw import need
from sam2_keyframe.app.options import parse_set
from sam2_keyframe.app.output import new_folder, write_png
from sam2_keyframe.bank.statistics import MIB
from sam2_keyframe.methods import METHODS, make_method
from sam2_keyframe.replay.recording import RECORDING
from sam2_keyframe.video.decode import folder_images

OUTPUTS = ("timeline.csv", "summary.json", "timeline.png")
"""What a replay writes."""

EXAMPLE = "example: sam2-keyframe replay dog.mp4 run --set keep=0.2 --out replayed"


def add_parser(commands: Any, say: Callable[[str], None]) -> None:
    """Add the command; `say` prints a line of results."""
    run = commands.add_parser("replay", help="try a method on the masks of a run, without SAM 2", epilog=EXAMPLE)
    run.set_defaults(run=lambda options: _replay(options, say))
    run.add_argument("source", type=Path, help="the video file or folder of frames that the masks belong to")
    run.add_argument(
        "masks", type=Path, help=f"a run's folder or its {RECORDING}; or a folder of PNGs of object ids, from anywhere"
    )
    run.add_argument("--out", type=Path, required=True, help=f"folder for {', '.join(OUTPUTS)}")
    run.add_argument("--method", default="keyframe", help=f"{', '.join(METHODS)} (default: keyframe)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a choice of the method: keep=0.2")


def _replay(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    from sam2_keyframe.app import pictures
    from sam2_keyframe.replay import Recording, replay
    from sam2_keyframe.video.source import FrameSource

    start = time.perf_counter()
    method = make_method(options.method, **parse_set(options.set))
    with new_folder(options.out, OUTPUTS) as folder:
        as_images = options.masks.is_dir() and not (options.masks / RECORDING).is_file()
        masks = read_masks(options.masks) if as_images else Recording.load(options.masks)
        with FrameSource(options.source) as source:
            result = replay(source, masks, method)
        _write_table(folder / "timeline.csv", result.timeline())
        (folder / "summary.json").write_text(json.dumps(result.summary(), indent=2) + "\n")
        if any(each.rows for each in result.stats.values()):
            title = f"{options.method} replayed, masks held fixed"
            write_png(folder / "timeline.png", pictures.timeline(result.stats, keep=method.keep, title=title))
    frames = sum(each.frames for each in result.stats.values())
    say(
        f"replayed {frames} frames of {len(result.stats)} object{'s' * (len(result.stats) != 1)} in "
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


def read_masks(folder: Path) -> NDArray[np.uint8]:
    """Return the (T, H, W) object ids of a folder of palette or grey PNGs, whose numbers in their names are frames.

    Frames before the first picture are empty. Names without a number count from 0.

    Raises:
        ValueError: A picture cannot be read, is in colour or of another size, or one in between is missing.
    """
    module = need("PIL.Image")
    pictures = folder_images(folder)
    numbered = all(path.stem.isdecimal() for path in pictures)
    frames = [int(path.stem) if numbered else index for index, path in enumerate(pictures)]
    missing = sorted(set(range(frames[0], frames[-1])) - set(frames))
    if missing:
        raise ValueError(
            f"{folder}: the mask of frame {missing[0]} is missing; give one for every frame from the first"
        )
    found: list[NDArray[np.uint8]] = []
    for path in pictures:
        try:
            with module.open(path) as image:
                mode, ids = image.mode, np.asarray(image)
        except OSError:
            raise ValueError(f"{path} is not a picture that can be read; replace it") from None
        if mode not in ("P", "L", "1"):
            raise ValueError(f"{path} is a colour picture ({mode}); give palette or grey PNGs whose values are ids")
        if found and ids.shape != found[0].shape:
            raise ValueError(f"{path} has another size than the masks before it: {ids.shape} and {found[0].shape}")
        found.append(ids.astype(np.uint8))
    return np.stack([np.zeros_like(found[0])] * frames[0] + found)


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
