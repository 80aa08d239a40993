"""What scorers cost and what they react to.

    python -m benchmarks.scorers cost     # milliseconds, operations and bytes; share of two models' frame time
    python -m benchmarks.scorers react    # every scorer on controlled changes of a scene
    python -m benchmarks.scorers write    # cost.md, the table in README.md and docs/scorers.png from those results

Results are `benchmarks/results/scorers/*.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import FrameMemo, History, TrackedFrame

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scorers"
SIDE = 256
SCORERS: dict[str, Any] = {
    "frame_difference": sk.FrameDifference(),
    "frame_difference (object)": sk.FrameDifference(region="object"),
    "histogram hsv": sk.Histogram(),
    "histogram hsv (object)": sk.Histogram(region="object"),
    "histogram luminance": sk.Histogram("luminance"),
    "ssim": sk.SSIM(),
    "ssim (object)": sk.SSIM(region="object"),
    "edge_change_ratio": sk.EdgeChangeRatio(),
    "edge_change_ratio compensated": sk.EdgeChangeRatio(compensate=True),
    "edge_change_ratio comp. (object)": sk.EdgeChangeRatio(compensate=True, region="object"),
    "optical_flow mean": sk.OpticalFlow(),
    "optical_flow mean (object)": sk.OpticalFlow(region="object"),
    "optical_flow 90 % (object)": sk.OpticalFlow("percentile", region="object"),
    "optical_flow relative": sk.OpticalFlow("relative"),
    "mask_iou": sk.MaskIoU(),
    "mask_shape": sk.MaskShape(),
    "mask_shape area": sk.MaskShape("area"),
    "feature_shift pointer": sk.FeatureShift("pointer"),
    "feature_shift memory": sk.FeatureShift("memory"),
    "feature_shift image": sk.FeatureShift("image"),
    "novelty": sk.Novelty(),
    "surprise": sk.Surprise(),
    "spatiotemporal": sk.Spatiotemporal(),
    "predicted_iou": sk.PredictedIoU(),
    "object_score": sk.ObjectScore(),
    "stability": sk.Stability(),
    "distractor": sk.Distractor(),
    "combine mask_iou + flow": sk.Combine((sk.MaskIoU(), sk.OpticalFlow())),
}
NOT_CHANGES = {"distractor", "novelty", "surprise", "spatiotemporal", "predicted_iou", "object_score", "stability"}


class Count(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


def tracked(index: int, image: np.ndarray, mask: np.ndarray, features: dict[str, torch.Tensor]) -> TrackedFrame:
    """A frame of (h, w, 3) uint8 pixels with an exact (h, w) mask, two worse candidates and given features."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    logits = torch.from_numpy(np.where(mask, 10.0, -10.0).astype(np.float32))[None, None]
    beside = logits.roll(60, 3).maximum(logits)
    return TrackedFrame(
        frame_idx=index,
        pred_masks=logits,
        candidate_masks=torch.cat([logits, beside, -logits], 1),
        candidate_ious=torch.tensor([[0.9, 0.6, 0.3]]),
        object_score_logits=torch.full((1, 1), 10.0),
        shared=FrameMemo(lambda: pixels),
        **features,
    )


def measure(scorer: Any, before: TrackedFrame, now: TrackedFrame) -> torch.Tensor:
    scorer.score(before, History())
    reference = before.reference()
    now.image  # noqa: B018 - bringing pixels to scoring resolution is the plugin's cost, once a frame
    return scorer.score(now, History(reference, reference, [reference] * 6))


def frame_milliseconds(predictor: Any, frames: int) -> float:
    """Time of the fastest tracked frame, one object: the one least disturbed by other work on the machine."""
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
    return min(times[2:])


