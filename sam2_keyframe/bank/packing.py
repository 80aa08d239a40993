"""What every storage codec shares: the compressed memory, and computing in full precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


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
