"""Replay against live runs: the same keyframes, attended frames and occupancy; and what it refuses."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor
from hypothesis import given, settings
from hypothesis import strategies as st

import sam2_keyframe as sk
from sam2_keyframe.attention import Pool
from sam2_keyframe.buffer import LeastSignificant, LeastUsed, MostRedundant, Oldest, Random
from sam2_keyframe.compression import PCA, Int8
from sam2_keyframe.kalman import Kalman
from sam2_keyframe.replay import Geometry, Recording, from_masks, record, replay
from sam2_keyframe.retrieval import DropRedundant, Reconstruct, Relevant
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
    "keyframe": sk.make_method("keyframe", keep=0.2),
    "adaptive": sk.make_method("adaptive"),
    "stock": sk.make_method("stock"),
    "window": sk.make_method("window"),
    "flow": sk.KeyframeMemory(scorer=Combine((MaskIoU(), OpticalFlow())), keep=0.3, gate=sk.Always()),
    "features": sk.KeyframeMemory(
        scorer=Novelty("memory"),
        keep=0.001,
        gate=sk.Always(),
        evict=MostRedundant(),
        compressor=PCA(4),
        capacity=3,
        measure=(FeatureShift(), FeatureShift("image", name="image_shift"), Distractor(), Stability()),
    ),
    "ranked": sk.KeyframeMemory(
        keep=0.1,
        gate=sk.Always(),
        pointers="ranked",
        temporal="prompt",
        capacity=9,
        minor=2,
        attend=Pool(2),
        conditioning=1,
        consolidate=2,
    ),
    "dam4sam": sk.make_method("dam4sam"),
    "ssim": sk.KeyframeMemory(scorer=SSIM(region="object"), keep=0.05, gate=sk.Always(), evict=LeastSignificant()),
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


@pytest.fixture(scope="module")
def predictor() -> Any:
    return make_predictor()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("session", ["two_objects", "reverse", "later_prompt"])
def test_a_replay_repeats_the_live_run(predictor: Any, clip: Any, name: str, session: str) -> None:
    stats, recording = live(predictor, clip, METHODS[name], session)
    assert_same(replay(clip.frames, recording, METHODS[name]), stats)


@pytest.mark.parametrize("session", ["both_ways", "corrected", "cleared"])
@pytest.mark.parametrize("name", ["keyframe", "window", "ranked"])
def test_so_it_does_in_any_session(predictor: Any, clip: Any, name: str, session: str) -> None:
    stats, recording = live(predictor, clip, METHODS[name], session)
    assert_same(replay(clip.frames, recording, METHODS[name]), stats)


@pytest.mark.parametrize("scorer", [MaskIoU(), FeatureShift()])
def test_five_thresholds_each_with_its_own_live_run(predictor: Any, clip: Any, scorer: Any) -> None:
    counts = []
    for keep in (0.0, 0.003, 0.01, 0.1, 0.3):
        method = sk.KeyframeMemory(scorer=scorer, keep=keep, gate=sk.Always())
        stats, recording = live(predictor, clip, method, "two_objects")
        result = replay(clip.frames, recording, method)
        assert_same(result, stats)
        counts.append(len(result.keyframes[1]))
    assert len(set(counts)) > 2, "the thresholds are too alike to tell anything"
    assert counts == sorted(counts, reverse=True)


def test_other_choices_on_the_same_recording(predictor: Any, clip: Any) -> None:
    """A replay of another method than the run's is what that method does over the run's masks."""
    _, recording = live(predictor, clip, "stock", "two_objects")
    scores = [row.scores["mask_iou"] for row in replay(clip.frames, recording, "adaptive").stats[1].rows]
    assert all(0 <= score <= 1 for score in scores)
    few, many = (replay(None, recording, keep=keep, gate=sk.Always()).keyframes[1] for keep in (0.3, 0.05))
    assert 0 < len(few) < len(many)
    for record_, mask in zip(recording.steps, [1, 2] * FRAMES, strict=False):
        assert record_.obj_id == mask


def test_what_was_saved_plays_as_what_was_recorded(predictor: Any, clip: Any, tmp_path: Path) -> None:
    method = sk.KeyframeMemory(scorer=FeatureShift("image"), keep=0.01, gate=sk.Always(), measure=(Stability(),))
    stats, recording = live(predictor, clip, method, "later_prompt")
    recording.save(tmp_path / "run.npz")
    assert_same(replay(clip.frames, tmp_path / "run.npz", method), stats)
    assert (tmp_path / "run.npz").stat().st_size < 5000 * len(recording.steps)
    frames, vectors = Recording.load(tmp_path / "run.npz").descriptors(1, "object/pointer")
    assert frames == list(range(FRAMES))
    assert vectors.shape == (FRAMES, recording.geometry.pointer_dim)


def test_the_recorded_iou_is_that_of_the_mask_chosen_by_motion(predictor: Any, clip: Any) -> None:
    stats, recording = live(predictor, clip, sk.make_method("samurai", kalman=True))
    recorded = {step.frame_idx: step.scores["predicted_iou"] for step in recording.steps}
    assert [recorded[row.frame_idx] for row in stats[1].rows] == [row.scores["predicted_iou"] for row in stats[1].rows]


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
    with pytest.raises(TypeError, match="cannot record dict"), record({}, state):
        pass


# -- masks from elsewhere --------------------------------------------------------------------------------------------


def test_true_masks_in_every_form_say_the_same(clip: Any) -> None:
    given = [clip.masks, torch.from_numpy(clip.masks), {i: clip.masks == i for i in (1, 2)}, from_masks(clip.masks)]
    first, *others = [comparable(replay(clip.frames, masks, "adaptive").stats) for masks in given]
    assert all(other == first for other in others)
    assert first.keys() == {1, 2}


def test_true_masks_have_unknown_quality_and_no_object_where_they_are_empty() -> None:
    masks = np.zeros((12, 40, 60), bool)
    masks[2:6, 5:20, 5:20] = masks[9:, 20:35, 30:50] = True
    result = replay(None, masks, keep=0.2)
    rows = {row.frame_idx: row for row in result.stats[1].rows}
    assert list(rows) == list(range(3, 12)), "tracked from its first frame on"
    assert result.prompts == {1: [2]}
    assert all(math.isnan(rows[t].scores["object_score"]) for t in (3, 5, 9))
    assert all(rows[t].scores["object_score"] < -10 for t in (6, 8))
    assert result.keyframes == {1: [9]}, "moved; the empty ones are new as well, and refused by the gate"
    assert replay(None, masks, keep=0.2, prompts={1: [2, 9]}).keyframes == {1: []}


def test_occupancy_is_counted_for_the_official_models() -> None:
    """At 1024 px a memory is 64 x 64 x 64 bfloat16 and its mask 256 x 256 float32; 4,096 tokens, a pointer is four."""
    masks = np.zeros((40, 16, 16), bool)
    masks[:, 4:9, 4:9] = True
    last = replay(None, masks, "stock").stats[1].last
    frame = 64**3 * 2 + 256**2 * 4 + 256 * 4 + 4
    assert (last.memory.frames, last.memory.nbytes, last.memory.tokens) == (40, 40 * frame, 7 * 4096 + 16 * 4)
    small = replay(None, masks, "window", attend=Pool(2), geometry=Geometry(memory_side=32)).stats[1].last
    assert small.memory.tokens == 2 * 1024 + 5 * 256 + 16 * 4
    assert small.memory.nbytes == small.window.nbytes


def test_a_hundred_frames_take_seconds() -> None:
    masks = np.zeros((100, 480, 854), bool)
    for t in range(100):
        masks[t, 100:300, 100 + 5 * t : 300 + 5 * t] = True
    start = time.perf_counter()
    result = replay(None, masks)
    assert time.perf_counter() - start < 10, "0.5 s on an idle core, most of it for making the masks smaller"
    assert 5 < len(result.keyframes[1]) < 50


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    capacity=st.integers(0, 5),
    keep=st.sampled_from([0.0, 0.1, 0.5]),
    evict=st.sampled_from([Oldest(), LeastSignificant(), LeastSignificant(half_life=3.0), Random(1)]),
    minor=st.integers(0, 2),
)
def test_capacity_is_never_exceeded(seed: int, capacity: int, keep: float, evict: Any, minor: int) -> None:
    """Whatever the masks are: small squares here, there and nowhere."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((20, 16, 16), bool)
    for t in range(20):
        y, x, side = rng.integers(0, 12, 3)
        masks[t, y : y + side % 5, x : x + side % 5] = True
    masks[0, 0, 0] = True
    method = sk.KeyframeMemory(
        capacity=min(capacity, 5 - minor), minor=minor, keep=keep, evict=evict, gate=sk.Always(), compressor=Int8()
    )
    result = replay(None, masks, method, geometry=Geometry(64, 8, 4, 16, 8))
    for row, held in zip(result.stats[1].rows, result.held[1], strict=True):
        assert len(held) <= method.capacity + minor + method.recent
        assert len(row.attended) <= 7
        assert 0 in row.attended, "the prompted frame is always there"
        assert all(t < row.frame_idx for t in [*row.attended, *held])
        assert row.memory.frames <= 1 + 6 + method.capacity + minor


