"""The clip generator: determinism, exact masks, and that each challenge does what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from sam2_keyframe import synthetic
from sam2_keyframe.synthetic import CHALLENGES, make_clip

SIZE = 64


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
