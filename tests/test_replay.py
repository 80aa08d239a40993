"""Replay against live runs: the same keyframes, attended frames and occupancy; and what it refuses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor
from memories import memory

import sam2_keyframe as sk
from sam2_keyframe.attention.maths import Foveated, Pool, SalientTokens
from sam2_keyframe.bank.compression import PCA
from sam2_keyframe.replay import Recording, record, replay
from sam2_keyframe.replay import recorder as recording_module
from sam2_keyframe.rules.eviction import LeastSignificant, LeastUsed, MostRedundant
from sam2_keyframe.rules.motion import Kalman
from sam2_keyframe.rules.retrieval import DropRedundant, Reconstruct
from sam2_keyframe.scorers import (
    SSIM,
    Combine,
    Distractor,
    FeatureShift,
    MaskIoU,
    Novelty,
    OpticalFlow,
    Stability,
)

FRAMES = 24
METHODS: dict[str, Any] = {
    "keyframe": sk.make_method("keyframe", change=0.2),
    "adaptive": sk.make_method("adaptive"),
    "stock": sk.make_method("stock"),
    "window": sk.make_method("window"),
    "flow": memory(Combine((MaskIoU(), OpticalFlow())) > 0.3),
    "features": memory(
        Novelty("memory") > 0.001,
        n=3,
        evict=MostRedundant(),
        codec=PCA(4),
        measure=(FeatureShift(), FeatureShift("image", name="image_shift"), Distractor(), Stability()),
    ),
    "ranked": sk.KeyframeMemory(
        sk.Recent(1),
        sk.Keyframes(9, MaskIoU() > 0.1, code="prompt"),
        sk.Others(2, codec=sk.Downsample(2)),
        sk.LongTerm(2),
        pointers=sk.Ranked(sk.Always()),
        attend=Pool(2),
        prompts=sk.Prompts(1),
    ),
    "queries": sk.make_method("keyframe", change=0.2, queries=sk.NearObject(2)),
    "dam4sam": sk.make_method("dam4sam"),
    "ssim": memory(SSIM(region="object") > 0.05, evict=LeastSignificant(SSIM(region="object"))),
}


def live(predictor: Any, clip: Any, method: Any, session: str = "forward") -> tuple[Any, Recording]:
    """Return the statistics and the recording of a live run."""
    state = sk.init_state(predictor, clip.frames)
    with sk.wrap(predictor, method), record(predictor, state) as recording:
        for _ in _session(predictor, state, clip, session):
            pass
        return sk.memory_stats(state), recording


def _session(predictor: Any, state: Any, clip: Any, session: str) -> Any:
    def prompt(t: int, obj_id: int = 1) -> None:
        predictor.add_new_mask(state, t, obj_id, torch.from_numpy(clip.masks[t] == obj_id))

    if session == "reverse":
        prompt(FRAMES - 1)
        prompt(FRAMES - 1, 2)
        yield from predictor.propagate_in_video(state, reverse=True)
    elif session == "both_ways":
        prompt(10)
        yield from predictor.propagate_in_video(state, start_frame_idx=10, max_frame_num_to_track=9)
        yield from predictor.propagate_in_video(state, start_frame_idx=16, max_frame_num_to_track=16, reverse=True)
    elif session == "corrected":
        prompt(0)
        yield from predictor.propagate_in_video(state, max_frame_num_to_track=14)
        predictor.add_new_points_or_box(state, 8, 1, points=[[60.0, 60.0]], labels=[1])
        yield from predictor.propagate_in_video(state, start_frame_idx=6, max_frame_num_to_track=12)
    elif session == "cleared":
        prompt(0)
        prompt(6)
        yield from predictor.propagate_in_video(state, max_frame_num_to_track=9)
        predictor.clear_all_prompts_in_frame(state, 6, 1)
        yield from predictor.propagate_in_video(state, start_frame_idx=9)
    else:
        prompt(0)
        if session == "two_objects":
            prompt(0, 2)
        if session == "later_prompt":
            prompt(15)
        yield from predictor.propagate_in_video(state)


def comparable(stats: Any) -> Any:
    """Return all that a replay must reproduce, by object; NaN as a word, since it equals nothing."""
    return {
        obj_id: [
            (
                row.frame_idx, row.attended, row.keyframe, row.evicted, repr(row.significance),
                sorted((name, repr(value)) for name, value in row.scores.items()),
                row.memory, row.stock, row.window, row.host_nbytes,
            )
            for row in each.rows
        ]
        for obj_id, each in stats.items()
    }  # fmt: skip


def assert_same(result: Any, stats: Any) -> None:
    ours, theirs = comparable(result.stats), comparable(stats)
    assert ours.keys() == theirs.keys()
    for obj_id, rows in theirs.items():
        for mine, row in zip(ours[obj_id], rows, strict=True):
            assert mine == row


def assert_same_rows(ours: Any, theirs: Any) -> None:
    assert comparable({1: ours}) == comparable({1: theirs})


@pytest.fixture(scope="module")
def predictor() -> Any:
    return make_predictor()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("session", ["two_objects", "reverse", "later_prompt"])
def test_a_replay_repeats_the_live_run(predictor: Any, clip: Any, name: str, session: str) -> None:
    stats, recording = live(predictor, clip, METHODS[name], session)
    assert_same(replay(clip.frames, recording, METHODS[name]), stats)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Pool(4, conditioning=True), Foveated(0.2, 4, conditioning=True), SalientTokens()])
@pytest.mark.parametrize("session", ["later_prompt", "both_ways", "corrected"])
def test_so_it_counts_the_tokens_that_each_scheme_reads(predictor: Any, clip: Any, scheme: Any, session: str) -> None:
    method = memory(MaskIoU() > 0.1, n=3, codec=PCA(4), attend=scheme)
    stats, recording = live(predictor, clip, method, session)
    assert_same(replay(clip.frames, recording, method), stats)


@pytest.mark.slow
@pytest.mark.parametrize("session", ["both_ways", "corrected", "cleared"])
@pytest.mark.parametrize("name", ["keyframe", "window", "ranked"])
def test_so_it_does_in_any_session(predictor: Any, clip: Any, name: str, session: str) -> None:
    stats, recording = live(predictor, clip, METHODS[name], session)
    assert_same(replay(clip.frames, recording, METHODS[name]), stats)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", [MaskIoU(), FeatureShift()])
def test_five_thresholds_each_with_its_own_live_run(predictor: Any, clip: Any, scorer: Any) -> None:
    counts = []
    for keep in (0.0, 0.003, 0.01, 0.1, 0.3):
        method = memory(scorer > keep)
        stats, recording = live(predictor, clip, method, "two_objects")
        result = replay(clip.frames, recording, method)
        assert_same(result, stats)
        counts.append(len(result.keyframes[1]))
    assert len(set(counts)) > 2, "the thresholds are too alike to tell anything"
    assert counts == sorted(counts, reverse=True)


def test_pixels_are_those_that_sam2_was_given(clip_folder: Path, clip: Any) -> None:
    """Through SAM 2's own loader and above the scoring resolution, where pixels are averaged."""
    predictor = make_predictor(image_size=320)
    method = memory(SSIM() > 0.02, measure=(sk.FrameDifference(colour=True),))
    state = predictor.init_state(str(clip_folder))
    with sk.wrap(predictor, method), record(predictor, state) as recording:
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        list(predictor.propagate_in_video(state, max_frame_num_to_track=5))
        stats = sk.memory_stats(state)
    assert_same(replay(clip_folder, recording, method), stats)


