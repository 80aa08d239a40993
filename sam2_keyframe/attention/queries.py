"""Which tokens of the frame being tracked run through memory attention: all, or all near the object and one a window.

Every layer costs queries x keys, of memories and of the frame itself, and far from the object the mask decoder needs no
detail. So a window far from it is one token, the mean of its tokens, and what the layers add to that token is added to
each of them. As a key of self-attention it stands for n tokens and log(n) is added to its logits, as in `maths`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe._checks import plain
from sam2_keyframe.attention.schemes import Part, Plan, Whole, check_grid, distance, split
from sam2_keyframe.types import History, TrackedFrame

STEPS = tuple(sixteenths / 16 for sixteenths in range(1, 13))
"""Shares of the windows that may stay whole: few, so that shapes repeat from frame to frame."""


@dataclass(frozen=True)
class NearObject:
    """Every token near the object's last mask, one token a window elsewhere.

    The windows kept whole are those that the mask or a margin around it touches, then the next nearest, up to the
    smallest of `STEPS` that holds them all. Every token runs, as in SAM 2, on a frame after a prompt or a correction,
    while the user clicks, after a frame on which the object is hidden or more than the share `stray` of its mask lies
    beyond the margin of the mask before, and where more than the largest step is needed. Which of these holds is one
    number that reaches the host with the frame's scores; the windows themselves never leave the device.

    Attributes:
        size: Side of a window in tokens, at least 2; must divide the grid (64 x 64 at 1024 px).
        margin: Width of the margin as a share of the frame's longer side, in [0, 1): how far the object may move in a
            frame without leaving the tokens kept whole. Rounded up to tokens.
        stray: Share of the mask, in [0, 1), that may lie beyond the margin of the mask before without being a jump.

    Raises:
        ValueError: `size`, `margin` or `stray` is out of range, or, in `plan`, `size` does not divide the grid.
    """

    name: ClassVar[str] = "near_share"
    key: ClassVar[str] = "near_windows"
    size: int = 4
    margin: float = 1 / 16
    stray: float = 0.0

    def __post_init__(self) -> None:
        if plain(self, "size") < 2 or not 0 <= plain(self, "margin") < 1 or not 0 <= plain(self, "stray") < 1:
            raise ValueError(f"{self!r}: give a size of 2 or more, a margin in [0, 1) and a stray in [0, 1)")

    def windows(self, mask: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return which windows hold some of the object and which the margin touches, each (B, rows, columns) bool.

        Args:
            mask: (B, 1, H, W) mask logits at any resolution from that of the grid on; > 0 is object.
            grid: (h, w) of the frame's tokens.
        """
        tokens = F.adaptive_max_pool2d((mask > 0).float(), grid)
        reach = math.ceil(self.margin * max(grid))
        around = F.max_pool2d(tokens, 2 * reach + 1, stride=1, padding=reach)
        covered, near = (F.max_pool2d(each, self.size)[:, 0] > 0 for each in (tokens, around))
        return covered, near

    def score(self, frame: TrackedFrame, history: History) -> Tensor:
        """Return the 0-dim share of the windows that the next frame has to keep whole; 1 after a loss or a jump.

        Reads nothing on the host. The windows near the mask stay with the frame as its descriptor `key`.
        """
        masks = frame.pred_masks
        grid = masks.shape[-2] // 4, masks.shape[-1] // 4  # SAM 2 decodes masks at a quarter, tokens are of a 16th
        covered, near = self.windows(masks, grid)
        frame.describe(self.key, lambda: near)
        before = None if history.previous is None else history.previous.get(self.key)
        stayed = covered.any() & (frame.object_score_logits > 0).all()
        if before is not None:
            rows, columns = covered.shape[-2:]
            area = F.adaptive_avg_pool2d((masks > 0).float(), (rows, columns))[:, 0]
            stayed &= (area * ~before.to(area.device)).sum() <= self.stray * area.sum()
        return torch.where(stayed, near.float().mean(), 1.0)

    def whole(self, share: float, windows: int) -> int | None:
        """Return how many of the windows stay whole where a share of them is needed; None: all. NaN needs all."""
        counts = (math.floor(step * windows) for step in STEPS)
        return next((count for count in counts if count and count >= share * windows - 0.5), None)

    def plan(self, grid: tuple[int, int], near: Tensor | None = None, share: float = math.nan) -> Plan:
        """Return the tokens that run.

        Args:
            grid: (h, w) of the frame's tokens.
            near: (B, rows, columns) bool, the windows that the last frame's margin touched; None: not known.
            share: What `score` said of that frame; NaN: not known.
        """
        check_grid(self, grid)
        count = self.whole(share, grid[0] * grid[1] // self.size**2)
        if near is None or count is None:
            return (Part(1),)
        order = torch.where(near.flatten(1), -1.0, distance(near.float())).argsort(dim=1, stable=True)
        return split(order, count, self.size, grid)


Queries: TypeAlias = Whole | NearObject
"""A choice of the tokens that run."""

QUERIES: Mapping[str, type] = {"near": NearObject}
"""Choices of the tokens that run by name; call with the fields of the class."""
