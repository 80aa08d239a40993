"""Recordings as they come: cut, damaged, joined, with hidden frames, odd names and times; and sources across forks."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from footage import av, decode_threads, footage, no_thread_left, videos, write_video  # noqa: F401
from PIL import Image

from sam2_keyframe.video import window
from sam2_keyframe.video.source import FrameSource, LazyFrames


def encode(path: Path, frames: np.ndarray, codec: str = "libx264", pts: Any = None, **options: str) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        base = Fraction(1, 1000) if pts is not None else Fraction(1, 25)
        stream.codec_context.time_base = base
        for t, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = t if pts is None else pts[t], base
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return path


def copied(source: Path, target: Path, keep: Callable[[int], bool] = lambda i: True, bsf: str = "") -> Path:
    with av.open(str(source)) as a, av.open(str(target), "w") as b:
        video = a.streams.video[0]
        stream = b.add_stream_from_template(video)
        split = av.bitstream.BitStreamFilterContext(bsf, video) if bsf else None
        packets = (packet for packet in a.demux(video) if packet.size)
        for i, packet in enumerate(packets):
            for each in (split.filter(packet) if split else [packet]) if keep(i) else []:
                each.stream = stream
                b.mux(each)
    return target


def numbers(source: FrameSource, footage: np.ndarray) -> list[int]:
    """Return which frame of the footage each frame is; -1 for one that cannot be had."""
    found = []
    for t in range(len(source)):
        try:
            found.append(int(np.abs(footage.astype(int) - source.frame(t)).mean((1, 2, 3)).argmin()))
        except RuntimeError:
            found.append(-1)
    return found


HANGS = """
import sys, av
av.logging.set_level(av.logging.ERROR)
from sam2_keyframe.video.source import FrameSource
for _ in range(4):
    with FrameSource(sys.argv[1]) as source:
        lost = 0
        for t in range(len(source)):
            try:
                source.frame(t)
            except RuntimeError:
                lost += 1
print(lost, len(source))
"""


@pytest.fixture(scope="module")
def damaged(videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = bytearray(videos["mp4"].read_bytes())
    with av.open(str(videos["mp4"])) as container:
        packets = sorted((p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size)
    for t in (14, 25, 37):
        _, position, size = packets[t]
        data[position + 5 : position + size] = bytes(np.random.default_rng(t).integers(0, 256, size - 5, np.uint8))
    path = tmp_path_factory.mktemp("damaged") / "damaged.mp4"
    path.write_bytes(data)
    return path


@pytest.mark.slow
def test_a_damaged_video_does_not_hang_while_pyav_logs(damaged: Path) -> None:
    """Under load it always did: freeing a decoder waited for its threads, and they for Python's lock to log."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        done = subprocess.run([sys.executable, "-c", HANGS, str(damaged)], capture_output=True, timeout=120, text=True)
    finally:
        for each in busy:
            each.kill()
            each.wait()
    lost, frames = map(int, done.stdout.split())
    assert frames == 60
    assert 20 < lost < 40


def test_a_reader_that_is_stuck_is_named(footage: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    released = threading.Event()

    class Slow:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, t: int) -> np.ndarray:
            released.wait()
            return footage[t]

    monkeypatch.setattr(window, "_PATIENCE", 0.2)
    with FrameSource(Slow()) as source:
        with pytest.raises(RuntimeError, match=r"frame 0 of the Slow did not come: nothing was read for"):
            source.frame(0)
        released.set()
        monkeypatch.setattr(window, "_PATIENCE", 60.0)
        assert np.array_equal(source.frame(0), footage[0])


