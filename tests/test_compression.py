"""Storage codecs: bytes, round trips, error bounds, determinism, no host reads."""

import ast
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from sam2_keyframe.bank import compression
from sam2_keyframe.bank.compression import CODECS, PCA, Cast, Chain, Downsample, Identity, Int8, Offload, Prune

ALL = [
    Identity(),
    Cast("bfloat16"),
    Cast("float16"),
    Cast("float8_e4m3fn"),
    Int8(),
    Downsample(2),
    Downsample(4),
    PCA(4),
    PCA(0.25),
    PCA(4, basis="running"),
    Prune(3),
    Prune(0.5),
    Offload(),
    Chain(PCA(4), Int8()),
    Chain(Downsample(2), PCA(0.5), Int8(), Offload()),
    Chain(Chain(Prune(0.5)), Int8()),
]
ids = [repr(c) for c in ALL]


@st.composite
def memories(draw, dtypes=(torch.float32, torch.bfloat16, torch.float16)):
    """Features of any small grid, scale and dtype: correlated channels, some constant, some zero."""
    c, h, w = draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mix = torch.randn(c, c, generator=g) * torch.rand(c, 1, generator=g).round()
    x = torch.einsum("cd,dhw->chw", mix, torch.randn(c, h, w, generator=g)) + torch.randn(c, 1, 1, generator=g)
    scale, dtype = draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0, 3e4, 1e20, 1e35])), draw(st.sampled_from(dtypes))
    largest = torch.finfo(dtype).max
    return (x * scale)[None].clamp(-largest, largest).to(dtype)


def ulp(x):
    """Largest rounding error of the values' own dtype."""
    return x.float().abs().max() * torch.finfo(x.dtype).eps + torch.finfo(x.dtype).smallest_normal


@pytest.mark.parametrize("codec", ALL, ids=ids)
@settings(max_examples=25, deadline=None)
@given(x=memories())
def test_round_trip_keeps_shape_and_dtype_and_is_finite(codec, x):
    before = x.clone()
    payload = codec.compress(x)
    back = codec.restore(payload)
    assert back.shape == x.shape
    assert back.dtype == x.dtype
    assert back.isfinite().all()
    assert torch.equal(x, before)
    again = codec.restore(codec.compress(x))
    assert torch.equal(back, again)
    followed = codec.restore(codec.compress(x, payload))
    assert followed.isfinite().all()


@settings(max_examples=100, deadline=None)
@given(x=memories())
def test_error_bounds(x):
    v = x.double()

    def error(codec):
        return codec.restore(codec.compress(x)).double() - v

    assert error(Identity()).abs().max() == 0
    assert error(Offload()).abs().max() == 0
    for codec, bits, smallest in ((Cast("bfloat16"), 8, 2**-126), (Cast("float8_e4m3fn"), 4, 2**-6)):
        assert (error(codec).abs() <= v.abs().clamp_max(448) * 2**-bits + smallest + (v.abs() - 448).clamp_min(0)).all()
    step = v.abs().amax((0, 2, 3), keepdim=True) / 127
    assert (error(Int8()).abs() <= step * 0.5001 + ulp(x)).all()
    for size in (2, 4):
        back = Downsample(size).restore(Downsample(size).compress(x)).float()
        assert (back <= v.amax((2, 3), keepdim=True) + 4 * ulp(x)).all()
        assert (back >= v.amin((2, 3), keepdim=True) - 4 * ulp(x)).all()
    spread = (v - v.mean((0, 2, 3), keepdim=True)).norm()
    slack = 6 * ulp(x) * math.sqrt(x.numel())
    for rank in (1, 0.5):
        assert error(PCA(rank)).norm() <= spread + slack
    for keep in (1, 0.5):
        channels = compression._count(keep, x.shape[1])
        assert error(Prune(keep)).norm() <= spread * math.sqrt(1 - channels / x.shape[1]) * 1.001 + slack
    if x.dtype == torch.float32:
        assert error(PCA(1.0)).abs().max() <= 1e-4 * (1 + v.abs().max())


