"""Trackers that learn nothing: what any model has to beat."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Tracker = Callable[[Frames, NDArray[np.uint8]], NDArray[np.bool_]]


def copied(frames: Frames, first: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The first mask, copied to every frame."""
    return np.repeat((first > 0)[None], len(frames), 0)


def coloured(frames: Frames, first: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Histogram back-projection: where the object's colours are likelier than the background's, smoothed."""

    def bins(frame: Frames) -> NDArray[np.int64]:
        small = (cv2.cvtColor(frame, cv2.COLOR_RGB2Lab) // 16).astype(np.int64)
        return np.asarray(small[..., 0] * 256 + small[..., 1] * 16 + small[..., 2])

    keys, inside = bins(frames[0]), first > 0
    own = np.bincount(keys[inside], minlength=4096) / max(1, inside.sum())
    rest = np.bincount(keys[~inside], minlength=4096) / max(1, (~inside).sum())
    ratio = (own / (own + rest + 1e-9)).astype(np.float32)
    found = [cv2.GaussianBlur(ratio[bins(frame)], (0, 0), 2.0) > 0.5 for frame in frames]
    return np.stack([inside, *found[1:]])


def flowed(frames: Frames, first: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask warped from frame to frame by dense optical flow (DIS)."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    ys, xs = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float32)
    mask, found = (first > 0).astype(np.float32), [first > 0]
    for before, after in itertools.pairwise(grey):
        back = flow.calc(after, before, None)
        mask = cv2.remap(mask, xs + back[..., 0], ys + back[..., 1], cv2.INTER_LINEAR)
        found.append(mask > 0.5)
    return np.stack(found)


TRIVIAL: dict[str, Tracker] = {"first mask copied": copied, "colour back-projection": coloured, "optical flow": flowed}
