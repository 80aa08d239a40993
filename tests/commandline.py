"""Fixtures and calls that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sam2_keyframe.app import cli
from sam2_keyframe.app.output import Video

FRAMES = 8


@pytest.fixture(scope="module")
def folder(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of the clip as JPEGs."""
    folder = tmp_path_factory.mktemp("footage")
    for t, frame in enumerate(clip.frames[:FRAMES]):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
    return folder


@pytest.fixture
def film(clip: Any, tmp_path: Path) -> Path:
    """The clip forth and back as a video file."""
    video = Video(tmp_path / "film.mp4", 12)
    for frame in [*clip.frames, *clip.frames[::-1]]:
        video.add(frame)
    video.close()
    return video.path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where results go; neither it nor its parent is there yet."""
    return tmp_path / "results" / "out"


def track(source: object, out: Path, *more: object) -> int:
    """Run `sam2-keyframe track` with the micro model unless told otherwise; return its exit code."""
    model = [] if "--model" in more else ["--model", "micro", "--image-size", "64"]
    return cli.main([str(each) for each in ["track", source, "--out", out, "--device", "cpu", *model, *more]])
