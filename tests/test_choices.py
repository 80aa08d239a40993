"""The choices of a method, each through the real predictor: what it changes, and that it changes nothing else."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor
from memories import memory
from sessions import assert_equal, run

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.bank.reading import closest
from sam2_keyframe.bank.store import LEAST, MergedMemories
from sam2_keyframe.patches.frames import Frames
from sam2_keyframe.rules.motion import Track


def _state(predictor: Any, folder: Any, clip: Any, last: int = 23, prompts: tuple[int, ...] = (0,)) -> Any:
    state = predictor.init_state(str(folder))
    for frame_idx in prompts:
        predictor.add_new_mask(state, frame_idx, 1, torch.from_numpy(clip.masks[frame_idx] == 1))
    for _ in predictor.propagate_in_video(state, max_frame_num_to_track=last):
        pass
    return state


@pytest.mark.slow
@pytest.mark.parametrize("session", ["forward", "two_objects", "reverse", "correction"])
def test_stride_is_what_sam2_does_with_that_setting(session: str, clip_folder: Any, clip: Any) -> None:
    expected = run(make_predictor(memory_temporal_stride_for_eval=3), session, clip_folder, clip)
    predictor = make_predictor()
    with sk.wrap(predictor, "stride", r=3, store="all"):
        assert_equal(run(predictor, session, clip_folder, clip), expected)
    with pytest.raises(AssertionError):
        assert_equal(run(make_predictor(), session, clip_folder, clip), expected)


@pytest.mark.parametrize("protect", [True, False])
def test_a_corrected_frame_is_protected(protect: bool, predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Held while later keyframes come and go, and not overwritten by a second pass; SAM 2 overwrites it."""
    with sk.wrap(predictor, memory(sk.Visible(), n=2, others=sk.Others(3, sk.Visible()), protect_corrections=protect)):
        state = _state(predictor, clip_folder, clip, last=10)
        _, _, shown = predictor.add_new_mask(state, 6, 1, torch.from_numpy(np.roll(clip.masks[6] == 1, 40, 1)))
        again = {t: masks.clone() for t, _, masks in predictor.propagate_in_video(state, start_frame_idx=0)}
        rows = {row.frame_idx: row for row in sk.memory_stats(state)[1].rows}
    assert torch.equal(again[6] > 0, shown > 0) == protect
    assert (6 in rows[20].attended) == protect
    assert len(rows[20].attended) <= 7
    assert len(state["output_dict_per_obj"][0][KEY].selection.buffer) == 2


def test_conditioning_frames_are_capped(predictor: Any, clip_folder: Any, clip: Any) -> None:
    with sk.wrap(predictor, "window", prompts=sk.Prompts(2)):
        state = _state(predictor, clip_folder, clip, prompts=(0, 4, 9, 14, 19))
        rows = {row.frame_idx: set(row.attended) & {0, 4, 9, 14, 19} for row in sk.memory_stats(state)[1].rows}
    assert rows[3] == {0, 4}
    assert rows[8] == {0, 9}
    assert rows[11] == {0, 9}
    assert rows[13] == {0, 14}
    assert rows[23] == {0, 19}
    assert set(state["output_dict_per_obj"][0]["cond_frame_outputs"]) == {0, 4, 9, 14, 19}  # none is let go


def _seen(predictor: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    predictor.memory_attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["memory"][:, 0].clone()), with_kwargs=True
    )
    return seen


def test_retrieved_memories_are_those_told(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """What SAM 2 is given at each frame is what the statistics say, and not just the newest."""
    seen = _seen(predictor)
    stored: dict[int, torch.Tensor] = {}
    original = predictor._encode_new_memory

    def noted(*args: Any, **kwargs: Any) -> Any:
        features, encoding = original(*args, **kwargs)
        stored[len(stored)] = features.to(torch.bfloat16).clone()
        return features, encoding

    predictor._encode_new_memory = noted
    with sk.wrap(predictor, memory(sk.Always(), n=12, read=sk.Relevant(), others=sk.Others(3))):
        state = _state(predictor, clip_folder, clip)
        rows = list(sk.memory_stats(state)[1].rows)
    nearest = 0
    for row, given in zip(rows, seen, strict=True):
        # Conditioning frames first, then from the farthest to the newest.
        expected = torch.cat([stored[t].flatten(2)[0].T for t in row.attended]).float()
        assert torch.equal(given[: len(expected)].float(), expected)
        nearest += row.attended[1:] == tuple(range(row.frame_idx - len(row.attended) + 1, row.frame_idx))
    assert nearest < len(rows)
    assert len(rows[-1].attended) == 7


def test_compressed_memories_are_what_the_codec_restores(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """SAM 2 reads the restored keyframes, the bytes told are those of the payloads, and after undoing it can go on."""
    codec = sk.Chain(sk.PCA(0.25), sk.Int8())
    told = {}
    for name, codec_ in (("whole", sk.Identity()), ("packed", codec)):
        with sk.wrap(predictor, memory(sk.EveryNth(2), codec=codec_)):
            state = _state(predictor, clip_folder, clip)
            bank = state["output_dict_per_obj"][0][KEY]
            told[name] = sk.memory_stats(state)[1].last.memory.nbytes
            if name == "packed":
                assert len(bank.store.payloads) == len(bank.selection.buffer) == 5
                sizes = [payload.nbytes for _, payload in bank.store.payloads.values()]
                blank = [bank.store.entries[t]["maskmem_features"].numel() for t in bank.store.payloads]
                assert blank == [0] * 5
    whole = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]["maskmem_features"].nbytes
    assert told["whole"] - told["packed"] == 5 * whole - sum(sizes)
    assert sum(sizes) < 5 * whole / 3  # so few cells leave the basis its share
    assert not bank.store.payloads
    entry = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][16]
    assert entry["maskmem_features"].shape[1:] == (32, 8, 8)
    for _, _, masks in predictor.propagate_in_video(state, start_frame_idx=22):
        assert masks.isfinite().all()


