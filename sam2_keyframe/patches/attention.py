"""The hook into SAM 2's memory attention: fewer tokens of memories and of the frame, by a layout set for one read."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import (
    TokenLayout,
    attend,
    drawn_attention,
    rotary_phases,
    rotate,
)
from sam2_keyframe.patches.wrapping import Wrapping

ROTARY = ("RoPEAttention", "Sam2VideoRoPEAttention", "Sam3TrackerVideoRoPEAttention")
"""Rotary attention that is built as SAM 2's: facebookresearch's own class, and those of transformers."""


def compiles(predictor: object) -> bool:
    """Return whether a predictor compiles its parts for the shapes that stock SAM 2 has."""
    return any(cls.__name__ == "SAM2VideoPredictorVOS" for cls in type(predictor).__mro__)


class Rotary:
    """A host's rotary attention, whatever it calls its parts.

    Attributes:
        heads: How many.
        dim: Channels of one.
        theta: Base of the rotary frequencies.
        join: The projection of what the heads found together.
    """

    def __init__(self, module: Any) -> None:
        if hasattr(module, "compute_cis"):
            self.heads, self.theta, self.join = module.num_heads, module.compute_cis.keywords["theta"], module.out_proj
        else:
            self.heads, self.join = module.num_attention_heads, module.o_proj
            self.theta = module.config.rope_parameters["rope_theta"]
        self.dim = module.internal_dim // self.heads

    def split(self, tokens: Tensor) -> Tensor:
        """Return (B, heads, n, dim) for (B, n, C)."""
        return tokens.view(*tokens.shape[:-1], self.heads, self.dim).transpose(1, 2)

    def joined(self, found: Tensor) -> Tensor:
        """Return (B, n, C) for (B, heads, n, dim)."""
        out: Tensor = self.join(found.transpose(1, 2).flatten(2))
        return out


@dataclass(slots=True, eq=False)
class Read:
    """One read of the memories, from the layout to the last layer. It lives in the call, never on the hook.

    Attributes:
        hook: Whose modules follow it.
        layout: What is attended to, and what runs.
        drawn: What the tokens watched drew, in the layers so far.
        memories: The host's memory tokens, and of them the groups' keys, values and phases.
        frame: The host's tokens of the frame, and those of them that run, before the first layer.
        positions: Of their position encoding, what runs.
    """

    hook: AttentionHook
    layout: TokenLayout
    drawn: Tensor | None = None
    memories: tuple[Tensor, dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]] | None = None
    frame: tuple[Tensor, Tensor] | None = None
    positions: Tensor | None = None


_READ: ContextVar[Read | None] = ContextVar("sam2_keyframe_read", default=None)


class AttentionHook:
    """Wraps memory attention's layers and their attention to memories and to the frame, on a predictor's instances.

    Where no layout is set, the host's own attention runs; one set in a thread, or in an asynchronous task, holds there
    alone. In use::

        hook = AttentionHook(predictor)
        hook.install()
        with hook.layout(reading.layout):  # as `plan_reading` made it
            ...  # the host's _prepare_memory_conditioned_features
        hook.uninstall()

    Attributes:
        calls: How often the per-key attention to memories ran, one a layer and read.
        own_calls: How often self-attention ran on the tokens of a layout, one a layer and read.
        predictor: The predictor.

    Raises:
        TypeError: The predictor's memory attention is not SAM 2's rotary attention.
        RuntimeError: The predictor compiles its memory attention.
    """

    def __init__(self, predictor: Any) -> None:
        name = type(predictor).__name__
        if compiles(predictor):
            raise RuntimeError(
                f"{name} compiles its memory attention for fixed shapes: use attend=Whole() and queries=Whole() with "
                "it, or build the predictor with vos_optimized=False"
            )
        self._layers: list[Any] = list(getattr(getattr(predictor, "memory_attention", None), "layers", ()))
        modules = [getattr(layer, each, None) for layer in self._layers for each in ("cross_attn_image", "self_attn")]
        if not modules or not all(type(m).__name__ in ROTARY for m in modules):
            raise TypeError(
                f"{name} has no rotary memory attention as in SAM 2: use attend=Whole() and queries=Whole() with it"
            )
        self.predictor = predictor
        self.calls = 0
        self.own_calls = 0
        self._wrappings: list[Wrapping] = []
        self._tables: dict[tuple[Any, ...], dict[int, Tensor]] = {}

    def install(self) -> None:
        """Wrap every layer and its attention; does nothing when they are wrapped already."""
        if self._wrappings:
            return
        for layer in self._layers:
            first, last = layer is self._layers[0], layer is self._layers[-1]
            if not hasattr(layer.self_attn, "compute_cis"):
                self._wrap(layer.cross_attn_image, self._attend_as_transformers)
                self._wrap(layer.self_attn, self._attend_itself_as_transformers)
                self._wrap(layer, partial(self._layer_as_transformers, first=first, last=last))
                continue
            self._wrap(layer.cross_attn_image, self._attend)
            self._wrap(layer.self_attn, self._attend_itself)
            self._wrap(layer, partial(self._layer, first=first, last=last))

    def _wrap(self, module: Any, wrapper: Callable[..., Tensor]) -> None:
        """Put `wrapper(read, module, original, *args, **kwargs)` over a module's forward while a layout is set."""
        original = module.forward

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            read = _READ.get()
            if read is None or read.hook is not self:
                return original(*args, **kwargs)
            return wrapper(read, module, original, *args, **kwargs)

        self._wrappings.append(Wrapping(module))
        self._wrappings[-1].put("forward", types.MethodType(forward, module))

    def uninstall(self) -> None:
        """Put back what was there: the earlier instance attribute, or none."""
        for wrapping in self._wrappings:
            wrapping.undo()
        self._wrappings.clear()

    @contextlib.contextmanager
    def layout(self, layout: TokenLayout) -> Iterator[None]:
        """Attend by this layout for the duration of one read."""
        read = Read(self, layout)
        before = _READ.set(read)
        try:
            yield
            if layout.keep is not None and read.drawn is not None:
                layout.keep(read.drawn)
        finally:
            _READ.reset(before)

    def _layer(
        self,
        read: Read,
        layer: Any,
        original: Any,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
        *,
        first: bool,
        last: bool,
    ) -> Tensor:
        """Run a layer on the tokens that run: the first one picks them, the last one gives all tokens their change."""
        layout = read.layout
        if layout.queries is not None:
            if first:
                read.frame = tgt, layout.ask(tgt)
                read.positions = None if query_pos is None else layout.ask(query_pos)
                tgt = read.frame[1]
            query_pos = read.positions
        out: Tensor = original(
            tgt=tgt, memory=memory, pos=pos, query_pos=query_pos, num_k_exclude_rope=num_k_exclude_rope
        )
        return layout.spread(*read.frame, out) if last and read.frame is not None else out

    def _attend_itself(self, read: Read, module: Any, original: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        """Attend from the tokens that run to the tokens that run."""
        layout = read.layout
        if layout.queries is None:
            return original(q, k, v)
        self.own_calls += 1
        tables = self._phase_tables(module, layout, k.device)
        phases = layout.query_phases(tables)
        return self._attention(module, q, phases, layout.split(k), layout.split(v), layout.split(phases))

    # transformers: tokens are (B, 1, n, C), of one prompt; a layer gets no position encoding of the frame; attention
    # returns a pair. (models/sam2_video/modeling_sam2_video.py)

    def _layer_as_transformers(
        self, read: Read, layer: Any, original: Any, queries: Tensor, *, first: bool, last: bool, **rest: Any
    ) -> Tensor:
        layout = read.layout
        if layout.queries is not None and first:
            frame = queries.flatten(0, 1)
            read.frame = frame, layout.ask(frame)
            queries = read.frame[1][:, None]
        out: Tensor = original(queries=queries, **rest)
        return layout.spread(*read.frame, out.flatten(0, 1))[:, None] if last and read.frame is not None else out

    def _attend_itself_as_transformers(self, read: Read, module: Any, original: Any, **given: Any) -> Any:
        if read.layout.queries is None:
            return original(**given)
        q, k, v = (given[name].flatten(0, 1) for name in ("query", "key", "value"))
        return self._attend_itself(read, module, original, q, k, v)[:, None], None

    def _attend_as_transformers(
        self, read: Read, module: Any, original: Any, query: Tensor, key: Tensor, value: Tensor, **rest: Any
    ) -> Any:
        q, k, v = (tokens.flatten(0, 1) for tokens in (query, key, value))
        found = self._attend(read, module, original, q, k, v, rest.get("num_k_exclude_rope", 0), value)
        return found[:, None], None

    def _attend(
        self,
        read: Read,
        module: Any,
        original: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        num_k_exclude_rope: int = 0,
        memory: Tensor | None = None,
    ) -> Any:
        """Attend to memories by the layout.

        Tokens are averaged before the linear projections, which gives what averaging after them would, for less.
        `memory` is the object that every layer of a read gets as its values, where that is not `v`.
        """
        self.calls += 1
        layout, spatial = read.layout, k.shape[1] - num_k_exclude_rope
        if spatial != layout.spatial:
            raise RuntimeError(
                f"the host concatenated {spatial} spatial tokens, the layout describes {layout.spatial} "
                f"({len(layout.plans)} memories of {layout.grid}): describe the memories that the host is shown"
            )
        # Every layer of a read gets the same `memory` object as v and memory + pos as k (`MemoryAttention.forward`).
        tables = self._phase_tables(module, layout, k.device)
        memory = v if memory is None else memory
        if read.memories is None or read.memories[0] is not memory:
            read.memories = memory, layout.gather(layout.scaled(k)), layout.gather(v), layout.phases(tables)
        return self._attention(module, q, layout.query_phases(tables), *read.memories[1:], read=read)

    def _attention(
        self,
        module: Any,
        q: Tensor,
        turned: Tensor,
        keys: Mapping[int, Tensor],
        values: Mapping[int, Tensor],
        phases: Mapping[int, Tensor],
        read: Read | None = None,
    ) -> Any:
        """Attend from tokens to groups of keys; like the host's `RoPEAttention.forward` (modeling/sam/transformer.py).

        Args:
            module: The host's attention, whose projections are used.
            q: (B, n, C) tokens.
            turned: (B or 1, n, D/2) their phases.
            keys: Keys by the number of tokens that each stands for.
            values: Values likewise.
            phases: Phases likewise, of the first so many keys of each group.
            read: Where what the tokens watched draw is added up.
        """
        if module.training and module.dropout_p:
            raise RuntimeError("the predictor is in training mode: call predictor.eval() before tracking")
        rotary = Rotary(module)
        query = rotate(rotary.split(module.q_proj(q)), turned)
        groups = []
        for count in keys:
            key = rotary.split(module.k_proj(keys[count]))
            if count in phases:
                rotated = phases[count].shape[1]
                key[:, :, :rotated] = rotate(key[:, :, :rotated], phases[count])
            groups.append((count, key, rotary.split(module.v_proj(values[count]))))
        if read is not None and read.layout.watched is not None:
            layout = read.layout
            start = sum(part.tokens(layout.grid) for plan in layout.plans[: layout.watched] for part in plan)
            tokens = groups[0][1][:, :, start : start + layout.grid[0] * layout.grid[1]]
            asking = torch.stack([layout.of_each(head) for head in query.unbind(1)], dim=1)
            drawn = drawn_attention(asking, tokens, layout.grid)
            read.drawn = drawn if read.drawn is None else read.drawn + drawn
        return rotary.joined(attend(query, groups))

    def _phase_tables(self, module: Any, layout: TokenLayout, device: torch.device) -> dict[int, Tensor]:
        rotary = Rotary(module)
        tables = self._tables.setdefault((layout.grid, device, rotary.dim, rotary.theta), {})
        for size in {1, *layout.sizes}:
            if size not in tables:
                tables[size] = rotary_phases(layout.grid, size, rotary.dim, rotary.theta, device)
        return tables
