"""Train the embedded micro SAM 2 on generated clips only.

    python -m benchmarks.micro.train --out .scratch/micro --stages 128:3000:8,256:1300:4

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
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.micro.data import CHECK_SEED, TRAIN_SEED, Batch, Config, batches, make_batch
from benchmarks.micro.loss import Prompted, prompted, resize_model, run_clips, run_prompts
from sam2_keyframe.micro import build_model

POOL = 150
"""Training clips that clicks and boxes are taught on, four frames each."""

log = logging.getLogger("micro.train")

__all__ = ["CHECK_SEED", "TRAIN_SEED", "Batch", "Config", "Trainer", "export", "make_batch", "run_clips", "train"]


class Trainer:
    """Model, optimiser, average and step; saved and restored together."""

    def __init__(self, config: Config, out: Path, device: str = "cpu", rank: int = 0) -> None:
        torch.manual_seed(config.seed)
        self.config, self.out, self.device, self.rank = config, out, device, rank
        self.model: Any = build_model(config.stage(0)[0])
        torch.nn.init.constant_(self.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 2.0)
        self.model.to(device=device, memory_format=torch.channels_last).train()
        if config.freeze:
            for part in (self.model.image_encoder, *self.convolutions()):
                part.requires_grad_(False)
        self.pool: Prompted | None = None
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        heavy = [p for p in self.model.parameters() if p.ndim >= 2]
        groups = [{"params": heavy, "weight_decay": config.decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    def convolutions(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """What `forward_image` puts behind the image encoder."""
        return self.model.sam_mask_decoder.conv_s0, self.model.sam_mask_decoder.conv_s1

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
        part = min(1.0, (self.step + self.config.begun) / 1500)
        even = 0.6 if self.step + self.config.begun < 0.7 * self.config.steps else 0.1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            loss, sums = run_clips(self.model, batch, rng, 0.5 - 0.45 * part, 0.12, 0.3 - 0.25 * part, even)
        norm = self._update(loss)
        for _ in range(self.config.prompts):
            kind, value = self._prompt(rng)
            sums[kind] = sums.get(kind, 0.0) + value
            sums[f"{kind}_n"] = sums.get(f"{kind}_n", 0.0) + 1
        self.step += 1
        return {"loss": float(loss.detach()), "norm": norm, **sums}

    def _prompt(self, rng: np.random.Generator) -> tuple[str, float]:
        """One update that teaches a kind of prompt; which, and the mean IoU before it."""
        if self.pool is None:
            file = self.out / "pool.pt"
            if not file.is_file():
                torch.save(vars(prompted(self.model, self.config.stage(0)[0], POOL)), file)
            self.pool = Prompted(**torch.load(file, weights_only=True))
        loss, kind, value = run_prompts(self.model, self.pool, rng)
        self._update(loss)
        return kind, value

    def _update(self, loss: Tensor) -> float:
        """Follow the gradient of a loss once; its norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.processes > 1:
            self._share_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if math.isfinite(norm):
            self.optimizer.step()
        keep = min(self.config.average, (2 + self.step) / (11 + self.step))
        with torch.no_grad():
            mine = self.model.state_dict()
            names = [k for k, v in mine.items() if v.is_floating_point()]
            torch._foreach_lerp_([self.average[k] for k in names], [mine[k] for k in names], 1 - keep)
        return norm

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
                mean = {k: sum(r.get(k, 0.0) for r in rows) for k in dict.fromkeys(k for r in rows for k in r)}
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
                line |= {name: mean[name] / mean[f"{name}_n"] for name in ("click", "box") if name in mean}
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
    parser.add_argument("--start-from", type=Path, help="begin with the averaged weights of this checkpoint or package")
    parser.add_argument("--begun", type=int, default=0, help="steps those weights have behind them")
    parser.add_argument("--away", type=float, default=0.0, help="share of clips with long absences")
    parser.add_argument("--prompts", type=int, default=0, help="updates a step that teach clicks and boxes alone")
    parser.add_argument("--average", type=float, default=0.998, help="share of the averaged weights kept each step")
    parser.add_argument("--warmup", type=int, default=100, help="steps until the full rate")
    parser.add_argument("--freeze", action="store_true", help="leave the image encoder as it is")
    parser.add_argument("--alone", action="store_true", help="make the clips in this process, not ahead in another")
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


def _weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, or those of a safetensors file, as float32."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {name: value.float() for name, value in load_file(path).items()}
    return dict(torch.load(path, map_location="cpu", weights_only=True)["average"])


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
    config = Config(
        stages,
        args.frames,
        rate=args.rate,
        average=args.average,
        warmup=args.warmup,
        freeze=args.freeze,
        seed=args.seed,
        processes=args.processes,
        begun=args.begun,
        away=args.away,
        prompts=args.prompts,
        alone=args.alone,
    )
    trainer = Trainer(config, args.out, args.device, rank)
    if (args.out / "last.pt").is_file():
        trainer.load(args.out / "last.pt")
        log.info("resumed at step %d", trainer.step)
    elif args.start_from:
        state = _weights(args.start_from)
        trainer.model.load_state_dict(state)
        trainer.average = {k: v.clone() for k, v in state.items()}
    (args.out / f"pid{rank}").write_text(str(os.getpid()))
    train(trainer)


if __name__ == "__main__":
    main()
