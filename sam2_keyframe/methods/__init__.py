"""Methods by name: our own and the baselines; published ones are in `published`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.attention.maths import Foveated
from sam2_keyframe.bank.compression import PCA, Chain, Identity, Int8
from sam2_keyframe.conditions import check_rule
from sam2_keyframe.memory import KeyframeMemory, Keyframes, Others, Recent
from sam2_keyframe.methods import published
from sam2_keyframe.methods.published import NON_CAUSAL
from sam2_keyframe.rules.adaptive import Adaptive
from sam2_keyframe.rules.eviction import Random
from sam2_keyframe.rules.filters import EveryNth, MaxGap, MinGap, Visible
from sam2_keyframe.scorers import MaskIoU
from sam2_keyframe.types import Compressor, KeyframeFilter

__all__ = ["METHODS", "NON_CAUSAL", "KeyframeMemory", "make_method"]


def stock() -> KeyframeMemory:
    """SAM 2 as it is: the last six frames at their true slots, everything stored for ever. Bit-identical."""
    return KeyframeMemory(Recent(1), codes="slot", protect_corrections=False, store="all")


def window() -> KeyframeMemory:
    """The lossless window: reads as SAM 2 does and drops what it will not read again.

    Bit-identical in one uninterrupted forward sweep whose prompts were given before it.
    """
    return KeyframeMemory(Recent(1), codes="slot", protect_corrections=False)


def first() -> KeyframeMemory:
    """Prompted frames only: no tracked frame is remembered."""
    return KeyframeMemory(fill=False, pointers="selected")


def fifo(recent: int = 6) -> KeyframeMemory:
    """The last `recent` frames at their true slots; pointers as in SAM 2.

    Source: the rule of Gy920/segment-anything-2-real-time, which drops the pointers with the frames.
    """
    return KeyframeMemory(Recent(recent), fill=False, codes="slot")


def every_nth(n: int = 5, keyframes: int = 5) -> KeyframeMemory:
    """The newest frame and the last five frames of a grid of every n-th, counted from the prompt."""
    return KeyframeMemory(Recent(1), Keyframes(keyframes, EveryNth(n)), fill=False)


def random(seed: int = 0, keyframes: int = 5) -> KeyframeMemory:
    """The newest frame and a uniform sample of five frames of the past."""
    return KeyframeMemory(Recent(1), Keyframes(keyframes, evict=Random(seed)), fill=False)


def keyframe(
    change: float | KeyframeFilter = 0.5,
    keyframes: int = 2,
    others: int = 3,
    codec: Compressor = Identity(),  # noqa: B008 - frozen
) -> KeyframeMemory:
    """Our default: the newest frame, the last two on which the mask had changed by half, the last three others.

    Frames on which the object is not visible are passed over; while there are fewer than six, the newest ones fill the
    slots, as in SAM 2. Chosen on development clips, see "The default may not hurt" in benchmarks/README.md.

    Args:
        change: Bound on `MaskIoU()`, or another rule, as `SSIM() > 0.3`.
        keyframes: How many keyframes are held.
        others: How many other frames.
        codec: How both are stored.
    """
    kept = Keyframes(keyframes, _changed(change), codec=codec)
    return KeyframeMemory(Recent(1), kept, Others(others, Visible(), codec=codec))


def compact(
    change: float | KeyframeFilter = 0.5,
    keyframes: int = 2,
    others: int = 1,
    codec: Compressor = Chain(PCA(0.4), Int8()),  # noqa: B008 - frozen
) -> KeyframeMemory:
    """As `keyframe` with one other frame instead of three, stored in an eighth of the bytes, read by half of the keys.

    What it loses is measured in benchmarks/README.md. SAM 2's compiled predictor (VOS) refuses fewer keys; there choose
    attend=Whole(). Arguments as of `keyframe`.
    """
    return keyframe(change, keyframes, others, codec).with_choices(fill=False, attend=Foveated(0.45, 4))


def adaptive(k: float = 1.0, keyframes: int = 2, others: int = 3) -> KeyframeMemory:
    """As `keyframe`, above the running mean + k standard deviations; a keyframe at least every 60, at most every 5."""
    return keyframe(Adaptive(MaskIoU(), k) & MinGap(5) | MaxGap(60), keyframes, others)


def _changed(change: float | KeyframeFilter) -> KeyframeFilter:
    rule = check_rule(change, "change") if not isinstance(change, Real) else MaskIoU() > float(change)
    return Visible() & rule


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


def make_method(method: str | KeyframeMemory, **choices: Any) -> KeyframeMemory:
    """Return a method by name or as given, with some of its choices replaced.

    Args:
        method: A name in `METHODS` or a `KeyframeMemory`.
        **choices: Arguments of the named method (`change` of "keyframe"), and choices of the whole memory (`fill`,
            `attend`, ...; see `KeyframeMemory`).

    Raises:
        ValueError: The name or a keyword is unknown; the message lists the valid ones.
        TypeError: `method` is neither.
    """
    own: list[str] = []
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"there is no method {method!r}; choose one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
            )
        own = list(inspect.signature(METHODS[method]).parameters)
    elif not isinstance(method, KeyframeMemory):
        raise TypeError(f"method={method!r}: give a name ({', '.join(METHODS)}) or a KeyframeMemory")
    valid = (*own, *KeyframeMemory.CHOICES)
    unknown = [name for name in choices if name not in valid]
    if unknown:
        raise ValueError(
            f"unknown keyword {', '.join(unknown)}; valid are {', '.join(valid)}. For other shelves or rules write the "
            "memory out, as KeyframeMemory(Recent(1), Keyframes(2, Visible() & (SSIM() > 0.3)))"
            f"{did_you_mean(unknown[0], valid)}"
        )
    if isinstance(method, str):
        given = {name: choices.pop(name) for name in own if name in choices}
        try:
            chosen = METHODS[method](**given)
        except (TypeError, ValueError) as error:
            if not given:
                raise
            told = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise type(error)(f"{method}({told}): {error}") from None
    else:
        chosen = method
    return chosen.with_choices(**choices) if choices else chosen
