"""SAM 3's video model: its tracker's memories, encoded apart, for objects that a detector adds, confirms and drops.

The detector's weights are random, so what it detects is said by the tests: the true masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from on_transformers import KINDS, new_session, pixels, stored
from transformers_models import sam3_video

import sam2_keyframe as sk
from sam2_keyframe.patches import sam3_video as sam3_video_host
from sam2_keyframe.patches import transformers as patch
from sam2_keyframe.patches.bounded import PixelWindow
from sam2_keyframe.synthetic import make_clip

FRAMES = 24


@pytest.fixture(scope="module")
def model() -> Any:
    """Its detector confirms an object on every fourth frame, however little the tracker's mask has of it."""
    return sam3_video(recondition_every_nth_frame=4, high_iou_thresh=0.0, high_conf_thresh=-20.0)


@pytest.fixture(scope="module")
def clip() -> Any:
    return make_clip("static", seed=3, frames=FRAMES, size=112, objects=3)


def detected(t: int) -> list[int]:
    """Return the objects detected on a frame: the second is lost at once, the third appears at frame 6."""
    return [obj_id for obj_id in (1, 2, 3) if obj_id == 1 or (obj_id == 2 and t < 2) or (obj_id == 3 and t >= 6)]


def follow(
    model: Any,
    clip: Any,
    frames: int = FRAMES,
    streamed: bool = False,
    check: Callable[[Any], None] = lambda session: None,
    says: Callable[[int], list[int]] = detected,
) -> tuple[list[Any], Any]:
    """Detect and track frame by frame; return what the model returned, and the session."""
    video = pixels(clip.frames, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    session = new_session(model, None if streamed else video)
    session.add_prompt("thing")
    now = {"t": 0}

    def run_detection(inference_session: Any, vision_embeds: Any) -> dict[int, dict[str, torch.Tensor]]:
        t = now["t"] % FRAMES
        masks = torch.stack([torch.from_numpy(clip.masks[t] == obj_id).float() for obj_id in says(now["t"])])
        logits = F.interpolate(masks[:, None], size=(32, 32), mode="area")[:, 0] * 20 - 10
        return {0: {"bbox": torch.zeros(len(masks), 4), "mask": logits, "scores": torch.full((len(masks),), 0.95)}}

    vars(model)["run_detection"] = run_detection
    seen = []
    try:
        for t in range(frames):
            now["t"] = t
            how = {"frame": video[t % FRAMES]} if streamed else {"frame_idx": t}
            seen.append(model(inference_session=session, **how))
            check(session)
    finally:
        del vars(model)["run_detection"]
    return seen, session


def assert_equal(left: list[Any], right: list[Any]) -> None:
    for one, two in zip(left, right, strict=True):
        assert one.object_ids == two.object_ids
        assert one.removed_obj_ids == two.removed_obj_ids
        assert one.obj_id_to_tracker_score == two.obj_id_to_tracker_score
        assert one.obj_id_to_mask.keys() == two.obj_id_to_mask.keys()
        for obj_id, mask in one.obj_id_to_mask.items():
            assert torch.equal(mask, two.obj_id_to_mask[obj_id]), f"masks differ: {one.frame_idx}, {obj_id}"


@pytest.fixture(scope="module")
def unwrapped(model: Any, clip: Any) -> Any:
    runs: dict[bool, Any] = {}

    def get(streamed: bool) -> Any:
        if streamed not in runs:
            runs[streamed] = follow(model, clip, streamed=streamed)
        return runs[streamed]

    return get


def test_the_session_adds_removes_and_confirms_objects(unwrapped: Any) -> None:
    """Or the tests below would say little."""
    seen, session = unwrapped(False)
    assert seen[0].object_ids == [0, 1]
    assert 1 in seen[-1].removed_obj_ids
    assert any(2 in output.object_ids and 1 not in output.object_ids for output in seen)  # the third, numbered anew
    assert len(session.output_dict_per_obj[0]["cond_frame_outputs"]) > 2  # confirmed ones
    masks = [output.obj_id_to_mask[0] for output in seen[1:]]
    assert any(not torch.equal(masks[0], mask) for mask in masks)


@pytest.mark.parametrize("method", ["stock", "window"])
@pytest.mark.parametrize("streamed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stock_and_the_window_are_identical(method: str, streamed: bool, model: Any, clip: Any, unwrapped: Any) -> None:
    with sk.wrap(model, method):
        seen, session = follow(model, clip, streamed=streamed)
    assert_equal(seen, unwrapped(streamed)[0])
    if method == "stock":
        sk.forget(session)
        left, right = stored(session), stored(unwrapped(streamed)[1])
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_fault_in_what_is_read_shows(monkeypatch: pytest.MonkeyPatch, model: Any, clip: Any, unwrapped: Any) -> None:
    pairs = patch.Transformers._pairs
    monkeypatch.setattr(patch.Transformers, "_pairs", lambda self, reading: pairs(self, reading)[:-1])
    with sk.wrap(model, "stock"), pytest.raises(AssertionError):
        assert_equal(follow(model, clip)[0], unwrapped(False)[0])


def test_nothing_is_left(model: Any, clip: Any) -> None:
    attributes, tracker = dict(vars(model)), dict(vars(model.tracker_model))
    with sk.wrap(model, "dam4sam"):
        _, session = follow(model, clip, frames=8, streamed=True)
        assert set(sk.memory_stats(session)) == {0, 1, 2}
    assert dict(vars(model)) == attributes
    assert dict(vars(model.tracker_model)) == tracker
    assert not model.tracker_model.mask_decoder._forward_hooks
    sk.forget(session)
    assert type(session.processed_frames) is dict
    assert all(output_dict.keys() == set(KINDS) for output_dict in session.output_dict_per_obj.values())
    assert all(type(tracked) is dict for tracked in session.frames_tracked_per_obj.values())


@pytest.mark.parametrize(
    "method",
    [
        "samurai by motion",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("keyframe", "dam4sam", "xmem_style")),
    ],
)
def test_methods(method: str, model: Any, clip: Any) -> None:
    how = {"kalman": True} if method == "samurai by motion" else {}
    with sk.wrap(model, method.removesuffix(" by motion"), **how):
        seen, session = follow(model, clip)
    stats = sk.memory_stats(session)
    assert set(stats) == set(seen[-1].object_ids)
    assert 1 in seen[-1].removed_obj_ids
    for obj_id in stats:
        frames = [row.frame_idx for row in stats[obj_id].rows]
        assert len(set(frames)) == len(frames)  # each once, though the tracker ran twice where an object appeared
        assert all(row.scores for row in list(stats[obj_id].rows)[:-1])


def test_a_stream_is_bounded(model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of objects: each is held in a size that does not grow with the frames."""
    monkeypatch.setattr(model, "recondition_every_nth_frame", 1)
    monkeypatch.setattr(sam3_video_host, "KEEP_PROMPTS", 4)
    most = max(model.hotstart_unmatch_thresh, model.hotstart_dup_thresh)

    def check(session: Any) -> None:
        assert len(session.obj_id_to_tracker_score_frame_wise) <= 1
        assert len(session.suppressed_obj_ids) <= 1
        for table in (session.unmatched_frame_inds, session.overlap_pair_to_frame_inds):
            assert all(len(frames) <= most for frames in table.values())
        for output_dict in session.output_dict_per_obj.values():
            assert len(output_dict["cond_frame_outputs"]) <= 4
            assert len(output_dict["non_cond_frame_outputs"]) <= 15 + 7

    with sk.wrap(model, "keyframe"):
        _, session = follow(model, clip, 48, True, check, lambda t: [1])
        assert isinstance(session.processed_frames, PixelWindow)
        assert sorted(session.processed_frames.keys()) == [46, 47]
        prompts = list(session.output_dict_per_obj[0]["cond_frame_outputs"])
        assert len(prompts) == 4  # the first, and the newest three
        assert prompts[0] == 0
        assert prompts[1] > 3
