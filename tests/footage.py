"""Footage on disk for the tests of frame sources, and fixtures that see to it that no decode thread stays."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")


def decode_threads() -> int:
    return sum(thread.name.startswith("sam2-keyframe") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    assert decode_threads() == 0


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264", **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(30000, 1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def opencv_frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame[..., ::-1])


@pytest.fixture(scope="module")
def footage() -> np.ndarray:
    """(60, 96, 128, 3) moving, textured frames, each different."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (30, 60, 3), np.uint8), (400, 200), interpolation=cv2.INTER_CUBIC)
    return np.stack([noise[t : t + 96, 2 * t : 2 * t + 128] for t in range(60)])


@pytest.fixture(scope="module")
def videos(footage: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "mp4": write_video(folder / "a.mp4", footage, g="12"),
        "open-gop": write_video(folder / "b.mkv", footage, **{"x264-params": "open-gop=1:keyint=12:bframes=3"}),
        "one-gop": write_video(folder / "c.mp4", footage, g="250"),
        "avi": write_video(folder / "d.avi", footage, codec="mpeg4"),
        "no time stamps": write_video(folder / "e.h264", footage),
    }
