"""Rules on a frame's own numbers: whether the object is seen, and where the frame lies. Others are in `adaptive`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sam2_keyframe._checks import check_number, check_whole, plain_number
from sam2_keyframe.conditions import Combinable
from sam2_keyframe.rules.adaptive import Adaptive, MotionScaled, Quantile, SceneBoundary, StableArea
from sam2_keyframe.types import FrameRecord


@dataclass(frozen=True, repr=False)
class Always(Combinable):
    """Accept every frame."""

    blind: ClassVar[bool] = True

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True, repr=False)
class Visible(Combinable):
    """Accept a frame on which SAM 2 sees the object.

    Attributes:
        above: Bound on the object score logit; SAM 2 itself blanks the mask at 0 and below.
    """

    above: float = 0.0

    def __post_init__(self) -> None:
        """Check the bound."""
        check_number(self, "above")

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the object score exceeds the bound or is unknown."""
        return not record.scores["object_score"] <= self.above


@dataclass(frozen=True, repr=False)
class EffectiveScore(Combinable):
    """Accept a frame whose mask is both there and well rated.

    The effective score is max(0, 2 sigmoid(object score) - 1) times the predicted IoU, in [0, 1].

    Attributes:
        above: Bound on the effective score, in [0, 1].

    Source: the frame filter of SAM 3's tracker (arXiv 2511.16719); there the score is averaged over the objects,
    which SAM 2 tracks one by one.
    """

    above: float = 0.01

    def __post_init__(self) -> None:
        """Check the bound."""
        check_number(self, "above", low=0, high=1)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the effective score exceeds the bound or is unknown."""
        seen = math.tanh(record.scores["object_score"] / 2)  # 2 sigmoid(s) - 1
        return not (seen <= 0 or seen * record.scores["predicted_iou"] <= self.above)


@dataclass(frozen=True, repr=False)
class _Distance(Combinable):
    """A rule by a distance in frames."""

    blind: ClassVar[bool] = True
    n: int

    def __post_init__(self) -> None:
        """Check the distance."""
        check_whole(self, "n")


@dataclass(frozen=True, repr=False)
class EveryNth(_Distance):
    """Accept every n-th frame, counted from the object's first prompt.

    Attributes:
        n: Distance between accepted frames, at least 1.
    """

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame lies on the grid."""
        return record.offset % self.n == 0


@dataclass(frozen=True, repr=False)
class Frames(Combinable):
    """Accept chosen frames and no others, as `choose_frames` finds them.

    Attributes:
        chosen: Frame indices, at least 0; any iterable of them, kept sorted.
    """

    blind: ClassVar[bool] = True
    chosen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the frames and sort them."""
        chosen = tuple(sorted(set(map(plain_number, self.chosen))))
        for idx in chosen:
            if isinstance(idx, bool) or not isinstance(idx, int) or idx < 0:
                raise ValueError(f"Frames(chosen={self.chosen!r}): {idx!r} must be a whole number of at least 0")
        object.__setattr__(self, "chosen", chosen)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the frame was chosen."""
        return record.frame_idx in self.chosen


@dataclass(frozen=True, repr=False)
class MinGap(_Distance):
    """Accept a frame at least n frames after the last keyframe or prompt; every frame before the first of them.

    Attributes:
        n: Least distance in frames, at least 1.
        prompts: Whether prompts count; False: only keyframes do.
    """

    prompts: bool = True

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the gap is wide enough."""
        return (record.gap if self.prompts else record.since) >= self.n


@dataclass(frozen=True, repr=False)
class MaxGap(_Distance):
    """Accept a frame when the last keyframe or prompt is n frames ago or more.

    The question of `MinGap`, asked with `|` instead of `&`: `Visible() & (Adaptive() | MaxGap(60))` has a keyframe
    every 60 frames even where nothing changes (the first on which the object is seen).

    Attributes:
        n: Distance in frames after which a keyframe is due, at least 1.
    """

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether a keyframe is due."""
        return record.gap >= self.n


_ALL: tuple[type, ...] = (
    Visible, Adaptive, Quantile, MotionScaled, SceneBoundary, EffectiveScore, StableArea, EveryNth, MinGap, MaxGap,
    Frames, Always,
)  # fmt: skip

RULES: dict[str, type] = {cls.__name__: cls for cls in _ALL}
"""Rules by name. A score compared with a number is one too: `MaskIoU() > 0.5`."""
