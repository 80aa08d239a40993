"""Attention over memories of which only some tokens are attended: the maths, without any host.

SAM 2 attends to every token of every memory (4,096 each at 1024 px), which is its largest cost once the bank is full.
Here a memory's tokens may be averaged over windows. Such a key has the rotary phase of the centre of its window, and
because it stands for n tokens, log(n) is added to its logits: if the n tokens were equal, the result would be that of
attending to all of them. Keys that stand for as many tokens form a group; groups are attended apart by the fused
kernels and merged by their log-sum-exp, where log(n) is one number added to the group's.

Whole memories give one group, and the host's own attention to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor


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
        return tokens if self.index is None else _pick(tokens, self.index)


def _pick(rows: Tensor, index: Tensor) -> Tensor:
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
        if self.size < 2:
            raise ValueError(f"Pool(size={self.size}): give 2 or more, or use Whole()")

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None) -> Plan:
        """Return the tokens to attend to; `mask` is not used."""
        _check_grid(self, self.size, grid)
        return (Part(self.size),)


@dataclass(frozen=True)
class Foveated:
    """Whole around the object, pooled in the background.

    A fixed share of the windows stays whole: those that hold most of the object, then those nearest to it. The number
    of tokens is therefore the same on every frame and nothing is read on the host.

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
        if self.size < 2 or not 0 < self.share < 1:
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
        _check_grid(self, self.size, grid)
        if mask is None:
            raise ValueError(f"{self!r} needs the mask of every memory: pass its pred_masks")
        rows, columns = grid[0] // self.size, grid[1] // self.size
        covered = F.adaptive_avg_pool2d((mask > 0).float(), (rows, columns))
        near = covered
        for _ in range(3):
            near = F.avg_pool2d(near, 3, stride=1, padding=1)
        count = min(max(1, round(self.share * rows * columns)), rows * columns - 1)
        order = (covered + near).flatten(1).argsort(dim=1, descending=True, stable=True)
        fine = order[:, :count, None, None]
        inside = torch.arange(self.size, device=order.device)
        y = fine // columns * self.size + inside[:, None]
        x = fine % columns * self.size + inside
        return Part(1, (y * grid[1] + x).flatten(1)), Part(self.size, order[:, count:])


@dataclass(frozen=True)
class SalientTokens:
    """The tokens that drew most of SAM 2's own attention when the memory was the newest; the others are left out.

    While a memory is the newest it is read whole, and `drawn_attention` measures what each of its tokens draws, added
    up over the layers. Afterwards only the top share is read. Prompted frames, and memories that were never read as
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
        if not 0 < self.share < 1:
            raise ValueError(f"{self!r}: give a share in (0, 1)")

    def plan(self, grid: tuple[int, int], mask: Tensor | None = None, drawn: Tensor | None = None) -> Plan:
        """Return the tokens to attend to: those for which (B, h·w) `drawn` is highest, or all where it is None."""
        if drawn is None:
            return (Part(1),)
        count = max(1, round(self.share * drawn.shape[1]))
        return (Part(1, drawn.topk(count, dim=1).indices.sort(dim=1).values),)


Attend: TypeAlias = Whole | Pool | Foveated | SalientTokens
"""A scheme: which tokens of a memory are attended to."""

ATTEND: Mapping[str, Callable[..., Attend]] = {
    "whole": Whole,
    "pool": Pool,
    "foveated": Foveated,
    "salient": SalientTokens,
}
"""Schemes by name; call with the fields of the class."""


def _check_grid(scheme: Pool | Foveated, size: int, grid: tuple[int, int]) -> None:
    if grid[0] % size or grid[1] % size or grid[0] * grid[1] <= size * size:
        raise ValueError(f"{scheme!r}: windows of {size} do not divide a {grid[0]}x{grid[1]} grid; use another size")


def scheme_for(attend: Attend, *, conditioning: bool, newest: bool) -> Attend:
    """Return how one memory is attended to: the newest whole, prompted ones whole unless the scheme says otherwise."""
    if newest or isinstance(attend, Whole) or (conditioning and not attend.conditioning):
        return Whole()
    return attend


@dataclass(frozen=True, slots=True, eq=False)
class TokenLayout:
    """How every spatial memory of one read is attended to.

    Keys that stand for as many tokens each form a group; methods return groups by that number.

    Attributes:
        grid: (h, w) of a memory.
        plans: One plan a memory, in the order in which the host concatenates them.
        watched: Stands for the last memory where what its tokens draw is to be measured; it is whole then.
    """

    grid: tuple[int, int]
    plans: tuple[Plan, ...]
    watched: Tensor | None = None

    @property
    def spatial(self) -> int:
        """Spatial tokens that the host hands over: whole memories."""
        return len(self.plans) * self.grid[0] * self.grid[1]

    @property
    def sizes(self) -> set[int]:
        """Sizes of all windows."""
        return {part.size for plan in self.plans for part in plan}

    @property
    def tokens(self) -> int:
        """Spatial keys attended to."""
        return sum(part.tokens(self.grid) for plan in self.plans for part in plan)

    def gather(self, tokens: Tensor) -> dict[int, Tensor]:
        """Return the groups' (B, n, C) keys or values.

        Args:
            tokens: (B, spatial + p, C): the memories, then p tokens without a place in the image, which stay whole.

        Raises:
            RuntimeError: There are fewer tokens than the layout describes.
        """
        if tokens.shape[1] < self.spatial:
            raise RuntimeError(
                f"{tokens.shape[1]} tokens for {len(self.plans)} memories of {self.grid}: "
                "describe the memories that the host is shown, without those that hold no tokens"
            )
        groups: dict[int, list[Tensor]] = {}
        memories = torch.split(tokens[:, : self.spatial], self.grid[0] * self.grid[1], dim=1)
        for plan, memory in zip(self.plans, memories if self.plans else (), strict=True):
            for part in plan:
                groups.setdefault(part.size**2, []).append(part.take(memory, self.grid))
        if tokens.shape[1] > self.spatial:
            groups.setdefault(1, []).append(tokens[:, self.spatial :])
        # Tokens outermost in memory, as the host has them: a projection in bfloat16 rounds by the order in memory.
        return {n: torch.cat([t.transpose(0, 1) for t in taken]).transpose(0, 1) for n, taken in groups.items()}

    def phases(self, tables: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the groups' (B or 1, n, dim/2) rotary phases, one for each spatial key.

        Args:
            tables: `rotary_phases` of this grid by window size.
        """
        groups: dict[int, list[Tensor]] = {}
        for plan in self.plans:
            for part in plan:
                phases = tables[part.size][None]
                taken = phases if part.index is None else _pick(phases, part.index)
                groups.setdefault(part.size**2, []).append(taken)
        batch = max((t.shape[0] for taken in groups.values() for t in taken), default=1)
        return {n: torch.cat([t.expand(batch, -1, -1) for t in taken], dim=1) for n, taken in groups.items()}


