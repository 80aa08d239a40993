"""The page of a tracked video in a run: the one that `sam2-keyframe track` writes, with J and F among the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.datasets import Video
from benchmarks.tracking import Tracked
from sam2_keyframe import KeyframeMemory
from sam2_keyframe.app.page import Page

FPS = 24.0


def write_video_page(
    folder: Path, video: Video, tracked: Tracked, rows: Sequence[Mapping[str, Any]], label: str, method: KeyframeMemory
) -> None:
    """Write `index.html` into the folder of a finished video.

    Args:
        folder: The folder.
        video: The video.
        tracked: What tracking it left behind.
        rows: Its `frames.csv`.
        label: What the run is called.
        method: Its method.
    """
    with closing(Page(folder, len(video.frames), len(tracked.masks), FPS)) as page:
        for t, frame in enumerate(video.frames):
            there = [obj_id for obj_id, masks in tracked.masks.items() if t in masks]
            if not there:
                continue
            labels = np.zeros(tracked.size, np.uint8)
            for obj_id in there:
                labels[tracked.mask(t, obj_id)] = obj_id
            pixels = np.asarray(Image.open(frame).convert("RGB") if isinstance(frame, Path) else frame)
            page.add(t, None, pixels, labels, {obj_id: tracked.stats.get(obj_id, {}).get(t) for obj_id in there})
        for obj_id in tracked.masks:
            scored = [row for row in rows if row["obj_id"] == obj_id and row["j"] != ""]
            for name in ("j", "f"):
                page.tell(obj_id, name.upper(), {row["frame_idx"]: row[name] for row in scored})
        page.write(video.name, label, method)
