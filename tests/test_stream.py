"""Stream: frame by frame, bit for bit what SAM 2 gives, and nothing that grows."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

import sam2_keyframe as sk
from sam2_keyframe.plugin import ATTRIBUTE
from sam2_keyframe.video.stream import Stream

METHODS = [None, "stock", "window", "keyframe"]


def _frames(clip_folder: Any) -> list[np.ndarray]:
    from sam2_keyframe.video.source import FrameSource

    with FrameSource(clip_folder) as source:
        return [source.frame(t) for t in range(len(source))]


def _assert_alive(outputs: list[Any]) -> None:
    """The masks are neither empty, full nor all the same: equality of such masks would show nothing."""
    sums = [masks.sum().item() for _, ids, masks in outputs if ids]
    assert len(set(sums)) == len(sums)
    assert any(0 < (masks > 0).float().mean() < 1 for _, _, masks in outputs)


def _assert_equal(actual: list[Any], expected: list[Any]) -> None:
    assert [(t, list(ids)) for t, ids, _ in actual] == [(t, list(ids)) for t, ids, _ in expected]
    for (t, _, a), (_, _, b) in zip(actual, expected, strict=True):
        assert torch.equal(a, b), t
    _assert_alive(expected)


def _offline(predictor: Any, method: Any) -> Any:
    return sk.wrap(predictor, method, keep_masks=False) if method is not None else None


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_equals_offline_tracking(method: str | None, predictor: Any, clip: Any, clip_folder: Any) -> None:
    """All prompts on the first frame: a mask, a point and a box, for three objects."""
    masks, points, boxes = {1: clip.masks[0] == 1}, {2: ([[30.0, 40.0]], [1])}, {3: [10.0, 10.0, 90.0, 100.0]}
    handle = _offline(predictor, method)
    state = predictor.init_state(str(clip_folder))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(masks[1]))
    predictor.add_new_points_or_box(state, 0, 2, points=points[2][0], labels=points[2][1])
    predictor.add_new_points_or_box(state, 0, 3, box=boxes[3])
    expected = list(predictor.propagate_in_video(state))
    if handle is not None:
        handle.unwrap()
    with Stream(predictor, method) as stream:
        actual = [
            stream.step(frame, masks=masks, points=points, boxes=boxes) if t == 0 else stream.step(frame)
            for t, frame in enumerate(_frames(clip_folder))
        ]
    _assert_equal(actual, expected)


class Arrivals:
    """Objects and prompts that come and go, for SAM 2 driven by hand and for a stream."""

    def __init__(self, clip: Any):
        box, points = [20.0, 24.0, 90.0, 80.0], [[60.0, 50.0], [5.0, 5.0]]
        self.prompts: dict[int, dict[str, Any]] = {
            2: {"masks": {1: clip.masks[2] == 1}},
            5: {"points": {7: (points, [1, 0])}},
            9: {"boxes": {1: box}, "masks": {7: clip.masks[9] == 2}},
            15: {"points": {3: (points[:1], [1])}, "boxes": {3: box}},
        }
        self.corrections = {6: {"points": {1: ([[44.0, 50.0]], [0])}}, 8: {"masks": {7: clip.masks[8] == 2}}}
        self.removed = {12: 7}

    def by_hand(self, predictor: Any, folder: Any) -> list[Any]:
        state, seen = predictor.init_state(str(folder)), []

        def prompt(t: int, masks: Any = None, points: Any = None, boxes: Any = None) -> Any:
            for obj_id, mask in (masks or {}).items():
                output = predictor.add_new_mask(state, t, obj_id, torch.from_numpy(mask))
            for obj_id, (coords, labels) in (points or {}).items():
                box = (boxes or {}).get(obj_id)
                output = predictor.add_new_points_or_box(state, t, obj_id, points=coords, labels=labels, box=box)
            for obj_id in set(boxes or {}) - set(points or {}):
                output = predictor.add_new_points_or_box(state, t, obj_id, box=boxes[obj_id])
            return output

        for t in range(24):
            prompt(t, **self.prompts.get(t, {})) if t in self.prompts else None
            if t < 2:
                seen.append((t, [], torch.zeros(0, 1, 128, 128)))
                continue
            step = predictor.propagate_in_video(state, start_frame_idx=t, max_frame_num_to_track=0)
            seen.append(next(step))
            if t in self.corrections:
                seen.append(prompt(t, **self.corrections[t]))
            if t in self.removed:
                predictor.remove_object(state, self.removed[t])
        return [(t, list(ids), masks.clone()) for t, ids, masks in seen]

    def streamed(self, stream: Stream, frames: list[np.ndarray]) -> list[Any]:
        seen = []
        for t, frame in enumerate(frames):
            seen.append(stream.step(frame, **self.prompts.get(t, {})))
            if t in self.corrections:
                seen.append(stream.correct(**self.corrections[t]))
            if t in self.removed:
                stream.remove(self.removed[t])
        return seen


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("as_cond", [False, True])
def test_equals_stepping_by_hand(
    method: str | None, as_cond: bool, predictor: Any, clip: Any, clip_folder: Any
) -> None:
    predictor.add_all_frames_to_correct_as_cond = as_cond
    arrivals = Arrivals(clip)
    handle = _offline(predictor, method)
    expected = arrivals.by_hand(predictor, clip_folder)
    if handle is not None:
        handle.unwrap()
    with Stream(predictor, method) as stream:
        actual = arrivals.streamed(stream, _frames(clip_folder))
    assert len(actual) == 26
    _assert_equal(actual, expected)


def test_forms_of_a_frame(predictor: Any, clip: Any) -> None:
    """An RGB array, OpenCV's BGR and tensors are one and the same frame."""
    outputs = {}
    for form in ("rgb", "bgr", "uint8", "float"):
        with Stream(predictor, "window", channels="bgr" if form == "bgr" else "rgb") as stream:
            seen = outputs[form] = []
            for t, frame in enumerate(clip.frames[:3]):
                tensor = torch.from_numpy(frame).permute(2, 0, 1)
                given = {"rgb": frame, "bgr": frame[..., ::-1], "uint8": tensor, "float": tensor / 255.0}[form]
                seen.append(stream.step(given, masks={1: clip.masks[0] == 1} if t == 0 else None))
    for seen in outputs.values():
        _assert_equal(seen, outputs["rgb"])


