"""Choosing frames with the whole video at hand."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_keyframe.rules import genetic as offline
from sam2_keyframe.rules.filters import Frames
from sam2_keyframe.rules.genetic import EVALUATIONS, choose_frames, coverage
from sam2_keyframe.types import FrameRecord


def scenes(seed: int, *lengths: int, noise: float = 0.3) -> torch.Tensor:
    """Return descriptors of a clip of scenes: within one they vary around a vector of its own."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(lengths), 16, generator=rng)
    frames = centres.repeat_interleave(torch.tensor(lengths), 0)
    return frames + noise * torch.randn(frames.shape, generator=rng)


UNEVEN = scenes(3, 60, 5, 4, 30, 6)
"""Five scenes: frames spread evenly over time miss the short ones."""

EVENLY = (10, 31, 52, 73, 94)


def test_coverage_by_hand() -> None:
    """Frames at 0, 60 and 90 degrees: cosines 1 and 1/2 to the first, 1/2, 1 and sqrt(3)/2 to the second."""
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
    descriptors = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [7.0], [0.1]])
    assert coverage([0], descriptors) == pytest.approx(1.5, abs=1e-6)
    assert coverage([1], descriptors) == pytest.approx(1.5 + 3**0.5 / 2, abs=1e-6)
    assert coverage([0, 1], descriptors) == pytest.approx(2 + 3**0.5 / 2, abs=1e-6)
    assert coverage([0, 1], descriptors, [False, True, True]) == pytest.approx(2 + 3**0.5 / 2 - 0.05, abs=1e-6)
    assert coverage([0, 2], descriptors.double(), [False] * 3) == pytest.approx(2 + 3**0.5 / 2 - 0.1, abs=1e-6)
    assert coverage([0, 1], torch.zeros(4, 3)) == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 9999), frames=st.integers(2, 10), count=st.integers(1, 4), positive=st.booleans())
def test_greedy_is_near_the_best_there_is(seed: int, frames: int, count: int, positive: bool) -> None:
    """At least 1 - 1/e of the best of all subsets, measured from the coverage of nothing (a cosine of -1, or 0)."""
    descriptors = torch.randn(frames, 3, generator=torch.Generator().manual_seed(seed))
    descriptors = descriptors.abs() if positive else descriptors
    count = min(count, frames)
    best = max(coverage(subset, descriptors) for subset in itertools.combinations(range(frames), count))
    reached = coverage(choose_frames(descriptors, count=count), descriptors)
    nothing = 0 if positive else -frames
    assert reached - nothing >= (1 - 1 / math.e) * (best - nothing) - 1e-4


def test_greedy_works_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = choose_frames(UNEVEN)
    monkeypatch.setattr(offline, "BLOCK", 16)
    assert choose_frames(UNEVEN) == whole


@pytest.mark.parametrize("search", ["greedy", "genetic"])
@pytest.mark.parametrize("seed", range(4))
def test_both_beat_frames_spread_evenly(search: str, seed: int) -> None:
    descriptors = scenes(seed, 60, 5, 4, 30, 6)
    chosen = choose_frames(descriptors, search=search)  # type: ignore[arg-type]
    assert coverage(chosen, descriptors) > coverage(EVENLY, descriptors) + 1


def test_greedy_takes_one_frame_of_every_scene() -> None:
    descriptors = scenes(3, 60, 5, 4, 30, 6, noise=0.1)
    scene = torch.arange(5).repeat_interleave(torch.tensor([60, 5, 4, 30, 6]))
    assert sorted(scene[idx].item() for idx in choose_frames(descriptors)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_genetic_beats_as_many_random_tries(seed: int) -> None:
    """The best of 354 random sets, drawn with five other seeds, is never better."""
    draw = random.Random(100 + seed)
    tries = [draw.sample(range(len(UNEVEN)), 5) for _ in range(EVALUATIONS)]
    chosen = choose_frames(UNEVEN, search="genetic", seed=seed)
    assert coverage(chosen, UNEVEN) >= max(coverage(frames, UNEVEN) for frames in tries)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[int]]]:
    """Every set of frames that a search asks about, with its fitness, in order."""
    seen: list[tuple[float, list[int]]] = []
    fitness = offline._fitness

    def watched(chosen: list[int], *rest: torch.Tensor) -> float:
        seen.append((fitness(chosen, *rest), list(chosen)))
        return seen[-1][0]

    monkeypatch.setattr(offline, "_fitness", watched)
    return seen


def test_genetic_goes_by_its_rules(asked: list[tuple[float, list[int]]]) -> None:
    """The best set ever seen is never lost, better parents are preferred, and about one frame in five is random."""
    gained, fresh = [], []
    for seed in range(5):
        asked.clear()
        chosen = choose_frames(UNEVEN, search="genetic", seed=seed)
        assert len(asked) == EVALUATIONS == 24 + 15 * 22
        assert all(len(set(frames)) == 5 for _, frames in asked)
        assert list(chosen) == sorted(max(asked)[1])
        rounds = [asked[:24], *(asked[i : i + 22] for i in range(24, EVALUATIONS, 22))]
        means = [sum(fitness for fitness, _ in sets) / len(sets) for sets in rounds]
        gained.append(sum(means[-5:]) / 5 - means[0])
        for before, sets in itertools.pairwise(rounds[8:]):
            known = {frame for _, frames in before for frame in frames}
            fresh.append(sum(frame not in known for _, frames in sets for frame in frames) / (22 * 5))
    assert sum(gained) / 5 > 2  # 5 to 6 with tournaments of three, about 0 with parents drawn at random
    assert 0.05 < sum(fresh) / len(fresh) < 0.2  # a random frame may be a known one


def test_genetic_is_the_same_for_the_same_seed() -> None:
    runs = [choose_frames(UNEVEN, search="genetic", seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_of_equal_frames_the_visible_one_is_chosen() -> None:
    """Twenty frames of four kinds; the object is visible on one of each kind only."""
    descriptors = torch.eye(4).repeat(5, 1)
    visible = [idx in (1, 10, 15, 16) for idx in range(20)]
    assert choose_frames(descriptors, visible, 4) == (1, 10, 15, 16)
    bred = choose_frames(descriptors, visible, 4, "genetic")
    assert coverage(bred, descriptors, visible) > 20 - 0.1  # every kind, and not all of them hidden


@given(frames=st.integers(1, 12), count=st.integers(1, 14), search=st.sampled_from(["greedy", "genetic"]))
@settings(max_examples=30)
def test_as_many_frames_as_asked_for(frames: int, count: int, search: str) -> None:
    chosen = choose_frames(torch.ones(frames, 2), None, count, search)  # type: ignore[arg-type]
    assert len(set(chosen)) == min(count, frames)
    assert list(chosen) == sorted(chosen)
    keep = Frames(chosen)
    assert [idx for idx in range(frames) if keep.accept(FrameRecord(idx), [])] == list(chosen)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"descriptors": torch.ones(3)}, r"shape \(3,\)"),
        ({"descriptors": torch.ones(0, 4)}, r"shape \(0, 4\)"),
        ({"descriptors": torch.tensor([[1.0], [math.nan]])}, r"frames \[1\] are not finite"),
        ({"visible": [True]}, "1 entries for 6 frames"),
        ({"count": 0}, "count=0: must be a whole number"),
        ({"search": "exhaustive"}, "choose 'greedy' or 'genetic'"),
    ],
)
def test_bad_arguments(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_frames(**{"descriptors": torch.ones(6, 2), **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", [[], [6], [-1]])
def test_coverage_of_frames_that_are_not_there(chosen: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 5"):
        coverage(chosen, torch.ones(6, 2))
