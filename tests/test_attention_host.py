"""The hook into SAM 2's own memory attention: identical when every memory is whole, exact undo, clear refusals."""

import types

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sam2_keyframe.attention import Foveated, Pool, SalientTokens, TokenLayout, Whole
from sam2_keyframe.patches import attention as patch
from sam2_keyframe.patches.attention import AttentionHook, shown_memories
from sam2_keyframe.types import Moment

pytest.importorskip("sam2")
Image = pytest.importorskip("PIL.Image")

GRID = (8, 8)


def memory_attention(heads=1, seed=0):
    """SAM 2's memory attention with its official sizes, four layers, random weights."""
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.sam.transformer import RoPEAttention

    torch.manual_seed(seed)
    attn = {"embedding_dim": 256, "num_heads": heads, "downsample_rate": 1, "dropout": 0.1, "feat_sizes": (64, 64)}
    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=RoPEAttention(rope_k_repeat=True, kv_in_dim=64, **attn),
        d_model=256,
        dim_feedforward=512,
        dropout=0.1,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**attn),
    )
    module = MemoryAttention(d_model=256, pos_enc_at_input=True, layer=layer, num_layers=4)
    for p in module.parameters():  # layers are clones: make them differ
        p.data.add_(torch.randn_like(p) * 0.02)
    return types.SimpleNamespace(memory_attention=module.eval())


def inputs(memories=3, pointers=8, batch=1, seed=1):
    torch.manual_seed(seed)
    n = GRID[0] * GRID[1]
    total = memories * n + pointers
    return {
        "curr": [torch.randn(n, batch, 256)],
        "curr_pos": [torch.randn(n, batch, 256)],
        "memory": torch.randn(total, batch, 64) * 2,
        "memory_pos": torch.randn(total, batch, 64),
        "num_obj_ptr_tokens": pointers,
    }


def mask(batch=1):
    logits = torch.full((batch, 1, 32, 32), -5.0)
    logits[:, :, 8:14, 16:26] = 5
    return logits


def layout(*schemes, batch=1):
    return TokenLayout(GRID, tuple(s.plan(GRID, mask(batch)) for s in schemes))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("memories", "pointers", "batch", "heads"),
    [(1, 0, 1, 1), (1, 4, 2, 1), (2, 0, 2, 2), (2, 4, 1, 2), (7, 0, 1, 1), (7, 64, 1, 1), (7, 64, 2, 1), (9, 64, 1, 1)],
)
@torch.inference_mode()
def test_whole_memories_are_bit_identical_by_the_per_key_path(memories, pointers, batch, heads, autocast):
    host, given = memory_attention(heads), inputs(memories, pointers, batch)
    if autocast:
        given["memory"] = given["memory"].bfloat16()
    hook = AttentionHook(host)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        stock = host.memory_attention(**given)
        hook.install()
        with hook.layout(layout(*[Whole()] * memories)):
            ours = host.memory_attention(**given)
        assert hook.calls == 4
        unset = host.memory_attention(**given)
        assert hook.calls == 4
        if memories > 1:  # negative control
            with hook.layout(layout(*[Pool(2)] * memories)):
                assert not torch.equal(host.memory_attention(**given), stock)
    assert torch.equal(ours, stock)
    assert torch.equal(unset, stock)


@torch.inference_mode()
def test_phases_are_the_hosts():
    host = memory_attention()
    host.memory_attention(**inputs())
    for layer in host.memory_attention.layers:
        cross = layer.cross_attn_image
        ours = patch.rotary_phases(GRID, 1, 256, cross.compute_cis.keywords["theta"], torch.device("cpu"))
        assert torch.equal(ours, cross.freqs_cis)


