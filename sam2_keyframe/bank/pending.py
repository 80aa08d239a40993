"""A frame's numbers on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_keyframe.types import FrameRecord, Reference


@dataclass(slots=True)
class Pending:
    """A frame whose numbers are on their way to the host.

    Attributes:
        record: What is known of it without them.
        prompted: Whether a prompted frame lies in its past, so that it may become a keyframe at all.
        reference: What describes it.
        candidates: Frames of which the device chose some to attend to.
        attended: Which of them, (k,) positions among `candidates`.
        chosen: Those frames, once the numbers were read.
    """

    record: FrameRecord
    prompted: bool
    reference: Reference | None = None
    candidates: Sequence[int] = ()
    attended: Tensor | None = None
    chosen: tuple[int, ...] = ()
    _names: tuple[str, ...] = ()
    _related: Sequence[int] = ()
    _numbers: Tensor | None = None
    _event: torch.cuda.Event | None = None

    @property
    def frame_idx(self) -> int:
        """Index of the frame."""
        return self.record.frame_idx

    def send(self, measured: Mapping[str, Tensor], similarity: Tensor | None, related: Sequence[int]) -> None:
        """Start the one copy of a frame and object to the host without waiting for it.

        Only CUDA copies beside other work, into memory that torch pins; elsewhere the numbers are read where they are.

        Args:
            measured: 0-dim scores by name.
            similarity: (len(related),) to the memories held, or None.
            related: Their frames.
        """
        self._names = tuple(measured)
        self._related = () if similarity is None else related
        parts = [torch.stack([value.float() for value in measured.values()]), similarity, self.attended]
        numbers = torch.cat([part.float() for part in parts if part is not None])
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        self._numbers = numbers

    def read(self, significance: str | None) -> FrameRecord:
        """Return the record with its numbers: the one host read a frame and object.

        Args:
            significance: Name of the method's own score.
        """
        if self._numbers is None:
            return self.record
        if self._event is not None:
            self._event.synchronize()
        numbers = self._numbers.tolist()
        scores = dict(zip(self._names, numbers, strict=False))
        rest = numbers[len(scores) :]
        similarity = dict(zip(self._related, rest, strict=False))
        self.chosen = tuple(self.candidates[int(i)] for i in rest[len(similarity) :])
        value = self.record.significance if significance is None else scores[significance]
        return replace(self.record, significance=value, scores=scores, similarity=similarity)
