"""The demo, made short; at full length it is a slow test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sam2_keyframe.app import cli, demo
from sam2_keyframe.synthetic import make_clip


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FRAMES", 5), ("SEEDS", (7001, 7002)), ("SHOWN_SIZE", 64), ("SIZE", 64)):
        monkeypatch.setattr(demo, name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_demo_writes_both_runs_and_ends_with_the_paths(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "demo-out"
    for _ in range(2):  # the second replaces the first
        assert cli.main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(demo.OUTPUTS)
    paths = [Path(line.strip()) for line in said.splitlines() if line.startswith(f"  {out}")]
    assert len(paths) >= 4
    assert all(path.is_file() for path in paths)
    with av.open(str(out / "side_by_side.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.width == 2 * stream.height
        assert len(list(film.decode(stream))) == 5
    assert said.count("2 clips, lost ones included") == 2
    assert said.split("do it yourself:")[0].count("note: ") == 2, "what the model is good for, at start and end"


@pytest.mark.usefixtures("short")
def test_what_the_demo_prints_to_try_works(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "demo-out"
    assert cli.main(["demo", "--out", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[0] == "sam2-keyframe"
    mine = [word if word != "my-run" else str(tmp_path / "mine") for word in line[1:]]
    assert cli.main([*mine, "--image-size", "64"]) == 0


def test_the_score_is_the_overlap_with_the_truth() -> None:
    clip = make_clip("long", 7001, frames=6, size=64, photos=False)
    truth = [clip.masks[t] == 1 for t in range(6)]

    class Row:
        memory = type("Taken", (), {"nbytes": 2**21, "tokens": 10})()
        milliseconds = 3.0

    assert demo.score(clip, truth, [Row]).overlap == 1.0
    assert not demo.score(clip, truth, [Row]).lost
    nothing = [np.zeros_like(mask) for mask in truth]
    missed = demo.score(clip, nothing, [Row])
    assert missed.overlap == pytest.approx(np.mean([not mask.any() for mask in truth[1:]]))
    assert missed.lost == bool(clip.visible[1:, 0].any())
    lines = demo.table(
        {"stock": [demo.Score(0.5, False, 1, 100, 2)] * 3, "keyframe": [demo.Score(0.1, True, 1, 50, 2)]}
    )
    assert lines[1].split()[:4] == ["stock", "50.0", "0", "of"]
    assert lines[2].split()[:4] == ["keyframe", "10.0", "1", "of"]


def test_the_clip_that_is_shown_has_what_the_text_promises() -> None:
    clip = make_clip(demo.CHALLENGE, demo.SHOWN_SEED, frames=demo.FRAMES, size=64, photos=False)
    seen = clip.visible[:, 0]
    gone = np.flatnonzero(~seen)
    assert seen[0]
    assert seen[-1]
    assert len(gone) >= 6
    assert np.diff(gone).max() > 1, "it goes twice"
    assert len({*demo.SEEDS}) == 8


@pytest.mark.slow
def test_the_whole_demo_takes_under_a_minute(tmp_path: Path) -> None:
    start = time.process_time()
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert time.process_time() - start < 60, "of processor time, so less by the clock on an idle machine"
    with Image.open(tmp_path / "out" / "keyframe" / "memory.png") as image:
        assert image.width > 800
