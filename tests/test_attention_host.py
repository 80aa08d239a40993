"""The hook into SAM 2's own memory attention: identical when every memory is whole, exact undo, clear refusals."""

import types

import numpy as np
import pytest
import torch

from sam2_keyframe.attention import Foveated, Pool, TokenLayout, Whole
from sam2_keyframe.patches import attention as patch
from sam2_keyframe.patches.attention import AttentionHook

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
def track(predictor, folder, schemes=None):
    """Two objects, three prompts, one of them late; with `schemes` through the hook by the memories really shown."""
    hook, shown = AttentionHook(predictor), []
    whole = predictor.memory_attention.forward

    def read(curr, memory, num_obj_ptr_tokens=0, **kwargs):
        n = GRID[0] * GRID[1]
        memories = (memory.shape[0] - num_obj_ptr_tokens) // n
        shown.append((memories, num_obj_ptr_tokens))
        plans = tuple(schemes(i, memories).plan(GRID, mask()) for i in range(memories))
        with hook.layout(TokenLayout(GRID, plans)):
            return whole(curr=curr, memory=memory, num_obj_ptr_tokens=num_obj_ptr_tokens, **kwargs)

    if schemes:
        hook.install()
        predictor.memory_attention.forward = read
    try:
        state = predictor.init_state(str(folder))
        for frame, obj, (y, x) in ((0, 1, (20, 30)), (0, 2, (70, 60)), (5, 1, (24, 50))):
            prompt = torch.zeros(96, 128)
            prompt[y : y + 20, x : x + 30] = 1
            predictor.add_new_mask(state, frame, obj, prompt)
        masks = [logits.clone() for _, _, logits in predictor.propagate_in_video(state)]
        stored = [state["output_dict_per_obj"][o]["non_cond_frame_outputs"] for o in (0, 1)]
        out = [
            t
            for d in stored
            for _, e in sorted(d.items())
            for t in (e["maskmem_features"], e["pred_masks"], e["obj_ptr"])
        ]
    finally:
        if schemes:
            del predictor.memory_attention.forward
            hook.uninstall()
    return masks + out, hook.calls, shown


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


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_official_tiny_predictor_with_whole_memories_is_bit_identical(clip, autocast):
    predictor = official()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        stock, _, _ = track(predictor, clip)
        ours, calls, shown = track(predictor, clip, lambda i, n: Whole())
        pooled, _, _ = track(predictor, clip, lambda i, n: Pool(2) if i < n - 1 else Whole())
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))
    assert stock[1].std() > 0
    assert not torch.equal(stock[0], stock[4])
    assert calls == 4 * len(shown)
    assert len(shown) == 7 + 8
    assert max(shown)[0] == 7
    assert {p for _, p in shown} > {4, 8}
    assert not torch.equal(stock[8], pooled[8])  # negative control
    assert all(t.isfinite().all() for t in pooled)
