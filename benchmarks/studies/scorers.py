"""What scorers cost and what they react to.

    python -m benchmarks.studies.scorers cost     # milliseconds, operations and bytes; share of two models' frame time
    python -m benchmarks.studies.scorers react    # every scorer on clips in which one property changes
    python -m benchmarks.studies.scorers write    # from those results: cost.md, the table in benchmarks/README.md, the
                                                  # tables and the picture of docs/scorers.md

Results are `scorers/*.json`. `cost` wants an idle machine; each may be run again at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.models import random_official
from benchmarks.results import write_json
from benchmarks.studies.reaction import QUALITY, RESULTS, SCORERS, SIDE, react, tracked
from benchmarks.tables import markdown, replace_between
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches.frames import scoring_image
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import History, TrackedFrame
from sam2_keyframe.video.source import init_state

ROOT = Path(__file__).resolve().parents[2]
README, DOCS = ROOT / "benchmarks" / "README.md", ROOT / "docs"
START, END = "<!-- made by `python -m benchmarks.studies.scorers write` -->\n", "<!-- end of what it made -->"
WARM_UP = 3
AGAINST = {
    "keyframe": "Against the keyframe: the full change",
    "previous": "Against the previous frame: mean over the change",
}
MUCH, NOTHING = 0.5, 0.05
"""Shares of a scorer's largest mean on a change of the object: from here on it reacts, below this it ignores."""
Rows = Mapping[str, Mapping[str, Sequence[float]]]
"""Scores of every scene, by scorer and change."""


