"""Copied and saved states, threads, float32 without pointers, objects removed or added in a loop, masks of numbers."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import a_few, make_predictor
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import begin, propagated

import sam2_keyframe as sk

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch.save": lambda state: _saved(state),
}


def _saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "method",
    a_few(["keyframe", "samurai", "dam4sam", "compact", "xmem_style", "sam3", "window"], "keyframe", "compact"),
)
def test_a_copied_state_goes_on_as_the_original(method: str, how: str, clip_folder: Any, clip: Any) -> None:
    """On the same predictor, and on another one wrapped alike."""
    predictor, other = make_predictor(), make_predictor()
    overrides = {"change": 0.01} if method in ("keyframe", "compact") else {}
    sk.wrap(predictor, method, **overrides)
    sk.wrap(other, method, **overrides)
    state = begin(predictor, clip_folder, clip, (1, 2))
    propagated(predictor, state, max_frame_num_to_track=9)
    copies = [COPIES[how](state) for _ in range(2)]
    rest = {"start_frame_idx": 10, "max_frame_num_to_track": 8}
    expected = propagated(predictor, state, **rest)
    for model, each in ((predictor, copies[0]), (other, copies[1])):
        found = propagated(model, each, **rest)
        assert all(map(torch.equal, found, expected))
        rows = [stats.rows[-1].attended for stats in sk.memory_stats(each).values()]
        assert rows == [stats.rows[-1].attended for stats in sk.memory_stats(state).values()]
    assert len({float(masks.sum()) for masks in expected}) > 5


def test_a_copy_tracked_by_sam2_alone_is_taken_in_anew(clip_folder: Any, clip: Any) -> None:
    """A bank that does not know what was tracked meanwhile is not gone on with."""
    predictor = make_predictor()
    with sk.wrap(predictor, "window"):
        state = begin(predictor, clip_folder, clip, (1, 2))
        propagated(predictor, state, max_frame_num_to_track=5)
        copied = copy.deepcopy(state)
    propagated(predictor, copied, start_frame_idx=6, max_frame_num_to_track=4)
    with sk.wrap(predictor, "window"):
        propagated(predictor, copied, start_frame_idx=11, max_frame_num_to_track=1)
        assert sk.memory_stats(copied)[1].rows[-1].attended == (0, 7, 8, 9, 10, 11)[:1] + (6, 7, 8, 9, 10, 11)[-6:]


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps, lambda p: torch.save(p, io.BytesIO())])
def test_a_wrapped_predictor_refuses_to_be_copied_or_saved(copier: Any, predictor: Any) -> None:
    sk.wrap(predictor, "keyframe")
    with pytest.raises(RuntimeError, match="cannot be copied or saved, as its copy would run the original"):
        copier(predictor)
    sk.unwrap(predictor)
    assert "__getstate__" not in vars(predictor)
    copier(predictor)


@pytest.mark.parametrize("method", ["stock", "keyframe", "samurai", "dam4sam", "compact"])
def test_one_predictor_tracks_two_states_in_two_threads(method: str, clip_folder: Any, clip: Any) -> None:
    """As servers do: each state's masks are those that it has when it is tracked alone."""
    predictor = make_predictor()
    predictor.max_cond_frames_in_attn = 2  # a read with anchors needs other settings, which no other thread may see
    sk.wrap(predictor, method)
    prompts = ((0, (1,)), (3, (1, 2)))
    alone = [propagated(predictor, begin(predictor, clip_folder, clip, objects, t)) for t, objects in prompts]
    states = [begin(predictor, clip_folder, clip, objects, t) for t, objects in prompts]
    together: list[list[torch.Tensor]] = [[], []]
    errors: list[BaseException] = []
    gate = threading.Barrier(2)

    def work(place: int) -> None:
        try:
            gate.wait()
            together[place] = propagated(predictor, states[place])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other)
        assert all(map(torch.equal, one, other))
    assert predictor.max_cond_frames_in_attn == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["stock", "window", "keyframe", "dam4sam"])
