"""Mask choice by motion, against a Kalman filter with full matrices written here from the rule."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tracked import FAKE, fake_tensors

from sam2_keyframe.rules.motion import Kalman, Track

F = np.eye(8) + np.eye(8, k=4)
H = np.eye(4, 8)


@dataclass
class Plain:
    """The rule in Python: eight state numbers, full covariance, branches."""

    rule: Kalman
    mean: np.ndarray = field(default_factory=lambda: np.zeros(8))
    cov: np.ndarray = field(default_factory=lambda: np.zeros((8, 8)))
    stable: int = 0

    def predict(self) -> None:
        h = self.mean[3]
        std = [h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]
        self.mean = F @ self.mean
        self.cov = F @ self.cov @ F.T + np.diag(np.square(std))

    def update(self, z: np.ndarray) -> None:
        h = self.mean[3]
        noise = np.diag(np.square([h / 20, h / 20, 1e-1, h / 20]))
        gain = self.cov @ H.T @ np.linalg.inv(H @ self.cov @ H.T + noise)
        self.mean = self.mean + gain @ (z - H @ self.mean)
        self.cov = (np.eye(8) - gain @ H) @ self.cov

    def start(self, z: np.ndarray) -> None:
        h = z[3]
        self.mean = np.concatenate([z, np.zeros(4)])
        std = [h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]
        self.cov = np.diag(np.square(std))
        self.stable = 1

    def overlap(self, box: np.ndarray | None) -> float:
        if box is None:
            return 0.0
        x, y, a, h = self.mean[:4]
        h = max(h, 0)
        w = max(a, 0) * h
        mine = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        size = np.clip(np.minimum(mine[2:], box[2:]) - np.maximum(mine[:2], box[:2]), 0, None)
        shared = size[0] * size[1]
        return float(shared / (w * h + np.prod(box[2:] - box[:2]) - shared))

    def choose(self, masks: np.ndarray, ious: np.ndarray) -> tuple[int, float]:
        boxes = [extent(mask) for mask in masks]
        if self.stable == 0:
            best = int(ious.argmax())
            if boxes[best] is not None:
                self.start(measurement(boxes[best]))
            return best, np.nan
        settled = self.stable >= self.rule.stable
        self.predict()
        overlaps = np.array([self.overlap(box) for box in boxes])
        w = self.rule.weight
        best = int((w * overlaps + (1 - w) * ious if settled else ious).argmax())
        if ious[best] < self.rule.floor:
            self.stable = 0
        elif boxes[best] is not None:
            self.update(measurement(boxes[best]))
            self.stable += not settled
        return best, overlaps[best] if settled else np.nan


def extent(mask: np.ndarray) -> np.ndarray | None:
    if not mask.any():
        return None
    y, x = np.nonzero(mask)
    return np.float64([x.min(), y.min(), x.max() + 1, y.max() + 1])


def measurement(box: np.ndarray | None) -> np.ndarray:
    assert box is not None
    w, h = box[2:] - box[:2]
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, w / h, h])


def sequence(seed: int, frames: int = 60, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """(frames, 3, side, side) bool candidates of a moving box, a look-alike and a part, with drop-outs, and ratings."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((frames, 3, side, side), bool)
    ious = rng.uniform(0.35, 0.95, (frames, 3)).astype(np.float32)
    x, y, speed = 20.0, 30.0, rng.uniform(-0.5, 1.0, 2)
    for t in range(frames):
        x, y = np.clip([x + speed[0], y + speed[1]], 2, side - 40)
        w, h = 14 + 4 * np.sin(t / 7), 20 + 3 * np.cos(t / 5)
        places = [(x, y, w, h), (side - x - 20, y, w, h), (x, y, w, h / 2)]
        for k, (px, py, pw, ph) in enumerate(places):
            jx, jy = rng.normal(0, 1, 2)
            masks[t, k, max(0, int(py + jy)) : int(py + jy + ph), max(0, int(px + jx)) : int(px + jx + pw)] = True
            if rng.random() < 0.08:
                masks[t, k] = False
    hidden = rng.choice(np.arange(20, frames), 2, replace=False)
    ious[hidden] *= 0.3
    masks[rng.integers(20, frames)] = False
    return masks, ious


