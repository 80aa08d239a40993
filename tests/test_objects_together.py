"""Objects in one batch: the masks and decisions of objects tracked one by one, whatever the user does in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from batches import legacy

import sam2_keyframe as sk
from benchmarks.models import shared_features
from sam2_keyframe import Foveated, KeyframeMemory, Keyframes, NearObject, Recent, Visible
from sam2_keyframe.attention.schemes import Modulated, SalientTokens
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.micro import load_micro_model, load_micro_predictor
from sam2_keyframe.plugin import ATTRIBUTE
from sam2_keyframe.synthetic import make_clip

SIZE, FRAMES = 64, 9


@pytest.fixture(scope="module")
def clip() -> Any:
    return make_clip("occlusion", seed=5, frames=FRAMES, size=SIZE, objects=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_micro_predictor(image_size=SIZE)


def mask(clip: Any, t: int, obj_id: int) -> Any:
    return torch.from_numpy(clip.masks[t] == obj_id)


def started(model: Any, clip: Any, states: list[Any], objects: tuple[int, ...] = (1, 2, 3), t: int = 0) -> Any:
    """Return a state with its objects prompted on frame `t`, and add it to `states`."""
    state = sk.init_state(model, clip.frames)
    states.append(state)
    for obj_id in objects:
        model.add_new_mask(state, t, obj_id, mask(clip, t, obj_id))
    return state


def plain(model: Any, clip: Any, states: list[Any]) -> Iterator[Any]:
    yield from model.propagate_in_video(started(model, clip, states))


def prompts_on_other_frames(model: Any, clip: Any, states: list[Any]) -> Iterator[Any]:
    """One object is prompted late, one twice, and the first is clicked on while the others go on."""
    state = started(model, clip, states)
    model.add_new_mask(state, 2, 2, mask(clip, 2, 2))
    yield from model.propagate_in_video(state, max_frame_num_to_track=4)
    yield model.add_new_points_or_box(state, 4, 1, points=[[20.0, 20.0]], labels=[1])
    model.add_new_mask(state, 5, 9, mask(clip, 5, 3))
    yield from model.propagate_in_video(state, start_frame_idx=3)


def removed_between(model: Any, clip: Any, states: list[Any]) -> Iterator[Any]:
    """An object goes, and another comes, in the loop over the frames."""
    state = started(model, clip, states)
    for output in model.propagate_in_video(state):
        yield output
        if output[0] == 3:
            model.remove_object(state, 2)
        if output[0] == 5:
            model.add_new_mask(state, 5, 7, mask(clip, 5, 2))


def reverse(model: Any, clip: Any, states: list[Any]) -> Iterator[Any]:
    state = started(model, clip, states, (1, 2), FRAMES - 1)
    yield from model.propagate_in_video(state, start_frame_idx=FRAMES - 1, reverse=True)


def late_objects_absent_before(model: Any, clip: Any, states: list[Any]) -> Iterator[Any]:
    state = started(model, clip, states, (1, 2))
    model.add_new_mask(state, 4, 3, mask(clip, 4, 3))
    yield from model.propagate_in_video(state)


SESSIONS = (plain, prompts_on_other_frames, removed_between, reverse, late_objects_absent_before)

METHODS: dict[str, KeyframeMemory] = {
    "stock": sk.make_method("stock"),
    "keyframe": sk.make_method("keyframe"),
    "fewer tokens": sk.make_method("keyframe", attend=Foveated(0.3, 2), queries=NearObject(2)),
    "salient": sk.make_method("keyframe", attend=SalientTokens(0.3)),
    "modulated": sk.make_method("samurai", attend=Modulated()),
    "anchors": KeyframeMemory(Recent(2), Keyframes(2, Visible(), code="prompt"), codes="slot"),
    "absent": sk.make_method("keyframe", prompts=sk.Prompts(future=False)),
}
WHICH = [
    *((name, plain) for name in METHODS),
    *(("keyframe", session) for session in SESSIONS[1:]),
    ("stock", removed_between),
    ("absent", late_objects_absent_before),
]


def run(model: Any, method: Any, clip: Any, session: Any, together: bool, banks: list[Any]) -> list[Any]:
    """Return what a session saw, with each object's rows of statistics in `banks`."""
    states: list[Any] = []
    with torch.inference_mode(), shared_features(model), sk.wrap(model, method, batch_objects=together):
        seen = [(t, list(ids), masks.clone()) for t, ids, masks in session(model, clip, states)]
        for state in states:
            banks += [(obj_id, stats.rows) for obj_id, stats in sk.memory_stats(state).items()]
    return seen


