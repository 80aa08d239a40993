"""Whether something that could be mistaken for the object is near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, pad

from sam2_keyframe.conditions import Comparable
from sam2_keyframe.scorers._common import in_float32
from sam2_keyframe.scorers.masks import mask_boxes
from sam2_keyframe.scorers.quality import PredictedIoU
from sam2_keyframe.types import History, TrackedFrame

SIDE = 128
"""Larger masks are brought to this side for the parts and their boxes: a cell is set where any of its pixels is."""

ROUNDS = 8
"""Enough for spirals, combs, snakes, Hilbert curves and percolating noise of 256 x 256 pixels: tests check it."""


@dataclass(frozen=True, repr=False)
class Distractor(Comparable):
    """How far a rejected candidate mask would reach beyond the chosen one, in [0, 1].

    SAM 2 proposes several masks and keeps the one it rates best. Of each other mask, what the chosen one does not
    cover is reduced to its largest connected part. The score is 1 - the smallest ratio of the area of the chosen
    mask's box to that of the box around both. 0: the alternatives add nothing, or there is no other candidate (a
    prompted frame) or no object; above 0.3 the frame shows a distractor. The chosen mask is the one whose predicted
    IoU the frame has, which need not be the highest where a method chooses by motion.

    Source: the introspection test of DAM4SAM (J. Videnovic et al., arXiv 2411.17576), where 0.7 is the box IoU.
    Differences: it works at the video's resolution; here what is left of a mask is found at that of SAM 2's masks, its
    parts and boxes at 128 x 128 or less.

    Attributes:
        name: Name of the score in records, filters and tables.
    """

    name: str = "distractor"

    @in_float32
    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim score."""
        masks = frame.candidate_masks[0] > 0
        count = masks.shape[0]
        if count == 1:
            return torch.zeros((), device=masks.device)
        chosen_iou = frame.measure(PredictedIoU(), history)
        best = (frame.candidate_ious[0].float() - chosen_iou).abs().argmin()
        order = (best + torch.arange(count, device=masks.device)) % count
        masks = masks.index_select(0, order)
        masks = torch.cat([masks[:1], masks[1:] & ~masks[:1]])
        small = adaptive_max_pool2d(masks.float(), [min(SIDE, side) for side in masks.shape[1:]]) > 0
        chosen, rest = small[:1], small[1:]
        boxes = mask_boxes(torch.cat([chosen, chosen | largest_part(rest)]))
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return (1 - areas[0] / areas.amax().clamp(min=1)) * ((areas[0] > 0) & (frame.object_score_logits[0, 0] > 0))


def largest_part(masks: Tensor) -> Tensor:
    """Return the largest 8-connected part of each of (k, h, w) bool masks; of equally large ones the first.

    Each pixel points to one of its part, at first to itself. In every round it looks around for the one that comes
    last in the picture, tells it to the one it points to, and then follows the pointers: a part is found when all of
    it points to its last pixel. The number of rounds is fixed, so that nothing is read on the host.

    Source: Y. Zhang, A. Azad, Z. Hu, FastSV: a distributed-memory connected component algorithm, 2020.
    """
    inside = pad(masks.long(), (1, 1, 1, 1))
    around = torch.zeros_like(inside)
    middle = around[:, 1:-1, 1:-1]
    parent = inside.flatten(1) * torch.arange(inside[0].numel(), device=masks.device)
    grand = parent
    for _ in range(ROUNDS):
        window = grand.view_as(inside).unfold(1, 3, 1).amax(-1).unfold(2, 3, 1).amax(-1)
        torch.mul(window, masks, out=middle)
        seen = around.flatten(1)
        parent = parent.scatter_reduce(1, parent, seen, "amax").maximum(seen)
        parent = parent.gather(1, parent)
        parent = parent.gather(1, parent)
        grand = parent.gather(1, parent)
    sizes = torch.zeros_like(parent).scatter_add_(1, parent, inside.flatten(1))
    largest = sizes.argmax(1, keepdim=True)
    return (parent == largest).view_as(inside)[:, 1:-1, 1:-1] & masks
