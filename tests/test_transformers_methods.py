"""Every method under transformers: two objects, one of which disappears; the same choices as on facebookresearch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sam2")
pytest.importorskip("transformers")

import transformers_models
from on_transformers import Video, add_mask, add_points, middle, new_session, track
from test_methods import SETTINGS, _bound

import sam2_keyframe as sk
from benchmarks.studies import hosts
from sam2_keyframe.bank import reading
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.micro import load_micro_model
from sam2_keyframe.synthetic import make_clip

HERE = [name for name, method in SETTINGS.items() if method.again is None]
NAMED = [name for name in HERE if name in (*sk.METHODS, "samurai by motion")]


@pytest.fixture(scope="module")
def models() -> Any:
    return {"sam2": transformers_models.sam2_video(64), "edgetam": transformers_models.edgetam(64)}


@pytest.fixture(scope="module")
def absent() -> Video:
    """A clip of two objects, one of which leaves and returns."""
    return Video(make_clip("leave_and_return", seed=1, frames=40, size=64, objects=2))


def _matrix(model: Any, video: Video, method: sk.KeyframeMemory, frames: int, reverse: bool = False) -> Any:
    seen: Any = []
    with sk.wrap(model, method):
        session = new_session(model, video.frames[:frames])
        first = frames - 1 if reverse else 0
        for obj_id in (1, 2):
            add_mask(session, first, obj_id, video.mask(0, obj_id))  # both are in view on the first frame
        for t in range(first, -1, -1) if reverse else range(frames):
            track(model, session, seen, t, 0, reverse=reverse and t > 0)
            for output_dict in session.output_dict_per_obj.values():
                bank = output_dict[KEY]
                assert list(output_dict["cond_frame_outputs"]) == [first]
                entries = output_dict["non_cond_frame_outputs"]
                held = [idx for idx, entry in entries.items() if entry["maskmem_features"].numel()]
                if method.store == "bank":
                    assert len([*held, *bank.store.payloads]) <= _bound(method) + 1
                    assert len(entries) <= (30 if isinstance(method.pointers, sk.Ranked) else 15) + _bound(method) + 1
                assert len(bank.selection.buffer) <= method.keyframes.n
    stats = sk.memory_stats(session)
    for obj_id in (1, 2):
        assert stats[obj_id].frames == len(seen) - 1
        for row in stats[obj_id].rows:
            assert first in row.attended
            assert sum(t != first for t in row.attended) <= (6 if method.keyframes.read.chooses else _bound(method))
    masks = torch.stack([entry[3] for entry in seen])
    assert masks.isfinite().all()
    assert masks.std() > 0
    return masks, stats


def test_what_infers_a_frame_twice_is_refused(models: Any) -> None:
    for model in models.values():
        for choices in ({"verify": sk.Backward()}, {"tree": sk.Tree()}):
            with pytest.raises(
                ValueError, match="SAM2VideoPredictor of December 2024 or later alone: choose None here"
            ):
                sk.wrap(model, "window", **choices)


@pytest.mark.parametrize("name", NAMED)
def test_matrix(name: str, models: Any, absent: Video) -> None:
    _matrix(models["sam2"], absent, SETTINGS[name], 14)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", HERE)
def test_whole_matrix(name: str, reverse: bool, models: Any, absent: Video) -> None:
    masks, _ = _matrix(models["sam2"], absent, SETTINGS[name], 40, reverse)
    assert torch.equal(masks, _matrix(models["sam2"], absent, SETTINGS[name], 40, reverse)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if SETTINGS[name].attend == sk.Whole()])
def test_matrix_of_edgetam(name: str, models: Any, absent: Video) -> None:
    _matrix(models["edgetam"], absent, SETTINGS[name], 40)


# -- across hosts ---------------------------------------------------------------------------------------------------

CLOSE_CALLS = ("samurai by motion",)
"""Methods whose masks hang on differences that rounding decides, although they attend to the same frames.

It chooses among candidate masks that all fit: from frame 38 of this clip on, where the object returns, another one (the
IoU of the two is 0.80 at least).
"""


def _compare(clip: Any, size: int, method: Any, masks: bool = False, **changes: Any) -> tuple[list[float], list[bool]]:
    """Return the IoU of each object's mask, and whether the same frames were attended to, on each frame."""
    objects = [obj_id for obj_id in (1, 2) if (clip.masks == obj_id).any()]
    original = load_micro_model("sam2", image_size=size)
    state = sk.init_state(original, clip.frames)
    model = load_micro_model("transformers", image_size=size)
    session = new_session(model, torch.stack([state["images"][t] for t in range(len(clip.frames))]).float())
    if masks:
        _prompt_masks_as_facebookresearch(model, size)
    with sk.wrap(original, method, **changes), sk.wrap(model, method, **changes):
        for obj_id in objects:
            mask = clip.masks[0] == obj_id
            if masks:
                original.add_new_mask(state, 0, obj_id, torch.from_numpy(mask))
                add_mask(session, 0, obj_id, mask)
            else:
                original.add_new_points_or_box(state, 0, obj_id, points=[middle(mask)], labels=[1])
                add_points(session, 0, obj_id, [middle(mask)], [1])
        expected = {t: logits[:, 0] > 0 for t, _, logits in original.propagate_in_video(state)}
        found = {}
        for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
            logits = F.interpolate(output.pred_masks, size=(size, size), mode="bilinear", align_corners=False)
            found[output.frame_idx] = logits[:, 0] > 0
        theirs, ours = sk.memory_stats(state), sk.memory_stats(session)
    overlaps = []
    for t, one in expected.items():
        for a, b in zip(one, found[t], strict=True):
            union = (a | b).sum()
            overlaps.append(float((a & b).sum() / union) if union else 1.0)
    same = [
        a.attended == b.attended
        for obj_id in objects
        for a, b in zip(theirs[obj_id].rows, ours[obj_id].rows, strict=True)
    ]
    return overlaps, same


