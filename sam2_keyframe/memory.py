"""Every choice of a memory method: a short list of shelves, and a few choices of the whole memory.

In use::

    KeyframeMemory(Recent(1), Keyframes(2, Visible() & (MaskIoU() > 0.5)), Others(3, Visible()))

SAM 2 attends to its prompted frames always; the shelves fill its remaining slots. When the numbers of a tracked frame
arrive, the shelves are asked once, in order. The frame goes to the first that takes it and moves in when it leaves
`Recent`; what leaves a shelf is gone unless there is a `LongTerm`. A frame that the user corrected comes before all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar, get_args

from sam2_keyframe._checks import check_whole, did_you_mean, short_repr
from sam2_keyframe.attention.maths import Attend, Whole
from sam2_keyframe.attention.queries import Queries
from sam2_keyframe.bank.compression import Identity
from sam2_keyframe.conditions import check_rule, check_scorer, looks, scorers_of
from sam2_keyframe.rules.eviction import Evict, Oldest
from sam2_keyframe.rules.filters import Always
from sam2_keyframe.rules.motion import Kalman
from sam2_keyframe.rules.retrieval import Nearest, Select
from sam2_keyframe.rules.returns import Confirm
from sam2_keyframe.rules.tree import Tree
from sam2_keyframe.rules.verify import Backward
from sam2_keyframe.scorers import Area, BackwardIoU, KalmanOverlap, ObjectScore, PredictedIoU
from sam2_keyframe.types import Compressor, KeyframeFilter, Moment, Relation, Scorer

Codes = Literal["rank", "slot"]
Code = Literal["time", "anchor", "prompt"]
ALWAYS = (PredictedIoU(), ObjectScore(), Area())
"""Measured on every frame that is measured at all."""

RESERVED = frozenset(
    {"", "near_share", "frame", "time", "object", "prompted", "significance", "keyframe", "evicted", "attended"}
    | {f"{who}{what}" for who in ("", "stock_", "window_") for what in ("frames", "bytes", "tokens")}
    | {"held", "host_bytes", "milliseconds"}
)
"""Names that no scorer may take: the tables' columns beside scores."""


