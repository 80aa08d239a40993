"""Fewer tokens through wrap(): counted as attended to, undone, bit-identical where every token is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_predictor
from memories import memory
from sessions import assert_equal, run
from test_attention_official import official
from test_compression_wrapped import bank_of, packed

import sam2_keyframe as sk
from sam2_keyframe.attention.maths import Foveated, Modulated, Pool, SalientTokens, Whole
from sam2_keyframe.bank import bank, reading
from sam2_keyframe.bank.compression import Int8
from sam2_keyframe.patches import attention as patch
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.plugin import ATTRIBUTE

FEWER = [
    Pool(2),
    Pool(4, conditioning=True),
    Foveated(0.25, 4),
    Foveated(0.2, 2, conditioning=True),
    SalientTokens(0.1),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_predictor()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", FEWER, ids=repr)
@pytest.mark.parametrize("session", ["two_objects", "several_prompts"])
def test_statistics_count_the_keys_that_attention_gets(
    scheme: Any, session: str, model: Any, clip_folder: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, real = [], patch.attend
    monkeypatch.setattr(
        patch, "attend", lambda q, groups: keys.append(sum(k.shape[2] for _, k, _ in groups)) or real(q, groups)
    )
    with sk.wrap(model, packed(attend=scheme)):
        seen, _, states = run(model, session, clip_folder, clip)
    layers = len(model.memory_attention.layers)
    reads = [set(keys[i : i + layers]) for i in range(0, len(keys), layers)]
    assert all(len(read) == 1 for read in reads)
    stats = sk.memory_stats(states[0])
    rows = sorted((row.frame_idx, obj_id, row) for obj_id, each in stats.items() for row in each.rows)
    assert [row.memory.tokens for _, _, row in rows] == [read.pop() for read in reads]
    full = [row for _, _, row in rows if len(row.attended) >= 6]
    assert all(row.memory.tokens < row.stock.tokens for row in full)
    assert full
    assert all(masks.isfinite().all() for *_, masks in seen)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keyframe", "stock", "window"])
@pytest.mark.parametrize("scheme", [Foveated(0.2, 4, conditioning=True), SalientTokens()], ids=repr)
def test_what_attention_knows_of_memories_leaves_with_them_and_is_counted(
    scheme: Any, method: str, model: Any, clip: Any
) -> None:
    """Over 60 frames, with mask logits and, under stock, all memories kept: plans of what may be read again alone."""
    state = sk.init_state(model, clip.frames[[*range(24), *range(22, 0, -1), *range(14)]])
    known = []
    with sk.wrap(model, method, attend=scheme):
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for frame_idx, *_ in model.propagate_in_video(state):
            plans = bank_of(state).store.plans
            indices = [part.index.nbytes for plan in plans.values() for part in plan if part.index is not None]
            assert set(plans) <= set(range(frame_idx - 7, frame_idx)) | {0} | set(bank_of(state).selection.held())
            known.append(sum(indices))
        list(model.propagate_in_video(state, start_frame_idx=50, reverse=True, max_frame_num_to_track=12))
        assert len(bank_of(state).store.plans) <= 9
        rows = list(sk.memory_stats(state)[1].rows)[:59]
    assert bank_of(state).store.plans == {}
    assert max(known) <= 9 * max(indices)
    with sk.wrap(model, method):
        again = sk.init_state(model, clip.frames[[*range(24), *range(22, 0, -1), *range(14)]])
        model.add_new_mask(again, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        list(model.propagate_in_video(again))
        whole = list(sk.memory_stats(again)[1].rows)
    assert sum(known) > 0
    same = [(a, b, n) for a, b, n in zip(rows, whole, known[1:], strict=True) if a.attended == b.attended]
    assert len(same) > 10
    assert all(a.memory.nbytes - b.memory.nbytes == n for a, b, n in same)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("session", ["two_objects", "several_prompts", "correction", "both_ways"])
def test_every_memory_whole_by_the_per_key_path_is_stock(
    session: str, autocast: bool, clip_folder: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        unwrapped = run(make_predictor(), session, clip_folder, clip)
        model = make_predictor()
        handle = sk.wrap(model, "stock", attend=Pool(2))  # puts the hook in place
        pooled = run(model, session, clip_folder, clip)
        hook: AttentionHook = handle.host._attention
        before = hook.calls
        monkeypatch.setattr(reading, "scheme_for", lambda attend, **about: Whole())
        ours = run(model, session, clip_folder, clip)
    tracked = sum(stats.frames for state in ours[2] for stats in sk.memory_stats(state).values())
    assert hook.calls - before >= tracked * len(model.memory_attention.layers) > 0
    assert_equal(ours, unwrapped)
    with pytest.raises(AssertionError, match="differ"):
        assert_equal(pooled, unwrapped)


def test_all_salient_tokens_are_all_tokens(model: Any, clip_folder: Any, clip: Any) -> None:
    with sk.wrap(model, "stock", attend=SalientTokens(0.999)):
        ours = run(model, "two_objects", clip_folder, clip)
    assert_equal(ours, run(model, "two_objects", clip_folder, clip))


def test_a_memory_is_read_by_its_own_salient_tokens(
    model: Any, clip_folder: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured while a memory is the newest decides about that memory, wherever it is shown later."""
    measured: list[torch.Tensor] = []
    real = patch.drawn_attention

    def drawn(query: Any, keys: Any, grid: Any) -> Any:
        measured.append(keys.clone())
        return real(query, keys, grid)

    monkeypatch.setattr(patch, "drawn_attention", drawn)
    plans: list[dict[int, torch.Tensor]] = []
    alive = []  # so that no two memories have the same id
    plan = reading.plan_layout

    def layout(attend: Any, spatial: Any, *rest: Any) -> Any:
        found = plan(attend, spatial, *rest)
        shown = [entry["maskmem_features"] for _, entry, _ in spatial]
        alive.extend(shown)
        plans.append({id(features): p[0].index for features, p in zip(shown, found.plans, strict=True)})
        return found

    monkeypatch.setattr(reading, "plan_layout", layout)
    with sk.wrap(model, memory(sk.EveryNth(2), n=2, others=sk.Others(3), attend=SalientTokens(0.1))):
        run(model, "forward", clip_folder, clip)
    assert len(measured) == len(model.memory_attention.layers) * (len(plans) - 1)  # at first there is the prompt only
    known: dict[int, torch.Tensor] = {}
    for planned in plans:
        for frame, index in planned.items():
            if index is not None:
                assert torch.equal(known.setdefault(frame, index), index)
    assert len(known) > 8
    assert len({tuple(index[0].tolist()) for index in known.values()}) > 4


