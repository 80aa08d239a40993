"""What a bank takes and costs: bounded bytes, few tensor operations, one host read; and that it follows the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import a_few, make_predictor, write_frames
from memories import GOOD, memory
from sessions import run
from torch.utils._python_dispatch import TorchDispatchMode

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.bank.decisions import Pending
from sam2_keyframe.bank.statistics import STORED
from sam2_keyframe.synthetic import make_clip

LONG = 300


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A clip repeated forth and back over 300 frames."""
    clip = make_clip("deformation", seed=2, frames=50, size=64)
    order = [min(i % 98, 98 - i % 98) for i in range(LONG)]
    return write_frames(tmp_path_factory.mktemp("long"), clip.frames[order]), clip


def _device_bytes(state: Any) -> int:
    """Return the bytes of unique storages reachable from an object's output_dict, past mask logits left out."""
    storages: dict[int, int] = {}

    def walk(value: Any, depth: int = 0) -> None:
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for item in list(value.values()):
                walk(item, depth + 1)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item, depth + 1)
        elif hasattr(value, "values") and hasattr(value, "frame_idx"):  # a reference
            walk(dict(value.values), depth + 1)

    output_dict = state["output_dict_per_obj"][0]
    bank = output_dict.get(KEY)
    for frame_idx, entry in output_dict["non_cond_frame_outputs"].items():
        gone = bank is not None and bank.method.store == "bank" and frame_idx not in bank.store.entries
        moved = bank is not None and frame_idx in bank.store.moved
        if not gone:
            walk({name: value for name, value in entry.items() if not (moved and name == "pred_masks")})
    walk(output_dict["cond_frame_outputs"])
    if bank is not None:
        walk(bank.selection.references_kept(bank.pending))
        walk(bank.pending.reference if bank.pending else None)
    shared = next(iter(output_dict["cond_frame_outputs"].values()))["maskmem_pos_enc"][-1].untyped_storage()
    storages.pop(shared.data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("method", ["stock", "window", "keyframe"])
def test_bounded_memory(method: str, long_video: Any) -> None:
    """Constant after frame 16 under window; under keyframe never above its bound; linear under stock."""
    folder, clip = long_video
    model = make_predictor(64)
    counted, told, keyframes = [], [], 0
    with sk.wrap(model, method, **({"change": 0.002} if method == "keyframe" else {})):
        state = model.init_state(str(folder))
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for _ in model.propagate_in_video(state):
            if 1 in sk.memory_stats(state) and sk.memory_stats(state)[1].last:
                counted.append(_device_bytes(state))
                told.append(sk.memory_stats(state)[1].last.memory.nbytes)
                keyframes = sk.memory_stats(state)[1].keyframes
    entry = next(iter(state["output_dict_per_obj"][0]["cond_frame_outputs"].values()))
    whole = sum(entry[k].nbytes for k in ("maskmem_features", "pred_masks", "obj_ptr", "object_score_logits"))
    if method == "stock":
        assert counted == [whole * (index + 2) for index in range(LONG - 1)] == told
    elif method == "window":
        assert len(set(counted[16:])) == len(set(told[16:])) == 1
        assert counted[-1] == told[-1] == 7 * whole + 9 * (entry["obj_ptr"].nbytes + 4)
    else:
        assert keyframes > 20
        # Six memories, the frame being decided, the prompt; pointers of 15 frames; the masks of four references.
        bound = 8 * whole + 15 * (entry["obj_ptr"].nbytes + 4) + 4 * entry["pred_masks"].numel()
        assert max(told) <= bound
        assert max(counted) <= bound
        assert len(set(told[100:])) <= 3  # the newest keyframe and the newest frame may be one reference or two
        assert max(told[100:]) - min(told[100:]) <= 0.1 * bound
        mask = entry["pred_masks"].numel()  # told while the frame was undecided: one reference more
        assert all(a <= b <= a + mask for a, b in zip(counted, told, strict=True))
    assert len(sk.memory_stats(state)[1].rows) == LONG - 1


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _operations(model: Any, folder: Any, clip: Any, frames: int = 30) -> list[list[str]]:
    state = model.init_state(str(folder))
    model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    tracking = model.propagate_in_video(state)
    next(tracking)
    found = []
    for _ in range(frames):
        with _Operations() as operations:
            next(tracking)
        found.append(operations.names)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("method", "overrides", "most"), [("window", {}, 5), ("keyframe", {"change": 1e9}, 80)])
def test_added_operations(method: str, overrides: dict[str, Any], most: int, long_video: Any) -> None:
    """Counted on each frame once the bank is full, attended memories equal to stock's."""
    model = make_predictor(64)
    bare = _operations(model, *long_video)
    with sk.wrap(model, method, **overrides):
        ours = _operations(model, *long_video)
    added = [len(a) - len(b) for a, b in zip(ours[18:], bare[18:], strict=True)]
    assert max(added) <= most
    if method == "keyframe":
        assert min(added) > 0
    assert _reads(ours) == _reads(bare)


