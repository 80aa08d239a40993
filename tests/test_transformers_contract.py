"""What the package relies on in transformers, beyond what transformers promises: the first tests to fail on upgrade."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from on_transformers import Video, new_session
from transformers_models import edgetam, sam2_video, sam3_tracker

import sam2_keyframe as sk
from sam2_keyframe.patches.edgetam import EdgeTam
from sam2_keyframe.patches.sam3_video import OUTER, Sam3Video
from sam2_keyframe.patches.transformers import Transformers
from sam2_keyframe.synthetic import make_clip

FRAME = ["self", "inference_session", "frame_idx", "frame", "reverse"]
INFER = [
    *("self", "inference_session", "frame_idx", "obj_idx", "batch_size", "is_init_cond_frame", "point_inputs"),
    *("mask_inputs", "reverse", "prev_sam_mask_logits", "streaming"),
]
SIGNATURES = {
    "forward": [*FRAME, "run_mem_encoder", "kwargs"],
    "_run_single_frame_inference": INFER,
    "_prepare_memory_conditioned_features": [
        *("self", "inference_session", "frame_idx", "obj_idx", "is_initial_conditioning_frame"),
        *("current_vision_features", "current_vision_positional_embeddings", "num_total_frames"),
        *("track_in_reverse_time", "streaming"),
    ],
    "_gather_memory_frame_outputs": ["self", "inference_session", "obj_idx", "frame_idx", "track_in_reverse_time"],
    "_get_object_pointers": [
        *("self", "inference_session", "obj_idx", "frame_idx", "num_total_frames", "device"),
        *("track_in_reverse_time", "streaming"),
    ],
    "_batch_encode_memories": [
        *("self", "inference_session", "frame_idx", "objects_needing_memory_encoding", "high_res_masks_for_memory"),
        *("object_score_logits_for_memory", "is_mask_from_pts_per_obj"),
    ],
    "_encode_new_memory": [
        *("self", "current_vision_feats", "pred_masks_high_res", "object_score_logits", "is_mask_from_pts"),
    ],
}
EDGETAM = {
    **{name: names for name, names in SIGNATURES.items() if name != "_batch_encode_memories"},
    "forward": [*FRAME, "kwargs"],
    "_run_single_frame_inference": [*INFER[:9], "run_mem_encoder", *INFER[9:]],
}
SAM3_VIDEO = {
    "forward": [*FRAME, "kwargs"],
    "_tracker_update_memories": ["self", "inference_session", "frame_idx", "low_res_masks", "reconditioned_masks"],
}


def test_this_version_was_tested() -> None:
    assert transformers.__version__ in Transformers.TESTED, (
        f"transformers {transformers.__version__} is new here: run tests/test_transformers*.py, read what changed in "
        "models/sam2_video, edgetam_video, sam3_tracker_video and sam3_video, then add it to TESTED"
    )


@pytest.mark.parametrize(
    ("name", "signatures"),
    [
        ("Sam2VideoModel", SIGNATURES),
        ("Sam3TrackerVideoModel", SIGNATURES),
        ("EdgeTamVideoModel", EDGETAM),
        ("Sam3VideoModel", SAM3_VIDEO),
    ],
)
def test_private_methods_are_called_as_before(name: str, signatures: dict[str, list[str]]) -> None:
    cls = getattr(transformers, name)
    assert {method: list(inspect.signature(getattr(cls, method)).parameters) for method in signatures} == signatures


def test_the_methods_checked_at_wrapping_are_those_of_the_contract() -> None:
    assert set(Transformers.REQUIRED) == set(SIGNATURES)
    assert set(EdgeTam.REQUIRED) == set(EDGETAM)
    assert set(OUTER) == set(SAM3_VIDEO)


@pytest.mark.parametrize(("make", "size"), [(sam2_video, 64), (sam3_tracker, 112), (edgetam, 64)])
def test_sessions_store_what_they_did(make: Any, size: int) -> None:
    model = make(size)
    video = Video(make_clip("occlusion", seed=3, frames=3, size=size, objects=2))
    session = new_session(model, video.frames)
    for obj_id in (1, 2):
        video.prompt(session, 0, obj_id)
    for _ in model.propagate_in_video_iterator(session, start_frame_idx=0):
        pass
    tokens = 32 if make is edgetam else (size // (14 if make is sam3_tracker else 16)) ** 2
    memory = (1, tokens, 32) if make is edgetam else (tokens, 1, 32)
    side = 4 * session.cache.get_vision_features(2)["vision_feats"][-1].shape[0] ** 0.5
    shapes = {
        "pred_masks": (1, 1, side, side),
        "object_pointer": (1, 1, 64),
        "object_score_logits": (1, 1, 1),
        "maskmem_features": memory,
        "maskmem_pos_enc": memory,
    }
    if make is not edgetam:
        shapes["high_res_masks"] = (1, 1, size, size)
    entry = session.output_dict_per_obj[1]["non_cond_frame_outputs"][2]
    assert {key: tuple(value.shape) for key, value in entry.items()} == shapes
    encodings = [
        session.output_dict_per_obj[i]["non_cond_frame_outputs"][t]["maskmem_pos_enc"] for i, t in ((0, 1), (1, 2))
    ]
    assert torch.equal(*encodings)  # one is enough for all
    assert session.frames_tracked_per_obj[0] == {1: {"reverse": False}, 2: {"reverse": False}}
    assert list(session.processed_frames) == [0, 1, 2]
    assert list(session._obj_id_to_idx) == [1, 2]


def test_an_image_model_is_refused() -> None:
    model = transformers.Sam2Model.__new__(transformers.Sam2Model)
    with pytest.raises(TypeError, match=rf"no SAM 2 or SAM 3 video tracker \(transformers {transformers.__version__}"):
        sk.wrap(model)


def test_a_method_that_takes_other_arguments_is_refused() -> None:
    class Sam2VideoModel(transformers.Sam2VideoModel):
        def _gather_memory_frame_outputs(self, session: Any, obj_idx: int) -> Any:
            return []

    model = Sam2VideoModel.__new__(Sam2VideoModel)
    wanted = (
        r"_gather_memory_frame_outputs\(\) does not take frame_idx, inference_session, track_in_reverse_time "
        rf"\(transformers {transformers.__version__}; tested with {Transformers.TESTED[0]}"
    )
    with pytest.raises(TypeError, match=wanted):
        sk.wrap(model)


@pytest.mark.parametrize(("host", "name"), [(Transformers, "Sam2VideoModel"), (EdgeTam, "EdgeTamVideoModel")])
def test_a_method_that_is_gone_is_refused(host: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = getattr(transformers, name)
    monkeypatch.delattr(cls, "_get_object_pointers")
    with pytest.raises(TypeError, match=r"it has no method _get_object_pointers\(\) \(transformers"):
        sk.wrap(cls.__new__(cls))


def test_a_tracker_without_its_methods_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.Sam3VideoModel, "_tracker_update_memories")
    model = transformers.Sam3VideoModel.__new__(transformers.Sam3VideoModel)
    assert Sam3Video.knows(model)
    with pytest.raises(TypeError, match=r"_tracker_update_memories\(\)"):
        sk.wrap(model)


def test_edgetam_refuses_what_needs_a_grid() -> None:
    model = edgetam(64)
    with pytest.raises(TypeError, match=r"use attend=Whole\(\)"):
        sk.wrap(model, "compact")
    with pytest.raises(ValueError, match=r"32 latents and no grid: choose Int8"):
        sk.wrap(model, sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, codec=sk.Downsample(2))))
    assert "_sam2_keyframe" not in vars(model)


def test_hosts_are_recognised_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TypeError, match=r"Supported: .*SAM2VideoPredictor.*EdgeTamVideoModel.*Sam3VideoModel.*Sam2VideoModel"
    ):
        sk.wrap(object())