def test_bytes_are_counted_to_the_last_one():
    x = torch.randn(1, 64, 64, 64).bfloat16()
    full = 64 * 64 * 64 * 2
    expected = {
        Identity(): full,
        Cast("bfloat16"): full,
        Cast("float8_e4m3fn"): full // 2,
        Int8(): full // 2 + 64 * 4,
        Downsample(2): full // 4,
        Downsample(4): full // 16,
        PCA(16): full // 4 + (64 + 64 * 16) * 2 + 4,
        PCA(0.25, basis="running"): full // 4 + (64 + 64 * 16) * 2 + 4 + 16 * 4,
        Prune(0.5): full // 2 + 64 * 2 + 32 * 2,
        Offload(): full,
        Chain(PCA(16), Int8()): full // 8 + (64 + 64 * 16) * 2 + 4 + 16 * 4,
        Chain(Downsample(2), Int8()): full // 8 + 64 * 4,
    }
    for codec, nbytes in expected.items():
        payload = codec.compress(x)
        assert payload.nbytes == nbytes, (codec, payload.nbytes)
        tensors = [payload.data, *payload.side, *(t for link in payload.links for t in link.side)]
        assert sum(t.untyped_storage().nbytes() for t in tensors) == nbytes, codec


@pytest.mark.parametrize("basis", ["memory", "running"])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.bfloat16, 3e38)])
def test_pca_is_as_good_at_any_scale(basis, dtype, scale):
    """Also where an earlier memory was of another: squares of the values, or their ratio, have no float32."""
    codec, small, few = PCA(6, basis=basis), correlated(0).to(dtype), None
    large = (small.double() / small.abs().max() * scale).to(dtype)
    tiny = (small.double() * 1e-6).to(torch.float32)
    for x, tolerance in ((large, 0.05), (tiny, 1.5), (large, 0.05)):
        few = codec.compress(x, few)
        back = codec.restore(few)
        assert back.isfinite().all()
        assert (back.double() - x.double()).norm() <= tolerance * (x.double() - x.double().mean((2, 3), True)).norm()


def correlated(seed, channels=32, rank=6, noise=0.05):
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(channels, rank, generator=torch.Generator().manual_seed(7))
    weights = torch.linspace(3, 1, rank)[:, None]
    x = directions @ (weights * torch.randn(rank, 400, generator=g)) + noise * torch.randn(channels, 400, generator=g)
    return x.view(1, channels, 20, 20) + torch.randn(1, channels, 1, 1, generator=torch.Generator().manual_seed(8))


def test_pca_is_as_good_as_the_singular_value_decomposition():
    x = correlated(0)
    flat = x[0].flatten(1) - x[0].flatten(1).mean(1, keepdim=True)
    for rank in (1, 3, 6, 12):
        best = torch.linalg.svdvals(flat)[rank:].norm()
        error = (PCA(rank).restore(PCA(rank).compress(x)) - x).norm()
        assert best <= error * 1.0001
        assert error <= best * 1.01, (rank, error, best)


def test_pca_sign_is_that_of_the_largest_entry_and_does_not_depend_on_the_start():
    first, second = (PCA(6).compress(correlated(s)) for s in (0, 1))
    warm = PCA(6).compress(correlated(1), first)
    for payload in (first, second, warm):
        basis = payload.side[1]
        assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
        torch.testing.assert_close(basis.T @ basis, torch.eye(6), atol=1e-4, rtol=0)
    cold = PCA(6).restore(second)
    torch.testing.assert_close(PCA(6).restore(warm), cold, atol=5e-3, rtol=0)


def test_warm_start_takes_a_quarter_of_the_steps(monkeypatch):
    steps = []
    real = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda a: steps.append(a.shape) or real(a))
    first = PCA(6).compress(correlated(0))
    cold = len(steps)
    PCA(6).compress(correlated(1), first)
    assert (cold, len(steps) - cold) == (12, 3)


def test_running_basis_remembers_what_the_memory_alone_has_not():
    """A direction of the object's past survives a memory in which it is absent."""
    past, flat = correlated(0), torch.zeros(1, 32, 20, 20)
    flat[:, :8] = torch.randn(1, 8, 20, 20, generator=torch.Generator().manual_seed(1)) * 0.01
    running = PCA(6, basis="running")
    kept = running.compress(flat, running.compress(past)).side[1]
    truth = running.compress(past).side[1]
    alone = PCA(6).compress(flat).side[1]
    assert (kept.T @ truth).norm() ** 2 > 5.5 > 3 > (alone.T @ truth).norm() ** 2


def disjoint(seed, first, channels=32, rank=8):
    """A memory in `rank` channels alone."""
    x = torch.zeros(1, channels, 20, 20)
    x[:, first : first + rank] = torch.randn(1, rank, 20, 20, generator=torch.Generator().manual_seed(seed))
    return x


