"""Several prompted frames of one object: what later frames are compared with, what is read, counted, held."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor
from memories import memory
from sam2.modeling.sam.transformer import RoPEAttention

import sam2_keyframe as sk
from sam2_keyframe.attention.maths import Foveated, Pool
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.replay import record, replay
from sam2_keyframe.scorers import FrameDifference, MaskIoU, OpticalFlow
from sam2_keyframe.synthetic import make_clip


def _prompted(model: Any, clip: Any, frames: tuple[int, ...], obj_ids: tuple[int, ...] = (1,)) -> Any:
    state = sk.init_state(model, clip.frames)
    for obj_id in obj_ids:
        for frame_idx in frames if obj_id == 1 else frames[:1]:
            model.add_new_mask(state, frame_idx, obj_id, torch.from_numpy(clip.masks[frame_idx] == obj_id))
    return state


@dataclass(frozen=True)
class Against:
    """Tells which frame it is given to compare with."""

    which: str
    name: str = "against"

    def score(self, frame: Any, history: Any) -> torch.Tensor:
        frame.describe("against", lambda: torch.zeros(()))
        reference = getattr(history, self.which)
        return torch.tensor(float("nan") if reference is None else float(reference.frame_idx))


@pytest.mark.parametrize("which", ["keyframe", "previous"])
def test_the_frame_after_a_prompt_is_compared_with_it(which: str, predictor: Any, clip: Any) -> None:
    """Also where the frame before the prompt was a keyframe, which is decided while the frame after it is tracked."""
    with sk.wrap(predictor, memory(sk.Always(), n=2, measure=(Against(which),))):
        state = _prompted(predictor, clip, (0, 5))
        list(predictor.propagate_in_video(state, max_frame_num_to_track=9))
    found = {row.frame_idx: row.scores["against"] for row in sk.memory_stats(state)[1].rows}
    assert found == {1: 0, 2: 1, 3: 2, 4: 3, 6: 5, 7: 6, 8: 7, 9: 8}


def test_replay_compares_with_the_same_frames(predictor: Any, clip: Any) -> None:
    method = memory(sk.Always(), n=2, measure=(MaskIoU(), FrameDifference(reference="previous")))
    state = _prompted(predictor, clip, (0, 5))
    with sk.wrap(predictor, method), record(predictor, state) as recording:
        list(predictor.propagate_in_video(state, max_frame_num_to_track=12))
    played = replay(clip.frames, recording, method).stats[1].rows
    assert played
    for ours, theirs in zip(played, sk.memory_stats(state)[1].rows, strict=True):
        assert (ours.frame_idx, ours.attended) == (theirs.frame_idx, theirs.attended)
        for name in ("mask_iou", "frame_difference"):
            assert ours.scores[name] == pytest.approx(theirs.scores[name], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [2, 3, -1])
@pytest.mark.parametrize(
    ("method", "choices"),
    [
        ("stock", {}),
        ("stock", {"prompts": sk.Prompts(2)}),
        ("keyframe", {}),
        ("keyframe", {"attend": Pool(2)}),
        ("dam4sam", {}),
    ],
    ids=str,
)
def test_tokens_and_frames_where_sam2_may_attend_to_few_prompts(
    method: str, choices: dict[str, Any], cap: int, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes upon the other prompted frames among the tracked ones."""
    keys: list[int] = []
    real = RoPEAttention.forward

    def forward(self: Any, q: Any, k: Any, v: Any, num_k_exclude_rope: int = 0) -> Any:
        if self.rope_k_repeat:
            keys.append(k.shape[1])
        return real(self, q, k, v, num_k_exclude_rope=num_k_exclude_rope)

    monkeypatch.setattr(RoPEAttention, "forward", forward)
    model = make_predictor(max_cond_frames_in_attn=cap)
    state = _prompted(model, clip, (0, 2, 4, 11))
    with sk.wrap(model, method, **choices), record(model, state) as recording:
        for frame_idx, *_ in model.propagate_in_video(state, max_frame_num_to_track=14):
            row = sk.memory_stats(state)[1].last
            if row is None or row.frame_idx != frame_idx or "attend" in choices:
                continue
            assert row.memory.tokens == keys[-1]
            assert keys[-1] - 64 * len(row.attended) <= 16 * 2  # what is not told is pointers
            if (method, choices) == ("stock", {}):
                assert row.stock.tokens == keys[-1]
    rows = list(sk.memory_stats(state)[1].rows)
    assert len(rows) == 11
    played = list(replay(clip.frames, recording, sk.make_method(method, **choices)).stats[1].rows)
    assert [(r.attended, r.memory.tokens, r.stock.tokens) for r in played] == [
        (r.attended, r.memory.tokens, r.stock.tokens) for r in rows
    ]


@pytest.mark.slow
def test_images_of_prompts_are_not_held_until_all_are_encoded(clip: Any) -> None:
    alive: dict[str, int] = {}
    for name in ("stock", "keyframe"):
        model = make_predictor(512)
        with sk.wrap(model, name):
            state = _prompted(model, clip, tuple(range(6)))
            encode, most = model._encode_new_memory, [0]

            def counted(*given: Any, encode: Any = encode, most: list[int] = most, **named: Any) -> Any:
                found = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (1, 3, 512, 512)]
                most[0] = max(most[0], len(found))
                return encode(*given, **named)

            model._encode_new_memory = counted
            model.propagate_in_video_preflight(state)
            alive[name] = most[0]
    assert alive["keyframe"] <= alive["stock"] + 1


