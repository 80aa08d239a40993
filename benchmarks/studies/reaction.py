"""Clips in which one property changes, and what every scorer says about them."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.types import FrameMemo, FrameRecord, History, Reference, TrackedFrame

RESULTS = Path(__file__).resolve().parent / "scorers"
SIDE = 256
STEPS = 8
"""Frames over which a change grows from nothing to its full size; one unchanged frame comes before."""

CHANGES: dict[str, dict[str, float]] = {
    "shape": {"bend": 0.45},
    "scale": {"scale": 1.5},
    "appearance": {"repaint": 1.0},
    "motion": {"move": 24.0},
    "turning": {"corner": 48.0},
    "occlusion": {"cover": 1.0},
    "background": {"dissolve": 1.0},
    "look-alike": {"twin": 1.0},
    "illumination": {"light": 0.6},
    "camera": {"pan": 15.0, "turn": 4.0},
    "noise": {"noise": 5.0},
}
"""What changes, and by how much in the end: see `render`."""
NUISANCES = ("background", "look-alike", "illumination", "camera", "noise")

SCORERS: dict[str, Any] = {
    "FrameDifference": sk.FrameDifference(),
    "FrameDifference colour": sk.FrameDifference(colour=True),
    "FrameDifference, object": sk.FrameDifference(region="object"),
    "Histogram hsv": sk.Histogram(),
    "Histogram hsv, object": sk.Histogram(region="object"),
    "Histogram rgb": sk.Histogram("rgb"),
    "Histogram luminance": sk.Histogram("luminance"),
    "SSIM": sk.SSIM(),
    "SSIM, object": sk.SSIM(region="object"),
    "EdgeChangeRatio": sk.EdgeChangeRatio(),
    "EdgeChangeRatio, object": sk.EdgeChangeRatio(region="object"),
    "EdgeChangeRatio compensated": sk.EdgeChangeRatio(compensate=True),
    "EdgeChangeRatio comp., object": sk.EdgeChangeRatio(compensate=True, region="object"),
    "OpticalFlow mean": sk.OpticalFlow(),
    "OpticalFlow mean, object": sk.OpticalFlow(region="object"),
    "OpticalFlow 90 %, object": sk.OpticalFlow("percentile", region="object"),
    "OpticalFlow relative": sk.OpticalFlow("relative"),
    "OpticalFlow direction": sk.OpticalFlow("direction"),
    "OpticalFlow direction, object": sk.OpticalFlow("direction", region="object"),
    "MaskIoU": sk.MaskIoU(),
    "MaskShape": sk.MaskShape(),
    "MaskShape area": sk.MaskShape("area"),
    "FeatureShift pointer": sk.FeatureShift("pointer"),
    "FeatureShift memory": sk.FeatureShift("memory"),
    "FeatureShift image": sk.FeatureShift("image"),
    "Novelty": sk.Novelty(),
    "Spatiotemporal": sk.Spatiotemporal(),
    "Surprise": sk.Surprise(),
    "Combine MaskIoU + OpticalFlow": sk.Combine((sk.MaskIoU(), sk.OpticalFlow())),
}
QUALITY: dict[str, Any] = {
    "PredictedIoU": sk.PredictedIoU(),
    "ObjectScore": sk.ObjectScore(),
    "Stability": sk.Stability(),
    "MaskQuality": sk.MaskQuality(),
    "Distractor": sk.Distractor(),
}


@functools.cache
def photographs() -> list[np.ndarray]:
    import cv2
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket")
    return [cv2.resize(np.ascontiguousarray(getattr(data, n)()[..., :3]), (384, 384)) for n in names]


def _sample(photo: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (h, w, 3) float32 pixels of a photograph at positions from its middle."""
    import cv2

    border = cv2.BORDER_REFLECT
    x, y = (np.asarray(axis + 192, np.float32) for axis in (x, y))
    return np.asarray(cv2.remap(photo, x, y, cv2.INTER_LINEAR, borderMode=border), np.float32)


