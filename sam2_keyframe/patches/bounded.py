"""What a host's state or session would keep for ever, in a size that does not grow with the frames."""

from __future__ import annotations

import bisect
import operator
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping, MutableSet
from typing import Any

import torch
from torch import Tensor


def keep_only(per_frame: MutableMapping[int, Any], frames: Container[int]) -> None:
    """Remove what is kept of frames other than these."""
    for t in [t for t in per_frame if t not in frames]:
        del per_frame[t]


class FrameSet(MutableSet[int]):
    """A set of frame indices, kept as runs of neighbours: tracking without gaps takes one run, however long.

    Args:
        frames: Its first elements.
    """

    def __init__(self, frames: Iterable[int] = ()) -> None:
        self._runs: list[tuple[int, int]] = []  # first and last, apart from each other, in order
        for frame_idx in frames:
            self.add(frame_idx)

    def _at(self, frame_idx: int) -> int:
        """Return the position of the last run that starts at or before a frame; -1 without one."""
        return bisect.bisect_right(self._runs, frame_idx, key=lambda run: run[0]) - 1

    def __contains__(self, frame_idx: object) -> bool:
        index = operator.index(frame_idx)  # type: ignore[arg-type]
        at = self._at(index)
        return at >= 0 and self._runs[at][1] >= index

    def __iter__(self) -> Iterator[int]:
        for first, last in self._runs:
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self._runs)

    def add(self, frame_idx: int) -> None:
        """Add a frame; it may join two runs."""
        if frame_idx in self:
            return
        at = self._at(frame_idx) + 1
        first = last = frame_idx
        low = high = at
        if at > 0 and self._runs[at - 1][1] == frame_idx - 1:
            low, first = at - 1, self._runs[at - 1][0]
        if at < len(self._runs) and self._runs[at][0] == frame_idx + 1:
            high, last = at + 1, self._runs[at][1]
        self._runs[low:high] = [(first, last)]

    def discard(self, frame_idx: int) -> None:
        """Remove a frame, if it is there; it may split a run."""
        if frame_idx not in self:
            return
        at = self._at(frame_idx)
        first, last = self._runs[at]
        parts = [(first, frame_idx - 1), (frame_idx + 1, last)]
        self._runs[at : at + 1] = [part for part in parts if part[0] <= part[1]]


class TrackedFrames(MutableMapping[int, dict[str, bool]]):
    """A host's record of the frames tracked for an object: `{"reverse": ...}` by frame.

    SAM 2 and transformers ask it whether a frame was tracked, to tell a correction from a new prompt.

    Args:
        tracked: What the host has so far.
    """

    def __init__(self, tracked: Mapping[int, Mapping[str, bool]]) -> None:
        self._frames = {False: FrameSet(), True: FrameSet()}
        for frame_idx, how in tracked.items():
            self[frame_idx] = dict(how)

    def __getitem__(self, frame_idx: int) -> dict[str, bool]:
        for reverse, frames in self._frames.items():
            if frame_idx in frames:
                return {"reverse": reverse}
        raise KeyError(frame_idx)

    def __setitem__(self, frame_idx: int, how: dict[str, bool]) -> None:
        reverse = bool(how["reverse"])
        self._frames[not reverse].discard(frame_idx)
        self._frames[reverse].add(frame_idx)

    def __delitem__(self, frame_idx: int) -> None:
        if frame_idx not in self:
            raise KeyError(frame_idx)
        for frames in self._frames.values():
            frames.discard(frame_idx)

    def __iter__(self) -> Iterator[int]:
        for frames in self._frames.values():
            yield from frames

    def __len__(self) -> int:
        return sum(map(len, self._frames.values()))

    def clear(self) -> None:
        """Forget all."""
        self._frames = {False: FrameSet(), True: FrameSet()}


class PixelWindow(dict[int, Tensor]):
    """A session's `processed_frames` of which the pixels of past frames leave.

    Its length counts every frame that ever came, as transformers numbers new frames by it.

    Args:
        frames: What the session has so far.
        keep: Frames whose pixels stay after they were passed, at least 1.
    """

    def __init__(self, frames: Mapping[int, Tensor], keep: int) -> None:
        super().__init__(frames)
        self.keep = keep
        self._came = FrameSet(frames)
        self._passed: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._came)

    def __setitem__(self, frame_idx: int, pixels: Tensor) -> None:
        super().__setitem__(frame_idx, pixels)
        self._came.add(frame_idx)

    def __missing__(self, frame_idx: int) -> Tensor:
        if frame_idx not in self._came:
            raise KeyError(frame_idx)
        raise RuntimeError(
            f"the pixels of frame {frame_idx} have left: this session keeps those of the last {self.keep} frames "
            f"tracked. Give them again with session.add_new_frame(pixel_values, frame_idx={frame_idx}), or let more "
            "stay with sam2_keyframe.keep_frames(session, n)"
        )

    def passed(self, frame_idx: int) -> None:
        """Let the pixels leave of all frames but the last ones passed and those still to come."""
        if frame_idx in self._passed:
            self._passed.remove(frame_idx)
        self._passed.append(frame_idx)
        while len(self._passed) > self.keep:
            self.pop(self._passed.popleft(), None)

    def plain(self) -> dict[int, Tensor]:
        """Return an ordinary dict of as many frames, those that left without pixels."""
        gone = torch.empty(3, 0, 0)
        return {frame_idx: self.get(frame_idx, gone) for frame_idx in self._came}

    def __reduce__(self) -> Any:
        return _window, (dict(self.items()), self.keep, list(self._came), list(self._passed))


def _window(frames: dict[int, Tensor], keep: int, came: list[int], passed: list[int]) -> PixelWindow:
    window = PixelWindow(frames, keep)
    window._came, window._passed = FrameSet(came), deque(passed)
    return window