def logits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(mask, 4.0, -4.0).astype(np.float32))[None]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", [Kalman(), Kalman(0.15), Kalman(0.6, stable=5, floor=0.5)], ids=repr)
def test_same_choices_and_overlaps_as_full_matrices(seed: int, rule: Kalman) -> None:
    masks, ious = sequence(seed)
    track, plain = Track(rule), Plain(rule)
    by_motion = settled = lost = 0
    for mask, iou in zip(masks, ious, strict=True):
        ranking, overlap = track.choose(logits(mask), torch.from_numpy(iou)[None])
        expected, theirs = plain.choose(mask, iou.astype(np.float64))
        assert ranking.shape == (1, 3)
        assert int(ranking.argmax()) == expected
        assert float(overlap) == pytest.approx(theirs, abs=1e-4, nan_ok=True)
        by_motion += expected != int(iou.argmax())
        settled += not np.isnan(theirs)
        lost += plain.stable == 0
    assert settled > 5
    assert lost >= 1
    assert by_motion > 0 or rule.weight < 0.3


def test_motion_outvotes_a_better_rated_look_alike() -> None:
    track, picked = Track(Kalman()), []
    for t in range(30):
        mask = np.zeros((3, 64, 64), bool)
        mask[0, 10:30, 5 + t : 17 + t] = True
        mask[1, 40:60, 40:52] = True
        rated = torch.tensor([[0.8, 0.7 if t < 20 else 0.9, 0.1]])
        ranking, overlap = track.choose(logits(mask), rated)
        picked.append(int(ranking.argmax()))
        assert torch.isnan(overlap) == (t < 15)
    assert picked == [0] * 30
    assert float(overlap) > 0.7
    track.reset()
    ranking, overlap = track.choose(logits(mask), rated)
    assert int(ranking.argmax()) == 1
    assert torch.isnan(overlap)


def test_an_empty_mask_teaches_nothing() -> None:
    first, second = Track(Kalman(stable=3)), Track(Kalman(stable=3))
    mask = np.zeros((3, 64, 64), bool)
    mask[:, 10:30, 20:32] = True
    rated = torch.tensor([[0.9, 0.5, 0.4]])
    for track in (first, second):
        for _ in range(6):
            track.choose(logits(mask), rated)
    _, overlap = first.choose(logits(mask & False), rated)
    assert float(overlap) == 0
    _, after = first.choose(logits(mask), rated)
    second.choose(logits(mask), rated)
    _, without = second.choose(logits(mask), rated)
    assert float(after) == pytest.approx(float(without), abs=0.02)
    assert float(after) > 0.9


def test_scale_does_not_count() -> None:
    masks, ious = sequence(3)
    small, large = Track(Kalman()), Track(Kalman())
    for mask, iou in zip(masks, torch.from_numpy(ious)[:, None], strict=True):
        a, one = small.choose(logits(mask), iou)
        b, four = large.choose(logits(mask.repeat(4, 1).repeat(4, 2)), iou)
        assert torch.equal(a.argmax(), b.argmax())
        assert float(one) == pytest.approx(float(four), abs=1e-4, nan_ok=True)


def test_on_the_device_no_value_is_read() -> None:
    with fake_tensors():
        track = Track(Kalman())
        for _ in range(3):
            masks, ious = torch.empty(1, 3, 32, 32, device=FAKE), torch.empty(1, 3, device=FAKE, dtype=torch.bfloat16)
            ranking, overlap = track.choose(masks, ious)
    assert ranking.device.type == overlap.device.type == FAKE
    assert ranking.dtype == overlap.dtype == torch.float32


@pytest.mark.gpu
def test_on_cuda_nothing_waits_for_the_device() -> None:
    masks, ious = sequence(0, 20)
    here, there = Track(Kalman()), Track(Kalman())
    for mask, iou in zip(masks, torch.from_numpy(ious)[:, None], strict=True):
        device_mask, device_iou = logits(mask).cuda(), iou.cuda()
        expected, _ = here.choose(logits(mask), iou)
        torch.cuda.set_sync_debug_mode("error")
        try:
            ranking, _ = there.choose(device_mask, device_iou)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.allclose(ranking.cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("bad", [{"weight": 1.5}, {"floor": -0.1}, {"stable": 0}])
def test_bad_numbers_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="choose"):
        Kalman(**bad)  # type: ignore[arg-type]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="give"):
        Track(Kalman()).choose(torch.zeros(3, 8, 8), torch.zeros(1, 3))
