"""The command line when something goes wrong: one line, exit code 2, and nothing half-written."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from commandline import FRAMES, film, folder, out, track  # noqa: F401
from footage import decode_threads
from PIL import Image

from sam2_keyframe.app import cli
from sam2_keyframe.app.track import OUTPUTS


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    """Check exit code 2 and one line that holds the words."""
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1, err
    assert err.startswith("sam2-keyframe: error: ")
    assert [word for word in words if word not in err] == [], err


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("hf:facebook/sam2.1-hiera-tiny", "pip install 'sam2-keyframe[transformers]'"),
        ("ultralytics:sam2.1_t.pt", "pip install ultralytics"),
    ],
)
def test_a_host_that_is_not_installed_is_named_with_its_pip_line(
    model: str, line: str, folder: Path, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("transformers", "ultralytics"):
        monkeypatch.setitem(sys.modules, package, None)
    code = track(folder, out, "--model", model, "--point", "20,20")
    refused(capsys, code, f"--model {model}", "is not installed", line)
    nothing_left(out)


def nothing_left(out: Path) -> None:
    assert not out.exists()
    assert not out.parent.exists() or list(out.parent.glob(".*")) == []


def assert_whole(out: Path, frames: int) -> None:
    """Check that the masks can be read, that the table has a full row for each, and that no decode thread is left."""
    files = sorted((out / "masks").iterdir())
    assert [file.name for file in files] == [f"{t:05d}.png" for t in range(frames)]
    for file in files:
        with Image.open(file) as mask:
            mask.load()
    with (out / "frames.csv").open() as file:
        head, *rows = csv.reader(file)
    assert [row[0] for row in rows][:frames] == [str(t) for t in range(frames)]
    assert {len(row) for row in rows} == {len(head)}
    assert decode_threads() == 0


def test_results_of_an_earlier_run_are_replaced_and_others_are_not(folder: Path, out: Path, capsys: Any) -> None:
    for _ in range(2):
        assert track(folder, out, "--box", "20,20,90,90", "--frames", 2) == 0
    (out / "thesis.txt").write_text("years of work")
    capsys.readouterr()
    refused(capsys, track(folder, out, "--box", "20,20,90,90"), str(out), "thesis.txt", "empty folder")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_ctrl_c_leaves_whole_results_and_says_so(
    folder: Path, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(cli.Progress):
        def __call__(self, done: int, total: int) -> None:
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli, "Progress", Interrupting)
    assert track(folder, out, "--box", "20,20,90,90") == 130
    assert f"3 of {FRAMES} frames are whole, in {out}" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    with av.open(str(out / "overlay.mp4")) as film:
        assert len(list(film.decode(video=0))) == len(list((out / "masks").iterdir())) == 3
    assert_whole(out, 3)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_leaves_whole_results_and_says_so(
    folder: Path, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if path.name == "00004.png":
            real(path, data[:20])
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    code = track(folder, out, "--box", "20,20,90,90")
    refused(capsys, code, "No space left on device", f"4 of {FRAMES} frames are whole")
    assert sorted(path.name for path in (out / "masks").iterdir()) == [f"{t:05d}.png" for t in range(4)]
    assert_whole(out, 4)


@pytest.mark.slow
def test_files_that_may_not_grow(clip: Any, out: Path, tmp_path: Path) -> None:
    """The system itself refuses to write on, as on a full disk: the film, and what SAM 2 is shown of frame 0."""
    for t, frame in enumerate(clip.frames):
        Image.fromarray(frame[::4, ::4]).resize((64, 64)).save(tmp_path / f"{t:05d}.jpg", quality=95)
    code = (
        "import resource, signal, sys, threading; from sam2_keyframe.app import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "code = cli.main(sys.argv[2:])\n"
        "assert not [each for each in threading.enumerate() if 'sam2-keyframe' in each.name]\n"
        "raise SystemExit(code)"
    )
    options = ["track", tmp_path, "--out", out, "--device", "cpu", "--model", "micro", "--image-size", 64]
    for limit, words in ((13_000, "whole, in"), (1000, "File too large; a frame has to fit into the temporary folder")):
        command = [sys.executable, "-c", code, str(limit), *map(str, options), "--box", "10,10,45,45"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, last[:21]) == (2, "sam2-keyframe: error:"), done.stderr
        assert "File too large" in last
        assert words in last
        if limit > 1000:
            match = re.search(r"the results of (\d+) of 24 frames", last)
            assert match
            assert_whole(out, int(match[1]))
            shutil.rmtree(out)
        nothing_left(out)


def test_a_bad_frame_in_the_middle_leaves_what_came_before(film: Path, out: Path, capsys: Any) -> None:
    data = bytearray(film.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 600] = bytes(600)
    film.write_bytes(data)
    code = track(film, out, "--box", "20,20,90,90")
    refused(capsys, code, "film.mp4", "damaged", "track up to it", "are whole")
    frames = len(list((out / "masks").iterdir()))
    assert frames > 0
    assert_whole(out, frames)


BAD = {
    "unknown model": (["--model", "huge"], ["'huge'", "tiny", "base_plus", "PATH.pt", "micro"]),
    "no checkpoint": (["--model", "tiny"], ["tiny", "checkpoints", "--checkpoint", "github.com"]),
    "missing weights": (["--model", "none.pt"], ["none.pt", "no such file"]),
    "weights of a size": (["--model", "micro", "--checkpoint", "none.pt"], ["--checkpoint none.pt", "tiny", "'micro'"]),
    "unknown hub": (["--model", "me/mine"], ["me/mine", "facebook/sam2.1-hiera-tiny"]),
    "device": (["--device", "cuda:99"], ["cuda:99", "cpu"]),
    "image size": (["--image-size", "65"], ["--image-size 65", "multiple of 32"]),
    "method": (["--method", "best"], ["'best'", "keyframe", "window"]),
    "key": (["--set", "speed=3"], ["speed", "change"]),
    "no value": (["--set", "change"], ["change", "key=value"]),
    "too many": (["--set", "keyframes=9"], ["Keyframes(9", "at most 6"]),
    "code": (["--set", "change=__import__('os').system('true')"], ["__import__", "cannot be imported"]),
    "unknown class": (["--set", "change=Magic() > 1"], ["Magic", "MaskIoU"]),
    "box outside": (["--box", "10,10,400,50"], ["10,10,400,50", "128 x 128"]),
    "box upside down": (["--box", "50,50,10,10"], ["50,50,10,10", "top left"]),
    "box of three": (["--box", "1,2,3"], ["1,2,3", "x0,y0,x1,y1"]),
    "point outside": (["--point", "300,1"], ["300,1", "128 x 128"]),
    "no such frame": (["--point", "1@99:5,5"], ["frame 99", "0 to 7"]),
    "object 0": (["--point", "0@0:5,5"], ["object 0", "1 to 255"]),
    "two boxes": (["--box", "1,1,9,9", "--box", "2,2,8,8"], ["2,2,8,8", "already"]),
    "frames": (["--frames", "0"], ["--frames 0", "at least 1"]),
    "no mask file": (["--mask", "none.png"], ["none.png", "no such file"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_line(case: str, folder: Path, out: Path, capsys: Any) -> None:
    arguments, words = BAD[case]
    prompt = [] if {"--box", "--point", "--mask"} & set(arguments) else ["--box", "20,20,90,90"]
    refused(capsys, track(folder, out, *prompt, *arguments), *words)
    nothing_left(out)


def test_no_prompt_and_no_model(folder: Path, out: Path, capsys: Any) -> None:
    code = cli.main(["track", str(folder), "--out", str(out), "--point", "5,5"])
    refused(capsys, code, "--model is missing", "tiny, small, base_plus, large", "PATH.pt", "Hugging Face", "micro")
    refused(capsys, track(folder, out), "no prompt", "--mask", "--box", "--point")
    nothing_left(out)


def test_bad_masks(folder: Path, out: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "bad.png"
    for image, words in (
        (Image.new("L", (64, 128), 1), ["64 x 128", "128 x 128"]),
        (Image.new("L", (128, 128), 0), ["no object"]),
        (Image.new("RGB", (128, 128)), ["colour picture", "palette"]),
    ):
        image.save(path)
        refused(capsys, track(folder, out, "--mask", path), str(path), *words)
    path.write_text("not a picture")
    refused(capsys, track(folder, out, "--mask", path), str(path), "not a picture")
    nothing_left(out)


def test_bad_sources(folder: Path, film: Path, out: Path, tmp_path: Path, capsys: Any) -> None:
    refused(capsys, track(tmp_path / "none.mp4", out, "--point", "5,5"), "none.mp4", "does not exist")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, track(empty, out, "--point", "5,5"), str(empty), "no images")
    data = film.read_bytes()
    film.write_bytes(data[: len(data) * 2 // 3])
    refused(capsys, track(film, out, "--point", "5,5"), "film.mp4", "cut short")
    film.write_bytes(data[:300])
    refused(capsys, track(film, out, "--point", "5,5"), "film.mp4")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for t, side in enumerate((64, 64, 96, 64)):
        Image.new("RGB", (side, 64)).save(mixed / f"{t}.jpg")
    refused(capsys, track(mixed, out, "--point", "5,5"), "2.jpg", "96 x 64", "64 x 64", "one size")
    nothing_left(out)


def test_an_output_folder_that_cannot_be_written(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        refused(capsys, track(folder, place, "--point", "5,5"), str(place), "cannot be written", "another folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_argparse_errors_are_one_line_too(capsys: Any) -> None:
    for arguments in ([], ["fly"], ["track"], ["track", "x", "--out", "y", "--frames", "many"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        refused(capsys, end.value.code, "--help")


def test_weights_of_another_model_are_refused(folder: Path, out: Path, tmp_path: Path, capsys: Any) -> None:
    for stored, words in (
        ({"model": {"conv.weight": torch.zeros(3)}}, ["width 0", "official checkpoint"]),
        ([1, 2], ["format", "'model'"]),
    ):
        torch.save(stored, tmp_path / "other.pt")
        refused(capsys, track(folder, out, "--point", "5,5", "--model", tmp_path / "other.pt"), "other.pt", *words)
    (tmp_path / "other.pt").write_bytes(b"not weights")
    code = track(folder, out, "--point", "5,5", "--model", tmp_path / "other.pt")
    refused(capsys, code, "other.pt", "not a file of weights")
