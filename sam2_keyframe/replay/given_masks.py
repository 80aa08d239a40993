"""Masks from elsewhere (ground truth, another tracker's) as a recording, as if SAM 2 had drawn them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from sam2_keyframe.bank.bank import NO_OBJECT
from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.replay.recording import Recording
from sam2_keyframe.replay.steps import Kind, Step, pack

VOID = 255
"""Label of pixels that belong to nothing known, in DAVIS and PASCAL VOC masks."""


def from_masks(
    masks: Any, prompts: Mapping[Any, Sequence[int]] | None = None, geometry: Geometry | None = None
) -> Recording:
    """Return what tracking forward would leave, had SAM 2 drawn these masks.

    An object is tracked from its first prompt on. What SAM 2 thinks of a mask is unknown (no score), except that
    an empty one has predicted IoU 0 and no object.

    Args:
        masks: (T, H, W) whole numbers, 0 for background and 255 for void, or for object 1 where there is no other;
            (T, H, W) bool, which is object 1; or {obj_id: (T, H, W) bool}. Arrays or tensors. Brought to a quarter of
            the model's image.
        prompts: {obj_id: frames}; None: each object's first frame that is not empty.
        geometry: Of the model imagined; None: the official ones.

    Raises:
        ValueError: Masks are not of such a shape or kind, or hold no object; or a prompt is outside the video, on
            an empty mask, or of an unknown object.
    """
    geometry = geometry or Geometry()
    objects = _objects(masks)
    count, *size = next(iter(objects.values())).shape
    given = {} if prompts is None else dict(prompts)
    unknown = given.keys() - objects.keys()
    if unknown:
        wanted = next(iter(unknown))
        raise ValueError(f"prompts={prompts!r}: there is no object {wanted!r}; objects are {list(objects)}")
    visible = {obj_id: [bool(mask.any()) for mask in each] for obj_id, each in objects.items()}
    chosen: dict[Any, set[int]] = {}
    for obj_id, seen in visible.items():
        frames = given[obj_id] if obj_id in given else [seen.index(True)] if any(seen) else []
        wrong = [t for t in frames if not 0 <= t < count or not seen[t]]
        if wrong or not len(frames):
            where = f"on frame {wrong[0]}" if wrong else "on any frame"
            raise ValueError(f"object {obj_id!r} has no pixel {where} (the masks have frames 0 to {count - 1})")
        chosen[obj_id] = {int(t) for t in frames}
    recording = Recording(geometry, count, (size[0], size[1]), complete=False)
    for t in range(count):
        for obj_id, each in objects.items():
            if t < min(chosen[obj_id]):
                continue
            kind = Kind.PROMPT if t in chosen[obj_id] else Kind.FORWARD
            scores = {} if visible[obj_id][t] else {"predicted_iou": 0.0, "object_score": NO_OBJECT}
            small = interpolate(torch.from_numpy(each[t])[None, None].float(), (geometry.mask_side,) * 2, mode="area")
            recording.steps.append(Step(obj_id, t, kind, pack((small[0, 0] >= 0.5).numpy()), scores))
    return recording


def _objects(masks: Any) -> dict[Any, NDArray[np.bool_]]:
    """Return (T, H, W) bool masks by object id; see `Recording.from_masks`."""
    if isinstance(masks, Mapping):
        objects = {obj_id: _array(each) for obj_id, each in masks.items()}
        for obj_id, each in objects.items():
            if each.dtype != bool:
                raise ValueError(f"the masks of object {obj_id!r} are {each.dtype}; give bool, as in `masks > 0`")
    else:
        labels = _array(masks)
        if labels.dtype == bool:
            return {1: labels}
        if labels.dtype.kind not in "ui":
            raise ValueError(f"masks are {labels.dtype}; give whole numbers (object ids) or bool, as in `masks > 0`")
        ids = [int(value) for value in np.unique(labels) if value]
        if ids == [VOID]:
            return {1: labels > 0}
        objects = {obj_id: labels == obj_id for obj_id in ids if obj_id != VOID}
    shapes = {each.shape for each in objects.values()}
    if len(shapes) > 1:
        raise ValueError(f"masks of several objects differ in shape: {sorted(shapes)}; give them one")
    if not objects:
        raise ValueError("there is no object in the masks: every pixel is 0")
    return objects


def _array(masks: Any) -> NDArray[Any]:
    array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"masks have shape {array.shape}; give (T, H, W)")
    return array
