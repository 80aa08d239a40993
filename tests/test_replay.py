"""Replay against live runs: the same keyframes, attended frames and occupancy; and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor
from hypothesis import given, settings
from hypothesis import strategies as st

import sam2_keyframe as sk
from sam2_keyframe.buffer import LeastSignificant
from sam2_keyframe.compression import Int8
from sam2_keyframe.replay import Geometry, Recording, record, replay
from sam2_keyframe.scorers import SSIM, Combine, MaskIoU, OpticalFlow

FRAMES = 24
METHODS: dict[str, Any] = {
    "keyframe": sk.make_method("keyframe", keep=0.2),
    "adaptive": sk.make_method("adaptive"),
    "stock": sk.make_method("stock"),
    "window": sk.make_method("window"),
    "flow": sk.KeyframeMemory(scorer=Combine((MaskIoU(), OpticalFlow())), keep=0.3, gate=sk.Always()),
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
@pytest.mark.parametrize("name", ["keyframe", "window"])
def test_of_any_session(predictor: Any, clip: Any, name: str, session: str) -> None:
    stats, recording = live(predictor, clip, METHODS[name], session)
    assert_same(replay(clip.frames, recording, METHODS[name]), stats)
