"""What drives transformers' models as it drives SAM 2's own: `Stream`, `record` and the command line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

import transformers
from commandline import FRAMES, track
from conftest import write_frames
from on_transformers import Video, add_mask, add_points, held_bytes, new_session, pixels
from PIL import Image
from transformers_models import edgetam, sam2_video, sam3_tracker, sam3_video

import sam2_keyframe as sk
from sam2_keyframe.app import models, pictures
from sam2_keyframe.micro import load_micro_model
from sam2_keyframe.replay import record, replay
from sam2_keyframe.synthetic import make_clip

SIZE = 64


@pytest.fixture(scope="module")
def video() -> Any:
    return Video(make_clip("occlusion", seed=3, frames=17, size=SIZE, objects=2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model as `save_pretrained` leaves it."""
    path = tmp_path_factory.mktemp("micro")
    load_micro_model("transformers", image_size=SIZE).save_pretrained(path)
    return path


def logits(output: Any) -> torch.Tensor:
    """Return what the model returned at the size of the frame."""
    masks: torch.Tensor = F.interpolate(output.pred_masks, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return masks


def by_hand(model: Any, video: Any) -> list[torch.Tensor]:
    """Prompts by a mask and by clicks, a late object, a correction by two clicks one after the other."""
    session, seen = new_session(model, video.frames), []
    add_mask(session, 0, 1, video.mask(0, 1))
    for t in range(len(video.frames)):
        if t == 4:
            add_points(session, 4, 2, [video.click(4, 2)], [1])
        seen.append(logits(model(inference_session=session, frame_idx=t)))
        if t == 6:
            for count in (1, 2):
                add_points(session, 6, 1, [video.click(6, 1), [3.0, 3.0]][:count], [1, 0][:count])
                seen.append(logits(model(inference_session=session, frame_idx=6)))
    return seen


def streamed(stream: Any, video: Any) -> list[torch.Tensor]:
    seen = []
    for t, frame in enumerate(video.clip.frames):
        prompts: dict[str, Any] = {"masks": {1: video.mask(0, 1)}} if t == 0 else {}
        if t == 4:
            prompts = {"points": {2: ([video.click(4, 2)], [1])}}
        seen.append(stream.step(frame, **prompts)[2])
        if t == 6:
            seen.append(stream.correct(points={1: ([video.click(6, 1)], [1])})[2])
            seen.append(stream.correct(points={1: ([[3.0, 3.0]], [0])})[2])
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "stock", "window", "keyframe"])
def test_a_stream_is_the_model_driven_by_hand(method: str | None, video: Any) -> None:
    model = sam2_video(SIZE)
    handle = None if method is None else sk.wrap(model, method)
    expected = by_hand(model, video)
    if handle is not None:
        handle.unwrap()
    with sk.Stream(model, method) as stream:
        actual = streamed(stream, video)
        assert stream.obj_ids == [1, 2]
    assert len(actual) == len(expected) == 19
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(actual[:11]) if a.shape == b.shape)
    assert "_sam2_keyframe" not in vars(model)


@pytest.mark.parametrize(("make", "size"), [pytest.param(sam3_tracker, 112, marks=pytest.mark.slow), (edgetam, 64)])
def test_a_stream_takes_the_other_trackers(make: Any, size: int) -> None:
    model, clip = make(size), make_clip("occlusion", seed=3, frames=4, size=size, objects=2)
    with sk.Stream(model) as stream:
        for t, frame in enumerate(clip.frames):
            masks = {obj_id: clip.masks[0] == obj_id for obj_id in (1, 2)} if t == 0 else None
            found = stream.step(frame, masks=masks)[2]
            assert found.shape == (2, 1, size, size)
            assert torch.isfinite(found).all()
        assert [row.frame_idx for row in stream.stats[2].rows] == [1, 2, 3]


