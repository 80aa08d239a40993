"""The command `sam2-keyframe app`: the page, on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam2_keyframe.app.draw import need
from sam2_keyframe.app.models import CHOICES, SIZES, default_device, find_checkpoint
from sam2_keyframe.app.options import local_path
from sam2_keyframe.app.uploads import Limits

HERE = "127.0.0.1"


def add_app(commands: Any, say: Callable[[str], None]) -> None:
    """Add the command; `say` prints a line of results."""
    run = commands.add_parser("app", help="click on objects in a video in the browser, and see what is remembered")
    run.set_defaults(run=lambda options: _app(options, say))
    run.add_argument(
        "folder", type=local_path, nargs="?", default=Path("."),
        help="the only folder from which videos are loaded by name (default: this one); others are uploaded",
    )  # fmt: skip
    run.add_argument(
        "--model", action="append", default=[],
        help=f"what can be chosen, more than once: {CHOICES} (default: official sizes in checkpoints/, and micro)",
    )  # fmt: skip
    run.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...")
    run.add_argument("--host", default=HERE, help="address to listen on (default: 127.0.0.1, this machine alone)")
    run.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860 on)")
    run.add_argument("--max-upload", type=int, default=Limits.megabytes, metavar="MB", help="largest video (500)")
    run.add_argument("--max-frames", type=int, default=Limits.frames, metavar="N", help="longest video (5000)")


def _app(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    need("gradio", "app")
    from sam2_keyframe.app.studio_page import serve

    if not options.folder.is_dir():
        raise ValueError(f"{options.folder} is no folder; give the one that your videos are in")
    for name in ("max_upload", "max_frames"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    if options.host != HERE:
        say(f"note: whoever reaches {options.host} can use this app and see {options.folder.resolve()}")
    models = options.model or [*_at_hand(), "micro"]
    limits = Limits(options.max_upload, options.max_frames)
    serve(models, options.device or default_device(), options.folder, limits, options.host, options.port, say)
    return 0


def _at_hand() -> list[str]:
    """Return the official sizes whose checkpoints are in `checkpoints/`."""
    found = []
    for size in SIZES:
        try:
            find_checkpoint(size)
        except FileNotFoundError:
            continue
        found.append(size)
    return found
