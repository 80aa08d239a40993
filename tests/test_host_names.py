"""Only `sam2_keyframe/patches` knows how a host works inside: nothing else names its private state or methods."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import sam2_keyframe
from sam2_keyframe.types import TrackedFrame

PACKAGE = Path(sam2_keyframe.__file__).parent

OF_A_HOST = {
    # facebookresearch's inference state
    *("output_dict_per_obj", "temp_output_dict_per_obj", "frames_tracked_per_obj", "cached_features"),
    *("obj_id_to_idx", "obj_idx_to_id", "point_inputs_per_obj", "mask_inputs_per_obj", "storage_device"),
    # a stored frame
    *("cond_frame_outputs", "non_cond_frame_outputs", "maskmem_features", "maskmem_pos_enc"),
    *("pred_masks", "obj_ptr", "object_score_logits"),
    # what is wrapped, and what is read off a predictor
    *("_run_single_frame_inference", "_run_memory_encoder", "_prepare_memory_conditioned_features", "_track_step"),
    *("_encode_new_memory", "_encode_memory_in_output", "_use_multimask", "_forward_sam_heads", "_get_image_feature"),
    *("propagate_in_video_preflight", "_consolidate_temp_output_across_obj", "_get_orig_video_res_output"),
    *("_obj_id_to_idx", "maskmem_tpos_enc", "max_cond_frames_in_attn", "max_obj_ptrs_in_encoder"),
    *("memory_temporal_stride_for_eval", "only_obj_ptrs_in_the_past_for_eval"),
}

ALLOWED: dict[str, set[str]] = {
    "bank/bank.py": {"maskmem_features", "maskmem_pos_enc", "obj_ptr", "object_score_logits", "pred_masks"},
    "bank/reading.py": {"object_score_logits", "pred_masks"},
    "bank/statistics.py": {"maskmem_features", "obj_ptr", "object_score_logits", "pred_masks"},
    "bank/store.py": {"maskmem_features", "maskmem_pos_enc", "obj_ptr", "object_score_logits", "pred_masks"},
    "replay/player.py": {"maskmem_features", "maskmem_pos_enc", "obj_ptr", "object_score_logits", "pred_masks"},
}
"""The one stored form that the core knows has SAM 2's names (`bank/store.py`); nothing else of a host is named."""


def named(source: str) -> set[str]:
    """Return the host's names in code: keys as text, attributes, names. Docstrings and comments may cite a host."""
    own = {field.name for field in fields(TrackedFrame)}  # what scorers see is called as in SAM 2
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr not in own:
            found.add(node.attr)
        elif isinstance(node, ast.Name) and node.id.startswith("_"):
            found.add(node.id)
    return found & OF_A_HOST


def test_only_patches_name_a_hosts_private_state() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    outside = {name: path for name, path in files.items() if not name.startswith("patches/")}
    assert len(outside) > 30
    found = {name: names for name, path in outside.items() if (names := named(path.read_text()))}
    assert found == ALLOWED


def test_the_search_finds_them() -> None:
    """In each way to name them, and in the room where they belong."""
    assert named('state["output_dict_per_obj"]') == {"output_dict_per_obj"}
    assert named('state.get("cached_features")') == {"cached_features"}
    assert named("predictor._track_step(state)") == {"_track_step"}
    assert named('"""`_track_step` is SAM 2\'s."""\nframe.pred_masks  # not _track_step') == set()
    inside = set().union(*(named(path.read_text()) for path in (PACKAGE / "patches").glob("*.py")))
    assert {"_run_single_frame_inference", "cond_frame_outputs", "maskmem_features"} <= inside
