"""Several paths through a video instead of one: which of their candidate masks go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sam2_keyframe._checks import check_number, check_whole, short_repr


@dataclass(frozen=True)
class Branch:
    """A path that goes on with one of its candidate masks.

    Attributes:
        parent: Position of the path among those that were.
        mask: Position of the candidate.
        score: Sum over the frames of the logarithm of the predicted IoU of the mask chosen.
        places: Which of the paths it stands for: equal ones are one branch.
    """

    parent: int
    mask: int
    score: float
    places: tuple[int, ...] = (0,)


@dataclass(frozen=True, repr=False)
class Tree:
    """Paths with memories of their own, of which the likeliest go on at each frame.

    Every path is tracked with its own memories and has three candidate masks; each scores as the path does + log of its
    predicted IoU. On a frame where SAM 2 is sure, the best go on; on others the best of those whose predicted IoUs
    differ. Equal paths are tracked once, so that a video on which SAM 2 is sure costs what one path does.

    Attributes:
        paths: How many, at least 1.
        sure: SAM 2 is sure where the object score of some path is farther than this from 0, at least 0.
        lag: How many frames later masks are shown in the loop over the frames, as the path has them that is the best by
            then; 0: at once.

    Source: SAM2Long (Ding et al. 2410.16268; Mark12Ding/SAM2Long, CC-BY-NC-4.0: the rule was read, no code taken). 2 is
    the bound of its published commands, 1 its default. There: one object, forward, masks after the last frame, equal
    paths tracked each by itself, nothing let go.
    """

    paths: int = 3
    sure: float = 2.0
    lag: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole(self, "paths")
        check_number(self, "sure", low=0, high=1e9)
        check_whole(self, "lag", least=0)

    __repr__ = short_repr

    def grow(
        self,
        parents: Sequence[tuple[float, Sequence[int]]],
        ratings: Sequence[Sequence[float]],
        scores: Sequence[float],
    ) -> list[Branch]:
        """Return the branches that go on, the best first; equal ones as one.

        Args:
            parents: Each path's score and the places of the equal paths it stands for, 0 to `paths` - 1 in all.
            ratings: The predicted IoUs of each path's candidate masks.
            scores: The object score of each path.
        """
        at = {place: i for i, (_, places) in enumerate(parents) for place in places}
        every = [
            (parents[at[place]][0] + math.log(rating + 1e-5), place, at[place], j)
            for place in sorted(at)
            for j, rating in enumerate(ratings[at[place]])
        ]
        every.sort(key=lambda candidate: -candidate[0])
        if max(map(abs, scores)) > self.sure:
            chosen = every[: self.paths]
        else:
            chosen, seen = [], set[float]()
            for candidate in every:
                _, _, i, j = candidate
                value = round(ratings[i][j] if scores[i] > 0 else -ratings[i][j], 2)
                if value not in seen and len(chosen) < self.paths:
                    chosen.append(candidate)
                    seen.add(value)
            gone = sorted(at.keys() - {place for _, place, _, _ in chosen})
            spare = [next(candidate for candidate in every if candidate[1] == place) for place in gone]
            chosen += spare[: self.paths - len(chosen)]
        found: dict[tuple[int, int], Branch] = {}
        for place, (score, _, i, j) in enumerate(chosen):
            known = found.get((i, j))
            found[i, j] = Branch(i, j, score, (place,) if known is None else (*known.places, place))
        return sorted(found.values(), key=lambda branch: -branch.score)


TREES: dict[str, type] = {"tree": Tree}
"""Trees by name."""
