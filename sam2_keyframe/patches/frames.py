"""Tracked frames, made from what SAM 2 has at hand."""

from __future__ import annotations

import functools
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.attention.maths import rotary_phases, rotate
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.patches.attention import Rotary
from sam2_keyframe.rules.similarity import attention_shares, foreground_queries
from sam2_keyframe.types import FrameMemo, TrackedFrame

SCORING_SIZE = 256


Colours = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET: Colours = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB in [0, 1] by which SAM 2 normalises."""


def scoring_image(image: Tensor, colours: Colours = IMAGENET) -> Tensor:
    """Return (3, h, w) RGB in [0, 1], at most 256 on a side, from (1, 3, S, S) as the model's host normalises it."""
    mean, std = _normalisation(colours, image.device)
    if image.shape[-1] > SCORING_SIZE:
        image = F.interpolate(image, size=(SCORING_SIZE, SCORING_SIZE), mode="area")
    return (image[0].float() * std + mean).clamp(0, 1)


class Frames:
    """Makes the frames that scorers look at.

    Args:
        predictor: The predictor.
        places: Whether the tokens of a memory have places in the image, as `AttentionShare` takes for granted.
    """

    def __init__(self, predictor: Any, places: bool = True) -> None:
        self.predictor = predictor
        self._places = places
        self._phases: dict[tuple[int, int, torch.device], Tensor] = {}

    def shared(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[FrameMemo, Tensor]:
        """Return what the scorers of all objects share on a frame, and its image features."""
        image, backbone = state["cached_features"][frame_idx]
        known = state.get(KEY)
        if known is None or known[0] is not image:
            state[KEY] = known = image, FrameMemo(functools.partial(scoring_image, image))
        return known[1], backbone["backbone_fpn"][-1]

    def prompt(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[FrameMemo, Tensor]:
        """Return the same of a prompted frame, its pixels at scoring resolution alone: many may wait for each other."""
        memo, image_embed = self.shared(state, frame_idx)
        image = memo.image
        return FrameMemo(lambda: image), image_embed

    def tracked(
        self,
        state: MutableMapping[str, Any],
        frame_idx: int,
        entry: Mapping[str, Any],
        encoded: Mapping[str, Any],
        masks: Tensor,
        candidates: Tensor,
        ious: Tensor,
    ) -> TrackedFrame:
        """Return a frame that SAM 2 has just tracked.

        Args:
            state: The inference state.
            frame_idx: Index of the frame.
            entry: What SAM 2 will store of it.
            encoded: The model's output, still on its device.
            masks: (1, 1, H/4, W/4) mask logits on the device.
            candidates: (1, K, H/4, W/4) the decoder's candidates.
            ious: (1, K) its estimates.
        """
        memo, image_embed = self.shared(state, frame_idx)
        features, pointer, score = encoded["maskmem_features"], entry["obj_ptr"], entry["object_score_logits"]
        attention = None
        if self._places:
            attention = functools.partial(self._attention, image_embed, masks, entry["maskmem_pos_enc"])
        return TrackedFrame(frame_idx, image_embed, features, masks, candidates, ious, pointer, score, memo, attention)

    def prompted(
        self, frame_idx: int, entry: Mapping[str, Any], shared: tuple[FrameMemo, Tensor | None] | None
    ) -> TrackedFrame | None:
        """Return a frame that the user prompted; None when its pixels are not at hand."""
        if shared is None:
            return None
        memo, image_embed = shared
        device = self.predictor.device
        masks, features = entry["pred_masks"].to(device), entry["maskmem_features"].to(device)
        pointer, score = entry["obj_ptr"], entry["object_score_logits"]
        return TrackedFrame(frame_idx, image_embed, features, masks, masks, masks.new_ones(1, 1), pointer, score, memo)

    def adopted(self, state: Mapping[str, Any], frame_idx: int, entry: Mapping[str, Any]) -> TrackedFrame | None:
        """Return a prompted frame that was encoded before the predictor was wrapped, if its pixels are still there."""
        try:
            image = state["images"][frame_idx]
        except (KeyError, IndexError):
            return None
        memo = FrameMemo(functools.partial(scoring_image, image.to(self.predictor.device).float()[None]))
        return self.prompted(frame_idx, entry, (memo, None))

    def _attention(
        self, image_embed: Tensor, masks: Tensor, encoding: Sequence[Tensor], memories: Sequence[Tensor]
    ) -> Tensor:
        """Return the shares (n,) of attention that the object pays to memories: a proxy.

        The first layer's projections and rotary phases alone, the object's strongest positions as queries, without
        self-attention, the temporal code and the layers after (sam2/modeling/memory_attention.py).
        """
        layer = self.predictor.memory_attention.layers[0]
        cross, device = layer.cross_attn_image, image_embed.device
        height, width = image_embed.shape[-2:]
        if (height, width, device) not in self._phases:
            rotary = Rotary(cross)
            phases = rotary_phases((height, width), 1, rotary.dim, rotary.theta, device)
            self._phases[height, width, device] = phases[None]
        phases = self._phases[height, width, device]
        queries, index = foreground_queries(image_embed.float(), masks)
        memory = torch.cat([features.to(device).float() for features in memories]) + encoding[-1].float()
        dtype = cross.q_proj.weight.dtype
        norm = layer.norm2 if hasattr(layer, "norm2") else layer.layer_norm2
        query = cross.q_proj(norm(queries.to(dtype)))[None, None]
        key = cross.k_proj(memory.to(dtype).flatten(2).transpose(1, 2))[:, None]
        return attention_shares(rotate(query, phases[:, index])[0, 0], rotate(key, phases)[:, 0])


@functools.cache
def _normalisation(colours: Colours, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a model's input, made once: making them waits for the device."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in colours)
    return mean, std
