"""Plots, tables and pictures from results on disk: which method, at which threshold, for which budget."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.absence import SCORES
from benchmarks.compare import ENOUGH, Group, load_groups, worst_videos
from benchmarks.datasets import Dataset, open_dataset
from benchmarks.page import write_page
from benchmarks.pictures import pareto, worst_picture
from benchmarks.plan import BASELINES, REFERENCES
from benchmarks.results import write_csv

SHOWN = 14
"""Rows of the per-challenge table in Markdown; `challenges.csv` has them all."""
VERSUS = ("J&F", "vs stock (95 %)", "vs every_nth", "vs random")
COLUMNS = (*VERSUS, "J", "F", "frames", "MiB", "tokens", "ms", "time / stock")


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
        worst: How many of a method's worst videos to show, and of its best.

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
        rows = figures(group)
        write_csv(folder / "table.csv", rows)
        _write_matrix(folder / "challenges.csv", {r.label: r.metrics.get("challenges", {}) for r in group.results})
        videos = {r.label: {v: sum(jf) / len(jf) for v, jf in r.by_video().items()} for r in group.results}
        _write_matrix(folder / "sequences.csv", videos)
        pictures = _cases(group, folder, worst)
        table = _table(group, rows)
        parts += _markdown(group, table, folder, pictures)
        pages.append(
            {"group": group, "rows": rows, "table": table, "videos": videos, "pictures": pictures, "folder": folder}
        )
    (out / "README.md").write_text("\n".join(parts) + "\n")
    write_page(out / "index.html", pages)


def figures(group: Group) -> list[dict[str, Any]]:
    """Return a row a run, best J&F first: accuracy, difference from stock, occupancy, time."""
    fronts = {x: group.front(x) for x in ("peak_frames", "peak_mib", "tokens")}
    rows = []
    for result in group.results:
        gain = group.gain(result)
        metrics, memory = result.metrics, result.metrics["occupancy"]["memory"]
        rows.append(
            {"method": result.label}
            | {name: metrics["accuracy"].get(name) for name in ("jf", "j", "f", "j_last", "j_decay")}
            | {name: metrics["accuracy"].get(name) for name in SCORES}
            | {"vs_stock": gain.mean if gain else None}
            | {end: getattr(gain, end) if gain and gain.shown else None for end in ("low", "high")}
            | {f"vs_{of}": found.mean if (found := group.gain(result, of=of)) else None for of in REFERENCES[1:]}
            | {"videos": metrics["videos"], "lacking": len(group.videos - result.by_video().keys())}
            | {"objects": metrics["objects"], **{name: memory[name] for name in sorted(memory)}}
            | {f"stock_{name}": metrics["occupancy"]["stock"][name] for name in ("peak_mib", "tokens")}
            | {"frame_ms": metrics.get("time", {}).get("frame_ms"), "time_vs_stock": result.beside_stock.get("ratio")}
            | {"peak_device_mib": metrics.get("peak_device_mib")}
            | {"front": " ".join(x for x, front in fronts.items() if result in front), "failed": len(metrics["failed"])}
        )
    return rows


def _table(group: Group, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of the group's table, its head first."""
    names = {}
    for row in rows:
        name = f"**{row['method']}**" if row["method"] in BASELINES else str(row["method"])
        name += f" ({row['videos']} of {len(group.videos)} videos)" if row["lacking"] else ""
        names[row["method"]] = name + (" ◆" if row["front"] else "")
    return tables.cells(group, COLUMNS, lambda result: names[result.label])


