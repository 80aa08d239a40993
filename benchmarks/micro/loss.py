"""The micro model's losses, and tracking a batch of clips with gradients through SAM 2's own functions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.micro.data import Batch, prompt_frames

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def resize_model(model: Any, size: int) -> None:
    """Let a built model take frames of another size; parameters stay."""
    model.image_size = size
    model.sam_image_embedding_size = size // model.backbone_stride
    prompt = model.sam_prompt_encoder
    prompt.image_embedding_size = (size // 16, size // 16)
    prompt.input_image_size = (size, size)
    prompt.mask_input_size = (size // 4, size // 4)


def clicks(rng: np.random.Generator, masks: Tensor, box: bool | None = None) -> dict[str, Tensor]:
    """One click inside each mask (n, h, w), or a box around it, as SAM 2's point inputs."""
    box = rng.random() < 0.4 if box is None else box
    coords, labels = [], []
    for mask in masks:
        ys, xs = torch.nonzero(mask, as_tuple=True)
        if box:
            ends = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            shake = torch.from_numpy(rng.uniform(-0.05, 0.05, 4)).float() * (ends[2:] - ends[:2]).max()
            coords.append((ends + shake).view(2, 2).tolist())
            labels.append([2, 3])
        else:
            middle = torch.stack([xs.float().mean(), ys.float().mean()])
            spots = torch.from_numpy(rng.integers(0, len(xs), 4))
            far = (torch.stack([xs[spots], ys[spots]], 1).float() - middle).square().sum(1)
            near = int(spots[far.argmin()])
            coords.append([[float(xs[near]) + 0.5, float(ys[near]) + 0.5]])
            labels.append([1])
    return {
        "point_coords": torch.tensor(coords, dtype=torch.float32, device=masks.device),
        "point_labels": torch.tensor(labels, dtype=torch.int32, device=masks.device),
    }