def test_no_frame_is_processed_twice(predictor: Any, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[int] = []
    original = predictor.forward_image
    monkeypatch.setattr(predictor, "forward_image", lambda image: (images.append(1), original(image))[1])
    with Stream(predictor) as stream:
        for t, frame in enumerate(clip.frames[:8]):
            stream.step(frame, masks={t: clip.masks[t] == 1} if t in (0, 3) else None)
            if t == 5:
                stream.correct(points={0: ([[40.0, 40.0]], [1])})
    assert len(images) == 8


# -- bounds ---------------------------------------------------------------------------------------------------------


def _sizes(state: Any) -> dict[str, int]:
    sizes = {"images": len(state["images"]), "features": len(state["cached_features"])}
    for name in ("frames_tracked_per_obj", "point_inputs_per_obj", "mask_inputs_per_obj"):
        sizes[name] = max(len(frames) for frames in state[name].values())
    for output_dict in state["output_dict_per_obj"].values():
        for key in ("cond_frame_outputs", "non_cond_frame_outputs"):
            sizes[key] = max(sizes.get(key, 0), len(output_dict[key]))
    return sizes


def _live_tensors() -> tuple[int, int]:
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    return len(tensors), sum(o.nbytes for o in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["window", "keyframe"])
def test_nothing_grows(method: str, predictor_factory: Any, clip: Any) -> None:
    """A prompt every fifth frame, an object that comes and goes: live tensors and their bytes are flat."""
    predictor = predictor_factory(image_size=64)
    measured = []
    with Stream(predictor, method, max_prompts=4) as stream:
        for t in range(100):
            masks = {1: clip.masks[0] == 1} if t % 5 == 0 else {}
            if t % 10 == 3:
                masks[t] = clip.masks[0] == 2
            stream.step(clip.frames[t % 24], masks=masks)
            if t % 10 == 7:
                stream.remove(t - 4)
            sizes = _sizes(stream._state)
            assert sizes["images"] == sizes["features"] == 1
            assert sizes["frames_tracked_per_obj"] == 1
            assert max(sizes["point_inputs_per_obj"], sizes["mask_inputs_per_obj"]) <= 1
            assert sizes["cond_frame_outputs"] <= 4
            assert sizes["non_cond_frame_outputs"] <= 16 + 6
            if t % 20 == 19:
                measured.append(_live_tensors())
        assert sorted(stream._state["output_dict_per_obj"][0]["cond_frame_outputs"]) == [0, 85, 90, 95]
    counts, nbytes = zip(*measured[1:], strict=True)
    if method == "window":
        assert len(set(counts)) == len(set(nbytes)) == 1, measured
    else:  # how many keyframes are among the recent frames varies from frame to frame
        assert max(counts) - min(counts) <= 8, measured
        assert max(nbytes) < 1.001 * min(nbytes), measured


def test_stock_grows(predictor_factory: Any, clip: Any) -> None:
    """The control: without a bound the same measure does see growth."""
    with Stream(predictor_factory(image_size=64), "stock") as stream:
        for t in range(30):
            stream.step(clip.frames[t % 24], masks={1: clip.masks[0] == 1} if t == 0 else None)
        assert _sizes(stream._state)["non_cond_frame_outputs"] == 29


# -- errors and endings ---------------------------------------------------------------------------------------------


def test_without_objects_the_model_rests(predictor: Any, clip: Any) -> None:
    with Stream(predictor) as stream:
        for t in range(3):
            frame_idx, obj_ids, masks = stream.step(clip.frames[t])
            assert (frame_idx, obj_ids, masks.shape) == (t, [], (0, 1, 128, 128))
        assert stream.step(clip.frames[3], masks={"a": clip.masks[3] == 1})[1] == ["a"]
        stream.remove("a")
        assert stream.step(clip.frames[4])[1] == stream.obj_ids == []
        assert stream.step(clip.frames[5], masks={"b": clip.masks[5] == 1})[:2] == (5, ["b"])
        assert stream.stats.keys() == {"b"}


def test_errors(predictor: Any, clip: Any) -> None:
    with pytest.raises(ValueError, match=r"channels is 'gray'; give 'rgb' or 'bgr'"):
        Stream(predictor, channels="gray")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_prompts is 1; give at least 2"):
        Stream(predictor, max_prompts=1)
    assert ATTRIBUTE not in vars(predictor)
    with Stream(predictor) as stream:
        with pytest.raises(RuntimeError, match=r"no frame to correct; call step\(\)"):
            stream.correct(boxes={1: [1, 2, 3, 4]})
        with pytest.raises(ValueError, match=r"box of object 1, .* is empty"):
            stream.step(clip.frames[0], boxes={1: [9, 9, 3, 4]})
        assert stream.frame_idx == -1
        stream.step(clip.frames[0], masks={1: clip.masks[0] == 1})
        with pytest.raises(ValueError, match=r"the frame is 100x128 and the first one was 128x128"):
            stream.step(clip.frames[1][:, :100])
        with pytest.raises(ValueError, match=r"correct\(\) was given no prompt"):
            stream.correct()
        with pytest.raises(ValueError, match=r"points of object 1, .*, are not all on the frame, which is 128x128"):
            stream.correct(points={1: ([[130, 5]], [1])})
        with pytest.raises(KeyError, match=r"object 5 is not tracked; the objects are \[1\]"):
            stream.remove(5)
    with pytest.raises(RuntimeError, match=r"the stream was closed; make a new Stream"):
        stream.step(clip.frames[0])
    with pytest.raises(RuntimeError, match=r"the stream was closed; make a new Stream"):
        stream.correct(boxes={1: [1, 2, 3, 4]})


def test_a_failed_frame_is_as_if_it_had_not_come(predictor: Any, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(fail: bool) -> list[Any]:
        seen = []
        with Stream(predictor) as stream:
            for t, frame in enumerate(clip.frames[:10]):
                if fail and t == 6:
                    with monkeypatch.context() as patch:
                        patch.setattr(predictor, "_encode_new_memory", _interrupt)
                        with pytest.raises(KeyboardInterrupt):
                            stream.step(clip.frames[20])
                seen.append(stream.step(frame, masks={1: clip.masks[0] == 1} if t == 0 else None))
        return seen

    def _interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    _assert_equal(run(fail=True), run(fail=False))


def test_the_predictor_is_given_back(predictor: Any, clip: Any) -> None:
    with Stream(predictor):
        assert ATTRIBUTE in vars(predictor)
    assert ATTRIBUTE not in vars(predictor)
    stream = Stream(predictor)
    stream.step(clip.frames[0], masks={1: clip.masks[0] == 1})
    del stream  # never closed
    gc.collect()
    assert ATTRIBUTE not in vars(predictor)


def test_a_wrapped_predictor_is_left_as_it_is(predictor: Any, clip: Any) -> None:
    handle = sk.wrap(predictor, "window")
    for method in ("keyframe", "window"):
        with pytest.raises(RuntimeError, match=r"wrapped already: .*unwrap\(predictor\), or give method=None"):
            Stream(predictor, method)
    with Stream(predictor, None) as stream:
        stream.step(clip.frames[0], masks={1: clip.masks[0] == 1})
    assert handle.active
    handle.unwrap()
    with Stream(predictor) as first, pytest.raises(RuntimeError, match=r"close the stream that did it"):
        Stream(predictor)
    with Stream(predictor) as second:
        first.close()  # again: the second one's wrapping stays
        assert second.step(clip.frames[0], masks={1: clip.masks[0] == 1})[1] == [1]
