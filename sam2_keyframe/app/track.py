"""Tracking a video from the command line: prompts in, masks, a video, a table and pictures out."""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sam2_keyframe._checks import brief
from sam2_keyframe.app import pictures
from sam2_keyframe.app.draw import INK, Pixels, need, write
from sam2_keyframe.app.exports import FILES, export, saved_masks
from sam2_keyframe.app.masks import Numbered
from sam2_keyframe.app.options import Prompt
from sam2_keyframe.app.output import TABLE, Table, Video, write_mask, write_png
from sam2_keyframe.app.page import FILM, PAGE, Page
from sam2_keyframe.app.signals import Stopped, reason, requests
from sam2_keyframe.app.suggest import SUGGESTIONS, Backwards, Evidence, Suggestion, check, suggest
from sam2_keyframe.app.suggest import write as write_suggestions
from sam2_keyframe.bank.statistics import MIB, FrameStats, MemoryStats
from sam2_keyframe.methods import KeyframeMemory, make_method
from sam2_keyframe.patches import driver_of
from sam2_keyframe.patches.driving import ENDLESS
from sam2_keyframe.plugin import memory_stats, wrap
from sam2_keyframe.replay import record
from sam2_keyframe.replay.recording import RECORDING
from sam2_keyframe.types import BASE_SCORES
from sam2_keyframe.video.confidence import told, with_confidence
from sam2_keyframe.video.decode import folder_images
from sam2_keyframe.video.source import FrameSource, init_state

OUTPUTS = ("masks", "overlay.mp4", TABLE, "timeline.png", "memory.png", RECORDING, PAGE)
"""What a run writes, unless told otherwise."""

WRITTEN = (*OUTPUTS, *FILES.values(), SUGGESTIONS, FILM)
"""What a run may write."""

FPS = 24.0
"""Of the overlay, where the source does not say."""

SHOWN, FEW = 12, 4
"""Objects in `memory.png`, at most; of more than a few, one moment each."""

LINE = 30
"""Height of the line under them, in pixels."""

FPS_RANGE = (0.2, 240.0)
"""What a source says of its frame rate is believed within these; else the overlay runs at `FPS`."""

ON_ERROR = ("stop", "hold", "skip")
"""What to do at a frame that cannot be read: end there; give it the masks of the frame before; leave it out."""


class FrameError(ValueError):
    """A frame of the video cannot be had."""


@dataclass
class Report:
    """What a run did.

    Attributes:
        frames: Frames whose masks were written.
        seconds: Time it took.
        stats: Memory statistics by object.
        stopped: Why it ended early; "" when it did not.
        signal: Number of the signal that ended it; 0 when none did.
        lost: Frames that could not be read, and were held or skipped.
        ended: Why a camera or a stream gave no more frames; "" where it did.
        suggestions: Frames on which a click would help most, where they were asked for.
    """

    frames: int = 0
    seconds: float = 0.0
    stats: dict[int, MemoryStats] = field(default_factory=dict)
    stopped: str = ""
    signal: int = 0
    lost: list[int] = field(default_factory=list)
    ended: str = ""
    suggestions: list[Suggestion] = field(default_factory=list)


