"""Storage codecs: how a memory is kept in fewer bytes.

A codec changes the bytes of a *stored* memory. It restores the full grid on read, so the number of tokens that SAM 2
attends to stays the same; fewer tokens come from `sam2_keyframe.attention` only. Every codec computes in float32 with
autocast off, reads nothing on the host, and returns the dtype that it was given.

SAM 2 stores a memory as bfloat16: (1, 64, 64, 64) at 1024 px is 512 KiB.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe._checks import plain


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A compressed memory.

    Attributes:
        data: What a following codec of a `Chain` compresses further; None where one has.
        side: What restoring needs besides: scales, means, indices, bases.
        shape: Shape of the features that were compressed.
        dtype: Their dtype.
        device: Their device.
        links: The payloads of a `Chain`, in the order of its codecs.
    """

    data: Tensor | None
    side: tuple[Tensor, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    links: tuple[Packed, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor kept, on whatever device it lies."""
        return sum(t.nbytes for t in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor kept."""
        yield from self.side if self.data is None else (self.data, *self.side)
        for link in self.links:
            yield from link.tensors()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32, whatever autocast is on, and keep no gradients."""
    off = torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else None
    with torch.no_grad(), off or contextlib.nullcontext():
        yield


def data_of(payload: Packed) -> Tensor:
    """Return what a payload holds itself.

    Raises:
        ValueError: It is a link of a chain.
    """
    if payload.data is None:
        raise ValueError("payload.data is None: restore the whole payload with its Chain")
    return payload.data


class Codec:
    """What every codec shares. Subclasses fill `_pack` and `_unpack`."""

    _any_dtype: ClassVar[bool] = False  # whether it may follow a codec that stores integers

    def compress(self, features: Tensor, previous: Packed | None = None) -> Packed:
        """Return the compressed form of one memory.

        Args:
            features: (B, C, h, w) finite floating-point features; B is 1 for SAM 2.
            previous: What this codec returned for an earlier memory of the same object; `PCA` starts from its basis.

        Raises:
            ValueError: The features are not four-dimensional, not floating-point, or hold no tokens.
        """
        if features.ndim != 4 or not (features.is_floating_point() or self._any_dtype):
            raise ValueError(f"{self!r} compresses floating-point (B, C, h, w), not {features.dtype} {features.shape}")
        if features.numel() == 0:
            raise ValueError(f"features {tuple(features.shape)} hold no tokens: keep a zero-token memory as it is")
        with full_precision(features.device):
            data, side = self._pack(features, previous)
        return Packed(data, side, features.shape, features.dtype, features.device)

    def restore(self, payload: Packed) -> Tensor:
        """Return (B, C, h, w) features in the dtype and on the device that was compressed."""
        with full_precision(payload.device):
            return self._unpack(payload).to(payload.dtype)

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise NotImplementedError

    def _unpack(self, payload: Packed) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Identity(Codec):
    """The memory as SAM 2 stores it; no bytes saved, no error."""

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        return features, ()

    def _unpack(self, payload: Packed) -> Tensor:
        return data_of(payload)


@dataclass(frozen=True)
class Cast(Codec):
    """Fewer bits a value. Bytes fall to those of the dtype, tokens do not fall.

    SAM 2 stores bfloat16 already: there, only float8 saves anything (half).

    Attributes:
        to: Storage dtype. Relative error of a normal value at most 2^-8, 2^-11 (clamped at ±65504), 2^-4 (at ±448).

    Raises:
        ValueError: `to` is another dtype.
    """

    to: Literal["bfloat16", "float16", "float8_e4m3fn"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.to not in ("bfloat16", "float16", "float8_e4m3fn"):
            raise ValueError(f"Cast(to={self.to!r}): choose 'bfloat16', 'float16' or 'float8_e4m3fn'")

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        dtype: torch.dtype = getattr(torch, self.to)
        limit = torch.finfo(dtype).max
        return features.float().clamp(-limit, limit).to(dtype), ()

    def _unpack(self, payload: Packed) -> Tensor:
        limit = torch.finfo(payload.dtype).max  # bfloat16 rounds the largest float16 up, beyond it
        return data_of(payload).float().clamp(-limit, limit)


@dataclass(frozen=True)
class Int8(Codec):
    """Eight bits a value, symmetric, one scale a channel. Half of bfloat16's bytes; tokens do not fall.

    A value's error is at most half a step, its channel's largest magnitude / 254, plus the rounding of its dtype.
    """

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = features.float()
        scale = (x.abs().amax(dim=(0, 2, 3), keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        return (x / scale).round().clamp(-127, 127).to(torch.int8), (scale,)

    def _unpack(self, payload: Packed) -> Tensor:
        return data_of(payload).float() * payload.side[0]


@dataclass(frozen=True)
class Downsample(Codec):
    """A coarser grid: average pooling, restored bilinearly. Bytes fall by size², tokens in attention do not.

    Restored values stay within the range of their channel.

    Attributes:
        size: Side of the pooled window in tokens, 2 or 4.

    Raises:
        ValueError: `size` is neither.
    """

    size: int = 2

    def __post_init__(self) -> None:
        if plain(self, "size") not in (2, 4):
            raise ValueError(f"Downsample(size={self.size}): choose 2 or 4")

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        return F.avg_pool2d(features.float(), self.size, ceil_mode=True).to(features.dtype), ()

    def _unpack(self, payload: Packed) -> Tensor:
        size = payload.shape[-2:]
        return F.interpolate(data_of(payload).float(), size=size, mode="bilinear", align_corners=False)


def _check_count(name: str, value: int | float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise ValueError(f"{name}={value!r}: give a number of channels (1 or more) or a share of them in (0, 1]")


def _count(value: int | float, channels: int) -> int:
    return min(value, channels) if isinstance(value, int) else max(1, round(value * channels))


@dataclass(frozen=True)
class Prune(Codec):
    """Only the channels of most energy; the others are restored as their mean. Tokens do not fall.

    Energy is the variance over the grid: the squared error is at most the share of channels dropped times the
    squared distance from the channel means.

    Attributes:
        keep: Channels kept, as a number or as a share of all.

    Raises:
        ValueError: `keep` is below 1 as a number, or outside (0, 1] as a share.
    """

    keep: int | float = 0.5

    def __post_init__(self) -> None:
        _check_count("keep", plain(self, "keep"))

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = features.float()
        largest = _largest(x)
        energy, mean = torch.var_mean(x / largest, dim=(0, 2, 3), correction=0)
        index = energy.topk(_count(self.keep, x.shape[1])).indices.sort().values
        return features.index_select(1, index), ((mean * largest).to(features.dtype), index.to(torch.int16))

    def _unpack(self, payload: Packed) -> Tensor:
        mean, index = payload.side
        full = mean.float().view(1, -1, 1, 1).expand(payload.shape)
        return full.index_copy(1, index.long(), data_of(payload).float())


def _largest(x: Tensor) -> Tensor:
    """Return the largest magnitude, 0-dim and above 0: in units of it squares and sums cannot overflow."""
    return x.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class PCA(Codec):
    """The coordinates along the directions of most variance over the grid. Tokens do not fall.

    The basis comes from orthogonal iteration; that of a memory is started from an earlier one's where one is given. A
    column's sign makes its largest entry positive. Projection never adds error: the squared error is at most that of
    the mean. What is restored lies within the largest magnitude of what was compressed.

    Attributes:
        rank: Directions kept, as a number or as a share of the channels. Bytes fall to about this share, and grow where
            all are kept, as the basis is stored too.
        basis: "memory" fits this memory; "running" a decaying average over the object's memories (0.3 for the newest),
            of which `previous` carries the directions kept, with their standard deviations. What they leave out is
            forgotten, so it turns to new content some memories later than the whole average would.

    Raises:
        ValueError: `rank` or `basis` is outside its range.
    """

    rank: int | float = 16
    basis: Literal["memory", "running"] = "memory"

    def __post_init__(self) -> None:
        _check_count("rank", plain(self, "rank"))
        if self.basis not in ("memory", "running"):
            raise ValueError(f"PCA(basis={self.basis!r}): choose 'memory' or 'running'")

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = features.float().transpose(0, 1).flatten(1)  # (C, tokens)
        largest = _largest(x)
        x = x / largest
        mean = x.mean(dim=1, keepdim=True)
        centred = x - mean
        spread = centred @ centred.T / x.shape[1]
        channels, rank = x.shape[0], _count(self.rank, x.shape[0])
        start, steps = _cosines(channels, rank, x.device), 12
        if previous is not None and previous.side[1].shape == (channels, rank):
            known = previous.side[1].to(x)
            if self.basis == "running":
                past = known * (previous.side[3] / largest).clamp_max(1e6).square() @ known.T
                spread = 0.3 * spread + 0.7 * past
            else:  # a little of the cosines, as nothing leads from a basis to content orthogonal to it
                start, steps = known + 1e-3 * start, 3
        basis = _orthogonal_iteration(spread, start, steps)
        side = [mean[:, 0].to(features.dtype), basis.to(features.dtype), largest]
        if self.basis == "running":
            side.append(((spread @ basis) * basis).sum(dim=0).clamp_min(0).sqrt() * largest)
        batch, _, h, w = features.shape
        coordinates = (basis.T @ centred).view(rank, batch, h, w).transpose(0, 1).contiguous()
        return coordinates.to(features.dtype), tuple(side)

    def _unpack(self, payload: Packed) -> Tensor:
        mean, basis, largest = (tensor.float() for tensor in payload.side[:3])
        units = torch.einsum("cr,brhw->bchw", basis, data_of(payload).float()) + mean.view(1, -1, 1, 1)
        return units.clamp(-1, 1) * largest


def _cosines(channels: int, rank: int, device: torch.device) -> Tensor:
    """Return (channels, rank) orthogonal cosines: a start that is the same on every run."""
    t = torch.arange(channels, device=device, dtype=torch.float32) + 0.5
    return torch.cos(torch.outer(t, torch.arange(rank, device=device)) * (math.pi / channels))


def _orthogonal_iteration(spread: Tensor, start: Tensor, steps: int) -> Tensor:
    """Return an orthonormal (C, rank) basis of the leading eigenvectors of the symmetric (C, C) `spread`."""
    basis = start
    for _ in range(steps):
        basis = torch.linalg.qr(spread @ basis).Q
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Offload(Codec):
    """The memory in host RAM, brought back on read. Bytes on the device fall to none, the total stays.

    On CUDA both copies use pinned memory without waiting; the stream orders them.
    """

    _any_dtype: ClassVar[bool] = True

    def _pack(self, features: Tensor, previous: Packed | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        if features.device.type != "cuda":
            return features.to("cpu"), ()
        pinned = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        return pinned.copy_(features, non_blocking=True), ()

    def _unpack(self, payload: Packed) -> Tensor:
        return data_of(payload).to(payload.device, non_blocking=True)


@dataclass(frozen=True, init=False, repr=False)
class Chain(Codec):
    """Codecs one after another: each compresses the data of the one before, e.g. `Chain(PCA(16), Int8())`.

    Raises:
        ValueError: No codec is given, or one cannot take what the one before it leaves: after `Int8`, whole numbers;
            after `Offload`, a copy that may still be under way.
        TypeError: Something else than a codec is given.
    """

    codecs: tuple[Codec, ...]

    def __init__(self, *codecs: Codec) -> None:
        if not codecs:
            raise ValueError("Chain() holds no codec; use Identity()")
        if not all(isinstance(codec, Codec) for codec in codecs):
            raise TypeError(f"Chain{codecs!r}: give codecs one after another, as in Chain(PCA(16), Int8())")
        codecs = tuple(part for codec in codecs for part in (codec.codecs if isinstance(codec, Chain) else (codec,)))
        for codec, after in itertools.pairwise(codecs):
            if isinstance(codec, Offload) or (isinstance(codec, Int8) and not after._any_dtype):
                raise ValueError(f"{after!r} cannot take what {codec!r} leaves: put {codec!r} last in Chain{codecs!r}")
        object.__setattr__(self, "codecs", codecs)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.codecs))})"

    def compress(self, features: Tensor, previous: Packed | None = None) -> Packed:
        """Return the compressed form of one memory; see any codec."""
        links: list[Packed] = []
        data = features
        for i, codec in enumerate(self.codecs):
            link = codec.compress(data, previous.links[i] if previous is not None else None)
            data = data_of(link)
            links.append(replace(link, data=None))
        return Packed(data, (), features.shape, features.dtype, features.device, tuple(links))

    def restore(self, payload: Packed) -> Tensor:
        """Return the features in the dtype and on the device that was compressed."""
        data = data_of(payload)
        for codec, link in zip(reversed(self.codecs), reversed(payload.links), strict=True):
            data = codec.restore(replace(link, data=data))
        return data


CODECS: Mapping[str, Callable[..., Codec]] = {
    "identity": Identity,
    "cast": Cast,
    "int8": Int8,
    "downsample": Downsample,
    "pca": PCA,
    "prune": Prune,
    "offload": Offload,
    "chain": Chain,
}
"""Codecs by name; call with the fields of the class."""