def test_a_memory_is_measured_once_however_often_it_is_the_newest(
    model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one read every layer is measured; SAM 2 reads frame 7 again as the newest for a click on frame 8."""
    measured, real = [], patch.drawn_attention
    monkeypatch.setattr(patch, "drawn_attention", lambda *given: measured.append(1) or real(*given))
    state, layers = sk.init_state(model, clip.frames), len(model.memory_attention.layers)
    with sk.wrap(model, memory(sk.MaskIoU() > 0, n=2, others=sk.Others(3), attend=SalientTokens())):
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        list(model.propagate_in_video(state, max_frame_num_to_track=9))
        assert len(measured) == 8 * layers
        before = {idx: plan[0].index.clone() for idx, plan in bank_of(state).store.plans.items()}
        assert 7 in before
        model.add_new_points_or_box(state, 8, 1, points=[[60.0, 60.0]], labels=[1])
        assert len(measured) == 8 * layers
        assert torch.equal(bank_of(state).store.plans[7][0].index, before[7])


def test_a_read_that_fails_measures_nothing(model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], patch.attend

    def fails(query: Any, groups: Any) -> Any:
        calls.append(1)
        if len(calls) == 3 * len(model.memory_attention.layers):
            raise MemoryError("in the last layer")
        return real(query, groups)

    monkeypatch.setattr(patch, "attend", fails)
    state = sk.init_state(model, clip.frames)
    with sk.wrap(model, "keyframe", attend=SalientTokens()):
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        with pytest.raises(MemoryError, match="last layer"):
            list(model.propagate_in_video(state))
        assert set(bank_of(state).store.plans) == {1}


@pytest.mark.parametrize("scheme", [Pool(5), Foveated(0.2, 8)], ids=repr)
def test_windows_that_do_not_divide_the_grid_are_refused_at_once(scheme: Any, model: Any) -> None:
    before = set(vars(model))
    with pytest.raises(ValueError, match=rf"windows of {scheme.size} .* 8x8 grid"):
        sk.wrap(model, "keyframe", attend=scheme)
    assert set(vars(model)) == before


def test_a_compiled_predictor_is_refused_and_left_alone() -> None:
    predictor = official(vos_optimized=True)
    before = set(vars(predictor))
    with pytest.raises(RuntimeError, match=r"attend=Whole\(\)"):
        sk.wrap(predictor, "keyframe", attend=Pool(2))
    assert set(vars(predictor)) == before
    sk.wrap(predictor, "keyframe", codec=Int8())
    assert ATTRIBUTE in vars(predictor)
    sk.unwrap(predictor)
    assert set(vars(predictor)) == before


@pytest.mark.slow
@pytest.mark.parametrize("session", ["two_objects", "several_prompts", "reverse"])
def test_modulation_by_one_is_stock(session: str, clip_folder: Any, clip: Any) -> None:
    model = make_predictor()
    unwrapped = run(model, session, clip_folder, clip)
    with sk.wrap(model, "stock", attend=Modulated(1.0, 1.0)) as handle:
        ours = run(model, session, clip_folder, clip)
        assert handle.host._attention.calls > 0
    assert_equal(ours, unwrapped)
    with sk.wrap(model, "stock", attend=Modulated()):
        modulated = run(model, session, clip_folder, clip)
    with pytest.raises(AssertionError, match="differ"):
        assert_equal(modulated, unwrapped)


def test_keys_are_scaled_in_the_order_of_the_object_scores(
    clip_folder: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of memories and pointers apart, the prompt the surest; by the scores that SAM 2 stored."""
    model, layouts = make_predictor(), []
    plan = bank.plan_reading

    def planned(*given: Any) -> Any:
        layouts.append((plan(*given), dict(given[-1])))
        return layouts[-1][0]

    monkeypatch.setattr(bank, "plan_reading", planned)
    with sk.wrap(model, "stock", attend=Modulated(0.9, 1.1)):
        run(model, "forward", clip_folder, clip)
    assert layouts[0][0].layout.scales is None
    reading, tracked = layouts[-1]
    scores = [float(tracked[t]["object_score_logits"]) for t in reading.attended[1:]]
    for factors, expected in zip(
        reading.layout.scales,
        ([10.0, *scores], [10.0, *(float(tracked[t]["object_score_logits"]) for t in reading.pointers)]),
        strict=True,
    ):
        order = sorted(range(len(expected)), key=expected.__getitem__)
        steps = torch.linspace(0.9, 1.1, len(expected))
        assert torch.allclose(factors[torch.tensor(order)], steps)
        assert int(factors.argmax()) == 0
