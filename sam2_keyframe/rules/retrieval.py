"""Retrieval: which of the keyframes held are attended to, where there are more than SAM 2 has slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sam2_keyframe._checks import check_relation, check_whole
from sam2_keyframe.conditions import ask, check_rule
from sam2_keyframe.rules.eviction import similarities
from sam2_keyframe.rules.filters import Always
from sam2_keyframe.rules.similarity import CellCosine, ImageCosine, PrototypeCosine
from sam2_keyframe.scorers._common import without_autocast
from sam2_keyframe.scorers.features import describe
from sam2_keyframe.types import FrameRecord, KeyframeFilter, Moment, Reference, Relation, TrackedFrame

FloatArray: TypeAlias = npt.NDArray[np.float64]


@runtime_checkable
class Select(Protocol):
    """Chooses among the keyframes held.

    Attributes:
        chooses: Whether it takes more than the nearest: then more keyframes may be held than there are slots.
        on_device: Whether it chooses by `relevance` on the device; `choose` is not asked then.
    """

    chooses: ClassVar[bool]
    on_device: ClassVar[bool]

    def choose(
        self, held: Sequence[FrameRecord], newest: FrameRecord | None, count: int, moment: Moment, prompts: int
    ) -> Sequence[FrameRecord]:
        """Return at most `count` of `held`; `prompts` conditioning frames and the newest frame are read besides."""
        ...

    def describe(self, frame: TrackedFrame) -> None:
        """Keep what a later choice needs to know of a frame."""
        ...


class Choice:
    """What every rule shares."""

    chooses: ClassVar[bool] = True
    on_device: ClassVar[bool] = False

    def describe(self, frame: TrackedFrame) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class Nearest(Choice):
    """The nearest in time."""

    chooses: ClassVar[bool] = False

    def choose(
        self, held: Sequence[FrameRecord], newest: FrameRecord | None, count: int, moment: Moment, prompts: int
    ) -> Sequence[FrameRecord]:
        """Return the `count` nearest, nearest first."""
        return sorted(held, key=lambda record: moment.distance(record.frame_idx))[:count]


@dataclass(frozen=True)
class DropRedundant(Choice):
    """The nearest, without those most like the newest frame; of equals the farther ones are left out.

    The newest frame was compared with the memories when it was tracked, so that no further number has to come to the
    host. Nothing is left out while fewer than `at_least` memories are attended to, prompts and the newest included.

    Attributes:
        drop: Memories that are left out, at least 1.
        at_least: Memories from which on some are left out, at least 1.
        relation: What measures how alike two memories are.
        in_reach: Whether memories farther than SAM 2 itself looks are left out first.

    Source: Surgical SAM 2 (Liu et al. 2408.07931), inference only. There the first memory and the last are exempt,
    whatever they are; here every prompt and the newest frame, which are not among the keyframes held.
    """

    drop: int = 2
    at_least: int = 7
    relation: Relation = CellCosine()  # noqa: RUF009 - relations are frozen
    in_reach: bool = False

    def __post_init__(self) -> None:
        """Check the numbers and the relation."""
        check_whole(self, "drop", "at_least")
        check_relation(self, self.relation)

    def choose(
        self, held: Sequence[FrameRecord], newest: FrameRecord | None, count: int, moment: Moment, prompts: int
    ) -> Sequence[FrameRecord]:
        """Return at most `count` of the nearest, nearest first."""
        near = Nearest().choose(held, newest, count, moment, prompts)
        if self.in_reach:
            near = [record for record in near if moment.distance(record.frame_idx) <= moment.reach]
        if newest is None or len(near) + 1 + prompts < self.at_least:
            return near
        places = range(len(near))
        alike = [_known(newest.similarity.get(record.frame_idx, math.nan)) for record in near]
        stay = sorted(sorted(places, key=alike.__getitem__)[: max(len(near) - self.drop, 0)])
        return [near[i] for i in stay]


@dataclass(frozen=True)
class MostAlike(Choice):
    """Those most like the newest trustworthy frame and the object's first prompt together.

    The newest trustworthy frame is always read; the others go by weight x their likeness to it + (1 - weight) x their
    likeness to the first prompt. Prompts and all others together are at most `num_maskmem`. A keyframe that was never
    compared comes last; of equals, the nearest first.

    Attributes:
        weight: Share of the newest trustworthy frame, in [0, 1].
        when: Which newest frame is trustworthy; where it is not, the nearest keyframe takes its part.
        relation: What measures how alike two frames are.

    Source: SAMITE (arXiv 2507.21732).
    """

    weight: float = 0.3
    when: KeyframeFilter = Always()  # noqa: RUF009 - frozen
    relation: Relation = PrototypeCosine()  # noqa: RUF009 - relations are frozen

    def __post_init__(self) -> None:
        """Check the choices."""
        if not 0 <= self.weight <= 1:
            raise ValueError(f"MostAlike(weight={self.weight!r}): choose a number from 0 to 1")
        check_rule(self.when, "MostAlike")
        check_relation(self, self.relation)

    def choose(
        self, held: Sequence[FrameRecord], newest: FrameRecord | None, count: int, moment: Moment, prompts: int
    ) -> Sequence[FrameRecord]:
        """Return at most `count`: the nearest where the newest frame is not trustworthy, then the most alike."""
        near = Nearest().choose(held, newest, len(held), moment, prompts)
        count = min(count, max(moment.slots - prompts, 1))  # with the newest frame and the prompts, num_maskmem
        if not near or newest is None:
            return near[:count]
        trusted = newest not in near and ask(self.when, newest, ())
        kept, latest, rest = ([], newest, near) if trusted else (near[:1], near[0], near[1:])
        first = latest.frame_idx + (latest.offset if moment.reverse else -latest.offset)

        def alike(record: FrameRecord) -> float:
            now, then = latest.similarity.get(record.frame_idx), record.similarity.get(first)
            return self.weight * _cosine(now) + (1 - self.weight) * _cosine(then)

        return [*kept, *sorted(rest, key=alike, reverse=True)][:count]


@dataclass(frozen=True)
class Reconstruct(Choice):
    """Those of which the newest frame's descriptor is made up: a sparse sum of theirs, with weights of at least 0.

    Minimises 1/2 |x - D g|^2 + lambda sum(g) over g >= 0, where x is the unit descriptor of the newest frame and D
    has those of the keyframes held as columns; attended to are the keyframes of g > 0, the largest first. Where g is
    0 everywhere, the nearest. The newest frame stands for the current one, and all that is needed are cosines, which
    the records have. A keyframe that the newest frame was not compared with is left out.

    Attributes:
        weight: lambda as a share of the largest of D'x, at least 0; at 1 and more nothing is left.
        passes: Most keyframes taken up one by one while g is found, at least 1. g is exact when fewer are needed.
        relation: The cosine of the descriptors.

    Source: after Nazemi et al. 2309.15274, who choose frames for tuning a network so; read in the abstract only. The
    problem's form and constants are ours, the solver is that of Lawson and Hanson (1974).
    """

    weight: float = 0.1
    passes: int = 50
    relation: Relation = ImageCosine()  # noqa: RUF009 - relations are frozen

    def __post_init__(self) -> None:
        """Check the numbers and the relation."""
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Reconstruct(weight={self.weight!r}): must be a number of at least 0")
        check_whole(self, "passes")
        check_relation(self, self.relation)

    def choose(
        self, held: Sequence[FrameRecord], newest: FrameRecord | None, count: int, moment: Moment, prompts: int
    ) -> Sequence[FrameRecord]:
        """Return at most `count`, the one of the largest weight first."""
        compared = {} if newest is None else newest.similarity
        columns = [r for r in held if not math.isnan(compared.get(r.frame_idx, math.nan))]
        toward = np.array([compared[record.frame_idx] for record in columns])
        gram = np.array(similarities(columns)).reshape(len(columns), len(columns))
        gram[np.isneginf(gram)] = 0.0  # never compared: taken as unrelated
        weights = nonnegative(gram, toward - self.weight * np.abs(toward).max(initial=0.0), self.passes)
        chosen = [columns[i] for i in np.argsort(-weights, kind="stable") if weights[i] > 0][:count]
        return chosen or Nearest().choose(held, newest, count, moment, prompts)


@dataclass(frozen=True)
class Relevant(Choice):
    """Those of which some place of the current frame is the most like: chosen on the device, before it is tracked.

    A keyframe is described by the mean of the image embedding inside its mask. Its relevance is the highest cosine
    of that to a cell of the current frame's embedding, wherever it is, so that an object that comes back elsewhere
    is found.

    Source: ours.
    """

    on_device: ClassVar[bool] = True

    def choose(
        self, held: Sequence[FrameRecord], newest: FrameRecord | None, count: int, moment: Moment, prompts: int
    ) -> Sequence[FrameRecord]:
        """Return the nearest: host numbers tell nothing of the current frame."""
        return Nearest().choose(held, newest, count, moment, prompts)

    def describe(self, frame: TrackedFrame) -> None:
        """Keep the frame's mean image embedding inside the mask, (C,) float32 under `object/image`."""
        describe(frame, "image")

    def relevance(self, image_embed: Tensor, references: Sequence[Reference]) -> Tensor:
        """Return how relevant each memory is to a frame, (len(references),) float32 on its device, in [-1, 1].

        Reads nothing on the host.

        Args:
            image_embed: (1, C, h, w) embedding of the frame about to be tracked, of any float dtype.
            references: What describes the memories; -inf for one without a description, 0 for an empty mask.
        """
        device = image_embed.device
        with without_autocast(device):
            cells = normalize(image_embed[0].float().flatten(1), dim=0)
            nothing = torch.full((cells.shape[0],), math.nan, device=device)
            kept = [reference.get("object/image") for reference in references]
            rows = [nothing if vector is None else vector.to(device).float() for vector in kept]
            if not rows:
                return torch.empty(0, device=device)
            relevance = (normalize(torch.stack(rows), dim=1) @ cells).amax(1)
            return torch.where(relevance.isnan(), -math.inf, relevance)