@pytest.mark.parametrize(("basis", "errors"), [("memory", [0.01] * 6), ("running", [0.95, 0.95, 0.95, 0.8, 0.6, 0.3])])
def test_a_basis_turns_to_content_that_is_orthogonal_to_it(basis, errors):
    codec, payload = PCA(8, basis=basis), None
    for seed in range(6):
        payload = codec.compress(disjoint(seed, 8), payload)
    for seed, most in enumerate(errors):
        x = disjoint(seed, 20)
        payload = codec.compress(x, payload)
        error = (codec.restore(payload) - x).norm() / x.norm()
        assert error <= most, (seed, error)


def test_running_basis_of_one_memory_repeated_is_that_memorys():
    running, x = PCA(6, basis="running"), correlated(0)
    payload = running.compress(x)
    for _ in range(5):
        payload = running.compress(x, payload)
    torch.testing.assert_close(running.restore(payload), PCA(6).restore(PCA(6).compress(x)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("codec", ALL, ids=ids)
def test_no_host_reads(codec):
    with FakeTensorMode():
        x = torch.empty(1, 64, 16, 16, dtype=torch.bfloat16)
        payload = codec.compress(x)
        back = codec.restore(codec.compress(x, payload))
        assert (back.shape, back.dtype) == (x.shape, x.dtype)
        assert payload.nbytes > 0


@pytest.mark.parametrize("codec", ALL, ids=ids)
def test_autocast_changes_nothing(codec):
    x = torch.randn(1, 16, 8, 8)
    plain = codec.restore(codec.compress(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = codec.restore(codec.compress(x))
    assert torch.equal(plain, under)


def test_autocast_would_change_pca(monkeypatch):
    """Negative control of the test above."""
    import contextlib

    monkeypatch.setattr(compression, "full_precision", lambda device: contextlib.nullcontext())
    x = torch.randn(1, 16, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = PCA(4).restore(PCA(4).compress(x))
    assert not torch.equal(under, PCA(4).restore(PCA(4).compress(x)))


@pytest.mark.parametrize("codec", ALL, ids=ids)
def test_repr_rebuilds(codec):
    assert eval(repr(codec), vars(compression)) == codec
    assert hash(codec) == hash(eval(repr(codec), vars(compression)))


def test_registry_holds_every_codec_and_no_instance():
    names = {n.name for n in ast.parse(Path(compression.__file__).read_text()).body if isinstance(n, ast.ClassDef)}
    assert {cls.__name__ for cls in CODECS.values()} == names - {"Codec", "Packed"}
    assert CODECS["pca"](rank=8) == PCA(8)


@pytest.mark.parametrize("codec", [c for c in ALL if not isinstance(c, Identity)], ids=repr)
def test_refuses_what_it_cannot_compress(codec):
    with pytest.raises(ValueError, match="no tokens"):
        codec.compress(torch.empty(1, 64, 0, 16))
    with pytest.raises(ValueError, match=r"\(B, C, h, w\)"):
        codec.compress(torch.randn(64, 16, 16))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Cast("int4"), "int4"),
        (lambda: Downsample(3), "size=3"),
        (lambda: PCA(0), "rank=0"),
        (lambda: PCA(1.5), r"rank=1\.5"),
        (lambda: PCA(8, basis="shared"), "shared"),
        (lambda: Prune(-1), "keep=-1"),
        (lambda: PCA("x"), "rank='x'"),
        (lambda: Prune("x"), "keep='x'"),
        (lambda: Prune(True), "keep=True"),
        (lambda: Chain(), "Identity"),
        (lambda: Chain(Int8(), PCA(4)), r"PCA\(rank=4.*cannot take what Int8\(\) leaves"),
        (lambda: Chain(Chain(PCA(4), Offload()), Int8()), r"Int8\(\) cannot take what Offload\(\) leaves"),
        (lambda: PCA(4).compress(torch.ones(1, 8, 4, 4, dtype=torch.int8)), r"PCA\(rank=4.*int8"),
        (lambda: Int8().restore(Chain(PCA(2), Int8()).compress(torch.randn(1, 8, 4, 4)).links[0]), "Chain"),
    ],
)
def test_wrong_settings_are_named(make, names):
    with pytest.raises(ValueError, match=names):
        make()


@pytest.mark.parametrize("codecs", [((PCA(2), Int8()),), (PCA, Int8)], ids=["a tuple", "classes"])
def test_a_chain_is_of_codecs(codecs):
    with pytest.raises(TypeError, match="one after another"):
        Chain(*codecs)