def test_motion_may_choose_another_mask(predictor: Any, clip_folder: Any, clip: Any, monkeypatch: Any) -> None:
    """Without weight it changes nothing; whatever it ranks highest is the mask that SAM 2 takes; its hook is undone."""
    stock = run(predictor, "two_objects", clip_folder, clip)
    with sk.wrap(predictor, "stock", choice=sk.Kalman(weight=0.0, stable=3)):
        assert_equal(run(predictor, "two_objects", clip_folder, clip), stock)
    with sk.wrap(predictor, "samurai", kalman=True, choice=sk.Kalman(stable=3, floor=0.0)):
        state = _state(predictor, clip_folder, clip)
    overlaps = [row.scores["kalman_overlap"] for row in sk.memory_stats(state)[1].rows]
    assert all(np.isnan(overlaps[:3]))
    assert any(0 < overlap <= 1 for overlap in overlaps[3:])
    worst: list[torch.Tensor] = []

    def choose(self: Track, masks: torch.Tensor, ious: torch.Tensor) -> Any:
        worst.append(masks[0, ious[0].argmin()].clone())
        return -ious, torch.zeros(())

    monkeypatch.setattr(Track, "choose", choose)
    with sk.wrap(predictor, "samurai", kalman=True):
        state = predictor.init_state(str(clip_folder))
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        worst.clear()
        for t, _, _ in predictor.propagate_in_video(state, max_frame_num_to_track=5):
            if t:
                kept = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][t]["pred_masks"][0, 0]
                full = torch.nn.functional.interpolate(kept[None, None], scale_factor=4, mode="bilinear")
                assert torch.equal(full[0, 0] > 0, worst[-1] > 0), "motion sees masks as the memory encoder does"
    assert not predictor.sam_mask_decoder._forward_hooks


def test_scenes_keep_the_frame_before(predictor: Any, clip_folder: Any, clip: Any) -> None:
    with sk.wrap(predictor, memory(sk.Frames((7, 15)), before=sk.Always())):
        state = _state(predictor, clip_folder, clip)
        row = sk.memory_stats(state)[1].last
    assert {6, 7, 14, 15} <= set(row.attended)


@pytest.mark.parametrize("evict", [sk.Oldest(), sk.MostRedundant()], ids=repr)
def test_a_frame_kept_before_a_keyframe_is_no_minor_one_any_more(
    evict: Any, predictor: Any, clip_folder: Any, clip: Any
) -> None:
    others = sk.Others(2)
    with sk.wrap(predictor, memory(sk.EveryNth(3), n=3, before=sk.Always(), evict=evict, others=others, fill=False)):
        state = _state(predictor, clip_folder, clip)
        held = state["output_dict_per_obj"][0][KEY].selection.held()
        assert len(held) == len(set(held)) > 3
    for row in sk.memory_stats(state)[1].rows:
        assert len(row.attended) == len(set(row.attended))


def test_ranks_that_bfloat16_cannot_tell_apart_are_told_apart(
    predictor: Any, clip_folder: Any, clip: Any, monkeypatch: Any
) -> None:
    seen = {}
    for name, ranks in (("near", [0.7002, 0.6698, 0.7008]), ("far", [0.0, 0.0, 1.0]), ("other", [1.0, 0.0, 0.0])):
        ranking = torch.tensor([ranks])
        monkeypatch.setattr(Track, "choose", lambda *given, ranking=ranking: (ranking, torch.zeros(())))
        with sk.wrap(predictor, "samurai", kalman=True), torch.autocast("cpu", torch.bfloat16):
            seen[name] = run(predictor, "forward", clip_folder, clip)
    assert_equal(seen["near"], seen["far"])
    with pytest.raises(AssertionError, match="differ"):
        assert_equal(seen["near"], seen["other"])


