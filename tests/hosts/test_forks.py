"""Forks that are cloned, not installed: each test takes the clone's path from the environment, in a run of its own.

EFFICIENTTAM=.../EfficientTAM pytest tests/hosts/test_forks.py (github.com/yformer/EfficientTAM)
REALTIME_SAM2=.../segment-anything-2-real-time pytest tests/hosts/test_forks.py (github.com/Gy920/...)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sam2_keyframe as sk
from sam2_keyframe.patches import find_host


def clone(variable: str) -> None:
    """Put a clone before what is installed; skip where there is none."""
    path = os.environ.get(variable)
    if not path or not Path(path).is_dir():
        pytest.skip(f"{variable} names no clone")
    if "sam2" in sys.modules:
        pytest.skip("SAM 2 is imported already: run this file alone, one clone at a time")
    sys.path.insert(0, path)


@pytest.fixture(scope="module")
def efficienttam() -> Any:
    """EfficientTAM's smallest size with random weights, at 512 px."""
    clone("EFFICIENTTAM")
    from efficient_track_anything.build_efficienttam import build_efficienttam_video_predictor

    torch.manual_seed(0)
    config = "configs/efficienttam/efficienttam_ti_512x512.yaml"
    model: Any = build_efficienttam_video_predictor(config, None, device="cpu")
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(5.0)
    model.fill_hole_area = 0
    return model


def track(model: Any, folder: Path, clip: Any, objects: tuple[int, ...], count: int) -> torch.Tensor:
    state = model.init_state(str(folder))
    for obj_id in objects:
        model.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    return torch.stack([masks.clone() for _, _, masks in model.propagate_in_video(state, 0, count)])


def test_efficienttam_under_stock_window_and_keyframe(efficienttam: Any, clip_folder: Path, clip: Any) -> None:
    plain = track(efficienttam, clip_folder, clip, (1, 2), 5)
    assert plain.std() > 0
    before = set(vars(efficienttam))
    for method in ("stock", "window"):
        with sk.wrap(efficienttam, method):
            assert find_host(efficienttam).__name__ == "Sam2"
            assert torch.equal(track(efficienttam, clip_folder, clip, (1, 2), 5), plain)
    with sk.wrap(efficienttam, sk.KeyframeMemory(sk.Recent(1), fill=False)):  # another memory, other masks
        assert not torch.equal(track(efficienttam, clip_folder, clip, (1, 2), 5), plain)
    with sk.wrap(efficienttam, "keyframe", attend=sk.Foveated(0.2, 2)):
        assert torch.isfinite(track(efficienttam, clip_folder, clip, (1,), 3)).all()
    assert set(vars(efficienttam)) == before


def test_a_realtime_forks_predictors(clip_folder: Path, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its video predictor is the legacy one; its camera predictor is refused in a sentence."""
    clone("REALTIME_SAM2")
    from conftest import make_predictor
    from sam2.sam2_camera_predictor import SAM2CameraPredictor

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, **how: self)  # the fork takes a GPU for granted
    predictor = make_predictor()
    assert find_host(predictor).__name__ == "Batched"
    for objects in ((1,), (1, 2)):
        plain = track(predictor, clip_folder, clip, objects, 12)
        for method in ("stock", "window"):
            with sk.wrap(predictor, method):
                difference = float((track(predictor, clip_folder, clip, objects, 12) - plain).abs().max())
            assert difference == 0 if len(objects) == 1 else difference < 1e-4
    with sk.wrap(predictor, sk.KeyframeMemory(sk.Recent(1), fill=False)):
        assert not torch.equal(track(predictor, clip_folder, clip, (1, 2), 12), plain)
    with pytest.raises(TypeError, match="camera predictor has no inference state: stream with"):
        sk.wrap(SAM2CameraPredictor.__new__(SAM2CameraPredictor))
