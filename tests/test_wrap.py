"""wrap, unwrap and the handle: nothing half-applied, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import a_few, make_predictor
from sessions import FRAMES, assert_equal, run

import sam2_keyframe as sk
from sam2_keyframe.plugin import ATTRIBUTE


def _attributes(predictor: Any) -> dict[str, dict[str, Any]]:
    """Return what every module of the predictor holds, and what lies in its own dicts (hooks among them)."""
    held = {}
    for name, module in predictor.named_modules():
        held[name] = dict(vars(module))
        for key, value in vars(module).items():
            if isinstance(value, dict):
                held[f"{name}.{key}"] = dict(value)
    return held


def assert_untouched(before: Any, predictor: Any) -> None:
    after = _attributes(predictor)
    assert before.keys() == after.keys()
    for owner, attributes in before.items():
        assert attributes.keys() == after[owner].keys(), owner
        for name, value in attributes.items():
            assert value is after[owner][name], f"{owner}.{name}"


CHOICES: dict[str, dict[str, Any]] = {
    **{name: {"frames": (3, 6)} if name in sk.NON_CAUSAL else {} for name in sk.METHODS},
    "samurai by motion": {"kalman": True},
    "keyframe packed": {"codec": sk.Chain(sk.PCA(0.25), sk.Int8()), "change": 0.01, "attend": sk.Pool(2)},
}
"""Every method, and choices that put more hooks in place; the first word is the method."""

RETRIEVED = sk.KeyframeMemory(
    sk.Recent(1), sk.Keyframes(9, sk.MaskIoU() > 0.01, read=sk.Relevant()), sk.Others(2), sk.LongTerm(1)
)


def wrapped(predictor: Any, method: str) -> sk.Handle:
    if method == "retrieved":
        return sk.wrap(predictor, RETRIEVED)
    return sk.wrap(predictor, method.split()[0], **CHOICES[method])


@pytest.mark.parametrize(
    "method", a_few([*CHOICES, "retrieved"], "stock", "keyframe packed", "dam4sam", "sam2long", "retrieved")
)
def test_unwrap_leaves_nothing_behind(method: str, predictor: Any, clip_folder: Any, clip: Any) -> None:
    never_wrapped = run(predictor, "both_ways", clip_folder, clip)  # fills SAM 2's own caches too
    before = _attributes(predictor)
    handle = wrapped(predictor, method)
    with pytest.raises(AssertionError):
        assert_untouched(before, predictor)
    run(predictor, "two_objects", clip_folder, clip)
    handle.unwrap()
    assert_untouched(before, predictor)
    assert_equal(run(predictor, "both_ways", clip_folder, clip), never_wrapped)


def test_unwrap_restores_instance_attributes_that_were_there(predictor: Any) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return type(predictor).track_step(predictor, *args, **kwargs)

    predictor.track_step = forward
    before = _attributes(predictor)
    sk.wrap(predictor)
    sk.unwrap(predictor)
    assert predictor.track_step is forward
    assert_untouched(before, predictor)


@pytest.mark.parametrize("method", ["stock", "window", "keyframe", "first", "keyframe packed", "retrieved"])
def test_unwrap_mid_video_goes_on_tracking(method: str, predictor: Any, clip_folder: Any, clip: Any) -> None:
    wrapped(predictor, method)

    def between(part: int) -> None:
        if part == 2:
            sk.unwrap(predictor)

    seen, _, states = run(predictor, "stepped", clip_folder, clip, between)
    assert [frame_idx for what, frame_idx, _, _ in seen if what != "prompt"] == list(range(FRAMES))
    assert sk.memory_stats(states[0])[1].frames == FRAMES // 2 - 1
    if method in ("stock", "window"):
        assert_equal((seen, [], []), run(make_predictor(), "stepped", clip_folder, clip), tensors=False)


def test_forget_removes_all_of_ours(predictor: Any, clip_folder: Any, clip: Any) -> None:
    sk.wrap(predictor)
    state = run(predictor, "two_objects", clip_folder, clip)[2][0]
    known = set(make_predictor().init_state(str(clip_folder)))
    assert set(state) != known
    sk.forget(state)
    assert set(state) == known
    stock = {"cond_frame_outputs", "non_cond_frame_outputs"}
    assert all(set(output_dict) == stock for output_dict in state["output_dict_per_obj"].values())
    assert sk.memory_stats(state) == {}


def test_wrapping_again_replaces_the_method(predictor: Any) -> None:
    before = _attributes(predictor)
    first = sk.wrap(predictor, "fifo", recent=4)
    second = sk.wrap(predictor, "every_nth", n=3)
    assert not first.active
    assert second.active
    first.unwrap()
    assert vars(predictor)[ATTRIBUTE] is second
    sk.unwrap(second)
    assert_untouched(before, predictor)
    sk.unwrap(predictor)


def test_with_block(predictor: Any) -> None:
    before = _attributes(predictor)
    with sk.wrap(predictor) as handle:
        with pytest.raises(RuntimeError, match="open `with` block"):
            sk.wrap(predictor, "stock")
        with pytest.raises(RuntimeError, match="open `with` block"):
            sk.unwrap(predictor)
        assert handle.active
    assert_untouched(before, predictor)
    with pytest.raises(ZeroDivisionError), sk.wrap(predictor):
        _ = 1 / 0
    assert_untouched(before, predictor)
    with pytest.raises(RuntimeError, match="call wrap"), handle:
        pass


def test_the_handle_is_not_the_predictor(predictor: Any) -> None:
    handle = sk.wrap(predictor)
    with pytest.raises(AttributeError, match=r"keep calling predictor\.init_state"):
        handle.init_state("clip")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = handle.nonsense
    with pytest.raises(TypeError, match=r"handle\.predictor"):
        sk.wrap(handle)


def test_the_handle_prints_what_runs(predictor: Any, clip_folder: Any, clip: Any) -> None:
    handle = sk.wrap(predictor)
    states = run(predictor, "two_objects", clip_folder, clip)[2]
    text = repr(handle)
    assert repr(handle.method) in text
    assert "2 objects" in text
    now, stock = (float(part.split()[-2]) for part in text.split("MiB")[:2] for part in [part + "MiB"])
    assert 0 < now < stock
    assert states


@pytest.mark.parametrize(
    ("predictor_like", "message"),
    [(torch.nn.Linear(2, 2), "not a SAM 2 video predictor"), ("sam2", "SAM2VideoPredictor of December 2024")],
)
def test_other_objects_are_refused(predictor_like: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        sk.wrap(predictor_like)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("nosuch",), ValueError, "choose one of stock, window"),
        ((3,), TypeError, "give a name"),
        (("fifo", {"recnt": 4}), ValueError, r"unknown keyword recnt; valid are recent, .*did you mean 'recent'"),
        (("keyframe", {"keyframes": 6}), ValueError, r"Keyframes\(6.*7 memories.*has 6"),
        (("fifo", {"recent": 7}), ValueError, r"Recent\(7\): the newest 7 frames are more than the 6 memories"),
        (("keyframe", {"keyframes": -1}), ValueError, "n=-1"),
        (("keyframe", {"change": "0.3"}), TypeError, "change: '0.3' is no rule"),
        (("keyframe", {"change": float("nan")}), ValueError, "nan: compare"),
        (("keyframe", {"change": sk.MaskIoU()}), TypeError, r"change: MaskIoU\(\) is a score, not a rule"),
        (("keyframe", {"change": sk.Visible}), TypeError, "Visible is a class"),
        (("keyframe", {"measure": (sk.MaskIoU,)}), TypeError, r"MaskIoU is a class; write MaskIoU\(\)"),
        (("keyframe", {"measure": sk.MaskIoU()}), TypeError, r"measure=MaskIoU\(.*\): give a tuple"),
        (("keyframe", {"measure": ("junk",)}), TypeError, "measure: 'junk' is no scorer"),
        (("keyframe", {"codes": "time"}), ValueError, "'rank', 'slot'"),
        (("keyframe", {"change": sk.KalmanOverlap() > 0}), ValueError, "only choice=Kalman"),
        (("every_nth", {"n": 0}), ValueError, "n=0"),
    ],
)
def test_bad_input_changes_nothing(predictor: Any, arguments: Any, error: type[Exception], message: str) -> None:
    before = _attributes(predictor)
    name, overrides = (*arguments, {})[:2]
    with pytest.raises(error, match=message):
        sk.wrap(predictor, name, **overrides)
    assert_untouched(before, predictor)


def test_a_state_dict_is_untouched(predictor: Any) -> None:
    keys = predictor.state_dict().keys()
    sk.wrap(predictor)
    assert predictor.state_dict().keys() == keys


def test_errors_of_sam2_stay_its_own(predictor: Any, clip_folder: Any) -> None:
    """SAM 2 says what is missing; wrapped, it says the same."""
    for method in (None, "stock", "window", "keyframe"):
        if method:
            sk.wrap(predictor, method)
        with pytest.raises(RuntimeError, match="No input points or masks are provided for any object"):
            next(predictor.propagate_in_video(predictor.init_state(str(clip_folder))))
