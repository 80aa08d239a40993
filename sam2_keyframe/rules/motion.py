"""Mask choice by motion: a Kalman filter of the object's box joins SAM 2's own rating of its candidate masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_keyframe.scorers._common import without_autocast
from sam2_keyframe.scorers.masks import mask_boxes


@dataclass(frozen=True)
class Kalman:
    """SAMURAI's mask choice. `Track(Kalman())` follows one object.

    A run is stable while the chosen masks are rated above `floor`. In its first `stable` frames the best rated mask
    is chosen and teaches the filter; from then on each candidate's overlap with the predicted box counts as well.

    Attributes:
        weight: Share of the overlap, in [0, 1]: 0.25 for SAM 2's tiny, small and base+, 0.15 for its large model.
        stable: Frames until the overlap counts, at least 1.
        floor: Predicted IoU below which a run ends, in [0, 1].

    Source: C.-Y. Yang et al., SAMURAI (arXiv 2411.11922); rule read in yangchris11/samurai (Apache-2.0). It has one
    filter for all objects and videos, and an empty mask moves its box to the corner; here each object has its own, an
    empty mask teaches nothing, and boxes reach from edge to edge of their pixels, one pixel more.
    """

    weight: float = 0.25
    stable: int = 15
    floor: float = 0.3

    def __post_init__(self) -> None:
        for name in ("weight", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Kalman({name}={getattr(self, name)!r}): choose a number from 0 to 1")
        if self.stable < 1:
            raise ValueError(f"Kalman(stable={self.stable!r}): choose at least 1")


class Track:
    """One object's filter; its state stays on the device of the masks.

    The state is of the box: centre x, centre y, width / height, height, each with a velocity. Noise of the four is
    independent, so each is a filter of two numbers of its own, and all four are updated together.

    Args:
        rule: The numbers.
    """

    def __init__(self, rule: Kalman) -> None:
        self.rule = rule
        self._state: Tensor | None = None  # (5, 4): value, velocity, their variances' value, covariance, velocity
        self._stable: Tensor | None = None

    def reset(self) -> None:
        """Forget the object: on a prompt, and where tracking turns round."""
        self._state = self._stable = None

    @torch.no_grad()
    def choose(self, masks: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one tracked frame; reads nothing on the host.

        Args:
            masks: (1, K, h, w) logits of the candidates, > 0 is object; all below where SAM 2 holds the object
                invisible.
            ious: (1, K) their predicted IoUs.

        Returns:
            (1, K) float32 numbers, the largest at the mask to choose, and the 0-dim float32 overlap (IoU) of its box
            with the predicted one, in [0, 1]; NaN until the run is stable.

        Raises:
            ValueError: The shapes do not go together.
        """
        if masks.ndim != 4 or masks.shape[:2] != ious.shape or masks.shape[0] != 1:
            raise ValueError(f"masks {tuple(masks.shape)}, ious {tuple(ious.shape)}: give (1, K, h, w) and (1, K)")
        with without_autocast(masks.device):
            return self._choose(masks[0], ious[0].float())

    def _choose(self, masks: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
        rule = self.rule
        boxes = mask_boxes(masks > 0).float()
        before = self._state if self._state is not None else torch.zeros(5, 4, device=masks.device)
        stable = self._stable if self._stable is not None else torch.zeros((), dtype=torch.int64, device=masks.device)
        predicted = _predict(before)
        overlaps = _overlap(boxes, predicted[0])
        settled = stable >= rule.stable
        ranking = torch.where(settled, rule.weight * overlaps + (1 - rule.weight) * ious, ious)
        best = ranking.argmax()[None]
        box, iou = boxes.index_select(0, best)[0], ious.index_select(0, best)[0]
        seen = box[2] > box[0]
        good = torch.where(settled, iou >= rule.floor, iou > rule.floor)
        fresh = stable == 0
        measured = _measurement(box)
        after = torch.where(good & seen, _update(predicted, measured), predicted)
        self._state = torch.where(fresh, _start(measured), after)
        counted = stable + (seen & (fresh | ~settled))
        self._stable = torch.where(good | fresh, counted, 0)
        overlap = torch.where(settled, overlaps.index_select(0, best)[0], math.nan)
        return ranking[None], overlap


class Motion:
    """The same filter on its own, on host numbers: where a box will be."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def step(self, box: Sequence[float] | None) -> None:
        """Go on by a frame, on which the box was seen; None: it was not."""
        if box is not None:
            measured = _measurement(torch.tensor(box, dtype=torch.float64))
            self._state = _start(measured) if self._state is None else _update(_predict(self._state), measured)
        elif self._state is not None:
            self._state = _predict(self._state)

    def ahead(self) -> tuple[float, float] | None:
        """Return where the centre will be one frame later; None where nothing was seen yet."""
        if self._state is None:
            return None
        x, y = _predict(self._state)[0, :2].tolist()
        return x, y


def _measurement(box: Tensor) -> Tensor:
    """Return centre x, centre y, width / height and height of a box."""
    size = box[2:] - box[:2]
    centre = (box[2:] + box[:2]) / 2
    return torch.cat([centre, (size[0] / size[1].clamp(min=1))[None], size[1:]])


def _deviation(height: Tensor, share: float, aspect: float) -> Tensor:
    """Return the (4,) standard deviations: a share of the box's height, and for its aspect ratio a number."""
    is_aspect = torch.arange(4, device=height.device) == 2
    return torch.where(is_aspect, aspect, height * share)


def _start(measured: Tensor) -> Tensor:
    """Return the state after the first box of a run."""
    still = torch.zeros_like(measured)
    place, speed = (_deviation(measured[3], share, a) for share, a in ((2 / 20, 1e-2), (10 / 160, 1e-5)))
    return torch.stack([measured, still, place.square(), still, speed.square()])


def _predict(state: Tensor) -> Tensor:
    """Return the state one frame later."""
    value, velocity, var, cov, var_velocity = state
    place, speed = (_deviation(value[3], share, a).square() for share, a in ((1 / 20, 1e-2), (1 / 160, 1e-5)))
    ahead = var + 2 * cov + var_velocity + place
    return torch.stack([value + velocity, velocity, ahead, cov + var_velocity, var_velocity + speed])


def _update(state: Tensor, measured: Tensor) -> Tensor:
    """Return the state with a measured box taken in."""
    value, velocity, var, cov, var_velocity = state
    total = var + _deviation(value[3], 1 / 20, 1e-1).square()
    gain, gain_velocity = var / total, cov / total
    surprise = measured - value
    return torch.stack(
        [
            value + gain * surprise,
            velocity + gain_velocity * surprise,
            var * (1 - gain),
            cov * (1 - gain),
            var_velocity - gain_velocity * cov,
        ]
    )


def _overlap(boxes: Tensor, predicted: Tensor) -> Tensor:
    """Return the IoU of each of (K, 4) boxes with the box that a state's (4,) values describe."""
    height = predicted[3].clamp(min=0)
    half = torch.stack([predicted[2].clamp(min=0) * height, height]) / 2
    low, high = predicted[:2] - half, predicted[:2] + half
    shared = (boxes[:, 2:].minimum(high) - boxes[:, :2].maximum(low)).clamp(min=0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (2 * half).prod() - shared
    return shared / union.clamp(min=1e-12)


MOTION: dict[str, type] = {"kalman": Kalman}
"""Choices among candidate masks by name."""
