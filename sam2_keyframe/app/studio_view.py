"""What the app shows, as HTML: the frame with its masks, the memory strip, the timeline. Colours follow the page's."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.app import pictures
from sam2_keyframe.app.draw import Pixels, colour_of, need
from sam2_keyframe.app.options import Prompt
from sam2_keyframe.app.run import Run
from sam2_keyframe.app.studio import MINE, STOCK, Studio
from sam2_keyframe.bank.statistics import MIB, FrameStats
from sam2_keyframe.conditions import Threshold

SHOWN = 1280
"""Longer side of the picture that is sent to the page, in pixels; clicks count in the video's own."""

TILE = 120
"""Width of a tile of the memory strip."""

WIDTH, HEIGHT, LEFT = 1000, 150, 6
"""Of the timeline's drawing; it is scaled to the page."""

KINDS = {
    "prompt": "prompted",
    "corrected": "corrected",
    "keyframe": "keyframe",
    "newest": "newest",
    "other": "other",
    "recent": "recent",
}
"""What kinds of memories are called on their tiles."""


def picture(studio: Studio, t: int, obj_id: int) -> str:
    """Return frame `t` with its masks, prompts and corrections; stock's beside it where both were tracked."""
    frame = studio.frame(t)
    said = {**studio.prompts, **studio.corrections}
    marks = "".join(_marks(prompt, frame.shape[1]) for (s, _), prompt in sorted(said.items()) if s == t)
    panels = [_panel(frame, studio.labels(t), marks, "sk-clickable", _title(studio, t, MINE))]
    if STOCK in studio.runs:
        panels.append(_panel(frame, studio.labels(t, STOCK), "", "", _title(studio, t, STOCK)))
    stamp = f"<div class='sk-stamp'>{html.escape(studio.note)}</div>" if studio.note else ""
    return f"<div class='sk-panels' data-object='{obj_id}'>{''.join(panels)}</div>{stamp}"


def _title(studio: Studio, t: int, which: str) -> str:
    run = studio.runs.get(which)
    name = "SAM 2 alone" if which == STOCK else studio.method
    if run is None or not run.tracked(t):
        return f"{name}: frame {t}, not tracked yet" if run is not None else f"frame {t}"
    last = [rows[t] for rows in run.rows.values() if t in rows]
    if not last:
        return f"{name}: frame {t}, prompted"
    held, nbytes = sum(row.memory.frames for row in last), sum(row.memory.nbytes for row in last)
    return f"{name}: frame {t}, holds {held} memories, {nbytes / MIB:.2f} MiB"


def _panel(frame: Pixels, labels: NDArray[np.int32] | None, marks: str, kind: str, title: str) -> str:
    module = need("PIL.Image")
    scale = min(1.0, SHOWN / max(frame.shape[:2]))
    shape = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    small = np.asarray(module.fromarray(np.ascontiguousarray(frame)).resize(shape, module.Resampling.LANCZOS))
    if labels is not None and labels.any():
        ids = module.fromarray(labels.astype(np.int32), mode="I").resize(shape, module.Resampling.NEAREST)
        grown = max(1, min(3, round(512 / max(shape))))
        image = pictures.overlay(small, np.asarray(ids), scale=grown)
    else:
        image = module.fromarray(small)
    height, width = frame.shape[:2]
    label = html.escape(title)
    return (
        f"<figure class='sk-panel {kind}' data-width='{width}' data-height='{height}' "
        f"style='--shape: {shape[0] / shape[1]:.4f}'>"
        f"<div class='sk-stage'><img src='{_encoded(image)}' alt='{label}' draggable='false'>"
        f"<svg viewBox='0 0 {width} {height}' preserveAspectRatio='none' aria-hidden='true'>{marks}"
        f"<g class='sk-drawing'></g></svg></div><figcaption>{label}</figcaption></figure>"
    )


def _encoded(image: object, quality: int = 85) -> str:
    store = io.BytesIO()
    image.save(store, "JPEG", quality=quality)  # type: ignore[attr-defined]
    return f"data:image/jpeg;base64,{base64.b64encode(store.getvalue()).decode()}"


