"""Which index SAM 2 asks for, and what it finds there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_predictor
from hypothesis import given
from hypothesis import strategies as st
from plans import chosen, replanned, whole_reading
from sessions import assert_equal, run

import sam2_keyframe as sk
from sam2_keyframe.patches import sam2 as patch
from sam2_keyframe.patches.view import memory_view
from sam2_keyframe.types import Memory, Moment


class _Recorder(dict[int, Any]):
    """A dict that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def get(self, key: int, default: Any = None) -> Any:
        self.asked.append(key)
        return default


@pytest.fixture(scope="module")
def model() -> Any:
    return make_predictor(64)


@given(frame_idx=st.integers(0, 60), reverse=st.booleans(), stride=st.integers(1, 5))
def test_slots_are_what_sam2_asks_for(model: Any, frame_idx: int, reverse: bool, stride: int) -> None:
    asked = _Recorder()
    hidden = torch.zeros(16, 1, 64)
    entry = {
        "maskmem_features": torch.zeros(1, 32, 4, 4),
        "maskmem_pos_enc": [torch.zeros(1, 32, 4, 4)],
        "obj_ptr": torch.zeros(1, 64),
    }
    model.memory_temporal_stride_for_eval = stride
    with torch.inference_mode():
        model._prepare_memory_conditioned_features(
            frame_idx,
            False,
            [hidden],
            [hidden],
            [(4, 4)],
            {"cond_frame_outputs": {1000: entry}, "non_cond_frame_outputs": asked},
            2000,
            reverse,
        )
    moment = Moment(frame_idx, reverse, slots=6, pointers=15, stride=stride)
    assert asked.asked[:6] == [moment.slot(code) for code in (5, 4, 3, 2, 1, 0)]
    assert asked.asked[6:] == [i for i in map(moment.near, range(1, 16)) if i >= 0][: len(asked.asked) - 6]
    assert max(abs(frame_idx - index) for index in asked.asked[:6]) <= moment.reach
    assert moment.then().near(1) == frame_idx


def _entry(frame_idx: int) -> dict[str, Any]:
    return {
        "maskmem_features": torch.full((1, 32, 4, 4), float(frame_idx)),
        "maskmem_pos_enc": [torch.zeros(1, 32, 4, 4)],
        "obj_ptr": torch.full((1, 64), float(frame_idx)),
    }


@given(data=st.data(), reverse=st.booleans())
def test_the_view_shows_what_was_chosen(model: Any, data: st.DataObject, reverse: bool) -> None:
    """Whatever memories, codes and pointers are chosen, SAM 2 reads those and nothing else."""
    moment = Moment(50, reverse, slots=6, pointers=15)
    past = [moment.near(d) for d in range(1, 40)]
    frames = data.draw(st.lists(st.sampled_from(past), unique=True, max_size=9))
    free = data.draw(st.permutations(range(6)))
    codes = [free[i] if i < 6 and data.draw(st.booleans()) else 6 for i in range(len(frames))]
    places = data.draw(st.lists(st.sampled_from(past[:15]), unique=True))
    pointers = {place: data.draw(st.sampled_from([place, *past])) for place in places}
    prompt_like = data.draw(st.booleans())
    non_cond = {index: _entry(index) for index in past}
    cond = {0: _entry(0), 99: _entry(99)}
    memories = [Memory(f, non_cond[f], c, prompt_like and c == 6) for f, c in zip(frames, codes, strict=True)]
    tpos = torch.randn(7, 1, 1, 32)
    reading = whole_reading(memories, pointers, cond, moment)
    view = memory_view(reading, non_cond, tpos)
    shown, prompts = view["non_cond_frame_outputs"], view["cond_frame_outputs"]
    assert len(prompts) == 2 + len(reading.anchors)

    read = []
    for index, entry in prompts.items():
        if index not in cond:
            own = prompt_like and index in frames and codes[frames.index(index)] == 6
            assert own or (not moment.past(index) and index != 50)
            read.append((entry, tpos[6]))
    for code in range(6):
        entry = shown.get(moment.slot(code))
        if entry is not None and entry["maskmem_features"].numel():
            read.append((entry, tpos[code]))
    got = {
        int(e["maskmem_features"].flatten()[0]): e["maskmem_pos_enc"][-1].flatten(2)[0, :, 0] + t.view(-1)
        for e, t in read
    }
    assert sorted(got) == sorted(frames)
    for memory in memories:
        torch.testing.assert_close(got[memory.frame_idx], tpos[memory.code].view(-1), atol=1e-6, rtol=0)
    seen = {index: shown[index]["obj_ptr"] for index in past[:15] if index in shown}
    assert {index: int(pointer[0, 0]) for index, pointer in seen.items()} == pointers


@pytest.mark.slow
@pytest.mark.parametrize("session", ["two_objects", "reverse", "several_prompts"])
def test_the_anchor_route_equals_the_slots(
    session: str, monkeypatch: pytest.MonkeyPatch, predictor: Any, clip_folder: Any, clip: Any
) -> None:
    """Every memory by the anchor route, its code corrected: the same masks as stock up to rounding."""
    stock = run(predictor, session, clip_folder, clip)

    def anchored(reading: Any, non_cond: Any, tpos: Any) -> Any:
        moved = []
        for memory in chosen(reading):  # without its pointer in the window, a memory can only go in as an anchor
            alone = replanned(reading, [memory], {})
            assert len(alone.anchors) == 1
            shown = memory_view(alone, non_cond, tpos)["cond_frame_outputs"]
            (entry,) = [e for index, e in shown.items() if index not in reading.prompts]
            moved.append(Memory(memory.frame_idx, entry, reading.moment.slots))
        return memory_view(replanned(reading, moved), non_cond, tpos)

    monkeypatch.setattr(patch, "memory_view", anchored)
    sk.wrap(predictor, "stock")
    ours = run(predictor, session, clip_folder, clip)
    worst = max(float((a[3] - b[3]).abs().max()) for a, b in zip(ours[0], stock[0], strict=True))
    scale = max(float(masks.abs().max()) for _, _, _, masks in stock[0])
    assert 0 < worst <= 1e-4 * scale
    with pytest.raises(AssertionError):
        assert_equal(ours, stock)


def test_tokens_are_what_attention_reads(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """The tokens in the statistics are counted where memory attention receives them."""
    seen: list[int] = []
    predictor.memory_attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["memory"].shape[0]), with_kwargs=True
    )
    for method in ("stock", "keyframe", "first", "fifo"):
        seen.clear()
        sk.wrap(predictor, method)
        state = run(predictor, "forward", clip_folder, clip)[2][0]
        rows = sk.memory_stats(state)[1].rows
        assert [row.memory.tokens for row in rows] == seen
        assert not any(math.isnan(row.memory.nbytes) for row in rows)
        if method == "stock":
            assert [row.stock.tokens for row in rows] == seen
