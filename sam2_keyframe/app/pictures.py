"""Pictures of a run: masks over a frame, significance and occupancy over time, the frames that SAM 2 remembers.

Each function returns a PIL image: notebooks show it as it is, `.save(path)` writes it. Pillow and matplotlib are
imported when a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe._checks import brief
from sam2_keyframe.app.draw import COLOURS, INK, PAPER, WARNING, Colour, Pixels, colour_of, need, picture, tint, write
from sam2_keyframe.bank.statistics import MIB, FrameStats, MemoryStats
from sam2_keyframe.conditions import thresholds_of
from sam2_keyframe.memory import KeyframeMemory

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 12
"""Objects that a timeline draws by name."""

View = tuple[int, int, int, int]
"""Left, top, right and bottom of what a tile shows of a frame, in pixels."""

SURROUNDINGS, LEAST_VIEW, MOST_VIEW = 2.0, 0.15, 0.75
"""Tiles show so many times the largest extent of the object, at least that share of the frame; above it, all of it."""

PROMPTED: Colour = (205, 120, 0)
KEYFRAME: Colour = (31, 111, 180)

__all__ = ["COLOURS", "filmstrip", "label_map", "overlay", "timeline"]


def label_map(obj_ids: Sequence[int], mask_logits: Any) -> NDArray[np.int32]:
    """Return one picture of ids from what `propagate_in_video` yields.

    Args:
        obj_ids: N object ids, 1 or more.
        mask_logits: (N, 1, H, W) tensor of mask logits; > 0 is object.

    Returns:
        (H, W) int32: 0 is background; where masks overlap, the object of the highest logit.
    """
    best, index = mask_logits[:, 0].max(dim=0)
    ids = index.new_tensor([int(obj_id) for obj_id in obj_ids])
    labels: NDArray[np.int32] = (ids[index] * (best > 0)).cpu().numpy().astype(np.int32)
    return labels


def overlay(
    frame: Pixels,
    masks: NDArray[Any],
    *,
    opacity: float = 0.4,
    scale: int = 1,
    caption: str = "",
    stamp: str = "",
) -> Image:
    """Draw objects over a frame: tinted, outlined, and numbered.

    Args:
        frame: (H, W, 3) uint8 RGB.
        masks: (H, W) whole numbers: 0 is background, the others are object ids.
        opacity: Of the tint, 0 to 1; outlines are opaque.
        scale: Whole number by which the picture is enlarged, so that lines and letters are fine enough.
        caption: A line at the top left.
        stamp: A warning across the bottom.

    Raises:
        ValueError: The masks are not of the frame's size.
        ImportError: Pillow is missing.
    """
    if masks.shape != frame.shape[:2]:
        raise ValueError(
            f"masks of shape {masks.shape} on a frame of {frame.shape[:2]}: give masks of the frame's size"
        )
    module = need("PIL.Image")
    image = module.fromarray(np.ascontiguousarray(frame))
    if scale > 1:
        image = image.resize((frame.shape[1] * scale, frame.shape[0] * scale), module.Resampling.BICUBIC)
        masks = masks.repeat(scale, 0).repeat(scale, 1)
    pixels = np.asarray(image).copy()
    size = max(11, min(pixels.shape[:2]) // 26)
    ids = [int(obj_id) for obj_id in np.unique(masks) if obj_id]
    for obj_id in ids:
        tint(pixels, masks == obj_id, colour_of(obj_id), opacity, max(1, size // 9))
    image = module.fromarray(pixels)
    for obj_id in ids if len(ids) > 1 else []:
        spots = np.argwhere(masks == obj_id)
        row, column = spots[np.square(spots - spots.mean(0)).sum(1).argmin()]  # of the object, nearest to its middle
        write(image, (int(column), int(row)), str(obj_id), size, INK, colour_of(obj_id), centre=True)
    if caption:
        write(image, (size // 2, size // 2), caption, size, PAPER, INK)
    if stamp:
        place = (image.width // 2, image.height - size)
        write(image, place, stamp, size, PAPER, WARNING, centre=True)
    return image  # type: ignore[no-any-return]


def timeline(
    stats: MemoryStats | Mapping[int, MemoryStats], *, method: KeyframeMemory | None = None, title: str = ""
) -> Image:
    """Draw significance over time with the keyframes marked, and beneath it the occupancy beside SAM 2's alone.

    Where an object is hidden its line is pale; which objects are hidden when is drawn apart, or shaded for one alone.

    Args:
        stats: One object's statistics, or several by object id as `memory_stats` returns them. Their last 1,000
            rows are drawn; of many objects the first twelve by name, and all in what memory they take.
        method: The method, of whose rule for keyframes the bound on that score is drawn.
        title: A line above.

    Raises:
        ValueError: There is no row to draw.
        ImportError: matplotlib or Pillow is missing.
    """
    by_id = {1: stats} if isinstance(stats, MemoryStats) else dict(stats)
    if not any(each.rows for each in by_id.values()):
        raise ValueError("there are no statistics yet: track at least one frame first")
    tracked = [obj_id for obj_id, each in by_id.items() if each.rows]
    drawn = {obj_id: by_id[obj_id] for obj_id in tracked[:MOST]}
    hidden = {obj_id: frames for obj_id, each in drawn.items() if (frames := _hidden(each))}
    apart = len(drawn) > 1 and bool(hidden)
    heights = (3, *([0.25 + 0.12 * len(hidden)] if apart else []), 2, 2)
    figure = need("matplotlib.figure").Figure(figsize=(10, 6 + apart), dpi=110, layout="constrained")
    top, *between, middle, bottom = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _significance(top, drawn, method)
    if apart:
        _absences(between[0], drawn, hidden)
    elif hidden:
        for frame_idx in next(iter(hidden.values())):
            top.axvspan(frame_idx - 0.5, frame_idx + 0.5, color="#000000", alpha=0.09, lw=0)
        top.plot([], [], color="#dddddd", lw=6, label="object not seen")
    if len(tracked) > len(drawn):
        top.plot([], [], " ", label=f"{len(tracked) - len(drawn)} more objects: not drawn")
    if len(drawn) > 1:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    else:
        top.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, frameon=False, ncols=3)
    of_all = f"\nof {len(tracked)} objects" if len(tracked) > 1 else ""
    total = {name: _summed(by_id, name) for name in ("stock", "window", "memory")}
    look: dict[str, Any] = {
        "stock": {"color": "#b0402f", "label": "SAM 2 alone", "ls": "--"},
        "window": {"color": "#828690", "label": "lossless window", "ls": ":", "lw": 2.4},
        "memory": {"color": "#1f6fb4", "label": "this run", "lw": 2},
    }
    for name, occupancy in total.items():
        frames = sorted(occupancy)
        middle.plot(frames, [occupancy[t][0] / MIB for t in frames], **look[name])
        if name != "window":  # it reads exactly what SAM 2 alone reads
            bottom.plot(frames, [occupancy[t][1] for t in frames], **look[name])
    middle.set_ylabel(f"memory, MiB{of_all}", fontsize=9)
    bottom.set_ylabel(f"tokens attended{of_all}", fontsize=9)
    bottom.set_xlabel("frame")
    middle.legend(loc="lower right", bbox_to_anchor=(1, 0.96), fontsize=8, frameon=False, ncols=3)
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    longest = max(by_id.values(), key=lambda each: each.frames)
    if longest.frames > len(longest.rows):
        title = f"{title}  (the last {len(longest.rows):,} of {longest.frames:,} frames)".strip()
    top.set_title(brief(title, 70), loc="left", fontsize=10)
    return picture(figure)


def filmstrip(
    stats: MemoryStats,
    frames: Callable[[int], Pixels],
    *,
    masks: Callable[[int], NDArray[Any]] | None = None,
    moments: Sequence[int] | None = None,
    prompts: Sequence[int] | None = None,
    title: str = "",
    name: str = "this run",
    slots: int = 6,
    width: int = 132,
) -> Image:
    """Draw what SAM 2 remembers at chosen frames: what it would attend to alone, above what it attended to here.

    Blue are the keyframes held, those in the rolling buffer; what was a keyframe once and is read as a recent frame is
    not. Where masks show the object to be small, every tile is cropped around it, all at one scale.

    Args:
        stats: One object's statistics.
        frames: Returns frame t as (H, W, 3) uint8 RGB: `frames.__getitem__` of a list or an array.
        masks: Returns the (H, W) mask or object ids of frame t, to tint.
        moments: Frames to show, each tracked and among the last 1,000; None chooses up to three: where the object
            is seen again after it was hidden, the end, the middle.
        prompts: Prompted frames; None takes the attended frames that were never tracked themselves.
        title: A line above.
        name: What the lower of each two rows is called.
        slots: Memories SAM 2 reads besides prompted frames (`num_maskmem` - 1).
        width: Of a thumbnail, in pixels.

    Raises:
        ValueError: There is no row to draw, or a moment was not tracked.
        ImportError: Pillow is missing.
    """
    rows = {row.frame_idx: row for row in stats.rows}
    if not rows:
        raise ValueError("there are no statistics yet: track at least one frame first")
    chosen = _moments(list(rows.values())) if moments is None else list(moments)
    unknown = [t for t in chosen if t not in rows]
    if unknown:
        raise ValueError(f"moments={unknown}: these frames were not tracked; choose from {min(rows)} to {max(rows)}")
    if prompts is None:
        prompts = sorted({t for row in rows.values() for t in row.attended} - set(rows))
    module = need("PIL.Image")
    strips = []
    for t in chosen:
        before = _before(rows, t)
        after = [s for s in rows if s != t][:1]  # of the first frame tracked
        way = -1 if (before[-1] > t if before else after and after[0] < t) else 1
        near = [s for s in before if abs(t - s) <= slots and s not in prompts]
        given = [s for s in prompts if (t - s) * way > 0 or s in rows[t].attended]  # a later one: maybe not yet
        strips += [(t, way, "SAM 2 alone", sorted([*given, *near])), (t, way, name, sorted(rows[t].attended))]
    example = frames(chosen[0])
    height = round(width * example.shape[0] / example.shape[1])
    views = _views(masks, {s for t, *_, kept in strips for s in (t, *kept)}) if masks else lambda s: None
    columns = max(4, *(len(kept) for *_, kept in strips))
    pad, head, line, left = 8, 34, 20, 96
    row_height = height + line + pad
    size = (left + (columns + 1) * (width + pad) + 2 * pad, head + len(strips) * row_height + len(chosen) * 10)
    image = module.new("RGB", size, PAPER)
    if title:
        write(image, (pad, pad), title, 15, INK)
    for place, colour, text in ((3, PROMPTED, "prompted"), (2, KEYFRAME, "keyframe")):
        write(image, (size[0] - place * 90, pad + 2), text, 13, colour)
    top = head
    for index, (t, way, row_name, kept) in enumerate(strips):
        write(image, (pad, top + height // 2 - 7), row_name, 14, INK)
        thumbs = [(s, _note(rows.get(s), s, (t - s) * way, s in prompts), s in prompts) for s in kept]
        for column, (s, note, prompted) in enumerate(thumbs):
            corner = (left + column * (width + pad), top)
            ours = index % 2 and s in rows[t].keyframes
            edge = PROMPTED if prompted else KEYFRAME if ours else None
            image.paste(_thumbnail(frames(s), masks and masks(s), (width, height), edge, views(s)), corner)
            write(image, (corner[0], top + height + 2), note, 12, INK)
        if index % 2 == 0:
            corner = (left + columns * (width + pad) + 2 * pad, top + row_height // 2)
            image.paste(_thumbnail(frames(t), masks and masks(t), (width, height), INK, views(t)), corner)
            write(image, (corner[0], corner[1] + height + 2), f"now: frame {t}", 12, INK)
        top += row_height + (10 if index % 2 else 0)
    return image  # type: ignore[no-any-return]


def _views(masks: Callable[[int], NDArray[Any]], shown: Collection[int]) -> Callable[[int], View | None]:
    """Return what part of each frame is shown: around the object, at one scale, or where it is next if it is hidden."""
    boxes: dict[int, View] = {}
    shape = (0, 0)
    for s in shown:
        mask = masks(s) != 0
        shape = mask.shape
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        if len(rows):
            boxes[s] = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    largest = max((max((x1 - x0) / shape[1], (y1 - y0) / shape[0]) for x0, y0, x1, y1 in boxes.values()), default=1.0)
    share = max(SURROUNDINGS * largest, LEAST_VIEW)
    if share > MOST_VIEW:
        return lambda s: None
    height, width = (max(1, round(share * side)) for side in shape)

    def view(s: int) -> View:
        x0, y0, x1, y1 = boxes[min(boxes, key=lambda other: abs(other - s))]
        left = min(max((x0 + x1 - width) // 2, 0), shape[1] - width)
        top = min(max((y0 + y1 - height) // 2, 0), shape[0] - height)
        return left, top, left + width, top + height

    return view


def _thumbnail(
    frame: Pixels, mask: NDArray[Any] | None, size: tuple[int, int], edge: Colour | None, view: View | None
) -> Image:
    module = need("PIL.Image")
    if view is not None and mask is not None:
        left, top, right, bottom = view
        frame, mask = frame[top:bottom, left:right], mask[top:bottom, left:right]
    small = module.fromarray(np.ascontiguousarray(frame)).resize(size, module.Resampling.LANCZOS)
    if mask is not None:
        ids = module.fromarray(mask.astype(np.int32), mode="I").resize(size, module.Resampling.NEAREST)
        small = overlay(np.asarray(small), np.asarray(ids), opacity=0.35)
    if edge is not None:
        need("PIL.ImageDraw").Draw(small).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=edge, width=3)
    return small  # type: ignore[no-any-return]


def _note(row: FrameStats | None, frame_idx: int, age: int, prompted: bool) -> str:
    """Return the line under a thumbnail: its frame, age and score."""
    note = f"frame {frame_idx}, {abs(age)} {'ago' if age >= 0 else 'ahead'}"
    if prompted:
        return note
    return note if row is None or math.isnan(row.significance) else f"{note}: {row.significance:.2f}"


def _before(rows: Mapping[int, FrameStats], frame_idx: int) -> list[int]:
    """Return the frames tracked before one."""
    order = list(rows)
    return order[: order.index(frame_idx)]


def _moments(rows: Sequence[FrameStats]) -> list[int]:
    """Return up to three telling frames: the first after each absence of three frames or more, the end, the middle."""
    visible = [row.scores.get("object_score", 1.0) > 0 for row in rows]
    back = [i for i in range(3, len(rows)) if visible[i] and not any(visible[i - 3 : i])]
    telling = [*back[:2], len(rows) - 1, len(rows) // 2, len(rows) // 4]
    return sorted(rows[i].frame_idx for i in list(dict.fromkeys(telling))[:3])


def _hidden(stats: MemoryStats) -> list[int]:
    """Return the frames on which SAM 2 does not see the object."""
    return sorted(row.frame_idx for row in stats.rows if row.scores.get("object_score", 1.0) <= 0)


def _significance(axes: Any, by_id: Mapping[Any, MemoryStats], method: KeyframeMemory | None) -> None:
    known = False
    for place, (obj_id, each) in enumerate(by_id.items()):
        colour = tuple(0.8 * channel / 255 for channel in colour_of(obj_id, place))
        rows, hidden = sorted(each.rows, key=lambda row: row.frame_idx), set(_hidden(each))
        marked = [row for row in rows if row.keyframe]
        known = known or any(not math.isnan(row.significance) for row in rows)
        label = f"object {brief(obj_id, 20)}: {len(marked)} of {len(rows)} are keyframes"
        frames, values = [row.frame_idx for row in rows], [row.significance for row in rows]
        if hidden:
            axes.plot(frames, values, color=colour, lw=0.8, alpha=0.35)
        seen = [math.nan if t in hidden else value for t, value in zip(frames, values, strict=True)]
        axes.plot(frames, seen, color=colour, lw=1.4, label=label)
        height = [0.0 if math.isnan(row.significance) else row.significance for row in marked]
        axes.plot([row.frame_idx for row in marked], height, "o", color=colour, ms=5, mec="white")
    if known and method is not None:
        for rule in thresholds_of(method.keyframes.when):
            if rule.scorer == method.significance:
                axes.axhline(rule.bound, color="#222222", lw=0.8, ls="--", label=repr(rule))
    axes.set_ylabel("significance" if known else "significance (not measured)", fontsize=9)


def _absences(axes: Any, by_id: Mapping[Any, MemoryStats], hidden: Mapping[Any, Sequence[int]]) -> None:
    """Draw a row an object that is hidden at some time, with bars where it is."""
    names = list(by_id)
    for row, (obj_id, frames) in enumerate(hidden.items()):
        colour = tuple(0.8 * channel / 255 for channel in colour_of(obj_id, names.index(obj_id)))
        axes.broken_barh([(t - 0.5, 1) for t in frames], (row - 0.35, 0.7), color=colour, lw=0)
    axes.set_yticks(range(len(hidden)), [brief(obj_id, 12) for obj_id in hidden], fontsize=7)
    axes.set_ylim(len(hidden) - 0.4, -0.6)
    axes.set_ylabel("not\nseen", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _summed(by_id: Mapping[int, MemoryStats], name: str) -> dict[int, tuple[int, int]]:
    """Return bytes and tokens of all objects together by frame; between its rows an object holds what it held."""
    total = {t: (0, 0) for t in sorted({row.frame_idx for each in by_id.values() for row in each.rows})}
    for each in by_id.values():
        rows, last = {row.frame_idx: row for row in each.rows}, None
        for t, (nbytes, tokens) in total.items():
            last = rows.get(t, last)
            if last is not None and t <= max(rows):
                occupancy = getattr(last, name)
                total[t] = nbytes + occupancy.nbytes, tokens + occupancy.tokens
    return total