def decisions(banks: list[Any]) -> list[Any]:
    return [
        (obj_id, row.frame_idx, row.keyframe, row.keyframes, row.attended, row.evicted, row.memory.tokens, row.queries)
        for obj_id, rows in banks
        for row in rows
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "session"), WHICH, ids=[f"{name}-{session.__name__}" for name, session in WHICH])
def test_masks_and_decisions_are_those_of_objects_one_by_one(model: Any, clip: Any, name: str, session: Any) -> None:
    alone: list[Any] = []
    together: list[Any] = []
    one = run(model, METHODS[name], clip, session, False, alone)
    all_ = run(model, METHODS[name], clip, session, True, together)
    assert [seen[:2] for seen in one] == [seen[:2] for seen in all_]
    for a, b in zip(one, all_, strict=True):
        assert torch.allclose(a[2], b[2], atol=1e-4 * float(a[2].abs().max()), rtol=0), a[0]
    assert decisions(alone) == decisions(together)
    assert any(row.memory.tokens for _, rows in alone for row in rows)


def count_calls(model: Any, name: str) -> tuple[list[int], Any]:
    """Return the batch sizes that a module of the model was called with, and its hook."""
    sizes: list[int] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        sizes.append(output[0].shape[0] if isinstance(output, tuple) else output.shape[1])

    return sizes, getattr(model, name).register_forward_hook(note, with_kwargs=True)


def test_one_computation_a_frame_for_all_objects_whose_reads_are_alike(model: Any, clip: Any) -> None:
    attended, hook = count_calls(model, "memory_attention")
    decoded, other = count_calls(model, "sam_mask_decoder")
    with torch.inference_mode(), hook, other, sk.wrap(model, batch_objects=True):
        state = started(model, clip, [])
        decoded.clear()
        list(model.propagate_in_video(state))
    assert attended == decoded == [3] * (FRAMES - 1)


def test_objects_whose_reads_differ_are_attended_to_apart_and_decoded_together(model: Any, clip: Any) -> None:
    attended, hook = count_calls(model, "memory_attention")
    decoded, other = count_calls(model, "sam_mask_decoder")
    with torch.inference_mode(), hook, other, sk.wrap(model, batch_objects=True):
        state = started(model, clip, [])
        model.add_new_mask(state, 2, 3, mask(clip, 2, 3))
        decoded.clear()
        list(model.propagate_in_video(state))
    # frame 2 is prompted for one object, and afterwards it reads one prompted frame more until the others fill up
    assert decoded == [3, 2, *[3] * (FRAMES - 3)]
    assert attended[:2] == [2, 1]
    assert 1 in attended[3:]
    assert sum(attended) == sum(decoded)