def test_float32_tracks_before_the_first_prompt_and_back_from_the_last_frame(
    method: str, clip_folder: Any, clip: Any
) -> None:
    """Where no pointer is read, SAM 2 alone fails: its memories are bfloat16."""
    plain = make_predictor()
    with pytest.raises(RuntimeError, match="same dtype"):
        propagated(plain, begin(plain, clip_folder, clip, (1,), t=6), start_frame_idx=2)
    predictor = make_predictor()
    sk.wrap(predictor, method)
    state = begin(predictor, clip_folder, clip, (1,), t=6)
    early = propagated(predictor, state, start_frame_idx=2)
    assert len(early) == 22
    assert (early[0] > 0).any()
    last = begin(predictor, clip_folder, clip, (1,), t=23)
    assert len(propagated(predictor, last, start_frame_idx=23, reverse=True)) == 24


def _loop(
    predictor: Any, state: Any, at: int, act: Callable[[], None], **how: Any
) -> list[tuple[int, tuple[int, ...]]]:
    seen = []
    for t, obj_ids, masks in predictor.propagate_in_video(state, **how):
        assert len(masks) == len(obj_ids)
        seen.append((t, tuple(obj_ids)))
        if t == at:
            act()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", ["stock", "window", "keyframe"])
def test_an_object_removed_in_the_loop_is_tracked_no_more(
    method: str, reverse: bool, clip_folder: Any, clip: Any
) -> None:
    predictor = make_predictor()
    sk.wrap(predictor, method)
    for at in (3, 1) if reverse else (3,):
        start = 6 if reverse else 0
        state = begin(predictor, clip_folder, clip, (1, 2), t=start)
        seen = _loop(
            predictor, state, at, lambda state=state: predictor.remove_object(state, 1),
            start_frame_idx=start, max_frame_num_to_track=6, reverse=reverse,
        )  # fmt: skip
        order = range(6, -1, -1) if reverse else range(7)
        assert [t for t, _ in seen] == list(order)
        assert [ids for _, ids in seen] == [(1, 2) if (t >= at if reverse else t <= at) else (2,) for t in order]
    empty = begin(predictor, clip_folder, clip, (1,))
    assert _loop(predictor, empty, 2, lambda: predictor.remove_object(empty, 1)) == [(0, (1,)), (1, (1,)), (2, (1,))]


def test_an_object_added_in_the_loop_is_tracked_from_there_on(clip_folder: Any, clip: Any) -> None:
    predictor = make_predictor()
    sk.wrap(predictor, "keyframe")
    state = begin(predictor, clip_folder, clip, (1,))

    def add() -> None:
        predictor.add_new_mask(state, 4, 2, torch.from_numpy(clip.masks[4] == 2))

    seen = []
    for t, obj_ids, _ in predictor.propagate_in_video(state, max_frame_num_to_track=8):
        seen.append((t, tuple(obj_ids)))
        if t == 4:
            add()
    assert seen == [(t, (1,) if t <= 4 else (1, 2)) for t in range(9)]
    assert sk.memory_stats(state)[2].frames == 4


@settings(max_examples=6, deadline=None)
@given(value=st.sampled_from([1, 2, 255]), dtype=st.sampled_from([torch.uint8, torch.int64]))
def test_a_mask_of_whole_numbers_is_a_mask(value: int, dtype: torch.dtype) -> None:
    """At the model's size SAM 2 alone takes 255 for 255 times as sure as 1."""
    predictor = make_predictor(64)
    sk.wrap(predictor, "keyframe")
    mask = torch.zeros(64, 64, dtype=dtype)
    mask[20:40, 20:40] = value
    found = []
    for given_mask in (mask, mask > 0):
        state = sk.init_state(predictor, torch.zeros(2, 64, 64, 3, dtype=torch.uint8).numpy())
        found.append(predictor.add_new_mask(state, 0, 1, given_mask)[2])
    assert torch.equal(*found)