def test_frames_are_chosen_from_a_recording(predictor: Any, clip: Any) -> None:
    _, recording = live(predictor, clip, "stock")
    frames, vectors = recording.descriptors(1)
    chosen = tuple(frames[i] for i in sk.choose_frames(vectors, count=3))
    result = replay(clip.frames, recording, "genetic", frames=chosen)
    assert result.keyframes[1] == [t for t in chosen if t > 0]
    with pytest.raises(ValueError, match="its objects are"):
        recording.descriptors(2)


def test_other_choices_on_the_same_recording(predictor: Any, clip: Any) -> None:
    """A replay of another method than the run's is what that method does over the run's masks."""
    _, recording = live(predictor, clip, "stock", "two_objects")
    scores = [row.scores["mask_iou"] for row in replay(clip.frames, recording, "adaptive").stats[1].rows]
    assert all(0 <= score <= 1 for score in scores)
    few, many = (replay(None, recording, memory(MaskIoU() > keep)).keyframes[1] for keep in (0.3, 0.05))
    assert 0 < len(few) < len(many)
    for record_, mask in zip(recording.steps, [1, 2] * FRAMES, strict=False):
        assert record_.obj_id == mask


def test_what_was_saved_plays_as_what_was_recorded(predictor: Any, clip: Any, tmp_path: Path) -> None:
    method = memory(FeatureShift("image") > 0.01, measure=(Stability(),))
    stats, recording = live(predictor, clip, method, "later_prompt")
    recording.save(tmp_path / "run.npz")
    assert_same(replay(clip.frames, tmp_path / "run.npz", method), stats)
    assert (tmp_path / "run.npz").stat().st_size < 5000 * len(recording.steps)
    recording.save(tmp_path / "recording.npz")
    assert len(Recording.load(tmp_path).steps) == len(recording.steps), "from the folder that a run wrote"
    assert len(repr(recording)) < 500
    frames, vectors = Recording.load(tmp_path / "run.npz").descriptors(1, "object/pointer")
    assert frames == list(range(FRAMES))
    assert vectors.shape == (FRAMES, recording.geometry.pointer_dim)


