"""Plots, tables and pictures from results on disk: which method, at which threshold, for which budget."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._compare import ENOUGH, Difference, Group, Result, difference, load_groups, worst_videos
from benchmarks._page import legend, write_page
from benchmarks._plots import pareto, worst_picture
from benchmarks._store import write_csv
from benchmarks._tables import interval, markdown
from benchmarks.datasets import Dataset, open_dataset
from benchmarks.sweep import BASELINES

SHOWN = 14
"""Rows of the per-challenge table in Markdown; `challenges.csv` has them all."""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("results", type=Path, help="folder that holds runs, at any depth, or *.json rows of others")
    parser.add_argument("--out", type=Path, help="where to write (default: RESULTS/report, of a file NAME-report)")
    parser.add_argument("--worst", type=int, default=3, help="worst videos a method shown (default: %(default)s)")


def main_report(options: argparse.Namespace) -> int:
    """Write a report; returns the exit code."""
    if not options.results.exists():
        raise ValueError(f"there is no {options.results}; make results with python -m benchmarks run --out it")
    results, out = options.results, options.out
    out = out or (results / "report" if results.is_dir() else results.with_name(f"{results.stem}-report"))
    write_report(load_groups(results), out, options.worst)
    sys.stderr.write(f"{out}/README.md, {out}/index.html\n")
    return 0


def write_report(groups: Sequence[Group], out: Path, worst: int = 3) -> None:
    """Write `README.md`, `index.html`, and a folder a group with plots, tables and pictures.

    Args:
        groups: Runs that may be compared; groups are never mixed.
        out: The folder; made where it is missing.
        worst: How many of a method's worst videos to show.

    Raises:
        OSError: It cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Occupancy against accuracy", "", "[Interactive page](index.html) (opens offline).", ""]
    pages = []
    for group in groups:
        folder = out / group.slug
        shutil.rmtree(folder / "worst", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        if group.ranked:
            pareto(group, folder / "pareto")
        rows = table(group)
        write_csv(folder / "table.csv", rows)
        _write_matrix(folder / "challenges.csv", {r.label: r.metrics.get("challenges", {}) for r in group.results})
        videos = {r.label: {v: sum(jf) / len(jf) for v, jf in r.by_video().items()} for r in group.results}
        _write_matrix(folder / "sequences.csv", videos)
        pictures = _worst(group, folder / "worst", worst)
        parts += _markdown(group, rows, folder, pictures)
        page = {"title": group.title, "rows": rows, "legend": legend(group.results)}
        pages.append({**page, "videos": videos, "pictures": pictures, "folder": folder})
    (out / "README.md").write_text("\n".join(parts) + "\n")
    write_page(out / "index.html", pages)


def table(group: Group) -> list[dict[str, Any]]:
    """Return a row a run, best J&F first: accuracy, difference from stock, occupancy, time."""
    fronts = {x: group.front(x) for x in ("peak_frames", "peak_mib", "tokens")}
    rows = []
    for result in group.results:
        gain = _gain(group, result)
        memory = result.metrics["occupancy"]["memory"]
        row: dict[str, Any] = {"method": result.label}
        row |= {name: result.metrics["accuracy"].get(name) for name in ("jf", "j", "f", "j_last", "j_decay")}
        row |= {
            "vs_stock": gain.mean if gain else None,
            "low": gain.low if gain and gain.shown else None,
            "high": gain.high if gain and gain.shown else None,
            "videos": result.metrics["videos"],
            "lacking": len(group.videos - result.by_video().keys()),
            "objects": result.metrics["objects"],
        }
        row |= {name: memory[name] for name in sorted(memory)}
        row |= {f"stock_{name}": result.metrics["occupancy"]["stock"][name] for name in ("peak_mib", "tokens")}
        row["frame_ms"] = result.metrics.get("time", {}).get("frame_ms")
        row["time_vs_stock"] = result.metrics.get("time", {}).get("beside_stock", {}).get("ratio")
        row["peak_device_mib"] = result.metrics.get("peak_device_mib")
        row["front"] = " ".join(x for x, front in fronts.items() if result in front)
        row["failed"] = len(result.metrics["failed"])
        rows.append(row)
    return rows


def _gain(group: Group, result: Result) -> Difference | None:
    if group.reference is None or result is group.reference:
        return None
    return difference(result, group.reference)


def _markdown(group: Group, rows: list[dict[str, Any]], folder: Path, pictures: list[dict[str, Any]]) -> list[str]:
    times = {
        head: (column, digits)
        for head, column, digits in (("ms", "frame_ms", 1), ("time / stock", "time_vs_stock", 2))
        if any(row[column] is not None for row in rows)
    }
    head = ["method", "J&F", "vs stock (95 %)", "J", "F", "frames", "MiB", "tokens", *times]
    lines = [f"## {group.title}", ""]
    lines += [f"![J&F over occupancy]({folder.name}/pareto.png)", ""] if group.ranked else []
    body = []
    for row, result in zip(rows, group.results, strict=True):
        gain = interval(_gain(group, result))
        name = f"**{row['method']}**" if row["method"] in BASELINES else row["method"]
        name += f" ({row['videos']} of {len(group.videos)} videos)" if row["lacking"] else ""
        cells = [name + (" ◆" if row["front"] else ""), f"{row['jf']:.1f}", gain, f"{row['j']:.1f}", f"{row['f']:.1f}"]
        cells += [f"{row['peak_frames']:.1f}", f"{row['peak_mib']:.2f}", f"{row['tokens']:.0f}"]
        cells += ["" if row[column] is None else f"{row[column]:.{digits}f}" for column, digits in times.values()]
        body.append(cells)
    objects = max(row["objects"] for row in rows)
    lines += [
        *markdown(head, body),
        "",
        f"{len(group.videos)} videos, {objects} objects. J, F: percent, as DAVIS 2017 defines them, means over "
        "objects. Frames and MiB: peak held for an object; tokens: attended to, mean over frames. vs stock: paired "
        f"difference in J&F and its 95 % bootstrap interval over videos, where there are {ENOUGH} or more. ◆: on a "
        "front: no other run is as accurate with as little.",
        "",
    ]
    missing = [name for name in BASELINES if name not in {result.label for result in group.results}]
    if missing:
        command = f"`python -m benchmarks run --method {missing[0]}`"
        lines += [
            f"Missing to compare with: {', '.join(missing)}. {command} with the options of these runs adds it.",
            "",
        ]
    lines += _failure_lines(group)
    if "time / stock" in times:
        turns = "ms: median frame of the run. time / stock: median over frames of one video that both track in turn."
        lines += [turns, ""]
    lines += _challenge_lines(group)
    if pictures:
        lines += ["### Worst cases", ""]
        for case in pictures:
            lines += [f"{case['method']} on {case['video']}: {case['fall']:+.1f} points, frame {case['frame']}.", ""]
            lines += [f"![{case['method']} on {case['video']}]({folder.name}/worst/{case['file']})", ""]
    return lines


def _failure_lines(group: Group) -> list[str]:
    lines = []
    for result in group.results:
        errors = [f"{name}: {' '.join(error.split())}" for name, error in result.metrics["failed"].items()]
        lines += [f"`{result.label}` failed on {'; '.join(errors)}", ""] if errors else []
    if len(group.ranked) < len(group.results):
        lines += [
            "Runs that lack videos come last, on no front and in no picture: their means are of other videos than the "
            "rest. Their differences from stock are over the videos that both have.",
            "",
        ]
    return lines


def _challenge_lines(group: Group) -> list[str]:
    names = sorted({name for result in group.ranked for name in result.metrics.get("challenges", {})})
    if not names:
        return []
    shown = [r for r in group.ranked if r.label in BASELINES]
    shown = [r for r in group.ranked if r in shown or r in group.ranked[: SHOWN - len(shown)]]
    body = []
    best = {name: max(r.metrics.get("challenges", {}).get(name, 0) for r in group.ranked) for name in names}
    for result in shown:
        values = [result.metrics.get("challenges", {}).get(name) for name in names]
        cells = [
            "" if value is None else f"**{value:.1f}**" if round(value, 1) >= round(best[name], 1) else f"{value:.1f}"
            for name, value in zip(names, values, strict=True)
        ]
        body.append([result.label, *cells])
    head = ["method", *(name.replace("_", " ") for name in names)]
    return ["### J&F by challenge", "", *markdown(head, body), ""]


def _worst(group: Group, folder: Path, count: int) -> list[dict[str, Any]]:
    """Draw the worst videos of the best method besides the baselines, of the default one, and of the most frugal."""
    others = [result for result in group.ranked if result.label not in BASELINES]
    if group.reference is None or not others or count < 1:
        return []
    dataset = _reopen(group)
    cases = []
    frugal = min(others, key=lambda result: result.occupancy("peak_mib"))
    default = [result for result in others if result.label == "keyframe"]
    for chosen in {result.label: result for result in (others[0], *default, frugal)}.values():
        for name, fall in worst_videos(group, chosen, count):
            file = f"{re.sub(r'[^A-Za-z0-9.=-]+', '-', chosen.label)}_{name}.jpg"
            frame = worst_picture(dataset, name, chosen, group.reference, folder / file) if dataset else None
            if frame is not None:
                cases.append({"method": chosen.label, "video": name, "fall": fall, "frame": frame, "file": file})
    return cases


def _reopen(group: Group) -> Dataset | None:
    data = dict(group.config["data"])
    data.pop("name")
    path = data.pop("path", None)
    try:
        return open_dataset(path, group.config["split"] if group.config["split"] != "all" else None, **data)
    except (ValueError, TypeError):  # results from elsewhere: the videos are not here
        return None


def _write_matrix(path: Path, columns: dict[str, dict[str, float]]) -> None:
    names = sorted({name for column in columns.values() for name in column})
    rows = [{"": name, **{label: column.get(name) for label, column in columns.items()}} for name in names]
    if rows:
        write_csv(path, rows)
