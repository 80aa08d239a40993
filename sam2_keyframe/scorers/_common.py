"""What every scorer shares: float32 arithmetic, the choice of reference, and the object's mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sam2_keyframe.types import History, Reference, TrackedFrame

Against = Literal["keyframe", "previous"]
"""Which earlier frame a change is measured against: the last keyframe kept, or the frame just before."""

_Self = TypeVar("_Self")


def in_float32(
    score: Callable[[_Self, TrackedFrame, History], Tensor],
) -> Callable[[_Self, TrackedFrame, History], Tensor]:
    """Wrap a `score` method: autocast is off while it runs, and its result is a 0-dim float32 tensor.

    Under bf16 autocast the variances inside SSIM, for one, lose all their digits: 1 - SSIM came out 50 times too
    large.
    """

    @wraps(score)
    def wrapped(self: _Self, frame: TrackedFrame, history: History) -> Tensor:
        device = frame.pred_masks.device.type
        if not torch.amp.is_autocast_available(device):
            return score(self, frame, history).float()
        with torch.autocast(device, enabled=False):
            return score(self, frame, history).float()

    return wrapped


def check_choice(owner: object, field: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the owner's field holds one of the choices."""
    value: Any = getattr(owner, field)
    if value not in choices:
        raise ValueError(f"{type(owner).__name__}({field}={value!r}): choose one of {', '.join(map(repr, choices))}")


def check_range(owner: object, field: str, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless low <= the owner's field <= high."""
    value: float = getattr(owner, field)
    if not low <= value <= high:
        raise ValueError(f"{type(owner).__name__}({field}={value!r}): choose a number from {low:g} to {high:g}")


def earlier(history: History, against: Against) -> Reference | None:
    """Return the frame to compare with, or None when there is none yet."""
    return history.keyframe if against == "keyframe" else history.previous


def mask_of(frame: TrackedFrame) -> Tensor:
    """Return the object's (H/4, W/4) bool mask and keep it with the frame under `object/mask`."""
    return frame.describe("object/mask", lambda: frame.pred_masks[0, 0] > 0)
