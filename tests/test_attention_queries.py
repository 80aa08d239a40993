"""Fewer queries: which tokens run, through SAM 2's own layers, and bit-identical where all of them do."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor, write_frames
from memories import memory
from scipy.ndimage import binary_dilation
from sessions import SESSIONS, assert_equal, assert_lively, run
from test_attention_host import GRID, inputs, layout, memory_attention
from test_attention_official import official
from test_compression_wrapped import bank_of
from torch._subclasses.fake_tensor import FakeTensorMode

import sam2_keyframe as sk
from sam2_keyframe.app.options import parse_value
from sam2_keyframe.attention.maths import Foveated, Part, Pool, SalientTokens, TokenLayout, Whole
from sam2_keyframe.attention.queries import NearObject
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches import attention as patch
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import FrameMemo, History, Reference, TrackedFrame

KEYS = [Whole(), Pool(2), Foveated(0.3, 2), SalientTokens(0.1)]


def mask_at(y: int, x: int, side: int = 3, grid: tuple[int, int] = (16, 16)) -> torch.Tensor:
    """Mask logits at four times the grid with a square of `side` tokens at token (y, x)."""
    logits = torch.full((1, 1, 4 * grid[0], 4 * grid[1]), -5.0)
    logits[:, :, 4 * y : 4 * (y + side), 4 * x : 4 * (x + side)] = 5
    return logits


def near(scheme: NearObject, share: float | None = None, seed: int = 0) -> tuple[Part, ...]:
    """A plan on the small grid whose windows near the object are random."""
    torch.manual_seed(seed)
    windows = torch.rand(1, GRID[0] // scheme.size, GRID[1] // scheme.size) > 0.7
    return scheme.plan(GRID, windows, windows.float().mean().item() if share is None else share)


def with_queries(keys: TokenLayout, queries: tuple[Part, ...]) -> TokenLayout:
    return TokenLayout(keys.grid, keys.plans, keys.watched, keys.keep, queries)


# -- which tokens run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 1 / 16, 0.1, 0.3])
@pytest.mark.parametrize("size", [2, 4])
def test_windows_are_those_that_mask_and_margin_touch(size: int, margin: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        object_ = rng.random((1, 1, 64, 64)) > 0.999
        logits = torch.from_numpy(np.where(object_, 3.0, -3.0)).float()
        covered, around = NearObject(size, margin).windows(logits, (16, 16))
        tokens = object_[0, 0].reshape(16, 4, 16, 4).any((1, 3))
        reach = int(np.ceil(margin * 16))
        wide = binary_dilation(tokens, np.ones((2 * reach + 1,) * 2)) if tokens.any() else tokens
        for found, expected in ((covered, tokens), (around, wide)):
            windows = expected.reshape(16 // size, size, 16 // size, size).any((1, 3))
            assert np.array_equal(found[0].numpy(), windows)


@pytest.mark.parametrize("size", [2, 4])
def test_the_smallest_step_holds_all_windows_near_the_object(size: int) -> None:
    scheme, grid = NearObject(size, 1 / 16), (32, 48)
    count = grid[0] * grid[1] // size**2
    seen = set()
    for side in range(1, 24):
        windows = scheme.windows(mask_at(4, 6, side, grid), grid)[1]
        plan = scheme.plan(grid, windows, windows.float().mean().item())
        kept = count if len(plan) == 1 else plan[0].tokens(grid) // size**2
        seen.add(kept)
        needed = int(windows.sum())
        smaller = [int(count * n / 16) for n in range(1, 13) if int(count * n / 16) < kept]
        assert kept >= needed
        assert max(smaller, default=0) < needed
        if len(plan) == 2:
            pooled = torch.ones(count, dtype=torch.bool)
            pooled[plan[1].index[0]] = False
            assert pooled[windows.flatten()].all()
    assert len(seen) > 4


@pytest.mark.parametrize(("share", "windows"), [(float("nan"), True), (1.0, True), (0.8, True), (0.1, False)])
def test_all_tokens_run_where_nothing_is_known_or_too_much_is_near(share: float, windows: bool) -> None:
    scheme = NearObject(2)
    plan = scheme.plan(GRID, torch.ones(1, 4, 4, dtype=torch.bool) if windows else None, share)
    assert [(part.size, part.index) for part in plan] == [(1, None)]


@pytest.mark.parametrize("size", [2, 4])
def test_every_token_has_one_that_ran_for_it_and_gets_its_change(size: int) -> None:
    keys = with_queries(layout(Whole()), near(NearObject(size)))
    assert 0 < keys.asked < 64
    tokens = torch.randn(2, 64, 5)
    before = keys.ask(tokens)
    assert before.shape == (2, keys.asked, 5)
    assert torch.allclose(keys.spread(tokens, before, before + 3), tokens + 3, atol=1e-6)
    after = torch.randn_like(before)
    spread = keys.spread(tokens, before, after)
    fine, coarse = keys.queries or ()
    assert torch.equal(spread[:, fine.index[0]], after[:, : fine.index.shape[1]])
    change = (spread - tokens).view(2, 8 // size, size, 8 // size, size, 5)
    window = change.permute(0, 1, 3, 2, 4, 5).reshape(2, -1, size**2, 5)[:, coarse.index[0]]
    given = (after - before)[:, fine.index.shape[1] :, None]
    assert torch.allclose(window, given.expand_as(window), atol=1e-5)


def test_two_objects_in_one_batch_have_their_own_tokens() -> None:
    scheme = NearObject(2, 0.0)
    masks = torch.cat([mask_at(1, 1, 2, GRID), mask_at(5, 5, 2, GRID)])
    windows = scheme.windows(masks, GRID)[1]
    both = with_queries(layout(Whole()), scheme.plan(GRID, windows, 0.25))
    tokens = torch.randn(2, 64, 5)
    after = torch.randn(2, both.asked, 5)
    spread = both.spread(tokens, both.ask(tokens), after)
    for i in range(2):
        one = with_queries(layout(Whole()), scheme.plan(GRID, windows[i : i + 1], 0.25))
        alone = one.spread(tokens[i : i + 1], one.ask(tokens[i : i + 1]), after[i : i + 1])
        assert torch.equal(spread[i : i + 1], alone)
    assert not torch.equal(both.queries[0].index[0], both.queries[0].index[1])


def share_of(
    mask: torch.Tensor, before: torch.Tensor | None, score: float = 3.0, stray: float = 0.0
) -> tuple[float, int]:
    scheme = NearObject(2, 1 / 16, stray)

    def frame(idx: int, logits: torch.Tensor) -> TrackedFrame:
        empty = torch.empty(0)
        shared = FrameMemo(lambda: empty)
        logit = torch.tensor([[score]])
        return TrackedFrame(idx, None, empty, logits, logits, torch.ones(1, 1), empty, logit, shared)

    history = History()
    if before is not None:
        earlier = frame(0, before)
        scheme.score(earlier, history)
        history.previous = earlier.reference()
        assert isinstance(history.previous, Reference)
    return scheme.score(frame(1, mask), history).item(), int(scheme.windows(mask, (16, 16))[1].sum())


def test_one_number_says_how_much_runs_and_that_all_must_after_a_loss_or_a_jump() -> None:
    start = mask_at(4, 4)
    share, windows = share_of(start, None)
    assert share == windows / 64 > 0
    assert share_of(mask_at(5, 5), start)[0] == share_of(mask_at(5, 5), None)[0] < 1
    assert share_of(mask_at(7, 4), start)[0] == 1, "partly outside of the margin"
    assert share_of(mask_at(12, 12), start)[0] == 1
    few, many = start.clone(), start.clone()
    few[..., 61:, 62:], many[..., 40:, 50:] = 5.0, 5.0
    assert share_of(few, start)[0] == 1
    assert share_of(few, start, stray=0.05)[0] < 1 == share_of(many, start, stray=0.05)[0], "a stray part is no jump"
    assert share_of(start, start, score=-0.1)[0] == 1, "hidden"
    assert share_of(torch.full_like(start, -5.0), start)[0] == 1, "empty"
    assert share_of(start, torch.full_like(start, -5.0))[0] == 1, "found again, somewhere"


@pytest.mark.parametrize("wrong", [{"size": 1}, {"margin": -0.1}, {"margin": 1.0}, {"stray": 1.0}], ids=str)
def test_values_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give a size of 2 or more, a margin"):
        NearObject(**wrong)  # type: ignore[arg-type]


# -- through the host's own layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("memories", "pointers", "batch", "heads"), [(1, 0, 1, 1), (2, 4, 2, 2), (7, 64, 1, 1)])
@torch.inference_mode()
def test_all_tokens_by_the_same_path_are_bit_identical(
    memories: int, pointers: int, batch: int, heads: int, autocast: bool
) -> None:
    host, given = memory_attention(heads), inputs(memories, pointers, batch)
    if autocast:
        given["memory"] = given["memory"].bfloat16()
    hook = AttentionHook(host)
    whole = layout(*[Whole()] * memories)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        stock = host.memory_attention(**given)
        hook.install()
        with hook.layout(with_queries(whole, (Part(1),))):
            assert torch.equal(host.memory_attention(**given), stock)
        assert hook.calls == hook.own_calls == 4
        with hook.layout(whole):  # keys alone: self-attention is left to the host
            assert torch.equal(host.memory_attention(**given), stock)
        assert (hook.calls, hook.own_calls) == (8, 4)
        with hook.layout(with_queries(whole, near(NearObject(2)))):  # negative control
            assert not torch.equal(host.memory_attention(**given), stock)
        assert torch.equal(host.memory_attention(**given), stock)


@torch.inference_mode()
def test_all_tokens_in_another_order_give_the_same() -> None:
    """Every token keeps its place: phases, keys of self-attention, and what is handed on."""
    host, given = memory_attention(2), inputs(3, 8, 2)
    stock = host.memory_attention(**given)
    hook = AttentionHook(host)
    hook.install()
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    with hook.layout(with_queries(layout(*[Whole()] * 3), (Part(1, order),))):
        torch.testing.assert_close(host.memory_attention(**given), stock, atol=2e-5, rtol=0)


@pytest.mark.parametrize("keys", KEYS[:3], ids=repr)
@torch.inference_mode()
def test_windows_of_equal_tokens_without_rotation_equal_stock(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all layers, norms and residuals: what log(n) is for in self-attention too."""
    host, given = memory_attention(), inputs(3, 8)
    even = [given["curr"][0], given["curr_pos"][0], *(given[name][:-8] for name in ("memory", "memory_pos"))]
    for tensor in even:
        windows = tensor.view(-1, 2, 4, 2, 4, tensor.shape[-1])
        windows.copy_(windows[:, :, :1, :, :1].clone().expand_as(windows))
    for layer in host.memory_attention.layers:
        for module in (layer.cross_attn_image, layer.self_attn):
            module.freqs_cis = torch.ones(64, 128, dtype=torch.complex64)
    monkeypatch.setattr(patch, "rotary_phases", lambda grid, size, *rest: torch.ones(64 // size**2, 128).cfloat())
    stock = host.memory_attention(**given)
    hook = AttentionHook(host)
    hook.install()
    fewer = with_queries(layout(keys, keys, Whole()), near(NearObject(4), 0.25))
    assert fewer.asked == 16 + 3
    with hook.layout(fewer):
        torch.testing.assert_close(host.memory_attention(**given), stock, atol=2e-5, rtol=0)
    real = patch.attend
    monkeypatch.setattr(patch, "attend", lambda q, groups: real(q, [(1, k, v) for _, k, v in groups]))
    with hook.layout(fewer):  # negative control
        assert not torch.allclose(host.memory_attention(**given), stock, atol=1e-3)


@torch.inference_mode()
def test_position_encodings_in_every_layer_are_those_of_the_tokens_that_run() -> None:
    host, given = memory_attention(), inputs(2, 4)
    for layer in host.memory_attention.layers:
        layer.pos_enc_at_attn = layer.pos_enc_at_cross_attn_queries = True
    stock = host.memory_attention(**given)
    hook = AttentionHook(host)
    hook.install()
    order = (Part(1, torch.randperm(64)[None]),)
    with hook.layout(with_queries(layout(Whole(), Whole()), order)):
        torch.testing.assert_close(host.memory_attention(**given), stock, atol=2e-5, rtol=0)


@pytest.mark.parametrize("queries", [NearObject(2), NearObject(4)], ids=repr)
def test_no_host_reads_in_measuring_planning_and_all_layers(queries: NearObject) -> None:
    """A fake tensor has no values to read."""
    host = memory_attention()
    hook = AttentionHook(host)
    hook.install()
    with FakeTensorMode(allow_non_fake_inputs=True):
        given, empty, drawn = inputs(3, 8), torch.empty(1, 1), []
        masks = torch.empty(1, 1, 32, 32)
        frame = TrackedFrame(1, None, empty, masks, masks, empty, empty, empty, FrameMemo(lambda: empty))
        queries.score(frame, History(previous=Reference(0, {queries.key: queries.windows(masks, GRID)[1]})))
        plan = queries.plan(GRID, frame.kept[queries.key], 0.3)
        assert len(plan) == 2
        keys = layout(Whole(), Foveated(0.3, 2), Whole())
        with hook.layout(TokenLayout(GRID, keys.plans[::2] + keys.plans[1:2], 1, drawn.append, plan)):
            assert host.memory_attention(**given).shape == (64, 1, 256)
    assert [each.shape for each in drawn] == [(1, 64)]
    assert hook.own_calls == 4


@torch.inference_mode()
def test_what_tokens_draw_is_asked_by_those_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    host, given = memory_attention(), inputs(2)
    hook, drawn = AttentionHook(host), []
    hook.install()
    asked, real = [], patch.drawn_attention
    monkeypatch.setattr(patch, "drawn_attention", lambda q, *rest: asked.append(q) or real(q, *rest))
    for plan in ((Part(1),), (Part(1, torch.randperm(64)[None]),), near(NearObject(2))):
        with hook.layout(TokenLayout(GRID, ((Part(1),),) * 2, 1, drawn.append, plan)):
            host.memory_attention(**given)
    assert all(torch.allclose(each.sum(1), torch.tensor(4.0)) for each in drawn)
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=0)
    assert all(query.shape == (1, 1, 64, 256) for query in asked)
    assert len(asked[-1].unique(dim=2)[0, 0]) == with_queries(layout(), plan).asked


def test_undo_is_exact_on_layers_and_both_attentions() -> None:
    host = memory_attention()
    modules = [m for layer in host.memory_attention.layers for m in (layer, layer.self_attn, layer.cross_attn_image)]
    before = [vars(m).keys() for m in modules]
    hook = AttentionHook(host)
    hook.install()
    assert all("forward" in vars(m) for m in modules)
    hook.uninstall()
    assert [vars(m).keys() for m in modules] == before


def waiting(meet: threading.Barrier) -> Any:
    """A hook that lets no thread pass before the others are there."""

    def wait(*_: Any) -> None:
        meet.wait()

    return wait


def test_two_threads_with_two_layouts_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other in every layer, so that both reads are under way at once."""
    host = memory_attention()
    hook = AttentionHook(host)
    hook.install()
    reads = []
    for seed, (keys, queries) in enumerate(((Pool(2), NearObject(2)), (Foveated(0.3, 2), NearObject(4)))):
        given = inputs(3, 8, seed=seed)
        reads.append((given, TokenLayout(GRID, layout(keys, keys, Whole()).plans, None, None, near(queries, 0.3))))
    reads.append((inputs(3, 8, seed=5), None))  # a third one reads as the host does

    def read(given: Any, chosen: TokenLayout | None) -> torch.Tensor:
        with torch.inference_mode():
            if chosen is None:
                return host.memory_attention(**given)
            with hook.layout(chosen):
                return host.memory_attention(**given)

    alone = [read(*each) for each in reads]
    meet, found = threading.Barrier(3, timeout=60), [torch.empty(0)] * 3
    for layer in host.memory_attention.layers:
        layer.linear1.register_forward_pre_hook(waiting(meet))
    threads = [
        threading.Thread(target=lambda i=i, each=each: found.__setitem__(i, read(*each)))  # type: ignore[misc]
        for i, each in enumerate(reads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


# -- through wrap() --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    """The micro model with its weights: masks stay on the object, as they do not with random ones."""
    return load_micro_predictor(image_size=128)


@pytest.fixture(scope="module")
def clip() -> Any:
    """Two small objects."""
    return make_clip("static", seed=3, frames=24, size=128, objects=2)


@pytest.fixture(scope="module")
def clip_folder(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_frames(tmp_path_factory.mktemp("clip"), clip.frames)


@pytest.mark.parametrize(
    ("session", "autocast"),
    [*((session, False) for session in SESSIONS), ("two_objects", True), ("correction", True)],
)
def test_everything_near_is_stock_by_the_same_path(session: str, autocast: bool, clip_folder: Any, clip: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        unwrapped = run(make_predictor(), session, clip_folder, clip)
        model = make_predictor()
        handle = sk.wrap(model, "stock", queries=NearObject(2, 0.99))
        ours = run(model, session, clip_folder, clip)
    assert_equal(ours, unwrapped)
    assert_lively(ours[0])
    hook, layers = handle.host._attention, len(model.memory_attention.layers)
    rows = [row for state in ours[2] for each in sk.memory_stats(state).values() for row in each.rows]
    assert hook.own_calls == hook.calls >= layers * len(rows) > 0
    assert {row.queries for row in rows} == {64}


@pytest.mark.slow
@pytest.mark.parametrize("keys", KEYS, ids=repr)
def test_fewer_tokens_run_and_the_statistics_count_them(
    keys: Any, model: Any, clip_folder: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, real = [], patch.attend
    monkeypatch.setattr(patch, "attend", lambda q, groups: ran.append(q.shape[2]) or real(q, groups))
    with sk.wrap(model, memory(sk.MaskIoU() > 0.5, n=2, others=sk.Others(3), attend=keys, queries=NearObject(2))):
        seen, _, states = run(model, "two_objects", clip_folder, clip)
    calls = 2 * len(model.memory_attention.layers)
    reads = [set(ran[i : i + calls]) for i in range(0, len(ran), calls)]
    assert all(len(read) == 1 for read in reads)
    stats = sk.memory_stats(states[0])
    rows = sorted((row.frame_idx, obj_id, row) for obj_id, each in stats.items() for row in each.rows)
    assert [row.queries for *_, row in rows] == [read.pop() for read in reads]
    assert {row.queries for frame_idx, _, row in rows if frame_idx == 1} == {64}
    assert min(row.queries for *_, row in rows) < 64
    for obj_rows in ([row for _, obj, row in rows if obj == obj_id] for obj_id in stats):
        for before, row in itertools.pairwise(obj_rows):
            share = before.scores["near_share"]
            count = NearObject(2).whole(share, 16)
            assert row.queries == (64 if count is None else 3 * count + 16)
    assert all(masks.isfinite().all() for *_, masks in seen)
    with sk.wrap(model, memory(sk.MaskIoU() > 0.5, n=2, others=sk.Others(3), attend=keys)):
        every = run(model, "two_objects", clip_folder, clip)
    assert any(not torch.equal(a[3], b[3]) for a, b in zip(seen, every[0], strict=True))


def test_all_tokens_run_after_prompts_and_corrections_and_for_clicks(model: Any, clip: Any) -> None:
    """The small object's frames are known to run on fewer in between."""
    masks = torch.from_numpy(clip.masks[0] == 1)
    ran: list[int] = []
    with sk.wrap(model, "keyframe", queries=NearObject(2, 0.0)) as handle:
        hook, real = handle.host._attention, AttentionHook.layout

        def layout(self: Any, chosen: Any) -> Any:
            ran.append(chosen.asked)
            return real(self, chosen)

        with pytest.MonkeyPatch.context() as m:
            m.setattr(type(hook), "layout", layout)
            state = sk.init_state(model, clip.frames)
            model.add_new_mask(state, 0, 1, masks)
            list(model.propagate_in_video(state, max_frame_num_to_track=6))
            assert ran[0] == 64
            assert max(ran[1:]) < 64
            model.add_new_points_or_box(state, 5, 1, points=[[60.0, 60.0]], labels=[1])  # a click is inferred
            assert ran.pop() == 64
            ran.clear()
            list(model.propagate_in_video(state, start_frame_idx=5, max_frame_num_to_track=3))
            assert ran[0] == 64, "frame 6 follows the correction"
            ran.clear()
            list(model.propagate_in_video(state, start_frame_idx=4, reverse=True, max_frame_num_to_track=2))
            assert ran[0] == 64, "a pass the other way begins"


def test_all_tokens_run_after_a_frame_on_which_the_object_is_hidden(model: Any, clip: Any) -> None:
    bias = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    state, ran = sk.init_state(model, clip.frames), []
    with sk.wrap(model, "keyframe", queries=NearObject(2, 0.0)):
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        tracking = model.propagate_in_video(state)
        for frame_idx, *_ in tracking:
            if frame_idx:
                ran.append(sk.memory_stats(state)[1].rows[-1].queries)
            with torch.no_grad():
                bias.add_({4: -100.0, 5: 100.0}.get(frame_idx, 0.0))
            if frame_idx == 9:
                break
    assert sk.memory_stats(state)[1].rows[4].scores["object_score"] < 0
    assert ran[4] < 64, "frame 5 does not know yet"
    assert ran[5] == ran[6] == 64, "hidden, then found again"
    assert ran[7] < 64


def test_what_is_kept_is_bounded_counted_and_gone_with_the_frames(model: Any, clip: Any) -> None:
    frames = clip.frames[[*range(24), *range(22, 0, -1), *range(14)]]
    kept = []
    with sk.wrap(model, "keyframe", queries=NearObject(2)):
        state = sk.init_state(model, frames)
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for _ in model.propagate_in_video(state):
            bank = bank_of(state)
            known = bank.selection.references_kept(bank.pending)
            windows = [r.values[NearObject.key] for r in known if NearObject.key in r.values]
            assert all(each.shape == (1, 4, 4) and each.dtype == torch.bool for each in windows)
            kept.append(len({id(each) for each in windows}))
            assert patch._READ.get() is None
        assert set(bank.store.plans) == set()
    assert max(kept) <= 5
    assert len(kept) == 60


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_one_predictor_two_states_two_threads(autocast: bool, clip: Any) -> None:
    """As servers run it: each thread has a video of its own, and both are in the middle of a frame at once."""
    model = load_micro_predictor(image_size=128)
    sk.wrap(model, memory(sk.MaskIoU() > 0.1, n=2, others=sk.Others(3), attend=Foveated(0.3, 2), queries=NearObject(2)))

    def track(obj_id: int, frames: Any, out: list[Any]) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            state = sk.init_state(model, frames)
            model.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
            for _, _, logits in model.propagate_in_video(state, max_frame_num_to_track=8):
                out.append(logits.clone())
            out.append([(row.attended, row.queries, row.memory.tokens) for row in sk.memory_stats(state)[obj_id].rows])

    jobs = [(1, clip.frames), (2, clip.frames[:, ::-1].copy())]
    alone: list[list[Any]] = [[], []]
    for job, out in zip(jobs, alone, strict=True):
        track(*job, out)
    meet = threading.Barrier(2, timeout=60)
    modules = (model.memory_encoder, model.memory_attention.layers[0].linear1)
    pause = [module.register_forward_pre_hook(waiting(meet)) for module in modules]
    together: list[list[Any]] = [[], []]
    threads = [threading.Thread(target=track, args=(*job, out)) for job, out in zip(jobs, together, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hook in pause:
        hook.remove()
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other) == 10
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))
        assert one[-1] == other[-1]
    assert not torch.equal(alone[0][3], alone[1][3])


def test_windows_that_do_not_divide_the_grid_are_refused_at_once(model: Any) -> None:
    before = set(vars(model))
    with pytest.raises(ValueError, match=r"windows of 5 .* 8x8 grid"):
        sk.wrap(model, "keyframe", queries=NearObject(5))
    with pytest.raises(TypeError, match=r"queries=.*NearObject"):
        sk.wrap(model, "keyframe", queries=Pool(2))
    assert set(vars(model)) == before


def test_a_compiled_predictor_is_refused_and_left_alone() -> None:
    predictor = official(vos_optimized=True)
    before = set(vars(predictor))
    with pytest.raises(RuntimeError, match=r"queries=Whole\(\)"):
        sk.wrap(predictor, "keyframe", queries=NearObject())
    assert set(vars(predictor)) == before


def test_a_setting_is_written_as_it_is_read() -> None:
    method = sk.make_method("keyframe", queries=parse_value("NearObject(size=2, margin=0.1)"))
    assert eval(repr(method), vars(sk)) == method
    assert sk.make_method("keyframe", queries=parse_value("Whole")).queries == Whole()
    with pytest.raises(ValueError, match=r"near_share.*column"):
        sk.make_method("keyframe", change=sk.MaskIoU(name="near_share") > 0.5)
