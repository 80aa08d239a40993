"""Prompts for the objects of one frame, checked and put into the arguments of SAM 2's prompt calls."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Prompts = Mapping[Hashable, Any]
"""By object id: a mask, a pair of points and labels, or a box."""


def read_prompts(
    masks: Prompts | None, points: Prompts | None, boxes: Prompts | None, size: tuple[int, int]
) -> dict[Any, dict[str, Any]]:
    """Return the arguments of SAM 2's prompt calls by object id.

    Args:
        masks: (H, W) each.
        points: A pair each: (n, 2) x and y in pixels, and n labels, 1 or 0.
        boxes: (4,) x0, y0, x1, y1 in pixels each.
        size: Height H and width W of the frame.

    Raises:
        TypeError: Prompts are not given by object id.
        ValueError: A prompt is malformed or off the frame, or an object has a mask and something else.
    """
    for what, given, example in (
        ("masks", masks, "mask"),
        ("points", points, "([[x, y]], [1])"),
        ("boxes", boxes, "(x0, y0, x1, y1)"),
    ):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{what} is a {type(given).__name__}; give a dict by object id: {what}={{1: {example}}}")
    prompts: dict[Any, dict[str, Any]] = {}
    for obj_id, mask in (masks or {}).items():
        prompts[obj_id] = {"mask": _mask(obj_id, mask, size)}
    for obj_id, pair in (points or {}).items():
        coords, labels = _points(obj_id, pair, size)
        prompts.setdefault(obj_id, {}).update(points=coords, labels=labels)
    for obj_id, box in (boxes or {}).items():
        prompts.setdefault(obj_id, {}).update(box=_box(obj_id, box, size))
    for obj_id, prompt in prompts.items():
        if "mask" in prompt and len(prompt) > 1:
            raise ValueError(f"object {obj_id!r} has a mask and points or a box; SAM 2 takes one or the other")
    return prompts


def _mask(obj_id: Any, mask: Any, size: tuple[int, int]) -> Any:
    if not isinstance(mask, Tensor):
        try:
            mask = np.asarray(mask)
        except ValueError:  # rows of different lengths
            raise ValueError(
                f"the mask of object {obj_id!r} is no (H, W) array; give one of the frame's size"
            ) from None
        if mask.dtype.kind not in "biuf":
            raise ValueError(f"the mask of object {obj_id!r} holds {mask.dtype}; give an (H, W) boolean mask")
    if mask.ndim != 2:
        raise ValueError(f"the mask of object {obj_id!r} has {mask.ndim} dimensions; give an (H, W) mask")
    mask = mask != 0 if isinstance(mask, Tensor) else mask.astype(bool)
    if tuple(mask.shape) != size:
        raise ValueError(
            f"the mask of object {obj_id!r} is {mask.shape[1]}x{mask.shape[0]} and the frame {size[1]}x{size[0]}; "
            "give a mask of the frame's size"
        )
    return mask


def _points(obj_id: Any, pair: Any, size: tuple[int, int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    coords, labels = _numbers(obj_id, "points", pair, 2)
    if coords.ndim != 2 or coords.shape[1] != 2 or labels.shape != coords.shape[:1] or not len(coords):
        raise ValueError(
            f"the points of object {obj_id!r} have shape {coords.shape} and labels {labels.shape}; "
            "give a pair: (n, 2) x and y, and (n,) labels"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"the points of object {obj_id!r} have labels {labels.tolist()}; give 1 (on it) or 0 (off it)")
    if not ((coords >= 0) & (coords <= size[::-1])).all():
        raise ValueError(
            f"the points of object {obj_id!r}, {coords.tolist()}, are not all on the frame, which is "
            f"{size[1]}x{size[0]}; give x from 0 to {size[1]} and y from 0 to {size[0]}"
        )
    return coords, labels.astype(np.int32)


def _box(obj_id: Any, box: Any, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    corners = np.concatenate([np.ravel(part) for part in _numbers(obj_id, "boxes", box, 4)])
    if corners.shape != (4,):
        raise ValueError(f"the box of object {obj_id!r} has {corners.size} numbers; give x0, y0, x1, y1")
    x0, y0, x1, y1 = corners.tolist()
    if not (x0 < x1 and y0 < y1):
        raise ValueError(
            f"the box of object {obj_id!r}, {corners.tolist()}, is empty; give x0, y0 (top left), then x1, y1 (bottom "
            "right), not width and height"
        )
    if not (x0 < size[1] and y0 < size[0] and x1 > 0 and y1 > 0 and np.isfinite(corners).all()):
        raise ValueError(
            f"the box of object {obj_id!r}, {corners.tolist()}, lies outside the frame, which is {size[1]}x{size[0]}; "
            "give x0, y0, x1, y1 in its pixels"
        )
    return corners


def _numbers(obj_id: Any, what: str, value: Any, parts: int) -> list[npt.NDArray[np.float32]]:
    """Return the parts of a prompt as float32 arrays."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    with contextlib.suppress(TypeError, ValueError):
        arrays = [np.asarray(part.cpu() if isinstance(part, Tensor) else part, dtype=np.float32) for part in value]
        if len(arrays) == parts:
            return arrays
    raise ValueError(f"{what}[{obj_id!r}] is {value!r}; give {parts} parts, as step() describes")
