"""What is said when something is misspelt or is not what it should be: the value, and the way out."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from commandline import film, folder, out, track  # noqa: F401
from PIL import Image
from test_cli_errors import nothing_left, refused

import sam2_keyframe as sk
from benchmarks import __main__ as benchmarks
from sam2_keyframe._checks import brief, did_you_mean
from sam2_keyframe.app import cli, models, options
from sam2_keyframe.methods import METHODS

BOX = ("--box", "20,20,90,90")
ROOT = Path(__file__).parents[1]


def sound(path: Path) -> Path:
    """Write a file with sound and no video."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    return path


def test_sound_alone_is_no_video(out: Path, tmp_path: Path, capsys: Any) -> None:
    refused(
        capsys,
        track(sound(tmp_path / "song.mp4"), out, *BOX),
        "song.mp4",
        "cannot be opened as a video",
        "it holds audio",
    )
    nothing_left(out)


def test_the_odd_frame_is_blamed_wherever_it_is(out: Path, tmp_path: Path, capsys: Any) -> None:
    for odd in (0, 2, 3):
        folder = tmp_path / f"mixed{odd}"
        folder.mkdir()
        for t in range(4):
            Image.new("RGB", (96 if t == odd else 64, 64)).save(folder / f"{t}.jpg")
        refused(capsys, track(folder, out, *BOX), f"{odd}.jpg has 96 x 64", "3 of the 4 frames have 64 x 64")


@pytest.mark.parametrize("address", ["https://example.org/dog.mp4", "rtsp://camera/1", "s3://bucket/masks"])
def test_an_address_is_said_as_it_was_given(address: str, folder: Path, out: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["replay", str(folder), address, "--out", str(out)])
    refused(capsys, end.value.code, address, "download it first")


def test_a_source_of_another_kind_is_said_as_it_was_given(out: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["track", "s3://bucket/dog.mp4", "--model", "micro", *BOX, "--out", str(out)])
    refused(capsys, end.value.code, "s3://bucket/dog.mp4")


def test_masks_that_are_not_there(folder: Path, out: Path, tmp_path: Path, capsys: Any) -> None:
    refused(capsys, cli.main(["replay", str(folder), "nope", "--out", str(out)]), "'nope' does not exist", "folder")
    with pytest.raises(FileNotFoundError, match="'nope' does not exist; give a run's folder"):
        sk.replay(None, "nope")
    nothing_left(out)


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cdua", "cuda:x", "cuda:99"])
def test_devices_in_our_words(device: str, folder: Path, out: Path, capsys: Any) -> None:
    code = track(folder, out, *BOX, "--device", device)
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert f"--device {device}" in err
    assert "choose cpu, cuda or cuda:N" in err
    assert len(err) < 200, "torch's own text is left out"
    assert ("did you mean 'cuda'?" in err) == (device in ("cdua", "cuda:x"))


def test_a_picture_is_no_weights(folder: Path, out: Path, tmp_path: Path, capsys: Any) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "m.png")
    code = track(folder, out, *BOX, "--model", tmp_path / "m.png")
    refused(capsys, code, "m.png: not a file of weights, or a damaged one (another format)")
    assert brief("one two three four", 14) == "one two ..."


def test_fifo_speaks_of_its_frames(folder: Path, out: Path, capsys: Any) -> None:
    code = track(folder, out, *BOX, "--method", "fifo", "--set", "recent=7")
    refused(capsys, code, "Recent(7): the newest 7 frames", "at most 6")
    with pytest.raises(ValueError, match=r"^fifo\(recent=-1\): "):
        sk.make_method("fifo", recent=-1)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_takes_a_tuple_for_a_number(name: str) -> None:
    for argument in inspect.signature(METHODS[name]).parameters:
        if argument != "frames":
            for value in ((0, 1), "x"):
                with pytest.raises((ValueError, TypeError), match=argument):
                    sk.make_method(name, **{argument: value})
        else:
            with pytest.raises(TypeError, match=r"frames=3: give frame numbers, as in \(3, 41\)"):
                sk.make_method(name, frames=3)


@pytest.mark.parametrize("state", [{}, {"images": 1}, None, 7, [1]])
def test_what_is_no_inference_state(state: Any) -> None:
    for function in (sk.memory_stats, sk.forget):
        with pytest.raises(TypeError, match=r"is not an inference state .* init_state\(\)"):
            function(state)


MISSPELT = {
    "method": (lambda: sk.make_method("keyfarme"), "keyframe"),
    "method by case": (lambda: sk.make_method("SAMURAI"), "samurai"),
    "argument": (lambda: sk.make_method("sam2long", tetha=0.1), "theta"),
    "field": (lambda: sk.make_method("keyframe", keyfames=3), "keyframes"),
    "choice": (lambda: sk.Keyframes(3, code="ancor"), "anchor"),
    "scorer": (lambda: options.parse_value("MaskIOU()"), "MaskIoU"),
    "scorer's choice": (lambda: options.parse_value("MaskIoU(refrence='previous')"), "reference"),
    "rule": (lambda: options.parse_value("MinGab(3)"), "MinGap"),
    "codec": (lambda: options.parse_value("int_8()"), "Int8"),
    "model": (lambda: models.load_model("tinny", "cpu"), "tiny"),
    "hub": (lambda: models.load_model("facebook/sam2.1-hiera-tyny", "cpu"), "facebook/sam2.1-hiera-tiny"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_misspelt_names_are_guessed(case: str) -> None:
    call, meant = MISSPELT[case]
    with pytest.raises(ValueError, match=rf"did you mean '{meant}'\?"):
        call()


def test_names_like_nothing_are_not_guessed(capsys: Any) -> None:
    assert did_you_mean("zzz", METHODS) == ""
    with pytest.raises(SystemExit):
        cli.main(["trak"])
    assert "did you mean 'track'?" in capsys.readouterr().err


def test_a_sweep_says_whom_set_is_for(capsys: Any, tmp_path: Path) -> None:
    arguments = ["--clips", "1", "--challenges", "none", "--out", str(tmp_path)]
    assert benchmarks.main(["sweep", "--method", "random", "--set", "seed=1", *arguments]) == 2
    err = capsys.readouterr().err
    assert "--set seed=1 is for --base keyframe alone; random and the baselines run as they are" in err
    assert benchmarks.main(["run", "--method", "random", "--set", "seed=1,2", "--out", str(tmp_path)]) == 2
    assert "random seed=1,2: " in capsys.readouterr().err


@pytest.mark.slow
def test_benchmarks_run_by_path_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, str(ROOT / "benchmarks"), "run", "--method", "keyfarme"]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'keyframe'?" in done.stderr
    # without one of the packages that it needs
    (tmp_path / "scipy.py").write_text("raise ModuleNotFoundError(\"No module named 'scipy'\", name='scipy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([*command[:2], "report", "x"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
