"""The command line in a container and a log file: signals, progress without a terminal, results left out."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import FRAMES, film, folder, out, track  # noqa: F401
from test_cli_errors import assert_whole

from sam2_keyframe.app import cli, demo, models, pictures
from sam2_keyframe.app.output import WORK
from sam2_keyframe.app.signals import SIGNALS
from sam2_keyframe.app.track import OUTPUTS
from sam2_keyframe.replay.player import Player

SLOWLY = """
import sys, time
from sam2_keyframe.app import cli, pictures
real = pictures.overlay
pictures.overlay = lambda *args, **options: (time.sleep(0.2), real(*args, **options))[1]  # it is there to be stopped
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _as_in_the_foreground() -> Any:
    """Undo that Ctrl-C is ignored where the tests themselves run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWLY, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def masks_written(place: Path, count: int) -> None:
    """Wait until a run has written so many masks."""
    end = time.monotonic() + 60
    while len(list(place.glob("masks/*.png"))) < count:
        assert time.monotonic() < end, "nothing is written"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_process_that_is_told_to_end_keeps_its_results(film: Path, out: Path) -> None:
    options = ("--model", "micro", "--image-size", 64, "--device", "cpu", "--box", "20,20,90,90")
    with started("track", film, "--out", out, *options) as run:
        masks_written(out / WORK, 2)
        run.terminate()
        _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert re.search(r"stopped by SIGTERM; the results of \d+ of 48 frames are whole, in", err)
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    assert_whole(out, len(list((out / "masks").iterdir())))


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGHUP, "SIGHUP")])
def test_other_signals_do_the_same(
    number: int, said: str, folder: Path, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "Progress", lambda title: lambda done, total: done == 3 and os.kill(os.getpid(), number))
    assert track(folder, out, "--box", "20,20,90,90") == 128 + number
    assert f"stopped by {said}; the results of 3 of {FRAMES} frames are whole" in capsys.readouterr().err
    assert_whole(out, 3)


def test_a_run_under_nohup_outlives_its_terminal(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(cli, "Progress", lambda title: lambda done, total: os.kill(os.getpid(), signal.SIGHUP))
    try:
        assert track(folder, out, "--box", "20,20,90,90", "--frames", 3) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_while_pictures_are_drawn_costs_the_pictures_alone(
    number: int, folder: Path, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = [signal.getsignal(each) for each in SIGNALS]
    monkeypatch.setattr(pictures, "filmstrip", stopped)
    assert track(folder, out, "--box", "20,20,90,90", "--frames", 3) == 128 + number
    assert "the results of 3 of 3 frames are whole" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == sorted({*OUTPUTS} - {"memory.png"})
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("command", ["replay", "demo", "loading"])
def test_a_stop_elsewhere_leaves_nothing(
    command: str, folder: Path, out: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(Player, "play", stopped)
    monkeypatch.setattr(demo, "make_clip", stopped)
    monkeypatch.setattr(models, "load_model", stopped)
    if command == "replay":
        assert track_masks(folder, tmp_path) == 143
        place = tmp_path / "replayed"
    elif command == "demo":
        monkeypatch.setattr(demo, "load_model", lambda *args, **options: (None, "micro"))
        assert cli.main(["demo", "--out", str(out)]) == 143
        place = out
    else:
        assert track(folder, out, "--box", "20,20,90,90") == 143
        place = out
    assert "stopped by SIGTERM; nothing was left behind" in capsys.readouterr().err
    assert not place.exists()


def track_masks(folder: Path, tmp_path: Path) -> int:
    """Replay over masks that cover a quarter of each frame."""
    from PIL import Image

    (tmp_path / "given").mkdir()
    for t in range(FRAMES):
        mask = Image.new("L", (128, 128))
        mask.paste(1, (10, 10, 70, 70))
        mask.save(tmp_path / "given" / f"{t:05d}.png")
    return cli.main(["replay", str(folder), str(tmp_path / "given"), "--out", str(tmp_path / "replayed")])


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    bar = cli.Progress("tracking")
    for done in range(1, 101):
        now[0] += 0.5
        bar(done, 100)
    lines = log.getvalue().splitlines()
    assert lines[0] == "tracking: 30 of 100 frames (30 %), 2.0 a second, 35 s left"
    assert len(lines) == 3
    assert not set("\r\x1b") & set(log.getvalue())
    now[0], log.truncate(log.seek(0))  # type: ignore[func-returns-value]
    short = cli.Progress("tracking")
    for done in range(5):
        short(done, 5)
    assert log.getvalue() == "", "a short run says nothing"


def test_results_can_be_left_out(folder: Path, out: Path) -> None:
    box = ("--box", "20,20,90,90", "--frames", 3)
    assert track(folder, out, *box) == 0
    assert track(folder, out, *box, "--no-overlay") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted({*OUTPUTS} - {"overlay.mp4"}), "the old one, too"
    assert track(folder, out, *box, "--no-overlay", "--no-pictures") == 0
    left = {*OUTPUTS} - {"overlay.mp4", "timeline.png", "memory.png", "index.html"}
    assert sorted(path.name for path in out.iterdir()) == sorted(left)
    assert_whole(out, 3)