def track(
    predictor: Any,
    source: FrameSource,
    method: KeyframeMemory,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    name: str = "",
    stamp: str = "",
    on_error: str = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    mask_names: Sequence[str] | None = None,
    overlay: bool = True,
    draw: bool = True,
    exports: Sequence[str] = (),
    file_names: Sequence[str] | None = None,
    about: Mapping[str, str] | None = None,
    suggestions: int = 0,
    follow: Callable[[int, float | None, NDArray[Any], Mapping[int, FrameStats | None]], None] | None = None,
) -> Report:
    """Track the prompted objects and write `OUTPUTS` into a folder, frame by frame.

    Ctrl-C, SIGTERM, a frame that cannot be read and a full disk end the run early: what was written so far stays, and
    is whole.

    Args:
        predictor: What `sam2_keyframe.wrap` takes.
        source: The video.
        method: The memory method.
        prompts: At least one.
        folder: An empty folder.
        name: Of the method, for pictures.
        stamp: A warning across the overlay.
        on_error: One of `ON_ERROR`. A frame that is held or skipped is not tracked; one is held once a later frame
            can be read, and has no row in the table.
        progress: Called with frames done and to do; 0 where that is not known.
        mask_names: What each frame's mask is called; None: 00000, 00001, ...
        overlay: Whether `overlay.mp4` is written.
        draw: Whether `index.html`, `timeline.png` and `memory.png` are.
        exports: More forms of the masks, of `exports.FILES`.
        file_names: What the frames are called in them; None: as the masks, with `.jpg`.
        about: What `index.html` tells of the run, by name; its title under "source".
        suggestions: How many frames to name on which a click would help most. To find them the video is tracked twice
            more, under another memory and backwards.
        follow: Called with each frame as it is tracked: its number, its time, object ids by pixel, and each object's
            row, None where it was prompted.

    Raises:
        ValueError: The method does not fit the predictor, or a prompt the video; or the first frame is unreadable.
        OSError: Not even the first frame's results can be written.
    """
    if suggestions and not source.rewinds:
        raise ValueError("what is live cannot be gone back in to check it: leave --suggest-prompts out")
    report, start = Report(), time.perf_counter()
    scale = max(1, min(4, round(480 / min(read_frame(source, 0).shape[:2]))))
    first = prompts[0].frame_idx
    measured = with_confidence(method)
    names = list(told(dict.fromkeys([*(scorer.name for scorer in measured.scorers), *BASE_SCORES], 0.0)))
    total = 0 if len(source) >= ENDLESS else len(source) - first
    mask_names = Numbered(len(source)) if mask_names is None else mask_names
    (folder / "masks").mkdir()
    timed = source.fps is not None and FPS_RANGE[0] <= source.fps <= FPS_RANGE[1]
    fps = source.fps if timed and source.fps else FPS
    last = prompts[0].frame_idx - 1
    picture: Pixels | None = None
    labels: NDArray[Any] = np.zeros(0, np.uint8)
    state = new_state(predictor, source)
    about = dict(about or {})
    seen: dict[int, dict[int, tuple[float, bool]]] = {}
    evidence: dict[int, Evidence] = {}
    objects = len({prompt.obj_id for prompt in prompts})
    page = Page(folder, total, objects, fps) if draw else None
    try:
        with (
            closing(Table(folder / TABLE, names)) as table,
            closing(Video(folder / "overlay.mp4", fps)) if overlay else nullcontext() as video,
            wrap(predictor, measured, keep_masks=False),  # masks are written as they come, and no frame is gone back to
            record(predictor, state, folder / RECORDING),
            requests() as stop,
        ):
            for t, frame, obj_ids, logits in sweep(predictor, state, source, prompts, on_error, report.lost):
                if on_error == "hold" and report.frames:
                    for gap in range(last + 1, t):
                        write_mask(folder / "masks" / f"{mask_names[gap]}.png", labels)
                        if video is not None and picture is not None:
                            video.add(picture, source.time(gap) if timed else None)
                labels, last = pictures.label_map(obj_ids, logits), t
                report.stats = memory_stats(state)
                rows = {obj_id: _row(report.stats.get(obj_id), t) for obj_id in obj_ids}
                write_mask(folder / "masks" / f"{mask_names[t]}.png", labels)
                for obj_id, row in rows.items():
                    table.add(t, obj_id, row, source.time(t))
                    if suggestions:
                        iou = math.nan if row is None else row.scores["predicted_iou"]
                        seen.setdefault(obj_id, {})[t] = iou, bool((labels == obj_id).any())
                if page is not None:
                    page.add(t, source.time(t), frame, labels, rows)
                if video is not None:
                    caption = _caption(name, t, rows, report.stats)
                    picture = np.asarray(pictures.overlay(frame, labels, scale=scale, caption=caption, stamp=stamp))
                    video.add(picture, source.time(t) if timed else None)
                report.frames += 1
                if follow is not None:
                    follow(t, source.time(t), labels, rows)
                progress(report.frames, total)
                if stop.number:
                    report.signal, report.stopped = stop.number, reason(stop.number)
                    break
        report.ended = source.ended
        mask_names = mask_names[: last + 1]
        try:
            if exports:
                saved = functools.partial(saved_masks, folder / "masks", mask_names)
                called = [f"{each}.jpg" for each in mask_names] if file_names is None else file_names
                times = [source.time(t) for t in range(last + 1)]
                export(saved, called, folder, exports, fps, times, about.get("source", "") or "video.mp4")
            if suggestions and not report.signal:
                evidence, numbers = _evidence(predictor, source, method, prompts, folder, mask_names, seen)
                report.suggestions = suggest(evidence, numbers, suggestions)
                write_suggestions(folder / SUGGESTIONS, report.suggestions)
            if page is not None:
                for obj_id, each in evidence.items():
                    for other, made in each.checks.items():
                        page.tell(obj_id, f"IoU with {other}", dict(zip(numbers, made.iou.tolist(), strict=True)))
                title = about.get("source", "") or "sam2_keyframe"
                page.write(title, name, method, stamp=stamp, about=about, suggestions=report.suggestions)
            if draw and any(each.rows for each in report.stats.values()):
                _draw(source, report.stats, method, prompts, folder, name, mask_names)
        except Stopped as error:  # the rest is whole
            report.signal, report.stopped = error.number, str(error)
    except (FrameError, OSError) as error:
        if not report.frames:
            raise
        report.stopped = str(error)
    finally:
        if page is not None:
            page.close()
    report.seconds = time.perf_counter() - start
    return report


