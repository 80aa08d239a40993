"""Tracked frames made up for tests, and the checks that nothing is read from the device."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sam2_keyframe.types import FrameMemo, FrameRecord, History, Scorer, TrackedFrame

FAKE = "cuda" if torch.backends.cuda.is_built() else "meta"
"""Where tensors have no values: indexing fake CUDA tensors needs a build of torch with CUDA, `meta` does not."""


def frame(
    seed: int = 0, size: int = 64, index: int = 0, device: str = "cpu", **edit: Callable[..., Any]
) -> TrackedFrame:
    """Random features, smooth random pixels and a square object; `edit` changes attributes or `image`."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    grid = max(1, size // 16)
    image = torch.nn.functional.interpolate(draw(1, 3, grid * 2, grid * 2), (size, size), mode="bicubic")[0].sigmoid()
    logits = torch.full((1, 1, max(1, size // 4), max(1, size // 4)), -6.0)
    logits[..., size // 16 : size // 8 + 1, size // 16 : size // 8 + 1] = 6.0
    values: dict[str, Any] = {
        "image": image,
        "image_embed": draw(1, 32, grid, grid),
        "maskmem_features": draw(1, 16, grid, grid).bfloat16(),
        "pred_masks": logits,
        "candidate_masks": logits + torch.nn.functional.interpolate(3 * draw(1, 3, 4, 4), logits.shape[2:]),
        "candidate_ious": draw(1, 3).sigmoid(),
        "obj_ptr": draw(1, 32),
        "object_score_logits": draw(1, 1),
    }
    values.update({key: make(values[key]) for key, make in edit.items()})
    if device == "fake":
        values = {key: torch.empty(value.shape, dtype=value.dtype, device=FAKE) for key, value in values.items()}
    else:
        values = {key: value.to(device) for key, value in values.items()}
    pixels = values.pop("image")
    return TrackedFrame(frame_idx=index, shared=FrameMemo(lambda: pixels), **values)


def history(before: TrackedFrame, records: int = 0) -> History:
    names = ("mask_iou", "mask_iou_previous", "frame_difference")
    past = [FrameRecord(i, {name: 0.1 + 0.01 * (i % 3) for name in names}) for i in range(records)]
    reference = before.reference()
    return History(reference, reference, [reference], deque(past, maxlen=300))  # as the bank keeps them


def change(scorer: Scorer, before: TrackedFrame, now: TrackedFrame, records: int = 0) -> float:
    scorer.score(before, History())
    score = scorer.score(now, history(before, records))
    assert score.shape == ()
    assert score.dtype == torch.float32
    return float(score)


def repainted(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Paints all that lies outside 144 x 144 px; the object spans 64 to 132 of 256, its dilated mask ends at 140."""

    def paint(image: torch.Tensor) -> torch.Tensor:
        out = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed))
        out[:, :144, :144] = image[:, :144, :144]
        return out

    return paint


def fake_tensors() -> Any:
    return FakeTensorMode() if FAKE == "cuda" else contextlib.nullcontext()


class Count(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))
