"""Rules that look at the records of past frames. They keep no state: the same records give the same answer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sam2_keyframe._checks import check_number, check_whole
from sam2_keyframe.conditions import Combinable, check_scorer, known, latest, learned
from sam2_keyframe.scorers import Histogram, MaskIoU, OpticalFlow
from sam2_keyframe.types import RECORDS, FrameRecord, Scorer


class _AgainstPast(Combinable):
    """A rule that compares a score with those of the last frames it may learn from, once enough of them are known."""

    learns: ClassVar[bool] = True
    scorer: Scorer
    last: int
    warmup: int
    fixed: float

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the score exceeds the bound or is unknown."""
        score = record.scores[self.scorer.name]
        values = known(learned(past), self.scorer.name, self.last)
        if math.isnan(score) or len(values) < self.warmup:
            return not score <= self.fixed
        return self._exceeds(score, values)

    def _exceeds(self, score: float, values: Sequence[float]) -> bool:
        raise NotImplementedError

    def _check_window(self) -> None:
        check_scorer(self.scorer, type(self).__name__)
        check_number(self, "fixed")
        check_whole(self, "last", "warmup", least=2, most=RECORDS)
        if self.warmup > self.last:
            raise ValueError(
                f"{type(self).__name__}(last={self.last!r}, warmup={self.warmup!r}): warmup must not exceed last, or "
                "the bound would stay fixed for ever"
            )


@dataclass(frozen=True, repr=False)
class Adaptive(_AgainstPast):
    """Accept a frame whose score stands out from the last ones: above their mean + k standard deviations.

    It learns from frames on which the object is visible and which passed what stands to the left of the `&` before
    it: an absence, on which every change is the largest possible, does not raise the bound.

    Promise: of any n + 1 values, at most 1 + n / (1 + k^2) are accepted when each is compared with the n others.
    So n + 1 frames in random order have at most that share of them accepted on average: 16 of 31 for k = 1, 7 of 31
    for k = 2; bell-shaped values far fewer. Scores that keep rising are accepted throughout, as they should be; a
    score that stays the same never is.

    Attributes:
        scorer: What is measured.
        k: Standard deviations (of the population) above the mean, at least 0.
        last: Frames that mean and deviation are taken over, from 2 to 300.
        warmup: With fewer known values than this the bound is `fixed`; from 2 to `last`.
        fixed: Bound until then, in the unit of the score.

    Source: ours. The promise is Cantelli's inequality on the n + 1 values (F. P. Cantelli, 1928), solved for the
    value that its own mean and deviation leave out.
    """

    scorer: Scorer = MaskIoU()  # noqa: RUF009 - scorers are frozen
    k: float = 1.0
    last: int = 30
    warmup: int = 10
    fixed: float = 0.3

    def __post_init__(self) -> None:
        """Check the choices."""
        check_number(self, "k", low=0)
        self._check_window()

    def _exceeds(self, score: float, values: Sequence[float]) -> bool:
        # Seen from the score itself, equal values differ by exactly 0, which rounding of a mean cannot exceed.
        distances = [value - score for value in values]
        mean = statistics.fmean(distances)
        # hypot, since squares of tiny or huge distances are 0 or infinite.
        deviation = math.hypot(*(distance - mean for distance in distances)) / math.sqrt(len(distances))
        return mean + self.k * deviation < 0


@dataclass(frozen=True, repr=False)
class Quantile(_AgainstPast):
    """Accept a frame whose score is above the q-quantile of the last ones, learned from as by `Adaptive`.

    Promise: of any n + 1 values, at most (1 - q)(n + 1), or one where that is less, are accepted when each is
    compared with the n others; in random order the share of frames accepted is at most 1 - q on average. To keep it
    for every n, the quantile is the value of rank ceil(q (n + 1)) from below, at most the largest. Scores that keep
    rising are accepted throughout; a score that stays the same never is.

    Attributes:
        scorer: What is measured.
        q: Share of the last values that a score must exceed, above 0 and below 1.
        last: Frames that the quantile is taken over, from 2 to 300.
        warmup: With fewer known values than this the bound is `fixed`; from 2 to `last`.
        fixed: Bound until then, in the unit of the score.

    Source: ours; the rank is that of conformal prediction (Vovk, Gammerman and Shafer, 2005).
    """

    scorer: Scorer = MaskIoU()  # noqa: RUF009 - scorers are frozen
    q: float = 0.9
    last: int = 100
    warmup: int = 10
    fixed: float = 0.3

    def __post_init__(self) -> None:
        """Check the choices."""
        check_number(self, "q", low=0, high=1)
        if self.q in (0, 1):
            raise ValueError(f"Quantile(q={self.q!r}): must lie above 0 and below 1")
        self._check_window()

    def _exceeds(self, score: float, values: Sequence[float]) -> bool:
        rank = min(math.ceil(self.q * (len(values) + 1)), len(values))
        return sum(value < score for value in values) >= rank


