"""Wrapped with `stock` equals unwrapped to the last bit, through the view, in every kind of session."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_predictor
from plans import chosen, replanned
from sessions import SESSIONS, assert_equal, assert_lively, run

import sam2_keyframe as sk
from sam2_keyframe.patches import sam2 as patch

FLAGS = {
    "plain": {},
    "stride": {"memory_temporal_stride_for_eval": 3},
    "capped": {"max_cond_frames_in_attn": 2},
    "corrections": {"add_all_frames_to_correct_as_cond": True},
    "any_pointer": {"only_obj_ptrs_in_the_past_for_eval": False},
}


@pytest.fixture(scope="module")
def unwrapped(clip_folder: Any, clip: Any) -> Any:
    """Runs of the unwrapped predictor, by session and flags."""
    runs: dict[Any, Any] = {}

    def get(session: str, flags: str = "plain") -> Any:
        key = session, flags
        if key not in runs:
            runs[key] = run(make_predictor(**FLAGS[flags]), session, clip_folder, clip)
            assert_lively(runs[key][0])
        return runs[key]

    return get


@pytest.mark.parametrize("session", SESSIONS)
def test_stock_is_identical(session: str, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any) -> None:
    sk.wrap(predictor, "stock")
    assert_equal(run(predictor, session, clip_folder, clip), unwrapped(session))


@pytest.mark.parametrize("session", ["stepped", "both_ways", "several_prompts", "correction"])
@pytest.mark.parametrize("flags", [name for name in FLAGS if name != "plain"])
def test_stock_is_identical_under_flags(session: str, flags: str, clip_folder: Any, clip: Any, unwrapped: Any) -> None:
    predictor = make_predictor(**FLAGS[flags])
    sk.wrap(predictor, "stock")
    assert_equal(run(predictor, session, clip_folder, clip), unwrapped(session, flags))


@pytest.mark.parametrize("session", ["two_objects", "correction"])
def test_stock_is_identical_under_autocast(session: str, clip_folder: Any, clip: Any) -> None:
    runs = []
    for method in (None, "stock"):
        predictor = make_predictor()
        if method:
            sk.wrap(predictor, method)
        with torch.autocast("cpu", torch.bfloat16):
            runs.append(run(predictor, session, clip_folder, clip))
    assert_lively(runs[0][0])
    assert_equal(*runs)


@pytest.mark.parametrize("session", ["stepped", "reverse", "correction", "late_object", "reset", "two_videos"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_wrapping_in_the_middle(
    session: str, part: int, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    """After `init_state`, after the prompts, and mid-video: what is stored is adopted."""

    def between(now: int) -> None:
        if now == part:
            sk.wrap(predictor, "stock")

    assert_equal(run(predictor, session, clip_folder, clip, between), unwrapped(session))


@pytest.mark.parametrize("part", [1, 2])
def test_a_state_left_by_another_method_is_replaced(
    part: int, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    """The window left what SAM 2 reads next, so stock goes on as if it had run from the start."""
    sk.wrap(predictor, "window")

    def between(now: int) -> None:
        if now == part:
            sk.wrap(predictor, "stock")

    ours = run(predictor, "stepped", clip_folder, clip, between)
    assert_equal(ours, unwrapped("stepped"), tensors=False)
    assert all(stats.rows[-1].memory.frames > 7 for stats in sk.memory_stats(ours[2][0]).values())


@pytest.mark.parametrize("session", ["forward", "two_objects", "stepped", "offloaded_state", "two_videos"])
@pytest.mark.parametrize("flags", ["plain", "stride"])
def test_window_is_lossless_in_one_sweep(session: str, flags: str, clip_folder: Any, clip: Any, unwrapped: Any) -> None:
    predictor = make_predictor(**FLAGS[flags])
    sk.wrap(predictor, "window")
    ours, stock = run(predictor, session, clip_folder, clip), unwrapped(session, flags)
    assert_equal(ours, stock, tensors=False)
    for mine, theirs in zip(ours[1], stock[1], strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert value.numel() == 0 or torch.equal(value, theirs[key])


@pytest.mark.parametrize("session", ["forward", "two_objects", "stepped"])
def test_default_without_keyframes_is_stock(
    session: str, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    sk.wrap(predictor, sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(5, ~sk.Always())))
    assert_equal(run(predictor, session, clip_folder, clip), unwrapped(session), tensors=False)


def _leave_one_out(memories: Any, pointers: Any) -> Any:
    return memories[:-1], pointers


def _swap_codes(memories: Any, pointers: Any) -> Any:
    if len(memories) > 1:
        one, two = memories[:2]
        swapped = type(one)(one.frame_idx, one.entry, two.code), type(two)(two.frame_idx, two.entry, one.code)
        return [*swapped, *memories[2:]], pointers
    return memories, pointers


def _drop_pointer(memories: Any, pointers: Any) -> Any:
    return memories, dict(list(pointers.items())[1:])


@pytest.mark.parametrize("fault", [_leave_one_out, _swap_codes, _drop_pointer])
def test_a_fault_in_the_view_shows(
    fault: Any, monkeypatch: pytest.MonkeyPatch, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    """Negative control: were the view wrong in any one point, the tests above would fail."""
    view = patch.memory_view

    def faulty(reading: Any, *rest: Any) -> Any:
        return view(replanned(reading, *fault(chosen(reading), reading.pointers)), *rest)

    monkeypatch.setattr(patch, "memory_view", faulty)
    sk.wrap(predictor, "stock")
    with pytest.raises(AssertionError, match="masks differ"):
        assert_equal(run(predictor, "forward", clip_folder, clip), unwrapped("forward"))


def test_a_shifted_pointer_shows(
    monkeypatch: pytest.MonkeyPatch, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    view = patch.memory_view

    def faulty(reading: Any, non_cond: Any, *rest: Any) -> Any:
        shifted = {t: {**e, "obj_ptr": non_cond.get(t - 1, e)["obj_ptr"]} for t, e in non_cond.items()}
        memories = [type(m)(m.frame_idx, shifted[m.frame_idx], m.code) for m in chosen(reading)]
        return view(replanned(reading, memories), shifted, *rest)

    monkeypatch.setattr(patch, "memory_view", faulty)
    sk.wrap(predictor, "stock")
    with pytest.raises(AssertionError, match="masks differ"):
        assert_equal(run(predictor, "forward", clip_folder, clip), unwrapped("forward"))