def _reads(operations: list[list[str]]) -> list[int]:
    """Return how often each frame's operations read a value on the host."""
    reading = ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "masked_select", "unique")
    return [sum(any(name in operation for name in reading) for operation in frame) for frame in operations]


READING = {
    **{name: sk.make_method(name) for name in ("dam4sam", "rmem_style", "xmem_style", "rmscl_style", "surgical")},
    "motion": sk.make_method("samurai", kalman=True),
    "retrieved": memory(GOOD & (sk.MaskIoU() > 0), n=9, read=sk.Relevant()),
    "packed": memory(GOOD & (sk.MaskIoU() > 0), codec=sk.Chain(sk.PCA(0.25), sk.Int8()), attend=sk.Foveated(size=2)),
    "queries": sk.make_method("compact", attend=sk.SalientTokens(0.3), queries=sk.NearObject(2, 0.0)),
    "scores": memory(
        GOOD & (sk.Combine((sk.MaskIoU(), sk.OpticalFlow(), sk.Novelty(), sk.FeatureShift())) > 0.3),
        measure=(sk.SSIM(),),
    ),
}


@pytest.mark.parametrize("name", a_few(READING, "dam4sam", "retrieved", "packed", "queries"))
def test_no_method_reads_on_the_host_beside_its_numbers(name: str, long_video: Any) -> None:
    """Neither relations nor retrieval, motion, codecs or token schemes wait for the device."""
    model = make_predictor(64)
    bare = _operations(model, *long_video)
    with sk.wrap(model, READING[name]):
        assert _reads(_operations(model, *long_video)) == _reads(bare)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *READING])
def test_one_host_read_a_frame_and_object(
    name: str, monkeypatch: pytest.MonkeyPatch, predictor: Any, clip_folder: Any, clip: Any
) -> None:
    """Scores reach the host in `Pending.read` alone: once for each frame and object."""
    reads: list[int] = []
    read = Pending.read

    def counted(pending: Pending) -> Any:
        reads.append(pending.frame_idx)
        return read(pending)

    monkeypatch.setattr(Pending, "read", counted)
    sk.wrap(predictor, READING.get(name, "keyframe"))
    state = run(predictor, "two_objects", clip_folder, clip)[2][0]
    sk.memory_stats(state)
    assert sorted(reads) == sorted([*range(1, 15), *range(1, 15)])