def test_a_stream_keeps_its_size_and_lets_objects_go(video: Any) -> None:
    """Whoever stays is tracked as if the others had never been there."""
    model = sam2_video(SIZE)
    held, frames = [], video.clip.frames
    with sk.Stream(model, max_prompts=2) as stream:
        for t in range(40):
            prompts = {obj_id: video.mask(0, obj_id) for obj_id in (1, 2)} if t == 0 else {}
            prompts |= {2: video.mask(t, 2)} if t in (3, 5, 7) else {}
            both = stream.step(frames[t % 17], masks=prompts)[2]
            held.append(held_bytes(stream._state))
            if t == 29:
                stream.remove(1)
        session = stream._state
        assert sorted(session.output_dict_per_obj) == [0]
        assert sorted(session.output_dict_per_obj[0]["cond_frame_outputs"]) == [0, 7]
        assert max(held[20:30]) < 1.15 * max(held[:20])
        assert max(held[31:]) < 0.7 * max(held[:30])
        assert len(session.processed_frames.source) == 1
        assert all(len(per_frame) <= 1 for per_frame in session.frames_tracked_per_obj.values())
        with pytest.raises(ValueError, match="the first one was 64x64"):
            stream.step(frames[0][:32])
    with sk.Stream(model, max_prompts=2) as stream:
        for t in range(40):
            alone = stream.step(frames[t % 17], masks={2: video.mask(t, 2)} if t in (0, 3, 5, 7) else None)[2]
    assert both.shape == alone.shape == (1, 1, SIZE, SIZE)
    assert float((both - alone).abs().max()) < 1e-3
    assert (alone > 0).any()