class Count(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


def frame_milliseconds(predictor: Any, frames: int) -> float:
    """Return the median time of a tracked frame, one object, after `WARM_UP` of them."""
    clip = make_clip("deformation", 0, frames=frames, size=SIDE)
    with torch.inference_mode():
        state = init_state(predictor, clip.frames)
        predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        marks = [time.perf_counter(), *(time.perf_counter() for _ in predictor.propagate_in_video(state))]
    return 1000 * float(np.median(np.diff(marks)[WARM_UP:]))


def timed(prepare: Callable[[], Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return median milliseconds and the number of operations of the calls that `prepare` makes ready, each new."""
    times = []
    with torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            call = prepare()
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
    call = prepare()
    with torch.no_grad(), Count() as count:  # inference mode would hide conversions
        call()
    return {"milliseconds": statistics.median(times[WARM_UP:]), "operations": count.total}


def cost(repeats: int = 31) -> None:
    """Write cost.json."""
    torch.set_num_threads(2)
    models = {
        "micro at 256 px": frame_milliseconds(load_micro_predictor(image_size=256), 34),
        "official tiny at 1024 px, random weights": frame_milliseconds(random_official("tiny", "cpu"), 8),
    }
    rows: dict[str, dict[str, float]] = {}
    for side in (256, 1024):
        image = torch.randn(1, 3, side, side)
        rows[f"pixels of {side} px, once a frame"] = timed(partial(partial, scoring_image, image), repeats)
    clip = make_clip("deformation", 1, frames=4, size=SIDE)
    features = {
        "image_embed": torch.randn(1, 256, 64, 64),
        "maskmem_features": torch.randn(1, 64, 64, 64).bfloat16(),
        "obj_ptr": torch.randn(1, 256),
    }

    def pair(scorer: Any) -> tuple[TrackedFrame, History]:
        before, now = (tracked(i, clip.frames[i], clip.masks[i] == 1, features) for i in (0, 3))
        scorer.score(before, History())
        now.image  # noqa: B018 - bringing pixels to scoring resolution has its own row
        reference = before.reference()
        return now, History(reference, reference, [reference] * 6)

    def ready(scorer: Any) -> Callable[[], object]:
        return partial(scorer.score, *pair(scorer))

    for name, scorer in {**SCORERS, **QUALITY}.items():
        rows[name] = timed(partial(ready, scorer), repeats)
        now, past = pair(scorer)
        scorer.score(now, past)
        rows[name]["bytes_kept"] = sum(v.numel() * v.element_size() for v in now.reference().values.values())
        print(f"{name:32s} {rows[name]['milliseconds']:8.3f} ms {rows[name]['operations']:5d} operations", flush=True)
    host = {"torch": torch.__version__, "threads": 2, "machine": platform.machine(), "side": SIDE}
    host["times"] = f"median of {repeats} after {WARM_UP}"
    write_json(RESULTS / "cost.json", {"host": host, "frame_milliseconds": models, "scorers": rows})


def readable(value: float) -> str:
    """Return a number with two digits that count, never in powers of ten.

    >>> [readable(x) for x in (123.4, 12.34, 1.234, 0.1234, 0.01234, 0.00123, 0.00004, 0.0)]
    ['123', '12', '1.2', '0.12', '0.012', '0.0012', '<0.0001', '0']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if abs(value) < 0.0001:
        return "<0.0001"
    return f"{value:.{max(0, min(4, 1 - math.floor(math.log10(abs(value)))))}f}"


def cost_table(found: Mapping[str, Any]) -> str:
    """Return the table of cost.json and the sentence below it."""
    models, host = found["frame_milliseconds"], found["host"]
    rows = [
        [name, readable(row["milliseconds"]), row["operations"], readable(row.get("bytes_kept", 0) / 1024)]
        + [readable(100 * row["milliseconds"] / value) for value in models.values()]
        for name, row in found["scorers"].items()
    ]
    head = ["Scorer", "ms", "operations", "KiB kept", *(f"% of {model}" for model in models)]
    frames = "; ".join(f"{model}: {readable(value)} ms a frame" for model, value in models.items())
    note = f"{host['threads']} CPU threads, {host['side']} px, {host['times']}; no GPU could be had. {frames}."
    return "\n".join([*markdown(head, rows), "", f"{note} Views do not count as operations."])


def summary(rows: Rows) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and standard deviation over the scenes, by scorer and change."""
    return {
        name: {change: (float(np.mean(values)), float(np.std(values))) for change, values in row.items()}
        for name, row in rows.items()
    }


def shares(rows: Rows, nuisances: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return each mean as a share of the scorer's largest mean on a change of the object."""
    found = {}
    for name, row in summary(rows).items():
        top = max(mean for change, (mean, _) in row.items() if change not in nuisances)
        found[name] = {change: mean / max(top, 1e-12) for change, (mean, _) in row.items()}
    return found


def numbers(rows: Rows) -> list[str]:
    """Return the lines of a table of means and standard deviations."""
    body = [
        [name, *(readable(mean) + (f" ± {readable(spread)}" if spread else "") for mean, spread in row.values())]
        for name, row in summary(rows).items()
    ]
    return markdown(["", *next(iter(rows.values()))], body)


def verdicts(rows: Rows, nuisances: Sequence[str]) -> list[str]:
    """Return the lines of a table of what each scorer reacts to and what it ignores."""
    body = []
    for name, row in shares(rows, nuisances).items():
        cells = []
        for kind in ([c for c in row if c not in nuisances], nuisances):
            much = sorted((c for c in kind if row[c] >= MUCH), key=lambda c: -row[c])
            cells += [", ".join(much), ", ".join(c for c in kind if row[c] < NOTHING)]
        body.append([name, *(cell or "-" for cell in cells)])
    head = ["", "changes of the object it reacts to", "ignores", "nuisances it reacts to", "ignores"]
    return markdown(head, body, align="---")


def page(found: Mapping[str, Any]) -> str:
    """Return the part of docs/scorers.md that is made from the results."""
    parts = [
        f"Mean ± standard deviation over {found['scenes']} scenes. A scorer *reacts* to what moves it by at least "
        f"{MUCH:.0%} of its\nlargest mean on a change of the object, and *ignores* what moves it by less than "
        f"{NOTHING:.0%} of that.",
        "",
    ]
    for kind, title in AGAINST.items():
        parts += [f"### {title}", "", *verdicts(found[kind], found["nuisances"]), "", *numbers(found[kind]), ""]
    return "\n".join([*parts, "### Quality scores at the end of each clip", "", *numbers(found["quality"])])


def draw(found: Mapping[str, Any]) -> None:
    """Write docs/scorers.png: a row a scorer, changes of the object in blue, nuisances in orange."""
    from matplotlib.figure import Figure

    nuisances, changes = found["nuisances"], list(found["changes"])
    names = list(dict.fromkeys([*found["keyframe"], *found["previous"]]))
    objects = len(changes) - len(nuisances)
    figure = Figure(figsize=(15, 9.4), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), AGAINST.items(), strict=True):
        known = shares(found[kind], nuisances)
        values = np.array([[known.get(name, {}).get(change, math.nan) for change in changes] for name in names])
        for start, stop, colours in ((0, objects, "Blues"), (objects, len(changes), "Oranges")):
            extent = (start - 0.5, stop - 0.5, len(names) - 0.5, -0.5)
            axes.imshow(values[:, start:stop], colours, vmin=0, vmax=1, aspect="auto", extent=extent)
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                ink = "white" if value > 0.6 else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xlim(-0.5, len(changes) - 0.5)
        axes.axvline(objects - 0.5, color="black", linewidth=2)
        axes.set_xticks(range(len(changes)), changes, rotation=40, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=12)
    figure.suptitle(
        "Mean score in percent of the scorer's largest on a change of the object (left of the line, blue); "
        "right of it nuisances (orange)"
    )
    figure.savefig(DOCS / "scorers.png", dpi=100)


def write_reaction() -> None:
    """Write the picture and the tables of the page in docs from reaction.json."""
    found = json.loads((RESULTS / "reaction.json").read_text())
    replace_between(DOCS / "scorers.md", START, END, f"\n{page(found)}\n\n")
    draw(found)


def write() -> None:
    """Write cost.md, its copy in benchmarks/README.md and the page in docs from the results on disk."""
    table = cost_table(json.loads((RESULTS / "cost.json").read_text()))
    (RESULTS / "cost.md").write_text(table + "\n")
    replace_between(README, START, END, f"\n{table}\n\n")
    write_reaction()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs: dict[str, Callable[[], None]] = {"cost": cost, "react": react, "write": write}
    parser.add_argument("job", choices=jobs)
    jobs[parser.parse_args().job]()


if __name__ == "__main__":
    main()