@pytest.mark.parametrize("scheme", [Pool(2), Pool(4), Foveated(0.3, 2), Foveated(0.3, 4)], ids=repr)
@torch.inference_mode()
def test_windows_of_equal_tokens_without_rotation_equal_stock(scheme, monkeypatch):
    """Through all layers, projections and residuals: what log(n) is for."""
    host, given = memory_attention(), inputs(3, 8)
    for name in ("memory", "memory_pos"):
        spatial = given[name][:-8].view(3, 2, 4, 2, 4, 64)
        spatial.copy_(spatial[:, :, :1, :, :1].clone().expand_as(spatial))
    hook = AttentionHook(host)
    for layer in host.memory_attention.layers:
        layer.cross_attn_image.freqs_cis = torch.ones(64, 128, dtype=torch.complex64)
    monkeypatch.setattr(
        patch, "rotary_phases", lambda grid, size, dim, theta, device: torch.ones(64 // size**2, 128).cfloat()
    )
    stock = host.memory_attention(**given)
    hook.install()
    with hook.layout(layout(scheme, scheme, Whole())):
        ours = host.memory_attention(**given)
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
    with hook.layout(layout(scheme, scheme, Whole())), monkeypatch.context() as m:  # negative control
        m.setattr(patch, "attend", lambda q, groups: real(q, [(1, k, v) for _, k, v in groups]))
        from sam2_keyframe.attention import attend as real

        assert not torch.allclose(host.memory_attention(**given), stock, atol=1e-3)


@pytest.mark.parametrize("scheme", [Pool(2), Foveated(0.3, 2)], ids=repr)
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_kernels_and_bias_mask_agree_through_the_host(scheme, batch, monkeypatch):
    host, given = memory_attention(), inputs(4, 8, batch)
    hook = AttentionHook(host)
    hook.install()
    schemes = layout(scheme, scheme, Pool(4), Whole(), batch=batch)
    with hook.layout(schemes):
        fused = host.memory_attention(**given)
    monkeypatch.setattr("sam2_keyframe.attention.fused_kernel", lambda query: None)
    with hook.layout(schemes):
        masked = host.memory_attention(**given)
    torch.testing.assert_close(fused, masked, atol=2e-5, rtol=0)


@pytest.mark.parametrize("scheme", [Whole(), Pool(2), Foveated(0.3, 2), SalientTokens(0.1)], ids=repr)
def test_no_host_reads_in_all_layers(scheme):
    """A fake tensor has no values to read; what was read is planned, measured and attended to without any."""
    host = memory_attention()
    host.device = torch.device("cpu")
    hook = AttentionHook(host)
    hook.install()
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = inputs(3, 8)
        entries = {
            t: {"maskmem_features": torch.empty(1, 64, *GRID), "pred_masks": torch.empty(1, 1, 32, 32)}
            | {"object_score_logits": torch.empty(1, 1)}
            for t in (0, 7, 8)
        }
        view = {"cond_frame_outputs": {0: entries[0]}, "non_cond_frame_outputs": {t: entries[t] for t in (7, 8)}}
        for _ in range(2):
            with hook.layout(hook.read_layout(scheme, view, [0], {0}, Moment(9, False, 6, 15), GRID)):
                out = host.memory_attention(**given)
        assert out.shape == (64, 1, 256)
    assert hook.calls == 8


def test_undo_is_exact():
    host = memory_attention()
    cross = [layer.cross_attn_image for layer in host.memory_attention.layers]
    earlier = types.MethodType(lambda self, *a, **k: type(self).forward(self, *a, **k), cross[1])
    cross[1].forward = earlier
    before, weights = [dict(vars(c)) for c in cross], set(host.memory_attention.state_dict())
    hook = AttentionHook(host)
    for _ in range(2):
        hook.install()
        hook.install()
        assert all("forward" in vars(c) for c in cross)
        assert set(host.memory_attention.state_dict()) == weights
        hook.uninstall()
        assert [vars(c).get("forward") for c in cross] == [None, earlier, None, None]
        assert [vars(c).keys() for c in cross] == [b.keys() for b in before]
    hook.uninstall()
    assert vars(cross[1])["forward"] is earlier


@torch.inference_mode()
def test_layout_is_cleared_when_the_host_raises():
    host, given = memory_attention(), inputs(3)
    hook = AttentionHook(host)
    hook.install()
    stock = host.memory_attention(**given)
    with pytest.raises(RuntimeError, match="2 memories"), hook.layout(layout(Whole(), Whole())):
        host.memory_attention(**given)
    assert torch.equal(host.memory_attention(**given), stock)


def test_training_is_refused():
    host, given = memory_attention(), inputs(1)
    hook = AttentionHook(host)
    hook.install()
    host.memory_attention.train()
    with pytest.raises(RuntimeError, match="eval"), hook.layout(layout(Whole())):
        host.memory_attention(**given)


def official(cls_override=None, **kwargs):
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(3)
    overrides = ["++model.image_size=128"]
    predictor = build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu", hydra_overrides_extra=overrides, **kwargs
    )
    # Random weights call every object hidden, and then every mask is the same constant.
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return predictor