def cost(repeats: int = 15) -> None:
    """Write cost.json."""
    torch.set_num_threads(2)
    from sam2.build_sam import build_sam2_video_predictor

    models = {"micro at 256 px": frame_milliseconds(load_micro_predictor(image_size=256), 14)}
    tiny = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    models["official tiny at 1024 px, random weights"] = frame_milliseconds(tiny, 4)
    clip = make_clip("deformation", 1, frames=4, size=SIDE)
    features = {
        "image_embed": torch.randn(1, 256, 64, 64),
        "maskmem_features": torch.randn(1, 64, 64, 64).bfloat16(),
        "obj_ptr": torch.randn(1, 256),
    }

    def pair() -> tuple[TrackedFrame, TrackedFrame]:
        before, now = (tracked(i, clip.frames[i], clip.masks[i] == 1, features) for i in (0, 3))
        return before, now

    rows = {}
    for name, scorer in SCORERS.items():
        times = []
        with torch.inference_mode():
            for _ in range(repeats):
                before, now = pair()
                scorer.score(before, History())
                past = History(before.reference(), before.reference(), [before.reference()] * 6)
                now.image  # noqa: B018
                start = time.perf_counter()
                scorer.score(now, past)
                times.append((time.perf_counter() - start) * 1e3)
        before, now = pair()
        scorer.score(before, History())
        past = History(before.reference(), before.reference(), [before.reference()] * 6)
        now.image  # noqa: B018
        with torch.no_grad(), Count() as count:  # inference mode would hide conversions
            scorer.score(now, past)
        kept = sum(value.numel() * value.element_size() for value in now.reference().values.values())
        rows[name] = {"milliseconds": min(times), "operations": count.total, "bytes_kept": kept}
        print(f"{name:32s} {rows[name]['milliseconds']:8.2f} ms {count.total:5d} operations", flush=True)
    host = {"torch": torch.__version__, "threads": 2, "machine": platform.machine(), "side": SIDE}
    write("cost.json", {"host": host, "frame_milliseconds": models, "scorers": rows})


def write(name: str, value: Any) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / name).write_text(json.dumps(value, indent=1) + "\n")


def photographs() -> list[np.ndarray]:
    import cv2
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket")
    return [cv2.resize(np.ascontiguousarray(getattr(data, n)()[..., :3]), (384, 384)) for n in names]


def sample(photo: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import cv2

    border = cv2.BORDER_REFLECT
    return cv2.remap(photo, np.float32(x + 192), np.float32(y + 192), cv2.INTER_LINEAR, borderMode=border)


def render(seed: int, **edit: Any) -> tuple[np.ndarray, np.ndarray]:
    """A textured object before a photograph, (256, 256, 3) uint8, and its mask; `edit` changes one property."""
    photos = photographs()
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:SIDE, :SIDE] - SIDE / 2).astype(np.float32)
    angle, shift = np.deg2rad(edit.get("turn", 0.0)), edit.get("pan", 0.0)
    cx, cy = np.cos(angle) * x + np.sin(angle) * y - shift, np.cos(angle) * y - np.sin(angle) * x
    back = photos[(seed + edit.get("background", 0)) % len(photos)]
    image = sample(back, cx, cy).astype(np.float32)
    middle = rng.uniform(-30, 30, 2) + np.float64([edit.get("move", 0.0), 0])
    ox, oy = ((c - m) / edit.get("scale", 1.0) for c, m in zip((cx, cy), middle, strict=True))
    outline = 38 * (1 + edit.get("bend", 0.0) * np.sin(3 * np.arctan2(oy, ox)))
    inside = np.hypot(ox, oy * 1.3) < outline
    skin = photos[(seed + 1) % len(photos)]
    if edit.get("repaint"):
        skin = skin[:, ::-1, ::-1]
    cloth = sample(skin, ox, oy)
    image[inside] = cloth[inside]
    if edit.get("cover"):
        bar = np.abs(x - middle[0] - 12) < 26
        wall = sample(photos[(seed + 2) % len(photos)], x, y)
        image[bar], inside = wall[bar], inside & ~bar
    image = image * edit.get("light", 1.0) + rng.normal(0, edit.get("noise", 0.0), image.shape)
    return np.clip(image.round(), 0, 255).astype(np.uint8), inside


CHANGES: dict[str, dict[str, Any]] = {
    "shape": {"bend": 0.45},
    "scale": {"scale": 1.5},
    "appearance": {"repaint": True},
    "object motion": {"move": 24.0},
    "occlusion": {"cover": True},
    "background": {"background": 2},
    "illumination": {"light": 0.6},
    "camera motion": {"pan": 15.0, "turn": 4.0},
    "sensor noise": {"noise": 5.0},
}


