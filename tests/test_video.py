"""Lazy frames: SAM 2's own pixels in any order, bounded, with clear errors and threads that end."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from footage import decode_threads, footage, no_thread_left, opencv_frames, videos  # noqa: F401
from PIL import Image

from sam2_keyframe.video.source import FrameSource, LazyFrames, init_state

# -- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


def test_native_frames_of_a_folder_equal_pils(footage: np.ndarray, tmp_path: Path) -> None:
    """And may be drawn on: they are the caller's."""
    for t, mode in enumerate(("RGB", "L", "P", "RGBA")):
        Image.fromarray(footage[t]).convert(mode).save(tmp_path / f"{t}.png")
    with FrameSource(tmp_path) as source:
        for t in range(4):
            with Image.open(tmp_path / f"{t}.png") as image:
                assert np.array_equal(source.frame(t), np.array(image.convert("RGB")))
            assert source.frame(t).flags.writeable


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    reads: list[int] = []

    class Counting(list):  # type: ignore[type-arg]
        def __getitem__(self, t: Any) -> Any:
            reads.append(t)
            return super().__getitem__(t)

    items = Counting(footage)
    with FrameSource(items, ahead=8) as source:
        source.first(32)
        for t in range(60):
            source.resized(t, 32)
    assert sorted(reads) == list(range(60))


# -- with a predictor -----------------------------------------------------------------------------------------------


def _track(predictor: Any, state: Any, clip: Any, **how: Any) -> list[torch.Tensor]:
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    predictor.add_new_mask(state, 0, 2, torch.from_numpy(clip.masks[0] == 2))
    predictor.add_new_mask(state, 20, 1, torch.from_numpy(clip.masks[20] == 1))
    masks = [m.clone() for _, _, m in predictor.propagate_in_video(state)]
    masks += [m.clone() for _, _, m in predictor.propagate_in_video(state, start_frame_idx=20, reverse=True)]
    return masks


@pytest.mark.slow
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


@pytest.mark.slow
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
        seen.extend(masks for _, _, masks in predictor.propagate_in_video(state))
    assert len(seen) == 9
    assert torch.equal(seen[0], expected[0][:1])
    shutil.copy(clip_folder / "00009.jpg", folder)  # mended: tracking goes on where it stopped
    seen += [masks for _, _, masks in predictor.propagate_in_video(state, start_frame_idx=9)]
    assert len(seen) == 24


def test_tracked_frames_are_recorded_as_by_stock(predictor: Any, clip: Any, clip_folder: Path) -> None:
    """SAM 2 reads there whether a click corrects a tracked frame; in memory fixed from the start."""
    records = []
    for state in (predictor.init_state(str(clip_folder)), init_state(predictor, clip_folder)):
        for obj_id in (1, 2):
            predictor.add_new_mask(state, 6, obj_id, torch.from_numpy(clip.masks[6] == obj_id))
        for reverse in (False, True):
            list(predictor.propagate_in_video(state, 6, 2, reverse))
        seen = [{t: dict(how) for t, how in state["frames_tracked_per_obj"][i].items()} for i in (0, 1)]
        assert 4 in state["frames_tracked_per_obj"][0]
        assert 9 not in state["frames_tracked_per_obj"][0]
        predictor.clear_all_prompts_in_frame(state, 6, 2)
        seen.append(sorted(state["frames_tracked_per_obj"][1]))
        predictor.remove_object(state, 1)
        seen.append(sorted(state["frames_tracked_per_obj"][0]))
        predictor.reset_state(state)
        seen.append(len(state["frames_tracked_per_obj"]))
        records.append(seen)
    assert records[0] == records[1]
    assert records[1][0] == {4: {"reverse": True}, 5: {"reverse": True}, 6: {"reverse": True}} | {
        t: {"reverse": False} for t in (7, 8)
    }


def test_avi_with_reordered_frames_is_read_in_order(footage: np.ndarray, tmp_path: Path) -> None:
    """Its packets are stamped in the order in which they are decoded, which is not that of the frames."""
    path = tmp_path / "reordered.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "3", "crf": "1"})
        stream.height, stream.width = footage.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in footage:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    capture = cv2.VideoCapture(str(path))
    theirs = [capture.read()[1][..., ::-1] for _ in footage]
    with FrameSource(path) as source:
        assert len(source) == len(footage)
        for t in (1, 0, 5, 3, len(footage) - 1):
            assert np.abs(source.frame(t).astype(int) - theirs[t]).mean() < 2
            assert np.abs(footage.astype(int) - source.frame(t)).mean((1, 2, 3)).argmin() == t


def test_sixteen_bit_pictures_keep_their_grey(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "0.png"), ramp)
    found = FrameSource(tmp_path).frame(0)
    assert np.abs(found.astype(int) - (ramp // 256)[..., None]).max() == 0


def test_names_that_look_like_numbers_or_protocols(
    footage: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: dict[str, Path]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for name, pixels in zip(("①", "²", "2", "10"), footage, strict=False):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    assert len(FrameSource(folder)) == 4
    assert np.array_equal(FrameSource(folder).frame(0), footage[2])
    (tmp_path / "12:30.mp4").write_bytes(videos["mp4"].read_bytes())
    monkeypatch.chdir(tmp_path)
    with FrameSource("12:30.mp4") as source:
        assert len(source) == len(footage)
