"""Which tokens of a memory are attended to: the schemes that `attend=` takes, re-exported by `attention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe._checks import plain


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of a memory's tokens, each the mean of a window.

    Attributes:
        size: Side of the window in tokens; 1 is the token itself.
        index: (B or 1, n) the windows chosen, counted row by row; None for all.
    """

    size: int
    index: Tensor | None = None

    def tokens(self, grid: tuple[int, int]) -> int:
        """Return how many keys this is on an (h, w) grid."""
        return grid[0] * grid[1] // self.size**2 if self.index is None else self.index.shape[1]

    def take(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the (B, n, C) keys out of a memory's (B, h·w, C) tokens."""
        if self.size > 1:
            b, _, c = tokens.shape
            s, (h, w) = self.size, grid
            tokens = tokens.view(b, h // s, s, w // s, s, c).mean(dim=(2, 4)).flatten(1, 2)
        return tokens if self.index is None else pick(tokens, self.index)


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows (B or 1, n, C) of (B or 1, N, C) by index (B or 1, n)."""
    batch = max(rows.shape[0], index.shape[0])
    return rows.expand(batch, -1, -1).gather(1, index.expand(batch, -1)[..., None].expand(-1, -1, rows.shape[-1]))


Plan: TypeAlias = tuple[Part, ...]
"""How one memory is attended to."""


@dataclass(frozen=True)
class Whole:
    """Every token of a memory, as SAM 2 does."""

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None) -> Plan:
        """Return the tokens to attend to; `mask` is not used."""
        return (Part(1),)


@dataclass(frozen=True)
class Pool:
    """The mean of every window: size² times fewer tokens.

    Source: EfficientTAM (arXiv 2411.18933) with its log(n); there after projection and rotation, in a trained model.
    Here keys are averaged before both, so that one phase, that of the window's centre, is exact.

    Attributes:
        size: Side of a window in tokens; must divide the grid.
        conditioning: Whether prompted frames are pooled too. The newest frame stays whole always.

    Raises:
        ValueError: `size` is below 2 or, in `plan`, does not divide the grid.
    """

    size: int = 2
    conditioning: bool = False

    def __post_init__(self) -> None:
        if plain(self, "size") < 2:
            raise ValueError(f"Pool(size={self.size}): give 2 or more, or use Whole()")

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None) -> Plan:
        """Return the tokens to attend to; `mask` is not used."""
        check_grid(self, grid)
        return (Part(self.size),)


@dataclass(frozen=True)
class Foveated:
    """Whole around the object, pooled in the background.

    A fixed share of the windows stays whole: those with most of the object in and around them, up to three windows
    away, then those nearest to it. The number of tokens is therefore the same on every frame and nothing is read on the
    host.

    Attributes:
        share: Share of the windows that stay whole, in (0, 1).
        size: Side of a window in tokens; must divide the grid.
        conditioning: Whether prompted frames are foveated too. The newest frame stays whole always.

    Raises:
        ValueError: `share` or `size` is outside its range, or, in `plan`, `size` does not divide the grid.
    """

    reads_masks: ClassVar[bool] = True
    share: float = 0.125
    size: int = 4
    conditioning: bool = False

    def __post_init__(self) -> None:
        if plain(self, "size") < 2 or not 0 < plain(self, "share") < 1:
            raise ValueError(f"{self!r}: give a size of 2 or more and a share in (0, 1)")

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None) -> Plan:
        """Return the tokens to attend to.

        Args:
            grid: (h, w) of the memory.
            mask: (B, 1, H, W) mask logits of the memory's frame at any resolution, on the device of the keys;
                > 0 is object.

        Raises:
            ValueError: There is no mask, or `size` does not divide the grid.
        """
        check_grid(self, grid)
        if mask is None:
            raise ValueError(f"{self!r} needs the mask of every memory: pass its pred_masks")
        rows, columns = grid[0] // self.size, grid[1] // self.size
        covered = F.adaptive_avg_pool2d((mask > 0).float(), (rows, columns))
        near = covered
        for _ in range(3):
            near = F.avg_pool2d(near, 3, stride=1, padding=1)
        around = (covered + near).flatten(1)
        count = min(max(1, round(self.share * rows * columns)), rows * columns - 1)
        order = torch.where(around > 0, -around, distance(covered[:, 0])).argsort(dim=1, stable=True)
        return split(order, count, self.size, grid)


def split(order: Tensor, whole: int, size: int, grid: tuple[int, int]) -> Plan:
    """Return the plan that keeps the first `whole` windows of (B, n) `order` whole and pools the rest."""
    columns = grid[1] // size
    fine = order[:, :whole, None, None]
    inside = torch.arange(size, device=order.device)
    y = fine // columns * size + inside[:, None]
    x = fine % columns * size + inside
    return Part(1, (y * grid[1] + x).flatten(1)), Part(size, order[:, whole:])


def distance(covered: Tensor) -> Tensor:
    """Return how far each window is from the object, in windows, as (B, n); without an object, from the middle.

    Of windows equally far from its edge, those nearer to its middle count as nearer.

    Args:
        covered: (B, rows, columns) share of each window that is object.
    """
    rows, columns = (torch.arange(float(side), device=covered.device) for side in covered.shape[1:])
    down, across = ((line[:, None] - line).square() for line in (rows, columns))
    there = covered.amax((1, 2), keepdim=True) > 0
    beyond = torch.zeros_like(covered).masked_fill(covered == 0, float("inf"))
    beyond = (beyond[:, :, None] + across).amin(3)  # squared, to the object in the same row, then in any
    nearest = (beyond[:, None] + down[:, :, None]).amin(2).sqrt()
    weight = torch.where(there, covered, 1.0)
    y, x = ((weight.sum(over) * line).sum(1) / weight.sum((1, 2)) for over, line in ((2, rows), (1, columns)))
    middle = (rows - y[:, None]).square()[:, :, None] + (columns - x[:, None]).square()[:, None]
    return (torch.where(there, nearest, 0.0) + 1e-3 * middle.sqrt()).flatten(1)


@dataclass(frozen=True)
class SalientTokens:
    """The tokens that drew most of SAM 2's own attention when the memory was the newest; the others are left out.

    When a memory is first read as the newest, whole, `drawn_attention` measures what each of its tokens draws, added up
    over the layers. Afterwards only the top share is read. Prompted frames, and memories that were never read as
    the newest, stay whole.

    Source: sparse memory retrieval of Efficient-SAM2 (ICLR 2026, training-free part); there by all queries, and each
    layer has its own tokens.

    Attributes:
        share: Share of the tokens that are read, in (0, 1).

    Raises:
        ValueError: `share` is outside its range.
    """

    reads_masks: ClassVar[bool] = True  # of the memory read itself, as what its tokens drew is kept with its entry
    conditioning: ClassVar[bool] = False
    share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < plain(self, "share") < 1:
            raise ValueError(f"{self!r}: give a share in (0, 1)")

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None, drawn: Tensor | None = None) -> Plan:
        """Return the tokens to attend to: those for which (B, h·w) `drawn` is highest, or all where it is None."""
        if drawn is None:
            return (Part(1),)
        count = max(1, round(self.share * drawn.shape[1]))
        return (Part(1, drawn.topk(count, dim=1).indices.sort(dim=1).values),)


@dataclass(frozen=True)
class Modulated:
    """Every token; a memory counts the more the surer SAM 2 was that the object is there.

    Keys of spatial memories are scaled by `low` to `high`, evenly spaced in ascending order of their object scores, and
    keys of pointers likewise among themselves; values are not. Prompted frames count as the surest. A single memory is
    left as it is. Reads nothing on the host.

    Source: the modulation of SAM2Long (Ding et al. 2410.16268; CC-BY-NC-4.0, the rule was read, no code taken).

    Attributes:
        low: Factor of the memory of the lowest score, above 0.
        high: Factor of that of the highest, at least `low`.

    Raises:
        ValueError: The factors are out of range.
    """

    conditioning: ClassVar[bool] = True
    low: float = 0.95
    high: float = 1.05

    def __post_init__(self) -> None:
        if not 0 < plain(self, "low") <= plain(self, "high"):
            raise ValueError(f"{self!r}: give factors above 0, low at most high")

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None) -> Plan:
        """Return the tokens to attend to: all of them."""
        return (Part(1),)

    def scales(self, scores: Tensor) -> Tensor:
        """Return the factors, (n,) in float32, of memories or pointers by their (n,) object scores."""
        steps = torch.linspace(self.low, self.high, len(scores), device=scores.device)
        return torch.empty_like(steps).scatter_(0, scores.argsort(stable=True), steps)


SUREST = 10.0
"""What a prompted frame's object score counts as."""

Attend: TypeAlias = Whole | Pool | Foveated | SalientTokens | Modulated
"""A scheme: which tokens of a memory are attended to."""

ATTEND: Mapping[str, Callable[..., Attend]] = {
    "whole": Whole,
    "pool": Pool,
    "foveated": Foveated,
    "salient": SalientTokens,
    "modulated": Modulated,
}
"""Schemes by name; call with the fields of the class."""


def check_grid(scheme: object, grid: tuple[int, int]) -> None:
    """Raise ValueError where a scheme has windows, of `scheme.size` tokens, that do not divide an (h, w) grid."""
    size = getattr(scheme, "size", 1)
    if size == 1:
        return
    if grid[0] % size or grid[1] % size or grid[0] * grid[1] <= size * size:
        raise ValueError(f"{scheme!r}: windows of {size} do not divide a {grid[0]}x{grid[1]} grid; use another size")


def scheme_for(attend: Attend, *, conditioning: bool, newest: bool) -> Attend:
    """Return how one memory is attended to: the newest whole, prompted ones whole unless the scheme says otherwise."""
    if newest or isinstance(attend, Whole) or (conditioning and not attend.conditioning):
        return Whole()
    return attend
