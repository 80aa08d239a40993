"""Every choice of a memory method, in one dataclass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from sam2_keyframe._checks import check_whole, did_you_mean
from sam2_keyframe.attention.maths import Attend, Whole
from sam2_keyframe.attention.queries import Queries
from sam2_keyframe.bank.compression import Downsample, Identity
from sam2_keyframe.rules.eviction import Evict, Oldest
from sam2_keyframe.rules.filters import Quality, Visible, as_filter, reads
from sam2_keyframe.rules.motion import Kalman
from sam2_keyframe.rules.retrieval import Nearest, Select
from sam2_keyframe.scorers import MaskIoU, ObjectScore, PredictedIoU
from sam2_keyframe.types import BASE_SCORES, Compressor, KeyframeFilter, Moment, Relation, Scorer

Temporal = Literal["slot", "rank", "anchor", "prompt"]
RESERVED = frozenset(
    {"", "area", "kalman_overlap", "near_share", "frame", "object", "prompted", "significance", "keyframe"}
    | {"evicted", "attended"}
    | {f"{who}{what}" for who in ("", "stock_", "window_") for what in ("frames", "bytes", "tokens")}
    | {"held", "host_bytes", "milliseconds"}
)
"""Names that no scorer may take: what is recorded of every frame besides its scores, and the tables' columns."""


