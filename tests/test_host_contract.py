"""What the package relies on in facebookresearch SAM 2, beyond what it promises: the first tests to fail on upgrade."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import pytest

pytest.importorskip("sam2")

from batches import legacy
from conftest import make_predictor
from sam2 import sam2_video_predictor, sam2_video_predictor_legacy

import sam2_keyframe as sk
from sam2_keyframe.patches import HOSTS
from sam2_keyframe.patches.batched import Batched
from sam2_keyframe.patches.sam2 import REQUIRED, Sam2

MODEL = ["current_vision_feats", "current_vision_pos_embeds", "feat_sizes"]
PROMPTED = ["point_inputs", "mask_inputs"]
SIGNATURES = {
    "_prepare_memory_conditioned_features": [
        *("frame_idx", "is_init_cond_frame", *MODEL, "output_dict", "num_frames", "track_in_reverse"),
    ],
    "_run_single_frame_inference": [
        *("inference_state", "output_dict", "frame_idx", "batch_size", "is_init_cond_frame", *PROMPTED, "reverse"),
        *("run_mem_encoder", "prev_sam_mask_logits"),
    ],
    "_run_memory_encoder": [
        *("inference_state", "frame_idx", "batch_size", "high_res_masks", "object_score_logits", "is_mask_from_pts"),
    ],
    "track_step": [
        *("frame_idx", "is_init_cond_frame", *MODEL, *PROMPTED, "output_dict", "num_frames", "track_in_reverse"),
        *("run_mem_encoder", "prev_sam_mask_logits"),
    ],
    "propagate_in_video_preflight": ["inference_state"],
    "clear_all_prompts_in_frame": ["inference_state", "frame_idx", "obj_id", "need_output"],
    "propagate_in_video": ["inference_state", "start_frame_idx", "max_frame_num_to_track", "reverse"],
    "add_new_mask": ["inference_state", "frame_idx", "obj_id", "mask"],
    "_encode_new_memory": [
        *(MODEL[0], MODEL[2], "pred_masks_high_res", "object_score_logits", "is_mask_from_pts"),
    ],
}
STORE = {"_add_output_per_object": ["inference_state", "frame_idx", "current_out", "storage_key"]}


def test_this_version_was_tested() -> None:
    found = version("sam2")
    assert found in Sam2.TESTED == Batched.TESTED, (
        f"sam2 {found} is new here: run tests/test_identity.py, test_wrap.py and test_batched.py, read what changed in "
        "sam2/sam2_video_predictor.py, its legacy twin and sam2/modeling/sam2_base.py, then add it to TESTED"
    )


@pytest.mark.parametrize(
    ("module", "signatures"),
    [(sam2_video_predictor, SIGNATURES), (sam2_video_predictor_legacy, {**SIGNATURES, **STORE})],
)
def test_private_methods_are_called_as_before(module: Any, signatures: dict[str, list[str]]) -> None:
    cls = module.SAM2VideoPredictor
    found = {name: list(inspect.signature(getattr(cls, name)).parameters)[1:] for name in signatures}
    assert found == signatures
    assert REQUIRED.keys() == SIGNATURES.keys()
    assert all(set(REQUIRED[name]) <= set(SIGNATURES[name]) for name in REQUIRED)


@pytest.fixture(scope="module", params=[make_predictor, legacy])
def predictor(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_method_that_changed_is_named_with_the_versions(
    predictor: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = rf"\(sam2 {version('sam2')}; tested with {', '.join(Sam2.TESTED)}\)"
    with monkeypatch.context() as patched:
        patched.setattr(type(predictor), name, lambda self: None)
        with pytest.raises(TypeError, match=rf"SAM2VideoPredictor: its method {name}\(\) does not take .* {tested}"):
            sk.wrap(predictor)
    assert "_sam2_keyframe" not in vars(predictor)


def test_every_host_says_what_it_was_tested_with() -> None:
    assert all(host.NAME and host.TESTED for host in HOSTS)
