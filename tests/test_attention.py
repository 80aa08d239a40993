"""Attention over chosen tokens: the maths, against direct computations; no host."""

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, distance_transform_edt
from torch._subclasses.fake_tensor import FakeTensorMode

from sam2_keyframe.attention import maths as attention
from sam2_keyframe.attention.maths import (
    ATTEND,
    Foveated,
    Pool,
    SalientTokens,
    TokenLayout,
    Whole,
    attend,
    drawn_attention,
    rotary_phases,
    rotate,
    scheme_for,
)

GRID = (8, 12)
SCHEMES = [Whole(), Pool(2), Pool(4), Foveated(0.2, 2), Foveated(0.4, 4)]


def blob(y, x, grid=GRID, batch=1):
    """Mask logits at four times the grid with a small object around token (y, x)."""
    mask = torch.full((batch, 1, grid[0] * 4, grid[1] * 4), -6.0)
    mask[:, :, y * 4 : y * 4 + 6, x * 4 : x * 4 + 6] = 4.0
    return mask


def tables(layout, dim, theta=10000.0):
    return {s: rotary_phases(layout.grid, s, dim, theta, torch.device("cpu")) for s in layout.sizes}


def softmax_attention(q, groups):
    """One softmax over all keys in float64, a key that stands for n repeated n times."""
    k = torch.cat([k.repeat_interleave(n, dim=2) for n, k, _ in groups], dim=2).double()
    v = torch.cat([v.repeat_interleave(n, dim=2) for n, _, v in groups], dim=2).double()
    return (q.double() @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1) @ v


