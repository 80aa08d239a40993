"""Objects in one batch: what stock tracks one by one is stored, attended and handed out as rows of one computation.

Every part of SAM 2 is independent over the batch. Only memory attention asks for more: all rows have as many memories,
tokens and pointers. So each object's read is put together by the host itself, and those of one form are then attended
to together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import TokenLayout
from sam2_keyframe.bank.bank import Tracking
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.patches.wrapping import WithSettings

BY_OBJECT = ("current_vision_feats", "current_vision_pos_embeds")
"""Arguments of the read that have the objects in their second dimension."""

PARTS = ("maskmem_features", "pred_masks", "obj_ptr", "object_score_logits")
"""What a stored frame consists of, an object a row."""


@dataclass(slots=True, eq=False)
class Tracked:
    """One object's frame that was tracked with others', until the host's own call for the object takes it up.

    Attributes:
        entry: What the host stores of it.
        masks: (1, 1, H/4, W/4) mask logits.
        tracking: What is to be finished; None where the object was not tracked: it is absent, or was corrected.
        seconds: Its share of the time.
    """

    entry: Any
    masks: Tensor
    tracking: Tracking | None = None
    seconds: float = 0.0


AHEAD: ContextVar[dict[int, Tracked] | None] = ContextVar("objects tracked with others of their frame", default=None)
"""Set while SAM 2 goes through the objects of one frame, by the `id` of their frames; None: one by one."""


@dataclass(slots=True, eq=False)
class Read:
    """One object's read, put together by the host.

    Attributes:
        run: Returns the (1, C, h, w) features that memory attention makes of it.
        layout: Which tokens are attended to; None: all, by the host's own attention.
        given: What memory attention is called with, once `ask` has run.
    """

    run: Callable[..., Tensor]
    layout: TokenLayout | None
    given: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        original: Callable[..., Tensor],
        call: Mapping[str, Any],
        layout: TokenLayout | None,
        settings: Mapping[str, Any],
    ) -> Read:
        """Return the read that the host's method `original` makes of a call, under some settings of the predictor."""

        def run(**more: Any) -> Tensor:
            bound = WithSettings.bind(original, **settings, **more) if settings or more else original
            return bound(**call)

        return cls(run, layout)

    def alone(self, hook: AttentionHook | None) -> Tensor:
        """Return the (1, C, h, w) features of the object."""
        with attending(hook, self.layout):
            return self.run()

    def ask(self) -> Mapping[str, Any]:
        """Return what memory attention would be called with; it is not run."""

        def take(**given: Any) -> Tensor:
            self.given = given
            tokens: Tensor = given["curr"][-1]
            return tokens

        self.run(memory_attention=take)
        if self.given is None:
            raise RuntimeError("the host read memories without calling its memory attention: leave out batch_objects")
        return self.given

    @property
    def form(self) -> tuple[object, ...]:
        """What must be equal for two reads to be attended to together."""
        given = self.given or {}
        shapes = [(name, *(_form(value) for value in _parts(given[name]))) for name in sorted(given)]
        return *shapes, None if self.layout is None else self.layout.form


def attend_together(reads: Sequence[Read], attention: Callable[..., Tensor], hook: AttentionHook | None) -> Tensor:
    """Return the (B, C, HW) features of all objects, those of one form attended to in one batch.

    Args:
        reads: The objects'.
        attention: The host's memory attention.
        hook: What attends by a layout.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, read in enumerate(reads):
        read.ask()
        groups.setdefault(read.form, []).append(row)
    fused: list[Tensor] = [torch.empty(0)] * len(reads)
    for rows in groups.values():
        given = [reads[row].given or {} for row in rows]
        layouts = [layout for row in rows if (layout := reads[row].layout) is not None]
        with attending(hook, TokenLayout.together(layouts) if layouts else None):
            tokens = attention(**{name: _together([one[name] for one in given]) for name in given[0]})
        for row, feature in zip(rows, tokens.unbind(1), strict=True):
            fused[row] = feature
    return torch.stack(fused).transpose(1, 2)


def attending(hook: AttentionHook | None, layout: TokenLayout | None) -> contextlib.AbstractContextManager[None]:
    """Return the block in which memory attention goes by a layout, where there is one."""
    return contextlib.nullcontext() if hook is None or layout is None else hook.layout(layout)


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _form(value: Any) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value


def _together(values: Sequence[Any]) -> Any:
    """Return one argument of memory attention for several objects, which are its second dimension."""
    first = values[0]
    if isinstance(first, list | tuple):
        return [_together(each) for each in zip(*values, strict=True)]
    if not isinstance(first, Tensor):
        return first
    if all(value.data_ptr() == first.data_ptr() for value in values):  # the frame is the same for all of them
        return first.expand(-1, len(values), -1)
    return torch.cat(list(values), dim=1)


def split(entry: Mapping[str, Any], count: int, own: bool) -> list[Entry]:
    """Return the `count` objects' entries of a batch; `own` ones are no slices of it."""
    parts: list[Entry] = []
    for i in range(count):
        part: Entry = {key: None if entry[key] is None else entry[key][i : i + 1] for key in PARTS}
        encoding = entry["maskmem_pos_enc"]
        part["maskmem_pos_enc"] = None if encoding is None else [x[i : i + 1] for x in encoding]
        parts.append(part)
    if own and count > 1:
        for part in parts:
            part.update(copied(part))
    return parts


def copied(entry: Mapping[str, Any]) -> Entry:
    """Return copies of what is stored of a frame."""
    features, pointer = entry["maskmem_features"], entry["obj_ptr"]
    if pointer.is_cuda and features is not None and not features.is_cuda:  # the host's copy to the CPU may be under way
        torch.cuda.current_stream(pointer.device).synchronize()
    return {key: entry[key].clone() for key in PARTS if entry[key] is not None}