def mask_loss(logits: Tensor, target: Tensor, even: float) -> Tensor:
    """Per mask (n, m): cross-entropy (plain and balanced) and soft dice; logits (n, m, h, w), target (n, 1, h, w).

    ``even`` weighs the class-balanced part: it keeps early masks from being empty, and makes late ones too wide.
    """
    raw = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    share = target.mean((2, 3), keepdim=True).clamp(min=0.01, max=0.99)
    balance = 0.5 * target / share + 0.5 * (1 - target) / (1 - share)
    chance = logits.sigmoid()
    overlap = (chance * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (chance.sum((2, 3)) + target.sum((2, 3)) + 1)
    return even * (raw * balance).mean((2, 3)) + (2.6 - even) * raw.mean((2, 3)) + dice


def frame_loss(raw: tuple[Tensor, ...], target: Tensor, spread: float, even: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one decoder call against masks (n, 1, h, w) at its resolution, and what to log."""
    logits, ious, _, score = raw
    area = target.sum((1, 2, 3))
    visible = area > 0
    sure = (~visible) | (area > 1.0)
    use = (area > 0.5).float()
    each = mask_loss(logits.float(), target, even)
    best = each.amin(1)
    with torch.no_grad():
        hard, truth = logits > 0, target > 0.5
        union = (hard | truth).sum((2, 3)).clamp(min=1)
        true_iou = (hard & truth).sum((2, 3)) / union
        chosen = true_iou.gather(1, ious.argmax(1, keepdim=True))[:, 0]
    mask = ((best + spread * each.mean(1)) * use).sum() / use.sum().clamp(min=1)
    quality = ((ious - true_iou).square().mean(1) * use).sum() / use.sum().clamp(min=1)
    weight = torch.where(visible, 1.0, 2.0) * sure
    presence = (F.binary_cross_entropy_with_logits(score[:, 0], visible.float(), reduction="none") * weight).mean()
    named = {"mask": mask, "quality": quality, "presence": presence, "iou": (chosen * use).sum(), "n": use.sum()}
    right = ((score[:, 0] > 0) == visible).float()
    named["hidden_ok"], named["hidden_n"] = right[~visible].sum(), (~visible).sum()
    return mask + 2.0 * quality + 0.5 * presence, {k: v.detach() for k, v in named.items()}


def match_loss(now: Tensor, then: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """How badly features alone carry a mask: ``now`` (q, n, c) looks up ``mask`` (k, n) among ``then`` (k, n, c).

    A direct lesson in telling the object by its looks, which the memory attention then builds on; ``target`` (q, n).
    """
    near = torch.einsum("qnc,knc->nqk", F.normalize(now, dim=-1), F.normalize(then, dim=-1)) / 0.07
    found = torch.einsum("nqk,kn->qn", near.softmax(-1), mask).clamp(1e-4, 1 - 1e-4)
    raw = F.binary_cross_entropy(found, target, reduction="none")
    share = target.mean(0).clamp(min=0.02, max=0.98)
    return (raw * (0.5 * target / share + 0.5 * (1 - target) / (1 - share))).mean()


@dataclass
class Prompted:
    """Objects that clicks and boxes are taught on, with the image features of their frames.

    Attributes:
        levels: (frames, C, h, w) half-precision features of each level, as `forward_image` returns them.
        masks: (objects, H, W) true masks.
        frame: (objects,) which frame each lies in.
    """

    levels: list[Tensor]
    masks: Tensor
    frame: Tensor


@torch.no_grad()
def prompted(model: Any, size: int, clips: int) -> Prompted:
    """Return the objects of four frames of so many training clips; none smaller than 0.6 % of its frame."""
    levels: list[list[Tensor]] = []
    masks, frame, count = [], [], 0
    for seed in range(clips):
        frames, ids = prompt_frames(seed, size)
        pixels = (torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255.0 - MEAN) / STD
        levels.append([level.half() for level in model.forward_image(pixels)["backbone_fpn"]])
        for row, number in itertools.product(range(len(ids)), (1, 2)):
            mask = ids[row] == number
            if mask.mean() > 0.006:
                masks.append(torch.from_numpy(mask))
                frame.append(count + row)
        count += len(ids)
    return Prompted([torch.cat(each) for each in zip(*levels, strict=True)], torch.stack(masks), torch.tensor(frame))


def run_prompts(
    model: Any, pool: Prompted, rng: np.random.Generator, count: int = 12, even: float = 0.6
) -> tuple[Tensor, str, float]:
    """Segment some objects from a click or from a box each; the mean loss, which of them, and the mean IoU."""
    chosen = torch.from_numpy(rng.integers(len(pool.frame), size=count))
    features = [level[pool.frame[chosen]].float() for level in pool.levels]
    places = [model.image_encoder.neck.position_encoding(level) for level in features]
    _, feats, spots, sizes = model._prepare_backbone_features({"backbone_fpn": features, "vision_pos_enc": places})
    masks = pool.masks[chosen].float()
    raw: list[tuple[Tensor, ...]] = []
    handle = model.sam_mask_decoder.register_forward_hook(lambda _m, _i, out: raw.append(out))
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    box = bool(rng.random() < 0.5)
    try:
        model._track_step(0, True, feats, spots, sizes, clicks(rng, masks, box), None, memory, 1, False, None)
    finally:
        handle.remove()
    loss, named = frame_loss(raw[-1], F.avg_pool2d(masks[:, None], 4), 0.05, even)
    return loss, "box" if box else "click", float(named["iou"] / named["n"])


def run_clips(
    model: Any,
    batch: Batch,
    rng: np.random.Generator,
    teach: float = 0.0,
    click: float = 0.0,
    spread: float = 0.0,
    even: float = 0.6,
) -> tuple[Tensor, dict[str, float]]:
    """Track every object of a batch with the model's own functions; the mean loss and sums for the log."""
    frames, clips, size = batch.frames, batch.frames.shape[1], batch.frames.shape[2]
    device = model.device
    count = frames.shape[0]
    pixels = frames.to(device).permute(0, 1, 4, 2, 3).flatten(0, 1).float() / 255.0
    pixels = ((pixels - MEAN.to(device)) / STD.to(device)).to(memory_format=torch.channels_last)
    masks = batch.masks.to(device).float()[:, :, None]
    small = F.avg_pool2d(masks.flatten(0, 1), 4).view(count, -1, 1, size // 4, size // 4)
    coarse = F.avg_pool2d(masks.flatten(0, 1), 16).view(count, masks.shape[1], -1).transpose(1, 2)
    features = model.forward_image(pixels)
    _, feats, places, sizes = model._prepare_backbone_features(features)
    raw: list[tuple[Tensor, ...]] = []
    handle = model.sam_mask_decoder.register_forward_hook(lambda _m, _i, out: raw.append(out))
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    total, sums = (
        torch.zeros((), device=device),
        dict.fromkeys(("mask", "quality", "presence", "iou", "n", "hidden_ok", "hidden_n", "match"), 0.0),
    )
    try:
        for row, index in enumerate(batch.index):
            rows = row * clips + batch.clip
            vision = [x[:, rows] for x in feats]
            spots = [x[:, rows] for x in places]
            first = row == 0
            points = clicks(rng, masks[0, :, 0]) if first and rng.random() < click else None
            prompt = masks[0] if first and points is None else None
            raw.clear()
            out, heads, _, _ = model._track_step(
                index, first, vision, spots, sizes, points, prompt, memory, 24, False, None
            )
            loss, named = frame_loss(raw[-1], small[row], spread, even)
            total = total + loss * (0.3 if prompt is not None else 1.0)
            high, score = heads[4], heads[6]
            if not first:
                before = sorted({0, row - 1})
                then = torch.cat([feats[-1][:, r * clips + batch.clip] for r in before])
                known = torch.cat([coarse[r] for r in before])
                match = match_loss(vision[-1].float(), then.float(), known, coarse[row])
                total = total + 0.5 * match
                sums["match"] += float(match.detach())
                for key, value in named.items():
                    sums[key] += float(value)
            if (not first or points is not None) and rng.random() < (0.7 if first else teach):
                high = masks[row] * 20 - 10
                score = torch.where(masks[row].amax((1, 2, 3))[:, None] > 0, 10.0, -10.0)
            out["obj_ptr"] = heads[5]
            if row + 1 < count:
                model._encode_memory_in_output(vision, sizes, points, True, high, score, out)
            memory["cond_frame_outputs" if first else "non_cond_frame_outputs"][index] = out
    finally:
        handle.remove()
    sums["frames"] = count - 1
    return total / count, sums
