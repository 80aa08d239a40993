"""The hook into SAM 2's memory attention: fewer tokens of chosen memories, by a layout set for one read."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import (
    Attend,
    Foveated,
    Plan,
    SalientTokens,
    TokenLayout,
    Whole,
    attend,
    drawn_attention,
    rotary_phases,
    rotate,
    scheme_for,
)
from sam2_keyframe.patches.wrapping import Wrapping
from sam2_keyframe.types import Memory, Moment


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


def read_layout(
    attend: Attend,
    view: Mapping[str, Mapping[int, Mapping[str, Any]]],
    selected: Sequence[int],
    memories: Sequence[Memory],
    moment: Moment,
    grid: tuple[int, int],
    plans: MutableMapping[int, Plan],
    device: torch.device,
) -> TokenLayout:
    """Return the layout of one read: the newest memory whole, prompted ones as the scheme says, the rest by it.

    The newest is that of the nearest past frame, tracked or prompted.

    Args:
        attend: The scheme.
        view: The `output_dict` that SAM 2 is shown.
        selected: The conditioning frames that it reads, in its order.
        memories: What of it is tracked frames; the rest is prompted ones.
        moment: The frame being tracked.
        grid: (h, w) of a memory.
        plans: What was planned before, by frame; what is planned now is added. Whoever keeps the memories keeps it.
        device: Where attention runs.

    Raises:
        ValueError: The scheme's windows do not divide the grid.
    """
    tracked = {id(memory.entry["maskmem_features"]): memory for memory in memories}
    entries = shown_memories(view, selected, moment)
    shown = [(t, entry, tracked.get(id(entry["maskmem_features"]))) for t, entry in entries]
    frames = [t if memory is None else memory.frame_idx for t, _, memory in shown]
    known = [idx for idx in frames if idx is not None]
    newest = min(known, key=lambda idx: (not moment.past(idx), abs(moment.distance(idx))), default=None)
    layout = []
    for idx, (_, entry, memory) in zip(frames, shown, strict=True):
        scheme = scheme_for(attend, conditioning=memory is None, newest=idx is not None and idx == newest)
        layout.append(_plan(scheme, idx, entry, grid, plans, device))
    unmeasured = {memory.frame_idx for memory in memories} - plans.keys()
    if not isinstance(attend, SalientTokens) or newest is None or newest not in unmeasured:
        return TokenLayout(grid, tuple(layout))

    def keep(drawn: Tensor) -> None:
        plans[newest] = attend.plan(grid, drawn=drawn)

    return TokenLayout(grid, tuple(layout), frames.index(newest), keep)


def _plan(
    scheme: Attend,
    frame_idx: int | None,
    entry: Mapping[str, Any],
    grid: tuple[int, int],
    plans: MutableMapping[int, Plan],
    device: torch.device,
) -> Plan:
    known = None if frame_idx is None or scheme == Whole() else plans.get(frame_idx)
    if known is not None:
        return known
    if not isinstance(scheme, Foveated):
        return scheme.plan(grid)  # of salient tokens, a memory that was never the newest
    plan = scheme.plan(grid, entry["pred_masks"].to(device, non_blocking=True))
    if frame_idx is not None:
        plans[frame_idx] = plan
    return plan


class AttentionHook:
    """Wraps the cross-attention to memories on a predictor's instances.

    While no layout is set, the host's own attention runs. In use::

        hook = AttentionHook(predictor)
        hook.install()
        with hook.layout(read_layout(scheme, view, selected, memories, moment, grid, plans, device)):
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
