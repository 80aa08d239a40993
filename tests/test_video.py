"""Lazy frames: SAM 2's own pixels in any order, bounded, with clear errors and threads that end."""

from __future__ import annotations

import gc
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam2_keyframe.video import FrameSource, LazyFrames, init_state, without_bars

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")


def decode_threads() -> int:
    return sum(thread.name.startswith("sam2-keyframe") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
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


# -- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [64, 128])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_equal_sam2s_loader(image_size: int, mode: str, footage: np.ndarray, tmp_path: Path) -> None:
    """In every order, for colour and grey JPEGs, whatever the number of digits in their names."""
    from sam2.utils.misc import load_video_frames

    for t, frame in enumerate(footage[:24]):
        Image.fromarray(frame).convert(mode).save(tmp_path / f"{t + 2}.jpg")
    expected, height, width = load_video_frames(str(tmp_path), image_size, True, compute_device=torch.device("cpu"))
    with FrameSource(tmp_path, ahead=4) as source:
        frames = LazyFrames(source, image_size, "cpu")
        assert len(frames) == 24
        assert source.size == (height, width)
        shuffled = random.Random(0).choices(range(24), k=40)
        for t in [*range(24), *reversed(range(24)), *shuffled]:
            assert frames[t].dtype == torch.float32
            assert torch.equal(frames[t], expected[t])


def test_normalise_is_exact_on_every_value(tmp_path: Path) -> None:
    """The table against SAM 2's arithmetic on all 3 x 256 values."""
    from sam2.utils.misc import load_video_frames

    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([ramp, ramp[::-1], ramp.T], axis=-1)
    with (tmp_path / "0.jpg").open("wb") as file:
        Image.fromarray(image).save(file, format="PNG")  # PIL goes by content: no loss
    expected, _, _ = load_video_frames(str(tmp_path), 16, True, compute_device=torch.device("cpu"))
    with FrameSource(tmp_path) as source:
        frame = LazyFrames(source, 16, "cpu")[0]
    assert torch.equal(frame, expected[0])
    assert all(len(channel.unique()) == 256 for channel in frame)


@pytest.mark.parametrize("kind", ["mp4", "open-gop", "one-gop", "avi", "no time stamps"])
def test_video_files_equal_opencv(kind: str, videos: dict[str, Path]) -> None:
    expected = opencv_frames(videos[kind])
    with FrameSource(videos[kind], ahead=6) as source:
        assert len(source) == len(expected) == 60
        for t in [*range(60), *reversed(range(60)), *random.Random(1).choices(range(60), k=30)]:
            difference = source.frame(t).astype(int) - expected[t]
            assert np.abs(difference).max() <= 1, t
    if kind != "no time stamps":
        assert source.fps == pytest.approx(30000 / 1001, rel=1e-3)


def test_turned_video_comes_upright(videos: dict[str, Path], tmp_path: Path) -> None:
    """Phones store a quarter turn in the header (ISO 14496-12, tkhd matrix); OpenCV applies it, so do we."""
    data = videos["mp4"].read_bytes()
    fixed = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]
    quarter = [0, 0x10000, 0, -0x10000, 0, 0, 96 << 16, 0, 0x40000000]
    old, new = (b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in m) for m in (fixed, quarter))
    at = data.index(old, data.index(b"tkhd"))
    path = tmp_path / "turned.mp4"
    path.write_bytes(data[:at] + new + data[at + len(new) :])
    expected = opencv_frames(path)[7]
    assert expected.shape == (128, 96, 3)
    with FrameSource(path) as source:
        assert source.size == (128, 96)
        assert np.abs(source.frame(7).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f,
        list,
        lambda f: torch.from_numpy(f.transpose(0, 3, 1, 2).copy()),
        lambda f: torch.from_numpy(f).permute(0, 3, 1, 2) / 255.0,
        lambda f: [Image.fromarray(x) for x in f],
    ],
    ids=["array", "list", "tensor", "float tensor", "PIL"],
)
def test_collections(make: Callable[[np.ndarray], Any], footage: np.ndarray) -> None:
    with FrameSource(make(footage)) as source:
        assert len(source) == 60
        assert source.fps is None
        for t in (0, 1, 2, 50, 3, 59):
            assert np.array_equal(source.frame(t), footage[t])


def test_iterables_are_read_once_forwards(footage: np.ndarray) -> None:
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for t, frame in enumerate(footage):
            taken.append(t)
            yield frame

    with FrameSource(camera(), num_frames=60, ahead=5) as source:
        for t in range(30):
            assert np.array_equal(source.frame(t), footage[t])
            assert source.resized(t, 32).shape == (3, 32, 32)
        assert taken == sorted(set(taken))
        assert len(taken) <= 30 + 5 + 1
        assert np.array_equal(source.frame(27), footage[27])  # still in the window
        with pytest.raises(RuntimeError, match=r"frame 3 .* has gone by"):
            source.frame(3)
    assert decode_threads() == 0


