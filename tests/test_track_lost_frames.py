"""Frames lost on the way: `--on-error`, presentation times; and streams: what is no prompt by object, threads."""

from __future__ import annotations

import csv
import sys
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from commandline import track
from conftest import make_predictor
from PIL import Image
from test_video_broken import encode

import sam2_keyframe as sk

BOX = ("--box", "20,20,90,90")


@pytest.fixture
def gap(clip: Any, tmp_path: Path) -> Path:
    """A folder of 12 frames of which 5 and 6 are no pictures."""
    folder = tmp_path / "gap"
    folder.mkdir()
    for t in range(12):
        Image.fromarray(clip.frames[t]).save(folder / f"{t:05d}.png")
    for t in (5, 6):
        (folder / f"{t:05d}.png").write_bytes((folder / f"{t:05d}.png").read_bytes()[:2000])
    return folder


def _rows(out: Path) -> list[int]:
    with (out / "frames.csv").open() as file:
        return [int(row["frame"]) for row in csv.DictReader(file)]


def _masks(out: Path) -> dict[str, Any]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((out / "masks").iterdir())}


@pytest.mark.slow
def test_a_frame_that_cannot_be_read_ends_the_run_holds_the_mask_or_is_left_out(
    gap: Path, tmp_path: Path, capsys: Any
) -> None:
    names = [f"{t:05d}" for t in range(12)]
    assert track(gap, tmp_path / "stop", *BOX) != 0
    assert track(gap, tmp_path / "hold", *BOX, "--on-error", "hold") == 0
    assert "2 of 12 frames could not be read" in "".join(capsys.readouterr())
    assert track(gap, tmp_path / "skip", *BOX, "--on-error", "skip") == 0
    held, skipped = _masks(tmp_path / "hold"), _masks(tmp_path / "skip")
    assert list(held) == names
    assert list(skipped) == [name for name in names if name not in ("00005", "00006")]
    assert np.array_equal(held["00005"], held["00004"])
    assert np.array_equal(held["00006"], held["00004"])
    assert all(np.array_equal(skipped[name], held[name]) for name in skipped)
    assert set(_rows(tmp_path / "hold")) == set(range(12)) - {5, 6}


def test_times_go_from_the_source_into_table_and_overlay(clip: Any, tmp_path: Path) -> None:
    stamps = [0, 40, 80, 400, 440, 900, 940, 980]
    film = encode(tmp_path / "variable.mkv", clip.frames[:8], "ffv1", pts=stamps)
    assert track(film, tmp_path / "out", *BOX) == 0
    with (tmp_path / "out" / "frames.csv").open() as file:
        times = {int(row["frame"]): float(row["time"]) for row in csv.DictReader(file)}
    assert [round(1000 * times[t]) for t in sorted(times)] == stamps
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as overlay:
        shown = [1000 * frame.time for frame in overlay.decode(video=0)]
    assert len(shown) == 8
    assert np.abs(np.diff(shown) - np.diff(stamps)).max() < 25


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"boxes": (1, 2, 30, 40)}, "boxes"),
        ({"masks": np.ones((96, 128), bool)}, "masks"),
        ({"points": np.array([[1.0, 2.0]])}, "points"),
        ({"boxes": [[1, 2, 30, 40]]}, "boxes"),
    ],
)
def test_prompts_that_are_not_by_object_are_a_sentence(prompt: dict[str, Any], words: str) -> None:
    frame = np.zeros((96, 128, 3), np.uint8)
    with sk.Stream(make_predictor(64)) as stream:
        with pytest.raises(TypeError, match=rf"{words}.*object"):
            stream.step(frame, **prompt)
        assert stream.step(frame, boxes={1: (1, 2, 30, 40)})[0] == 0, "the frame did not count"


def test_streams_in_threads_leave_stderr_alone(capsys: Any) -> None:
    """SAM 2 draws its bars on it; nothing is put over it, however many streams there are."""
    before, errors = sys.stderr, []

    def work() -> None:
        try:
            with sk.Stream(make_predictor(64)) as stream:
                for t in range(6):
                    frame = np.full((64, 64, 3), 40 * t, np.uint8)
                    stream.step(frame, boxes=None if t else {1: (1, 2, 30, 40)})
                    assert sys.stderr is before
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sys.stderr is before
    assert "propagate" not in capsys.readouterr().err