def test_compiled_and_foreign_predictors_are_refused():
    with pytest.raises(RuntimeError, match=r"Whole\(\)"):
        AttentionHook(official(vos_optimized=True))
    with pytest.raises(TypeError, match="no rotary memory attention"):
        AttentionHook(torch.nn.Linear(2, 2))


@torch.inference_mode()
def track(predictor, folder, scheme=None, reverse=False, cap=-1, empty=()):
    """Two objects, four prompts, some late. With a scheme, by the hook; checks the order that it assumes."""
    from sam2.modeling.sam2_utils import select_closest_cond_frames

    hook, shown = AttentionHook(predictor), []
    whole, read = predictor.memory_attention.forward, predictor._prepare_memory_conditioned_features

    def concatenated(memory, num_obj_ptr_tokens=0, **kwargs):
        shown.append((memory, num_obj_ptr_tokens))
        return whole(memory=memory, num_obj_ptr_tokens=num_obj_ptr_tokens, **kwargs)

    def wrapped(frame_idx, output_dict, track_in_reverse, is_init_cond_frame, feat_sizes, **kwargs):
        given = {"frame_idx": frame_idx, "is_init_cond_frame": is_init_cond_frame, "feat_sizes": feat_sizes, **kwargs}
        given |= {"output_dict": output_dict, "track_in_reverse": track_in_reverse}
        if is_init_cond_frame:
            return read(**given)
        tracked = dict(output_dict["non_cond_frame_outputs"])
        for t in set(empty) & set(tracked):
            blank = tracked[t]["maskmem_features"][:, :, :0]
            tracked[t] = tracked[t] | {"maskmem_features": blank, "maskmem_pos_enc": [blank]}
        given["output_dict"] = view = output_dict | {"non_cond_frame_outputs": tracked}
        if scheme is None:
            return read(**given)
        moment = Moment(frame_idx, track_in_reverse, 6, 15)
        selected = list(select_closest_cond_frames(frame_idx, view["cond_frame_outputs"], cap)[0])
        with hook.layout(hook.read_layout(scheme, view, selected, output_dict["cond_frame_outputs"], moment, GRID)):
            out = read(**given)
        memories, (memory, pointers) = shown_memories(view, selected, moment), shown[-1]
        chunks = memory[: len(memory) - pointers].split(64)
        assert len(chunks) == len(memories)
        for chunk, (_, entry) in zip(chunks, memories, strict=True):
            assert torch.equal(chunk, entry["maskmem_features"].flatten(2).permute(2, 0, 1).to(chunk.dtype))
        return out

    hook.install()
    predictor.memory_attention.forward = concatenated
    predictor._prepare_memory_conditioned_features = wrapped
    predictor.max_cond_frames_in_attn = cap
    try:
        state = predictor.init_state(str(folder))
        first = 8 if reverse else 0
        for frame, obj, (y, x) in ((first, 1, (20, 30)), (first, 2, (70, 60)), (4, 1, (24, 50)), (5, 1, (25, 54))):
            prompt = torch.zeros(96, 128)
            prompt[y : y + 20, x : x + 30] = 1
            predictor.add_new_mask(state, frame, obj, prompt)
        given = {"start_frame_idx": 8, "reverse": True} if reverse else {}
        masks = [logits.clone() for _, _, logits in predictor.propagate_in_video(state, **given)]
        stored = [state["output_dict_per_obj"][o]["non_cond_frame_outputs"] for o in (0, 1)]
        entries = [e for d in stored for _, e in sorted(d.items())]
        out = [e[key] for e in entries for key in ("maskmem_features", "pred_masks", "obj_ptr")]
    finally:
        del predictor.memory_attention.forward, predictor._prepare_memory_conditioned_features
        predictor.max_cond_frames_in_attn = -1
        hook.uninstall()
    return masks + out, hook.calls, [((len(m) - p) // 64, p) for m, p in shown]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    rng = np.random.default_rng(0)
    back = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    for t in range(9):
        frame = back.copy()
        frame[20 + t : 40 + t, 30 + 4 * t : 60 + 4 * t] = (200, 40, 40)
        frame[70:90, 60 - 3 * t : 90 - 3 * t] = (40, 200, 60)
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
    return folder


@pytest.mark.parametrize(
    ("autocast", "options"),
    [
        (False, {}),
        (True, {}),
        (False, {"reverse": True, "empty": (5, 6)}),
        (False, {"cap": 2, "empty": (2,)}),
    ],
    ids=["fp32", "bf16", "reverse", "capped"],
)
def test_official_tiny_predictor_with_whole_memories_is_bit_identical(clip, autocast, options):
    predictor = official()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        stock, calls, _ = track(predictor, clip, **options)
        assert calls == 0
        ours, calls, shown = track(predictor, clip, Whole(), **options)
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))
    assert stock[1].std() > 0
    assert not torch.equal(stock[0], stock[3])
    assert calls == 4 * len(shown)
    assert len({p for _, p in shown}) > 3
    assert max(shown)[0] >= 6
    if not options and not autocast:  # negative control
        fewer, _, _ = track(predictor, clip, Foveated(0.3, 2))
        assert not torch.equal(stock[8], fewer[8])
        assert all(t.isfinite().all() for t in fewer)


