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
    for name, value in (
        ("CHALLENGE", "long"),
        ("FRAMES", 5),
        ("SEEDS", (7001, 7002)),
        ("SHOWN_SIZE", 64),
        ("SIZE", 64),
    ):
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
    assert said.count("\n  7001 ") == said.count("\n  7002 ") == said.count("\n  mean ") == 2
    assert said.split("do it yourself:")[0].count("note: ") == 2, "what the model is good for, at start and end"


@pytest.mark.usefixtures("short")
def test_what_the_demo_prints_to_try_works(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "demo-out"
    assert cli.main(["demo", "--out", str(out)]) == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[0] == "sam2-keyframe"
    mine = [word if word != "my-run" else str(tmp_path / "mine") for word in line[1:]]
    assert cli.main([*mine, "--image-size", "64"]) == 0


def test_the_scores_are_of_the_truth_after_returns_and_while_away() -> None:
    clip = make_clip("absence_filled", 7001, frames=70, size=64, photos=False)
    truth = [clip.masks[t] == 1 for t in range(70)]
    gone = ~clip.visible[:, 0]
    first, stop = np.flatnonzero(np.diff(gone)) + 1

    class Row:
        memory = type("Taken", (), {"nbytes": 2**21, "tokens": 10})()
        milliseconds = 3.0

    found = demo.score(clip, truth, [Row])
    assert (found.overlap, found.recovery, found.false_masks, found.mib) == (1.0, 1.0, 0.0, 2.0)
    everywhere = demo.score(clip, [np.ones_like(mask) for mask in truth], [Row])
    assert everywhere.false_masks == 1.0
    assert everywhere.recovery == pytest.approx(np.mean([mask.mean() for mask in truth[stop : stop + 30]]))
    late = [mask & (t < stop or t >= stop + 3) for t, mask in enumerate(truth)]
    assert demo.score(clip, late, [Row]).recovery == pytest.approx(1 - 3 / min(30, 70 - stop))
    lines = demo.table(
        {"stock": [demo.Score(0.5, 0.2, 0.1, 1, 100, 2)] * 2, "keyframe": [demo.Score(0.1, 0.4, 0.0, 1, 50, 2)] * 2},
        (7, 8),
    )
    assert lines[0].split() == ["stock", "keyframe"]
    assert [line.split()[0] for line in lines[2:5]] == ["7", "8", "mean"]
    assert lines[2].split()[1:] == lines[4].split()[1:] == ["50.0", "20.0", "10.0", "10.0", "40.0", "0.0"]
    assert lines[-1].split() == ["keyframe", "1.00", "50", "2.0"]
    assert first > 0


def test_the_clip_that_is_shown_has_what_the_text_promises() -> None:
    clip = make_clip(demo.CHALLENGE, demo.SHOWN_SEED, frames=demo.FRAMES, size=64, photos=False)
    seen = clip.visible[:, 0]
    gone = np.flatnonzero(~seen)
    assert seen[0]
    assert seen[-1]
    assert len(gone) >= 30
    assert len({*demo.SEEDS}) == 8


@pytest.mark.slow
def test_the_whole_demo_takes_about_a_minute(tmp_path: Path) -> None:
    start = time.process_time()
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert time.process_time() - start < 90, "of processor time, so less by the clock on an idle machine"
    with Image.open(tmp_path / "out" / "keyframe" / "memory.png") as image:
        assert image.width > 800
