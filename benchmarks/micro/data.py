"""The clips that train the micro model: a step's batch follows from the configuration and the step's number."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Full
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_keyframe.synthetic import ABSENCES, CHALLENGES, make_clip

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
    begun: int = 0
    """Steps that the weights it starts from have behind them."""
    away: float = 0.0
    """Share of clips in which the object is away for 6 to 20 frames."""
    prompts: int = 0
    """Updates a step that teach clicks and boxes alone, from kept image features; they ask for `freeze`."""
    freeze: bool = False
    """Leave the image encoder and the convolutions behind it as they are."""
    alone: bool = False
    """Make the clips in the training process."""

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


def prompt_frames(seed: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Four frames (4, h, w, 3) of one training clip with two objects, and their ids (4, h, w), to teach prompts on."""
    rng = np.random.default_rng([TRAIN_SEED, seed, 9])
    challenge = str(rng.choice([name for name in CHALLENGES if name != "scene_cut"]))
    clip = make_clip(challenge, TRAIN_SEED + 200_000_000 + seed, 24, size, 2, times=[0, 7, 14, 21])
    return clip.frames[..., rng.permutation(3)], clip.masks


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
        back = 0.3
        if config.away and rng.random() < config.away:
            challenge, back = str(rng.choice(ABSENCES)), 0.0
            start, length = int(rng.integers(8, 17)), max(48, int(times[-1]) + 17)
        clip = make_clip(
            challenge,
            first_seed + step * 64 + rank * clips + number,
            length,
            side,
            objects,
            times=list(times + start),
            absences=(6, 30),
        )
        pixels, ids = clip.frames, clip.masks
        if rng.random() < back:
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
    if not masks:  # no object that is large enough in its first frame
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
    if config.processes > 1 or config.alone:
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
