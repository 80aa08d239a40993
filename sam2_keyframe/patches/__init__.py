"""Hosts: the only code that names a predictor's private members."""

from __future__ import annotations

from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.sam2 import Sam2Patch

HOSTS = "facebookresearch SAM 2's SAM2VideoPredictor of December 2024 or later (and its VOS variant), EfficientTAM's"


def find_patch(predictor: object, method: KeyframeMemory) -> Sam2Patch:
    """Return the patch for a predictor, not yet applied, importing no host.

    Hosts are recognised by class name and method signatures, never by version.

    Raises:
        TypeError: No host is recognised; the message names the supported ones.
        ValueError: The method does not fit this predictor.
    """
    reason = Sam2Patch.refuses(predictor)
    if reason is not None:
        raise TypeError(
            f"sam2_keyframe cannot wrap {type(predictor).__module__}.{type(predictor).__qualname__}: {reason}. "
            f"Supported: {HOSTS}."
        )
    method.check_fits(predictor.num_maskmem - 1)  # type: ignore[attr-defined]
    return Sam2Patch(predictor, method)
