"""Predictors that track all objects in one batch, made of the same weights as the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from conftest import make_predictor
from sam2 import sam2_video_predictor, sam2_video_predictor_legacy


def legacy(make: Callable[..., Any] = make_predictor, **how: Any) -> Any:
    """Return the predictor of before December 2024, which the installed SAM 2 has as its legacy one."""
    with mock.patch.object(sam2_video_predictor, "SAM2VideoPredictor", sam2_video_predictor_legacy.SAM2VideoPredictor):
        return make(**how)
