"""Pictures of a report: accuracy over occupancy, and frames on which a method falls behind stock."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.compare import Group, Result
from benchmarks.datasets import Dataset, Video
from benchmarks.plan import BASELINES
from benchmarks.results import read_csv
from sam2_keyframe import METHODS
from sam2_keyframe.app.pictures import overlay

PANELS = {"peak_frames": "frames held (peak)", "peak_mib": "MiB held (peak)", "tokens": "tokens attended (mean)"}
LETTERS = 165
"""About as many fit beside each other below the plot."""
AREAS = (105.0, 44.0, 10.0)
"""Of a point, in square points: where others lie below it, it is smaller than they are."""
NEAR = 5.0
"""Pixels at which a point lies on another."""
COLOURS = ("#1f6fb4", "#e08214", "#2a9d5c", "#8352a8", "#c2458f", "#8a6a3b", "#17a0b0", "#7f9a1e", "#444444", "#e8b000")
MARKERS = {
    "o": "circle", "^": "triangle-up", "s": "square", "v": "triangle-down", "X": "x", "p": "pentagon",
    "<": "triangle-left", ">": "triangle-right", "d": "diamond-tall", "h": "hexagon", "D": "diamond",
}  # fmt: skip
"""Markers of matplotlib, and what plotly calls them."""
DEFAULT = "keyframe"
MANY = 12
"""Runs beyond which they are coloured by family instead of each being named."""


@dataclass(frozen=True)
class Look:
    """How the runs of a family are drawn; baselines hollow and large, so that what lies on them is seen.

    Attributes:
        colour: As in CSS.
        marker: As in matplotlib.
        area: In square points; 0: as small as the points around ask for.
    """

    colour: str
    marker: str
    area: float = 0.0


BASELINE_LOOKS = dict(
    zip(
        BASELINES,
        (
            Look("#b0402f", "s", 300.0),
            Look("#565b66", "D", 180.0),
            Look("#8a6a3b", "^", 130.0),
            Look("#4f7d3a", "v", 130.0),
        ),
        strict=True,
    )
)


FRONT = ("stock", DEFAULT)
"""Drawn last, so that nothing lies over them."""


def families(results: Sequence[Result]) -> dict[str, str]:
    """Return what the runs are called in a legend, by label: the choices in which a method's runs differ.

    Where there are many runs they are named after the first of these choices alone, and share its look.
    """
    several = len({result.method["name"] for result in results if result.label not in BASELINES}) > 1
    found = {}
    for result in results:
        name, common = result.method["name"], _common(results, result.method["name"])
        parts = [part for part in result.method["set"] if part not in common][: 1 if len(results) > MANY else None]
        found[result.label] = " ".join([name, *parts] if several or not parts else parts)
    return found


def left_out(results: Sequence[Result]) -> str:
    """Return a sentence with the choices that all runs of a method have, which `families` leaves out; or nothing."""
    common = {name: _common(results, name) for name in dict.fromkeys(result.method["name"] for result in results)}
    return "; ".join(f"{name}: {' '.join(parts)} in every run" for name, parts in common.items() if parts)


def _common(results: Sequence[Result], name: str) -> list[str]:
    """Return the replacements that all runs of a method have, in their order; none where it has one run."""
    sets = [result.method["set"] for result in results if result.method["name"] == name]
    return [part for part in sets[0] if all(part in each for each in sets)] if len(sets) > 1 else []


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the looks of families, baselines first; no two of about a hundred are alike.

    A method of the package looks the same in every chart, whatever is beside it.
    """
    names, markers = set(names), list(MARKERS)
    fixed = [DEFAULT, *(name for name in METHODS if name not in (DEFAULT, *BASELINES))]
    places = {name: i for i, name in enumerate([*fixed, *sorted(names - {*fixed, *BASELINES})]) if name in names}
    chosen = {
        name: Look(COLOURS[i % len(COLOURS)], markers[i % len(markers)])  # their numbers have no common factor
        for name, i in places.items()
    }
    return {name: look for name, look in BASELINE_LOOKS.items() if name in names} | chosen


