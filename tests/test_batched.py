"""Predictors that track all objects in one batch: on SAM 2's legacy predictor, with the same weights as the others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import legacy
from conftest import a_few, make_predictor, write_frames
from memories import AGAIN
from plans import chosen, replanned
from sessions import SESSIONS, assert_equal, assert_lively, run

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches import batched as patch
from sam2_keyframe.patches import find_host, sam2
from sam2_keyframe.synthetic import make_clip

BOUND = 1e-4
"""Most that mask logits may differ where attention runs object by object and not in one batch. On the machine on which
this was written they do not differ at all; the faults below change them by more than this."""

ROUNDING = 0.2
"""Most that mask logits of up to 1,000 may differ where the host itself, not our read, computes in one batch what it
otherwise computes object by object; the masks' outlines agree."""

SEVERAL = [name for name in SESSIONS if name not in ("late_object", "forward", "reverse", "both_ways", "over_again")]
ONE = ["forward", "reverse", "both_ways", "over_again"]
LONG = (
    "offloaded_state",
    "offloaded_video",
    "several_prompts",
    "cleared_prompt",
    "two_videos",
    "both_ways",
    "over_again",
)
"""Sessions that are run among the slow tests. An object cannot be added late: the host refuses it."""


def sessions(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


def difference(left: Any, right: Any) -> float:
    """Return the most that the mask logits of two runs of a session differ."""
    assert [entry[:3] for entry in left[0]] == [entry[:3] for entry in right[0]]
    return max(float((a[3] - b[3]).abs().max()) for a, b in zip(left[0], right[0], strict=True))


@pytest.fixture(scope="module")
def unwrapped(clip_folder: Any, clip: Any) -> Any:
    """Runs of the unwrapped legacy predictor, by session."""
    runs: dict[str, Any] = {}

    def get(session: str) -> Any:
        if session not in runs:
            runs[session] = run(legacy(), session, clip_folder, clip)
            assert_lively(runs[session][0])
        return runs[session]

    return get


@pytest.fixture
def predictor() -> Any:
    return legacy()


# -- what changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", sessions(SEVERAL))
def test_stock_is_the_host_up_to_rounding(
    session: str, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    sk.wrap(predictor, "stock")
    ours = run(predictor, session, clip_folder, clip)
    assert difference(ours, unwrapped(session)) <= BOUND
    for mine, theirs in zip(ours[1], unwrapped(session)[1], strict=True):
        assert mine.keys() == theirs.keys()


@pytest.mark.parametrize("session", sessions(ONE))
def test_stock_is_the_host_to_the_last_bit_with_one_object(
    session: str, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    sk.wrap(predictor, "stock")
    assert_equal(run(predictor, session, clip_folder, clip), unwrapped(session))


@pytest.mark.slow
def test_one_object_is_tracked_as_by_the_predictor_of_today(clip_folder: Any, clip: Any) -> None:
    for method in ("keyframe", "dam4sam", "compact"):
        runs = []
        for predictor in (legacy(), make_predictor()):
            sk.wrap(predictor, method, **({"attend": sk.Foveated(0.2, 2)} if method == "compact" else {}))
            runs.append(run(predictor, "forward", clip_folder, clip))
        assert_equal(*runs)


@pytest.mark.parametrize("session", sessions(["forward", "two_objects", "stepped", "offloaded_state", "two_videos"]))
def test_window_is_lossless_in_one_sweep(
    session: str, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    sk.wrap(predictor, "window")
    ours, plain = run(predictor, session, clip_folder, clip), unwrapped(session)
    assert difference(ours, plain) <= (0 if session == "forward" else BOUND)
    assert all(len(state["output_dict"]["non_cond_frame_outputs"]) == 0 for state in ours[2])


def test_the_read_is_split(monkeypatch: pytest.MonkeyPatch, predictor: Any, clip_folder: Any, clip: Any) -> None:
    """That nothing changes is no bypass: each object of the batch is shown a view of its own."""
    shown = []
    view = sam2.memory_view

    def seen(reading: Any, non_cond: Any, tpos: Any) -> Any:
        shown.append({entry["maskmem_features"].shape[0] for entry in non_cond.values()})
        return view(reading, non_cond, tpos)

    monkeypatch.setattr(sam2, "memory_view", seen)
    sk.wrap(predictor, "stock")
    run(predictor, "two_objects", clip_folder, clip)
    assert len(shown) == 2 * 14
    assert set().union(*shown) == {1}


def _leave_one_out(reading: Any) -> Any:
    return replanned(reading, chosen(reading)[:-1])


def _drop_pointer(reading: Any) -> Any:
    return replanned(reading, None, dict(list(reading.pointers.items())[1:]))


@pytest.mark.parametrize("fault", [_leave_one_out, _drop_pointer])
def test_a_fault_in_the_view_shows(
    fault: Any, monkeypatch: pytest.MonkeyPatch, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any
) -> None:
    """Negative control: were the view wrong in any one point, the tests above would fail."""
    view = sam2.memory_view
    monkeypatch.setattr(sam2, "memory_view", lambda reading, *rest: view(fault(reading), *rest))
    sk.wrap(predictor, "stock")
    assert difference(run(predictor, "two_objects", clip_folder, clip), unwrapped("two_objects")) > BOUND


# -- every method, two objects of which one disappears -------------------------------------------------------------


FRAMES = 18


@pytest.fixture(scope="module")
def leaving(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A clip whose first object leaves the picture and comes back, and its folder."""
    clip = make_clip("leave_and_return", seed=5, frames=FRAMES, size=128, objects=2)
    return clip, write_frames(tmp_path_factory.mktemp("leaving"), clip.frames)


def track(
    predictor: Any, clip: Any, folder: Path, objects: tuple[int, ...] = (1, 2), frames: int | None = None
) -> tuple[torch.Tensor, Any]:
    """Return (frames, objects, H, W) mask logits and the state."""
    state = predictor.init_state(str(folder))
    for obj_id in objects:
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    return torch.stack(
        [masks[:, 0].clone() for _, _, masks in predictor.propagate_in_video(state, None, frames)]
    ), state


MICRO = {"make": load_micro_predictor, "image_size": 128}


@pytest.mark.parametrize("name", AGAIN)
def test_what_infers_a_frame_twice_is_refused(name: str) -> None:
    predictor = legacy(**MICRO)
    before = dict(vars(predictor))
    with pytest.raises(ValueError, match="SAM2VideoPredictor of December 2024 or later alone: choose None here"):
        sk.wrap(predictor, name)
    assert vars(predictor) == before


HERE = [name for name in sk.METHODS if name not in AGAIN]


@pytest.mark.slow
@pytest.mark.parametrize("name", a_few(HERE, "stock", "keyframe", "compact", "dam4sam", "xmem_style"))
def test_every_method(name: str, leaving: Any) -> None:
    """Each object has the frames attended to and the masks that it has where objects are tracked one by one."""
    clip, folder = leaving
    there = [bool((masks == 1).any()) for masks in clip.masks]
    assert there[0]
    assert not all(there)
    how = {"compact": {"attend": sk.Foveated(0.2, 2)}, "genetic": {"frames": (3, 9, 15)}}.get(name, {})
    runs = []
    for predictor in (legacy(**MICRO), load_micro_predictor(image_size=128)):
        sk.wrap(predictor, name, **how)
        runs.append(track(predictor, clip, folder))
    (ours, state), (single, other) = runs
    assert torch.isfinite(ours).all()
    assert any((ours[t, 0] <= 0).all() for t in range(len(ours)))
    assert (ours[:, 1] > 0).any()
    assert float((ours - single).abs().max()) <= ROUNDING
    assert ((ours > 0) != (single > 0)).float().mean() < 1e-4
    stats, expected = sk.memory_stats(state), sk.memory_stats(other)
    for obj_id in (1, 2):
        mine, theirs = stats[obj_id], expected[obj_id]
        assert [row.attended for row in mine.rows] == [row.attended for row in theirs.rows]
        assert (mine.keyframes, mine.peak_tokens) == (theirs.keyframes, theirs.peak_tokens)
        assert [row.memory.nbytes for row in mine.rows] == [row.memory.nbytes for row in theirs.rows]
    tracked = state["output_dict"]["non_cond_frame_outputs"]
    if sk.make_method(name, **how).store == "all":
        assert len(tracked) == len(ours) - 1
        return
    assert not tracked
    for place in state["output_dict_per_obj"].values():
        for entry in place["non_cond_frame_outputs"].values():
            for key in ("maskmem_features", "pred_masks", "obj_ptr"):
                assert entry[key].untyped_storage().nbytes() == entry[key].nbytes, "a slice keeps the batch alive"


def test_an_object_does_not_depend_on_the_others(leaving: Any) -> None:
    """Each chooses by itself: alone it has the same masks and keyframes as beside the other."""
    clip, folder = leaving
    predictor = legacy(**MICRO)
    sk.wrap(predictor, "keyframe", change=0.1)
    together, state = track(predictor, clip, folder)
    both = sk.memory_stats(state)
    for i, obj_id in enumerate((1, 2)):
        alone, state = track(predictor, clip, folder, (obj_id,))
        assert float((together[:, i] - alone[:, 0]).abs().max()) <= ROUNDING
        assert [row.keyframe for row in sk.memory_stats(state)[obj_id].rows] == [r.keyframe for r in both[obj_id].rows]
    kept = [[row.frame_idx for row in stats.rows if row.keyframe] for stats in both.values()]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("fault", ["read", "stored"])
def test_objects_mistaken_for_each_other_show(fault: str, monkeypatch: pytest.MonkeyPatch, leaving: Any) -> None:
    """Negative control: each object gets the other's features, or its entry is given to the other."""
    clip, folder = leaving
    plain, _ = track(legacy(**MICRO), clip, folder, frames=4)
    if fault == "read":
        read = patch.Batched._read

        def mistaken(self: Any, original: Any, call: Any) -> torch.Tensor:
            return read(self, original, call).flip(0)

        monkeypatch.setattr(patch.Batched, "_read", mistaken)
    else:
        split = patch.split
        monkeypatch.setattr(patch, "split", lambda *args, **how: split(*args, **how)[::-1])
    predictor = legacy(**MICRO)
    sk.wrap(predictor, "stock")
    assert float((track(predictor, clip, folder, frames=4)[0] - plain).abs().max()) > BOUND


# -- nothing left -------------------------------------------------------------------------------------------------


def test_nothing_is_left(leaving: Any) -> None:
    clip, folder = leaving
    predictor = legacy()
    before, hooks = dict(vars(predictor)), dict(predictor.sam_mask_decoder._forward_hooks)
    layers = [dict(vars(layer.cross_attn_image)) for layer in predictor.memory_attention.layers]
    handle = sk.wrap(predictor, "compact", attend=sk.Foveated(0.2, 2))
    _, state = track(predictor, clip, folder)
    handle.unwrap()
    assert vars(predictor) == before
    assert predictor.sam_mask_decoder._forward_hooks == hooks
    assert [dict(vars(layer.cross_attn_image)) for layer in predictor.memory_attention.layers] == layers
    sk.forget(state)
    assert KEY not in state
    assert KEY not in state["constants"]
    for place in (state["output_dict"], *state["output_dict_per_obj"].values()):
        assert place.keys() == {"cond_frame_outputs", "non_cond_frame_outputs"}
        for entry in (entry for kind in place.values() for entry in kind.values()):
            assert KEY not in entry


@pytest.mark.parametrize("method", ["window", "stock"])
def test_the_host_goes_on_by_itself(method: str, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any) -> None:
    """Unwrapped in the middle, the host finds in its batches what it reads next."""
    handle = sk.wrap(predictor, method)

    def between(part: int) -> None:
        if part == 2:
            handle.unwrap()

    ours = run(predictor, "stepped", clip_folder, clip, between)
    assert difference(ours, unwrapped("stepped")) <= BOUND
    assert len(ours[2][0]["output_dict"]["non_cond_frame_outputs"]) == 13


@pytest.mark.parametrize("part", [0, 1, 2])
def test_wrapping_in_the_middle(part: int, predictor: Any, clip_folder: Any, clip: Any, unwrapped: Any) -> None:
    """After `init_state`, after the prompts, and mid-video: what the host has in batches is split."""

    def between(now: int) -> None:
        if now == part:
            sk.wrap(predictor, "window")

    ours = run(predictor, "stepped", clip_folder, clip, between)
    assert difference(ours, unwrapped("stepped")) <= BOUND
    assert not ours[2][0]["output_dict"]["non_cond_frame_outputs"]


def test_a_copied_state_goes_on_as_the_original(leaving: Any) -> None:
    clip, folder = leaving
    predictor = legacy(**MICRO)
    sk.wrap(predictor, "keyframe", change=0.1)
    whole, _ = track(predictor, clip, folder)
    state = predictor.init_state(str(folder))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    for _ in predictor.propagate_in_video(state, max_frame_num_to_track=11):
        pass
    twin = copy.deepcopy(state)
    rest = [masks[:, 0] for _, _, masks in predictor.propagate_in_video(twin, start_frame_idx=12)]
    assert torch.equal(torch.stack(rest), whole[12:])
    sk.unwrap(predictor)
    assert len(twin["output_dict"]["non_cond_frame_outputs"]) == FRAMES - 1


# -- corrections, removals, resets --------------------------------------------------------------------------------


@pytest.fixture
def corrected(leaving: Any) -> Any:
    """A state of two objects, tracked to frame 12; the second is corrected on frame 8."""
    clip, folder = leaving
    predictor = legacy(**MICRO)
    sk.wrap(predictor, "keyframe", change=0.1)
    state = predictor.init_state(str(folder))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    for _ in predictor.propagate_in_video(state, max_frame_num_to_track=12):
        pass
    predictor.add_new_mask(state, 8, 2, torch.from_numpy(clip.masks[8] == 2))
    return predictor, state


def attended(state: Any, obj_id: int, start: int) -> list[tuple[int, ...]]:
    return [row.attended for row in sk.memory_stats(state)[obj_id].rows if row.frame_idx > start]


def test_a_correction_is_held_of_its_object_alone(corrected: Any, leaving: Any) -> None:
    predictor, state = corrected
    shown = {t: masks[:, 0] for t, _, masks in predictor.propagate_in_video(state, start_frame_idx=8)}
    truth = torch.from_numpy(leaving[0].masks[8] == 2)
    assert ((shown[8][1] > 0) == truth).float().mean() > 0.98
    assert all(8 in frames for frames in attended(state, 2, 14))
    assert not all(8 in frames for frames in attended(state, 1, 14))
    assert set(state["output_dict"]["non_cond_frame_outputs"]) == {8}
    for _ in range(2):  # passing over it again changes nothing
        again = {t: masks[:, 0] for t, _, masks in predictor.propagate_in_video(state, start_frame_idx=8)}
        assert torch.equal(again[8], shown[8])
    assert all(8 in frames for frames in attended(state, 2, 14))


def test_a_correction_taken_back_is_an_ordinary_frame(corrected: Any) -> None:
    predictor, state = corrected
    for _ in predictor.propagate_in_video(state, start_frame_idx=8, max_frame_num_to_track=3):
        pass
    predictor.clear_all_prompts_in_frame(state, 8, 2)
    assert not state["output_dict"]["non_cond_frame_outputs"]
    for _ in predictor.propagate_in_video(state, start_frame_idx=9):
        pass
    assert not any(8 in frames for frames in attended(state, 2, 15))


def test_an_object_is_removed(corrected: Any) -> None:
    predictor, state = corrected
    for _ in predictor.propagate_in_video(state, start_frame_idx=8, max_frame_num_to_track=4):
        pass
    before = sk.memory_stats(state)[2]
    predictor.remove_object(state, 1)
    for _, obj_ids, masks in predictor.propagate_in_video(state, start_frame_idx=13):
        assert list(obj_ids) == [2]
        assert masks.shape[0] == 1
    assert set(sk.memory_stats(state)) == {2}
    assert sk.memory_stats(state)[2] is before
    assert before.last.frame_idx == FRAMES - 1
    assert all(8 in frames for frames in attended(state, 2, 14))


def test_an_object_is_removed_in_the_loop(leaving: Any) -> None:
    clip, folder = leaving
    predictor = legacy(**MICRO)
    sk.wrap(predictor, "keyframe")
    state = predictor.init_state(str(folder))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    seen = []
    for t, obj_ids, masks in predictor.propagate_in_video(state):
        seen.append((t, len(obj_ids), masks.shape[0]))
        if t == 6:
            predictor.remove_object(state, 1)
    assert [t for t, _, _ in seen] == list(range(FRAMES))
    assert seen[7][1:] == (1, 1)


def test_a_state_is_reset(corrected: Any, leaving: Any) -> None:
    predictor, state = corrected
    for _ in predictor.propagate_in_video(state, start_frame_idx=8, max_frame_num_to_track=4):
        pass
    predictor.reset_state(state)
    assert sk.memory_stats(state) == {}
    predictor.add_new_mask(state, 2, 7, torch.from_numpy(leaving[0].masks[2] == 2))
    for _ in predictor.propagate_in_video(state):
        pass
    stats = sk.memory_stats(state)[7]
    assert [row.frame_idx for row in stats.rows] == list(range(3, FRAMES))
    predictor.clear_all_prompts_in_frame(state, 2, 7)  # the last one: the host forgets what it tracked
    assert sk.memory_stats(state) == {}
    assert not state["output_dict_per_obj"][0]["non_cond_frame_outputs"]


def test_clicks_are_inferred_without_tracking(corrected: Any) -> None:
    predictor, state = corrected
    rows = {obj_id: len(stats.rows) for obj_id, stats in sk.memory_stats(state).items()}
    _, _, masks = predictor.add_new_points_or_box(state, 10, 2, points=[[64.0, 64.0]], labels=[1])
    assert masks.shape[0] == 2
    assert {obj_id: len(stats.rows) for obj_id, stats in sk.memory_stats(state).items()} == rows


def test_a_stream_is_the_whole_video(leaving: Any) -> None:
    clip, _ = leaving
    predictor = legacy(**MICRO)
    masks = {obj_id: clip.masks[0] == obj_id for obj_id in (1, 2)}
    state = sk.init_state(predictor, clip.frames)
    for obj_id, mask in masks.items():
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(mask))
    whole = [logits.clone() for _, _, logits in predictor.propagate_in_video(state)]
    with sk.Stream(predictor, "window", max_prompts=2) as stream:
        for t, frame in enumerate(clip.frames):
            _, _, logits = stream.step(frame, masks=masks if t == 0 else None)
            assert float((logits - whole[t]).abs().max()) <= BOUND
            if t == 5:
                break
        stream.correct(masks={2: clip.masks[5] == 2})
        for t in range(6, 12):
            stream.step(clip.frames[t], masks={1: clip.masks[t] == 1} if t in (7, 8, 9) else None)
        assert sorted(stream._state["output_dict"]["cond_frame_outputs"]) == [0, 9]  # type: ignore[index]
        assert set(stream.stats) == {1, 2}


# -- what it takes ------------------------------------------------------------------------------------------------


def held_bytes(state: Any) -> int:
    """Return the bytes of every tensor that a state keeps, pixels and the cached features apart."""
    found: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner)

    walk([state["output_dict"], state["output_dict_per_obj"], state["temp_output_dict_per_obj"], state["constants"]])
    return sum(found.values())


@pytest.mark.slow
def test_bytes_over_a_long_run(tmp_path: Path) -> None:
    """Of 300 frames and two objects: stock grows, window and keyframe do not; without masks they stay flat."""
    clip = make_clip("leave_and_return", seed=1, frames=300, size=64, objects=2)
    folder = write_frames(tmp_path / "frames", clip.frames)
    taken: dict[str, dict[int, int]] = {}
    for method in ("stock", "window", "keyframe"):
        predictor = legacy(make=load_micro_predictor, image_size=64)
        sk.wrap(predictor, method, **({} if method == "stock" else {"keep_masks": False}))
        state = predictor.init_state(str(folder))
        for obj_id in (1, 2):
            predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
        taken[method] = {t: held_bytes(state) for t, _, _ in predictor.propagate_in_video(state) if t in (100, 299)}
    print(taken)
    assert taken["stock"][299] > 2.5 * taken["stock"][100]
    for method in ("window", "keyframe"):
        assert taken[method][299] <= 1.05 * taken[method][100]
        assert taken[method][299] < 0.1 * taken["stock"][299]


# -- what cannot be done ------------------------------------------------------------------------------------------


def test_hosts_are_told_apart() -> None:
    assert find_host(legacy()).__name__ == "Batched"
    assert find_host(make_predictor()).__name__ == "Sam2"


def test_states_of_the_other_layout_are_refused(clip_folder: Any, clip: Any) -> None:
    old, new = legacy(), make_predictor()
    mask = torch.from_numpy(clip.masks[0] == 1)
    for maker, user in ((old, new), (new, old)):
        state = maker.init_state(str(clip_folder))
        maker.add_new_mask(state, 0, 1, mask)
        sk.wrap(user, "keyframe")
        with pytest.raises(RuntimeError, match=r"legacy layout; make .* with predictor.init_state\(\)"):
            next(user.propagate_in_video(state))
        sk.unwrap(user)


def test_an_object_cannot_be_added_late(predictor: Any, clip_folder: Any, clip: Any) -> None:
    sk.wrap(predictor, "keyframe")
    with pytest.raises(RuntimeError, match="Cannot add new object id 2 after tracking starts"):
        run(predictor, "late_object", clip_folder, clip)


@pytest.mark.parametrize("method", ["keyframe", "window"])
def test_a_replay_repeats_the_run(method: str, leaving: Any) -> None:
    """With a correction of one object, and a prompt of one that is a prompted frame of the other as well."""
    clip, folder = leaving
    predictor = legacy(**MICRO)
    state = predictor.init_state(str(folder))
    with sk.wrap(predictor, method), sk.record(predictor, state) as recording:
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        predictor.add_new_mask(state, 3, 2, torch.from_numpy(clip.masks[3] == 2))
        for _ in predictor.propagate_in_video(state, max_frame_num_to_track=12):
            pass
        predictor.add_new_mask(state, 8, 2, torch.from_numpy(clip.masks[8] == 2))
        for _ in predictor.propagate_in_video(state, start_frame_idx=9):
            pass
        live = sk.memory_stats(state)
    played = sk.replay(clip.frames, recording, method)
    assert played.prompts == {1: [0, 3], 2: [0, 3]}
    for obj_id, stats in live.items():
        rows, again = list(stats.rows), list(played.stats[obj_id].rows)
        assert [row.frame_idx for row in rows] == [row.frame_idx for row in again]
        assert [row.attended for row in rows] == [row.attended for row in again]
        assert [row.memory.frames for row in rows] == [row.memory.frames for row in again]


def test_what_is_refused(predictor: Any) -> None:
    predictor.samurai_mode = True
    with pytest.raises(TypeError, match="SAMURAI's fork has a memory rule of its own"):
        sk.wrap(predictor)


def test_a_host_that_lacks_a_method_is_refused(monkeypatch: pytest.MonkeyPatch, predictor: Any) -> None:
    def other(self: Any, inference_state: Any, frame_idx: Any, current_out: Any) -> None: ...

    monkeypatch.setattr(type(predictor), "_add_output_per_object", other)
    with pytest.raises(TypeError, match=r"_add_output_per_object\(\) does not take .*storage_key"):
        sk.wrap(predictor)