def render(seed: int, part: float = 0.0, **edit: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a textured object before a photograph, with a `part` of an edit done.

    Args:
        seed: Chooses the photographs and where the object is.
        part: How much of the edit is done, in [0, 1].
        edit: What the edit comes to in the end. Of the object: `bend` of its outline, `scale`, `repaint` with another
            texture, `move` in pixels, `corner` (as far to the right, then down, half of it each), `cover` by a bar that
            comes in from the right. Of the rest: `dissolve` into another background, `twin` (its copy comes in),
            factor of `light`, `pan` in pixels and `turn` in degrees of the camera, standard deviation of the `noise`.

    Returns:
        (256, 256, 3) uint8 pixels, and the (256, 256) bool mask of what is visible of the object.
    """
    half = edit.get("corner", 0.0) / 2
    edit = {key: value * part + (1 - part) * (key in ("scale", "light")) for key, value in edit.items()}
    get = edit.get
    back, skin, wall, other = (photographs()[(seed + k) % 4] for k in range(4))
    middle = np.random.default_rng(seed).uniform(-30, 30, 2)
    y, x = (np.mgrid[:SIDE, :SIDE] - SIDE / 2).astype(np.float32)
    angle = np.deg2rad(get("turn", 0.0))
    cx = np.cos(angle) * x + np.sin(angle) * y - get("pan", 0.0)
    cy = np.cos(angle) * y - np.sin(angle) * x
    image = (1 - get("dissolve", 0.0)) * _sample(back, cx, cy) + get("dissolve", 0.0) * _sample(other, cx, cy)

    def draw(place: np.ndarray) -> np.ndarray:
        ox, oy = ((c - p) / get("scale", 1.0) for c, p in zip((cx, cy), place, strict=True))
        inside = np.hypot(ox, oy * 1.3) < 38 * (1 + get("bend", 0.0) * np.sin(3 * np.arctan2(oy, ox)))
        mixed = (1 - get("repaint", 0.0)) * _sample(skin, ox, oy) + get("repaint", 0.0) * _sample(other, ox, oy)
        image[inside] = mixed[inside]
        return np.asarray(inside)

    if get("twin"):
        draw(np.add(middle, (-90 if middle[0] > 0 else 90, 170 * (1 - get("twin", 0.0)))))
    steps = [get("move", 0.0) + min(get("corner", 0.0), half), max(get("corner", 0.0) - half, 0.0)]
    inside = draw(middle + steps)
    if get("cover"):
        bar = np.abs(x - (154 + get("cover", 0.0) * (middle[0] + 12 - 154))) < 26
        image[bar], inside = _sample(wall, x, y)[bar], inside & ~bar
    grain = np.random.default_rng((seed, round(1000 * part))).normal(0, 1, image.shape)
    image = image * get("light", 1.0) + get("noise", 0.0) * grain
    return np.clip(image.round(), 0, 255).astype(np.uint8), inside


def ramp(seed: int, edit: dict[str, float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pixels and masks of the unchanged frame and of the `STEPS` frames over which the edit grows."""
    return [render(seed, step / STEPS, **edit) for step in range(STEPS + 1)]


def tracked(
    index: int, image: np.ndarray, mask: np.ndarray, features: dict[str, Any], device: str = "cpu"
) -> TrackedFrame:
    """A frame of (h, w, 3) uint8 pixels with an exact (h, w) mask, two worse candidates and given features."""
    pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1).float() / 255
    logits = torch.from_numpy(np.where(mask, 10.0, -10.0).astype(np.float32)).to(device)[None, None]
    beside = logits.roll(60, 3).maximum(logits)
    return TrackedFrame(
        frame_idx=index,
        pred_masks=logits,
        candidate_masks=torch.cat([logits, beside, -logits], 1),
        candidate_ious=torch.tensor([[0.9, 0.6, 0.3]], device=device),
        object_score_logits=torch.full((1, 1), 10.0, device=device),
        shared=FrameMemo(lambda: pixels),
        **features,
    )


