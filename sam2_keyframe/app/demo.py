"""The demo: SAM 2 as it is beside keyframe memory on generated clips, with the embedded model, offline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.app import pictures
from sam2_keyframe.app.draw import need
from sam2_keyframe.app.models import RANDOM_MODEL, default_device, load_model
from sam2_keyframe.app.options import Prompt
from sam2_keyframe.app.output import Video, check_place, new_folder, write_mask
from sam2_keyframe.app.signals import Stopped
from sam2_keyframe.app.track import FPS, new_state, sweep, track
from sam2_keyframe.bank.statistics import MIB
from sam2_keyframe.methods import make_method
from sam2_keyframe.plugin import memory_stats, wrap
from sam2_keyframe.synthetic import Clip, make_clip
from sam2_keyframe.video.source import FrameSource

METHODS = ("stock", "keyframe")
CHALLENGE = "long"
FRAMES = 36
SHOWN_SEED, SHOWN_SIZE = 7015, 256
SEEDS = tuple(range(7015, 7023))
SIZE = 128
"""Of the clips in the table: a quarter of the work. No clip has photographs, so that all machines make the same."""

OUTPUTS = ("clip", "mask.png", *METHODS, "side_by_side.mp4")
LOST = 0.1
"""Mean J over the last five visible frames below which the object counts as lost."""


@dataclass
class Score:
    """One method on one clip.

    Attributes:
        overlap: Mean J (IoU) over the frames after the first, 0 to 1.
        lost: Whether the object was lost at the end.
        mib: Held at the end.
        tokens: Attended to on the last frame.
        milliseconds: A frame, median.
    """

    overlap: float
    lost: bool
    mib: float
    tokens: int
    milliseconds: float


def demo(out: Path, say: Callable[[str], None], progress: Callable[[str], Callable[[int, int], None]]) -> None:
    """Run the demo and write its results.

    Args:
        out: Folder for them; an earlier demo's are replaced.
        say: Prints a line.
        progress: Makes a progress bar with a title.

    Raises:
        ValueError: The folder cannot be written.
        ImportError: SAM 2 or an extra is missing.
    """
    start = time.perf_counter()
    check_place(out, OUTPUTS)
    predictor, stamp = load_model("micro", default_device(), image_size=SHOWN_SIZE)
    say(f"note: {stamp}")
    say(f"1 of 2: an object beside a look-alike is covered, leaves and returns ({FRAMES} frames, {SHOWN_SIZE} px)")
    with new_folder(out, OUTPUTS) as folder:
        clip = make_clip(CHALLENGE, SHOWN_SEED, frames=FRAMES, size=SHOWN_SIZE, photos=False)
        _save_clip(clip, folder)
        with FrameSource(clip.frames) as source:
            for name in METHODS:
                (folder / name).mkdir()
                prompt = Prompt(0, 1, mask=clip.masks[0] == 1)
                bar = progress(f"{name:>8}")
                method = make_method(name)
                report = track(predictor, source, method, [prompt], folder / name, name=name, stamp=stamp, progress=bar)
                if report.signal:
                    raise Stopped(report.signal)
                if report.stopped:
                    raise OSError(report.stopped)
        _side_by_side(clip, folder, stamp)
        say(f"2 of 2: both on {len(SEEDS)} such clips, seeds {SEEDS[0]} to {SEEDS[-1]}, {SIZE} px")
        scores = _compare(load_model("micro", default_device(), image_size=SIZE)[0], progress("  clips"))
    for line in table(scores):
        say(line)
    if stamp == RANDOM_MODEL:
        say("the weights are random: the masks, and so J, mean nothing; memory and tokens are what they will be")
    say(f"note: {stamp}; {time.perf_counter() - start:.0f} s in all. Look at:")
    for path in ("side_by_side.mp4", "keyframe/memory.png", "keyframe/timeline.png", "keyframe/frames.csv"):
        say(f"  {out / path}")
    say("do it yourself:")
    say(f"  sam2-keyframe track {out / 'clip'} --mask {out / 'mask.png'} --model micro --out my-run")


def table(scores: dict[str, Sequence[Score]]) -> list[str]:
    """Return the lines of a table: a row a method, means over all clips, lost ones included."""
    lines = [f"{'':>10}{'J, %':>8}{'lost':>8}{'MiB held':>10}{'tokens':>9}{'ms/frame':>10}"]
    for name, each in scores.items():
        lost = f"{sum(score.lost for score in each)} of {len(each)}"
        overlap, mib, tokens, milliseconds = np.mean(
            [(100 * score.overlap, score.mib, score.tokens, score.milliseconds) for score in each], axis=0
        )
        lines.append(f"{name:>10}{overlap:>8.1f}{lost:>8}{mib:>10.2f}{tokens:>9.0f}{milliseconds:>10.1f}")
    return [
        *lines,
        f"mean over {len(next(iter(scores.values())))} clips, lost ones included; J: overlap with the truth",
    ]


def score(clip: Clip, masks: Sequence[NDArray[np.bool_]], rows: Any) -> Score:
    """Return how well masks fit a clip's object 1, with the memory it took.

    Args:
        clip: The clip.
        masks: (H, W) bool a frame, the first one prompted.
        rows: The object's `MemoryStats.rows`.
    """
    overlaps = [_overlap(mask, truth == 1) for mask, truth in zip(masks[1:], clip.masks[1:], strict=True)]
    seen = [each for each, visible in zip(overlaps, clip.visible[1:, 0], strict=True) if visible]
    lost = float(np.mean(seen[-5:] or [1.0])) < LOST
    taken = rows[-1].memory
    milliseconds = float(np.median([row.milliseconds for row in rows]))
    return Score(float(np.mean(overlaps)), lost, taken.nbytes / MIB, taken.tokens, milliseconds)


def _overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return J: the IoU, 1 where both are empty."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum() / union) if union else 1.0


def _compare(predictor: Any, progress: Callable[[int, int], None]) -> dict[str, Sequence[Score]]:
    scores: dict[str, list[Score]] = {name: [] for name in METHODS}
    for index, seed in enumerate(SEEDS):
        clip = make_clip(CHALLENGE, seed, frames=FRAMES, size=SIZE, photos=False)
        for name in METHODS:
            with FrameSource(clip.frames) as source, wrap(predictor, name):
                state = new_state(predictor, source)
                prompt = Prompt(0, 1, mask=clip.masks[0] == 1)
                masks = [(logits[0, 0] > 0).cpu().numpy() for *_, logits in sweep(predictor, state, source, [prompt])]
                scores[name].append(score(clip, masks, memory_stats(state)[1].rows))
        progress((index + 1) * FRAMES, len(SEEDS) * FRAMES)
    return dict(scores)


def _save_clip(clip: Clip, folder: Path) -> None:
    module = need("PIL.Image")
    (folder / "clip").mkdir()
    for t, frame in enumerate(clip.frames):
        module.fromarray(frame).save(folder / "clip" / f"{t:05d}.jpg", quality=95)
    write_mask(folder / "mask.png", clip.masks[0])


def _side_by_side(clip: Clip, folder: Path, stamp: str) -> None:
    """Write what both methods saw beside each other."""
    module = need("PIL.Image")
    with closing(Video(folder / "side_by_side.mp4", FPS / 3)) as video:
        for t, frame in enumerate(clip.frames):
            panels = []
            for name in METHODS:
                labels = np.asarray(module.open(folder / name / "masks" / f"{t:05d}.png"))
                panels.append(pictures.overlay(frame, labels, scale=2, caption=f"{name}  frame {t}", stamp=stamp))
            video.add(np.concatenate([np.asarray(panel) for panel in panels], 1))
