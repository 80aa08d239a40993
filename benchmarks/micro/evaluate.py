"""Measure the embedded micro SAM 2: its evaluation clips, real clips, trivial trackers, signals and speed.

    python -m benchmarks.micro.evaluate clips            # J&F on its clips, signals and trivial trackers
    python -m benchmarks.micro.evaluate real --root DIR  # J&F on a folder laid out as DAVIS, first 40 frames
    python -m benchmarks.micro.evaluate absence          # false masks while away, J before the first absence, recovery
    python -m benchmarks.micro.evaluate prompts          # clicks and boxes in the prompted frame
    python -m benchmarks.micro.evaluate speed            # frames a second and loading time
    python -m benchmarks.micro.evaluate sheet            # a contact sheet of overlays

Each writes ``benchmarks/results/micro/<name>.json`` (or ``contact_sheet.png``). ``--weights`` takes a training
checkpoint in place of the weights in the package.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.absence import SCORES, absences
from benchmarks.metrics import boundary_f_of_size, jaccard, score_masks
from benchmarks.micro import clips as fixed
from benchmarks.micro.trivial import TRIVIAL
from sam2_keyframe.micro import WEIGHTS, build_model, load_micro_predictor
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.synthetic.casting import WAYS

log = logging.getLogger("micro.evaluate")
RESULTS = Path(__file__).parents[1] / "results" / "micro"
Frames = NDArray[np.uint8]


def load(weights: Path | None) -> Any:
    """The predictor with the weights in the package, or with the averaged ones of a training checkpoint."""
    if weights is None:
        return load_micro_predictor()
    model: Any = build_model(256, initialise=False)
    average = torch.load(weights, map_location="cpu", weights_only=True)["average"]
    model.load_state_dict({k: v.half().float() for k, v in average.items()})
    return model.eval()


def start(predictor: Any, frames: Frames) -> Any:
    """SAM 2's inference state for frames in memory, without a detour through JPEG files."""
    size = predictor.image_size
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255.0
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    loaded = ((pixels - mean) / std, *frames.shape[1:3])
    with mock.patch("sam2.sam2_video_predictor.load_video_frames", return_value=loaded):
        return predictor.init_state("frames in memory")


@contextmanager
def listening(predictor: Any) -> Iterator[list[dict[str, Any]]]:
    """Collects candidates, their predicted IoUs and the object score of each decoder call."""
    heard: list[dict[str, Any]] = []
    original = predictor._forward_sam_heads

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        heard.append({"masks": out[0], "ious": out[2], "score": float(out[6].reshape(-1)[0])})
        return out

    predictor._forward_sam_heads = forward
    try:
        yield heard
    finally:
        del predictor._forward_sam_heads