def new_state(predictor: Any, source: FrameSource) -> Any:
    """Return an inference state over a lazily read video, made in the precision that it is tracked in."""
    with precision(torch.device(predictor.device)):
        return init_state(predictor, source)


@torch.inference_mode()
def sweep(
    predictor: Any,
    state: Any,
    source: FrameSource,
    prompts: Sequence[Prompt],
    on_error: str = "stop",
    lost: list[int] | None = None,
) -> Iterator[tuple[int, Pixels, list[int], torch.Tensor]]:
    """Yield frame number, frame, object ids and (N, 1, H, W) mask logits, from the first prompt to the end.

    An object is tracked from its first prompt on: prompts are given as their frame is reached, because SAM 2 tracks
    every object that it knows from the first prompt of any. Unless `on_error` is "stop", frames that cannot be read
    are passed over and put into `lost`.

    Raises:
        FrameError: A frame cannot be read, or one with a prompt.
    """
    given = sorted({prompt.frame_idx for prompt in prompts})
    driver = driver_of(predictor)
    for start, end in zip(given, [*given[1:], len(source)], strict=True):
        try:
            read_frame(source, start)
        except FrameError:
            if source.ended:
                return
            raise
        with precision(driver.device):
            driver.prompt(state, start, {each.obj_id: _given(each) for each in prompts if each.frame_idx == start})
        tracking = None
        for t in range(start, end):
            try:
                frame = read_frame(source, t)
            except FrameError:
                if source.ended:
                    return
                if on_error == "stop":
                    raise
                tracking = None
                if lost is not None:
                    lost.append(t)
                continue
            if tracking is None:
                tracking = driver.track(state, t, end - t - 1)
            with precision(driver.device):
                _, obj_ids, logits = next(tracking)
            yield t, frame, list(obj_ids), logits


def check_source(path: Path | str | int, source: FrameSource) -> None:
    """Refuse, before anything is written, a video whose frames will not all be had, as far as that can be told early.

    Raises:
        FrameError: A folder's pictures differ in size, or the first or the last frame cannot be read.
    """
    if isinstance(path, Path) and path.is_dir():
        _check_sizes(folder_images(path)[: len(source)])
    if source.rewinds:
        read_frame(source, len(source) - 1)
    read_frame(source, 0)


def _check_sizes(images: Sequence[Path]) -> None:
    """Refuse pictures of several sizes; the odd one is the first whose size is not that of most.

    Raises:
        FrameError: They differ, or one cannot be read.
    """
    module = need("PIL.Image")
    sizes: dict[Path, tuple[int, int]] = {}
    for path in images:
        try:
            with module.open(path) as image:
                sizes[path] = image.size
        except OSError:
            raise FrameError(f"{path} is not a picture that can be read; replace it or take it away") from None
    (most, count), *_ = Counter(sizes.values()).most_common(1)
    odd = next((path for path, size in sizes.items() if size != most), None)
    if odd is not None:
        raise FrameError(
            f"{odd} has {sizes[odd][0]} x {sizes[odd][1]} pixels, {count} of the {len(sizes)} frames have {most[0]} x "
            f"{most[1]}; give frames of one size"
        )


def read_frame(source: FrameSource, t: int) -> Pixels:
    """Return frame `t`, (H, W, 3) uint8 RGB.

    Raises:
        FrameError: It cannot be had.
    """
    try:
        return source.frame(t)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise FrameError(str(error)) from error