def test_where_sam2_mixes_the_masks_of_a_batch_objects_are_tracked_one_by_one(model: Any, clip: Any) -> None:
    seen = []
    model.non_overlap_masks_for_mem_enc = True
    try:
        for together in (False, True):
            with torch.inference_mode(), sk.wrap(model, batch_objects=together):
                seen.append([masks for *_, masks in model.propagate_in_video(started(model, clip, []))])
    finally:
        model.non_overlap_masks_for_mem_enc = False
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_nothing_is_left_after_unwrap_nor_after_an_error_in_a_frame(model: Any, clip: Any) -> None:
    before = {key: value for key, value in vars(model).items() if key != ATTRIBUTE}
    with torch.inference_mode():
        with sk.wrap(model, batch_objects=True):
            state = started(model, clip, [])
            tracking = model.propagate_in_video(state)
            next(tracking), next(tracking)
            broken = state["output_dict_per_obj"][2]["cond_frame_outputs"][0].pop("maskmem_features")
            with pytest.raises(KeyError, match="maskmem_features"):
                next(tracking)
            state["output_dict_per_obj"][2]["cond_frame_outputs"][0]["maskmem_features"] = broken
            again = [t for t, *_ in model.propagate_in_video(state, start_frame_idx=2)]
        assert again == list(range(2, FRAMES))
        assert vars(model) == before
        sk.forget(state)
        assert KEY not in state
        assert all(KEY not in place for place in state["output_dict_per_obj"].values())
        list(model.propagate_in_video(state, start_frame_idx=5))


def test_objects_hold_no_slices_of_a_batch_so_what_one_lets_go_is_free(model: Any, clip: Any) -> None:
    with torch.inference_mode(), sk.wrap(model, batch_objects=True):
        state = started(model, clip, [])
        list(model.propagate_in_video(state))
    for place in state["output_dict_per_obj"].values():
        for entry in place["non_cond_frame_outputs"].values():
            for key in ("maskmem_features", "pred_masks", "obj_ptr"):
                assert entry[key].untyped_storage().nbytes() <= entry[key].nbytes


def test_one_predictor_two_states_two_threads(model: Any, clip: Any) -> None:
    def track(objects: tuple[int, ...], found: list[Any]) -> None:
        with torch.inference_mode():
            state = started(model, clip, [], objects)
            found += [masks.clone() for *_, masks in model.propagate_in_video(state)]

    with sk.wrap(model, batch_objects=True):
        expected: list[list[Any]] = [[], []]
        track((1, 2), expected[0]), track((3, 1, 2), expected[1])
        found: list[list[Any]] = [[], []]
        threads = [threading.Thread(target=track, args=args) for args in (((1, 2), found[0]), ((3, 1, 2), found[1]))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) == FRAMES
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_recording_is_that_of_objects_one_by_one(model: Any, clip: Any) -> None:
    steps = []
    for together in (False, True):
        with torch.inference_mode(), sk.wrap(model, batch_objects=together):
            state = started(model, clip, [])
            with sk.record(model, state) as recording:
                list(model.propagate_in_video(state))
        steps.append([(step.obj_id, step.frame_idx, step.kind, step.mask) for step in recording.steps])
    assert steps[0] == steps[1]
    assert len(steps[0]) == 3 * FRAMES


def test_a_predictor_that_batches_by_itself_attends_to_all_objects_at_once(clip: Any) -> None:
    seen, predictor = [], legacy(image_size=SIZE)
    attended, hook = count_calls(predictor, "memory_attention")
    with torch.inference_mode(), hook:
        for together in (False, True):
            attended.clear()
            with sk.wrap(predictor, batch_objects=together):
                seen.append([masks.clone() for *_, masks in predictor.propagate_in_video(started(predictor, clip, []))])
            assert attended == ([3] if together else [1, 1, 1]) * (FRAMES - 1)
    for a, b in zip(*seen, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()), rtol=0)


def test_a_compiled_predictor_and_other_hosts_are_refused_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    class SAM2VideoPredictorVOS(SAM2VideoPredictor):  # type: ignore[misc]
        pass

    predictor = load_micro_predictor(image_size=SIZE)
    predictor.__class__ = SAM2VideoPredictorVOS
    before = dict(vars(predictor))
    with pytest.raises(RuntimeError, match="compiles its parts for one object at a time: leave out batch_objects"):
        sk.wrap(predictor, batch_objects=True)
    assert vars(predictor) == before
    pytest.importorskip("transformers")
    model = load_micro_model("transformers", image_size=SIZE)
    with pytest.raises(ValueError, match="Sam2VideoModel of transformers tracks its objects one by one: leave it out"):
        sk.wrap(model, batch_objects=True)
    assert ATTRIBUTE not in vars(model)