def test_the_newest_memory_stays_whole_and_prompts_by_option():
    features, moment = torch.zeros(1, 64, *GRID), Moment(9, False, 6, 15)
    entry = {t: {"maskmem_features": features, "pred_masks": mask()} for t in (0, 3, 7, 8, 10)}
    view = {
        "cond_frame_outputs": {t: entry[t] for t in (0, 10)},
        "non_cond_frame_outputs": {t: entry[t] for t in (3, 7, 8)},
    }
    host = memory_attention()
    host.device = torch.device("cpu")
    hook = AttentionHook(host)

    def sizes(scheme, view):
        layout = hook.read_layout(scheme, view, list(view["cond_frame_outputs"]), {0}, moment, GRID)
        return [{part.size for part in plan} for plan in layout.plans]

    # frame 0 is prompted; frame 10 stands for a keyframe shown among the conditioning frames
    assert sizes(Pool(2), view) == [{1}, {2}, {2}, {2}, {1}]
    assert sizes(Pool(2, conditioning=True), view) == [{2}, {2}, {2}, {2}, {1}]
    assert sizes(Foveated(0.3, 2), view) == [{1}, {1, 2}, {1, 2}, {1, 2}, {1}]
    assert sizes(Whole(), view) == [{1}] * 5
    assert sizes(Pool(2, conditioning=True), view | {"non_cond_frame_outputs": {}}) == [{2}, {2}]


def test_plans_are_kept_as_long_as_their_masks(monkeypatch):
    host, made = memory_attention(), []
    host.device = torch.device("cpu")
    hook, scheme = AttentionHook(host), Foveated(0.3, 2)
    real = Foveated.plan
    monkeypatch.setattr(Foveated, "plan", lambda self, *a: made.append(a) or real(self, *a))
    masks = [mask(), mask()]
    for _ in range(3):
        for m in masks:
            hook._plan(scheme, GRID, m)
    assert len(made) == 2
    hook._plan(Foveated(0.4, 2), GRID, masks[0])
    assert len(made) == 3
    made.clear()
    del m, masks
    assert len(hook._plans) == 0
