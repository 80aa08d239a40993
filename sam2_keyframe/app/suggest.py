"""Asking for help: the frames of a run on which one more click would help most.

A click helps where the tracker is in doubt, where much of what follows is in doubt, too, and where the object can be
seen. Doubt is the mean of up to three parts: what SAM 2 itself makes of its mask (1 - predicted IoU), how far another
memory sees something else (1 - IoU with its mask), and how far tracking the video backwards, from the last mask on,
does not come back to the same masks. What the three are worth is measured in `benchmarks/studies/prompts.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOST = 0.25
"""How well an object can be seen where the run shows none and a check does; elsewhere it is the predicted IoU squared.

A share; a click is worth more where the object is in plain view.
"""

APART = 10
"""Least number of frames between two suggestions for one object."""

SUGGESTIONS = "suggestions.csv"
CHECKS = {"stock": "SAM 2's own memory", "keyframe": "the keyframe memory", "backward": "tracking backwards"}
"""What the checks are called in reasons."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A frame to click on.

    Attributes:
        frame: Its number.
        object: Id of the object.
        reason: In words.
        benefit: What the suggestions are sorted by, at least 0.
    """

    frame: int
    object: int
    reason: str
    benefit: float


@dataclass(slots=True)
class Check:
    """What another pass over a video makes of an object, a number a frame.

    Attributes:
        iou: IoU of its mask with the run's, in [0, 1]; 1 where both are empty, NaN where it was not asked.
        seen: Whether it shows the object, 0 or 1; NaN where it was not asked.
    """

    iou: Numbers
    seen: Numbers


@dataclass(slots=True)
class Evidence:
    """What is known of one object along a run, a number a frame.

    Attributes:
        predicted_iou: SAM 2's estimate in [0, 1]; NaN on prompted frames.
        seen: Whether the run shows the object, 0 or 1.
        checks: Other passes by name.
    """

    predicted_iou: Numbers
    seen: Numbers
    checks: dict[str, Check] = field(default_factory=dict)

    def parts(self) -> dict[str, Numbers]:
        """Return the parts of the doubt, each in [0, 1], NaN where unknown; 0 where nothing sees the object."""
        anyone = self.anyone()
        parts = {"doubt": (1 - self.predicted_iou.clip(0, 1)) * anyone}
        return parts | {name: (1 - check.iou) * anyone for name, check in self.checks.items()}

    def anyone(self) -> NDArray[np.bool_]:
        """Return the frames on which the run or a check shows the object."""
        shown = [self.seen, *(check.seen for check in self.checks.values())]
        found: NDArray[np.bool_] = np.nan_to_num(np.stack(shown)).max(0) > 0
        return found

    def doubt(self) -> Numbers:
        """Return the mean of the parts that are known, in [0, 1]; 0 where none is."""
        parts = np.stack(list(self.parts().values()))
        known = np.isfinite(parts)
        doubt: Numbers = np.where(known, parts, 0).sum(0) / known.sum(0).clip(1)
        return doubt

    def benefit(self) -> Numbers:
        """Return how well the object is seen x doubt x doubt from there on; 0 on prompted frames."""
        doubt = self.doubt()
        view = np.where(self.seen > 0, np.nan_to_num(self.predicted_iou).clip(0, 1) ** 2, LOST)
        rest: Numbers = np.cumsum(doubt[::-1])[::-1]
        benefit: Numbers = np.where(np.isfinite(self.predicted_iou), view * doubt * rest, 0)
        return benefit

    def reason(self, at: int) -> str:
        """Return what speaks for a click most, in words."""
        witnesses = [CHECKS[name] for name, check in self.checks.items() if check.seen[at] > 0]
        if not self.seen[at] and witnesses:
            return f"lost here, while {' and '.join(witnesses)} see{'s' * (len(witnesses) == 1)} it"
        parts = {name: values[at] for name, values in self.parts().items() if np.isfinite(values[at])}
        name = max(parts, key=lambda part: parts[part])
        if name == "doubt":
            return f"doubt: predicted IoU {self.predicted_iou[at]:.2f}"
        check = self.checks[name]
        if not check.seen[at]:
            return f"{CHECKS[name]} does not see it"
        return f"{CHECKS[name]} sees another mask (IoU {check.iou[at]:.2f})"


def suggest(evidence: Mapping[int, Evidence], frames: Sequence[int], count: int = 3) -> list[Suggestion]:
    """Return the frames on which a click would help most, the best first.

    Args:
        evidence: By object, along the frames.
        frames: Their numbers.
        count: At most so many, of all objects together.
    """
    found = []
    for obj_id, each in evidence.items():
        benefit, free = each.benefit(), np.ones(len(frames), bool)
        for _ in range(count):
            at = int(np.argmax(np.where(free, benefit, -1)))
            if not free[at] or benefit[at] <= 0:
                break
            found.append(Suggestion(frames[at], obj_id, each.reason(at), float(benefit[at])))
            free &= np.abs(np.asarray(frames) - frames[at]) >= APART
    return sorted(found, key=lambda suggestion: -suggestion.benefit)[:count]


def check(
    evidence: Mapping[int, Evidence],
    frames: Sequence[int],
    name: str,
    masks: Callable[[int], NDArray[Any]],
    others: Iterator[tuple[int, NDArray[Any], Sequence[int]]],
) -> None:
    """Compare a run with another pass, and add what comes out to the evidence.

    Args:
        evidence: By object.
        frames: Numbers of the run's frames.
        name: Of the pass.
        masks: Returns the run's object ids on a frame, (H, W).
        others: The pass: frame, (H, W) object ids and the objects that were tracked there.
    """
    places = {t: i for i, t in enumerate(frames)}
    found = {obj_id: Check(np.full(len(frames), np.nan), np.full(len(frames), np.nan)) for obj_id in evidence}
    for t, labels, tracked in others:
        if t not in places:
            continue
        ours = masks(t)
        for obj_id in set(tracked) & found.keys():
            here, there = ours == obj_id, labels == obj_id
            union = np.count_nonzero(here | there)
            found[obj_id].iou[places[t]] = np.count_nonzero(here & there) / union if union else 1.0
            found[obj_id].seen[places[t]] = there.any()
    for obj_id, made in found.items():
        evidence[obj_id].checks[name] = made


class Backwards:
    """The first frames of a video, the last of them first: what `FrameSource` takes as a list.

    Args:
        frame: Returns frame t.
        count: How many frames.
    """

    def __init__(self, frame: Callable[[int], NDArray[np.uint8]], count: int) -> None:
        self.frame, self.count = frame, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, t: int) -> NDArray[np.uint8]:
        return self.frame(self.count - 1 - t)


def write(path: Path, suggestions: Sequence[Suggestion]) -> None:
    """Write suggestions as a table: frame, object, reason, benefit."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["frame", "object", "reason", "benefit"])
        table.writerows([each.frame, each.object, each.reason, f"{each.benefit:.4g}"] for each in suggestions)
