"""Sessions with a predictor, as users have them: each yields between its parts and collects every mask it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Seen = list[tuple[str, int, tuple[Any, ...], torch.Tensor]]
Session = Callable[[Any, Path, Any, Seen], Iterator[Any]]

FRAMES = 14


def _mask(clip: Any, frame_idx: int, obj_id: int) -> torch.Tensor:
    return torch.from_numpy(clip.masks[frame_idx] == obj_id)


def begin(predictor: Any, folder: Any, clip: Any, objects: tuple[int, ...] = (1,), t: int = 0) -> Any:
    """Return a state with the objects' masks of one frame given."""
    state = predictor.init_state(str(folder))
    for obj_id in objects:
        predictor.add_new_mask(state, t, obj_id, _mask(clip, t, obj_id))
    return state


def propagated(predictor: Any, state: Any, **how: Any) -> list[torch.Tensor]:
    """Return the mask logits of every frame tracked from here on."""
    return [masks.clone() for _, _, masks in predictor.propagate_in_video(state, **how)]


def _see(seen: Seen, what: str, output: Any) -> None:
    frame_idx, obj_ids, masks = output
    seen.append((what, frame_idx, tuple(obj_ids), masks.clone()))


def _track(predictor: Any, state: Any, seen: Seen, **how: Any) -> None:
    for output in predictor.propagate_in_video(state, **{"max_frame_num_to_track": FRAMES, **how}):
        _see(seen, f"track {how}", output)


def _start(predictor: Any, folder: Path, clip: Any, seen: Seen, objects: tuple[int, ...] = (1,), **how: Any) -> Any:
    state = predictor.init_state(str(folder), **how)
    for obj_id in objects:
        _see(seen, "prompt", predictor.add_new_mask(state, 0, obj_id, _mask(clip, 0, obj_id)))
    return state


def forward(predictor: Any, folder: Path, clip: Any, seen: Seen, **how: Any) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen, **how)
    yield state
    _track(predictor, state, seen)
    yield state