# -- forks and copies -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["video", "damaged", "folder"])
def test_a_forked_process_reads_on(
    kind: str, videos: dict[str, Path], damaged: Path, footage: np.ndarray, tmp_path: Path
) -> None:
    for t, pixels in enumerate(footage[:30]):
        Image.fromarray(pixels).save(tmp_path / f"{t}.png")
    path = {"video": videos["mp4"], "damaged": damaged, "folder": tmp_path}[kind]
    code = (
        "import os, sys, time; from sam2_keyframe.video.source import FrameSource\n"
        "def read(source):\n"
        "    sums = []\n"
        "    for t in (1, 2, 9, 26, 27, 3):\n"
        "        try: sums.append(int(source.frame(t).sum()))\n"
        "        except RuntimeError as error: sums.append(-1); sys.stderr.write(f'{t}: {error}')\n"
        "    return sums\n"
        "source = FrameSource(sys.argv[1]); source.frame(0); children = []\n"
        "for _ in range(3):\n"
        "    child = os.fork()\n"
        "    if not child: print(read(source), flush=True); os._exit(0)\n"
        "    children.append(child); source.frame(5)\n"
        "print(read(source), flush=True)\n"
        "for child in children: os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=120, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert len(set(lines)) == 1, done.stdout + done.stderr
    assert (lines[0].count("-1") > 0) == (kind == "damaged")


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_read_the_same_frames_on_threads_of_their_own(how: Any, videos: dict[str, Path]) -> None:
    with FrameSource(videos["mp4"], num_frames=40) as source:
        source.frame(7)
        with how(source) as twin:
            assert len(twin) == 40
            assert np.array_equal(twin.frame(30), source.frame(30))
            source.close()
            twin.frame(8)


def test_a_lazy_state_is_copied_and_saved_and_tracks_on(predictor: Any, clip: Any, clip_folder: Path) -> None:
    import sam2_keyframe as sk

    state = sk.init_state(predictor, clip_folder)
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    for t, _, _ in predictor.propagate_in_video(state):
        if t == 3:
            break
    states = [state, copy.deepcopy(state), pickle.loads(pickle.dumps(state))]
    runs = [[m.clone() for _, _, m in predictor.propagate_in_video(s, 4, 3)] for s in states]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_what_is_read_once_is_not_copied(footage: np.ndarray) -> None:
    with FrameSource(iter(footage), num_frames=9) as source:
        for how in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"can be read only once .*; give a list, a folder or a file"):
                how(source)


# -- names and values of pictures -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("0.5", "0.75", "1.0", "1.25", "10.0"),
        ("0.25", "0.5", "0.75", "2"),
        ("-2", "-1", "0", "1", "10"),
        ("-0.5", "-0.25", "0.0", "0.5"),
        ("t_-2s", "t_-1s", "t_0s", "t_10s"),
        ("0,5", "0,75", "1,25"),
        ("take-2", "take-9", "take-10"),
        ("v1.9.2", "v1.10.1"),
    ],
)
def test_numbers_in_names_are_numbers(names: tuple[str, ...], footage: np.ndarray, tmp_path: Path) -> None:
    for t, name in enumerate(names):
        Image.fromarray(footage[t]).save(tmp_path / f"{name}.png")
    with FrameSource(tmp_path) as source:
        assert numbers(source, footage) == list(range(len(names)))


def test_names_of_two_orders_are_refused(tmp_path: Path) -> None:
    for name in ("1.9", "1.10", "1.11"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"names such as '1.10' is not clear: .*; give them whole numbers"):
        FrameSource(tmp_path)


def test_floats_and_wide_integers_are_scaled_or_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pictures = [Image.fromarray(ramp), Image.fromarray(ramp * 255), Image.fromarray((ramp * 70000).astype(np.int32))]
    for t, picture in enumerate(pictures):
        picture.save(tmp_path / f"{t}.tif")
    for given in (tmp_path, pictures):
        with FrameSource(given) as source:
            assert np.abs(source.frame(0)[..., 0] - ramp * 255).max() <= 0.5
            with pytest.raises(ValueError, match=r"holds floats from 0 to 255; give uint8"):
                source.frame(1)
            with pytest.raises(ValueError, match=r"holds 32-bit integers from 0 to 70000, whose scale is not known"):
                source.frame(2)
    with FrameSource([torch.full((3, 4, 4), 200.0), torch.full((3, 4, 4), torch.nan)]) as source:
        for t in range(2):
            with pytest.raises(ValueError, match=r"holds floats from .*; give uint8"):
                source.frame(t)