def rotary_phases(grid: tuple[int, int], size: int, dim: int, theta: float, device: torch.device) -> Tensor:
    """Return (h·w / size², dim/2) complex64 phases of the centres of all windows, row by row.

    The first half of the channels turns with x, the second with y, as in SAM 2 (`compute_axial_cis` in
    sam2/modeling/position_encoding.py). Made on the host, as there: keep it.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 4).float() / dim)
    y, x = (torch.arange(n // size).float() * size + (size - 1) / 2 for n in grid)
    angles = [torch.outer(a, frequencies) for a in (x.repeat(len(y)), y.repeat_interleave(len(x)))]
    return torch.cat([torch.polar(torch.ones_like(a), a) for a in angles], dim=-1).to(device)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Return (B, heads, n, D) turned by (B or 1, n, D/2) phases, in float32 and back."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * phases[:, None]).flatten(3).type_as(x)


def attend(query: Tensor, groups: Sequence[tuple[int, Tensor, Tensor]]) -> Tensor:
    """Return the attention of (B, heads, n, D) queries to all groups under one softmax.

    Args:
        query: (B, heads, n, D).
        groups: Tokens that a key stands for, keys (B, heads, m, D), values (B, heads, m, D). Empty groups are
            skipped: on the CPU the fused kernel ends the process on one.

    Raises:
        ValueError: No group has a key.
    """
    groups = [g for g in groups if g[1].shape[2] > 0]
    if not groups:
        raise ValueError("there is no key to attend to: show the host a memory or an object pointer")
    if len(groups) == 1:  # log(n) is the same on every logit and cancels
        return F.scaled_dot_product_attention(query, *groups[0][1:])
    kernel = fused_kernel(query)
    if kernel is None:
        bias = torch.cat([query.new_full((k.shape[2],), math.log(n)) for n, k, _ in groups])
        keys = torch.cat([k for _, k, _ in groups], dim=2)
        values = torch.cat([v for _, _, v in groups], dim=2)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias.expand(1, 1, query.shape[2], -1))
    outs, sums = zip(*(kernel(query, k, v) for _, k, v in groups), strict=True)
    weights = torch.stack([lse.float() + math.log(n) for lse, (n, _, _) in zip(sums, groups, strict=True)]).softmax(0)
    merged = torch.zeros_like(query, dtype=torch.float32)
    for out, weight in zip(outs, weights, strict=True):
        merged.addcmul_(out.float(), weight[..., None])
    return merged.type_as(query)


def drawn_attention(query: Tensor, keys: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what each key draws, (B, n) float32: its softmax over these keys alone, mean over queries and heads.

    At most 16 queries in each direction are asked, evenly spaced: at 1024 px a sixteenth of all.

    Args:
        query: (B, heads, h·w, D).
        keys: (B, heads, n, D).
        grid: (h, w) of the queries.
    """
    y, x = (max(1, n // 16) for n in grid)
    asked = query.view(*query.shape[:2], *grid, -1)[:, :, y // 2 :: y, x // 2 :: x].flatten(2, 3)
    with torch.autocast(query.device.type, enabled=False):
        logits = asked.float() @ keys.float().transpose(2, 3) / math.sqrt(query.shape[-1])
        drawn: Tensor = logits.softmax(-1).mean(dim=(1, 2))
    return drawn


Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fused_kernel(query: Tensor) -> Kernel | None:
    """Return the kernel that gives attention and its (B, heads, n) log-sum-exp, or None where there is none.

    On CUDA flash attention takes half precision from compute capability 8.0 on, memory-efficient attention the rest.
    Other devices (mps) add log(n) as a bias mask instead.
    """
    ops, device = torch.ops.aten, query.device
    if device.type == "cpu" and hasattr(ops, "_scaled_dot_product_flash_attention_for_cpu"):
        return cast(Kernel, lambda q, k, v: ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2])
    if device.type == "cuda" and query.shape[-1] % 8 == 0 and torch.version.hip is None:
        half = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256
        if half and torch.cuda.get_device_capability(device) >= (8, 0):
            return cast(Kernel, lambda q, k, v: ops._scaled_dot_product_flash_attention(q, k, v)[:2])
        return _efficient
    return None


def _efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return out, lse[..., : q.shape[2]]  # its rows are padded to a multiple of 32
