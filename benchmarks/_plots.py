"""Pictures of a report: accuracy over occupancy, and frames on which a method falls behind stock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray
from PIL import Image

from benchmarks._compare import Group, Result
from benchmarks._store import read_csv
from benchmarks.datasets import Dataset, Video
from benchmarks.sweep import BASELINES
from sam2_keyframe.viz import overlay

PANELS = (
    ("peak_frames", "frames held (peak)"),
    ("peak_mib", "MiB held (peak)"),
    ("tokens", "tokens attended (mean)"),
)
BASELINE_LOOK: dict[str, dict[str, Any]] = {
    "stock": {"marker": "s", "facecolors": "none", "edgecolors": "#b0402f", "linewidths": 2.2, "s": 130},
    "window": {"marker": "D", "facecolors": "#565b66", "edgecolors": "white", "linewidths": 0.7, "s": 45},
}
COLOURS = ("#1f6fb4", "#e08214", "#2a9d5c", "#8352a8", "#c2458f", "#8a6a3b", "#17a0b0", "#7f9a1e", "#444444", "#e8b000")
MARKERS = "o^vP*Xp<>hd"
MANY = 12
"""Runs beyond which they are coloured by family instead of each being named."""


LETTERS = 165
"""About as many fit beside each other below the plot."""


def family(result: Result, many: bool) -> str:
    """Return what a run's point is coloured by: its label, or where there are many its first replacement."""
    method = result.metrics["config"]["method"]
    if not many or result.label in BASELINES:
        return result.label
    return str(method["set"][0]) if method["set"] else str(method["name"])


def pareto(group: Group, stem: Path) -> None:
    """Draw the ranked runs' J&F over each kind of occupancy, the front as a line; write `stem`.png and `stem`.svg."""
    results = group.ranked
    many = len(results) > MANY
    families = list(dict.fromkeys(family(result, many) for result in sorted(results, key=lambda r: r.label)))
    families.sort(key=lambda name: (name not in BASELINES, name))
    others = [name for name in families if name not in BASELINES]
    looks: dict[str, dict[str, Any]] = dict(BASELINE_LOOK)
    for i, name in enumerate(others):
        look = {"facecolors": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
        looks[name] = {**look, "edgecolors": "white", "linewidths": 0.7, "s": 45}
    columns = max(1, min(4, len(families), LETTERS // max(len(name) + 6 for name in families)))
    rows = 1 + (len(families) - 1) // columns
    figure = Figure(figsize=(12, 4.3 + 0.24 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (x, title) in zip(axes, PANELS, strict=True):
        front = group.front(x)
        panel.plot([r.occupancy(x) for r in front], [r.jf for r in front], color="#9aa0ab", lw=1.2, zorder=1)
        for name in [*others, *(name for name in families if name in BASELINES)]:
            members = [result for result in results if family(result, many) == name]
            place = [result.occupancy(x) for result in members], [result.jf for result in members]
            panel.scatter(*place, label=name, zorder=3 if name in BASELINES else 2, **looks[name])
        _axis(panel, [result.occupancy(x) for result in results])
        panel.set_xlabel(title)
        panel.grid(color="#e6e8ec", lw=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("J&F, %")
    handles, names = axes[0].get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: families.index(names[i]))
    figure.legend(
        [handles[i] for i in order],
        [names[i] for i in order],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(f"{group.title}: up and to the left is better", fontsize=11, x=0.01, ha="left")
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"))
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _axis(panel: Any, values: list[float]) -> None:
    if min(values) > 0 and max(values) / min(values) > 8:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    else:
        panel.set_xlim(left=0, right=max(values) * 1.06)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=max(values) > 5))


def worst_picture(dataset: Dataset, name: str, result: Result, stock: Result, path: Path) -> int | None:
    """Draw truth, stock and a method side by side on the frame of a video where the method loses most J.

    Returns:
        The frame's index; None when the runs' masks are not at hand.
    """
    if result.path is None or stock.path is None:
        return None
    folders = [run.path / "videos" / name for run in (stock, result) if run.path]
    if not all((folder / "masks.npz").exists() for folder in folders):
        return None
    lost: dict[int, list[float]] = {}
    for theirs, ours in zip(*(read_csv(folder / "frames.csv") for folder in folders), strict=True):
        if ours["j"]:
            lost.setdefault(int(ours["frame_idx"]), []).append(float(theirs["j"]) - float(ours["j"]))
    t = max(lost, key=lambda frame: float(np.mean(lost[frame])))
    video = dataset.open(name)
    frame = _frame(video, t)
    truth = np.zeros(frame.shape[:2], np.int32)
    for track in video.tracks:
        if track.first <= t:
            truth[video.mask(t, track.obj_id)] = track.obj_id
    scale = max(1, round(480 / frame.shape[0]))
    tiles = [overlay(frame, truth, scale=scale, caption=f"truth, {name}, frame {t}")]
    for run, folder in zip((stock, result), folders, strict=True):
        labels = _labels(folder, video, t, frame.shape[:2])
        tiles.append(overlay(frame, labels, scale=scale, caption=run.label))
    gap = 8
    sheet = Image.new("RGB", (sum(tile.width + gap for tile in tiles) - gap, tiles[0].height), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i * (tile.width + gap), 0))
    sheet.thumbnail((1440, 1440))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88)
    return t


def _frame(video: Video, t: int) -> NDArray[np.uint8]:
    frame = video.frames[t]
    return np.asarray(Image.open(frame).convert("RGB")) if isinstance(frame, Path) else np.asarray(frame)


def _labels(folder: Path, video: Video, t: int, size: tuple[int, int]) -> NDArray[np.int32]:
    labels = np.zeros(size, np.int32)
    with np.load(folder / "masks.npz") as packed:
        for track in video.tracks:
            row = t - int(packed[f"{track.obj_id}_first"])
            if row >= 0:
                bits = np.unpackbits(packed[str(track.obj_id)][row], count=size[0] * size[1])
                labels[bits.reshape(size).astype(bool)] = track.obj_id
    return labels