def _markdown(
    group: Group, table: Sequence[Sequence[str]], folder: Path, pictures: Sequence[Mapping[str, Any]]
) -> list[str]:
    objects = max(result.metrics["objects"] for result in group.results)
    lines = [f"## {group.title}", ""]
    lines += [f"![J&F over occupancy]({folder.name}/pareto.png)", ""] if group.ranked else []
    lines += [
        *tables.markdown(table[0], table[1:]),
        "",
        f"{len(group.videos)} videos, {objects} objects. J, F: percent, as DAVIS 2017 defines them, means over "
        "objects. Frames and MiB: peak held for an object; tokens: attended to, mean over frames. vs: paired "
        f"difference in J&F and its 95 % bootstrap interval over videos, where there are {ENOUGH} or more. ◆: on a "
        "front: no other run is as accurate with as little.",
        "",
    ]
    if missing := [name for name in BASELINES if not group.find(name)]:
        command = f"`python -m benchmarks run --method {missing[0]}`"
        lines += [
            f"Missing to compare with: {', '.join(missing)}. {command} with the options of these runs adds it.",
            "",
        ]
    for result in group.results:
        errors = [f"{name}: {' '.join(error.split())}" for name, error in result.metrics["failed"].items()]
        lines += [f"`{result.label}` failed on {'; '.join(errors)}", ""] if errors else []
    if len(group.ranked) < len(group.results):
        lines += [
            "Runs that lack videos come last, on no front and in no picture: their means are of other videos than the "
            "rest. Their differences from stock are over the videos that both have.",
            "",
        ]
    if "time / stock" in table[0]:
        turns = "ms: median frame of the run. time / stock: median over frames of one video that both track in turn."
        lines += [turns, ""]
    lines += _absence_lines(group)
    lines += _challenge_lines(group)
    for kind in ("worst", "best"):
        cases = [case for case in pictures if case["kind"] == kind]
        lines += [f"### {kind.capitalize()} cases", ""] if cases else []
        for case in cases:
            lines += [f"{case['method']} on {case['video']}: {case['fall']:+.1f} points, frame {case['frame']}.", ""]
            lines += [f"![{case['method']} on {case['video']}]({folder.name}/{kind}/{case['file']})", ""]
    return lines


def _absence_lines(group: Group) -> list[str]:
    rows = tables.cells(group, ("J&F", *tables.ABSENCE), lambda result: result.label)
    if "recovery" not in rows[0]:
        return []
    note = (
        "Percent, means over the objects that have an absence. recovery: J over the first 30 frames after each return; "
        "found: returns with more than 0.5 of it; false masks: absent frames on which a mask is shown; gone and back: "
        "J&F over absences and returns as MOSEv2 defines them, with its boundary measure."
    )
    return ["### Around absences", "", *tables.markdown(rows[0], rows[1:]), "", note, ""]


def _challenge_lines(group: Group) -> list[str]:
    found = {result.label: result.metrics.get("challenges", {}) for result in group.ranked}
    names = sorted({name for each in found.values() for name in each})
    if not names:
        return []
    baselines = [label for label in found if label in BASELINES]
    others = [label for label in found if label not in BASELINES][: SHOWN - len(baselines)]
    best = {name: max(each.get(name, 0) for each in found.values()) for name in names}

    def cell(value: float | None, name: str) -> str:
        shown = tables.number(value, 1)
        return f"**{shown}**" if value is not None and round(value, 1) >= round(best[name], 1) else shown

    shown = [label for label in found if label in (*baselines, *others)]
    body = [[label, *(cell(found[label].get(name), name) for name in names)] for label in shown]
    head = ["method", *(name.replace("_", " ") for name in names)]
    return ["### J&F by challenge", "", *tables.markdown(head, body), ""]


def _cases(group: Group, folder: Path, count: int) -> list[dict[str, Any]]:
    """Draw the worst and the best videos of the best method besides the baselines, the default one, the most frugal."""
    others = [result for result in group.ranked if result.label not in BASELINES]
    if group.reference is None or not others or count < 1 or (dataset := _reopen(group)) is None:
        return []
    frugal = min(others, key=lambda result: result.occupancy("peak_mib"))
    default = [result for result in others if result.label == "keyframe"]
    cases = []
    for chosen in {result.label: result for result in (others[0], *default, frugal)}.values():
        for best in (False, True):
            kind = "best" if best else "worst"
            for name, fall in worst_videos(group, chosen, count, best):
                file = f"{re.sub(r'[^A-Za-z0-9.=-]+', '-', chosen.label)}_{name}.jpg"
                frame = worst_picture(dataset, name, chosen, group.reference, folder / kind / file, best)
                if frame is not None:
                    about = {"method": chosen.label, "video": name, "fall": fall, "frame": frame, "file": file}
                    cases.append({**about, "kind": kind})
    return cases


def _reopen(group: Group) -> Dataset | None:
    data = {name: part for name, part in group.config["data"].items() if name != "name"}
    path = data.pop("path", None)
    try:
        return open_dataset(path, group.config["split"] if group.config["split"] != "all" else None, **data)
    except (ValueError, TypeError):  # results from elsewhere: the videos are not here
        return None


def _write_matrix(path: Path, columns: Mapping[str, Mapping[str, float]]) -> None:
    names = sorted({name for column in columns.values() for name in column})
    if names:
        write_csv(path, [{"": name} | {label: each.get(name) for label, each in columns.items()} for name in names])
