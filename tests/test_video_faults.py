"""Frame sources when things go wrong: bad sources, damaged frames, files cut short, interruption."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from footage import av, decode_threads, footage, no_thread_left, opencv_frames, videos, write_video  # noqa: F401
from PIL import Image

from sam2_keyframe.video.source import FrameSource, without_bars


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "missing.mp4", FileNotFoundError, r"missing\.mp4' does not exist; give"),
        (lambda p: p, ValueError, r"no images found in .*; put frames there"),
        (lambda p: [], ValueError, r"the list holds no frames"),
        (lambda p: np.zeros((4, 5, 3), np.uint8), ValueError, r"shape \(4, 5, 3\); give \(T, H, W, 3\)"),
        (lambda p: iter([1]), ValueError, r"num_frames is missing"),
        (lambda p: 7.5, TypeError, r"not from a float"),
        (lambda p: 77, ValueError, r"camera 77 cannot be opened"),
    ],
)
def test_bad_sources(make: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        FrameSource(make(tmp_path))


@pytest.mark.parametrize("option", ["ahead", "threads", "num_frames"])
def test_bad_options(option: str, footage: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"{option} is 0; give at least 1"):
        FrameSource(footage, **{option: 0})


@pytest.mark.parametrize("content", [b"", b"not a video" * 50])
def test_not_a_video(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.mp4' cannot be opened as a video .*fetch it again"):
        FrameSource(tmp_path / "x.mp4")


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)])
def test_bad_frames(frame: np.ndarray) -> None:
    with FrameSource([frame]) as source, pytest.raises(ValueError, match=r"frame 0 of the list .*shape .*give"):
        source.frame(0)


def test_index_outside(footage: np.ndarray) -> None:
    with FrameSource(footage, num_frames=10) as source:
        for t in (-1, 10):
            with pytest.raises(IndexError, match=f"frame {t} is outside the 10 frames 0..9"):
                source.frame(t)


def test_faults_in_a_folder(footage: np.ndarray, tmp_path: Path) -> None:
    """Frames before and after a bad one are fine; the bad one is named each time it is asked for."""
    for t, frame in enumerate(footage[:12]):
        Image.fromarray(frame[:, :-8] if t == 9 else frame).save(tmp_path / f"{t}.jpg")
    (tmp_path / "5.jpg").write_bytes((tmp_path / "5.jpg").read_bytes()[:900])
    with FrameSource(tmp_path) as source:
        for _ in range(2):
            for t in range(5):
                source.resized(t, 32)
            with pytest.raises(RuntimeError, match=r"frame 5 \(.*5\.jpg\) of folder .* cannot be used: .*truncated"):
                source.resized(5, 32)
            source.resized(6, 32)
            with pytest.raises(ValueError, match=r"frame 9 .*its size is 120x96 and that of the first .* 128x96"):
                source.resized(9, 32)


def test_damaged_video(videos: dict[str, Path], footage: np.ndarray, tmp_path: Path) -> None:
    data = bytearray(videos["mp4"].read_bytes())
    with av.open(str(videos["mp4"])) as container:
        packets = [(p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size]
    _, position, size = sorted(packets)[25]
    data[position + 5 : position + size] = bytes(np.random.default_rng(0).integers(0, 256, size - 5, np.uint8))
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    expected = opencv_frames(videos["mp4"])
    with FrameSource(path) as source:
        for t in range(24):
            assert np.array_equal(source.frame(t), expected[t])
        with pytest.raises(RuntimeError, match=r"frame \d+ of .*damaged\.mp4' cannot be used: .*damaged"):
            [source.frame(t) for t in range(24, 37)]
        assert np.array_equal(source.frame(50), expected[50])  # a key frame later all is well again


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.5, 0.8])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_video_cut_short(suffix: str, part: float, footage: np.ndarray, tmp_path: Path) -> None:
    """A file that knows its length fails where it was cut; one that does not is as long as what can be read."""
    whole = write_video(tmp_path / f"whole.{suffix}", footage, g="12", movflags="faststart")
    if suffix == "mp4":  # PyAV passes movflags to the codec only: move the index to the front by hand
        with (
            av.open(str(whole)) as source,
            av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        whole = tmp_path / "fast.mp4"
    expected = opencv_frames(whole)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
    good = 0
    with FrameSource(path) as source:
        try:
            for t in range(len(source)):
                assert np.array_equal(source.frame(t), expected[t])
                good += 1
        except RuntimeError as error:
            assert f"frame {good} of" in str(error)  # noqa: PT017
            assert "cut short" in str(error) or "damaged" in str(error)  # noqa: PT017
        else:
            assert suffix == "mkv"
    assert 10 < good < 60


# -- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads_end(footage: np.ndarray) -> None:
    for end in ("close", "del", "with"):
        source = FrameSource(footage)
        source.frame(0)
        assert decode_threads() == 2
        if end == "close":
            source.close()
            source.close()
            with pytest.raises(RuntimeError, match=r"after close\(\); open the ndarray again"):
                source.frame(1)
        elif end == "with":
            with source:
                source.frame(1)
        del source
        gc.collect()
        assert decode_threads() == 0


@pytest.mark.slow
def test_interrupted_process_ends(videos: dict[str, Path]) -> None:
    """Ctrl-C ends Python at once: it neither waits for decode threads nor crashes in them."""
    code = (
        "import sys, signal, os; from sam2_keyframe.video.source import FrameSource\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored\n"
        "source = FrameSource(sys.argv[1]); source.resized(3, 64)\n"
        "os.kill(os.getpid(), signal.SIGINT); source.resized(4, 64)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(videos["mp4"])], capture_output=True, timeout=90, text=True)
    assert done.returncode == -2, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_bars_are_hidden_but_warnings_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    with without_bars():
        for _ in tqdm(range(3), disable=False):
            print("a message", file=sys.stderr)
    err = capsys.readouterr().err
    assert err == "a message\na message\na message\n"