@dataclass(frozen=True, repr=False)
class MotionScaled(Combinable):
    """Accept a frame whose score is above a bound that rises and falls with how much is moving.

    The bound is `above` times the mean motion of the last frames over the mean motion of all past frames on record
    (at most 300), the frame itself among both, and never less than half of `above` nor more than twice. Motion that
    lasts is not new, so it takes more to be a keyframe in a restless stretch, and less in a calm one. Frames are
    learned from as by `Adaptive`.

    Attributes:
        scorer: What is measured.
        above: The bound where motion is as usual, at least 0. In the unit of the score.
        by: A score of at least 0 that tells how much moves; best one against the previous frame.
        last: Frames that count as recent, the frame itself included, at least 1.

    Source: ours.
    """

    learns: ClassVar[bool] = True
    scorer: Scorer = MaskIoU()  # noqa: RUF009 - scorers are frozen
    above: float = 0.3
    by: Scorer = OpticalFlow(reference="previous")  # noqa: RUF009
    last: int = 30

    def __post_init__(self) -> None:
        """Check the choices."""
        check_scorer(self.scorer, "MotionScaled")
        check_scorer(self.by, "MotionScaled(by=...)")
        check_number(self, "above", low=0)
        check_whole(self, "last")

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the score exceeds the scaled bound or is unknown."""
        return not record.scores[self.scorer.name] <= self.above * self.scale(record, past)

    def scale(self, record: FrameRecord, past: Sequence[FrameRecord]) -> float:
        """Return the factor on the bound, in [1/2, 2]; 1 where nothing ever moved or no motion is known."""
        name, before = self.by.name, list(learned(past))
        own = known(iter([record]), name, 1)
        recent, whole = own + known(iter(before), name, self.last - 1), own + known(iter(before), name, len(before))
        usual = statistics.fmean(whole) if recent else 0.0
        return min(max(statistics.fmean(recent) / usual, 0.5), 2.0) if usual > 0 else 1.0


@dataclass(frozen=True, repr=False)
class SceneBoundary(Combinable):
    """Accept the first frame after a scene boundary: where a score exceeded a bound since the last keyframe.

    The frame itself counts, and every frame since the last keyframe or prompt (of the last 300), so that a boundary
    on a frame that another rule rejects waits for the first trustworthy one.

    Attributes:
        scorer: What compares with the previous frame.
        above: The bound.

    Source: the bound of SeC (Zhang et al. 2507.15852) on hue-saturation histograms. What it does here is ours.
    """

    scorer: Scorer = Histogram(bins=(60, 80), reference="previous")  # noqa: RUF009 - scorers are frozen
    above: float = 0.35

    def __post_init__(self) -> None:
        """Check the choices."""
        check_scorer(self.scorer, "SceneBoundary")
        check_number(self, "above")

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether a boundary, or a frame of which that is unknown, has not been followed by a keyframe."""
        since = [
            earlier
            for earlier in latest(past, record.gap - 1)
            if abs(record.frame_idx - earlier.frame_idx) < record.gap
        ]
        return any(not frame.scores[self.scorer.name] <= self.above for frame in [record, *since])


@dataclass(frozen=True, repr=False)
class StableArea(Combinable):
    """Accept a frame on which the object is about as large as it was.

    Its area over the median of the last non-empty areas, its own included, must lie in [`low`, `high`]; the object
    must be there, and there must be an earlier frame to compare with.

    Attributes:
        low: Least share of the median, above 0.
        high: Largest share, at least `low`.
        last: Non-empty areas that the median is taken over, from 1 to 300.
        within: Frames among which they are looked for, from 1 to 300.

    Source: DAM4SAM (Videnovic et al. 2411.17576), the test for its distractor-resolving memory.
    """

    low: float = 0.8
    high: float = 1.2
    last: int = 10
    within: int = 300

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number(self, "low", "high", low=0)
        if not 0 < self.low <= self.high:
            raise ValueError(f"StableArea(low={self.low!r}, high={self.high!r}): must be above 0, low at most high")
        check_whole(self, "last", "within", most=RECORDS)

    def accept(self, record: FrameRecord, past: Sequence[FrameRecord]) -> bool:
        """Return whether the area is stable, or unknown."""
        area = record.scores["area"]
        if math.isnan(area):
            return True
        if area <= 0 or not past:
            return False
        areas = [area]
        for earlier in latest(past, self.within - 1):
            if len(areas) == self.last:
                break
            if earlier.scores["area"] > 0:
                areas.append(earlier.scores["area"])
        return self.low <= area / statistics.median(areas) <= self.high
