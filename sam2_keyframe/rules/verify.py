"""A doubtful mask is checked backwards before it is believed: which one is doubtful, and what passes the check.

Plain Python on boxes and numbers; the frames are tracked back by a host.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sam2_keyframe._checks import check_number, check_whole, short_repr
from sam2_keyframe.rules.motion import Motion
from sam2_keyframe.types import Moment

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1, edge to edge."""

TINY, HUGE = 0.10, 8.0
"""Box areas below and above these shares of the median are doubtful by themselves."""
SMALLER, LARGER, POOR = 0.5, 2.0, 0.35
"""A jump is doubtful where the area changed as well, or the predicted IoU is below the last of these."""
JUMP = 4.0
"""A jump: the centre moved by more than so many roots of the median area."""
LEAST, MOST = 0.25, 4.0
"""Shares of the median within which a candidate's box area has to lie."""
RIVAL = 0.80
"""Share of the best predicted IoU that a candidate has to exceed."""
SIGMA, ALIKE, RIVALS = 0.01, 0.25, 5
"""Of candidates alike the better one stays: its rating falls by exp(-IoU²/sigma), and has to stay above a bound."""
AREAS, KNOWN = 10, 3
"""The median is over so many areas at most, and known from so many on."""
WORST, COVERED, FEWEST = 0.20, 0.75, 3
"""Least box IoU on a frame, share of the frames that show the object, and frames compared."""
LOST = 0.40
"""Mean box IoU of the chosen mask below which the moved mask is a candidate, too."""


@dataclass(frozen=True, repr=False)
class Backward:
    """Masks that appear to be wrong are replaced where another one, tracked back, fits the last frames better.

    Attributes:
        frames: Frames tracked back, at least 3; their image features are held.
        agree: Least mean IoU of the boxes, in [0, 1].
        gain: By how much it has to exceed that of the mask that SAM 2 chose, in [0, 1].
        pause: Frames after a replacement during which there is none, at least 0.

    A mask is doubtful where it is empty; where its box is less than a tenth or more than eight times as large as the
    median of the last ten; or where it jumps, by more than 4 roots of that median, and its size changed by a factor of
    two or its predicted IoU is below 0.35. Candidates are the masks that SAM 2 did not choose, where it holds the
    object visible, of about the predicted IoU of the best (0.8) and the size of the last ones (a quarter to four
    times); and, where the chosen mask does not fit (0.4), the last mask moved as a Kalman filter predicts. A candidate
    passes where SAM 2, prompted with it alone, tracks it back to where the object was.

    Source: SENTRY (arXiv 2606.24449; HamadYA/SENTRY, Apache-2.0), by a description of its rule; its code was not read.
    There every frame is tracked back, which changes nothing where no mask is doubtful, and rejected masks are followed
    over time as neighbours, of which a candidate has to be none; that is left out.
    """

    frames: int = 9
    agree: float = 0.65
    gain: float = 0.15
    pause: int = 5

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole(self, "frames", least=FEWEST)
        check_whole(self, "pause", least=0)
        check_number(self, "agree", low=0, high=1)
        check_number(self, "gain", low=0, high=1)

    __repr__ = short_repr

    def passes(self, found: Agreement, chosen: Agreement | None) -> bool:
        """Return whether a candidate is believed in place of the chosen mask; None where that one is empty."""
        sure = found.mean >= self.agree and found.worst >= WORST and found.covered >= COVERED
        return sure and found.frames >= FEWEST and (chosen is None or found.mean >= chosen.mean + self.gain)


@dataclass(frozen=True)
class Agreement:
    """How a mask tracked back fits the boxes that were chosen then.

    Attributes:
        mean: Mean IoU over the frames on which it is seen; 0 where there is none.
        worst: The least.
        covered: Share of the frames compared on which it is seen.
        frames: Frames on which it is seen.
    """

    mean: float
    worst: float
    covered: float
    frames: int

    @classmethod
    def of(cls, found: Sequence[Box], then: Sequence[Box]) -> Agreement:
        """Compare boxes tracked back with those of the same frames, none of which is empty."""
        ious = [overlap(a, b) for a, b in zip(found, then, strict=True) if area(a) > 0]
        return cls(sum(ious) / max(len(ious), 1), min(ious, default=0.0), len(ious) / max(len(then), 1), len(ious))


@dataclass
class Watch:
    """What is remembered of one object.

    Attributes:
        rule: The numbers.
        boxes: Chosen boxes of the last frames, oldest first; empty ones have no area.
        areas: Box areas of the last masks believed.
        centre: Where the last of them was.
        motion: Predicts where the next one will be.
        mask: (h, w) bool, the last mask believed.
        replaced: The frame on which a mask was last replaced.
    """

    rule: Backward
    boxes: dict[int, Box] = field(default_factory=dict)
    areas: deque[float] = field(default_factory=lambda: deque(maxlen=AREAS))
    centre: tuple[float, float] | None = None
    motion: Motion = field(default_factory=Motion)
    mask: Tensor | None = None
    replaced: int | None = None

    def clear(self) -> None:
        """Forget the object: on a prompt, and where tracking does not carry on."""
        vars(self).update(vars(Watch(self.rule)))

    @property
    def median(self) -> float | None:
        """Median of the last areas; None while there are too few."""
        return statistics.median(self.areas) if len(self.areas) >= KNOWN else None

    def doubts(self, box: Box, rating: float, moment: Moment) -> bool:
        """Return whether a chosen mask is doubtful, and may be replaced."""
        median = self.median
        if median is None or self.centre is None:
            return False
        if self.replaced is not None and moment.distance(self.replaced) <= self.rule.pause:
            return False
        ratio = area(box) / median
        jump = math.dist(middle(box), self.centre)
        changed = not SMALLER <= ratio <= LARGER or rating < POOR
        return not TINY <= ratio <= HUGE or (jump > JUMP * math.sqrt(median) and changed)

    def compared(self) -> dict[int, Box]:
        """Return the frames to track back to, nearest first, with the boxes that were chosen there."""
        return {idx: box for idx, box in reversed(self.boxes.items()) if area(box) > 0}

    def rivals(self, boxes: Sequence[Box], ratings: Sequence[float], chosen: int) -> list[int]:
        """Return which of the masks that were not chosen are candidates, the best rated first."""
        median = self.median or 0.0
        best, kept = max(ratings), list[int]()
        order = sorted(set(range(len(boxes))) - {chosen}, key=lambda i: -ratings[i])
        for i in order:
            fits = ratings[i] > RIVAL * best and LEAST * median <= area(boxes[i]) <= MOST * median
            rated = ratings[i] * math.exp(-sum(overlap(boxes[i], boxes[k]) ** 2 for k in kept) / SIGMA)
            if fits and rated > ALIKE:
                kept.append(i)
        return kept[:RIVALS]

    def note(self, frame_idx: int, box: Box, believed: bool, mask: Tensor) -> None:
        """Take in what is shown on a frame; `mask` is (h, w) bool."""
        self.boxes[frame_idx] = box
        for idx in list(self.boxes)[: -self.rule.frames]:
            del self.boxes[idx]
        believed = believed and area(box) > 0
        self.motion.step(box if believed else None)
        if believed:
            self.areas.append(area(box))
            self.centre, self.mask = middle(box), mask


def area(box: Box) -> float:
    """Return the area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def middle(box: Box) -> tuple[float, float]:
    """Return the centre of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def overlap(a: Box, b: Box) -> float:
    """Return the IoU of two boxes; 0 where both are empty."""
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / max(area(a) + area(b) - shared, 1e-12)


VERIFY: dict[str, type] = {"backward": Backward}
"""Checks by name."""