def features_of(predictor: Any, images: list[np.ndarray], masks: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """What the micro model computes about each image when given the exact mask as a prompt."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for i, image in enumerate(images):
            Image.fromarray(image).save(Path(folder) / f"{i:05d}.jpg", quality=98)
        state = predictor.init_state(folder)
        for i, mask in enumerate(masks):
            predictor.add_new_mask(state, i, 1, mask)
        predictor.propagate_in_video_preflight(state)
        entries = state["output_dict_per_obj"][0]["cond_frame_outputs"]
        return [
            {
                "image_embed": predictor.forward_image(state["images"][i][None])["vision_features"],
                "maskmem_features": entries[i]["maskmem_features"],
                "obj_ptr": entries[i]["obj_ptr"],
            }
            for i in range(len(images))
        ]


def react(seeds: int = 8) -> None:
    """Write reaction.json: the mean score of each change scorer on each change over the scenes."""
    predictor = load_micro_predictor(image_size=256)
    table: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        views = [render(seed), *(render(seed, **edit) for edit in CHANGES.values())]
        features = features_of(predictor, [view[0] for view in views], [view[1] for view in views])
        for number, change in enumerate(CHANGES, 1):
            for name, scorer in SCORERS.items():
                if name in NOT_CHANGES or name.startswith("combine"):
                    continue
                before, now = (tracked(i, *views[i], features[i]) for i in (0, number))
                value = float(measure(scorer, before, now))
                table.setdefault(name, {}).setdefault(change, []).append(value)
        print(f"scene {seed + 1} of {seeds}", flush=True)
    mean = {name: {change: statistics.fmean(values) for change, values in row.items()} for name, row in table.items()}
    spread = {
        name: {change: statistics.pstdev(values) for change, values in row.items()} for name, row in table.items()
    }
    write("reaction.json", {"scenes": seeds, "changes": CHANGES, "mean": mean, "standard_deviation": spread})


def publish() -> None:
    """Write cost.md, its copy in README.md and docs/scorers.png from the results on disk."""
    found = json.loads((RESULTS / "cost.json").read_text())
    models = found["frame_milliseconds"]
    lines = ["| Scorer | ms | operations | KiB kept | " + " | ".join(f"% of {model}" for model in models) + " |"]
    lines.append("|---|" + "---:|" * (3 + len(models)))
    for name, row in found["scorers"].items():
        shares = " | ".join(f"{100 * row['milliseconds'] / value:.2g}" for value in models.values())
        kept = row["bytes_kept"] / 1024
        star = "*" if row.get("disturbed") else ""
        lines.append(f"| {name} | {row['milliseconds']:.2f}{star} | {row['operations']} | {kept:.1f} | {shares} |")
    timing = "; ".join(f"{model}: {value:.0f} ms a frame" for model, value in models.items())
    note = f"Two CPU threads, {SIDE} px, fastest of 15. {timing}. Views do not count as operations."
    if any(row.get("disturbed") for row in found["scorers"].values()):
        note += " *: measured while other work ran on the machine, an upper bound; the others in an earlier, quiet run."
    table = "\n".join([*lines, "", note])
    (RESULTS / "cost.md").write_text(table + "\n")
    page = ROOT / "benchmarks" / "README.md"
    text = page.read_text()
    start, end = text.index(lines[0][:14]), text.index("\n\nOperations are those of one call")
    page.write_text(text[:start] + table + text[end:])
    plot(json.loads((RESULTS / "reaction.json").read_text())["mean"])


def plot(mean: dict[str, dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, changes = list(mean), list(next(iter(mean.values())))
    values = np.array([[mean[name][change] for change in changes] for name in names])
    shade = values / values.max(1, keepdims=True).clip(1e-9)
    figure, axes = pyplot.subplots(figsize=(10, 8.5), layout="constrained")
    picture = axes.imshow(shade, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(changes)), changes, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if shade[row, column] > 0.6 else "white"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)
    axes.axvline(4.5, color="white", linewidth=3)
    axes.set_title("Mean score by kind of change; colour: share of the scorer's largest. Right of the line: nuisances")
    figure.colorbar(picture, ax=axes, shrink=0.6)
    (ROOT / "docs").mkdir(exist_ok=True)
    figure.savefig(ROOT / "docs" / "scorers.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs: dict[str, Callable[[], None]] = {"cost": cost, "react": react, "write": publish}
    parser.add_argument("job", choices=jobs)
    jobs[parser.parse_args().job]()


if __name__ == "__main__":
    main()