def test_scores_do_not_depend_on_autocast(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """The mask IoU of given masks is computed in float32 inside a user's autocast."""
    sk.wrap(predictor)
    with torch.autocast("cpu", torch.bfloat16):
        state = run(predictor, "forward", clip_folder, clip)[2][0]
    bank = state["output_dict_per_obj"][0][KEY]
    assert all(value == value for row in sk.memory_stats(state)[1].rows for value in row.scores.values())
    assert all(
        r.dtype in (torch.bool, torch.uint8, torch.float32) for r in bank.selection.history.keyframe.values.values()
    )


def _corrected(predictor: Any, folder: Any, clip: Any) -> Any:
    """Track to frame 10, correct frame 8, track on from 9 to 20."""
    state = predictor.init_state(str(folder))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    for _ in predictor.propagate_in_video(state, max_frame_num_to_track=10):
        pass
    predictor.add_new_points_or_box(state, 8, 1, points=[[40.0, 40.0]], labels=[1])
    for _ in predictor.propagate_in_video(state, start_frame_idx=9, max_frame_num_to_track=11):
        pass
    return state


def test_a_corrected_frame_becomes_a_keyframe(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """No frame is significant enough here; the corrected one is held all the same."""
    sk.wrap(predictor, "keyframe", change=10.0)
    row = sk.memory_stats(_corrected(predictor, clip_folder, clip))[1].last
    assert row is not None
    assert row.frame_idx == 20
    assert row.attended == (0, 8, 15, 16, 17, 18, 19)


def test_the_hosts_dict_is_the_truth(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """A frame that the user takes out of SAM 2's dict is forgotten; one that is prompted leaves the bank."""
    sk.wrap(predictor, memory(sk.MaskIoU() > 0))
    state = predictor.init_state(str(clip_folder))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    for _ in predictor.propagate_in_video(state, max_frame_num_to_track=10):
        pass
    bank = state["output_dict_per_obj"][0][KEY]
    held = [record.frame_idx for record in bank.selection.buffer]
    assert len(held) == 5
    del state["output_dict_per_obj"][0]["non_cond_frame_outputs"][held[0]]
    predictor.add_all_frames_to_correct_as_cond = True
    predictor.add_new_mask(state, held[1], 1, torch.from_numpy(clip.masks[held[1]] == 1))
    for _ in predictor.propagate_in_video(state, start_frame_idx=11, max_frame_num_to_track=0):
        pass
    row = sk.memory_stats(state)[1].last
    assert row is not None
    assert held[0] not in row.attended
    assert held[1] in row.attended  # as a prompt
    assert held[1] not in bank.store.entries
    assert held[0] not in [record.frame_idx for record in bank.selection.buffer]


@pytest.mark.slow
def test_clearing_around_a_correction_works_while_wrapped(predictor: Any, clip_folder: Any, clip: Any) -> None:
    predictor.clear_non_cond_mem_around_input = True
    with pytest.raises(AttributeError, match="_clear_obj_non_cond_mem_around_input"):
        run(predictor, "correction", clip_folder, clip)
    for method in ("stock", "keyframe"):
        with sk.wrap(predictor, method):
            seen = run(predictor, "correction", clip_folder, clip)[0]
        assert all(masks.isfinite().all() for *_, masks in seen)


def test_a_correction_counts_where_pointers_are_filtered(predictor: Any, clip_folder: Any, clip: Any) -> None:
    sk.wrap(predictor, "keyframe", pointers=sk.Visible())
    assert all(masks.isfinite().all() for *_, masks in run(predictor, "correction", clip_folder, clip)[0])


def test_prompts_are_adopted_when_a_click_comes_first(predictor: Any, clip_folder: Any, clip: Any) -> None:
    def between(part: int) -> None:
        if part == 1:
            sk.wrap(predictor, "keyframe")

    state = run(predictor, "correction", clip_folder, clip, between)[2][0]
    assert 0 in state["output_dict_per_obj"][0][KEY].selection.prompts
    rows = sk.memory_stats(state)[1].rows
    assert all(row.significance == row.significance for row in rows)


def test_gaps_count_from_a_correction(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Tracked to 10, frame 8 corrected, tracked on from 8: frame 9 is one frame after a keyframe."""
    gaps: dict[int, list[int]] = {}

    @dataclass(frozen=True)
    class Noted:
        def accept(self, record: Any, past: Any) -> bool:
            gaps.setdefault(record.frame_idx, []).append(record.gap)
            return False

    sk.wrap(predictor, memory(Noted(), n=2))
    sk.memory_stats(_corrected(predictor, clip_folder, clip))
    assert gaps[9] == [9, 1]
    assert gaps[20] == [12]


@pytest.mark.slow
def test_statistics_follow_what_is_read_and_held(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """With prompts in the middle and reverse over evicted frames, as attention receives it and the host holds it."""
    seen: list[int] = []
    predictor.memory_attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["memory"].shape[0]), with_kwargs=True
    )
    for method in ("stock", "window"):
        for session in ("several_prompts", "both_ways"):
            with sk.wrap(predictor, method):
                seen.clear()
                state = run(predictor, session, clip_folder, clip)[2][0]
                stats = sk.memory_stats(state)[1]
                rows = list(stats.rows)
            if session == "both_ways":
                assert [row.memory.tokens for row in rows] == seen[-len(rows) :]
            if method == "stock":
                assert [row.memory.tokens for row in rows] == [row.stock.tokens for row in rows]
                held = state["output_dict_per_obj"][0]
                number = len(held["cond_frame_outputs"]) + len(held["non_cond_frame_outputs"])
                assert rows[-1].memory.frames == rows[-1].stock.frames == number


def test_a_kept_state_lets_the_model_go(clip_folder: Any, clip: Any) -> None:
    import gc
    import weakref

    model = make_predictor(64)
    with sk.wrap(model, "keyframe"):
        state = run(model, "forward", clip_folder, clip)[2][0]
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert sk.memory_stats(state)[1].frames == 14


def test_bytes_on_the_device_and_elsewhere(predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Seen from another device, all that is held lies elsewhere; together it is what the tensors take."""
    sk.wrap(predictor, "keyframe", change=0.01)
    store = run(predictor, "forward", clip_folder, clip)[2][0]["output_dict_per_obj"][0][KEY].store
    here, other = torch.device("cpu"), torch.device("meta")
    whole = sum(entry[key].nbytes for entry in store.entries.values() for key in STORED if key in entry)
    moved = sum(store.entries[t]["pred_masks"].nbytes for t in store.moved)
    assert moved > 0
    t, entry = max(store.entries.items())
    masks, small = entry["pred_masks"].nbytes, entry["obj_ptr"].nbytes + entry["object_score_logits"].nbytes
    left = len(store.non_cond) - len(store.entries)
    rest = moved + left * (masks + small)
    assert store.takes(entry, {}, t, here)[1:] == (whole - moved, rest)
    assert store.takes(entry, {}, t, other)[1:] == (0, whole - moved + rest)


@pytest.mark.parametrize("keep_masks", [True, False])
def test_what_rests_on_the_host_is_counted(keep_masks: bool, predictor: Any, clip_folder: Any, clip: Any) -> None:
    """Mask logits of past frames, and the pointers of those that no frame will read again."""
    sk.wrap(predictor, "window", keep_masks=keep_masks)
    state = predictor.init_state(str(clip_folder))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    list(predictor.propagate_in_video(state))
    held = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    store, row = state["output_dict_per_obj"][0][KEY].store, sk.memory_stats(state)[1].last
    left = [entry for idx, entry in held.items() if idx not in store.entries]
    small = sum(entry[key].nbytes for entry in left for key in ("obj_ptr", "object_score_logits"))
    masks = sum(
        entry["pred_masks"].nbytes for idx, entry in held.items() if idx in store.moved or idx not in store.entries
    )
    assert (small > 0) == keep_masks
    assert row.host_nbytes == small + masks