def _given(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a driver takes it."""
    if prompt.mask is not None:
        return {"mask": prompt.mask}
    given: dict[str, Any] = {}
    if prompt.points:
        given["points"] = np.array([point[:2] for point in prompt.points], np.float32)
        given["labels"] = np.array([point[2] for point in prompt.points], np.int32)
    if prompt.box:
        given["box"] = np.array(prompt.box, np.float32)
    return given


def precision(device: torch.device) -> Any:
    """Return bfloat16 autocast on a GPU, as SAM 2 is meant to be run; nothing elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def _row(stats: MemoryStats | None, frame_idx: int) -> FrameStats | None:
    """Return an object's row of a frame; None on a prompted frame, which SAM 2 does not track."""
    last = stats.last if stats is not None else None
    return last if last is not None and last.frame_idx == frame_idx else None


def _evidence(
    predictor: Any,
    source: FrameSource,
    method: KeyframeMemory,
    prompts: Sequence[Prompt],
    folder: Path,
    mask_names: Sequence[str],
    seen: Mapping[int, Mapping[int, tuple[float, bool]]],
) -> tuple[dict[int, Evidence], list[int]]:
    """Track the video under another memory and backwards; return what speaks for a click, by object, and the frames.

    Args:
        predictor: As in `track`, not wrapped.
        source: As in `track`.
        method: As in `track`.
        prompts: As in `track`.
        folder: Where the run's masks are.
        mask_names: As in `track`.
        seen: By object and frame, predicted IoU and whether the object shows.
    """
    numbers = sorted({t for frames in seen.values() for t in frames})
    evidence = {}
    for obj_id, frames in seen.items():
        columns = np.array([frames.get(t, (math.nan, math.nan)) for t in numbers], float).T
        evidence[obj_id] = Evidence(columns[0], columns[1])
    module = need("PIL.Image")

    def masks(t: int) -> NDArray[Any]:
        return np.asarray(module.open(folder / "masks" / f"{mask_names[t]}.png"))

    def passed(
        frames: FrameSource, memory: KeyframeMemory, given: Sequence[Prompt], number: Callable[[int], int]
    ) -> Iterator[tuple[int, NDArray[Any], list[int]]]:
        with wrap(predictor, memory, keep_masks=False):
            state = new_state(predictor, frames)
            for t, _, obj_ids, logits in sweep(predictor, state, frames, given, "skip"):
                yield number(t), pictures.label_map(obj_ids, logits), obj_ids

    other = "keyframe" if method == make_method("stock") else "stock"
    check(evidence, numbers, other, masks, passed(source, make_method(other), prompts, lambda t: t))
    last = {
        obj_id: max((t for t, (_, shown) in frames.items() if shown), default=-1) for obj_id, frames in seen.items()
    }
    end = max(last.values(), default=-1)
    back = [
        Prompt(end - t, obj_id, mask=masks(t) == obj_id)
        for obj_id, t in sorted(last.items(), key=lambda item: -item[1])
    ]
    if back:
        with FrameSource(Backwards(source.frame, end + 1), threads=1) as reverse:
            check(evidence, numbers, "backward", masks, passed(reverse, method, back, lambda t: end - t))
    return evidence, numbers


def _caption(name: str, frame_idx: int, rows: Mapping[int, FrameStats | None], stats: Mapping[int, MemoryStats]) -> str:
    """Return the line over a frame; `rows` by object, None where it was prompted, and so holds what it held before."""
    known = {obj_id: row for obj_id, row in rows.items() if row is not None}
    if not known:
        return f"{name}  frame {frame_idx}  prompted"
    last = [each.last.memory for each in stats.values() if each.last is not None]
    held, nbytes = (sum(getattr(memory, what) for memory in last) for what in ("frames", "nbytes"))
    marked = [str(obj_id) for obj_id, row in known.items() if row.keyframe]
    mark = f"  KEYFRAME of {', '.join(marked)}" if marked else ""
    return f"{name}  frame {frame_idx}  {held} memories, {nbytes / MIB:.1f} MiB{mark}"


def _draw(
    source: FrameSource,
    stats: dict[int, MemoryStats],
    method: KeyframeMemory,
    prompts: Sequence[Prompt],
    folder: Path,
    name: str,
    mask_names: Sequence[str],
) -> None:
    """Write `timeline.png` and `memory.png`."""
    write_png(folder / "timeline.png", pictures.timeline(stats, method=method, title=f"method: {name}"))
    if not source.rewinds:  # the frames of the filmstrip have gone by
        return
    module = need("PIL.Image")

    def mask(t: int, obj_id: int) -> NDArray[Any]:
        path = folder / "masks" / f"{mask_names[t]}.png"
        ids: NDArray[Any] = np.asarray(module.open(path)).astype(np.int32)
        return np.where(ids == obj_id, ids, 0)

    shown = [(obj_id, each) for obj_id, each in stats.items() if each.rows][:SHOWN]
    frames = functools.lru_cache(maxsize=64)(functools.partial(read_frame, source))
    strips = [
        pictures.filmstrip(
            each,
            frames,
            masks=functools.partial(mask, obj_id=obj_id),
            prompts=sorted(prompt.frame_idx for prompt in prompts if prompt.obj_id == obj_id),
            title=f"object {obj_id}: frames that SAM 2 attends to  (frame, age: significance)",
            name=name,
            moments=[each.rows[-1].frame_idx] if len(shown) > FEW else None,
        )
        for obj_id, each in shown
    ]
    left_out = [obj_id for obj_id in stats if obj_id not in dict(shown)]
    height = sum(strip.height for strip in strips) + (LINE if left_out else 0)
    sheet = module.new("RGB", (max(strip.width for strip in strips), height), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    if left_out:
        count = f"{len(left_out)} more object{'s are' if len(left_out) > 1 else ' is'} not drawn"
        write(sheet, (8, top + 4), f"{count}: {brief(', '.join(map(str, left_out)), 80)}", 15, INK)
    write_png(folder / "memory.png", sheet)