@pytest.mark.parametrize("fused", [True, False], ids=["kernels", "mask"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_groups_merge_into_one_softmax(fused, data):
    batch, heads, n = (data.draw(st.integers(1, m)) for m in (2, 2, 7))
    dim = data.draw(st.sampled_from([4, 8, 32]))
    sizes = data.draw(st.lists(st.tuples(st.sampled_from([1, 4, 16]), st.integers(0, 9)), min_size=1, max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 999)))
    groups = [(c, torch.randn(batch, heads, m, dim) * 3, torch.randn(batch, heads, m, dim)) for c, m in sizes]
    q = torch.randn(batch, heads, n, dim)
    with pytest.MonkeyPatch.context() as patch:
        if not fused:
            patch.setattr(attention, "fused_kernel", lambda query: None)
        if not any(m for _, m in sizes):
            with pytest.raises(ValueError, match="no key"):
                attend(q, groups)
            return
        out = attend(q, groups)
    torch.testing.assert_close(out.double(), softmax_attention(q, groups), atol=2e-6, rtol=1e-5)


def test_kernels_are_fused_here_and_never_get_an_empty_group(monkeypatch):
    seen = []
    real = attention.fused_kernel(torch.randn(1, 1, 2, 8))
    monkeypatch.setattr(attention, "fused_kernel", lambda q: lambda *a: seen.append(a[1].shape[2]) or real(*a))
    kv = torch.randn(1, 1, 5, 8)
    attend(torch.randn(1, 1, 3, 8), [(1, kv, kv), (4, kv[:, :, :0], kv[:, :, :0]), (16, kv[:, :, :2], kv[:, :, :2])])
    assert seen == [5, 2]


def test_bfloat16_groups_stay_close_and_keep_the_dtype():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 64).bfloat16() for n in (30, 40, 40))
    out = attend(q, [(1, k, v), (4, k + 1, v)])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), softmax_attention(q, [(1, k, v), (4, k + 1, v)]), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_single_key_has_the_phase_of_its_windows_centre(size):
    """One query, one pooled key, by complex numbers alone: (q conj(k) e^{i f (p_q - p_k)}) summed over channels."""
    torch.manual_seed(0)
    dim, theta, window, query = 16, 10000.0, 5, 17
    q, k = torch.randn(2, dim)
    here = rotary_phases(GRID, 1, dim, theta, torch.device("cpu"))[query]
    there = rotary_phases(GRID, size, dim, theta, torch.device("cpu"))[window]
    logit = (rotate(q.view(1, 1, 1, -1), here.view(1, 1, -1)) * rotate(k.view(1, 1, 1, -1), there.view(1, 1, -1))).sum()
    columns = GRID[1] // size
    centre = [(window % columns) * size + (size - 1) / 2, (window // columns) * size + (size - 1) / 2]
    at = [query % GRID[1], query // GRID[1]]
    expected = 0.0
    for c in range(dim // 2):
        axis, i = divmod(c, dim // 4)
        angle = (at[axis] - centre[axis]) * theta ** (-4 * i / dim)
        a, b = complex(q[2 * c], q[2 * c + 1]), complex(k[2 * c], k[2 * c + 1])
        expected += (a * b.conjugate() * cmath.exp(1j * angle)).real
    assert logit.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_a_windows_phase_is_the_middle_of_its_corners(size):
    fine = rotary_phases(GRID, 1, 32, 10000.0, torch.device("cpu")).view(*GRID, -1)
    coarse = rotary_phases(GRID, size, 32, 10000.0, torch.device("cpu")).view(GRID[0] // size, GRID[1] // size, -1)
    corners = fine[::size, ::size] * fine[size - 1 :: size, size - 1 :: size]
    torch.testing.assert_close(coarse**2, corners, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("where", [(0, 0), (3, 7), (6, 10)])
def test_every_token_is_stood_for_exactly_once(scheme, where):
    n = GRID[0] * GRID[1]
    layout = TokenLayout(GRID, (scheme.plan(GRID, blob(*where, batch=2)),) * 2)
    pointers = torch.zeros(2, 3, 2 * n)
    tokens = torch.cat([torch.eye(2 * n).expand(2, -1, -1), pointers], dim=1)
    groups = layout.gather(tokens)
    shares = sum(count * taken.sum(1) for count, taken in groups.items())
    torch.testing.assert_close(shares, torch.ones(2, 2 * n))
    assert sum(g.shape[1] for g in groups.values()) == layout.tokens + 3
    phases = layout.phases(tables(layout, 8))
    assert sum(p.shape[1] for p in phases.values()) == layout.tokens
    assert layout.spatial == 2 * n


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_keys_and_phases_belong_together(scheme):
    """A token that carries its own position is pooled to the position whose phase it gets."""
    y, x = torch.meshgrid(*(torch.arange(n).float() for n in GRID), indexing="ij")
    places = torch.stack([x, y], -1).view(1, -1, 2)
    layout = TokenLayout(GRID, (Whole().plan(GRID), scheme.plan(GRID, blob(3, 7))))
    groups, phases = layout.gather(torch.cat([places, places], 1)), layout.phases(tables(layout, 4, 1e4))
    for count, taken in groups.items():
        turns = torch.polar(torch.ones(1), taken)  # with four channels every frequency is 1
        torch.testing.assert_close(phases[count], turns, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_constant_windows_without_rotation_equal_whole_attention(scheme):
    """This is what log(n) is for."""
    torch.manual_seed(1)
    coarse = torch.randn(2, 16, GRID[0] // 4, GRID[1] // 4) * 2
    memories = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).flatten(2).transpose(1, 2)
    pointers, q = torch.randn(1, 5, 16), torch.randn(1, 1, 9, 16)
    tokens = torch.cat([*memories[:, None], pointers], dim=1)
    layout = TokenLayout(GRID, (Whole().plan(GRID), scheme.plan(GRID, blob(3, 7))))
    pooled = attend(q, [(n, t[:, None], t[:, None]) for n, t in layout.gather(tokens).items()])
    whole = attend(q, [(1, tokens[:, None], tokens[:, None])])
    torch.testing.assert_close(pooled, whole, atol=1e-5, rtol=0)
    if not isinstance(scheme, Whole):  # negative control: without log(n) it is not
        forgotten = attend(q, [(1, t[:, None], t[:, None]) for t in layout.gather(tokens).values()])
        without = torch.cat([t[:, None] for t in layout.gather(tokens).values()], 2)
        assert not torch.allclose(attend(q, [(1, without, without)]), whole, atol=1e-2)
        torch.testing.assert_close(forgotten, attend(q, [(1, without, without)]), atol=1e-5, rtol=0)


def test_fovea_lies_on_the_object_and_its_size_does_not_depend_on_it():
    grid, scheme = (16, 16), Foveated(0.1, 2)
    shapes = set()
    for y, x in ((0, 0), (8, 4), (14, 14)):
        fine, coarse = scheme.plan(grid, blob(y, x, grid))
        held = torch.zeros(grid).flatten().index_fill(0, fine.index[0], 1).view(grid)
        assert held[y, x] == 1
        ys, xs = held.nonzero().T.float()
        assert (ys.mean() - y).abs() < 4
        assert (xs.mean() - x).abs() < 4
        shapes.add((fine.index.shape, coarse.index.shape))
    shapes.add(tuple(part.index.shape for part in scheme.plan(grid, torch.full((1, 1, 64, 64), -1024.0))))
    shapes.add(tuple(part.index.shape for part in scheme.plan(grid, torch.full((1, 1, 64, 64), 9.0))))
    assert len(shapes) == 1


@pytest.mark.parametrize("share", [0.1, 0.45, 0.8])
def test_the_fovea_is_around_the_object_and_then_what_is_nearest_to_it(share):
    """At 1024 px, where most of the frame may be far from the object: there none stays whole before a nearer one."""
    draw, beyond = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        mask = torch.full((1, 1, 64, 64), -9.0)
        for _ in range(2):  # a large piece and a small one
            y, x, side = (int(torch.randint(1, most, (), generator=draw)) for most in (56, 56, 9))
            mask[..., y : y + side, x : x + side] = 9.0
        fine, coarse = Foveated(share, 4).plan((64, 64), mask)
        whole = torch.ones(256, dtype=torch.bool).index_fill(0, coarse.index[0], False).view(16, 16)
        assert fine.index.shape[1] == 16 * whole.sum()
        empty = (mask < 0).view(16, 4, 16, 4).permute(0, 2, 1, 3).flatten(2).all(2).numpy()
        around = torch.from_numpy(binary_dilation(~empty, np.ones((3, 3)), iterations=3))
        away = torch.from_numpy(distance_transform_edt(empty))
        assert whole[around].all() or not whole[~around].any()
        kept = away[whole & ~around]
        beyond += len(kept)
        assert not len(kept) or kept.max() <= away[~whole & ~around].min() + 1e-6
    assert (beyond > 0) == (share > 0.4)
    nothing = Foveated(share, 4).plan((64, 64), torch.full((1, 1, 64, 64), -9.0))[0].index
    assert abs((nothing // 64).float().mean() - 32) < 3  # in the middle
    assert abs((nothing % 64).float().mean() - 32) < 3


def test_tokens_of_the_named_schemes_at_1024_px():
    mask = torch.full((1, 1, 256, 256), -1.0)

    def tokens(scheme):
        return TokenLayout((64, 64), (scheme.plan((64, 64), mask),)).tokens

    assert [tokens(s) for s in (Whole(), Pool(2), Pool(4))] == [4096, 1024, 256]
    assert tokens(Foveated(0.05, 4)) == 13 * 16 + (256 - 13)


def test_salient_tokens_are_those_that_drew_most():
    drawn = torch.zeros(2, GRID[0] * GRID[1])
    drawn[0, [5, 90, 17, 3]], drawn[1, [0, 1, 2, 95]] = 1.0, 2.0
    (part,) = SalientTokens(4 / 96).plan(GRID, drawn=drawn)
    assert part.index.tolist() == [[3, 5, 17, 90], [0, 1, 2, 95]]
    assert SalientTokens(1e-6).plan(GRID, drawn=drawn)[0].index.shape == (2, 1)
    assert SalientTokens().plan(GRID)[0].index is None  # never measured: whole


@pytest.mark.parametrize("grid", [(8, 12), (32, 48)])
def test_what_a_token_draws_is_its_share_of_the_softmax_over_the_memory(grid):
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, grid[0] * grid[1], 8), torch.randn(2, 3, 20, 8)
    steps = grid[0] // min(grid[0], 16), grid[1] // min(grid[1], 16)
    asked = [
        y * grid[1] + x
        for y in range(steps[0] // 2, grid[0], steps[0])
        for x in range(steps[1] // 2, grid[1], steps[1])
    ]
    shares = (q.double()[:, :, asked] @ k.double().transpose(2, 3) / math.sqrt(8)).softmax(-1)
    drawn = drawn_attention(q, k, grid)
    torch.testing.assert_close(drawn.double(), shares.mean((1, 2)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(drawn.sum(1), torch.ones(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drawn_attention(q, k, grid), drawn)
    with FakeTensorMode():
        assert drawn_attention(torch.empty(1, 1, 96, 8), torch.empty(1, 1, 96, 8), GRID).shape == (1, 96)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_no_host_reads(scheme):
    """A fake tensor has no values to read."""
    with FakeTensorMode():
        mask = torch.empty(1, 1, 32, 48)
        layout = TokenLayout(GRID, (scheme.plan(GRID, mask), Whole().plan(GRID, mask)))
        tokens = layout.gather(torch.empty(1, layout.spatial + 4, 16))
        phases = layout.phases(tables(layout, 16))
        groups = [(n, rotate(t[:, None, : phases[n].shape[1]], phases[n]), t[:, None]) for n, t in tokens.items()]
        groups = [(n, k, v[:, :, : k.shape[2]]) for n, k, v in groups]
        assert attend(torch.empty(1, 1, 96, 16), groups).shape == (1, 1, 96, 16)


def test_which_memories_stay_whole():
    for attend_ in (Pool(2), Foveated()):
        assert scheme_for(attend_, conditioning=False, newest=False) == attend_
        assert scheme_for(attend_, conditioning=True, newest=False) == Whole()
        assert scheme_for(attend_, conditioning=False, newest=True) == Whole()
    both = Pool(2, conditioning=True)
    assert scheme_for(both, conditioning=True, newest=False) == both
    assert scheme_for(both, conditioning=True, newest=True) == Whole()
    assert scheme_for(Whole(), conditioning=True, newest=False) == Whole()
    assert scheme_for(SalientTokens(), conditioning=True, newest=False) == Whole()


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_repr_rebuilds(scheme):
    assert eval(repr(scheme), vars(attention)) == scheme


def test_registry():
    assert ATTEND["pool"](size=4) == Pool(4)
    assert set(ATTEND) == {"whole", "pool", "foveated", "salient", "modulated"}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Pool(1), "size=1"),
        (lambda: Foveated(0.0), r"share=0\.0"),
        (lambda: Foveated(0.5, 1), "size=1"),
        (lambda: Pool(5).plan(GRID), "8x12"),
        (lambda: Pool(8).plan((8, 8)), "8x8"),
        (lambda: Foveated().plan((16, 16)), "pred_masks"),
        (lambda: SalientTokens(1.0), r"share=1\.0"),
    ],
)
def test_wrong_settings_are_named(make, names):
    with pytest.raises(ValueError, match=names):
        make()


def test_a_layout_of_more_memories_than_there_are_is_named():
    with pytest.raises(RuntimeError, match="2 memories"):
        TokenLayout(GRID, (Whole().plan(GRID),) * 2).gather(torch.randn(1, 100, 4))
