"""The official architecture with random weights, at a reduced image size, and its compiled variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sessions import assert_equal, assert_lively, run

import sam2_keyframe as sk


def _official(vos: bool = False, size: int = 128) -> Any:
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(1)
    predictor = build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        ckpt_path=None,
        device="cpu",
        vos_optimized=vos,
        hydra_overrides_extra=[f"++model.image_size={size}"],
    )
    predictor.fill_hole_area = 0  # needs SAM 2's compiled extension, else it warns on every frame
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(5.0)
    return predictor


@pytest.fixture(scope="module")
def official() -> Any:
    return _official()


@pytest.mark.slow
@pytest.mark.parametrize("session", ["two_objects", "reverse", "correction"])
def test_stock_is_identical(official: Any, session: str, clip_folder: Any, clip: Any) -> None:
    unwrapped = run(official, session, clip_folder, clip)
    assert_lively(unwrapped[0])
    with sk.wrap(official, "stock"):
        assert_equal(run(official, session, clip_folder, clip), unwrapped)


@pytest.mark.slow
def test_window_is_lossless(official: Any, clip_folder: Any, clip: Any) -> None:
    unwrapped = run(official, "stepped", clip_folder, clip)
    with sk.wrap(official, "window"):
        assert_equal(run(official, "stepped", clip_folder, clip), unwrapped, tensors=False)


@pytest.mark.slow
def test_the_compiled_predictor(clip_folder: Any, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity on `SAM2VideoPredictorVOS`, and its compiled forwards are the same objects after unwrap."""
    predictor = _official(vos=True, size=64)
    assert type(predictor).__name__ == "SAM2VideoPredictorVOS"
    compiled = {name: vars(m)["forward"] for name, m in predictor.named_modules() if "forward" in vars(m)}
    assert len(compiled) >= 3
    unwrapped = run(predictor, "forward", clip_folder, clip)
    assert_lively(unwrapped[0])
    for method in ("stock", "keyframe"):
        with sk.wrap(predictor, method, **({} if method == "stock" else {"change": 1e9})):
            ours = run(predictor, "forward", clip_folder, clip)
        assert_equal(ours, unwrapped, tensors=method == "stock")
    after = {name: vars(m)["forward"] for name, m in predictor.named_modules() if "forward" in vars(m)}
    assert compiled.keys() == after.keys()
    assert all(compiled[name] is after[name] for name in compiled)


def test_host_contract(official: Any) -> None:
    """The private names that the patch relies on; a new host release should fail here first, with a sentence."""
    from sam2_keyframe.patches.sam2 import REQUIRED, Sam2

    assert Sam2.refuses(official) is None
    for name in REQUIRED:
        method: Callable[..., Any] = getattr(official, name)
        assert callable(method), name
    for name in (
        "num_maskmem",
        "max_obj_ptrs_in_encoder",
        "memory_temporal_stride_for_eval",
        "max_cond_frames_in_attn",
        "only_obj_ptrs_in_the_past_for_eval",
        "use_obj_ptrs_in_encoder",
        "maskmem_tpos_enc",
        "sam_mask_decoder",
        "device",
    ):
        assert hasattr(official, name), name
    assert official.maskmem_tpos_enc.shape[0] == official.num_maskmem
