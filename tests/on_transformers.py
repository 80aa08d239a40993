"""Sessions with a video model of transformers, as users have them, and what they see and store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Seen = list[tuple[str, int, tuple[int, ...], torch.Tensor, torch.Tensor]]
Run = Callable[[Any, Any, Seen], Iterator[Any]]

KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")


def pixels(frames: np.ndarray, mean: tuple[float, ...] = (0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) -> Any:
    """Return (T, 3, S, S) frames as the processors of transformers normalise them."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def new_session(model: Any, frames: torch.Tensor | None, **how: Any) -> Any:
    """Return an empty session with a model of transformers; `frames` is None for streaming."""
    module = __import__(type(model).__module__, fromlist=["Session"])
    name = type(model).__name__.replace("Model", "InferenceSession")
    size = model.config.image_size
    how = {"dtype": torch.float32, **how}
    return getattr(module, name)(video=frames, video_height=size, video_width=size, **how)


def add_mask(session: Any, frame_idx: int, obj_id: int, mask: np.ndarray) -> None:
    """Prompt an object by a mask, as the processors do."""
    index = session.obj_id_to_idx(obj_id)
    session.add_mask_inputs(index, frame_idx, torch.from_numpy(mask)[None, None].float())
    session.remove_point_inputs(index, frame_idx)
    session.obj_with_new_inputs.append(obj_id)


def add_points(session: Any, frame_idx: int, obj_id: int, points: Any, labels: Any) -> None:
    """Prompt an object by clicks in the model's pixels, as the processors do."""
    index = session.obj_id_to_idx(obj_id)
    clicks = {"point_coords": torch.tensor([[points]]).float(), "point_labels": torch.tensor([[labels]]).int()}
    session.add_point_inputs(index, frame_idx, clicks)
    session.remove_mask_inputs(index, frame_idx)
    session.obj_with_new_inputs.append(obj_id)


def middle(mask: np.ndarray) -> list[float]:
    """Return a point of the object near its middle; where it is hidden, the middle of the frame."""
    ys, xs = np.nonzero(mask if mask.any() else np.ones_like(mask))
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return [float(xs[nearest]), float(ys[nearest])]


# -- sessions ----------------------------------------------------------------------------------------------------------
# Each is a generator: it yields its session between its parts, and collects what every call returns.


class Video:
    """A clip with its frames as a model takes them, whose objects are prompted by masks, or by clicks alone."""

    def __init__(self, clip: Any, clicks: bool = False, **normalisation: Any) -> None:
        self.clip = clip
        self.clicks = clicks
        self.frames = pixels(clip.frames, **normalisation)

    def prompt(self, session: Any, frame_idx: int, obj_id: int) -> None:
        """Prompt an object."""
        if self.clicks:
            add_points(session, frame_idx, obj_id, [self.click(frame_idx, obj_id)], [1])
        else:
            add_mask(session, frame_idx, obj_id, self.mask(frame_idx, obj_id))

    def mask(self, frame_idx: int, obj_id: int) -> np.ndarray:
        """Return the true mask."""
        return self.clip.masks[frame_idx] == obj_id

    def click(self, frame_idx: int, obj_id: int) -> list[float]:
        """Return a point of the object."""
        return middle(self.mask(frame_idx, obj_id))


def see(seen: Seen, what: str, output: Any) -> None:
    """Take down what the model returned."""
    scores = output.object_score_logits.clone()
    seen.append((what, output.frame_idx, tuple(output.object_ids), output.pred_masks.clone(), scores))


def track(model: Any, session: Any, seen: Seen, start: int, count: int, reverse: bool = False) -> None:
    """Propagate over `count` frames after the first."""
    how = {"start_frame_idx": start, "max_frame_num_to_track": count, "reverse": reverse}
    for output in model.propagate_in_video_iterator(session, **how):
        see(seen, f"track {how}", output)


def start(model: Any, video: Any, objects: tuple[int, ...] = (1,), frame_idx: int = 0, **how: Any) -> Any:
    """Return a session over the whole video with a mask prompt an object."""
    session = new_session(model, video.frames, **how)
    for obj_id in objects:
        video.prompt(session, frame_idx, obj_id)
    return session


def one_object(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video)
    yield session
    track(model, session, seen, 0, 19)
    yield session


def three_objects(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, (1, 2, 3))
    yield session
    track(model, session, seen, 0, 14)
    yield session