# -- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("kind", ["folder", "one-gop"])
def test_window_is_bounded(kind: str, order: str, footage: np.ndarray, videos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path if kind == "folder" else videos[kind]
    for t, frame in enumerate(footage if kind == "folder" else []):
        Image.fromarray(frame).save(tmp_path / f"{t}.jpg")
    indices = {"forward": range(60), "reverse": range(59, -1, -1), "random": random.Random(2).choices(range(60), k=60)}
    with FrameSource(path, ahead=4) as source:
        for t in indices[order]:
            source.resized(t, 64)
            assert source.held_bytes <= (2 * 4 + 3) * 3 * 64 * 64


def test_frames_are_decoded_once_forwards(footage: np.ndarray) -> None:
    class Counting(list):  # type: ignore[type-arg]
        reads: list[int] = []

        def __getitem__(self, t: Any) -> Any:
            self.reads.append(t)
            return super().__getitem__(t)

    items = Counting(footage)
    with FrameSource(items, ahead=8) as source:
        source.first(32)
        for t in range(60):
            source.resized(t, 32)
    assert sorted(items.reads) == list(range(60))


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "missing.mp4", FileNotFoundError, r"missing\.mp4' does not exist; give"),
        (lambda p: p, ValueError, r"no images found in .*; put frames there"),
        (lambda p: [], ValueError, r"the list holds no frames"),
        (lambda p: np.zeros((4, 5, 3), np.uint8), ValueError, r"shape \(4, 5, 3\); give \(T, H, W, 3\)"),
        (lambda p: iter([1]), ValueError, r"num_frames is missing"),
        (lambda p: 7, TypeError, r"not from a int"),
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
            for t in range(24, 37):
                source.frame(t)
        assert np.array_equal(source.frame(50), expected[50])  # a key frame later all is well again


@pytest.mark.parametrize("part", [0.5, 0.8])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_video_cut_short(suffix: str, part: float, footage: np.ndarray, tmp_path: Path) -> None:
    """A file that knows its length fails where it was cut; one that does not is as long as what can be read."""
    whole = write_video(tmp_path / f"whole.{suffix}", footage, g="12", movflags="faststart")
    if suffix == "mp4":  # PyAV passes movflags to the codec only: move the index to the front by hand
        with av.open(str(whole)) as source, av.open(
            str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}
        ) as target:
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


def test_interrupted_process_ends(videos: dict[str, Path]) -> None:
    """Ctrl-C ends Python at once: it neither waits for decode threads nor crashes in them."""
    code = (
        "import sys, signal, os; from sam2_keyframe.video import FrameSource\n"
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
    assert "a message\na message\na message\n" == err


# -- with a predictor -----------------------------------------------------------------------------------------------


def _track(predictor: Any, state: Any, clip: Any, **how: Any) -> list[torch.Tensor]:
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    predictor.add_new_mask(state, 0, 2, torch.from_numpy(clip.masks[0] == 2))
    predictor.add_new_mask(state, 20, 1, torch.from_numpy(clip.masks[20] == 1))
    masks = [m.clone() for _, _, m in predictor.propagate_in_video(state)]
    masks += [m.clone() for _, _, m in predictor.propagate_in_video(state, start_frame_idx=20, reverse=True)]
    return masks


@pytest.mark.parametrize("offload", [False, True])
def test_masks_equal_stock(offload: bool, predictor: Any, clip: Any, clip_folder: Path) -> None:
    how = {"offload_video_to_cpu": offload, "offload_state_to_cpu": offload}
    expected = _track(predictor, predictor.init_state(str(clip_folder), **how), clip)
    state = init_state(predictor, clip_folder, **how)
    assert state["images"].source.size == (state["video_height"], state["video_width"]) == (128, 128)
    actual = _track(predictor, state, clip)
    assert len(expected) == len(actual) == 24 + 21
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert all(0 < (m[0] > 0).float().mean() < 1 for m in expected)
    assert len({m.sum().item() for m in expected[:24]}) == 24
    del state


def test_state_keys_are_stocks(predictor: Any, clip_folder: Path) -> None:
    stock = predictor.init_state(str(clip_folder))
    lazy = init_state(predictor, clip_folder)
    assert stock.keys() == lazy.keys()
    for key in set(stock) - {"images", "cached_features"}:
        assert stock[key] == lazy[key], key
    assert torch.equal(stock["cached_features"][0][0], lazy["cached_features"][0][0])


def test_damaged_frame_stops_tracking_with_what_came_before(
    predictor: Any, clip: Any, clip_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    expected = _track(predictor, predictor.init_state(str(folder)), clip)
    (folder / "00009.jpg").write_bytes(b"\xff\xd8 not any more")
    state = init_state(predictor, folder)
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    seen = []
    with pytest.raises(RuntimeError, match=r"frame 9 \(.*00009\.jpg\)"):
        for _, _, masks in predictor.propagate_in_video(state):
            seen.append(masks)
    assert len(seen) == 9
    assert torch.equal(seen[0], expected[0][:1])
    shutil.copy(clip_folder / "00009.jpg", folder)  # mended: tracking goes on where it stopped
    seen += [masks for _, _, masks in predictor.propagate_in_video(state, start_frame_idx=9)]
    assert len(seen) == 24
