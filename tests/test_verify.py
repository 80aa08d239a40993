"""The check backwards: what is doubtful and what passes, by hand; a wrong mask put in, and what is shown instead."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from conftest import write_frames

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches.verifying import FEATURES
from sam2_keyframe.rules.verify import Agreement, Box, Watch
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import Moment

NOTHING: Box = (0, 0, 0, 0)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x, y, x + width, y + height


def _watch(*boxes: Box) -> Watch:
    watch = Watch(sk.Backward())
    for t, box in enumerate(boxes):
        watch.note(t, box, True, torch.ones(4, 4, dtype=torch.bool))
    return watch


NOW = Moment(3, reverse=False, slots=6, pointers=15)
THREE = [_box(10, 10, 20, 20)] * 3
"""Of area 400, centre (20, 20): a jump is more than 80."""


@pytest.mark.parametrize(
    ("box", "rating", "expected"),
    [
        (NOTHING, 0.9, True),
        (_box(15, 15, 6, 6), 0.9, True),  # 36 of 400: below a tenth
        (_box(15, 15, 8, 8), 0.9, False),
        (_box(0, 0, 57, 57), 0.9, True),  # 3249: above eight times
        (_box(0, 0, 56, 56), 0.9, False),
        (_box(92, 10, 20, 20), 0.9, False),  # it jumps, as large and as sure as before
        (_box(92, 10, 20, 20), 0.3, True),
        (_box(89, 10, 20, 20), 0.3, False),
        (_box(95, 15, 14, 14), 0.9, True),  # 196: below a half
        (_box(86, 5, 30, 30), 0.9, True),  # 900: above twice
    ],
)
def test_what_is_doubtful(box: Box, rating: float, expected: bool) -> None:
    assert _watch(*THREE).doubts(box, rating, NOW) is expected
    assert not _watch(*THREE[:2]).doubts(box, rating, NOW)  # the median of two areas is not known


def test_no_replacement_follows_another_at_once() -> None:
    watch = _watch(*THREE)
    watch.replaced = -2
    assert not watch.doubts(NOTHING, 0.9, NOW)
    watch.replaced = -3
    assert watch.doubts(NOTHING, 0.9, NOW)


def test_candidates() -> None:
    watch = _watch(*THREE)
    far = [_box(60, 60, 20, 20), _box(10, 10, 20, 20), _box(100, 100, 9, 9), _box(100, 10, 20, 20)]
    assert watch.rivals(far, [0.9, 0.8, 0.85, 0.7], 0) == [1]  # 81 is below a quarter of 400; 0.7 below 0.8 x 0.9
    assert watch.rivals(far, [0.9, 0.8, 0.85, 0.73], 0) == [1, 3]
    near = [_box(60, 60, 20, 20), _box(10, 10, 20, 20), _box(12, 10, 20, 20)]
    assert watch.rivals(near, [0.9, 0.8, 0.85], 0) == [2]  # the two are alike: the better one


def test_agreement_and_what_passes() -> None:
    then = [_box(0, 0, 10, 10), _box(0, 0, 10, 10), _box(0, 0, 10, 10), _box(0, 0, 10, 10)]
    found = Agreement.of([_box(0, 0, 10, 10), _box(0, 0, 10, 5), NOTHING, _box(0, 0, 5, 5)], then)
    assert found == Agreement(pytest.approx((1 + 0.5 + 0.25) / 3), 0.25, 0.75, 3)
    rule = sk.Backward()
    assert rule.passes(Agreement(0.65, 0.2, 0.75, 3), None)
    for less in (Agreement(0.64, 0.2, 0.75, 3), Agreement(0.65, 0.19, 0.75, 3), Agreement(0.65, 0.2, 0.74, 3)):
        assert not rule.passes(less, None)
    assert not rule.passes(Agreement(0.65, 0.2, 1.0, 2), None)
    assert rule.passes(Agreement(0.8, 0.2, 1.0, 3), Agreement(0.65, 0.0, 0.0, 0))
    assert not rule.passes(Agreement(0.79, 0.2, 1.0, 3), Agreement(0.65, 0.0, 0.0, 0))
    assert Agreement.of([], []) == Agreement(0, 0, 0, 0)


def test_the_last_mask_is_moved_as_the_object_moved() -> None:
    watch = Watch(sk.Backward())
    for t in range(12):
        watch.note(t, _box(10 + 3 * t, 20, 16, 16), True, torch.ones(4, 4, dtype=torch.bool))
    ahead = watch.motion.ahead()
    assert ahead == pytest.approx((10 + 3 * 12 + 8, 28), abs=0.5)
    watch.note(12, NOTHING, False, torch.zeros(4, 4, dtype=torch.bool))
    assert watch.motion.ahead() == pytest.approx((10 + 3 * 13 + 8, 28), abs=0.7)
    assert len(watch.boxes) == 9
    assert list(watch.compared()) == [11, 10, 9, 8, 7, 6, 5, 4]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_micro_predictor(image_size=128)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Any:
    clip = make_clip("deformation", seed=9, frames=18, size=128, objects=1)
    return write_frames(tmp_path_factory.mktemp("deformation"), clip.frames), clip


BAD = 12
"""The frame, in tracking order, on which a wrong mask is put in."""


def _track(model: Any, video: Any, method: str, reverse: bool, change: Any = None, **how: Any) -> Any:
    folder, clip = video
    start = 17 if reverse else 0
    bad = start - BAD if reverse else BAD
    seen = {"first": True}

    def alter(module: Any, inputs: Any, output: Any) -> Any:
        masks, ious, tokens, score = output
        if change is None or not seen["first"] or ious.shape[1] == 1 or list(state["cached_features"]) != [bad]:
            return None
        seen["first"] = False
        return (*change(masks, ious), tokens, score)

    hook = model.sam_mask_decoder.register_forward_hook(alter)
    try:
        with sk.wrap(model, method, **how):
            state = model.init_state(str(folder))
            model.add_new_mask(state, start, 1, torch.from_numpy(clip.masks[start] == 1))
            masks = {}
            for t, _, logits in model.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
                masks[t] = logits.clone()
                assert len(state.get(FEATURES, {})) <= 10
                if t == bad:
                    entry = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][t]
                    entry = {key: entry[key].clone() for key in ("maskmem_features", "pred_masks", "obj_ptr")}
        rows = {row.frame_idx: row for row in sk.memory_stats(state)[1].rows}
    finally:
        hook.remove()
    return masks, entry, rows, bad, state


def _right_on_top(masks: torch.Tensor, ious: torch.Tensor) -> Any:
    """Every candidate is the one that SAM 2 rates best; the first is chosen."""
    best = masks[:, ious[0].argmax()][:, None]
    return best.expand_as(masks).clone(), torch.tensor([[0.9, 0.85, 0.2]])


def _speck_on_top(masks: torch.Tensor, ious: torch.Tensor) -> Any:
    """A speck in the corner is rated best, the right mask second."""
    masks, ious = _right_on_top(masks, ious)
    masks[:, 0] = -10.0
    masks[:, 0, :2, :2] = 10.0
    return masks, ious


def _speck_alone(masks: torch.Tensor, ious: torch.Tensor) -> Any:
    masks, ious = _speck_on_top(masks, ious)
    masks[:, 1:] = masks[:, :1]
    return masks, ious


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_a_wrong_mask_is_replaced(reverse: bool, model: Any, video: Any) -> None:
    """The mask shown and the memory are those of the right one, to the last bit; the pointer stays SAM 2's."""
    right = _track(model, video, "window", reverse, _right_on_top)
    wrong = _track(model, video, "window", reverse, _speck_on_top)
    masks, entry, rows, bad, state = _track(model, video, "sentry", reverse, _speck_on_top)
    assert not torch.equal(right[0][bad], wrong[0][bad])
    assert torch.equal(masks[bad], right[0][bad])
    assert torch.equal(entry["pred_masks"], right[1]["pred_masks"])
    assert torch.equal(entry["maskmem_features"], right[1]["maskmem_features"])
    assert torch.equal(entry["obj_ptr"], wrong[1]["obj_ptr"])
    assert rows[bad].scores["backward_iou"] >= 0.65
    assert rows[bad].scores["predicted_iou"] == pytest.approx(0.85)
    assert all(math.isnan(row.scores.get("backward_iou", math.nan)) for t, row in rows.items() if t != bad)
    before = [t for t in masks if (t > bad if reverse else t < bad)]
    assert all(torch.equal(masks[t], wrong[0][t]) for t in before)
    bank = state["output_dict_per_obj"][0][KEY]
    assert bank.watch.replaced == bad
    sk.forget(state)
    assert FEATURES not in state