def test_what_attention_knows_of_prompts_leaves_with_them(predictor: Any, clip: Any) -> None:
    with sk.Stream(predictor, "keyframe", attend=Foveated(0.2, 4, conditioning=True), max_prompts=3) as stream:
        known = []
        for t in range(20):
            stream.step(clip.frames[t], masks={1: clip.masks[t] == 1} if t % 2 == 0 else None)
            if t > 2:
                known.append(len(stream._state["output_dict_per_obj"][0][KEY].store.plans))
    assert max(known[10:]) == max(known[:10]) <= 3 + 6


def test_the_direction_of_motion_of_one_object_or_two_is_the_same_number(predictor: Any) -> None:
    """Objects share what was measured since the previous frame, where that is the same frame."""
    clip = make_clip("camera_shake", seed=1, frames=12, size=128, objects=2)
    found = {}
    for obj_ids in ((1, 2), (2,)):
        with sk.wrap(predictor, "keyframe", measure=(OpticalFlow("direction"),)):
            state = _prompted(predictor, clip, (0, 5), obj_ids)
            list(predictor.propagate_in_video(state))
        rows = sk.memory_stats(state)[2].rows
        found[obj_ids] = np.array([row.scores["optical_flow"] for row in rows if row.frame_idx > 4])
    assert len(found[(2,)]) == 7
    np.testing.assert_array_equal(found[1, 2], found[(2,)])


# -- which prompted frames are read ----------------------------------------------------------------------------------


def test_sam3_attends_to_the_nearest_four_prompts(predictor: Any, clip: Any) -> None:
    """As upstream, which does not keep the first one by default."""
    with sk.wrap(predictor, "sam3"):
        state = _prompted(predictor, clip, (0, 3, 6, 9, 12))
        list(predictor.propagate_in_video(state, max_frame_num_to_track=17))
    rows = {row.frame_idx: set(row.attended) & {0, 3, 6, 9, 12} for row in sk.memory_stats(state)[1].rows}
    assert rows[17] == {3, 6, 9, 12}
    assert rows[4] == {0, 3, 6, 9}
    with sk.wrap(predictor, "sam3", prompts=sk.Prompts(4)):
        state = _prompted(predictor, clip, (0, 3, 6, 9, 12))
        list(predictor.propagate_in_video(state, max_frame_num_to_track=17))
    last = sk.memory_stats(state)[1].last
    assert last is not None
    assert set(last.attended) & {0, 3, 6, 9, 12} == {0, 6, 9, 12}


def _tracked(predictor: Any, clip: Any, prompts: tuple[int, ...], reverse: bool, method: str, **how: Any) -> Any:
    start = len(clip.frames) - 1 if reverse else 0
    with sk.wrap(predictor, method, prompts=sk.Prompts(**how)):
        state = _prompted(predictor, clip, prompts)
        passes = predictor.propagate_in_video(state, start_frame_idx=start, reverse=reverse)
        masks = {t: logits.clone() for t, _, logits in passes}
    return masks, state


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["window", "keyframe", "dam4sam"])
def test_prompts_to_come_steer_no_frame_before_them(method: str, reverse: bool, predictor: Any, clip: Any) -> None:
    """Absent before its first prompt; then as if the later one were not there yet; from it on by both."""
    first, second = (16, 6) if reverse else (6, 16)
    ours, state = _tracked(predictor, clip, (first, second), reverse, method, future=False)
    alone, _ = _tracked(predictor, clip, (first,), reverse, method, future=False)
    looking, _ = _tracked(predictor, clip, (first, second), reverse, method)
    past = (lambda t, at: t > at) if reverse else (lambda t, at: t < at)
    assert ours.keys() == looking.keys()
    for t, masks in ours.items():
        if past(t, first):
            assert (masks < 0).all()
            assert (looking[t] > -1000).any()
        elif past(t, second):
            assert torch.equal(masks, alone[t])
    assert any(not torch.equal(ours[t], looking[t]) for t in ours if not past(t, first) and past(t, second))
    tracked = [row.frame_idx for row in sk.memory_stats(state)[1].rows]
    assert tracked == [t for t in ours if not past(t, first) and t not in (first, second)]


def test_prompts_given_before_the_start_are_read_as_in_sam2(predictor: Any, clip: Any) -> None:
    plain = _prompted(predictor, clip, (0,))
    expected = [masks.clone() for *_, masks in predictor.propagate_in_video(plain)]
    with sk.wrap(predictor, "window", prompts=sk.Prompts(future=False)):
        state = _prompted(predictor, clip, (0,))
        ours = [masks.clone() for *_, masks in predictor.propagate_in_video(state)]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_replay_does_not_look_ahead_either(predictor: Any, clip: Any) -> None:
    method = sk.make_method("keyframe", prompts=sk.Prompts(future=False))
    state = _prompted(predictor, clip, (6, 16))
    with sk.wrap(predictor, method), record(predictor, state) as recording:
        list(predictor.propagate_in_video(state, start_frame_idx=0))
    played = replay(clip.frames, recording, method).stats[1].rows
    told = sk.memory_stats(state)[1].rows
    assert [(row.frame_idx, row.attended, row.keyframe) for row in played] == [
        (row.frame_idx, row.attended, row.keyframe) for row in told
    ]


def test_a_click_before_the_first_prompt_is_inferred(predictor: Any, clip: Any) -> None:
    with sk.wrap(predictor, "keyframe", prompts=sk.Prompts(future=False)):
        state = _prompted(predictor, clip, (6,))
        list(predictor.propagate_in_video(state, start_frame_idx=0))
        _, _, shown = predictor.add_new_points_or_box(state, 3, 1, points=[[40.0, 40.0]], labels=[1])
        assert shown.isfinite().all()
        again = {t: masks for t, _, masks in predictor.propagate_in_video(state, start_frame_idx=0)}
    assert all(masks.isfinite().all() for masks in again.values())
