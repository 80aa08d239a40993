"""Methods by name: our own and the baselines; published ones are in `published`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.attention.maths import Foveated
from sam2_keyframe.bank.compression import PCA, Chain, Identity, Int8
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.methods import published
from sam2_keyframe.methods.published import NON_CAUSAL, unmeasured
from sam2_keyframe.rules.eviction import Random
from sam2_keyframe.rules.filters import Adaptive, EveryNth, MaxGap, MinGap, Visible

__all__ = ["METHODS", "NON_CAUSAL", "KeyframeMemory", "make_method"]


def stock() -> KeyframeMemory:
    """SAM 2 as it is: the last six frames at their true slots, everything stored for ever. Bit-identical."""
    return dataclasses.replace(window(), retain="all")


def window() -> KeyframeMemory:
    """The lossless window: reads as SAM 2 does and drops what it will not read again.

    Bit-identical in one uninterrupted forward sweep whose prompts were given before it.
    """
    return unmeasured(capacity=0, temporal="slot", protect_corrections=False)


def first() -> KeyframeMemory:
    """Prompted frames only: no tracked frame is remembered."""
    return unmeasured(recent=0, capacity=0, fill=False, pointers="selected")


def fifo(capacity: int = 6) -> KeyframeMemory:
    """The last `capacity` frames at their true slots; pointers as in SAM 2.

    Source: the rule of Gy920/segment-anything-2-real-time, which drops the pointers with the frames.
    """
    return unmeasured(recent=capacity, capacity=0, fill=False, temporal="slot")


def every_nth(n: int = 5) -> KeyframeMemory:
    """The newest frame and the last five frames of a grid of every n-th, counted from the prompt."""
    return unmeasured(fill=False, keep=EveryNth(n))


def random(seed: int = 0) -> KeyframeMemory:
    """The newest frame and a uniform sample of five frames of the past."""
    return unmeasured(fill=False, evict=Random(seed))


def keyframe() -> KeyframeMemory:
    """Our default: the newest frame, the last two on which the mask had changed by half, the last three others.

    Frames on which the object is not visible are passed over; while there are fewer than six, the newest ones fill the
    slots, as in SAM 2. Chosen on development clips, see "The default may not hurt" in benchmarks/README.md.
    """
    return KeyframeMemory(capacity=2, gate=Visible(), keep=0.5, minor=3, minor_compressor=Identity())


def compact() -> KeyframeMemory:
    """As `keyframe` with one other frame instead of three, stored in an eighth of the bytes, read by half of the keys.

    What it loses is measured in benchmarks/README.md. SAM 2's compiled predictor (VOS) refuses fewer keys; there choose
    attend=Whole().
    """
    codec, near = Chain(PCA(0.4), Int8()), Foveated(0.45, 4)
    fewer = dataclasses.replace(keyframe(), minor=1, fill=False)
    return dataclasses.replace(fewer, compressor=codec, minor_compressor=codec, attend=near)


def adaptive(k: float = 1.0) -> KeyframeMemory:
    """As `keyframe`, above the running mean + k standard deviations; a keyframe at least every 60, at most every 5."""
    return dataclasses.replace(keyframe(), keep=Adaptive(k) & MinGap(5) | MaxGap(60))


METHODS: dict[str, Callable[..., KeyframeMemory]] = {
    method.__name__: method
    for method in (
        *(stock, window, first, fifo, every_nth, random, keyframe, compact, adaptive),
        *published.OURS,
        *published.PUBLISHED,
        *published.ADAPTED,
    )
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
            raise ValueError(
                f"there is no method {method!r}; choose one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
            )
        own = list(inspect.signature(METHODS[method]).parameters)
    elif not isinstance(method, KeyframeMemory):
        raise TypeError(f"method={method!r}: give a name ({', '.join(METHODS)}) or a KeyframeMemory")
    unknown = [name for name in overrides if name not in (*own, *fields)]
    if unknown:
        valid = list(dict.fromkeys([*own, *fields]))
        hint = did_you_mean(unknown[0], valid)
        raise ValueError(f"unknown keyword {', '.join(unknown)}; valid are {', '.join(valid)}{hint}")
    chosen = method
    if isinstance(chosen, str):
        given = {name: overrides.pop(name) for name in own if name in overrides}
        try:
            chosen = METHODS[chosen](**given)
        except (TypeError, ValueError) as error:
            if not given:
                raise
            told = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise type(error)(f"{method}({told}): {error}") from None
    return dataclasses.replace(chosen, **overrides)