def test_without_a_better_mask_all_stays(model: Any, video: Any) -> None:
    """To the last bit, and unlike the speck itself the moved copy is not believed where it does not fit."""
    plain = _track(model, video, "window", False, _speck_alone)
    masks, entry, rows, bad, _ = _track(model, video, "sentry", False, _speck_alone, verify=sk.Backward(agree=1.0))
    assert all(torch.equal(masks[t], plain[0][t]) for t in masks)
    assert all(torch.equal(entry[key], plain[1][key]) for key in entry)
    assert rows[bad].scores["backward_iou"] < 0.65


def test_the_moved_mask_is_believed_where_it_fits(model: Any, video: Any) -> None:
    masks, _, rows, bad, _ = _track(model, video, "sentry", False, _speck_alone)
    assert rows[bad].scores["backward_iou"] >= 0.65
    found, before = (masks[bad] > 0), (masks[bad - 1] > 0)
    assert (found & before).sum() / (found | before).sum() > 0.8


def test_nothing_is_doubtful_and_nothing_changes(model: Any, video: Any) -> None:
    plain = _track(model, video, "dam4sam", False)[0]
    masks = _track(model, video, "dam4sam", False, verify=sk.Backward())[0]
    assert all(torch.equal(masks[t], plain[t]) for t in plain)


def test_no_features_are_held_after_unwrap(model: Any, video: Any) -> None:
    """Neither in the state nor in a copy of it that was gone on with."""
    folder, clip = video
    with sk.wrap(model, "sentry"):
        state = model.init_state(str(folder))
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        list(model.propagate_in_video(state, max_frame_num_to_track=2))
        copied = pickle.loads(pickle.dumps(state))
        list(model.propagate_in_video(copied, start_frame_idx=3, max_frame_num_to_track=1))
        assert [list(each[FEATURES]) for each in (state, copied)] == [[1, 2], [1, 2, 3, 4]]
    assert not state[FEATURES]
    assert not copied[FEATURES]


def test_numbers_are_checked() -> None:
    for wrong in ({"frames": 2}, {"agree": 1.5}, {"gain": -0.1}, {"pause": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            sk.Backward(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"give Backward\(\) or None, not its class"):
        sk.make_method("window", verify=sk.Backward)
    with pytest.raises(ValueError, match=r"only verify=Backward\(\) measures"):
        sk.make_method("keyframe", change=sk.BackwardIoU() > 0.5)