@dataclass(frozen=True)
class KeyframeMemory:
    """Every choice of a memory method. `repr()` rebuilds it.

    SAM 2 attends to its prompted frames always; the choices below fill its remaining slots.

    Attributes:
        recent: Newest frames always attended to, at least 0.
        capacity: Keyframes held besides them, at least 0. A frame enters the buffer when it leaves `recent`.
        fill: What the slots get that no keyframe holds. True: the next newest frames, as in SAM 2. False: nothing. A
            filter: the newest frame that it accepts and, before that, those it accepts on the grid of multiples of
            `stride`; it decides about the `recent` frames too. Where keyframes take no slots (`temporal` "anchor" or
            "prompt"), prompts, keyframes and fill together then are at most `num_maskmem`.
        stride: Distance in frames of what fills the slots after the newest; None: as SAM 2 is set
            (`memory_temporal_stride_for_eval`), 1 under a filter.
        gate: Is the frame trustworthy? Asked first; stays when `keep` is swept.
        scorer: Measures the significance; None: unknown, which every threshold calls new.
        keep: Is the frame new enough? A number is a threshold on the significance; infinity keeps none.
        keep_before: Whether the last trustworthy frame before a keyframe becomes one too, as at a scene boundary.
        evict: Which keyframe leaves a full buffer.
        select: Which keyframes are attended to, where more are held than SAM 2 has slots besides `recent`.
        compressor: How keyframes are stored. Fewer bytes, not fewer tokens.
        minor: Trustworthy frames that are not new enough, of which the newest are held besides the keyframes, at most
            so many as those leave slots for.
        minor_compressor: How those are stored.
        consolidate: Long-term memories into which the keyframes that leave are merged, cell by cell, five each,
            weighted by their usage; read with the conditioning row.
        attend: Which tokens of a memory are attended to. Fewer tokens, not fewer bytes.
        queries: Which tokens of the frame being tracked run through memory attention. Less time, not fewer bytes.
        pointers: Object pointers that are read, of SAM 2's t-1 .. t-15: "recent" all of them, "selected" those of
            keyframes, a filter those of frames it accepts. "ranked": those of the last 15 trustworthy frames and of
            the newest, each at its rank. Prompts' pointers are always read, and never is there none at all.
        temporal: SAM 2's learned temporal code for a memory: "slot" its true slot, older keyframes in the
            free slots farthest back; "rank" by recency without gaps; "anchor" the conditioning row for keyframes;
            "prompt" that row and the keyframe's own pointer at its true distance, as if it had been prompted.
        conditioning: Most prompted frames attended to, at least 1: the first and the nearest ones; None: as many as
            SAM 2 is set to.
        protect_corrections: Whether a tracked frame that the user corrected is held until it is removed, besides
            `capacity`, and shown as corrected when it is tracked over again. SAM 2 overwrites it.
        choice: Chooses among the decoder's candidate masks by motion as well; None: SAM 2's own choice.
        retain: "bank": what is neither held nor about to be read leaves the device. "all": nothing does (stock).
        keep_masks: Whether mask logits of past frames are kept, on the CPU, so that clicking on an earlier frame
            starts from its mask as in SAM 2; they grow by H/4 x W/4 float32 a frame and object. False lets them go.
        measure: More scorers, recorded beside the significance and readable by filters.

    Raises:
        TypeError: A choice is of the wrong kind.
        ValueError: A number is out of range, a filter reads a score that nothing measures, two scores share a name or
            one has a reserved name, or two choices do not go together.
    """

    recent: int = 1
    capacity: int = 5
    fill: bool | KeyframeFilter = True
    stride: int | None = None
    gate: KeyframeFilter = Visible() & Quality(0.5)
    scorer: Scorer | None = MaskIoU()  # noqa: RUF009 - scorers are frozen, as is every rule below
    keep: KeyframeFilter | float = 0.3
    keep_before: bool = False
    evict: Evict = Oldest()  # noqa: RUF009
    select: Select = Nearest()  # noqa: RUF009
    compressor: Compressor = Identity()  # noqa: RUF009
    minor: int = 0
    minor_compressor: Compressor = Downsample(2)  # noqa: RUF009
    consolidate: int = 0
    attend: Attend = Whole()  # noqa: RUF009
    queries: Queries = Whole()  # noqa: RUF009
    pointers: Literal["recent", "selected", "ranked"] | KeyframeFilter = "recent"
    temporal: Temporal = "rank"
    conditioning: int | None = None
    protect_corrections: bool = True
    choice: Kalman | None = None
    retain: Literal["all", "bank"] = "bank"
    keep_masks: bool = True
    measure: tuple[Scorer, ...] = ()

    def __post_init__(self) -> None:
        """Check every choice and turn a number given as `keep` into its filter."""
        check_whole(self, "recent", "capacity", "minor", "consolidate", least=0)
        check_whole(self, *(name for name in ("stride", "conditioning") if getattr(self, name) is not None))
        for name in ("keep_before", "protect_corrections", "keep_masks"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r}: must be True or False")
        if not isinstance(self.fill, bool):
            _check_kind("fill", self.fill, KeyframeFilter, "True, False or a keyframe filter such as Visible()")
        object.__setattr__(self, "keep", as_filter(self.keep))
        _check_kind("measure", self.measure, (tuple, list), "a tuple of scorers, as in (OpticalFlow(),)")
        object.__setattr__(self, "measure", tuple(self.measure))
        _check_kind("gate", self.gate, KeyframeFilter, "a keyframe filter such as Visible() & Quality(0.5)")
        _check_kind("evict", self.evict, Evict, "an eviction rule such as Oldest()")
        _check_kind("select", self.select, Select, "a retrieval rule such as Nearest()")
        _check_kind("compressor", self.compressor, Compressor, "a codec such as Int8()")
        _check_kind("minor_compressor", self.minor_compressor, Compressor, "a codec such as Downsample(2)")
        _check_kind("attend", self.attend, Attend, "a token scheme such as Pool(2)")
        _check_kind("queries", self.queries, Queries, "NearObject() or Whole()")
        if self.scorer is not None:
            _check_kind("scorer", self.scorer, Scorer, "a scorer such as MaskIoU()")
        for scorer in self.measure:
            _check_kind("measure", scorer, Scorer, "a scorer such as MaskIoU()")
        if self.choice is not None:
            _check_kind("choice", self.choice, Kalman, "Kalman() or None")
        _check_choice("temporal", self.temporal, get_args(Temporal))
        _check_choice("retain", self.retain, ("all", "bank"))
        if not isinstance(self.pointers, KeyframeFilter):
            _check_choice("pointers", self.pointers, ("recent", "selected", "ranked"), " or a keyframe filter")
        self._check_together()
        self._check_scores()

    def _check_together(self) -> None:
        minor = self.minor > 0 and self.minor_compressor != Identity()
        shrinks = self.compressor != Identity() or self.consolidate > 0 or minor
        if self.retain == "all" and shrinks:
            raise ValueError(
                "retain='all' keeps every memory as it is: choose retain='bank' to compress or consolidate"
            )
        relations = {getattr(rule, "relation", None) for rule in (self.evict, self.select)} - {None}
        if len(relations) > 1:
            raise ValueError(f"evict and select measure different relations: {relations}. Give both the same one")
        if self.select.on_device and self.temporal in ("slot", "prompt"):
            raise ValueError(
                f"select={self.select!r} chooses on the device, where temporal={self.temporal!r} has no frame "
                "to go by: choose temporal='rank' or 'anchor'"
            )
        if isinstance(self.fill, KeyframeFilter) and self.temporal == "slot":
            raise ValueError(
                f"fill={self.fill!r} reads frames that have no slot of their own: choose another temporal than 'slot'"
            )
        if self.select.on_device and getattr(self.attend, "reads_masks", False):
            raise ValueError(
                f"attend={self.attend!r} goes by what is stored with each memory, and select={self.select!r} chooses "
                "memories on the device: choose attend=Pool(2)"
            )

    def _check_scores(self) -> None:
        by_name: dict[str, Scorer] = {scorer.name: scorer for scorer in (PredictedIoU(), ObjectScore())}
        for scorer in self.scorers():
            if scorer.name in RESERVED:
                raise ValueError(f"{scorer!r}: the name {scorer.name!r} is reserved; give it another name=...")
            if by_name.setdefault(scorer.name, scorer) != scorer:
                raise ValueError(
                    f"two scores are called {scorer.name!r}: give one of them another name, as in "
                    f"{type(scorer).__name__}(name='{scorer.name}_2')"
                )
        known = {*by_name, *BASE_SCORES, *(("kalman_overlap",) if self.choice else ())}
        unknown = self.read_scores() - known
        if unknown:
            raise ValueError(
                f"a filter reads {', '.join(sorted(unknown))}, which nothing measures; measured are "
                f"{', '.join(sorted(known))}. Add the scorer: measure=(..., ){did_you_mean(min(unknown), known)}"
            )

    def scorers(self) -> Iterator[Scorer]:
        """Yield the scorer, its parts, and those in `measure`."""
        yield from _with_parts(() if self.scorer is None else (self.scorer,))
        yield from _with_parts(self.measure)

    def rules(self) -> list[KeyframeFilter]:
        """Return the filters among gate, keep, fill and pointers."""
        return [r for r in (self.gate, self.keep, self.fill, self.pointers) if isinstance(r, KeyframeFilter)]

    def read_scores(self) -> frozenset[str]:
        """Return the names of the scores that gate, keep, fill and pointers read."""
        return frozenset().union(*map(reads, self.rules()))

    @property
    def anchored(self) -> bool:
        """Whether keyframes take no slots of SAM 2: they are read beside its prompted frames."""
        return self.temporal in ("anchor", "prompt")

    @property
    def as_prompted(self) -> bool:
        """Whether keyframes are shown as if prompted, so that their memory is encoded as a prompted frame's."""
        return self.temporal == "prompt" and self.capacity > 0

    def grid(self, moment: Moment) -> Moment:
        """Return a moment with the stride of what fills the slots."""
        return moment if self.stride is None else replace(moment, stride=self.stride)

    def minor_slots(self, slots: int) -> int:
        """Return how many minor frames are held on a host that codes `slots` memories."""
        left = slots - self.recent - (0 if self.anchored else self.capacity)
        return self.minor if self.select.chooses else max(0, min(self.minor, left))

    @property
    def relation(self) -> Relation | None:
        """What eviction and retrieval ask between a frame and the memories held; None where neither asks."""
        for rule in (self.evict, self.select):
            relation: Relation | None = getattr(rule, "relation", None)
            if relation is not None:
                return relation
        return None

    @property
    def observes(self) -> bool:
        """Whether frames have to be measured at all."""
        untold = any(not hasattr(rule, "reads") for rule in self.rules())
        asked = self.relation is not None or self.select.on_device or self.choice is not None
        asked |= self.queries != Whole()
        return untold or asked or self.scorer is not None or bool(self.measure) or bool(self.read_scores())

    def check_fits(self, slots: int) -> None:
        """Check that the memories fit a host that codes `slots` of them (`num_maskmem` - 1).

        Raises:
            ValueError: They do not.
        """
        coded = self.recent + (0 if self.anchored or self.select.chooses else self.capacity)
        if coded > slots:
            if coded == self.recent:
                raise ValueError(
                    f"the newest {coded} frames (recent={coded}, which fifo calls capacity) are more than "
                    f"the {slots} memories (num_maskmem - 1) that this SAM 2 has temporal codes for: choose at most "
                    f"{slots}"
                )
            raise ValueError(
                f"recent={self.recent} and capacity={self.capacity} make {coded} memories with a temporal code of "
                f"their own, and this SAM 2 has {slots} (num_maskmem - 1). Choose at most {slots} together, "
                "temporal='anchor', which gives keyframes the conditioning row, or select=Relevant(), which chooses "
                "among them at each frame."
            )


def _with_parts(scorers: tuple[Scorer, ...]) -> Iterator[Scorer]:
    for scorer in scorers:
        yield scorer
        yield from _with_parts(getattr(scorer, "parts", ()))


def _check_kind(name: str, value: object, kind: Any, wanted: str) -> None:
    if isinstance(value, type):
        raise TypeError(f"{name}={value.__name__}: give {wanted}, not its class")
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: give {wanted}")


def _check_choice(name: str, value: object, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={value!r}: choose one of {known}{more}{did_you_mean(value, choices)}")
