"""The hook into SAM 2's memory attention: fewer tokens of chosen memories, by a layout set for one read."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
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


class AttentionHook:
    """Wraps the cross-attention to memories on a predictor's instances.

    While no layout is set, the host's own attention runs. In use::

        hook = AttentionHook(predictor)
        hook.install()
        with hook.layout(reading.layout):  # as `plan_reading` made it
            ...  # the host's _prepare_memory_conditioned_features
        hook.uninstall()

    Attributes:
        calls: How often the per-key attention ran, one a layer and read.
        predictor: The predictor.

    Raises:
        TypeError: The predictor's memory attention is not SAM 2's rotary attention.
        RuntimeError: The predictor compiles its memory attention.
    """

    def __init__(self, predictor: Any) -> None:
        name = type(predictor).__name__
        if any(cls.__name__ == "SAM2VideoPredictorVOS" for cls in type(predictor).__mro__):
            raise RuntimeError(
                f"{name} compiles its memory attention for fixed shapes: use attend=Whole() with it, or build the "
                "predictor with vos_optimized=False"
            )
        layers = getattr(getattr(predictor, "memory_attention", None), "layers", ())
        modules = [getattr(layer, "cross_attn_image", None) for layer in layers]
        if not modules or any(type(m).__name__ != "RoPEAttention" for m in modules):
            raise TypeError(f"{name} has no rotary memory attention as in SAM 2: use attend=Whole() with it")
        self.predictor = predictor
        self.calls = 0
        self._modules: list[Any] = modules
        self._wrappings: list[Wrapping] = []
        self._layout: TokenLayout | None = None
        self._tables: dict[tuple[tuple[int, int], torch.device], dict[int, Tensor]] = {}
        self._drawn: Tensor | None = None  # by the tokens watched, in the layers of this read so far
        self._read: tuple[Tensor, dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]] | None = None

    def install(self) -> None:
        """Wrap every layer's cross-attention; does nothing when it is wrapped already."""
        if self._wrappings:
            return
        for module in self._modules:
            self._wrappings.append(Wrapping(module))
            self._wrappings[-1].put("forward", types.MethodType(self._wrapped(module.forward), module))

    def uninstall(self) -> None:
        """Put back what was there: the earlier instance attribute, or none."""
        for wrapping in self._wrappings:
            wrapping.undo()
        self._wrappings.clear()

    @contextlib.contextmanager
    def layout(self, layout: TokenLayout) -> Iterator[None]:
        """Attend by this layout for the duration of one read."""
        self._layout = layout
        try:
            yield
            if layout.keep is not None and self._drawn is not None:
                layout.keep(self._drawn)
        finally:
            self._layout = self._read = self._drawn = None

    def _wrapped(self, original: Any) -> Any:
        def forward(module: Any, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Any:
            if self._layout is None:
                return original(q, k, v, num_k_exclude_rope=num_k_exclude_rope)
            self.calls += 1
            return self._attend(module, self._layout, q, k, v, num_k_exclude_rope)

        return forward

    def _attend(self, module: Any, layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor, pointers: int) -> Any:
        """Attend by the layout; like the host's `RoPEAttention.forward` (sam2/modeling/sam/transformer.py).

        Tokens are averaged before the linear projections, which gives what averaging after them would, for less.
        """
        if k.shape[1] - pointers != layout.spatial:
            raise RuntimeError(
                f"the host concatenated {k.shape[1] - pointers} spatial tokens, the layout describes {layout.spatial} "
                f"({len(layout.plans)} memories of {layout.grid}): describe the memories that the host is shown"
            )
        if module.training and module.dropout_p:
            raise RuntimeError("the predictor is in training mode: call predictor.eval() before tracking")
        # Every layer of a read gets the same `memory` object as v and memory + pos as k (`MemoryAttention.forward`).
        tables = self._phase_tables(module, layout, k.device)
        if self._read is None or self._read[0] is not v:
            self._read = v, layout.gather(k), layout.gather(v), layout.phases(tables)
        _, keys, values, phases = self._read
        query = rotate(module._separate_heads(module.q_proj(q), module.num_heads), tables[1][None])
        groups = []
        for count in keys:
            key = module._separate_heads(module.k_proj(keys[count]), module.num_heads)
            if count in phases:
                turned = phases[count].shape[1]
                key[:, :, :turned] = rotate(key[:, :, :turned], phases[count])
            groups.append((count, key, module._separate_heads(module.v_proj(values[count]), module.num_heads)))
        if layout.watched is not None:
            start = sum(part.tokens(layout.grid) for plan in layout.plans[: layout.watched] for part in plan)
            tokens = groups[0][1][:, :, start : start + layout.grid[0] * layout.grid[1]]
            drawn = drawn_attention(query, tokens, layout.grid)
            self._drawn = drawn if self._drawn is None else self._drawn + drawn
        return module.out_proj(module._recombine_heads(attend(query, groups)))

    def _phase_tables(self, module: Any, layout: TokenLayout, device: torch.device) -> dict[int, Tensor]:
        tables = self._tables.setdefault((layout.grid, device), {})
        for size in {1, *layout.sizes} - tables.keys():
            dim, theta = module.internal_dim // module.num_heads, module.compute_cis.keywords["theta"]
            tables[size] = rotary_phases(layout.grid, size, dim, theta, device)
        return tables