def test_a_recording_that_is_written_as_it_grows(clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five steps; a run that is reset and begun again; and an error in its middle."""
    monkeypatch.setattr(recording_module, "BLOCK", 5)
    predictor, path = make_predictor(), tmp_path / "run.npz"
    state = sk.init_state(predictor, clip.frames)
    most = []

    def run() -> None:
        with sk.wrap(predictor, "keyframe", change=0.05), record(predictor, state, path) as recording:
            for start, obj_ids in ((0, (1, 2)), (3, (2,))):
                predictor.reset_state(state)
                for obj_id in obj_ids:
                    predictor.add_new_mask(state, start, obj_id, torch.from_numpy(clip.masks[start] == obj_id))
                for _ in predictor.propagate_in_video(state, max_frame_num_to_track=8):
                    most.append(len(recording.steps))
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        run()
    assert max(most) < 5
    result = replay(clip.frames, path, "keyframe", change=0.05)
    assert_same_rows(result.stats[2], sk.memory_stats(state)[2])
    assert result.prompts == {1: [], 2: [3]}


def test_a_recording_that_cannot_be_written_is_not_left_behind(
    predictor: Any, clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    _, recording = live(predictor, clip, "window")
    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        recording.save(tmp_path / "run.npz")
    with pytest.raises(OSError, match="No such file"):
        recording.save(tmp_path / "nowhere" / "run.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_recorded_iou_is_that_of_the_mask_chosen_by_motion(clip: Any) -> None:
    predictor, best = make_predictor(), []
    predictor.sam_mask_decoder.register_forward_hook(lambda *call: best.append(call[2][1].max().item()), prepend=True)
    method = sk.make_method("samurai", choice=Kalman(weight=1.0, stable=1, floor=0.0))
    stats, recording = live(predictor, clip, method)
    recorded = {step.frame_idx: step.scores["predicted_iou"] for step in recording.steps}
    chosen = [recorded[row.frame_idx] for row in stats[1].rows]
    assert chosen == [row.scores["predicted_iou"] for row in stats[1].rows]
    assert chosen != best[-len(chosen) :], "motion never chose another mask than the best rated, so nothing was tested"


@pytest.mark.slow
def test_a_tracked_frame_becomes_a_prompted_one(clip: Any) -> None:
    predictor = make_predictor(add_all_frames_to_correct_as_cond=True)
    for name in ("keyframe", "stock", "ranked"):
        stats, recording = live(predictor, clip, METHODS[name], "corrected")
        assert_same(replay(clip.frames, recording, METHODS[name]), stats)


def test_recording_changes_nothing_and_leaves_nothing(clip: Any) -> None:
    predictor = make_predictor()
    masks = []
    for recorded in (False, True):
        state = sk.init_state(predictor, clip.frames)
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        before = set(vars(predictor))
        with record(predictor, state) if recorded else nullcontext():
            masks.append([logits for _, _, logits in predictor.propagate_in_video(state, max_frame_num_to_track=6)])
        assert set(vars(predictor)) == before
        assert not predictor.sam_mask_decoder._forward_hooks
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_wrapping_or_unwrapping_inside_a_recording_is_an_error(clip: Any) -> None:
    predictor = make_predictor()
    state = sk.init_state(predictor, clip.frames)
    with pytest.raises(RuntimeError, match="wrap\\(\\) before record"), record(predictor, state):
        handle = sk.wrap(predictor)
    handle.unwrap()
    handle = sk.wrap(predictor)
    with pytest.raises(RuntimeError, match="unwrap\\(\\) after it"), record(predictor, state):
        handle.unwrap()
    assert not predictor.sam_mask_decoder._forward_hooks
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    assert len(list(predictor.propagate_in_video(state, max_frame_num_to_track=2))) == 3
    with pytest.raises(TypeError, match=r"cannot wrap builtins\.dict"), record({}, state):
        pass


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"method": sk.KeyframeMemory(sk.Keyframes(5, evict=LeastUsed()))}, "AttentionShare.*run it with SAM 2"),
        ({"method": sk.KeyframeMemory(sk.Keyframes(5, read=DropRedundant()))}, "CellCosine.*run it with SAM 2"),
        ({"method": sk.KeyframeMemory(sk.Keyframes(9, read=Reconstruct()))}, "ImageCosine.*run it with SAM 2"),
        ({"measure": (Stability(delta=0.5),)}, r"Stability\(0.5\)|Stability.delta=0.5"),
        ({"prompts": {1: [4]}}, "a recording has its own"),
    ],
)
def test_nor_what_a_recording_does_not_hold(predictor: Any, clip: Any, choices: dict[str, Any], words: str) -> None:
    state = sk.init_state(predictor, clip.frames[:3])
    with record(predictor, state) as recording:
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        list(predictor.propagate_in_video(state))
    with pytest.raises(ValueError, match=words):
        replay(clip.frames, recording, **choices)