def track(predictor: Any, frames: Frames, first: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The object's mask in every frame, ``(t, h, w)``, from its mask in the first."""
    state = start(predictor, frames)
    predictor.add_new_mask(state, 0, 1, first > 0)
    found = [logits[0, 0].numpy() > 0 for _, _, logits in predictor.propagate_in_video(state)]
    return np.stack(found)


def score(found: NDArray[np.bool_], truth: NDArray[np.generic]) -> tuple[float, float]:
    """J and F in percent, first and last frame left out as in DAVIS 2017."""
    result = score_masks(list(found), list(truth > 0))
    return 100 * result.j.mean, 100 * result.f.mean


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def area_under_curve(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores above a negative (ROC AUC)."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def signals(heard: list[dict[str, Any]], truth: NDArray[np.generic]) -> dict[str, list[float]]:
    """Of the tracked frames: predicted and true IoU where visible, scores by visibility, likeness of candidates."""
    out: dict[str, list[float]] = {k: [] for k in ("predicted", "true", "visible", "hidden", "pairwise")}
    for row, item in zip(truth[1:] > 0, heard[1:], strict=True):
        out["visible" if row.any() else "hidden"].append(item["score"])
        masks = F.interpolate(item["masks"].float(), row.shape, mode="bilinear", align_corners=False)[0].numpy() > 0
        if not row.any() or not masks.any():
            continue
        best = int(item["ious"].argmax())
        out["predicted"].append(float(item["ious"].max()))
        out["true"].append(jaccard(masks[best], row))
        pairs = [jaccard(masks[a], masks[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        out["pairwise"].append(float(np.mean(pairs)))
    return out


def summary(rows: Iterable[dict[str, Any]], tracker: str) -> dict[str, dict[str, float]]:
    """Mean J, F and J&F by challenge and overall."""
    rows = list(rows)
    table = {}
    for name in [*dict.fromkeys(r["name"] for r in rows), "overall"]:
        some = [r[tracker] for r in rows if name in (r["name"], "overall")]
        j, f = (float(np.mean([pair[i] for pair in some])) for i in (0, 1))
        table[name] = {"J": round(j, 2), "F": round(f, 2), "J&F": round((j + f) / 2, 2), "clips": len(some)}
    return table


def run_clips(predictor: Any, trivial: bool, stride: int = 1) -> dict[str, Any]:
    """The evaluation clips: the model, the trivial trackers, and the model's signals."""
    rows, pooled = [], {k: list[float]() for k in ("predicted", "true", "visible", "hidden", "pairwise")}
    for challenge, seed in fixed.CLIPS[::stride]:
        clip = make_clip(challenge, seed, fixed.FRAMES, fixed.SIZE, fixed.OBJECTS)
        with listening(predictor) as heard:
            found = track(predictor, clip.frames, clip.masks[0])
        row: dict[str, Any] = {"name": challenge, "seed": seed, "model": score(found, clip.masks)}
        mine = signals(heard, clip.masks)
        for key, values in mine.items():
            if key != "pairwise" or challenge == "look_alike":
                pooled[key].extend(values)
        if trivial:
            row |= {name: score(tracker(clip.frames, clip.masks[0]), clip.masks) for name, tracker in TRIVIAL.items()}
        rows.append(row)
    return {
        "model": summary(rows, "model"),
        "trivial": {name: summary(rows, name)["overall"] for name in TRIVIAL} if trivial else {},
        "signals": {
            "rank correlation of predicted and true IoU": round(
                rank_correlation(pooled["predicted"], pooled["true"]), 3
            ),
            "AUC of the object score": round(area_under_curve(pooled["visible"], pooled["hidden"]), 3),
            "median pairwise IoU of candidates on look-alikes": round(float(np.median(pooled["pairwise"])), 3),
            "visible frames": len(pooled["visible"]),
            "hidden frames": len(pooled["hidden"]),
        },
        "rows": rows,
    }


def run_real(predictor: Any, root: Path, trivial: bool, frames: int = 40) -> dict[str, Any]:
    """Every object of every sequence of a folder laid out as DAVIS, first ``frames`` frames."""
    rows = []
    names = (root / "ImageSets" / "val.txt").read_text().split()
    for name in names:
        images = sorted((root / "JPEGImages" / "480p" / name).glob("*.jpg"))[:frames]
        video = np.stack([cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB) for p in images])
        from PIL import Image

        ids = np.stack([np.asarray(Image.open(root / "Annotations" / "480p" / name / f"{p.stem}.png")) for p in images])
        for number in (int(i) for i in np.unique(ids[0]) if i):
            truth = (ids == number).astype(np.uint8)
            row: dict[str, Any] = {
                "name": name,
                "seed": number,
                "model": score(track(predictor, video, truth[0]), truth),
            }
            if trivial:
                row |= {key: score(tracker(video, truth[0]), truth) for key, tracker in TRIVIAL.items()}
            rows.append(row)
            log.info("%s %d J %.1f F %.1f", name, number, *row["model"])
    return {
        "model": summary(rows, "model"),
        "trivial": {key: summary(rows, key)["overall"] for key in TRIVIAL} if trivial else {},
        "rows": rows,
    }


def run_absence(predictor: Any, clips: int = fixed.AWAY_CLIPS) -> dict[str, Any]:
    """Stock SAM 2 on clips with long absences: what `absence.absences` scores, and J before the first absence, percent.

    Means over clips, of each way to be away and of all.
    """
    rows = []
    for seed, way in itertools.product(range(fixed.AWAY_SEED, fixed.AWAY_SEED + clips), WAYS):
        clip = make_clip(f"absence_{way}", seed, fixed.AWAY_FRAMES, fixed.SIZE)
        truth = clip.masks[1:-1] > 0
        found = track(predictor, clip.frames, clip.masks[0])[1:-1]
        seen, shown = truth.any((1, 2)), found.any((1, 2))
        j = [jaccard(ours, true) for ours, true in zip(found, truth, strict=True)]
        f = [boundary_f_of_size(ours, true) for ours, true in zip(found, truth, strict=True)]
        before = float(np.mean(j[: int(np.argmin(seen))]))
        scores = absences(seen.tolist(), shown.tolist(), j, f).columns()
        rows.append({"way": way, "seed": seed, "j_before": 100 * before, "j": 100 * float(np.mean(j))})
        rows[-1] |= {name: 100 * scores[name] for name in SCORES}
        log.info("%s", json.dumps({k: v if isinstance(v, int | str) else round(v, 1) for k, v in rows[-1].items()}))

    def mean(way: str) -> dict[str, float]:
        chosen = [row for row in rows if way in ("all", row["way"])]
        names = [name for name in chosen[0] if name not in ("way", "seed")]
        return {name: round(float(np.nanmean([row[name] for row in chosen])), 2) for name in names}

    return {"clips": len(rows), **{way: mean(way) for way in ("all", *WAYS)}, "rows": rows}


def run_prompts(predictor: Any) -> dict[str, float]:
    """Mean IoU in percent in the prompted frame itself of the evaluation clips: one click, a box, a filled box."""
    found: dict[str, list[float]] = {"one click": [], "box": [], "box, filled in (no model)": []}
    for challenge, seed in fixed.CLIPS:
        clip = make_clip(challenge, seed, fixed.FRAMES, fixed.SIZE, fixed.OBJECTS, times=[0])
        truth = clip.masks[0] > 0
        inside = np.argwhere(truth)
        row, column = inside[np.abs(inside - inside.mean(0)).sum(1).argmin()]
        (top, left), (bottom, right) = inside.min(0), inside.max(0) + 1
        filled = np.zeros_like(truth)
        filled[top:bottom, left:right] = True
        found["box, filled in (no model)"].append(jaccard(filled, truth))
        prompts: dict[str, dict[str, Any]] = {
            "one click": {"points": [[column, row]], "labels": [1]},
            "box": {"box": [left, top, right, bottom]},
        }
        for name, prompt in prompts.items():
            _, _, logits = predictor.add_new_points_or_box(start(predictor, clip.frames), 0, 1, **prompt)
            found[name].append(jaccard(logits[0, 0].numpy() > 0, truth))
    return {name: round(100 * float(np.mean(values)), 1) for name, values in found.items()}


def run_speed(frames: int = 48) -> dict[str, float]:
    """Median frames a second for one object, two threads, and seconds to load, here and now."""
    torch.set_num_threads(2)
    begun = time.perf_counter()
    predictor: Any = load_micro_predictor()
    loading = time.perf_counter() - begun
    clip = make_clip("deformation", 7, frames, 256)
    state = start(predictor, clip.frames)
    predictor.add_new_mask(state, 0, 1, clip.masks[0] > 0)
    marks = []
    for _ in predictor.propagate_in_video(state):
        marks.append(time.perf_counter())
    return {
        "frames a second at 256 px": round(1 / float(np.median(np.diff(marks)[8:])), 2),
        "seconds to load": round(loading, 2),
        "MB of weights": round(WEIGHTS.stat().st_size / 1e6, 2),
    }


def sheet(predictor: Any, columns: int = 8) -> Frames:
    """Overlays of one clip a challenge: green is found and true, red is found only, blue is missed."""
    rows = []
    for challenge, seed in fixed.CLIPS[:: len(fixed.SEEDS)]:
        clip = make_clip(challenge, seed, fixed.FRAMES, fixed.SIZE, fixed.OBJECTS)
        found, truth = track(predictor, clip.frames, clip.masks[0]), clip.masks > 0
        row = []
        for t in np.linspace(0, fixed.FRAMES - 1, columns).round().astype(int):
            image = clip.frames[t].astype(np.float32)
            for where, colour in (
                (found[t] & truth[t], (0, 255, 0)),
                (found[t] & ~truth[t], (255, 0, 0)),
                (~found[t] & truth[t], (0, 80, 255)),
            ):
                image[where] = 0.5 * image[where] + 0.5 * np.array(colour, np.float32)
            row.append(cv2.resize(image.astype(np.uint8), (128, 128), interpolation=cv2.INTER_AREA))
        rows.append(np.concatenate(row, 1))
    return np.asarray(np.concatenate(rows, 0))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clips", "real", "absence", "prompts", "speed", "sheet"))
    parser.add_argument("--weights", type=Path, help="a training checkpoint")
    parser.add_argument("--root", type=Path, default=Path("../shared/data/vos-mini"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--no-trivial", action="store_true", help="leave the trivial trackers out")
    parser.add_argument("--stride", type=int, default=1, help="every so many of the evaluation clips")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "speed":
        result: dict[str, Any] = run_speed()
    elif args.what == "prompts":
        result = run_prompts(load(args.weights))
    elif args.what == "absence":
        result = run_absence(load(args.weights))
    elif args.what == "sheet":
        image = sheet(load(args.weights))
        cv2.imwrite(str(args.out / "contact_sheet.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return
    elif args.what == "clips":
        result = run_clips(load(args.weights), not args.no_trivial, args.stride)
    else:
        result = run_real(load(args.weights), args.root, not args.no_trivial)
    (args.out / f"{args.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    log.info("%s", json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))


if __name__ == "__main__":
    main()