def observe(predictor: Any, clip: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[Any], dict[str, float]]:
    """Return what the model computes of each frame given its exact mask, and its quality scores of the last frame.

    The quality scores are those of tracking the clip from the first frame's mask. Images are encoded once for both.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for i, (image, _) in enumerate(clip):
            Image.fromarray(image).save(Path(folder) / f"{i:05d}.jpg", quality=98)
        state, encoded = predictor.init_state(folder), {}
        for i, (_, mask) in enumerate(clip):
            predictor.add_new_mask(state, i, 1, mask)
            encoded[i] = state["cached_features"][i]
        predictor.propagate_in_video_preflight(state)
        entries = state["output_dict_per_obj"][0]["cond_frame_outputs"]
        features = [
            {
                "image_embed": encoded[i][1]["vision_features"],
                "maskmem_features": entries[i]["maskmem_features"],
                "obj_ptr": entries[i]["obj_ptr"],
            }
            for i in range(len(clip))
        ]
        with sk.wrap(predictor, "stock", measure=tuple(QUALITY.values())):
            state = predictor.init_state(folder)
            state["cached_features"] = encoded
            predictor.add_new_mask(state, 0, 1, clip[0][1])
            for _ in predictor.propagate_in_video(state):
                pass
            scores = sk.memory_stats(state)[1].rows[-1].scores
    return features, {label: float(scores[scorer.name]) for label, scorer in QUALITY.items()}


def change_scorers() -> Iterator[tuple[str, str, Any]]:
    """Yield every change scorer as (what it is compared with, label, scorer); those without a choice once."""
    for label, scorer in SCORERS.items():
        if hasattr(scorer, "reference"):
            yield "keyframe", label, replace(scorer, reference="keyframe")
            yield "previous", label, replace(scorer, reference="previous")
        elif not isinstance(scorer, sk.Combine):
            yield ("previous" if isinstance(scorer, sk.Surprise) else "keyframe"), label, scorer


def score_clip(clip: Sequence[tuple[np.ndarray, np.ndarray]], features: list[Any]) -> dict[tuple[str, str], float]:
    """Return each scorer's number: of the last frame against the first, or the mean of all against the one before.

    Five records of a still scene come before the clip, so that `Surprise` has something to be surprised by.
    """
    still = [FrameRecord(-k, scores={sk.Surprise().of.name: 0.0}) for k in range(5, 0, -1)]
    scores: dict[tuple[str, str], list[float]] = {}
    seen: list[Reference] = []
    records = still
    for index, ((image, mask), made) in enumerate(zip(clip, features, strict=True)):
        frame = tracked(index, image, mask, made)
        past = History(seen[0], seen[-1], seen[:1], records) if seen else History()
        for reference, label, scorer in change_scorers():
            view = replace(frame, measured={})  # parts of different scorers may share a name
            value = float(scorer.score(view, past))
            if seen:
                scores.setdefault((reference, label), []).append(value)
            if seen and isinstance(scorer, sk.Surprise):
                watched = {scorer.of.name: float(view.measured[scorer.of.name])}
                latest = FrameRecord(index, scores=watched)
        if seen:
            records = [*records, latest]
        seen.append(frame.reference())
    return {key: values[-1] if key[0] == "keyframe" else sum(values) / len(values) for key, values in scores.items()}


def react(seeds: int = 8) -> None:
    """Write reaction.json: the scores of every scene, by reference, scorer and change."""
    torch.set_num_threads(1)
    predictor = load_micro_predictor(image_size=SIDE)
    found: dict[str, dict[str, dict[str, list[float]]]] = {"keyframe": {}, "previous": {}, "quality": {}}
    for seed in range(seeds):
        for change, edit in {"nothing": {}, **CHANGES}.items():
            clip = ramp(seed, edit)
            features, quality = observe(predictor, clip)
            scores = {("quality", label): value for label, value in quality.items()}
            if edit:
                with torch.inference_mode():
                    scores |= score_clip(clip, features)
            for (kind, label), value in scores.items():
                row = found[kind].setdefault(label, {})
                row.setdefault(change, []).append(float(f"{value:.5g}"))
        print(f"scene {seed + 1} of {seeds}", flush=True)
    about = {"scenes": seeds, "steps": STEPS, "changes": CHANGES, "nuisances": NUISANCES}
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = re.sub(r",\n\s+(?=-?\d)", ", ", json.dumps({**about, **found}, indent=1))  # a list of numbers on one line
    text = re.sub(r"(?<=\[)\s+|\s+(?=\])", "", text)
    (RESULTS / "reaction.json").write_text(text + "\n")
