"""Train the embedded micro SAM 2 on generated clips only.

    python benchmarks/train_micro.py --out .scratch/micro --stages 128:3000:8,256:1300:4

Every step's clips follow from the seed and the step's number, so a run that was interrupted resumes (same command) to
the same loss curve. ``--out`` holds ``last.pt`` (everything needed to resume), ``log.jsonl`` (a row every ten steps)
and, after ``--export``, the averaged weights as float16 safetensors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import multiprocessing as mp
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Full
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.micro import build_model
from sam2_keyframe.synthetic import CHALLENGES, make_clip

log = logging.getLogger("train_micro")
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
TRAIN_SEED = 1_000_000_000  # evaluation seeds stay below
CHECK_SEED = 500_000_000
WEIGHTS = {
    "static": 0.4,
    "deformation": 1.5,
    "fast": 3.0,
    "occlusion": 2.5,
    "leave_and_return": 2.5,
    "look_alike": 5.0,
    "long": 3.0,
}


@dataclass(frozen=True)
class Config:
    """What a run depends on; saved in its checkpoint."""

    stages: tuple[tuple[int, int, int], ...] = ((128, 3000, 8), (256, 1300, 4))  # size, steps, clips a step
    frames: int = 8
    pair: float = 0.5
    rate: float = 5e-4
    warmup: int = 100
    decay: float = 0.05
    average: float = 0.998
    seed: int = 0
    processes: int = 1

    @property
    def steps(self) -> int:
        return sum(stage[1] for stage in self.stages)

    def stage(self, step: int) -> tuple[int, int]:
        """The (size, clips) of a step."""
        for size, count, clips in self.stages:
            if step < count:
                return size, clips
            step -= count
        return self.stages[-1][0], self.stages[-1][2]


@dataclass
class Batch:
    """Clips of one step: frames (t, c, 3, h, w) normalised, masks (t, n, h, w) of 0 and 1, the clip of each object."""

    frames: Tensor
    masks: Tensor
    clip: Tensor
    index: list[int]


def make_batch(
    config: Config, step: int, first_seed: int = TRAIN_SEED, size: int | None = None, rank: int = 0
) -> Batch:
    """The clips of one step that process ``rank`` trains on, the same for the same arguments."""
    rng = np.random.default_rng([config.seed, first_seed, step, rank] if rank else [config.seed, first_seed, step])
    side, clips = config.stage(step)
    clips //= config.processes
    side = size or side
    gaps = rng.choice(
        [1, 2, 3, 5], config.frames - 1, p=[0.55, 0.25, 0.12, 0.08] if rng.random() < 0.6 else [1, 0, 0, 0]
    )
    times = np.concatenate([[0], np.cumsum(gaps)])
    weights = np.array([WEIGHTS.get(name, 1.0) for name in CHALLENGES])
    frames, masks, owner = [], [], []
    for number in range(clips):
        challenge = str(rng.choice(CHALLENGES, p=weights / weights.sum()))
        objects = 2 if rng.random() < config.pair else 1
        length = int(max(times[-1] + 1, rng.integers(12, 25)))
        start = 0 if rng.random() < 0.7 else int(rng.integers(0, length - times[-1]))
        clip = make_clip(
            challenge, first_seed + step * 64 + rank * clips + number, length, side, objects, times=list(times + start)
        )
        pixels, ids = clip.frames, clip.masks
        if rng.random() < 0.3:
            pixels, ids = pixels[::-1], ids[::-1]
        if rng.random() < 0.5:
            pixels, ids = pixels[:, :, ::-1], ids[:, :, ::-1]
        if rng.random() < 0.3:
            pixels, ids = pixels.swapaxes(1, 2), ids.swapaxes(1, 2)
        pixels = pixels[..., rng.permutation(3)] if rng.random() < 0.5 else pixels
        for number_of in range(1, objects + 1):
            mask = ids == number_of
            if mask[0].mean() > 0.006:
                masks.append(torch.from_numpy(np.ascontiguousarray(mask)))
                owner.append(number)
        frames.append(torch.from_numpy(np.ascontiguousarray(pixels)))
    if not masks:
        return make_batch(config, step + 1_000_000, first_seed, side, rank)
    index = list(range(config.frames)) if rng.random() < 0.6 else [int(t) for t in times]
    return Batch(torch.stack(frames, 1), torch.stack(masks, 1), torch.tensor(owner), index)


def _produce(config: Config, start: int, queue: Any) -> None:
    torch.set_num_threads(1)
    os.nice(2)
    parent = os.getppid()
    for step in range(start, config.steps):
        batch = make_batch(config, step)
        item = (batch.frames.numpy(), batch.masks.numpy(), batch.clip.numpy(), batch.index)
        while os.getppid() == parent:
            try:
                queue.put(item, timeout=5)
                break
            except Full:  # look whether the trainer lives, then wait on
                continue
        else:
            return


def batches(config: Config, start: int, rank: int = 0) -> Iterator[Batch]:
    """The batches from step ``start`` on; a single training process has them made ahead by another."""
    if config.processes > 1:
        for step in range(start, config.steps):
            yield make_batch(config, step, rank=rank)
        return
    queue: Any = mp.get_context("spawn").Queue(maxsize=24)
    process = mp.get_context("spawn").Process(target=_produce, args=(config, start, queue), daemon=True)
    process.start()
    try:
        for _ in range(start, config.steps):
            frames, masks, clip, index = queue.get(timeout=600)
            yield Batch(torch.from_numpy(frames), torch.from_numpy(masks), torch.from_numpy(clip), index)
    finally:
        process.terminate()


def resize_model(model: Any, size: int) -> None:
    """Let a built model take frames of another size; parameters stay."""
    model.image_size = size
    model.sam_image_embedding_size = size // model.backbone_stride
    prompt = model.sam_prompt_encoder
    prompt.image_embedding_size = (size // 16, size // 16)
    prompt.input_image_size = (size, size)
    prompt.mask_input_size = (size // 4, size // 4)


def clicks(rng: np.random.Generator, masks: Tensor) -> dict[str, Tensor]:
    """One click inside each mask (n, h, w), or a box around it, as SAM 2's point inputs."""
    box = rng.random() < 0.4
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


