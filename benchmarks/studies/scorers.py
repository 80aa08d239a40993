"""What scorers cost and what they react to.

    python -m benchmarks.scorers cost     # milliseconds, operations and bytes; share of two models' frame time
    python -m benchmarks.scorers react    # every scorer on clips in which one property changes
    python -m benchmarks.scorers write    # from those results: cost.md, the table in README.md, the tables and picture
                                          # of docs/scorers.md

Results are `benchmarks/results/scorers/*.json`. `cost` wants an idle machine; each may be run again at any time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.studies.reaction import QUALITY, RESULTS, SCORERS, SIDE, react, tracked
from benchmarks.studies.reaction_page import publish_reaction, readable, replace_between
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches.frames import scoring_image
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import History, TrackedFrame

README = Path(__file__).resolve().parent / "README.md"
WARM_UP = 3


class Count(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


def frame_milliseconds(predictor: Any, frames: int) -> float:
    """Median time of a tracked frame, one object, after `WARM_UP` of them."""
    from PIL import Image

    clip = make_clip("deformation", 0, frames=frames, size=SIDE)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for i, image in enumerate(clip.frames):
            Image.fromarray(image).save(Path(folder) / f"{i:05d}.jpg")
        state = predictor.init_state(folder)
        predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        times, last = [], time.perf_counter()
        for _ in predictor.propagate_in_video(state):
            times.append((time.perf_counter() - last) * 1e3)
            last = time.perf_counter()
    return statistics.median(times[WARM_UP:])


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
    from sam2.build_sam import build_sam2_video_predictor

    models = {"micro at 256 px": frame_milliseconds(load_micro_predictor(image_size=256), 34)}
    tiny = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    models["official tiny at 1024 px, random weights"] = frame_milliseconds(tiny, 8)
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
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {"host": host, "frame_milliseconds": models, "scorers": rows}
    (RESULTS / "cost.json").write_text(json.dumps(found, indent=1) + "\n")


def cost_table(found: dict[str, Any]) -> str:
    """Return the table of cost.json and the sentence below it."""
    models = found["frame_milliseconds"]
    lines = ["| Scorer | ms | operations | KiB kept | " + " | ".join(f"% of {model}" for model in models) + " |"]
    lines.append("|---|" + "---:|" * (3 + len(models)))
    for name, row in found["scorers"].items():
        shares = " | ".join(readable(100 * row["milliseconds"] / value) for value in models.values())
        kept = readable(row.get("bytes_kept", 0) / 1024)
        lines.append(f"| {name} | {readable(row['milliseconds'])} | {row['operations']} | {kept} | {shares} |")
    frames = "; ".join(f"{model}: {readable(value)} ms a frame" for model, value in models.items())
    host = found["host"]
    note = f"{host['threads']} CPU threads, {host['side']} px, {host['times']}; no GPU could be had. {frames}."
    return "\n".join([*lines, "", f"{note} Views do not count as operations."])


def publish() -> None:
    """Write cost.md, its copy in README.md and the page in docs from the results on disk."""
    table = cost_table(json.loads((RESULTS / "cost.json").read_text()))
    (RESULTS / "cost.md").write_text(table + "\n")
    replace_between(README, table)
    publish_reaction()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs: dict[str, Callable[[], None]] = {"cost": cost, "react": react, "write": publish}
    parser.add_argument("job", choices=jobs)
    jobs[parser.parse_args().job]()


if __name__ == "__main__":
    main()
