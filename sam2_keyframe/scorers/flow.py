"""Motion of the picture, the object and the background, measured on dense optical flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import (
    Against,
    Region,
    around,
    at_size,
    check_choice,
    check_range,
    earlier,
    in_float32,
    mask_of,
    mean_over,
    region_of,
)
from sam2_keyframe.scorers.dense_flow import dense_flow
from sam2_keyframe.scorers.features import vector_change
from sam2_keyframe.scorers.pixels import luminance, luminance_at
from sam2_keyframe.types import History, Reference, TrackedFrame


@dataclass(frozen=True, repr=False)
class OpticalFlow(Comparable):
    """How far, or in which direction, the picture moved. Lengths are shares of the square that SAM 2 makes of a frame.

    In a wide video, motion across is a share of its width and motion down of its height.
    At 256 px right for a camera's motion of up to 30 px. An object that moves by itself is followed over 30 px where it
    is looked at alone (`region="object"`, and `"relative"`), given its masks; on the whole frame its motion is blurred
    with the background's and comes out too short. Against an old keyframe, whose content may have left the frame,
    prefer `reference="previous"`.

    Attributes:
        measure: `"mean"` or `"percentile"`: length of the motion over the region. `"relative"`: length of the
            object's mean motion less the background's, each estimated alone; 0 without an object. `"direction"`:
            1 - cos between the region's mean motion since the previous frame and the same at the reference frame,
            in [0, 2]; motion below a quarter pixel is none: from rest to motion is 1, at rest 0.
        percentile: Which one, in [0, 100].
        reference: Compare with the last `"keyframe"` or with the `"previous"` frame.
        region: Over the whole `"frame"` or the `"object"` (its dilated mask), where the flow is then estimated from
            that alone to its dilated mask at the reference, once an object. `"relative"` needs the `"frame"`.
        name: Name of the score in records, filters and tables.

    Source: see `dense_flow`.
    """

    measure: Literal["mean", "percentile", "direction", "relative"] = "mean"
    percentile: float = 90.0
    reference: Against = "keyframe"
    region: Region = "frame"
    name: str = "optical_flow"

    def __post_init__(self) -> None:
        check_choice(self, "measure", ("mean", "percentile", "direction", "relative"))
        check_range(self, "percentile", 0, 100)
        check_choice(self, "reference", ("keyframe", "previous"))
        check_choice(self, "region", ("frame", "object"))
        if self.measure == "relative" and self.region == "object":
            raise ValueError("OpticalFlow('relative', region='object') leaves no background: choose region='frame'")

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim motion; NaN without a reference."""
        luminance(frame)
        mask_of(frame)
        if self.measure == "direction":
            return self._direction(frame, history)
        if self.measure == "relative":
            return self._relative(frame, earlier(history, self.reference))
        found = flow_since(frame, earlier(history, self.reference), self.region)
        if found is None:
            return frame.unknown()
        flow, region = found
        flow = flow / max(flow.shape[1:])
        length = flow.square().sum(0).sqrt()
        return mean_over(length, region) if self.measure == "mean" else _percentile(length, region, self.percentile)

    def _relative(self, frame: TrackedFrame, reference: Reference | None) -> Tensor:
        """Return the length of the object's mean motion less the background's.

        Each is estimated alone, at half the resolution: for a mean that is enough.
        """
        now = luminance(frame)
        before = luminance_at(reference, now)
        masks = _masks(frame, reference)
        if before is None or masks is None:
            return frame.unknown()
        size = [max(1, side // 2) for side in now.shape]
        planes = torch.cat([torch.stack([now, before]), _weights(masks), 1 - around(masks), masks])
        now, before, *weights, thing, _ = interpolate(planes[None], size, mode="area")[0]
        means = []
        for weight, region in ((weights[:2], thing), (weights[2:], weights[2])):
            flow = dense_flow(now, before, torch.stack(weight))
            means.append(torch.stack([mean_over(plane, region) for plane in flow]))
        length = (means[0] - means[1]).square().sum().sqrt() / max(size)
        score: Tensor = length * (thing.amax() > 0)
        return score

    def _direction(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the change of the mean motion's direction since the reference."""
        previous = history.previous
        found = flow_since(frame, previous, self.region)
        if found is None or previous is None:
            return frame.unknown()
        flow, region = found

        def mean_motion() -> Tensor:
            mean = torch.stack([mean_over(plane, region) for plane in flow])
            return mean * (mean.square().sum() > 0.25**2)

        key, seen = f"{self.region}/motion", frame if self.region == "object" else frame.shared
        # Shared by objects whose last frame is the same: one that was just prompted has another.
        now = frame.describe(key, lambda: seen.once(f"{key}/{previous.frame_idx}", mean_motion))
        reference = earlier(history, self.reference)
        before = reference.get(key) if reference else None
        # A prompted frame has no motion of its own; the first motion after it is a start from rest.
        return vector_change(now, torch.zeros_like(now) if before is None else before)


def flow_since(
    frame: TrackedFrame, reference: Reference | None, region: Region = "frame"
) -> tuple[Tensor, Tensor | None] | None:
    """Return the (2, h, w) flow from this frame back to an earlier one, in pixels, and the region it was estimated on.

    The whole frame's is computed once for all objects. None where there is nothing to compare with.
    """
    now = luminance(frame)
    before = luminance_at(reference, now)
    if reference is None or before is None:
        return None
    key = f"flow/{reference.frame_idx}"
    if region == "frame":
        return frame.shared.once(key, lambda: dense_flow(now, before)), None
    masks = _masks(frame, reference)
    if masks is None:
        return None
    return frame.once(key, lambda: dense_flow(now, before, _weights(masks))), region_of(frame, None)


def _masks(frame: TrackedFrame, reference: Reference | None) -> Tensor | None:
    """Return the object's mask now and at the reference, (2, h, w) float at scoring resolution; None without one."""
    before = reference.get("object/mask") if reference else None
    if before is None:
        return None
    return torch.stack([at_size(mask, frame.image.shape[-2:]) for mask in (mask_of(frame), before)])


def _weights(masks: Tensor) -> Tensor:
    """Return how much pixels tell of the object: those around it less, which may show the background."""
    return 0.75 * masks + 0.25 * around(masks)


def _percentile(values: Tensor, region: Tensor | None, percentile: float) -> Tensor:
    """Return the percentile (nearest rank) of non-negative (h, w) values over the region; 0 over an empty one."""
    if region is not None:
        values = torch.where(region > 0, values, -1.0)
    ordered = values.flatten().sort().values
    count = (ordered >= 0).sum()
    rank = values.numel() - 1 - ((count - 1).clamp(min=0) * (1 - percentile / 100)).round().long()
    return ordered.gather(0, rank[None])[0].clamp(min=0)