def two_objects(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    yield from forward(predictor, folder, clip, seen, objects=(1, 2))


def offloaded_state(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    yield from forward(predictor, folder, clip, seen, objects=(1, 2), offload_state_to_cpu=True)


def offloaded_video(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    yield from forward(predictor, folder, clip, seen, offload_video_to_cpu=True)


def stepped(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen, objects=(1, 2))
    yield state
    for frame_idx in range(FRAMES):
        if frame_idx == FRAMES // 2:
            yield state
        _track(predictor, state, seen, start_frame_idx=frame_idx, max_frame_num_to_track=0)
    yield state


def reverse(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = predictor.init_state(str(folder))
    _see(seen, "prompt", predictor.add_new_mask(state, FRAMES, 1, _mask(clip, FRAMES, 1)))
    yield state
    _track(predictor, state, seen, start_frame_idx=FRAMES, reverse=True)
    yield state


def both_ways(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = predictor.init_state(str(folder))
    _see(seen, "prompt", predictor.add_new_mask(state, 5, 1, _mask(clip, 5, 1)))
    yield state
    _track(predictor, state, seen, start_frame_idx=5, max_frame_num_to_track=8)
    yield state
    _track(predictor, state, seen, start_frame_idx=10, max_frame_num_to_track=10, reverse=True)
    yield state


def over_again(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    """A prompt in the middle, back from it, forward twice: the last pass reads what the first one stored."""
    state = predictor.init_state(str(folder))
    _see(seen, "prompt", predictor.add_new_mask(state, 2, 1, _mask(clip, 2, 1)))
    yield state
    _track(predictor, state, seen, start_frame_idx=2, reverse=True)
    for _ in range(2):
        yield state
        _track(predictor, state, seen, start_frame_idx=2, max_frame_num_to_track=20)
    yield state


def several_prompts(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen)
    _see(seen, "mask", predictor.add_new_mask(state, 9, 1, _mask(clip, 9, 1)))
    box = [20.0, 24.0, 90.0, 80.0]
    _see(seen, "box", predictor.add_new_points_or_box(state, 4, 1, box=box))
    _see(seen, "other", predictor.add_new_points_or_box(state, 0, 7, points=[[60.0, 50.0]], labels=[1]))
    yield state
    _track(predictor, state, seen, start_frame_idx=0)
    yield state


def late_object(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen)
    _track(predictor, state, seen, max_frame_num_to_track=7)
    yield state
    _see(seen, "late", predictor.add_new_mask(state, 8, 2, _mask(clip, 8, 2)))
    _track(predictor, state, seen, start_frame_idx=8, max_frame_num_to_track=5)
    yield state


def correction(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen, objects=(1, 2))
    _track(predictor, state, seen, max_frame_num_to_track=10)
    yield state
    for points in ([[40.0, 40.0]], [[40.0, 40.0], [90.0, 90.0]]):
        labels = [1, 0][: len(points)]
        _see(seen, "click", predictor.add_new_points_or_box(state, 8, 1, points=points, labels=labels))
    yield state
    _track(predictor, state, seen, start_frame_idx=8, max_frame_num_to_track=5)
    yield state
    _track(predictor, state, seen, start_frame_idx=0, max_frame_num_to_track=10)
    yield state


def removed_object(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen, objects=(1, 2))
    _track(predictor, state, seen, max_frame_num_to_track=6)
    yield state
    predictor.remove_object(state, 1)
    yield state
    _track(predictor, state, seen, start_frame_idx=7, max_frame_num_to_track=5)
    yield state


def cleared_prompt(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen)
    _see(seen, "mask", predictor.add_new_mask(state, 6, 1, _mask(clip, 6, 1)))
    _track(predictor, state, seen, start_frame_idx=0, max_frame_num_to_track=8)
    yield state
    _see(seen, "clear", predictor.clear_all_prompts_in_frame(state, 6, 1))
    _track(predictor, state, seen, start_frame_idx=7, max_frame_num_to_track=5)
    yield state


def reset(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    state = _start(predictor, folder, clip, seen, objects=(1, 2))
    _track(predictor, state, seen, max_frame_num_to_track=8)
    yield state
    predictor.reset_state(state)
    _see(seen, "prompt", predictor.add_new_mask(state, 2, 2, _mask(clip, 2, 2)))
    yield state
    _track(predictor, state, seen, start_frame_idx=2, max_frame_num_to_track=9)
    yield state


def two_videos(predictor: Any, folder: Path, clip: Any, seen: Seen) -> Iterator[Any]:
    first = _start(predictor, folder, clip, seen)
    second = _start(predictor, folder, clip, seen, objects=(2,))
    yield first
    for one, two in zip(predictor.propagate_in_video(first), predictor.propagate_in_video(second), strict=True):
        _see(seen, "first", one)
        _see(seen, "second", two)
    yield first
    yield second


SESSIONS: dict[str, Session] = {
    session.__name__: session
    for session in (
        forward,
        two_objects,
        offloaded_state,
        offloaded_video,
        stepped,
        reverse,
        both_ways,
        over_again,
        several_prompts,
        late_object,
        correction,
        removed_object,
        cleared_prompt,
        reset,
        two_videos,
    )
}


def run(predictor: Any, name: str, folder: Path, clip: Any, between: Callable[[int], None] = lambda _: None) -> Any:
    """Run a session; `between(i)` is called before part i. Returns what was seen and the states' stored tensors."""
    seen: Seen = []
    states: dict[int, Any] = {}
    between(0)
    for part, state in enumerate(SESSIONS[name](predictor, folder, clip, seen), 1):
        states[id(state)] = state
        between(part)
    return seen, [stored(state) for state in states.values()], list(states.values())


def stored(state: Any) -> dict[tuple[Any, ...], torch.Tensor]:
    """Return every tensor that SAM 2 stores for a video, by object, kind, frame and name."""
    return {
        (obj_idx, kind, frame_idx, name): value.clone()
        for obj_idx, output_dict in state["output_dict_per_obj"].items()
        for kind in ("cond_frame_outputs", "non_cond_frame_outputs")
        for frame_idx, entry in output_dict[kind].items()
        for name, value in [*entry.items(), ("maskmem_pos_enc", entry["maskmem_pos_enc"][-1])]
        if isinstance(value, torch.Tensor)
    }


def assert_equal(left: Any, right: Any, tensors: bool = True) -> None:
    """Assert that two runs saw the same masks and, unless told otherwise, store the same tensors, to the last bit."""
    assert [entry[:3] for entry in left[0]] == [entry[:3] for entry in right[0]]
    for a, b in zip(left[0], right[0], strict=True):
        assert torch.equal(a[3], b[3]), f"masks differ: {a[:3]}"
    if tensors:
        for one, two in zip(left[1], right[1], strict=True):
            assert one.keys() == two.keys()
            for key in one:
                assert torch.equal(one[key], two[key]), f"stored tensors differ: {key}"


def assert_lively(seen: Seen) -> None:
    """Assert that the masks of a run could show a difference: not constant, and not the same on every frame."""
    tracked = [masks for what, _, _, masks in seen if what.startswith(("track", "first"))]
    assert all(masks.std() > 0 for masks in tracked)
    assert any(not torch.equal(tracked[0][:1], masks[:1]) for masks in tracked[1:])
    assert any((masks > 0).any() and (masks < 0).any() for masks in tracked)