def test_a_frame_on_which_the_model_fails_counts_as_not_given(video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, frames = sam2_video(SIZE), video.clip.frames
    with sk.Stream(model, "window") as stream:
        stream.step(frames[0], masks={1: video.mask(0, 1)})
        with monkeypatch.context() as patched:
            patched.setattr(type(model.memory_attention), "forward", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                stream.step(frames[9], masks={5: video.mask(9, 2)})
        assert stream.obj_ids == [1]
        t, _, shown = stream.step(frames[1])
    with sk.Stream(model, "window") as stream:
        stream.step(frames[0], masks={1: video.mask(0, 1)})
        assert torch.equal(stream.step(frames[1])[2], shown)
    assert t == 1


@pytest.mark.slow
def test_a_model_that_finds_objects_by_text_is_not_prompted() -> None:
    model, frame = sam3_video(), make_clip("occlusion", seed=3, frames=1, size=112, objects=2).frames[0]
    with sk.Stream(model) as stream, pytest.raises(TypeError, match="finds objects by text"):
        stream.step(frame, boxes={1: [5, 5, 40, 40]})


# -- recordings --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keyframe", "window", "dam4sam", "adaptive"])
def test_a_replay_repeats_the_run(method: str, video: Any) -> None:
    """Of a recording of transformers, as of one of SAM 2's own; a method that measures nothing is recorded, too."""
    model = sam2_video(SIZE)
    session = sk.init_state(model, video.clip.frames)
    with sk.wrap(model, method), record(model, session) as recording:
        for obj_id in (1, 2):
            video.prompt(session, 0, obj_id)
        for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
            if output.frame_idx == 8:
                add_points(session, 8, 1, [video.click(8, 1)], [1])
                model(inference_session=session, frame_idx=8)
        live = sk.memory_stats(session)
    assert [step.kind.name for step in recording.steps[:4]] == ["PROMPT", "PROMPT", "FORWARD", "FORWARD"]
    played = replay(video.clip.frames, recording, method).stats
    for obj_id, stats in live.items():
        rows, again = stats.rows, played[obj_id].rows
        assert [row.attended for row in rows] == [row.attended for row in again]
        assert [(row.keyframe, row.keyframes, row.evicted) for row in rows] == [
            (row.keyframe, row.keyframes, row.evicted) for row in again
        ]
        assert [row.memory.frames for row in rows] == [row.memory.frames for row in again]
        assert [row.memory.tokens for row in rows] == [row.memory.tokens for row in again]


def test_recording_changes_nothing_and_leaves_nothing(video: Any) -> None:
    model, seen = sam2_video(SIZE), []
    before = set(vars(model))
    for recorded in (False, True):
        session = new_session(model, video.frames)
        video.prompt(session, 0, 1)
        if recorded:
            with record(model, session) as recording:
                outputs = [o.pred_masks for o in model.propagate_in_video_iterator(session, start_frame_idx=0)]
        else:
            outputs = [o.pred_masks for o in model.propagate_in_video_iterator(session, start_frame_idx=0)]
        seen.append(outputs)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert len(recording.steps) == 17
    assert set(vars(model)) == before
    assert not model.mask_decoder._forward_hooks
    assert sk.memory_stats(session) == {}


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of the clip as JPEGs."""
    return write_frames(tmp_path_factory.mktemp("footage"), clip.frames[:FRAMES])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where results go."""
    return tmp_path / "out"


@pytest.fixture
def mask(clip: Any, tmp_path: Path) -> Path:
    """The first frame's mask of two objects, as a palette PNG."""
    picture = Image.fromarray(clip.masks[0].astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_the_command_line_takes_a_folder(saved: Path, folder: Path, mask: Path, clip: Any, out: Path) -> None:
    """Masks are those of the model alone, the prompts as its own processor would scale them."""
    later = ("--point", "3@4:60,60", "--box", "3@4:20,20,90,90")
    less = ("--no-overlay", "--no-pictures")
    assert track(folder, out, "--model", f"hf:{saved}", "--mask", mask, *later, *less, "--method", "stock") == 0
    assert sorted(path.name for path in out.iterdir()) == ["frames.csv", "masks", "recording.npz"]
    model = load_micro_model("transformers", image_size=SIZE)
    images = [np.asarray(Image.open(folder / f"{t:05d}.jpg").resize((SIZE, SIZE))) for t in range(FRAMES)]
    session = new_session(model, pixels(np.stack(images)))
    session.video_height = session.video_width = 128
    for obj_id in (1, 2):
        small = F.interpolate(
            torch.from_numpy(clip.masks[0] == obj_id).float()[None, None], (SIZE, SIZE), mode="bilinear", antialias=True
        )
        add_mask(session, 0, obj_id, (small[0, 0] >= 0.5).numpy())
    for t in range(FRAMES):
        if t == 4:
            add_points(session, 4, 3, [[10.0, 10.0], [45.0, 45.0], [30.0, 30.0]], [2, 3, 1])
        output = model(inference_session=session, frame_idx=t)
        masks = F.interpolate(output.pred_masks, (128, 128), mode="bilinear", align_corners=False)
        with Image.open(out / "masks" / f"{t:05d}.png") as image:
            assert np.array_equal(np.asarray(image), pictures.label_map(output.object_ids, masks)), t
    assert replay(folder, out, "keyframe").stats.keys() == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:", "names no model; write hf:facebook/sam2.1-hiera-tiny"),
        ("hf:{folder}/none", "cannot be loaded"),
        ("hf:{folder}", "is a 'clip'; those that track are sam2_video, sam3_tracker_video, edgetam_video"),
    ],
)
def test_what_is_no_tracker_is_refused(
    name: str, words: str, folder: Path, mask: Path, out: Path, tmp_path: Path, capsys: Any
) -> None:
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    name = name.format(folder=tmp_path / "clip")
    assert track(folder, out, "--model", name, "--mask", mask) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sam2-keyframe: error: --model hf:")
    assert words in error
    assert not out.exists()


def test_the_size_is_the_models_own(saved: Path) -> None:
    with pytest.raises(ValueError, match="--image-size 64: a model of transformers sees"):
        models.load_model(f"hf:{saved}", "cpu", image_size=64)
