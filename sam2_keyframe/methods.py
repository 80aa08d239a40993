"""Methods: every choice in one dataclass, and named settings of it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sam2_keyframe.buffer import Evict, Oldest, Random
from sam2_keyframe.filters import Always, EveryNth, Never, Quality, Visible, as_filter, reads
from sam2_keyframe.scorers import MaskIoU
from sam2_keyframe.types import BASE_SCORES, KeyframeFilter, Scorer

Temporal = Literal["slot", "rank", "anchor"]


@dataclass(frozen=True)
class KeyframeMemory:
    """Every choice of a memory method. `repr()` rebuilds it.

    SAM 2 attends to its prompted frames always; the choices below fill its remaining slots.

    Attributes:
        recent: Newest frames always attended to, at least 0.
        capacity: Keyframes held besides them, at least 0. A frame enters the buffer when it leaves `recent`.
        fill: Whether slots that no keyframe holds go to the next newest frames, as in SAM 2.
        gate: Is the frame trustworthy? Asked first; stays when `keep` is swept.
        scorer: Measures the significance; None: unknown, which every threshold calls new.
        keep: Is the frame new enough? A number is a threshold on the significance; infinity keeps none.
        evict: Which keyframe leaves a full buffer.
        pointers: Object pointers that are read, of SAM 2's t-1 .. t-15: "recent" all of them, "selected" those of
            keyframes, a filter those of frames it accepts. Prompts' pointers are always read, and never is
            there none at all.
        temporal: SAM 2's learned temporal code for a memory: "slot" its true slot, older keyframes in the
            free slots farthest back; "rank" by recency without gaps; "anchor" the conditioning row for keyframes.
        retain: "bank": what is neither held nor about to be read leaves the device. "all": nothing does (stock).
        keep_masks: Whether mask logits of past frames are kept, on the CPU, so that clicking on an earlier frame
            starts from its mask as in SAM 2; they grow by H/4 x W/4 float32 a frame and object. False lets them go.
        measure: More scorers, recorded beside the significance and readable by filters.

    Raises:
        TypeError: A choice is of the wrong kind.
        ValueError: A number is out of range, or a filter reads a score that nothing measures.
    """

    recent: int = 1
    capacity: int = 5
    fill: bool = True
    gate: KeyframeFilter = Visible() & Quality(0.5)
    scorer: Scorer | None = MaskIoU()  # noqa: RUF009 - scorers are frozen
    keep: KeyframeFilter | float = 0.3
    evict: Evict = Oldest()  # noqa: RUF009 - rules are frozen
    pointers: Literal["recent", "selected"] | KeyframeFilter = "recent"
    temporal: Temporal = "rank"
    retain: Literal["all", "bank"] = "bank"
    keep_masks: bool = True
    measure: tuple[Scorer, ...] = ()

    def __post_init__(self) -> None:
        """Check every choice and turn a number given as `keep` into its filter."""
        for name in ("recent", "capacity"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: must be a whole number of at least 0")
        for name in ("fill", "keep_masks"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r}: must be True or False")
        object.__setattr__(self, "keep", as_filter(self.keep))
        object.__setattr__(self, "measure", tuple(self.measure))
        _check_kind("gate", self.gate, KeyframeFilter, "a keyframe filter such as Visible() & Quality(0.5)")
        _check_kind("evict", self.evict, Evict, "an eviction rule such as Oldest()")
        for scorer in (*([] if self.scorer is None else [self.scorer]), *self.measure):
            _check_kind("scorer", scorer, Scorer, "a scorer such as MaskIoU(), not its class")
        _check_choice("temporal", self.temporal, get_args(Temporal))
        _check_choice("retain", self.retain, ("all", "bank"))
        if not isinstance(self.pointers, KeyframeFilter):
            _check_choice("pointers", self.pointers, ("recent", "selected"), " or a keyframe filter")
        self._check_scores()

    def _check_scores(self) -> None:
        by_name: dict[str, Scorer] = {}
        for scorer in self.scorers():
            if by_name.setdefault(scorer.name, scorer) != scorer:
                raise ValueError(
                    f"two scores are called {scorer.name!r}: give one of them another name, as in "
                    f"{type(scorer).__name__}(name='{scorer.name}_2')"
                )
        unknown = self.read_scores() - set(by_name) - set(BASE_SCORES)
        if unknown:
            raise ValueError(
                f"a filter reads {', '.join(sorted(unknown))}, which nothing measures; measured are "
                f"{', '.join([*BASE_SCORES, *by_name])}. Add the scorer: measure=(..., )"
            )

    def scorers(self) -> Iterator[Scorer]:
        """Yield the scorer, its parts, and those in `measure`."""
        yield from _with_parts(() if self.scorer is None else (self.scorer,))
        yield from _with_parts(self.measure)

    def read_scores(self) -> frozenset[str]:
        """Return the names of the scores that gate, keep and pointers read."""
        return reads(self.gate) | reads(self.keep) | reads(self.pointers)

    @property
    def observes(self) -> bool:
        """Whether frames have to be measured at all."""
        rules = (self.gate, self.keep, self.pointers)
        untold = any(isinstance(rule, KeyframeFilter) and not hasattr(rule, "reads") for rule in rules)
        return untold or self.scorer is not None or bool(self.measure) or bool(self.read_scores())

    def check_fits(self, slots: int) -> None:
        """Check that the memories fit a host that codes `slots` of them (`num_maskmem` - 1).

        Raises:
            ValueError: They do not.
        """
        coded = self.recent + (0 if self.temporal == "anchor" else self.capacity)
        if coded > slots:
            raise ValueError(
                f"recent={self.recent} and capacity={self.capacity} make {coded} memories with a temporal code of "
                f"their own, and this SAM 2 has {slots} (num_maskmem - 1). Choose at most {slots} together, or "
                "temporal='anchor', which gives keyframes the conditioning row."
            )


def stock() -> KeyframeMemory:
    """SAM 2 as it is: the last six frames at their true slots, everything stored for ever. Bit-identical."""
    return dataclasses.replace(window(), retain="all")


def window() -> KeyframeMemory:
    """The lossless window: reads as SAM 2 does and drops what it will not read again.

    Bit-identical in one uninterrupted forward sweep whose prompts were given before it.
    """
    return _unmeasured(capacity=0, temporal="slot")


def first() -> KeyframeMemory:
    """Prompted frames only: no tracked frame is remembered."""
    return _unmeasured(recent=0, capacity=0, fill=False, pointers="selected")


def fifo(capacity: int = 6) -> KeyframeMemory:
    """The last `capacity` frames at their true slots; pointers as in SAM 2.

    Source: the rule of Gy920/segment-anything-2-real-time, which drops the pointers with the frames.
    """
    return _unmeasured(recent=capacity, capacity=0, fill=False, temporal="slot")


def every_nth(n: int = 5) -> KeyframeMemory:
    """The newest frame and the last five frames of a grid of every n-th, counted from the prompt."""
    return _unmeasured(fill=False, keep=EveryNth(n))


def random(seed: int = 0) -> KeyframeMemory:
    """The newest frame and a uniform sample of five frames of the past."""
    return _unmeasured(fill=False, evict=Random(seed))


def keyframe() -> KeyframeMemory:
    """Our default: the newest frame and the last five trustworthy frames on which the mask had changed."""
    return KeyframeMemory()


METHODS: dict[str, Callable[..., KeyframeMemory]] = {
    method.__name__: method for method in (stock, window, first, fifo, every_nth, random, keyframe)
}
"""Methods by name: factories, never shared instances."""


def make_method(method: str | KeyframeMemory, **overrides: Any) -> KeyframeMemory:
    """Return a method by name or as given, with some of its choices replaced.

    Args:
        method: A name in `METHODS` or a `KeyframeMemory`.
        **overrides: Arguments of the named method (`n` of "every_nth") or fields of `KeyframeMemory`.

    Raises:
        ValueError: The name or a keyword is unknown; the message lists the valid ones.
        TypeError: `method` is neither.
    """
    fields = [field.name for field in dataclasses.fields(KeyframeMemory)]
    own: list[str] = []
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
        own = list(inspect.signature(METHODS[method]).parameters)
    elif not isinstance(method, KeyframeMemory):
        raise TypeError(f"method={method!r}: give a name ({', '.join(METHODS)}) or a KeyframeMemory")
    unknown = [name for name in overrides if name not in (*own, *fields)]
    if unknown:
        raise ValueError(f"unknown keyword {', '.join(unknown)}; valid are {', '.join(dict.fromkeys([*own, *fields]))}")
    chosen = method
    if isinstance(chosen, str):
        chosen = METHODS[chosen](**{name: overrides.pop(name) for name in own if name in overrides})
    return dataclasses.replace(chosen, **overrides)


def _unmeasured(**choices: Any) -> KeyframeMemory:
    """Return a method that trusts and keeps every frame, unless told otherwise, and measures none."""
    defaults: dict[str, Any] = {"gate": Always(), "scorer": None, "keep": Always()}
    if choices.get("capacity") == 0:
        defaults["keep"] = Never()
    return KeyframeMemory(**{**defaults, **choices})


def _with_parts(scorers: tuple[Scorer, ...]) -> Iterator[Scorer]:
    for scorer in scorers:
        yield scorer
        yield from _with_parts(getattr(scorer, "parts", ()))


def _check_kind(name: str, value: object, kind: type, wanted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, type):
        raise TypeError(f"{name}={value!r}: give {wanted}")


def _check_choice(name: str, value: object, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}{more}")
