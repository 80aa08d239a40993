"""What every scorer shares: float32 arithmetic, the choice of reference, and the object's mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from sam2_keyframe._checks import plain
from sam2_keyframe.types import History, Reference, TrackedFrame

Against = Literal["keyframe", "previous"]
"""Which earlier frame a change is measured against: the last keyframe kept, or the frame just before."""

Region = Literal["frame", "object"]
"""Where a change counts: on the whole frame, or on the dilated mask of the object, now and at the reference."""

_Self = TypeVar("_Self")
_Past = TypeVar("_Past")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on the device; devices without autocast need none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def in_float32(
    score: Callable[[_Self, TrackedFrame, _Past], Tensor],
) -> Callable[[_Self, TrackedFrame, _Past], Tensor]:
    """Wrap a `score` or `relate` method: autocast is off while it runs, and its result is a float32 tensor.

    Under bf16 autocast the variances inside SSIM, for one, lose all their digits: 1 - SSIM came out 50 times too
    large.
    """

    @wraps(score)
    def wrapped(self: _Self, frame: TrackedFrame, past: _Past) -> Tensor:
        with without_autocast(frame.pred_masks.device):
            return score(self, frame, past).float()

    return wrapped


def check_choice(owner: object, field: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the owner's field holds one of the choices."""
    value: Any = getattr(owner, field)
    if value not in choices:
        raise ValueError(f"{type(owner).__name__}({field}={value!r}): choose one of {', '.join(map(repr, choices))}")


def check_range(owner: object, field: str, low: float, high: float = float("inf"), whole: bool = False) -> None:
    """Raise ValueError unless the owner's field holds a number from low to high, a whole one where asked for."""
    value = plain(owner, field)
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        kind = "whole number" if whole else "number"
        raise ValueError(f"{type(owner).__name__}({field}={value!r}): choose a {kind} from {low:g} to {high:g}")


def earlier(history: History, against: Against) -> Reference | None:
    """Return the frame to compare with, or None when there is none yet."""
    return history.keyframe if against == "keyframe" else history.previous


def mask_of(frame: TrackedFrame) -> Tensor:
    """Return the object's (H/4, W/4) bool mask and keep it with the frame under `object/mask`."""
    return frame.describe("object/mask", lambda: frame.pred_masks[0, 0] > 0)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Return (c, h, w) float masks whose set pixels grew into squares of side 2 * radius + 1."""
    side = 2 * radius + 1
    return max_pool2d(max_pool2d(mask, (side, 1), 1, (radius, 0)), (1, side), 1, (0, radius))


def region_of(frame: TrackedFrame, reference: Reference | None, margin: int = 0) -> Tensor | None:
    """Return the dilated mask of the object, now and at the reference, as (h, w) float at scoring resolution.

    It reaches 1/32 of the longer side (8 px at 256) beyond the object. A scorer whose window sees `margin` pixels
    around each pixel takes that much less, so that nothing outside the dilated mask counts.

    Args:
        frame: The current frame.
        reference: The frame compared with; None takes the current mask alone.
        margin: Reach of the scorer's window in pixels.

    Returns:
        The region; None when the reference holds no mask of the object.
    """
    mask = mask_of(frame)
    if reference is not None:
        before = reference.get("object/mask")
        if before is None:
            return None
        mask = mask | before
    key = f"region/{reference.frame_idx if reference else None}/{margin}"
    region: Tensor = frame.once(key, lambda: around(at_size(mask, frame.image.shape[-2:])[None], margin)[0])
    return region


def at_size(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Return a bool mask as (h, w) float at the size of the scored pixels."""
    return interpolate(mask[None, None].float(), tuple(size), mode="nearest-exact")[0, 0]


def around(masks: Tensor, margin: int = 0) -> Tensor:
    """Return (c, h, w) float masks dilated by 1/32 of the longer side less `margin` px."""
    return dilate(masks, max(0, round(max(masks.shape[1:]) / 32) - margin))


def mean_over(values: Tensor, region: Tensor | None) -> Tensor:
    """Return the mean of (h, w) values, over the region where there is one; 0 over an empty region."""
    return values.mean() if region is None else (values * region).sum() / region.sum().clamp(min=1)