def test_exif_orientation_is_left_and_told_once(footage: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for t in range(3):
        Image.fromarray(footage[t]).save(tmp_path / f"{t}.jpg", exif=exif)
    with FrameSource(tmp_path) as source, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [source.frame(t).shape for t in range(3)] == [footage[0].shape] * 3
    assert len(said) == 1
    assert "EXIF orientation 6" in str(said[0].message)
    assert "mogrify -auto-orient" in str(said[0].message)


# -- hidden frames, recordings without a beginning or an end --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["webm", "ivf"])
def test_packets_without_a_picture_are_no_frames(suffix: str, footage: np.ndarray, tmp_path: Path) -> None:
    """VP8's bit that shows a frame is taken from two, as encoders do with frames that are only referred to."""
    whole, path = encode(tmp_path / f"whole.{suffix}", footage, "libvpx", b="2M"), tmp_path / f"hidden.{suffix}"
    with av.open(str(whole)) as a, av.open(str(path), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for t, packet in enumerate(p for p in a.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= 0xEF if t in (10, 59) else 0xFF
            copy_ = av.Packet(bytes(data))
            copy_.pts, copy_.dts, copy_.time_base, copy_.stream = packet.pts, packet.dts, packet.time_base, stream
            copy_.is_keyframe = packet.is_keyframe
            b.mux(copy_)
    with FrameSource(path) as source:
        assert numbers(source, footage) == [t for t in range(60) if t not in (10, 59)]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_a_recording_that_begins_between_key_frames(codec: str, footage: np.ndarray, tmp_path: Path) -> None:
    options = {
        "libx264": {"x264-params": "open-gop=1:keyint=12:bframes=3"},
        "libx265": {"x265-params": "open-gop=1:keyint=12:log-level=none"},
        "mpeg4": {"g": "12", "bf": "2", "b": "4M"},
    }[codec]
    whole = encode(tmp_path / "whole.mkv", footage, codec, **options)
    path = copied(whole, tmp_path / "cut.mkv", keep=lambda i: i >= 5)
    with FrameSource(path) as source, pytest.warns(UserWarning, match=r"its first 7 frames cannot be decoded and are"):
        assert numbers(source, footage) == list(range(12, 60))


def test_a_transport_stream_cut_anywhere_or_with_packets_lost(footage: np.ndarray, tmp_path: Path) -> None:
    data = encode(tmp_path / "whole.ts", footage, g="12", bf="3").read_bytes()
    half = len(data) // 188 // 2
    (tmp_path / "cut.ts").write_bytes(data[188 * (half // 2) :])
    (tmp_path / "lost.ts").write_bytes(data[: 188 * half] + data[188 * (half + 12) :])
    with FrameSource(tmp_path / "cut.ts") as source:
        with pytest.warns(UserWarning, match="begins between key frames"):
            found = numbers(source, footage)
        assert found == list(range(found[0], 60))
        assert 0 < found[0] < 40
    with FrameSource(tmp_path / "lost.ts") as source:
        found = numbers(source, footage)
    good = [t for t in found if t >= 0]
    assert found.count(-1) > 0
    assert good == sorted(set(good))  # none of another time is taken for good
    assert good[0] == 0
    assert good[-1] == 59


def test_a_matroska_file_cut_short_is_not_whole(footage: np.ndarray, tmp_path: Path) -> None:
    stamps = [0, 100, 200, 1000, 1100, 5000, 5100, 5200, 8000, 8500, 8900, 9000]
    whole = encode(tmp_path / "whole.mkv", footage[:12], "ffv1", pts=stamps)
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: int(0.45 * whole.stat().st_size)])
    with FrameSource(whole) as source:
        assert len(source) == 12
        assert [round(1000 * (source.time(t) or 0)) for t in range(12)] == stamps
    with FrameSource(tmp_path / "cut.mkv") as source:
        last = len(source) - 1
        assert 2 < last < 8
        source.frame(last - 1)
        with pytest.raises(RuntimeError, match=rf"cut short after {last} frames, .* of its 9\.\d+ seconds"):
            source.frame(last)


@pytest.mark.slow
@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, -1, 0), (0, 1, 1, 0), (-1, 0, 0, -1)])
def test_display_matrices(matrix: tuple[int, ...], footage: np.ndarray, tmp_path: Path) -> None:
    """Put into the track header of an MP4: (x, y) is to go to (a x + c y, b x + d y)."""
    path = encode(tmp_path / "plain.mp4", footage[:3], crf="1")
    with FrameSource(path) as source:
        plain = source.frame(1)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[at + place : at + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    a, b, c, d = matrix
    rows, columns = np.mgrid[: plain.shape[0], : plain.shape[1]]
    x, y = a * columns + c * rows, b * columns + d * rows
    expected = np.zeros((int(np.ptp(y)) + 1, int(np.ptp(x)) + 1, 3), np.uint8)
    expected[y - y.min(), x - x.min()] = plain
    with FrameSource(path) as source:
        assert np.array_equal(source.frame(1), expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "live.mp4")
    with pytest.raises(ValueError, match=r"is a pipe or a device, .*; save it to a file, or use sam2_keyframe.Stream"):
        FrameSource(tmp_path / "live.mp4")


def test_frames_of_other_processes_are_lazy_too(footage: np.ndarray) -> None:
    with FrameSource(footage) as source:
        frames = LazyFrames(source, 64, "cpu")
        assert torch.equal(copy.deepcopy(frames)[3], frames[3])