def check_bool(name: str, value: object) -> None:
    """Raise TypeError unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be True or False")


def _check_kind(name: str, value: object, kind: Any, wanted: str) -> None:
    if isinstance(value, type):
        raise TypeError(f"{name}={value.__name__}: give {wanted}, not its class")
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: give {wanted}")


def _check_choice(name: str, value: object, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={value!r}: choose one of {known}{more}{did_you_mean(value, choices)}")


# -- shelves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Recent:
    """The newest frames.

    Attributes:
        n: How many, at least 0.
        when: Those that pass this rule alone: the newest of them and, before that, those on the grid of multiples of
            `every`. Together with prompts and other shelves they are at most `num_maskmem`, but one at least; a frame
            that another shelf took leaves after one frame.
        every: Distance in frames between them, after the newest; of those, too, with which `fill` fills up. None: as
            SAM 2 is set (`memory_temporal_stride_for_eval`), 1 with `when`.
    """

    n: int
    when: KeyframeFilter | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        """Check the choices."""
        check_whole(self, "n", least=0)
        if self.when is not None:
            check_rule(self.when, "Recent")
        if self.every is not None:
            check_whole(self, "every")

    __repr__ = short_repr


@dataclass(frozen=True, repr=False)
class Keyframes:
    """The rolling buffer. Later frames are compared with its newest, gaps count from it, statistics name it.

    Attributes:
        n: Frames held, at least 0.
        when: Which frames become keyframes.
        evict: Which one leaves a full buffer.
        codec: How they are stored. Fewer bytes, not fewer tokens.
        code: SAM 2's learned temporal code for them. "time": as the memory's `codes` say. "anchor": the row of prompted
            frames, so that they take no slot. "prompt": that row and the keyframe's own pointer at its true distance,
            as if it had been prompted.
        read: Which of them are attended to, where more are held than SAM 2 has slots besides `Recent`.
        before: The last frame before a keyframe that passes this rule becomes one too, as at a scene boundary.
        once: The buffer is closed by the first frame that passes this rule, and read from then on: before that its
            keyframes are candidates, as they were stored; after it none comes and none leaves. None: it is always read,
            and never closed.
    """

    n: int
    when: KeyframeFilter = Always()  # noqa: RUF009 - frozen, as is every default below
    evict: Evict = Oldest()  # noqa: RUF009
    codec: Compressor = Identity()  # noqa: RUF009
    code: Code = "time"
    read: Select = Nearest()  # noqa: RUF009
    before: KeyframeFilter | None = None
    once: KeyframeFilter | None = None

    def __post_init__(self) -> None:
        """Check the choices."""
        check_whole(self, "n", least=0)
        check_rule(self.when, "Keyframes")
        for name in ("before", "once"):
            if getattr(self, name) is not None:
                check_rule(getattr(self, name), f"Keyframes({name}=...)")
        _check_kind("evict", self.evict, Evict, "an eviction rule such as Oldest()")
        _check_kind("read", self.read, Select, "a retrieval rule such as Nearest()")
        _check_kind("codec", self.codec, Compressor, "a codec such as Int8()")
        _check_choice("code", self.code, get_args(Code))
        relations = {getattr(rule, "relation", None) for rule in (self.evict, self.read)} - {None}
        if len(relations) > 1:
            raise ValueError(f"evict and read measure different relations: {relations}. Give both the same one")

    __repr__ = short_repr


@dataclass(frozen=True, repr=False)
class Others:
    """Frames that are no keyframes, the newest of them. They give way where slots run out.

    Attributes:
        n: Frames held, at least 0, and no more than `Recent` and `Keyframes` leave slots for.
        when: Which frames.
        codec: How they are stored.
    """

    n: int
    when: KeyframeFilter = Always()  # noqa: RUF009 - frozen, as is every default below
    codec: Compressor = Identity()  # noqa: RUF009

    def __post_init__(self) -> None:
        """Check the choices."""
        check_whole(self, "n", least=0)
        check_rule(self.when, "Others")
        _check_kind("codec", self.codec, Compressor, "a codec such as Downsample(2)")

    __repr__ = short_repr


@dataclass(frozen=True, repr=False)
class LongTerm:
    """Long-term memories into which the keyframes that leave are merged, cell by cell, weighted by their usage.

    They are read with the code of prompted frames.

    Attributes:
        n: Memories held, at least 0.
        of: Keyframes merged into one, at least 1.
    """

    n: int
    of: int = 5

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole(self, "n", least=0)
        check_whole(self, "of")

    __repr__ = short_repr


Shelf = Recent | Keyframes | Others | LongTerm
_Shelf = TypeVar("_Shelf", Recent, Keyframes, Others, LongTerm)


# -- choices of the whole memory --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Prompts:
    """Which prompted frames are attended to.

    Attributes:
        most: At most so many, the nearest, at least 1; None: as many as SAM 2 is set to.
        keep_first: Whether the first one is always among them.
        future: Whether those still to come are attended to, as in SAM 2. False: a frame is tracked by what is behind
            it alone, and an object is absent before its first prompt.
    """

    most: int | None = None
    keep_first: bool = True
    future: bool = True

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.most is not None:
            check_whole(self, "most")
        for name in ("keep_first", "future"):
            check_bool(name, getattr(self, name))

    __repr__ = short_repr


@dataclass(frozen=True, repr=False)
class Ranked:
    """The pointers of the last 15 frames that a rule accepts and of the newest frame, each at its rank.

    Attributes:
        when: The rule.
    """

    when: KeyframeFilter

    def __post_init__(self) -> None:
        """Check the rule."""
        check_rule(self.when, "Ranked")

    __repr__ = short_repr


@dataclass(frozen=True, init=False, repr=False)
class KeyframeMemory:
    """Every choice of a memory method. `repr()` rebuilds it.

    Attributes:
        shelves: What is held: at most one each of `Recent`, `Keyframes`, `Others` and `LongTerm`, in the order in which
            they are asked.
        fill: Whether slots that no shelf takes get the next newest frames, as in SAM 2; not where `Recent` has a rule.
        codes: SAM 2's learned temporal code for a memory: "rank", by recency without gaps, or "slot", its true slot,
            older keyframes in the free slots farthest back.
        pointers: Object pointers that are read, of SAM 2's t-1 .. t-15: "recent" all of them, "selected" those of
            keyframes, a rule those of frames it accepts; or `Ranked(rule)`. Prompts' pointers are always read, and
            never is there none at all.
        prompts: Which prompted frames are attended to.
        attend: Which tokens of a memory are attended to. Fewer tokens, not fewer bytes.
        queries: Which tokens of the frame being tracked run through memory attention. Less time, not fewer bytes.
        choice: Chooses among the decoder's candidate masks by motion as well; None: SAM 2's own choice.
        confirm: Asks more of a mask that appears anew or jumps; None: SAM 2's own, a score above 0. A replay holds the
            masks fixed, so it changes nothing there.
        verify: Tracks a doubtful mask backwards before it is believed, and replaces it where another one fits the last
            frames better; None: every mask is believed.
        tree: Tracks each frame along several paths with memories of their own; None: along one. Not with `choice`,
            `confirm`, `verify`, `store="all"`, `LongTerm`, or keyframes of code "prompt".
        measure: More scorers, recorded with every frame.
        protect_corrections: Whether a tracked frame that the user corrected is held until it is removed, besides the
            shelves, in at most half of the room, and shown as corrected when it is tracked over again. SAM 2
            overwrites it.
        keep_masks: Whether mask logits of past frames are kept, on the CPU, so that clicking on an earlier frame
            starts from its mask as in SAM 2; they grow by H/4 x W/4 float32 a frame and object. False lets them go.
        store: "bank": what is neither held nor about to be read leaves the device. "all": nothing does (stock).

    Raises:
        TypeError: A choice is of the wrong kind.
        ValueError: A number is out of range, two scores share a name or one has a reserved name, or two choices do not
            go together.
    """

    shelves: tuple[Shelf, ...]
    fill: bool
    codes: Codes
    pointers: Literal["recent", "selected"] | KeyframeFilter | Ranked
    prompts: Prompts
    attend: Attend
    queries: Queries
    choice: Kalman | None
    confirm: Confirm | None
    verify: Backward | None
    tree: Tree | None
    measure: tuple[Scorer, ...]
    protect_corrections: bool
    keep_masks: bool
    store: Literal["bank", "all"]

    CHOICES: ClassVar[tuple[str, ...]] = (
        "fill", "codes", "pointers", "prompts", "attend", "queries", "choice", "confirm", "verify", "tree", "measure",
        "protect_corrections", "keep_masks", "store",
    )  # fmt: skip

    def __init__(
        self,
        *shelves: Shelf,
        fill: bool = True,
        codes: Codes = "rank",
        pointers: Literal["recent", "selected"] | KeyframeFilter | Ranked = "recent",
        prompts: Prompts = Prompts(),
        attend: Attend = Whole(),  # noqa: B008
        queries: Queries = Whole(),  # noqa: B008
        choice: Kalman | None = None,
        confirm: Confirm | None = None,
        verify: Backward | None = None,
        tree: Tree | None = None,
        measure: tuple[Scorer, ...] = (),
        protect_corrections: bool = True,
        keep_masks: bool = True,
        store: Literal["bank", "all"] = "bank",
    ) -> None:
        given = locals()
        for name in ("shelves", *self.CHOICES):
            object.__setattr__(self, name, given[name])
        self._check_shelves()
        self._check_choices()
        self._check_together()
        self._check_scores()

    def _check_shelves(self) -> None:
        kinds = get_args(Shelf)
        names = ", ".join(kind.__name__ for kind in kinds)
        for shelf in self.shelves:
            if isinstance(shelf, type):
                raise TypeError(f"{shelf.__name__} is a class: write {shelf.__name__}(2)")
            if not isinstance(shelf, kinds):
                raise TypeError(f"KeyframeMemory({shelf!r}): give shelves ({names}), then choices by name")
            if sum(type(other) is type(shelf) for other in self.shelves) > 1:
                raise ValueError(f"there are two shelves {type(shelf).__name__}: give one of each kind")

    def _check_choices(self) -> None:
        for name in ("fill", "protect_corrections", "keep_masks"):
            check_bool(name, getattr(self, name))
        _check_choice("codes", self.codes, get_args(Codes))
        _check_choice("store", self.store, ("bank", "all"))
        if isinstance(self.pointers, str):
            _check_choice("pointers", self.pointers, ("recent", "selected"), ", Ranked(rule) or a rule")
        elif not isinstance(self.pointers, Ranked):
            check_rule(self.pointers, "pointers")
        _check_kind("prompts", self.prompts, Prompts, "Prompts(4), say")
        _check_kind("attend", self.attend, Attend, "a token scheme such as Pool(2)")
        _check_kind("queries", self.queries, Queries, "NearObject() or Whole()")
        if self.choice is not None:
            _check_kind("choice", self.choice, Kalman, "Kalman() or None")
        if self.confirm is not None:
            _check_kind("confirm", self.confirm, Confirm, "Confirm() or None")
        if self.verify is not None:
            _check_kind("verify", self.verify, Backward, "Backward() or None")
        if self.tree is not None:
            _check_kind("tree", self.tree, Tree, "Tree() or None")
        if isinstance(self.measure, Scorer) or not isinstance(self.measure, tuple | list):
            raise TypeError(f"measure={self.measure!r}: give a tuple of scorers, as in (OpticalFlow(),)")
        object.__setattr__(self, "measure", tuple(check_scorer(scorer, "measure") for scorer in self.measure))
        try:
            hash(self)
        except TypeError as error:
            raise TypeError(f"{error}: scorers and rules are frozen dataclasses, @dataclass(frozen=True)") from None

    def _check_together(self) -> None:
        keys = self.keyframes
        shrinks = any(codec != Identity() for codec in (keys.codec, self.others.codec)) or self.long_term.n > 0
        if self.store == "all" and shrinks:
            raise ValueError("store='all' keeps every memory as it is: choose store='bank' to compress or merge")
        if keys.read.on_device and (keys.code == "prompt" or (keys.code == "time" and self.codes == "slot")):
            raise ValueError(
                f"read={keys.read!r} chooses on the device, where a slot or a pointer has no frame to go by: choose "
                "codes='rank', or code='anchor' for the keyframes"
            )
        if self.tree is not None:
            apart: dict[str, object] = {"choice": self.choice, "confirm": self.confirm, "verify": self.verify}
            apart["LongTerm"] = self.long_term.n or None
            apart["store"] = "all" if self.store == "all" else None
            apart["code"] = "prompt" if self.as_prompted else None
            both = [f"{name}={value!r}" for name, value in apart.items() if value is not None]
            if both:
                raise ValueError(f"tree={self.tree!r} does not go together with {', '.join(both)}: choose one of them")
            if self.tree.lag and not self.keep_masks:
                raise ValueError(f"tree={self.tree!r} shows masks of past frames: choose keep_masks=True")
        if self.recent.when is not None and keys.code == "time" and self.codes == "slot":
            raise ValueError(
                f"{self.recent!r} reads frames that have no slot of their own: choose codes='rank', or code='anchor' "
                "for the keyframes"
            )
        if keys.read.on_device and getattr(self.attend, "reads_masks", False):
            raise ValueError(
                f"attend={self.attend!r} goes by what is stored with each memory, and read={keys.read!r} chooses "
                "memories on the device: choose attend=Pool(2)"
            )

    def _check_scores(self) -> None:
        by_name: dict[str, Scorer] = {scorer.name: scorer for scorer in ALWAYS}
        for scorer in self.scorers:
            if scorer.name in RESERVED:
                raise ValueError(f"{scorer!r}: the name {scorer.name!r} is a column's; give it another name=...")
            if by_name.setdefault(scorer.name, scorer) != scorer:
                raise ValueError(
                    f"two scores are called {scorer.name!r}: give one of them another name, as in "
                    f"{type(scorer).__name__}(name='{scorer.name}_2')"
                )
        if self.choice is None and any(isinstance(scorer, KalmanOverlap) for scorer in self.scorers):
            raise ValueError("a rule reads KalmanOverlap(), which only choice=Kalman() measures: choose that as well")
        if self.verify is None and any(isinstance(scorer, BackwardIoU) for scorer in self.scorers):
            raise ValueError("a rule reads BackwardIoU(), which only verify=Backward() measures: choose that as well")

    def with_choices(self, **choices: Any) -> KeyframeMemory:
        """Return this memory with some choices of the whole memory replaced."""
        return KeyframeMemory(*self.shelves, **{**{name: getattr(self, name) for name in self.CHOICES}, **choices})

    def __repr__(self) -> str:
        plain = KeyframeMemory.__init__.__kwdefaults__ or {}
        changed = {name: getattr(self, name) for name in self.CHOICES if getattr(self, name) != plain[name]}
        given = [*map(repr, self.shelves), *(f"{name}={value!r}" for name, value in changed.items())]
        return f"KeyframeMemory({', '.join(given)})"

    # -- what follows from the choices ------------------------------------------------------------------------------

    def _shelf(self, absent: _Shelf) -> _Shelf:
        return next((shelf for shelf in self.shelves if type(shelf) is type(absent)), absent)

    @cached_property
    def recent(self) -> Recent:
        """The shelf of that name; empty where there is none."""
        return self._shelf(Recent(0))

    @cached_property
    def keyframes(self) -> Keyframes:
        """The shelf of that name; empty where there is none."""
        return self._shelf(Keyframes(0))

    @cached_property
    def others(self) -> Others:
        """The shelf of that name; empty where there is none."""
        return self._shelf(Others(0))

    @cached_property
    def long_term(self) -> LongTerm:
        """The shelf of that name; empty where there is none."""
        return self._shelf(LongTerm(0))

    @cached_property
    def asked(self) -> tuple[Keyframes | Others, ...]:
        """The shelves that are asked whether they take a frame, in order."""
        return tuple(shelf for shelf in self.shelves if isinstance(shelf, Keyframes | Others))

    @cached_property
    def newest(self) -> int:
        """How many of the newest frames are attended to whatever else is held."""
        return self.recent.n if self.recent.when is None else min(self.recent.n, 1)

    @cached_property
    def lag(self) -> int:
        """For how many frames one that a shelf took stays among the recent ones."""
        return self.newest if self.keyframes.once is None else min(self.newest, 1)

    @cached_property
    def anchored(self) -> bool:
        """Whether keyframes take no slots of SAM 2: they are read beside its prompted frames."""
        return self.keyframes.code != "time"

    @cached_property
    def as_prompted(self) -> bool:
        """Whether keyframes are shown as if prompted, so that their memory is encoded as a prompted frame's."""
        return self.keyframes.code == "prompt" and self.keyframes.once is None and self.keyframes.n > 0

    @cached_property
    def rules(self) -> tuple[KeyframeFilter, ...]:
        """The rules of all shelves, and that of the pointers."""
        pointers = self.pointers.when if isinstance(self.pointers, Ranked) else self.pointers
        asked = [getattr(shelf, name, None) for shelf in self.asked for name in ("when", "before", "once")]
        return tuple(rule for rule in (*asked, self.recent.when, pointers) if isinstance(rule, KeyframeFilter))

    @cached_property
    def scorers(self) -> tuple[Scorer, ...]:
        """Every scorer that a rule reads or `measure` names, and those that they are made of, each once."""
        asking = (*self.rules, self.keyframes.evict, *self.measure)
        return tuple(dict.fromkeys(scorer for part in asking for scorer in scorers_of(part)))

    @cached_property
    def significance(self) -> Scorer | None:
        """What tells keyframes from other frames: the first scorer of their rule that is not about a mask's quality."""
        return next((s for s in scorers_of(self.keyframes.when) if not getattr(s, "quality", False)), None)

    @cached_property
    def relation(self) -> Relation | None:
        """What eviction and retrieval ask between a frame and the memories held; None where neither asks."""
        asked = (getattr(rule, "relation", None) for rule in (self.keyframes.evict, self.keyframes.read))
        return next((relation for relation in asked if relation is not None), None)

    @cached_property
    def again(self) -> str | None:
        """Which choice has a frame inferred a second time, under other memories or masks; None where none does."""
        chosen = {"verify": self.verify, "tree": self.tree}
        return next((f"{name}={value!r}" for name, value in chosen.items() if value is not None), None)

    @cached_property
    def observes(self) -> bool:
        """Whether frames have to be measured at all."""
        asked = self.relation is not None or self.keyframes.read.on_device or self.choice is not None
        asked |= self.queries != Whole() or self.confirm is not None or self.again is not None
        return asked or bool(self.scorers) or any(map(looks, self.rules))

    def grid(self, moment: Moment) -> Moment:
        """Return a moment with the stride of what fills the slots."""
        return moment if self.recent.every is None else replace(moment, stride=self.recent.every)

    def room_for_others(self, slots: int) -> int:
        """Return how many frames `Others` holds on a host that codes `slots` memories."""
        left = slots - self.newest - (0 if self.anchored else self.keyframes.n)
        return self.others.n if self.keyframes.read.chooses else max(0, min(self.others.n, left))

    def check_fits(self, slots: int) -> None:
        """Check that the memories fit a host that codes `slots` of them (`num_maskmem` - 1).

        Raises:
            ValueError: They do not.
        """
        coded = self.newest + (0 if self.anchored or self.keyframes.read.chooses else self.keyframes.n)
        if coded > slots:
            if coded == self.newest:
                raise ValueError(
                    f"{self.recent!r}: the newest {coded} frames are more than the {slots} memories (num_maskmem - 1) "
                    f"that this SAM 2 has temporal codes for: choose at most {slots}"
                )
            both = " and ".join(repr(shelf) for shelf in self.shelves if isinstance(shelf, Recent | Keyframes))
            raise ValueError(
                f"{both} make {coded} memories with a temporal code of their own, and this SAM 2 has {slots} "
                f"(num_maskmem - 1). Choose at most {slots} together; or give keyframes the row of prompted frames, "
                "Keyframes(..., code='anchor'), or a rule that chooses among them at each frame, read=Relevant()"
            )