def _prompt_masks_as_facebookresearch(model: Any, size: int) -> None:
    """Take the two differences out that transformers makes of a mask prompt.

    Its memory is encoded from the mask at full resolution, where facebookresearch's is from the mask logits at a
    quarter, enlarged; and its pointer comes of the best of three tokens, where facebookresearch takes the single one.
    """
    take, forward = model._use_mask_as_output, model._single_frame_forward

    def use_mask_as_output(*args: Any, **kwargs: Any) -> Any:
        model._single_frame_forward = lambda *a, **k: forward(*a, **{**k, "multimask_output": False})
        try:
            output = take(*args, **kwargs)
        finally:
            del model._single_frame_forward
        large = F.interpolate(output.pred_masks, size=(size, size), mode="bilinear", align_corners=False)
        output.high_res_masks = large
        return output

    model._use_mask_as_output = use_mask_as_output


@pytest.mark.parametrize("method", ["keyframe", "dam4sam"])
def test_the_same_frames_are_attended_to(method: str) -> None:
    clip = make_clip("leave_and_return", seed=3, frames=16, size=128, objects=1)
    overlaps, same = _compare(clip, 128, method)
    assert all(same)
    assert min(overlaps) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_every_method_chooses_the_same_frames(name: str) -> None:
    clip = make_clip("leave_and_return", seed=3, frames=60, size=128, objects=1)
    overlaps, same = _compare(clip, 128, SETTINGS[name])
    assert all(same), f"{sum(same)} of {len(same)} frames"
    assert min(overlaps) >= (0.7 if name in CLOSE_CALLS else 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["stock", "keyframe"])
def test_mask_prompts_agree_once_their_two_differences_are_forced_equal(method: str) -> None:
    clip = make_clip("occlusion", seed=1, frames=40, size=128, objects=2)
    overlaps, same = _compare(clip, 128, method, masks=True)
    assert all(same)
    assert min(overlaps) >= 0.998  # an object of 700 pixels differs in one
    assert sum(overlaps) / len(overlaps) >= 0.9999


# -- long streams ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["window", "keyframe"])
def test_a_long_stream_is_flat(method: str) -> None:
    """300 frames here; 2,000 by `python -m benchmarks.studies.hosts --frames 2000`."""
    rows = hosts.stream(method, 300, 64, every=25)
    unwrapped = hosts.stream(hosts.UNWRAPPED, 50, 64, every=25)
    for what in ("memories", "pixels"):
        assert max(row[what] for row in rows[2:]) <= max(row[what] for row in rows[:2])
        assert unwrapped[1][what] > 1.8 * unwrapped[0][what]  # without the plugin it is not


# -- fewer tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices", [{"attend": sk.Pool(2)}, {"attend": sk.Modulated()}, {"queries": sk.NearObject(size=2)}]
)
def test_fewer_tokens_give_what_they_give_on_facebookresearchs(choices: Any) -> None:
    clip = make_clip("leave_and_return", seed=3, frames=8, size=128, objects=1)
    overlaps, same = _compare(clip, 128, "keyframe", **choices)
    assert all(same)
    assert min(overlaps) >= 0.995


def test_the_hook_with_whole_memories_is_the_model_itself(models: Any, absent: Video) -> None:
    """Up to rounding: transformers turns tokens by cosines and sines, the hook by complex numbers."""
    runs = []
    for scheme in (None, sk.Pool(2), sk.Foveated(0.9, 2)):
        seen: Any = []
        session = new_session(models["sam2"], absent.frames[:8])
        absent.prompt(session, 0, 1)
        if scheme is None:
            track(models["sam2"], session, seen, 0, 7)
        else:
            with pytest.MonkeyPatch.context() as patch, sk.wrap(models["sam2"], "stock", attend=scheme):
                patch.setattr(reading, "scheme_for", lambda attend, **how: sk.Whole())
                track(models["sam2"], session, seen, 0, 7)
        runs.append(seen)
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            torch.testing.assert_close(one[3], two[3], atol=1e-3, rtol=1e-3)
            assert one[3].std() > 0
