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
    "resume": 2, "sweep": 4, "track": 4, "prompt": 3, "correct": 3,
    "clear": 1, "remove": 1, "wrap": 1, "unwrap": 1, "reset": 1,
}  # fmt: skip


def sessions(longest: int = 20) -> st.SearchStrategy[Session]:
    """Return the strategy: sessions of up to `longest` calls. Most calls make sense where they come, some do not."""
    frame, maybe = st.integers(0, FRAMES - 1), st.booleans()
    draft = st.fixed_dictionaries(
        {
            "what": st.sampled_from([what for what, weight in _WEIGHTS.items() for _ in range(weight)]),
            "video": st.sampled_from([0, 0, 0, 1]),
            "obj": st.sampled_from([1, 2, 3]),
            "frame": frame,
            "kind": st.sampled_from(KINDS),
            "start": st.none() | frame,
            "count": st.none() | st.integers(0, FRAMES),
            "take": st.none() | st.integers(1, FRAMES),
            "flag": maybe,
            "blind": st.integers(0, 7).map(lambda number: number == 7),  # takes no heed of what there is
        }
    )
    return st.builds(_session, st.sampled_from(list(FLAGS)), st.lists(draft, min_size=4, max_size=longest))


def _session(flags: str, drafts: list[dict[str, Any]]) -> Session:
    known: dict[int, dict[int, int]] = {0: {}, 1: {}}  # by video and object, the frame of its last prompt
    calls: list[Call] = []
    for draft in drafts:
        what, video, obj, frame = (draft[name] for name in ("what", "video", "obj", "frame"))
        objects = known[video]
        if not objects and not draft["blind"]:
            what, frame = "prompt", frame // 3
        elif what not in ("prompt", "unwrap") and not draft["blind"]:
            obj = sorted(objects)[obj % len(objects)]
        calls.append(_call(what, video, obj, frame, objects.get(obj, frame), draft))
        if what in ("prompt", "correct"):
            objects[obj] = frame
        elif what == "remove":
            objects.pop(obj, None)
        elif what == "reset":
            objects.clear()
    return Session(flags, calls)


def _call(what: str, video: int, obj: int, frame: int, prompted: int, draft: dict[str, Any]) -> Call:
    start = draft["start"]
    calls: dict[str, Call] = {
        "resume": Resume(video, draft["take"] or FRAMES),
        "sweep": Track(video, None, None, reverse=False, take=None),
        "track": Track(video, start, draft["count"], reverse=start is not None and draft["flag"], take=draft["take"]),
        "clear": Clear(video, prompted, obj),
        "remove": Remove(video, obj, draft["flag"]),
        "wrap": Wrap(True),
        "unwrap": Wrap(False),
        "reset": Reset(video),
    }
    return calls.get(what, Prompt(video, frame, obj, draft["kind"]))