class Trainer:
    """Model, optimiser, average and step; saved and restored together."""

    def __init__(self, config: Config, out: Path, device: str = "cpu", rank: int = 0) -> None:
        torch.manual_seed(config.seed)
        self.config, self.out, self.device, self.rank = config, out, device, rank
        self.model: Any = build_model(config.stage(0)[0])
        torch.nn.init.constant_(self.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 2.0)
        self.model.to(device=device, memory_format=torch.channels_last).train()
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        heavy = [p for p in self.model.parameters() if p.ndim >= 2]
        groups = [{"params": heavy, "weight_decay": config.decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    def rate(self) -> float:
        """The learning rate of this step: warm-up, then a cosine to 2 %."""
        if self.step < self.config.warmup:
            return self.config.rate * (self.step + 1) / self.config.warmup
        part = (self.step - self.config.warmup) / max(1, self.config.steps - self.config.warmup)
        return self.config.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One update; returns what to log."""
        rng = np.random.default_rng([self.config.seed, 77, self.step, self.rank])
        resize_model(self.model, batch.frames.shape[2])
        part = min(1.0, self.step / 1500)
        even = 0.6 if self.step < 0.7 * self.config.steps else 0.1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            loss, sums = run_clips(self.model, batch, rng, 0.5 - 0.45 * part, 0.12, 0.3 - 0.25 * part, even)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.processes > 1:
            self._share_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if math.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            mine = self.model.state_dict()
            names = [k for k, v in mine.items() if v.is_floating_point()]
            torch._foreach_lerp_([self.average[k] for k in names], [mine[k] for k in names], 1 - keep)
        return {"loss": float(loss.detach()), "norm": norm, **sums}

    def _share_gradients(self) -> None:
        """Average the gradients over all processes."""
        parameters = list(self.model.parameters())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.reshape(-1) for g in grads])
        torch.distributed.all_reduce(flat)
        flat /= self.config.processes
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def check(self, size: int, count: int = 3) -> float:
        """Mean IoU of the averaged weights over frames of held-out clips where the object shows."""
        model: Any = build_model(size, initialise=False)
        model.load_state_dict(self.average)
        model.to(self.device).train()
        total, seen = 0.0, 0.0
        config = Config(((size, 1, 8),), frames=12, pair=0.0)
        with torch.no_grad():
            for number in range(count):
                batch = make_batch(config, number, CHECK_SEED, size)
                batch.index = list(range(12))
                _, sums = run_clips(model, batch, np.random.default_rng(number))
                total, seen = total + sums["iou"], seen + sums["n"]
        return total / max(1.0, seen)

    def save(self, path: Path) -> None:
        """Write everything needed to resume, atomically."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Restore what :meth:`save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = {k: v.clone() for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def export(average: dict[str, Tensor], path: Path) -> None:
    """Write weights as float16 safetensors."""
    from safetensors.torch import save_file

    save_file({k: v.detach().to("cpu", torch.float16).contiguous() for k, v in average.items()}, path)
    path.chmod(0o644)


def train(trainer: Trainer, save_every: float = 180.0, check_every: float = 1200.0) -> None:
    """Run to the end of the schedule; the first process logs every ten steps and saves."""
    if trainer.rank:
        for batch in batches(trainer.config, trainer.step, trainer.rank):
            trainer.train_step(batch)
        return
    out = trainer.out
    out.mkdir(parents=True, exist_ok=True)
    saved = checked = begun = time.monotonic()
    rows: list[dict[str, float]] = []
    with (out / "log.jsonl").open("a") as sink:
        for batch in batches(trainer.config, trainer.step):
            rows.append(trainer.train_step(batch))
            now = time.monotonic()
            trainer.seconds, begun = trainer.seconds + now - begun, now
            done = trainer.step >= trainer.config.steps
            if trainer.step % 10 == 0 or done:
                mean = {k: sum(r[k] for r in rows) for k in rows[0]}
                line = {
                    "step": trainer.step,
                    "loss": mean["loss"] / len(rows),
                    "iou": mean["iou"] / max(1.0, mean["n"]),
                    "hidden": mean["hidden_ok"] / max(1.0, mean["hidden_n"]),
                    "hidden_share": mean["hidden_n"] / max(1.0, mean["n"] + mean["hidden_n"]),
                    "mask": mean["mask"] / mean["frames"],
                    "quality": mean["quality"] / mean["frames"],
                    "presence": mean["presence"] / mean["frames"],
                    "match": mean["match"] / mean["frames"],
                    "norm": mean["norm"] / len(rows),
                    "rate": trainer.rate(),
                    "seconds": trainer.seconds,
                    "size": trainer.config.stage(trainer.step - 1)[0],
                }
                sink.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")
                sink.flush()
                log.info("%s", " ".join(f"{k} {v:.4g}" for k, v in line.items()))
                rows = []
            if now - saved > save_every or done:
                trainer.save(out / "last.pt")
                saved = now
            if now - checked > check_every or done:
                score = trainer.check(trainer.config.stage(trainer.step - 1)[0])
                log.info("step %d held-out mean IoU %.4f", trainer.step, score)
                sink.write(json.dumps({"step": trainer.step, "held_out_iou": round(score, 5)}) + "\n")
                checked = time.monotonic()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".scratch/micro"))
    parser.add_argument("--stages", default="128:3000:8,256:1300:4", help="size:steps:clips a step, comma-separated")
    parser.add_argument("--frames", type=int, default=8, help="frames a clip")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--processes", type=int, default=1, help="share each step's clips among so many, one thread each"
    )
    parser.add_argument("--start-from", type=Path, help="begin with the averaged weights of this checkpoint")
    parser.add_argument("--export", type=Path, help="only write the averaged weights of --out's checkpoint here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.export:
        export(torch.load(args.out / "last.pt", map_location="cpu", weights_only=True)["average"], args.export)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.processes == 1:
        work(0, args)
        return
    (args.out / "meet").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (args,), nprocs=args.processes)


def work(rank: int, args: argparse.Namespace) -> None:
    """One training process of ``args.processes``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.processes > 1:
        torch.set_num_threads(1)
        meet = f"file://{(args.out / 'meet').resolve()}"
        wait = datetime.timedelta(hours=6)
        torch.distributed.init_process_group("gloo", meet, wait, world_size=args.processes, rank=rank)
    triples = [part.split(":") for part in args.stages.split(",")]
    stages = tuple((int(size), int(count), int(clips)) for size, count, clips in triples)
    config = Config(stages, args.frames, rate=args.rate, seed=args.seed, processes=args.processes)
    trainer = Trainer(config, args.out, args.device, rank)
    if (args.out / "last.pt").is_file():
        trainer.load(args.out / "last.pt")
        log.info("resumed at step %d", trainer.step)
    elif args.start_from:
        state = torch.load(args.start_from, map_location="cpu", weights_only=True)["average"]
        trainer.model.load_state_dict(state)
        trainer.average = {k: v.clone() for k, v in state.items()}
    (args.out / f"pid{rank}").write_text(str(os.getpid()))
    train(trainer)


if __name__ == "__main__":
    main()
