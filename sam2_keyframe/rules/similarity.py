"""How alike a frame is to the memories held: what eviction and retrieval rules ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from sam2_keyframe.scorers._common import check_range, in_float32
from sam2_keyframe.scorers.features import describe, pooled
from sam2_keyframe.types import Held, TrackedFrame


def _unknown(frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
    return torch.full((len(held),), math.nan, device=frame.pred_masks.device)


def _cosines(now: Tensor, held: Sequence[Held], key: str) -> Tensor:
    """Return the cosine of a (C,) descriptor with each memory's under `key`; NaN where a memory has none."""
    found = [memory.reference.get(key) if memory.reference else None for memory in held]
    blank = torch.full_like(now, math.nan)
    vectors = torch.stack([blank if vector is None else vector for vector in found] or [blank])[: len(held)]
    return (normalize(vectors.float(), dim=1) * normalize(now.float(), dim=0)).sum(1)  # no product in TF32


@dataclass(frozen=True)
class CellCosine:
    """Cosine of the memory features' channels cell by cell, averaged over the grid; in [-1, 1].

    Restores every memory that is held in compressed form.

    Source: Surgical SAM 2 (arXiv 2408.07931), which sums over the cells where this averages: the same order.
    """

    def describe(self, frame: TrackedFrame) -> None:
        """Keep nothing: the memory itself is compared."""

    @in_float32
    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
        """Return the (len(held),) mean cosines."""
        grids = torch.cat([memory.features() for memory in held]).float()
        return (normalize(grids) * normalize(frame.maskmem_features.float())).sum(1).mean((1, 2))


@dataclass(frozen=True)
class DescriptorCosine:
    """Cosine of the memory features averaged inside the mask, wherever in the frame that is; in [-1, 1].

    Over the whole frame where the mask is empty. A memory without descriptors (adopted in mid-video) is NaN: the mask
    that its average needs is not at hand.

    Source: ours.
    """

    def describe(self, frame: TrackedFrame) -> None:
        """Keep the (C_mem,) float32 average under `object/descriptor`."""
        frame.describe("object/descriptor", lambda: pooled(frame.maskmem_features, frame.pred_masks, True))

    @in_float32
    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
        """Return the (len(held),) cosines."""
        self.describe(frame)
        return _cosines(frame.kept["object/descriptor"], held, "object/descriptor")


@dataclass(frozen=True)
class PrototypeCosine:
    """Cosine of the image embedding averaged inside the mask, wherever in the frame that is; in [-1, 1].

    0 where a mask is empty. NaN on a frame without an image embedding, and with a memory without descriptors (adopted
    in mid-video).

    Source: the prototype of SAMITE (arXiv 2507.21732).
    """

    def describe(self, frame: TrackedFrame) -> None:
        """Keep the (C,) float32 average under `object/image`."""
        describe(frame, "image")

    @in_float32
    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
        """Return the (len(held),) cosines."""
        prototype = describe(frame, "image")
        return _unknown(frame, held) if prototype is None else _cosines(prototype, held, "object/image")


@dataclass(frozen=True)
class ImageCosine:
    """Cosine of the whole frame's image embedding, averaged over side x side parts; in [-1, 1].

    Known before the frame's memory is made, and the same for all objects. Kept as unit vectors in half precision
    (side² · C · 2 bytes a frame). NaN on a frame without an image embedding.

    Attributes:
        side: Parts along each side of the frame, at least 1.

    Source: ours.
    """

    side: int = 8

    def __post_init__(self) -> None:
        check_range(self, "side", 1, whole=True)

    def describe(self, frame: TrackedFrame) -> None:
        """Keep the (side² · C,) float16 unit vector under `frame/embedding/<side>`, once for all objects."""
        grid = frame.image_embed
        if grid is None:
            return

        def make() -> Tensor:
            return normalize(adaptive_avg_pool2d(grid.float(), self.side).flatten(), dim=0).half()

        frame.shared.describe(f"frame/embedding/{self.side}", make)

    @in_float32
    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
        """Return the (len(held),) cosines."""
        self.describe(frame)
        key = f"frame/embedding/{self.side}"
        return _cosines(frame.shared.kept[key], held, key) if key in frame.shared.kept else _unknown(frame, held)


@dataclass(frozen=True)
class AttentionShare:
    """Share of the attention that goes to each memory, among those compared: in [0, 1], 1 in all.

    A stand-in for SAM 2's own: see `attention_shares`. NaN where SAM 2 is not at hand. Restores every memory that is
    held in compressed form.

    Source: ours, after RMem's relevance (arXiv 2406.08476).
    """

    def describe(self, frame: TrackedFrame) -> None:
        """Keep nothing: the memory itself is compared."""

    @in_float32
    def relate(self, frame: TrackedFrame, held: Sequence[Held]) -> Tensor:
        """Return the (len(held),) shares."""
        if frame.attention is None:
            return _unknown(frame, held)
        shares = frame.attention([memory.features() for memory in held]).float()
        return shares / shares.sum()


def attention_shares(queries: Tensor, keys: Tensor) -> Tensor:
    """Return how much of the queries' attention goes to each memory.

    Args:
        queries: (q, C) projected queries.
        keys: (n, k, C) projected keys of n memories.

    Returns:
        (n,) float32 in [0, 1], 1 in all: softmax over all keys of the scaled dot products, summed a memory, averaged
        over the queries.

    Source: scaled dot-product attention (A. Vaswani et al., 2017), one head.
    """
    logits = (keys.flatten(0, 1).float() @ queries.float().T) / math.sqrt(queries.shape[-1])
    shares: Tensor = logits.view(*keys.shape[:2], -1).logsumexp(1).softmax(0).mean(1)
    return shares


def foreground_queries(image_embed: Tensor, pred_masks: Tensor, count: int = 64) -> tuple[Tensor, Tensor]:
    """Return the image features where the object is most certain.

    Args:
        image_embed: (1, C, h, w) features.
        pred_masks: (1, 1, H, W) mask logits of any resolution.
        count: How many; all h · w where there are fewer.

    Returns:
        (q, C) features, and their (q,) int64 positions counted row by row; of equal logits the first, so that an
        empty mask gives the first cells.
    """
    height, width = image_embed.shape[-2:]
    logits = adaptive_avg_pool2d(pred_masks[0].float(), (height, width)).flatten()
    chosen = logits.argsort(descending=True, stable=True)[:count]
    return image_embed[0].flatten(1).T[chosen], chosen


RELATIONS: dict[str, type] = {
    "attention_share": AttentionShare,
    "cell_cosine": CellCosine,
    "descriptor_cosine": DescriptorCosine,
    "image_cosine": ImageCosine,
    "prototype_cosine": PrototypeCosine,
}
"""Every relation by name."""
