"""Bookkeeping of a session in bounded size: it answers as the plain containers do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2_keyframe.patches.bounded import FrameSet, PixelWindow, TrackedFrames

FRAMES = st.integers(0, 12)


@given(st.lists(st.tuples(st.booleans(), FRAMES)))
def test_a_frame_set_is_a_set(changes: list[tuple[bool, int]]) -> None:
    plain: set[int] = set()
    ours = FrameSet()
    for adds, frame_idx in changes:
        (plain.add if adds else plain.discard)(frame_idx)
        (ours.add if adds else ours.discard)(frame_idx)
        assert list(ours) == sorted(plain)
        assert len(ours) == len(plain)
        assert [t in ours for t in range(-1, 14)] == [t in plain for t in range(-1, 14)]
        assert all(last + 1 < first for (_, last), (first, _) in zip(ours._runs, ours._runs[1:], strict=False))


@given(st.lists(st.tuples(FRAMES, st.sampled_from([None, False, True]))))
def test_tracked_frames_are_a_dict(changes: list[tuple[int, bool | None]]) -> None:
    plain: dict[int, dict[str, bool]] = {}
    ours = TrackedFrames({})
    for frame_idx, reverse in changes:
        if reverse is None:
            assert plain.pop(frame_idx, None) == ours.pop(frame_idx, None)
        else:
            plain[frame_idx] = ours[frame_idx] = {"reverse": reverse}
        assert dict(ours) == plain
        assert len(ours) == len(plain)
    assert dict(TrackedFrames(plain)) == plain


def test_one_sweep_takes_one_run() -> None:
    frames = FrameSet(range(10_000))
    assert len(frames._runs) == 1


def pixels(number: int) -> torch.Tensor:
    return torch.full((3, 2, 2), float(number))


def test_pixels_leave_once_passed_and_frames_are_numbered_on() -> None:
    window = PixelWindow({}, keep=2)
    for t in range(5):
        window[len(window)] = pixels(t)
        window.passed(t)
    assert len(window) == 5
    assert sorted(window.keys()) == [3, 4]
    with pytest.raises(RuntimeError, match=r"pixels of frame 1 have left.*frame_idx=1"):
        window[1]
    with pytest.raises(KeyError):
        window[5]
    window[1] = pixels(1)  # given again, for a correction
    assert len(window) == 5
    plain = window.plain()
    assert type(plain) is dict
    assert {t: frame.numel() for t, frame in plain.items()} == {0: 0, 1: 12, 2: 0, 3: 12, 4: 12}


def test_frames_still_to_come_stay() -> None:
    window = PixelWindow({t: pixels(t) for t in range(8)}, keep=1)
    for t in (5, 4, 3):  # in reverse
        window.passed(t)
    assert sorted(window.keys()) == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda window: pickle.loads(pickle.dumps(window))])
def test_a_copy_goes_on(copied: object) -> None:
    window = PixelWindow({t: pixels(t) for t in range(4)}, keep=2)
    for t in range(3):
        window.passed(t)
    again = copied(window)  # type: ignore[operator]
    again.passed(3)
    assert sorted(again.keys()) == [2, 3]
    assert sorted(window.keys()) == [1, 2, 3]
    assert len(again) == len(window) == 4
