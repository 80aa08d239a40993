"""The calls that random sessions are made of, and the strategy that draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

FRAMES = 10
"""Length of the videos that sessions run on."""

FLAGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "corrections": {"add_all_frames_to_correct_as_cond": True},
    "capped": {"max_cond_frames_in_attn": 2},
    "stride": {"memory_temporal_stride_for_eval": 2},
}
"""Settings of the predictor that sessions run under, by name."""


KINDS = ("mask", "points", "more points", "box", "box and points")


@dataclass(frozen=True)
class Prompt:
    """One of `KINDS` for one object on one frame; a correction where it was tracked."""

    video: int
    frame: int
    obj: int
    kind: str


@dataclass(frozen=True)
class Track:
    """Propagation; after `take` frames the generator is left open (None: it runs to its end)."""

    video: int
    start: int | None
    count: int | None
    reverse: bool
    take: int | None


@dataclass(frozen=True)
class Resume:
    """More frames of the generator left open last."""

    video: int
    take: int


@dataclass(frozen=True)
class Clear:
    """`clear_all_prompts_in_frame`."""

    video: int
    frame: int
    obj: int


@dataclass(frozen=True)
class Remove:
    """`remove_object`."""

    video: int
    obj: int
    strict: bool


@dataclass(frozen=True)
class Reset:
    """`reset_state`."""

    video: int


@dataclass(frozen=True)
class Wrap:
    """Wrap the predictor, again where it is wrapped, or unwrap it."""

    on: bool


Call = Prompt | Track | Resume | Clear | Remove | Reset | Wrap


@dataclass(frozen=True)
class Session:
    """Calls on a predictor under some settings."""

    flags: str
    calls: list[Call]


_WEIGHTS = {
    "sweep": 4, "track": 4, "prompt": 3, "correct": 3, "resume": 2,
    "clear": 1, "remove": 1, "wrap": 1, "unwrap": 1, "reset": 1,
}  # fmt: skip


@st.composite
def sessions(draw: st.DrawFn, longest: int = 16) -> Session:
    """Draw a session of up to `longest` calls. Most calls make sense where they come; some do not, as with users."""
    known: dict[int, dict[int, int]] = {0: {}, 1: {}}  # by video and object, the frame of its last prompt
    calls: list[Call] = []
    kinds = st.sampled_from([kind for kind, weight in _WEIGHTS.items() for _ in range(weight)])
    for _ in range(draw(st.integers(2, longest))):
        what = draw(kinds)
        video = draw(st.sampled_from([0, 0, 0, 1]))
        objects = known[video]
        if not objects and draw(st.integers(0, 7)) < 7:
            what = "prompt"
        obj = draw(st.sampled_from([1, 2, 3]))
        if what not in ("prompt", "unwrap") and objects and draw(st.integers(0, 7)) < 7:
            obj = draw(st.sampled_from(sorted(objects)))
        frame = draw(st.integers(0, FRAMES - 1))
        if what in ("prompt", "correct"):
            if what == "prompt" and not objects:
                frame //= 3
            objects[obj] = frame
            calls.append(Prompt(video, frame, obj, draw(st.sampled_from(KINDS))))
        elif what == "sweep":
            calls.append(Track(video, None, None, False, None))
        elif what == "track":
            start, count = draw(st.none() | st.just(frame)), draw(st.none() | st.integers(0, FRAMES))
            take = draw(st.none() | st.integers(0, FRAMES))
            calls.append(Track(video, start, count, start is not None and draw(st.booleans()), take))
        elif what == "resume":
            calls.append(Resume(video, draw(st.integers(1, FRAMES))))
        elif what == "clear":
            calls.append(Clear(video, objects.get(obj, frame), obj))
        elif what == "remove":
            objects.pop(obj, None)
            calls.append(Remove(video, obj, draw(st.booleans())))
        elif what == "reset":
            objects.clear()
            calls.append(Reset(video))
        else:
            calls.append(Wrap(what == "wrap"))
    return Session(draw(st.sampled_from(list(FLAGS))), calls)
