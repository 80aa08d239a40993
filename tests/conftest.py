"""Shared fixtures: small predictors built from SAM 2's own classes, and clips on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; tests that start a process are not alone on the machine

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from sam2_keyframe.micro import build_model
from sam2_keyframe.synthetic import make_clip

# Other work on the machine makes a test slow, not wrong: no deadline. The same examples each time, so that nobody's
# change fails by chance; `make test-all` looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
torch.set_num_threads(1)  # small tensors; and two runs that shall be equal must not differ in it


def a_few(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters for a test of which only some are quick to run; the others are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def make_predictor(image_size: int = 128, seed: int = 0, **flags: Any) -> Any:
    """Return a small real SAM 2 with random weights on which objects are visible and masks vary.

    With random weights the object score is often <= 0 everywhere, which makes every mask the same constant, so the
    bias of its head is raised; and the mask head is scaled up so that masks have both signs.
    """
    torch.manual_seed(seed)
    predictor = build_model(image_size).eval()
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(5.0)
        predictor.obj_ptr_tpos_proj.weight.mul_(3.0)
        predictor.maskmem_tpos_enc.add_(torch.randn_like(predictor.maskmem_tpos_enc))
    for name, value in flags.items():
        setattr(predictor, name, value)
    return predictor


def write_frames(folder: Path, frames: np.ndarray) -> Path:
    """Write (T, H, W, 3) uint8 frames as the JPEG folder that `init_state` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def predictor_factory() -> Callable[..., Any]:
    """`make_predictor`, for tests that need a model of their own."""
    return make_predictor


@pytest.fixture
def predictor() -> Any:
    """A small real SAM 2, new for each test."""
    return make_predictor()


@pytest.fixture(scope="session")
def clip() -> Any:
    """A 24-frame clip of two objects."""
    return make_clip("occlusion", seed=3, frames=24, size=128, objects=2)


@pytest.fixture(scope="session")
def clip_folder(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a folder of JPEG frames."""
    return write_frames(tmp_path_factory.mktemp("clip"), clip.frames)
