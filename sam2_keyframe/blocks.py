"""Every building block by name: what a memory is made of, for the command line, for lists and for tables of tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam2_keyframe.attention.maths import ATTEND
from sam2_keyframe.attention.queries import QUERIES
from sam2_keyframe.bank.compression import CODECS
from sam2_keyframe.conditions import Threshold
from sam2_keyframe.memory import KeyframeMemory, Keyframes, LongTerm, Others, Prompts, Ranked, Recent
from sam2_keyframe.rules.eviction import EVICTION
from sam2_keyframe.rules.filters import RULES
from sam2_keyframe.rules.motion import MOTION
from sam2_keyframe.rules.retrieval import SELECTION
from sam2_keyframe.rules.returns import RETURNS
from sam2_keyframe.rules.similarity import RELATIONS
from sam2_keyframe.rules.tree import TREES
from sam2_keyframe.rules.verify import VERIFY
from sam2_keyframe.scorers import SCORERS, TOLD


def _by_class_name(registry: Mapping[str, Any]) -> dict[str, type]:
    return {cls.__name__: cls for cls in registry.values()}


MEMORY: tuple[type, ...] = (KeyframeMemory, Recent, Keyframes, Others, LongTerm, Prompts, Ranked)

BLOCKS: dict[str, dict[str, type]] = {
    "memory": {cls.__name__: cls for cls in MEMORY},
    "scorers": _by_class_name({**SCORERS, **TOLD}),
    "rules": {**RULES, "Threshold": Threshold},
    "eviction": EVICTION,
    "retrieval": SELECTION,
    "relations": _by_class_name(RELATIONS),
    "codecs": _by_class_name(CODECS),
    "attention": _by_class_name(ATTEND),
    "queries": _by_class_name(QUERIES),
    "motion": _by_class_name(MOTION),
    "returns": _by_class_name(RETURNS),
    "trees": _by_class_name(TREES),
    "verification": _by_class_name(VERIFY),
}
"""Classes by kind and class name."""
