"""The hook into SAM 2's memory attention: fewer tokens of chosen memories, by a layout set for one read."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sam2_keyframe.attention import (
    Attend,
    Plan,
    SalientTokens,
    TokenLayout,
    attend,
    drawn_attention,
    rotary_phases,
    rotate,
    scheme_for,
)
from sam2_keyframe.patches.wrapping import Wrapping
from sam2_keyframe.types import Moment


def shown_memories(
    view: Mapping[str, Mapping[int, Mapping[str, Any]]], selected: Sequence[int], moment: Moment
) -> list[tuple[int, Mapping[str, Any]]]:
    """Return (frame index, entry) of every spatial memory in the order in which SAM 2 concatenates them.

    Conditioning frames first, then the slots from the one farthest back to the newest; entries of zero tokens are left
    out (`_prepare_memory_conditioned_features` in sam2/modeling/sam2_base.py).

    Args:
        view: The `output_dict` that SAM 2 is shown.
        selected: The conditioning frames that it reads, in the order of its `select_closest_cond_frames`.
        moment: The frame being tracked.
    """
    cond, tracked = view["cond_frame_outputs"], view["non_cond_frame_outputs"]
    found: list[tuple[int, Mapping[str, Any] | None]] = [(t, cond[t]) for t in selected]
    for code in reversed(range(moment.slots)):
        t = moment.slot(code)
        found.append((t, tracked.get(t, None if t in selected else cond.get(t))))
    return [(t, entry) for t, entry in found if entry is not None and entry["maskmem_features"].shape[2]]


class AttentionHook:
    """Wraps the cross-attention to memories on a predictor's instances.

    While no layout is set, the host's own attention runs. In use::

        hook = AttentionHook(predictor)
        hook.install()
        with hook.layout(hook.read_layout(scheme, view, selected, prompts, moment, grid)):
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
        self._plans: Any = WeakIdKeyDictionary()  # a memory's mask logits -> (scheme, grid, its plan)
        self._drawn: Any = WeakIdKeyDictionary()  # a memory's object score -> what its tokens drew as the newest
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

    def read_layout(
        self,
        attend: Attend,
        view: Mapping[str, Mapping[int, Mapping[str, Any]]],
        selected: Sequence[int],
        prompts: Container[int],
        moment: Moment,
        grid: tuple[int, int],
        newest: Tensor | None = None,
    ) -> TokenLayout:
        """Return the layout of one read: the newest memory whole, prompted ones as the scheme says, the rest by it.

        Args:
            attend: The scheme.
            view: The `output_dict` that SAM 2 is shown.
            selected: The conditioning frames that it reads, in its order.
            prompts: Indices of frames that the user prompted; others among the conditioning frames are keyframes.
            moment: The frame being tracked.
            grid: (h, w) of a memory.
            newest: The newest memory's features, wherever the view shows it; None: that of the last slot.

        Raises:
            ValueError: The scheme's windows do not divide the grid.
        """
        memories = shown_memories(view, selected, moment)
        last = len(memories) - 1 if len(memories) > sum(t in selected for t, _ in memories) else None
        if newest is not None:
            last = next((i for i, (_, entry) in enumerate(memories) if entry["maskmem_features"] is newest), None)
        plans = []
        for i, (t, entry) in enumerate(memories):
            scheme = scheme_for(attend, conditioning=t in prompts, newest=i == last)
            if isinstance(scheme, SalientTokens):
                plans.append(scheme.plan(grid, drawn=self._drawn.get(entry["object_score_logits"])))
            else:
                plans.append(self._plan(scheme, grid, entry["pred_masks"]))
        watched = None
        if isinstance(attend, SalientTokens) and last is not None:
            watched = memories[last][1]["object_score_logits"]  # neither moved nor shown with another memory
        return TokenLayout(grid, tuple(plans), watched)

    def _plan(self, scheme: Attend, grid: tuple[int, int], mask: Tensor) -> Plan:
        known = self._plans.get(mask)
        if known is None or known[:2] != (scheme, grid):
            known = scheme, grid, scheme.plan(grid, mask.to(self.predictor.device, non_blocking=True))
            self._plans[mask] = known
        plan: Plan = known[2]
        return plan

    @contextlib.contextmanager
    def layout(self, layout: TokenLayout) -> Iterator[None]:
        """Attend by this layout for the duration of one read."""
        self._layout, self._read = layout, None
        try:
            yield
        finally:
            self._layout = self._read = None

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
            whole, size = groups[0][1], layout.grid[0] * layout.grid[1]
            newest = whole[:, :, whole.shape[2] - pointers - size : whole.shape[2] - pointers]
            drawn = drawn_attention(query, newest, layout.grid)
            self._drawn[layout.watched] = self._drawn.get(layout.watched, 0) + drawn
        return module.out_proj(module._recombine_heads(attend(query, groups)))

    def _phase_tables(self, module: Any, layout: TokenLayout, device: torch.device) -> dict[int, Tensor]:
        tables = self._tables.setdefault((layout.grid, device), {})
        for size in {1, *layout.sizes} - tables.keys():
            dim, theta = module.internal_dim // module.num_heads, module.compute_cis.keywords["theta"]
            tables[size] = rotary_phases(layout.grid, size, dim, theta, device)
        return tables
