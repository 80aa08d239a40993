"""The hook into SAM 2's own memory attention: identical when every memory is whole, exact undo, clear refusals."""

import types

import pytest
import torch
from plans import view_layout
from torch._subclasses.fake_tensor import FakeTensorMode

from sam2_keyframe.attention.maths import Foveated, Pool, SalientTokens, TokenLayout, Whole
from sam2_keyframe.patches import attention as patch
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.types import Memory, Moment

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
        from sam2_keyframe.attention.maths import attend as real

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
    monkeypatch.setattr("sam2_keyframe.attention.maths.fused_kernel", lambda query: None)
    with hook.layout(schemes):
        masked = host.memory_attention(**given)
    torch.testing.assert_close(fused, masked, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Whole(), Pool(2), Foveated(0.3, 2), SalientTokens(0.1)], ids=repr)
def test_no_host_reads_in_all_layers(scheme):
    """A fake tensor has no values to read; what was read is planned, measured and attended to without any."""
    host = memory_attention()
    hook, plans = AttentionHook(host), {}
    hook.install()
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = inputs(3, 8)
        entries = {
            t: {"maskmem_features": torch.empty(1, 64, *GRID), "pred_masks": torch.empty(1, 1, 32, 32)}
            | {"object_score_logits": torch.empty(1, 1)}
            for t in (0, 7, 8)
        }
        view = {"cond_frame_outputs": {0: entries[0]}, "non_cond_frame_outputs": {t: entries[t] for t in (7, 8)}}
        for moment in (Moment(9, False, 6, 15), Moment(6, True, 6, 15)):  # now frame 8 is the newest, now frame 7
            memories = [Memory(t, entries[t], moment.distance(t) - 1) for t in (7, 8)]
            with hook.layout(view_layout(scheme, view, [0], memories, moment, GRID, plans)):
                out = host.memory_attention(**given)
        assert out.shape == (64, 1, 256)
    assert hook.calls == 8
    assert set(plans) == (set() if isinstance(scheme, Whole | Pool) else {7, 8})


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


def sizes(scheme, prompted, tracked):
    """Window sizes by memory at frame 9, in the host's order; tracked frames by their temporal code."""
    entry = {t: {"maskmem_features": torch.zeros(1, 64, *GRID), "pred_masks": mask()} for t in (*prompted, *tracked)}
    moment = Moment(9, False, 6, 15)
    memories = [Memory(t, entry[t], code) for t, code in tracked.items()]
    slots = {moment.slot(code): entry[t] for t, code in tracked.items() if code < 6}
    anchors = {t: entry[t] for t, code in tracked.items() if code == 6}
    view = {"cond_frame_outputs": {t: entry[t] for t in prompted} | anchors, "non_cond_frame_outputs": slots}
    selected = list(view["cond_frame_outputs"])
    found = view_layout(scheme, view, selected, memories, moment, GRID, {})
    return [{part.size for part in plan} for plan in found.plans]


def test_the_newest_memory_stays_whole_and_prompts_by_option():
    memories = {10: 6, 3: 2, 7: 1, 8: 0}  # the first shown among the conditioning frames
    assert sizes(Pool(2), [0], memories) == [{1}, {2}, {2}, {2}, {1}]
    assert sizes(Pool(2, conditioning=True), [0], memories) == [{2}, {2}, {2}, {2}, {1}]
    assert sizes(Foveated(0.3, 2), [0], memories) == [{1}, {1, 2}, {1, 2}, {1, 2}, {1}]
    assert sizes(Whole(), [0], memories) == [{1}] * 5
    assert sizes(Pool(2, conditioning=True), [0], {}) == [{1}], "dense where there is one memory only"
    assert sizes(Pool(2, conditioning=True), [0, 5], {}) == [{2}, {1}]
    assert sizes(Pool(2, conditioning=True), [0, 8], {7: 1, 6: 2}) == [{2}, {1}, {2}, {2}], "a prompt may be the newest"
    assert sizes(Pool(2, conditioning=True), [0, 12], {}) == [{1}, {2}], "of what is past"
