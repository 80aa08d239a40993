"""Small models of transformers for tests: the trained micro weights where they fit, random ones elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sam2_keyframe.micro import load_micro_model

HIDDEN, MEMORY = 64, 32

SAM = {
    "memory_attention_hidden_size": HIDDEN,
    "memory_attention_num_layers": 2,
    "memory_attention_dropout": 0.0,
    "memory_attention_rope_dropout": 0.0,
    "memory_encoder_hidden_size": HIDDEN,
    "memory_encoder_output_channels": MEMORY,
    "mask_downsampler_embed_dim": HIDDEN,
    "memory_fuser_intermediate_dim": 4 * HIDDEN,
}


def sam2_video(image_size: int = 128, **changes: Any) -> Any:
    """`Sam2VideoModel` with the micro weights."""
    model = load_micro_model("transformers", image_size=image_size)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def sam3_tracker(image_size: int = 112, **changes: Any) -> Any:
    """`Sam3TrackerVideoModel` with a random image encoder; every object is visible."""
    from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel

    torch.manual_seed(0)
    model = Sam3TrackerVideoModel(_sam3_tracker_config(image_size, Sam3TrackerVideoConfig))
    return _ready(model, **changes)


def _sam3_tracker_config(image_size: int, config: Any) -> Any:
    vit = {
        "model_type": "sam3_vit_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "pretrain_image_size": image_size,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    return config(
        vision_config={"model_type": "sam3_vision_model", "backbone_config": vit, "fpn_hidden_size": HIDDEN},
        prompt_encoder_config={"hidden_size": HIDDEN},
        mask_decoder_config={"hidden_size": HIDDEN},
        memory_attention_feed_forward_hidden_size=256,
        memory_fuser_embed_dim=HIDDEN,
        image_size=image_size,
        **SAM,
    )


def edgetam(image_size: int = 128, **changes: Any) -> Any:
    """`EdgeTamVideoModel` with the micro image encoder and a random perceiver; every object is visible."""
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel

    torch.manual_seed(0)
    side = image_size // 16
    config = EdgeTamVideoConfig(
        vision_config=sam2_video(image_size).config.vision_config,
        prompt_encoder_config={"hidden_size": HIDDEN, "image_size": image_size},
        mask_decoder_config={"hidden_size": HIDDEN},
        image_size=image_size,
        memory_fuser_embed_dim=HIDDEN,
        memory_attention_mlp_hidden_size=256,
        memory_attention_rope_feat_sizes=[side, side],
        memory_attention_rope_k_sizes=[4, 4],
        perceiver_resampler_num_latents=16,
        perceiver_resampler_num_latents_2d=16,
        perceiver_resampler_hidden_size=MEMORY,
        perceiver_resampler_mlp_intermediate_size=64,
        perceiver_resampler_attention_head_dim=MEMORY,
        **SAM,
    )
    return _ready(EdgeTamVideoModel(config), **changes)


def _ready(model: Any, **changes: Any) -> Any:
    """Give the model the micro weights that fit it, and put it into evaluation mode."""
    for layer in model.memory_attention.layers:  # transformers takes memories of 64 channels for granted
        attention = layer.cross_attn_image
        attention.k_proj, attention.v_proj = (nn.Linear(MEMORY, attention.internal_dim) for _ in range(2))
    own, micro = model.state_dict(), sam2_video(64).state_dict()
    model.load_state_dict({k: v for k, v in micro.items() if k in own and own[k].shape == v.shape}, strict=False)
    with torch.no_grad():  # objects are visible, whatever the random weights say
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model.eval()


def sam3_video(image_size: int = 112, **changes: Any) -> Any:
    """`Sam3VideoModel` of random weights, its tracker as `sam3_tracker`; what it detects is for tests to say."""
    from transformers import Sam3TrackerVideoConfig, Sam3VideoConfig, Sam3VideoModel

    torch.manual_seed(0)
    tracker = _sam3_tracker_config(image_size, Sam3TrackerVideoConfig)
    parts = {"hidden_size": HIDDEN, "num_attention_heads": 2, "intermediate_size": 64}
    text = {
        "model_type": "clip_text_model", "hidden_size": 32, "intermediate_size": 32, "projection_dim": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
    }  # fmt: skip
    detector = {
        "model_type": "sam3",
        "vision_config": tracker.vision_config.to_dict(),
        "text_config": text,
        "geometry_encoder_config": {**parts, "num_layers": 1},
        "detr_encoder_config": {**parts, "num_layers": 1},
        "detr_decoder_config": {**parts, "num_layers": 1, "num_queries": 5},
        "mask_decoder_config": {"hidden_size": HIDDEN, "num_attention_heads": 2},
    }
    config = Sam3VideoConfig(
        detector_config=detector, tracker_config=tracker.to_dict(), low_res_mask_size=32, fill_hole_area=0, **changes
    )
    model = Sam3VideoModel(config)
    _ready(model.tracker_model)
    return model.eval()