# -- what cannot be had ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"scorer": FeatureShift()}, "FeatureShift.*the object pointer.*recording.npz"),
        ({"scorer": Combine((MaskIoU(), Novelty("memory")))}, "^Novelty.*the memory features.*recording.npz"),
        ({"measure": (FeatureShift("image"),)}, "FeatureShift.*the image features"),
        ({"measure": (Stability(),)}, "Stability.*logits"),
        ({"measure": (Distractor(),)}, "Distractor.*the candidate masks"),
        ({"evict": LeastUsed()}, "AttentionShare"),
        ({"evict": MostRedundant()}, "DescriptorCosine.*the memory features"),
        ({"select": Relevant()}, "Relevant.*replay select=Nearest"),
        ({"choice": Kalman()}, "Kalman.*held fixed"),
        ({"scorer": SSIM()}, "give the video"),
        ({"capacity": 9}, "num_maskmem - 1"),
        ({"prompts": {1: [4]}}, "no pixel on frame 4"),
        ({"prompts": {3: [0]}}, "no object 3"),
    ],
)
def test_what_masks_alone_cannot_tell_is_refused(choices: dict[str, Any], words: str) -> None:
    masks = np.zeros((6, 16, 16), bool)
    masks[:4, 4:9, 4:9] = True
    with pytest.raises(ValueError, match=words):
        replay(None, masks, **choices)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"evict": LeastUsed()}, "AttentionShare.*run it with SAM 2"),
        ({"select": DropRedundant()}, "CellCosine.*run it with SAM 2"),
        ({"select": Reconstruct()}, "ImageCosine.*run it with SAM 2"),
        ({"measure": (Stability(delta=0.5),)}, "Stability.delta=0.5"),
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


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (np.zeros((4, 8, 8), int), "no object"),
        (np.ones((8, 8), int), "give \\(T, H, W\\)"),
        (np.ones((4, 8, 8)), "float64"),
        ({1: np.ones((4, 8, 8), bool), 2: np.ones((3, 8, 8), bool)}, "differ in shape"),
        ({1: np.ones((4, 8, 8), int)}, "give bool"),
        ({1: np.zeros((4, 8, 8), bool)}, "no pixel on any frame"),
    ],
)
def test_malformed_masks_are_refused(masks: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replay(None, masks)


def test_files_that_are_no_recording_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    path.write_text("no archive")
    with pytest.raises(ValueError, match="is no recording"):
        Recording.load(path)
    np.savez(path, about=np.frombuffer(b'{"sam2_keyframe": 99}', np.uint8))
    with pytest.raises(ValueError, match="another version"):
        Recording.load(path)
    np.save(tmp_path / "run.npy", np.ones(3))
    with pytest.raises(ValueError, match="is no recording"):
        Recording.load(tmp_path / "run.npy")


def test_a_result_says_that_masks_were_held_fixed(clip: Any) -> None:
    result = replay(clip.frames, clip.masks)
    assert "masks held fixed" in repr(result)
    assert "held fixed" in result.summary()["masks"]
    assert {row["object"] for row in result.timeline()} == {1, 2}
