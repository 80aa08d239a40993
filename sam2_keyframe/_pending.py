"""Scores on their way from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_keyframe.types import FrameRecord, Reference


@dataclass(slots=True)
class Pending:
    """A frame whose numbers are on their way to the host."""

    frame_idx: int
    record: FrameRecord
    trusted: bool
    names: tuple[str, ...]
    numbers: Tensor | None
    event: torch.cuda.Event | None
    reference: Reference | None

    def read(self) -> dict[str, float]:
        """Return the scores by name: the one host read a frame and object."""
        if self.numbers is None:
            return {}
        if self.event is not None:
            self.event.synchronize()
        return dict(zip(self.names, self.numbers.tolist(), strict=True))


def send(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy of a frame's numbers to the host without waiting; return them and what to wait for.

    Only CUDA copies beside other work, into memory that torch pins; elsewhere the numbers are read where they are.
    """
    if not numbers.is_cuda:
        return numbers, None
    copied = numbers.to("cpu", non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copied, event