def test_consolidated_memories_are_weighted_means(predictor: Any) -> None:
    held = MergedMemories(1, of=5)
    values = [(float(i), weight) for i, weight in enumerate((2.0, 0.0, 1.0, 4.0, 0.5, 3.0, 1.0))]
    for value, weight in values:
        held.add({"maskmem_features": torch.full((1, 2, 3, 3), value, dtype=torch.bfloat16), "obj_ptr": None}, weight)
    (entry,) = held.entries
    total = sum(max(weight, LEAST) for _, weight in values)
    mean = sum(value * max(weight, LEAST) for value, weight in values) / total
    assert entry["maskmem_features"].dtype == torch.bfloat16
    torch.testing.assert_close(entry["maskmem_features"].float().mean().item(), mean, rtol=0.01, atol=0)
    held.clear()
    assert len(held) == 0 == len(held.tensors())


def test_the_proxy_is_the_first_layer_of_memory_attention(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Against SAM 2's own rotary projections of the first layer, for the object's strongest positions."""
    from sam2.modeling.position_encoding import apply_rotary_enc

    from sam2_keyframe.rules.similarity import foreground_queries

    state = _state(predictor, clip_folder, clip, last=6)
    output = state["output_dict_per_obj"][0]
    entry = output["non_cond_frame_outputs"][6]
    with torch.inference_mode():
        image_embed = predictor.forward_image(state["images"][6][None])["backbone_fpn"][-1]
        memories = [output["non_cond_frame_outputs"][t]["maskmem_features"].float() for t in (1, 3, 5)]
        shares = Frames(predictor)._attention(image_embed, entry["pred_masks"], entry["maskmem_pos_enc"], memories)
        layer = predictor.memory_attention.layers[0]
        cross = layer.cross_attn_image
        tokens = image_embed.flatten(2).transpose(1, 2)
        keys = torch.cat([(m + entry["maskmem_pos_enc"][-1].float()).flatten(2).transpose(1, 2) for m in memories], 1)
        phases = cross.compute_cis(end_x=8, end_y=8)
        query, key = apply_rotary_enc(
            cross.q_proj(layer.norm2(tokens))[:, None], cross.k_proj(keys)[:, None], phases, repeat_freqs_k=True
        )
        weights = (query[0, 0] @ key[0, 0].T / query.shape[-1] ** 0.5).softmax(-1)
        _, index = foreground_queries(image_embed, entry["pred_masks"])
        expected = weights[index].mean(0).view(3, -1).sum(1)
    torch.testing.assert_close(shares, expected, atol=1e-5, rtol=1e-4)


def test_the_cap_is_sam2s_own() -> None:
    assert closest(5, dict.fromkeys((0, 3, 8, 9)), 2) == [3, 8]


def test_significance_score_obj_ptr_above_threshold(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Pointers that moved little are not read: `significance_score(obj_ptr) > threshold`; never fewer than one."""
    read: list[int] = []
    predictor.memory_attention.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["num_obj_ptr_tokens"]), with_kwargs=True
    )
    shift = sk.FeatureShift(feature="pointer", reference="previous")
    with sk.wrap(predictor, "window", measure=(shift,)):
        moved = {
            row.frame_idx: row.scores["feature_shift"]
            for row in sk.memory_stats(_state(predictor, clip_folder, clip))[1].rows
        }
    tokens = read[1] - read[0]  # of one pointer: the prompt's alone, then one more
    threshold = float(np.median(list(moved.values())))
    for above in (threshold, 10.0):
        read.clear()
        with sk.wrap(predictor, "window", measure=(shift,), pointers=shift > above):
            rows = list(sk.memory_stats(_state(predictor, clip_folder, clip))[1].rows)
        moved = {row.frame_idx: row.scores["feature_shift"] for row in rows}
        for row, count in zip(rows, read, strict=True):
            window = range(max(1, row.frame_idx - 15), row.frame_idx)
            assert count == tokens * (1 + sum(moved[t] > above for t in window))
        assert min(read) == tokens  # the prompt's
    assert max(read) == tokens


def test_an_anchor_is_remembered_as_a_prompted_frame_is(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """DAM4SAM encodes an anchor's memory again with its mask binarised; a frame that is none keeps its own."""
    soft: dict[int, torch.Tensor] = {}
    hard: dict[int, torch.Tensor] = {}
    model = type(predictor)

    def encode(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = model._encode_new_memory(self, *args, **kwargs)
        (hard if kwargs["is_mask_from_pts"] else soft)[len(seen)] = out[0].clone()
        return out

    seen: list[int] = []
    predictor._encode_new_memory = types.MethodType(encode, predictor)
    anchors = sk.KeyframeMemory(
        sk.Recent(6, sk.Area() > 0, every=5), sk.Keyframes(3, sk.EveryNth(4), code="prompt"), pointers=sk.Area() > 0
    )
    with sk.wrap(predictor, anchors):
        state = predictor.init_state(str(clip_folder))
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for t, _, _ in predictor.propagate_in_video(state, max_frame_num_to_track=12):
            seen.append(t)
        bank = state["output_dict_per_obj"][0][KEY]
        bank.settle()
        held = bank.selection.keyframes()
        assert held == [4, 8, 12]
        for t in (4, 8, 10, 12):
            features = bank.store.entry(t)["maskmem_features"]
            assert torch.equal(features, (hard if t in held else soft)[t].bfloat16())
            assert not torch.equal(hard[t], soft[t])
