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
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.attention.schemes import (
    ATTEND,
    Attend,
    Foveated,
    Modulated,
    Part,
    Plan,
    Pool,
    SalientTokens,
    Whole,
    check_grid,
    pick,
    scheme_for,
)

__all__ = [
    "ATTEND",
    "Attend",
    "Foveated",
    "Kernel",
    "Modulated",
    "Part",
    "Plan",
    "Pool",
    "SalientTokens",
    "TokenLayout",
    "Whole",
    "attend",
    "check_grid",
    "drawn_attention",
    "fused_kernel",
    "rotary_phases",
    "rotate",
    "scheme_for",
]


@dataclass(frozen=True, slots=True, eq=False)
class TokenLayout:
    """How every spatial memory of one read is attended to.

    Keys that stand for as many tokens each form a group; methods return groups by that number.

    Attributes:
        grid: (h, w) of a memory.
        plans: One plan a memory, in the order in which the host concatenates them.
        watched: The memory whose tokens are measured by what they draw; it and those before it are of single tokens.
        keep: Takes what they drew, (B, h·w) added up over the layers, when the read is done.
        queries: Which tokens of the frame being tracked run through the layers; None leaves all of them, and
            self-attention, to the host.
        scales: (n,) or (B, n) factors of the keys of each memory, and of each pointer after; None: keys as they are.
    """

    grid: tuple[int, int]
    plans: tuple[Plan, ...]
    watched: int | None = None
    keep: Callable[[Tensor], None] | None = None
    queries: Plan | None = None
    scales: tuple[Tensor, Tensor] | None = None

    @property
    def spatial(self) -> int:
        """Spatial tokens that the host hands over: whole memories."""
        return len(self.plans) * self.grid[0] * self.grid[1]

    @property
    def sizes(self) -> set[int]:
        """Sizes of all windows."""
        return {part.size for plan in (*self.plans, self.queries or ()) for part in plan}

    @property
    def asked(self) -> int:
        """Tokens of the frame being tracked that run through the layers."""
        return sum(part.tokens(self.grid) for part in self.queries or (Part(1),))

    @property
    def tokens(self) -> int:
        """Spatial keys attended to."""
        return sum(part.tokens(self.grid) for plan in self.plans for part in plan)

    @property
    def form(self) -> tuple[object, ...]:
        """What must be equal for two objects' layouts to be attended to in one batch, by `together`."""
        plans = [None if plan is None else tuple(map(_form, plan)) for plan in (*self.plans, self.queries)]
        scaled = None if self.scales is None else tuple(len(factors) for factors in self.scales)
        return self.grid, tuple(plans), self.watched, self.keep is None, scaled

    @classmethod
    def together(cls, layouts: Sequence[TokenLayout]) -> TokenLayout:
        """Return the layout of a batch whose rows have these layouts, all of one `form`."""
        first = layouts[0]
        if len(layouts) == 1:
            return first

        def keep(drawn: Tensor) -> None:
            for layout, row in zip(layouts, torch.split(drawn, 1), strict=True):
                if layout.keep is not None:
                    layout.keep(row)

        plans = tuple(map(_plan_together, zip(*(layout.plans for layout in layouts), strict=True)))
        asked = [layout.queries for layout in layouts if layout.queries is not None]
        scales = [layout.scales for layout in layouts if layout.scales is not None]
        return cls(
            first.grid,
            plans,
            first.watched,
            None if first.keep is None else keep,
            _plan_together(asked) if asked else None,
            (torch.stack([m for m, _ in scales]), torch.stack([p for _, p in scales])) if scales else None,
        )

    def scaled(self, keys: Tensor) -> Tensor:
        """Return (B, spatial + p, C) keys by their factors."""
        if self.scales is None:
            return keys
        memories, pointers = self.scales
        each = memories.repeat_interleave(self.grid[0] * self.grid[1], dim=-1)
        rest = keys.shape[1] - each.shape[-1]
        factors = torch.cat([each, pointers.repeat_interleave(rest // max(pointers.shape[-1], 1), dim=-1)], dim=-1)
        return keys * factors[..., None].to(keys.dtype)

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
                groups.setdefault(part.size**2, []).append(_phases_of(part, tables))
        return {n: _joined(taken) for n, taken in groups.items()}

    # -- the frame being tracked ----------------------------------------------------------------------------------

    def query_phases(self, tables: Mapping[int, Tensor]) -> Tensor:
        """Return the (B or 1, n, dim/2) rotary phases of the tokens that run."""
        return _joined([_phases_of(part, tables) for part in self.queries or (Part(1),)])

    def ask(self, tokens: Tensor) -> Tensor:
        """Return the (B, n, C) tokens that run, of (B, h·w, C): a window is the mean of its tokens."""
        taken = [part.take(tokens, self.grid) for part in self.queries or (Part(1),)]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)

    def split(self, asked: Tensor) -> dict[int, Tensor]:
        """Return the tokens that run as groups of keys, by the number of tokens that each stands for."""
        parts = self.queries or (Part(1),)
        groups = torch.split(asked, [part.tokens(self.grid) for part in parts], dim=1)
        return {part.size**2: group for part, group in zip(parts, groups, strict=True)}

    @property
    def all_run(self) -> bool:
        """Whether every token runs, in the host's order."""
        return self.queries is None or [(part.size, part.index) for part in self.queries] == [(1, None)]

    def of_each(self, asked: Tensor) -> Tensor:
        """Return (B, h·w, C) of (B, n, C): for each token of the frame what there is of the one that ran for it."""
        if self.queries is None or self.all_run:
            return asked
        (h, w), first = self.grid, 0
        ran = torch.full((1, h * w), -1, device=asked.device)
        for part in self.queries:
            size, count = part.size, part.tokens(self.grid)
            numbers = torch.arange(first, first + count, device=asked.device)[None]
            if part.index is not None:
                windows = torch.full((part.index.shape[0], h * w // size**2), -1, device=asked.device)
                numbers = windows.scatter(1, part.index, numbers.expand_as(part.index))
            over = numbers.view(-1, h // size, 1, w // size, 1).expand(-1, -1, size, -1, size).flatten(1)
            ran = torch.where(over >= 0, over, ran)
            first += count
        return pick(asked, ran)

    def spread(self, tokens: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return (B, h·w, C) `tokens` with the change from `before` to `after` (B, n, C) of those that ran.

        A token that ran itself is exactly what became of it; one of a window gets the window's change.
        """
        if self.all_run:
            return after
        return self.of_each(after) + (tokens - self.of_each(before))


def _form(part: Part) -> tuple[int, int | None]:
    return part.size, None if part.index is None else part.index.shape[1]


def _plan_together(plans: Sequence[Plan]) -> Plan:
    """Return one memory's plan for a batch: each object has its own tokens, as many as the others."""
    parts = []
    for each in zip(*plans, strict=True):
        indices = [part.index for part in each if part.index is not None]
        parts.append(Part(each[0].size, torch.cat(indices) if indices else None))
    return tuple(parts)


def _phases_of(part: Part, tables: Mapping[int, Tensor]) -> Tensor:
    phases = tables[part.size][None]
    return phases if part.index is None else pick(phases, part.index)


def _joined(taken: Sequence[Tensor]) -> Tensor:
    batch = max(t.shape[0] for t in taken)
    return taken[0] if len(taken) == 1 else torch.cat([t.expand(batch, -1, -1) for t in taken], dim=1)


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
    Other devices (mps) add log(n) as a bias mask instead, which must be of the query's dtype: bfloat16 rounds log(16)
    so that such keys weigh 0.7 % too little.
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
