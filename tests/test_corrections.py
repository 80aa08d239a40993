"""Corrected frames in the bank: held, bounded, given back; and what a pass over them leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor
from memories import memory

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY


def _start(predictor: Any, folder: Any, clip: Any, last: int) -> Any:
    state = predictor.init_state(str(folder))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    _track(predictor, state, 0, last)
    return state


def _track(predictor: Any, state: Any, start: int, last: int) -> dict[int, torch.Tensor]:
    tracking = predictor.propagate_in_video(state, start_frame_idx=start, max_frame_num_to_track=last - start)
    return {t: masks.clone() for t, _, masks in tracking}


def _correct(predictor: Any, state: Any, clip: Any, frame_idx: int) -> None:
    moved = np.roll(clip.masks[frame_idx] == 1, 30, 1)
    predictor.add_new_mask(state, frame_idx, 1, torch.from_numpy(moved))


def _selection(state: Any) -> Any:
    return state["output_dict_per_obj"][0][KEY].selection


def _row(state: Any, frame_idx: int) -> Any:
    return next(row for row in reversed(sk.memory_stats(state)[1].rows) if row.frame_idx == frame_idx)


def test_many_corrections_do_not_crowd_out_keyframes(predictor: Any, clip_folder: Any, clip: Any) -> None:
    with sk.wrap(predictor, memory(sk.EveryNth(2), n=2, others=sk.Others(3))):
        state = _start(predictor, clip_folder, clip, 8)
        for frame_idx in range(1, 6):
            _correct(predictor, state, clip, frame_idx)
        _track(predictor, state, 8, 23)
    assert set(_selection(state).corrected) == {1, 2, 3, 4, 5}
    attended = set(_row(state, 23).attended)
    assert attended & {1, 2, 3, 4, 5} == {3, 4, 5}  # the nearest, half of the slots at most
    assert {18, 20} & attended
    assert len(attended) == 7


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keyframe", "fifo", "every_nth", "samurai"])
def test_a_correction_is_protected_until_it_is_cleared(
    method: str, predictor: Any, clip_folder: Any, clip: Any
) -> None:
    with sk.wrap(predictor, method):
        state = _start(predictor, clip_folder, clip, 12)
        before = _track(predictor, state, 0, 12)
        _correct(predictor, state, clip, 8)
        kept = _track(predictor, state, 0, 12)
        assert list(_selection(state).corrected) == [8]
        predictor.clear_all_prompts_in_frame(state, 8, 1)
        again = _track(predictor, state, 0, 12)
    assert not _selection(state).corrected
    assert not torch.equal(kept[8], before[8])
    assert torch.equal(again[8], before[8])


def test_a_correction_ahead_does_not_count_as_the_last_keyframe(predictor: Any, clip_folder: Any, clip: Any) -> None:
    with sk.wrap(predictor, memory(sk.MinGap(3), n=2, others=sk.Others(3))):
        state = _start(predictor, clip_folder, clip, 20)
        _track(predictor, state, 0, 4)
        _correct(predictor, state, clip, 15)
        assert _selection(state).last_key == 3
        _track(predictor, state, 5, 20)
        rows = [_row(state, t) for t in range(5, 15)]
        assert [row.frame_idx for row in rows if row.keyframe] == [6, 9, 12]
        assert _row(state, 18).keyframe  # three after the corrected frame, which the pass went over
        assert not _row(state, 16).keyframe


def test_a_pass_over_a_corrected_frame_leaves_its_pointer(predictor: Any, clip_folder: Any, clip: Any) -> None:
    for pointers in ("selected", sk.Ranked(sk.Visible())):
        with sk.wrap(predictor, memory(~sk.Always(), n=2, pointers=pointers)):
            state = _start(predictor, clip_folder, clip, 10)
            _correct(predictor, state, clip, 6)
            _track(predictor, state, 0, 10)
            bank = state["output_dict_per_obj"][0][KEY]
            moment = _selection(state).last.then()
            read = bank.selection.pointers(moment, bank.non_cond.keys(), prompted=True)
        assert 6 in read.values()


def test_a_stream_holds_few_corrections(clip: Any) -> None:
    with sk.Stream(make_predictor(), method="keyframe", max_prompts=4) as stream:
        for t, frame in enumerate(clip.frames):
            stream.step(frame, masks={1: clip.masks[0] == 1} if t == 0 else None)
            if t and t % 2 == 0:
                stream.correct(points={1: ([[40.0, 40.0]], [1])})
        (bank,) = (output[KEY] for output in stream._state["output_dict_per_obj"].values())
    assert list(bank.selection.corrected) == [16, 18, 20, 22]


def test_the_newest_memory_stays_whole_wherever_it_is_shown(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Without its pointer the newest memory goes in as an anchor: prompt and newest whole, five of a quarter each."""
    pointer_tokens: list[int] = []
    predictor.memory_attention.register_forward_pre_hook(
        lambda module, args, kwargs: pointer_tokens.append(kwargs["num_obj_ptr_tokens"]), with_kwargs=True
    )
    shelves = sk.Recent(1), sk.Keyframes(2, sk.EveryNth(4)), sk.Others(3)
    for pointers in ("recent", "selected"):
        with sk.wrap(predictor, sk.KeyframeMemory(*shelves, attend=sk.Pool(2), pointers=pointers)):
            row = _row(_start(predictor, clip_folder, clip, 20), 20)
        assert len(row.attended) == 7
        assert row.memory.tokens - pointer_tokens[-1] == 2 * 64 + 5 * 16
