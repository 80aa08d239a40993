"""Replay over masks from elsewhere: what is known of them, what they would take, and what they cannot tell."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memories import memory

import sam2_keyframe as sk
from sam2_keyframe.attention.maths import Pool
from sam2_keyframe.bank.compression import Int8
from sam2_keyframe.replay import Geometry, Recording, from_masks, replay
from sam2_keyframe.rules.eviction import LeastSignificant, LeastUsed, MostRedundant, Oldest, Random
from sam2_keyframe.rules.motion import Kalman
from sam2_keyframe.rules.retrieval import Relevant
from sam2_keyframe.scorers import SSIM, Combine, Distractor, FeatureShift, MaskIoU, Novelty, Stability


def test_true_masks_in_every_form_say_the_same(clip: Any) -> None:
    given = [clip.masks, torch.from_numpy(clip.masks), {i: clip.masks == i for i in (1, 2)}, from_masks(clip.masks)]
    first, *others = [replay(clip.frames, masks, "adaptive") for masks in given]
    assert all(repr(other.timeline()) == repr(first.timeline()) for other in others)
    assert first.stats.keys() == {1, 2}


def test_true_masks_have_unknown_quality_and_no_object_where_they_are_empty() -> None:
    masks = np.zeros((12, 40, 60), bool)
    masks[2:6, 5:20, 5:20] = masks[9:, 20:35, 30:50] = True
    result = replay(None, masks, change=0.2)
    rows = {row.frame_idx: row for row in result.stats[1].rows}
    assert list(rows) == list(range(3, 12)), "tracked from its first frame on"
    assert result.prompts == {1: [2]}
    assert all(math.isnan(rows[t].scores["object_score"]) for t in (3, 5, 9))
    assert all(rows[t].scores["object_score"] < -10 for t in (6, 8))
    assert result.keyframes == {1: [9]}, "moved; the empty ones are new as well, and refused by the gate"
    assert replay(None, masks, change=0.2, prompts={1: [2, 9]}).keyframes == {1: []}


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
    others = sk.Others(minor, codec=sk.Downsample(2))
    method = memory(sk.MaskIoU() > keep, n=min(capacity, 5 - minor), evict=evict, codec=Int8(), others=others)
    result = replay(None, masks, method, geometry=Geometry(64, 8, 4, 16, 8))
    for row, held in zip(result.stats[1].rows, result.held[1], strict=True):
        assert len(held) <= method.keyframes.n + minor + 1
        assert len(row.attended) <= 7
        assert 0 in row.attended, "the prompted frame is always there"
        assert all(t < row.frame_idx for t in [*row.attended, *held])
        assert row.memory.frames <= 1 + 6 + method.keyframes.n + minor


# -- what cannot be had ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"change": FeatureShift() > 0.1}, "FeatureShift.*the object pointer.*recording.npz"),
        ({"change": Combine((MaskIoU(), Novelty("memory"))) > 0.1}, "^Novelty.*the memory features.*recording.npz"),
        ({"measure": (FeatureShift("image"),)}, "FeatureShift.*the image features"),
        ({"measure": (Stability(),)}, "Stability.*logits"),
        ({"measure": (Distractor(),)}, "Distractor.*the candidate masks"),
        ({"method": memory(evict=LeastUsed())}, "AttentionShare"),
        ({"method": memory(evict=MostRedundant())}, "DescriptorCosine.*the memory features"),
        ({"method": memory(read=Relevant())}, "Relevant.*replay read=Nearest"),
        ({"choice": Kalman()}, "Kalman.*held fixed"),
        ({"change": SSIM() > 0.1}, "give the video"),
        ({"keyframes": 9}, "num_maskmem - 1"),
        ({"prompts": {1: [4]}}, "no pixel on frame 4"),
        ({"prompts": {3: [0]}}, "no object 3"),
    ],
)
def test_what_masks_alone_cannot_tell_is_refused(choices: dict[str, Any], words: str) -> None:
    masks = np.zeros((6, 16, 16), bool)
    masks[:4, 4:9, 4:9] = True
    with pytest.raises(ValueError, match=words):
        replay(None, masks, **choices)


@pytest.mark.parametrize("frames", [3, 7])
def test_masks_of_another_video_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"the video has {frames} frames, the masks 5"):
        replay(np.zeros((frames, 8, 8, 3), np.uint8), np.ones((5, 8, 8), int))


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


def test_scores_that_masks_alone_do_not_have_are_named() -> None:
    masks = np.zeros((12, 40, 60), bool)
    masks[2:10, 5:20, 5:20] = True
    for method, unknown in (
        ("samurai", ["predicted_iou"]),
        ("sam3", ["object_score", "predicted_iou"]),
        (memory(sk.Visible() & ~(sk.PredictedIoU() > 0.7)), ["predicted_iou"]),
        (memory(sk.PredictedIoU() > 0), ["predicted_iou"]),
        (memory(sk.Visible(2.0)), ["object_score"]),
        ("keyframe", []),
        ("window", []),
        ("dam4sam_ram", []),
    ):
        result = replay(None, masks, method)
        assert result.unknown == unknown, method
        assert result.summary()["unknown"] == unknown
        assert ("count on none of its keyframes" in repr(result)) == bool(unknown)
