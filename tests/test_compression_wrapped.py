"""Smaller memories through wrap(): what is stored, read and counted, in every kind of session."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_predictor
from sessions import SESSIONS, run

import sam2_keyframe as sk
from sam2_keyframe.attention.maths import Pool, SalientTokens
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.bank.compression import PCA, Chain, Downsample, Int8

SMALL, COARSE = Chain(PCA(0.25), Int8()), Downsample(2)


def packed(keyframes: int = 3, others: int = 2, small: Any = SMALL, coarse: Any = COARSE, **choices: Any) -> Any:
    """Return a memory whose keyframes do not depend on the masks."""
    shelves = sk.Keyframes(keyframes, sk.EveryNth(2), codec=small), sk.Others(others, codec=coarse)
    return sk.KeyframeMemory(sk.Recent(1), *shelves, **choices)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_predictor()


def bank_of(state: Any, obj_idx: int = 0) -> Any:
    return state["output_dict_per_obj"][obj_idx][KEY]


@pytest.mark.slow
@pytest.mark.parametrize("codec", [Int8(), PCA(0.25), Chain(PCA(0.25), Int8()), Downsample(2), sk.Offload()], ids=repr)
def test_payloads_take_exactly_what_the_statistics_say(codec: Any, model: Any, clip_folder: Any, clip: Any) -> None:
    rows, saved = {}, []
    for compressor in (sk.Identity(), codec):
        with sk.wrap(model, packed(others=0, small=compressor)):
            state = model.init_state(str(clip_folder))
            model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
            for _ in model.propagate_in_video(state):
                bank = bank_of(state)
                whole = bank.store._blank.shape[1] * 8 * 8 * 2 if bank.store._blank is not None else 0
                if compressor == codec:
                    saved.append(sum(whole - payload.nbytes for _, payload in bank.store.payloads.values()))
                    assert len(bank.store.payloads) <= 3
        rows[compressor] = sk.memory_stats(state)[1].rows
    plain, small = rows[sk.Identity()], rows[codec]
    assert [row.attended for row in plain] == [row.attended for row in small]
    assert [a.memory.nbytes - b.memory.nbytes for a, b in zip(plain, small, strict=True)] == saved[1:]
    assert (max(saved) > 0) == (codec != sk.Offload())


@pytest.mark.slow
@pytest.mark.parametrize("slots", [(5, 2), (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("session", SESSIONS)
def test_a_codec_that_loses_nothing_changes_no_mask(
    session: str, slots: tuple[int, int], model: Any, clip_folder: Any, clip: Any
) -> None:
    """A compressed frame that leaves its buffer while it is still among the newest fills a free slot all the same."""
    seen = []
    for codec in (sk.Identity(), sk.Offload()):
        with sk.wrap(model, packed(*slots, small=codec, coarse=codec)):
            seen.append(run(model, session, clip_folder, clip)[0])
    for (*there, ours), (*expected, theirs) in zip(*seen, strict=True):
        assert there == expected
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("codec", [PCA(0.4), PCA(4, basis="running"), Chain(PCA(0.25), Int8())], ids=repr)
def test_a_second_pass_gives_the_masks_of_the_first(codec: Any, model: Any, clip: Any) -> None:
    state = sk.init_state(model, clip.frames)
    with sk.wrap(model, "compact", codec=codec):
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        first, second = ([m.clone() for *_, m in model.propagate_in_video(state)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_minor_frames_are_held_compressed_and_attended_to(model: Any, clip_folder: Any, clip: Any) -> None:
    with sk.wrap(model, packed()):
        state = run(model, "forward", clip_folder, clip)[2][0]
        held = dict(bank_of(state).store.payloads)
    codecs = {codec for codec, _ in held.values()}
    assert codecs == {SMALL, COARSE}
    assert set(held) <= set(sk.memory_stats(state)[1].rows[-1].attended) | {min(held)}


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS)
def test_compressed_and_pooled_in_every_session(session: str, model: Any, clip_folder: Any, clip: Any) -> None:
    scheme = SalientTokens(0.1) if session in ("correction", "both_ways", "offloaded_state") else Pool(2)

    def bounded(part: int) -> None:
        for bank in handle.host.banks:
            assert len(bank.store.payloads) <= 5 + len(bank.selection.corrected)

    with sk.wrap(model, packed(attend=scheme)) as handle:
        seen, _, states = run(model, session, clip_folder, clip, bounded)
    assert all(masks.isfinite().all() for *_, masks in seen)
    assert sum(stats.keyframes for state in states for stats in sk.memory_stats(state).values()) > 2


def test_unwrap_restores_what_was_compressed(clip_folder: Any, clip: Any) -> None:
    model = make_predictor()
    handle = sk.wrap(model, packed(attend=Pool(2)))
    state = run(model, "forward", clip_folder, clip)[2][0]
    bank = bank_of(state)
    stored = {t: codec.restore(payload) for t, (codec, payload) in bank.store.payloads.items()}
    tracked = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    assert len(stored) >= 4
    assert all(tracked[t]["maskmem_features"].shape[2] == 0 for t in stored)
    handle.unwrap()
    for t, features in stored.items():
        assert torch.equal(tracked[t]["maskmem_features"], features)
        assert tracked[t]["maskmem_pos_enc"][-1].shape[-2:] == (8, 8)
    masks = [m.clone() for _, _, m in model.propagate_in_video(state, start_frame_idx=14, max_frame_num_to_track=4)]
    assert all(m.isfinite().all() for m in masks)
    assert masks[1].std() > 0
