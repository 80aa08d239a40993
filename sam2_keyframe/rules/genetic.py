"""Which few frames of a whole video stand for all of it. Non-causal: the future is looked at, so this is no tracker.

Track once, describe every frame, choose, track again with the chosen frames as keyframes (`Frames`). What that gives
is an upper reference for a given number of keyframes, and does not belong in one column with methods that decide as
the frames come.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

POPULATION, TOURNAMENT, ELITES, GENERATIONS = 24, 3, 2, 15
"""The genetic search: individuals, how many compete to be a parent, how many survive as they are, and rounds."""

EVALUATIONS = POPULATION + GENERATIONS * (POPULATION - ELITES)
"""How often the genetic search asks for a fitness."""

PENALTY = 0.1
"""What the share of chosen frames without the object takes from the fitness."""

BLOCK = 1024
"""Candidates that the greedy search compares with all frames at a time."""


def coverage(chosen: Sequence[int], descriptors: Tensor, visible: Sequence[bool] | None = None) -> float:
    """Return how well the chosen frames stand for all: the fitness that `choose_frames` looks for.

    For each frame the highest cosine of its descriptor to one of a chosen frame, summed over the frames, minus 0.1
    times the share of chosen frames on which the object is not visible.

    Args:
        chosen: Indices of the chosen frames, at least one.
        descriptors: (T, C) one descriptor a frame, of any float dtype and length; one of length 0 is like none.
        visible: Whether the object is visible on each of the T frames; None: on all.

    Raises:
        ValueError: An argument is not as above.

    Source: ours.
    """
    unit = _unit(descriptors)
    if not chosen or not all(0 <= idx < len(unit) for idx in chosen):
        raise ValueError(f"chosen={tuple(chosen)!r}: give at least one frame, each from 0 to {len(unit) - 1}")
    return _fitness(chosen, unit, _hidden(visible, len(unit)))


def choose_frames(
    descriptors: Tensor,
    visible: Sequence[bool] | None = None,
    count: int = 5,
    search: Literal["greedy", "genetic"] = "greedy",
    seed: int = 0,
) -> tuple[int, ...]:
    """Return the `count` frames, in ascending order, that best stand for all frames by `coverage`. Non-causal.

    `"greedy"` adds the frame that gains most, one at a time. Where the object is visible on all frames, its coverage
    is at least 1 - 1/e (63 %) of the best possible if no cosine is negative, and its coverage + T is in any case.
    `"genetic"` breeds sets of frames: 24 of them, each child
    of two winners of tournaments of three, each frame from either parent and replaced with a random one with
    probability 1 / `count`, the best two kept; 15 generations. A genetic result is worth reporting where it beats the
    greedy one.

    Args:
        descriptors: (T, C) one descriptor a frame, such as its memory features averaged inside the mask.
        visible: Whether the object is visible on each of the T frames; None: on all.
        count: Frames chosen, at least 1; all frames where there are no more.
        search: How they are looked for.
        seed: Of the genetic search; the same seed gives the same frames.

    Raises:
        ValueError: An argument is not as above.

    Source: ours; greedy facility location after Nemhauser, Wolsey and Fisher (1978).
    """
    unit = _unit(descriptors)
    hidden = _hidden(visible, len(unit))
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count!r}: must be a whole number of at least 1")
    if search not in ("greedy", "genetic"):
        raise ValueError(f"search={search!r}: choose 'greedy' or 'genetic'")
    if count >= len(unit):
        return tuple(range(len(unit)))
    return _greedy(unit, hidden, count) if search == "greedy" else _genetic(unit, hidden, count, random.Random(seed))


def _greedy(unit: Tensor, hidden: Tensor, count: int) -> tuple[int, ...]:
    best = torch.full((len(unit),), -1.0)
    chosen: list[int] = []
    for _ in range(count):
        gains = torch.cat([(unit @ block.T - best[:, None]).clamp(min=0).sum(0) for block in torch.split(unit, BLOCK)])
        gains -= PENALTY / count * hidden
        gains[chosen] = -torch.inf
        chosen.append(int(gains.argmax()))
        best = best.maximum(unit @ unit[chosen[-1]])
    return tuple(sorted(chosen))


def _genetic(unit: Tensor, hidden: Tensor, count: int, draw: random.Random) -> tuple[int, ...]:
    def rated(frames: list[int]) -> tuple[float, list[int]]:
        return _fitness(frames, unit, hidden), sorted(frames)

    def child(first: list[int], second: list[int]) -> list[int]:
        frames: list[int] = []
        for pair in zip(first, second, strict=True):
            frame = draw.randrange(len(unit)) if draw.random() < 1 / count else draw.choice(pair)
            while frame in frames:
                frame = draw.randrange(len(unit))
            frames.append(frame)
        return frames

    population = [rated(draw.sample(range(len(unit)), count)) for _ in range(POPULATION)]
    for _ in range(GENERATIONS):
        parents = [max(draw.sample(population, TOURNAMENT))[1] for _ in range(2 * (POPULATION - ELITES))]
        children = [rated(child(*pair)) for pair in zip(parents[::2], parents[1::2], strict=True)]
        population = sorted(population, reverse=True)[:ELITES] + children
    return tuple(max(population)[1])


def _fitness(chosen: Sequence[int], unit: Tensor, hidden: Tensor) -> float:
    places = list(chosen)
    return float((unit @ unit[places].T).amax(1).sum() - PENALTY * hidden[places].mean())


def _unit(descriptors: Tensor) -> Tensor:
    if descriptors.ndim != 2 or not len(descriptors):
        raise ValueError(f"descriptors of shape {tuple(descriptors.shape)}: give (T, C), one row a frame")
    if not bool(descriptors.isfinite().all()):
        rows = (~descriptors.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(f"the descriptors of frames {rows[:5]} are not finite: leave those frames out")
    return normalize(descriptors.detach().float().cpu(), dim=1)


def _hidden(visible: Sequence[bool] | None, frames: int) -> Tensor:
    if visible is None:
        return torch.zeros(frames)
    if len(visible) != frames:
        raise ValueError(f"visible has {len(visible)} entries for {frames} frames: give one a frame")
    return torch.tensor([not seen for seen in visible], dtype=torch.float32)