def _marks(prompt: Prompt, width: int) -> str:
    """Return what was said of an object, drawn: clicks as dots with a sign, the box as a frame."""
    colour = "#{:02x}{:02x}{:02x}".format(*colour_of(prompt.obj_id))
    size, line = width / 55, f"{width / 220:g}"
    drawn = []
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        drawn.append(
            f"<rect x='{x0:g}' y='{y0:g}' width='{x1 - x0:g}' height='{y1 - y0:g}' fill='none' stroke='{colour}' "
            f"stroke-width='{size / 5:g}' stroke-dasharray='{size / 2:g}'/>"
        )
    for x, y, positive in prompt.points:
        inside = "#1a7f37" if positive else "#b42318"
        cross = f"M{x - size / 2:g} {y:g}h{size:g}" + (f"M{x:g} {y - size / 2:g}v{size:g}" if positive else "")
        drawn.append(
            f"<circle cx='{x:g}' cy='{y:g}' r='{size:g}' fill='{inside}' stroke='{colour}' stroke-width='{line}'/>"
            f"<path d='{cross}' stroke='white' stroke-width='{line}'/>"
        )
    return "".join(drawn)


# -- the memory strip -------------------------------------------------------------------------------------------------


def strip(studio: Studio, t: int, obj_id: int) -> str:
    """Return what SAM 2 attended to while an object was tracked on frame `t`: tiles with age, score and why."""
    mine = studio.runs.get(MINE)
    if mine is None:
        return _hint("The frames that SAM 2 remembers are shown here once you have tracked.")
    if not mine.tracked(t, obj_id):
        return _hint(f"Frame {t} is not tracked yet for object {obj_id}: there is no memory to show.")
    row = mine.rows.get(obj_id, {}).get(t)
    if row is None:
        return _hint(f"Object {obj_id} was prompted on frame {t}: nothing was remembered for it.")
    strips = [_tiles(studio, mine, t, obj_id, row, studio.method)]
    stock = studio.runs.get(STOCK)
    if stock is not None and stock.tracked(t, obj_id) and t in stock.rows.get(obj_id, {}):
        strips.append(_tiles(studio, stock, t, obj_id, stock.rows[obj_id][t], "SAM 2 alone"))
    return "".join(strips)


def _tiles(studio: Studio, run: Run, t: int, obj_id: int, row: FrameStats, name: str) -> str:
    tiles = []
    for s in sorted(row.attended):
        kind, told = run.why(obj_id, t, s)
        age = f"{t - s} ago" if s < t else f"{s - t} ahead"
        tiles.append(
            f"<button type='button' class='sk-tile sk-{kind}' data-frame='{s}' title='go to frame {s}'>"
            f"<img src='{_thumbnail(studio, run, s, obj_id)}' alt='frame {s}'>"
            f"<span class='sk-badge'>{KINDS[kind]}</span><b>frame {s}</b><span>{age}</span>"
            f"<small>{html.escape(told)}</small></button>"
        )
    about = f"{len(tiles)} memories, {row.memory.tokens:,} tokens read"
    return (
        f"<section class='sk-strip'><h4>{html.escape(name)}: what object {obj_id} on frame {t} is tracked by "
        f"<small>{about}</small></h4><div class='sk-tiles'>{''.join(tiles)}</div></section>"
    )


def _thumbnail(studio: Studio, run: Run, s: int, obj_id: int) -> str:
    module = need("PIL.Image")
    frame = studio.frame(s)
    size = (TILE, max(1, round(TILE * frame.shape[0] / frame.shape[1])))
    small = np.asarray(module.fromarray(np.ascontiguousarray(frame)).resize(size, module.Resampling.LANCZOS))
    if run.tracked(s):
        labels = np.where(run.labels(s) == obj_id, obj_id, 0).astype(np.int32)
        ids = module.fromarray(labels, mode="I").resize(size, module.Resampling.NEAREST)
        return _encoded(pictures.overlay(small, np.asarray(ids), opacity=0.35), 80)
    return _encoded(module.fromarray(small), 80)


def _hint(text: str) -> str:
    return f"<p class='sk-hint'>{html.escape(text)}</p>"


# -- the timeline -----------------------------------------------------------------------------------------------------


