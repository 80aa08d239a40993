"""Long-term memories, into which keyframes that leave the buffer are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOGETHER = 5
"""Keyframes merged into one long-term memory, before a new one is begun."""

LEAST = 1e-3
"""Weight of a keyframe that was never attended to."""


@dataclass(slots=True)
class Merged:
    """A long-term memory.

    Attributes:
        entry: What else SAM 2 reads of an entry, from the newest frame merged.
        features: (1, C_mem, H/16, W/16) float32 weighted mean, cell by cell.
        dtype: In which SAM 2 stores them.
        weight: Sum of the weights.
        frames: How many frames were merged.
    """

    entry: Mapping[str, Any]
    features: Tensor
    dtype: torch.dtype
    weight: float
    frames: int

    def merge(self, entry: Mapping[str, Any], features: Tensor, weight: float, frames: int) -> None:
        """Take in one more memory."""
        self.weight += weight
        self.features = self.features.lerp(features, weight / self.weight)
        self.entry, self.frames = entry, self.frames + frames


class LongTerm:
    """At most `capacity` long-term memories, oldest first; when there is one too many, the two oldest are merged.

    Args:
        capacity: Memories held at most; with 0 nothing may be added.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: list[Merged] = []

    def add(self, entry: Mapping[str, Any], weight: float) -> None:
        """Merge a memory that leaves, with a weight of at least 0."""
        features, dtype, weight = entry["maskmem_features"].float(), entry["maskmem_features"].dtype, max(weight, LEAST)
        entry = {**entry, "maskmem_features": None}
        if self._held and self._held[-1].frames < TOGETHER:
            self._held[-1].merge(entry, features, weight, 1)
        else:
            self._held.append(Merged(entry, features, dtype, weight, 1))
        if len(self._held) > self.capacity:
            oldest = self._held.pop(0)
            into = self._held[0]
            into.merge(into.entry, oldest.features, oldest.weight, oldest.frames)

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """The memories as SAM 2 reads them."""
        return [{**m.entry, "maskmem_features": m.features.to(m.dtype)} for m in self._held]

    def tensors(self) -> list[Tensor]:
        """Return what the memories consist of."""
        return [merged.features for merged in self._held]

    def clear(self) -> None:
        """Forget them all."""
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)