def offloaded(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    """The state on another device than the model, where there is one; a cache of several frames."""
    session = start(model, video, (1, 2), inference_state_device="cpu", max_vision_features_cache_size=3)
    yield session
    track(model, session, seen, 0, 12)
    yield session


def chunks(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, (1, 2))
    yield session
    for begin in (0, 5, 10):
        track(model, session, seen, begin, 4)
        yield session


def streaming(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = new_session(model, None)
    for t, frame in enumerate(video.frames[:20]):
        if t == 0:
            for obj_id in (1, 2):
                video.prompt(session, 0, obj_id)
        see(seen, "track", model(inference_session=session, frame=frame))
        if t in (0, 9):
            yield session
    yield session


def streaming_corrected(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    """A click on the frame that was tracked last, and an object that comes late."""
    session = new_session(model, None)
    video.prompt(session, 0, 1)
    for t, frame in enumerate(video.frames[:18]):
        if t == 12:
            video.prompt(session, t, 2)
        see(seen, "track", model(inference_session=session, frame=frame))
        if t == 8:
            add_points(session, t, 1, [video.click(t, 1)], [1])
            see(seen, "click", model(inference_session=session, frame_idx=t))
            yield session
    yield session


def reverse(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, (1, 2), frame_idx=14)
    yield session
    track(model, session, seen, 14, 14, reverse=True)
    yield session


def both_ways(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, frame_idx=8)
    yield session
    track(model, session, seen, 8, 8)
    yield session
    track(model, session, seen, 12, 10, reverse=True)
    yield session


def over_again(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, frame_idx=2)
    yield session
    for _ in range(2):
        track(model, session, seen, 2, 12)
        yield session


def late_prompt(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    """Every frame visited before the prompt becomes a conditioning frame; transformers does so."""
    session = start(model, video, frame_idx=8)
    yield session
    track(model, session, seen, 5, 12)
    yield session


def late_object(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video)
    track(model, session, seen, 0, 7)
    yield session
    video.prompt(session, 8, 2)
    yield session
    track(model, session, seen, 8, 6)
    yield session


def several_prompts(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video)
    see(seen, "prompt", model(inference_session=session, frame_idx=0))
    for t in (3, 6, 9, 12, 15):
        add_points(session, t, 1, [video.click(t, 1)], [1])
        see(seen, "prompt", model(inference_session=session, frame_idx=t))
    yield session
    track(model, session, seen, 0, 19)
    yield session


def correction(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, (1, 2))
    track(model, session, seen, 0, 10)
    yield session
    for clicks in ([video.click(8, 1)], [video.click(8, 1), [4.0, 4.0]]):
        add_points(session, 8, 1, clicks, [1, 0][: len(clicks)])
        see(seen, "click", model(inference_session=session, frame_idx=8))
    yield session
    track(model, session, seen, 9, 5)
    yield session
    track(model, session, seen, 0, 12)
    yield session


def reset(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    session = start(model, video, (1, 2))
    track(model, session, seen, 0, 8)
    yield session
    session.reset_inference_session()
    video.prompt(session, 2, 2)
    yield session
    track(model, session, seen, 2, 9)
    yield session


def two_sessions(model: Any, video: Any, seen: Seen) -> Iterator[Any]:
    """Two videos on one model, a frame of each in turn."""
    first, second = start(model, video), start(model, video, (2,))
    yield first
    for t in range(12):
        for session in (first, second):
            see(seen, "track", model(inference_session=session, frame_idx=t))
    yield second


SESSIONS: dict[str, Run] = {
    session.__name__: session
    for session in (
        one_object,
        three_objects,
        offloaded,
        chunks,
        streaming,
        streaming_corrected,
        reverse,
        both_ways,
        over_again,
        late_prompt,
        late_object,
        several_prompts,
        correction,
        reset,
        two_sessions,
    )
}


def run(model: Any, name: str, video: Any, between: Callable[[int], None] = lambda _: None) -> Any:
    """Run a session; `between(i)` is called before part i. Returns what was seen, and the sessions."""
    seen: Seen = []
    sessions: dict[int, Any] = {}
    between(0)
    for part, session in enumerate(SESSIONS[name](model, video, seen), 1):
        sessions[id(session)] = session
        between(part)
    return seen, list(sessions.values())


def stored(session: Any) -> dict[tuple[Any, ...], torch.Tensor]:
    """Return every tensor that a session stores, by object, kind, frame and name."""
    return {
        (obj_idx, kind, frame_idx, name): value
        for obj_idx, output_dict in session.output_dict_per_obj.items()
        for kind in KINDS
        for frame_idx, entry in output_dict[kind].items()
        for name, value in entry.items()
    }


def held_bytes(session: Any) -> int:
    """Return the bytes of all that a session stores of its objects, views counted once and as what they hold."""
    tensors = [t for value in stored(session).values() for t in (value if isinstance(value, list) else [value])]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def assert_seen_equal(left: Seen, right: Seen) -> None:
    """Assert that two runs saw the same masks and scores, to the last bit."""
    assert [entry[:3] for entry in left] == [entry[:3] for entry in right]
    for one, two in zip(left, right, strict=True):
        assert torch.equal(one[3], two[3]), f"masks differ: {one[:3]}"
        assert torch.equal(one[4], two[4]), f"object scores differ: {one[:3]}"


def assert_lively(seen: Seen) -> None:
    """Assert that the masks of a run could show a difference: not constant, and not the same on every frame."""
    tracked = [masks for what, _, _, masks, _ in seen if what.startswith("track")]
    assert any(not torch.equal(tracked[0][:1], masks[:1]) for masks in tracked[1:])
    assert any((masks > 0).any() and (masks < 0).any() for masks in tracked[1:])