def timeline(
    studio: Studio,
    t: int,
    obj_id: int,
    bounds: Sequence[tuple[Threshold, str]] = (),
    moved: Mapping[str, float] | None = None,
    rows: Sequence[FrameStats] | None = None,
) -> str:
    """Return an object's significance over time, keyframes marked, its bounds as lines that can be moved.

    Args:
        studio: Whose.
        t: The frame that is looked at.
        obj_id: The object.
        bounds: As `Studio.bounds` has them; those with a choice can be moved.
        moved: Where they were moved to, by choice; the keyframes drawn are those of the replay then.
        rows: Of the replay, where a bound was moved.
    """
    mine = studio.runs.get(MINE)
    if mine is None or not mine.rows.get(obj_id):
        return _hint("Significance over time, with its threshold, is drawn here once you have tracked.")
    moved = moved or {}
    frames = max(1, studio.frames - 1)
    tracked = [row for s, row in sorted(mine.rows[obj_id].items()) if mine.tracked(s)]
    shown = list(rows) if rows is not None else tracked
    values = [row.significance for row in shown if not math.isnan(row.significance)]
    lines = [
        (rule, name, moved.get(name, rule.bound)) for rule, name in bounds if rule.scorer == mine.method.significance
    ]
    top = 1.12 * max([1e-9, *values, *(bound for *_, bound in lines)])
    top = max(top, 1.0) if values and max(values) <= 1.0 else top

    def x(s: float) -> float:
        return LEFT + (WIDTH - 2 * LEFT) * s / frames

    def y(value: float) -> float:
        return HEIGHT - 4 - (HEIGHT - 14) * min(max(value, 0.0), top) / top

    parts = [f"<rect class='sk-ahead' x='{x(mine.until - 0.5):.1f}' y='0' width='{WIDTH}' height='{HEIGHT}'/>"]
    for row in tracked:
        if row.scores.get("object_score", 1.0) <= 0:
            w = (WIDTH - 2 * LEFT) / frames
            parts.append(
                f"<rect class='sk-hidden' x='{x(row.frame_idx - 0.5):.1f}' y='0' width='{w:.2f}' height='{HEIGHT}'/>"
            )
    path, pen = [], "M"
    for row in shown:
        if math.isnan(row.significance):
            pen = "M"
            continue
        path.append(f"{pen}{x(row.frame_idx):.1f} {y(row.significance):.1f}")
        pen = "L"
    parts.append(f"<path class='sk-line' d='{''.join(path)}'/>")
    marked = [row for row in shown if row.keyframe]
    for row in marked:
        value = 0.0 if math.isnan(row.significance) else row.significance
        parts.append(f"<path class='sk-dot' d='M{x(row.frame_idx):.1f} {y(value):.1f}h0'/>")
    for s, obj in [*studio.prompts, *studio.corrections]:
        if obj == obj_id:
            parts.append(f"<path class='sk-prompted' d='M{x(s):.1f} {HEIGHT}l-6 -12h12z'/>")
    parts.append(f"<path class='sk-cursor' d='M{x(t):.1f} 0V{HEIGHT}'/>")
    for _, name, bound in lines:
        grip = f"<path class='sk-grip' d='M{LEFT} {y(bound):.1f}H{WIDTH - LEFT}'/>" if name else ""
        parts.append(
            f"<g class='sk-bound' data-choice='{html.escape(name)}' data-bound='{bound:.6g}'>{grip}"
            f"<path d='M{LEFT} {y(bound):.1f}H{WIDTH - LEFT}'/></g>"
        )
    score = mine.method.significance.name if mine.method.significance is not None and values else ""
    about = (
        f"{score or 'significance'} of object {obj_id}" if score else f"object {obj_id}: this method measures nothing"
    )
    count = f"{len(marked)} of {len(shown)} frames are keyframes"
    told = "".join(
        f" · <span class='sk-told'>{html.escape(repr(rule.scorer))} {rule.side} {bound:.3g}"
        f"{' (drag the line)' if name and not moved else ''}</span>"
        for rule, name, bound in lines
    )
    replayed = " · <b>replayed on the same masks</b>" if rows is not None else ""
    return (
        f"<section class='sk-time' data-frames='{frames}' data-top='{top:.6g}' data-width='{WIDTH}' data-left='{LEFT}' "
        f"data-height='{HEIGHT}'><h4>{html.escape(about)} <small>{count}{told}{replayed}</small></h4>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' preserveAspectRatio='none' role='img' aria-label='{count}'>"
        f"{''.join(parts)}</svg><div class='sk-ends'><span>0</span><span>frame {t}</span>"
        f"<span>{studio.frames - 1}</span></div></section>"
    )


def progress(text: str, done: int = 0, total: int = 0) -> str:
    """Return a line of what is going on, with a bar where something is under way."""
    bar = ""
    if total:
        bar = f"<progress value='{done}' max='{total}' aria-label='progress'></progress>"
    return f"<div class='sk-status' role='status'>{bar}<span>{html.escape(text)}</span></div>"
