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
from sam2_keyframe.synthetic.casting import runs
from sam2_keyframe.video.source import FrameSource

METHODS = ("stock", "keyframe")
CHALLENGE = "absence"
FRAMES = 96
SHOWN_SEED, SHOWN_SIZE = 7016, 256
SEEDS = tuple(range(7015, 7023))
SIZE = 128
"""Of the clips in the table: a quarter of the work. No clip has photographs, so that all machines make the same."""

OUTPUTS = ("clip", "mask.png", *METHODS, "side_by_side.mp4")
RETURN = 30
"""Frames after a return over which recovery is measured."""


@dataclass
class Score:
    """One method on one clip.

    Attributes:
        overlap: Mean J (IoU) over the frames after the first, 0 to 1.
        recovery: Mean J over the first 30 frames after each return, 0 to 1.
        false_masks: Share of the frames without the object on which a mask is shown, 0 to 1.
        mib: Held at the end.
        tokens: Attended to on the last frame.
        milliseconds: A frame, median.
    """

    overlap: float
    recovery: float
    false_masks: float
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
    say(f"1 of 2: an object is away for a long while and returns ({FRAMES} frames, {SHOWN_SIZE} px)")
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
    for line in table(scores, SEEDS):
        say(line)
    if stamp == RANDOM_MODEL:
        say("the weights are random: the masks, and so J, mean nothing; memory and tokens are what they will be")
    say(f"note: {stamp}; {time.perf_counter() - start:.0f} s in all. Look at:")
    for path in ("side_by_side.mp4", "keyframe/memory.png", "keyframe/timeline.png", "keyframe/frames.csv"):
        say(f"  {out / path}")
    say("do it yourself:")
    say(f"  sam2-keyframe track {out / 'clip'} --mask {out / 'mask.png'} --model micro --out my-run")


def table(scores: dict[str, Sequence[Score]], seeds: Sequence[int]) -> list[str]:
    """Return the lines of two tables: every clip's scores under each method with their means, then what was held.

    Args:
        scores: By method, one a clip.
        seeds: The clips' seeds.
    """
    lines = [f"{'':>6}" + "".join(f"{name:>30}" for name in scores)]
    lines.append(f"{'seed':>6}" + "".join(f"{'J':>8}{'recovery':>10}{'false masks':>12}" for _ in scores))
    told = np.array([[(s.overlap, s.recovery, s.false_masks) for s in each] for each in scores.values()]) * 100
    for seed, row in zip([*map(str, seeds), "mean"], [*told.swapaxes(0, 1), told.mean(1)], strict=True):
        lines.append(f"{seed:>6}" + "".join(f"{j:>8.1f}{back:>10.1f}{false:>12.1f}" for j, back, false in row))
    lines += [
        f"percent; J: overlap with the truth, recovery: over the first {RETURN} frames after a return",
        f"{'':>10}{'MiB held':>10}{'tokens':>9}{'ms/frame':>10}",
    ]
    for name, each in scores.items():
        mib, tokens, milliseconds = np.mean([(s.mib, s.tokens, s.milliseconds) for s in each], axis=0)
        lines.append(f"{name:>10}{mib:>10.2f}{tokens:>9.0f}{milliseconds:>10.1f}")
    return lines


def score(clip: Clip, masks: Sequence[NDArray[np.bool_]], rows: Any) -> Score:
    """Return how well masks fit a clip's object 1, with the memory it took.

    Args:
        clip: The clip.
        masks: (H, W) bool a frame, the first one prompted.
        rows: The object's `MemoryStats.rows`.
    """
    overlaps = np.array([_overlap(mask, truth == 1) for mask, truth in zip(masks, clip.masks, strict=True)])
    gone = ~clip.visible[:, 0]
    back = [overlaps[stop : stop + RETURN][~gone[stop : stop + RETURN]] for _, stop in runs(gone) if stop < len(gone)]
    shown = np.array([mask.any() for mask in masks])
    taken = rows[-1].memory
    return Score(
        overlap=float(overlaps[1:].mean()),
        recovery=float(np.mean([each.mean() for each in back])) if back else float("nan"),
        false_masks=float(shown[gone].mean()) if gone.any() else 0.0,
        mib=taken.nbytes / MIB,
        tokens=taken.tokens,
        milliseconds=float(np.median([row.milliseconds for row in rows])),
    )


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
