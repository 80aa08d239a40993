"""The clip generator: determinism, exact masks, and that each challenge does what its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sam2_keyframe import synthetic
from sam2_keyframe.synthetic import ABSENCES, CHALLENGES, casting, make_clip
from sam2_keyframe.synthetic.casting import KNOBS, WAYS, runs, shortest

SIZE = 64
SUMS = {  # mean of all frames and of the last, pixels of both objects: committed figures are made from these clips
    "static": (135.095, 141.542, 8994, 6634),
    "deformation": (101.463, 104.545, 6901, 6965),
    "scale": (130.003, 123.753, 6381, 22185),
    "fast": (105.018, 103.717, 2363, 19657),
    "occlusion": (112.937, 102.251, 3446, 10685),
    "leave_and_return": (162.038, 160.824, 2559, 1187),
    "look_alike": (113.142, 115.920, 1914, 4683),
    "illumination": (89.640, 126.647, 10912, 5679),
    "camera_shake": (146.944, 145.790, 27704, 3466),
    "scene_cut": (114.512, 115.609, 6928, 3009),
    "long": (84.771, 86.712, 3989, 14362),
}


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_a_clip_has_the_promised_shape_and_its_object_in_frame_0(challenge: str) -> None:
    clip = make_clip(challenge, 3, 12, SIZE, photos=False)
    assert clip.frames.shape == (12, SIZE, SIZE, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.masks.shape == (12, SIZE, SIZE)
    assert set(np.unique(clip.masks)) <= {0, 1}
    assert clip.visible.shape == (12, 1)
    assert clip.visible[0, 0]
    assert (clip.challenge, clip.seed, clip.objects) == (challenge, 3, 1)
    assert clip.frames.std() > 4


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_the_same_arguments_give_the_same_clip_and_another_seed_another(challenge: str) -> None:
    one, two, other = (make_clip(challenge, seed, 6, SIZE, photos=False) for seed in (5, 5, 6))
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.masks, two.masks)
    assert not np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_a_seed_gives_the_clip_that_it_always_gave(challenge: str) -> None:
    clip = make_clip(challenge, 7, 24, SIZE, 2, photos=False)
    found = (clip.frames.mean(), clip.frames[23].mean(), (clip.masks == 1).sum(), (clip.masks == 2).sum())
    assert found == pytest.approx(SUMS[challenge], abs=0.002)  # processors differ in the last bit of a pixel


def test_long_occlusion_clips_are_what_they_were() -> None:
    clip = make_clip("occlusion", 7, 150, 48, photos=False)
    assert (clip.frames.mean(), (clip.masks == 1).sum()) == pytest.approx((94.676, 8697), abs=0.002)


def test_photographs_make_other_clips_and_are_deterministic_too() -> None:
    pytest.importorskip("skimage")
    plain, one, two = (make_clip("static", 1, 3, SIZE, photos=use) for use in (False, True, True))
    assert np.array_equal(one.frames, two.frames)
    assert not np.array_equal(plain.frames, one.frames)


def test_without_scikit_image_photographs_are_refused_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic.tex, "have_photos", lambda: False)
    procedural = make_clip("scale", 2, 2, SIZE, photos=False)
    assert np.array_equal(make_clip("scale", 2, 2, SIZE).frames, procedural.frames)
    with pytest.raises(ImportError, match="scikit-image"):
        make_clip("scale", 2, 2, SIZE, photos=True)


def test_chosen_times_equal_the_frames_of_the_whole_clip() -> None:
    whole = make_clip("long", 4, 20, SIZE, photos=False)
    some = make_clip("long", 4, 20, SIZE, photos=False, times=[0, 7, 19, 3])
    assert np.array_equal(some.frames, whole.frames[[0, 7, 19, 3]])
    assert np.array_equal(some.masks, whole.masks[[0, 7, 19, 3]])


def test_any_size_and_several_objects() -> None:
    clip = make_clip("deformation", 8, 5, (48, 96), objects=2, photos=False)
    assert clip.frames.shape == (5, 48, 96, 3)
    assert clip.visible[0].tolist() == [True, True]
    assert set(np.unique(clip.masks)) == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("challenge", ["occlusion", "leave_and_return", "scene_cut", "long"])
def test_the_object_vanishes_and_comes_back(challenge: str) -> None:
    gone = back = 0
    for seed in range(6):
        seen = make_clip(challenge, seed, 24, SIZE, photos=False).visible[:, 0]
        hidden = np.flatnonzero(~seen)
        gone += hidden.size > 0
        back += hidden.size > 0 and bool(seen[hidden.max() :].any())
    assert gone >= 4
    assert back >= 4


def test_a_long_clip_spreads_its_absences() -> None:
    hidden = np.flatnonzero(~make_clip("long", 11, 120, 48, photos=False).visible[:, 0])
    assert hidden.size
    assert np.ptp(hidden) > 40


@pytest.mark.parametrize(("frames", "count", "low", "high"), [(96, 4, 3, 8), (288, 4, 9, 24), (960, 4, 30, 80)])
def test_hidden_spans_grow_with_the_length_of_a_clip(frames: int, count: int, low: int, high: int) -> None:
    lengths = []
    for seed in range(30):
        spans = casting._windows(np.random.default_rng(seed), frames, ["leave"], grow=True)
        assert len(spans) == count
        lengths += [last - first for _, first, last in spans]
    assert (min(lengths), max(lengths)) == (low, high)
    assert len(casting._windows(np.random.default_rng(0), frames, ["hide"])) == frames / 24


def test_a_clip_that_is_long_leaves_its_object_out_for_long() -> None:
    clip = make_clip("leave_and_return", 2, 240, 16, photos=False)
    assert max(last - first for first, last in runs(~clip.visible[:, 0])) > 8


@pytest.mark.slow
@pytest.mark.parametrize("challenge", ABSENCES)
def test_absences_are_as_long_as_asked_and_the_object_comes_back(challenge: str) -> None:
    for seed, frames, absences in ((1, 150, (30, 80)), (2, 110, (8, 20))):
        clip = make_clip(challenge, seed, frames, 48, photos=False, absences=absences)
        share = (clip.masks == 1).mean((1, 2))
        spans = runs(share == 0)
        assert len(spans) >= 1 + (absences[1] == 20)
        assert all(absences[0] <= last - first <= absences[1] for first, last in spans)
        assert all(share[last : last + 30].mean() > 0.008 for _, last in spans)
        assert share[: spans[0][0]].min() > 0


def _other_pixels(challenge: str, seed: int) -> list[float]:
    """How much of the frame before an absence is still there in its middle: the share of pixels that changed little."""
    clip = make_clip(challenge, seed, 100, 48, photos=False)
    still = []
    for first, last in runs(~clip.visible[:, 0]):
        before, middle = (clip.frames[t].astype(float) for t in (max(0, first - 12), (first + last) // 2))
        still.append(float((np.abs(before - middle).mean(-1) < 24).mean()))
    return still


@pytest.mark.slow
def test_the_ways_to_be_away_differ_in_how_much_of_the_frame_stays_in_view() -> None:
    shares = {way: np.mean([x for s in range(2) for x in _other_pixels(f"absence_{way}", s)]) for way in WAYS}
    assert min(shares["leaving"], shares["partial"]) > shares["filled"] + 0.1  # the camera moves on meanwhile


def test_an_object_ages_and_its_look_alike_does_not() -> None:
    from sam2_keyframe.synthetic.casting import Maker

    rng = np.random.default_rng(0)
    scene = Maker(rng, replace(KNOBS["absence"], twins=(1, 1)), 300, (48, 48), False).scene(1, 0)
    own = [layer for layer in scene.layers if layer.obj_id == 1]
    assert all(layer.tint is not None and np.ptp(layer.tint, 0).max() > 0.1 for layer in own)
    assert all(np.array_equal(layer.tint[0], np.ones(3)) for layer in own)
    twins = [x for x in scene.layers if x.obj_id == 0 and any(x.patch is y.patch for y in own)]
    assert twins
    assert all(layer.tint is None for layer in twins)


def test_absences_need_room() -> None:
    assert shortest((30, 80)) == 64
    make_clip("absence_filled", 0, 64, 32, photos=False)
    with pytest.raises(ValueError, match="needs 64; give more frames, or shorter absences"):
        make_clip("absence", 0, 63, 32)
    with pytest.raises(ValueError, match="a longest one 12 above"):
        make_clip("absence", 0, 100, 32, absences=(30, 35))


@pytest.mark.parametrize("challenge", ["static", "deformation", "scale", "fast", "illumination", "camera_shake"])
def test_the_object_stays_where_nothing_hides_it(challenge: str) -> None:
    share = np.mean([make_clip(challenge, seed, 24, SIZE, photos=False).visible.mean() for seed in range(4)])
    assert share > 0.9


def _motion(challenge: str) -> float:
    steps = []
    for seed in range(5):
        masks = make_clip(challenge, seed, 10, SIZE, photos=False).masks > 0
        spots = [np.argwhere(m).mean(0) for m in masks if m.any()]
        steps.append(np.linalg.norm(np.diff(spots, axis=0), axis=1).mean() if len(spots) > 1 else 0.0)
    return float(np.mean(steps))


def test_fast_objects_move_more_than_static_ones() -> None:
    assert _motion("fast") > 4 * _motion("static")


def test_illumination_changes_brightness_more_than_a_static_clip_does() -> None:
    def swing(challenge: str) -> float:
        clips = (make_clip(challenge, seed, 16, 48, photos=False).frames for seed in range(5))
        return float(np.mean([np.ptp(frames.mean((1, 2, 3))) for frames in clips]))

    assert swing("illumination") > 1.5 * swing("static")


def test_a_look_alike_wears_the_objects_texture_without_its_id() -> None:
    from sam2_keyframe.synthetic.casting import KNOBS, build

    scene = build(KNOBS["look_alike"], (1, 2), 4, (48, 48), 1, False)
    target = next(layer for layer in scene.layers if layer.obj_id == 1)
    assert any(layer.patch is target.patch for layer in scene.layers if layer.obj_id == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"challenge": "teleport"}, "choose from static, deformation"),
        ({"seed": -1}, "out of range"),
        ({"frames": 0}, "out of range"),
        ({"size": 8}, "out of range"),
        ({"objects": 0}, "out of range"),
        ({"times": [4]}, "times must lie in 0 to 3"),
        ({"times": []}, "times must lie"),
    ],
)
def test_bad_arguments_say_what_would_be_good(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_clip(**{"challenge": "static", "seed": 0, "frames": 4, "size": 32, **arguments})  # type: ignore[arg-type]