def nonnegative(gram: FloatArray, toward: FloatArray, passes: int) -> FloatArray:
    """Return g >= 0 that minimises 1/2 g'Gg - toward'g, by taking up one column at a time.

    Args:
        gram: (n, n) symmetric, positive semi-definite, with a diagonal of 1.
        toward: (n,).
        passes: Most columns taken up, those taken up again included.

    Source: the active-set method of Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    gram = gram + 1e-6 * np.eye(len(gram))  # two equal columns: the first one is taken
    weights = np.zeros(len(gram))
    for _ in range(passes):
        gain = np.where(weights > 0, -np.inf, toward - gram @ weights)
        best = int(gain.argmax()) if len(gain) else 0
        if not len(gain) or gain[best] <= 1e-6:
            break
        active = np.flatnonzero((weights > 0) | (np.arange(len(gram)) == best))
        while True:
            target = np.linalg.solve(gram[np.ix_(active, active)], toward[active])
            if (target > 0).all():
                weights[active] = target
                break
            now, falling = weights[active], target <= 0
            step = (now[falling] / np.maximum(now[falling] - target[falling], 1e-12)).min()
            moved = now + step * (target - now)
            moved[falling & (moved <= 1e-12)] = 0.0
            weights[active] = moved
            active = active[moved > 0]
    return weights


def _known(similarity: float) -> float:
    return -math.inf if math.isnan(similarity) else similarity


def _cosine(similarity: float | None) -> float:
    return -1.0 if similarity is None or math.isnan(similarity) else similarity


_ALL: tuple[type, ...] = (Nearest, DropRedundant, MostAlike, Reconstruct, Relevant)

SELECTION: dict[str, type] = {cls.__name__: cls for cls in _ALL}
"""Retrieval rules by name."""