def pareto(group: Group, stem: Path) -> None:
    """Draw the ranked runs' J&F over each kind of occupancy, the front as a line; write `stem`.png and `stem`.svg.

    Bars are the 95 % interval of the paired difference from stock, around the run's mean.
    """
    results = group.ranked
    named = families(results)
    shown = looks(named.values())
    columns = max(1, min(4, len(shown), LETTERS // max(len(name) + 6 for name in shown)))
    rows = 1 + (len(shown) - 1) // columns
    figure = Figure(figsize=(12, 5.6 + 0.24 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    # what is large and hollow first, what all is compared with last
    order = sorted(results, key=lambda result: (result.label in FRONT, result.label not in BASELINES))
    for panel, (x, title) in zip(axes, PANELS.items(), strict=True):
        front = group.front(x)
        panel.plot([r.occupancy(x) for r in front], [r.jf for r in front], color="#9aa0ab", lw=1.2, zorder=1)
        places = [(result.occupancy(x), result.jf) for result in order]
        panel.scatter(*zip(*places, strict=True), s=0)  # spans the axes
        _axis(panel, [place[0] for place in places])
        pixels = panel.transData.transform(places)
        for i, result in enumerate(order):
            look = shown[named[result.label]]
            near = np.flatnonzero(np.hypot(*(pixels[:i] - pixels[i]).T) < NEAR)
            below = {named[order[k].label] for k in near} - {named[result.label], *BASELINES}
            _point(panel, places[i], look, look.area or AREAS[min(len(below), len(AREAS) - 1)])
            gain = group.gain(result)
            if gain is not None and gain.shown:
                (x, y), ends = places[i], ((gain.mean - gain.low,), (gain.high - gain.mean,))
                panel.errorbar(x, y, ends, color=look.colour, elinewidth=1.0, alpha=0.6, zorder=2)
        panel.set_xlabel(title)
        panel.grid(color="#e6e8ec", lw=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("J&F, %")
    figure.legend(
        [_point(axes[0], ([], []), look, AREAS[0]) for look in shown.values()],
        [textwrap.fill(name, LETTERS - 6) for name in shown],
        title=textwrap.fill(left_out(results), LETTERS) or None,
        title_fontsize=9,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(f"{group.title}: up and to the left is better", fontsize=11, x=0.01, ha="left")
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"))
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _point(panel: Any, place: tuple[Any, Any], look: Look, area: float) -> Any:
    hollow = {"facecolors": "none", "edgecolors": look.colour, "linewidths": 2.0}
    filled = {"facecolors": look.colour, "edgecolors": "white", "linewidths": 0.5}
    return panel.scatter(*place, s=area, marker=look.marker, zorder=3, **(hollow if look.area else filled))


def wide(values: Sequence[float]) -> bool:
    """Return whether an axis for these is better logarithmic."""
    return min(values) > 0 and max(values) / min(values) > 8


def _axis(panel: Any, values: list[float]) -> None:
    if wide(values):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    else:
        panel.set_xlim(left=0, right=max(values) * 1.06)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=max(values) > 5))


def worst_picture(
    dataset: Dataset, name: str, result: Result, stock: Result, path: Path, best: bool = False
) -> int | None:
    """Draw truth, stock and a method side by side on the frame of a video where the method loses, or gains, most J.

    Returns:
        The frame's index; None when the runs' masks are not at hand.
    """
    folders = [run.path / "videos" / name for run in (stock, result) if run.path]
    if len(folders) < 2 or not all((folder / "masks.npz").exists() for folder in folders):
        return None
    lost: dict[int, list[float]] = {}
    for theirs, ours in zip(*(read_csv(folder / "frames.csv") for folder in folders), strict=True):
        if ours["j"]:
            lost.setdefault(int(ours["frame_idx"]), []).append(float(theirs["j"]) - float(ours["j"]))
    t = max(lost, key=lambda frame: float(np.mean(lost[frame])) * (-1 if best else 1))
    video = dataset.open(name)
    frame = video.frames[t]
    pixels = np.asarray(Image.open(frame).convert("RGB") if isinstance(frame, Path) else frame)
    truth = np.zeros(pixels.shape[:2], np.int32)
    for track in video.tracks:
        if track.first <= t:
            truth[video.mask(t, track.obj_id)] = track.obj_id
    scale = max(1, round(480 / pixels.shape[0]))
    labels = [truth, *(_labels(folder, video, t, pixels.shape[:2]) for folder in folders)]
    captions = [f"truth, {name}, frame {t}", stock.label, result.label]
    sheet = beside([overlay(pixels, each, scale=scale) for each in labels], captions)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88)
    return t


def beside(tiles: Sequence[Image.Image], captions: Sequence[str], width: int = 1440, gap: int = 8) -> Image.Image:
    """Return equal tiles beside each other, at most `width` pixels wide, each below its caption."""
    for tile in tiles:
        tile.thumbnail(((width - gap * (len(tiles) - 1)) // len(tiles), width))
    font = ImageFont.load_default(15)
    letters = int(tiles[0].width / font.getlength("0"))
    texts = ["\n".join(textwrap.wrap(caption, letters)) for caption in captions]
    top = 8 + 20 * max(1 + text.count("\n") for text in texts)
    sheet = Image.new("RGB", (sum(tile.width + gap for tile in tiles) - gap, tiles[0].height + top), "white")
    for i, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        ImageDraw.Draw(sheet).text((i * (tile.width + gap), 2), text, "black", font, spacing=4)
        sheet.paste(tile, (i * (tile.width + gap), top))
    return sheet


def _labels(folder: Path, video: Video, t: int, size: tuple[int, int]) -> NDArray[np.int32]:
    labels = np.zeros(size, np.int32)
    with np.load(folder / "masks.npz") as packed:
        for track in video.tracks:
            row = t - int(packed[f"{track.obj_id}_first"])
            if row >= 0:
                bits = np.unpackbits(packed[str(track.obj_id)][row], count=size[0] * size[1])
                labels[bits.reshape(size).astype(bool)] = track.obj_id
    return labels
