"""The micro model as a ``Sam2VideoModel`` of transformers: its configuration there, and the names of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sam2_keyframe.micro.config import HIDDEN, MEMORY

if TYPE_CHECKING:
    from transformers import Sam2VideoModel

_TWO_LAYERS = r"(blocks\.\d+\.mlp|transformer\.layers\.\d+\.mlp)"
_THREE_LAYERS = r"(object_pointer_proj|iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)"

_RENAMES = (
    # parts of the model
    (r"^image_encoder\.trunk\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (
        r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "shared_image_embedding.positional_embedding",
    ),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    # layers counted by SAM 2 and named by transformers
    (_TWO_LAYERS + r"\.layers\.0\.", r"\1.proj_in."),
    (_TWO_LAYERS + r"\.layers\.1\.", r"\1.proj_out."),
    (_THREE_LAYERS + r"\.layers\.0\.", r"\1.proj_in."),
    (_THREE_LAYERS + r"\.layers\.2\.", r"\1.proj_out."),
    (_THREE_LAYERS + r"\.layers\.1\.", r"\1.layers.0."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"mask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
    # words
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"\.norm(\d|_final_attn|)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
)
"""Applied to each name in order."""


def build_transformers_model(weights: Mapping[str, Tensor], image_size: int) -> Sam2VideoModel:
    """The micro model under transformers, in training mode, with the weights that SAM 2's own classes load.

    Args:
        weights: state dict of `build_model`, any floating-point type.
        image_size: side of the square it sees.

    Raises:
        ImportError: ``transformers`` is not installed.
        RuntimeError: a weight is missing, left over or of another shape.
    """
    try:
        from transformers import Sam2VideoModel
    except ImportError as error:
        raise ImportError("this needs transformers: pip install 'sam2-keyframe[transformers]'") from error
    with torch.random.fork_rng(devices=[]):  # start values are drawn, only to be replaced
        model: Any = Sam2VideoModel(_config(image_size))
        fit_memories(model)
    model.load_state_dict(convert(weights), strict=True)
    loaded: Sam2VideoModel = model
    return loaded


def fit_memories(model: Any) -> None:
    """Have a model attend to memories of the width that its configuration says: transformers takes 64 for granted."""
    width = model.config.memory_encoder_output_channels
    for layer in model.memory_attention.layers:
        attention = layer.cross_attn_image
        if attention.k_proj.in_features != width:
            attention.k_proj, attention.v_proj = (nn.Linear(width, attention.internal_dim) for _ in range(2))


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a ``Sam2VideoModel``, float32, from that of a ``SAM2VideoPredictor``."""
    converted = {_renamed(name): value.float() for name, value in weights.items()}
    frequencies = converted["shared_image_embedding.positional_embedding"]
    points = [converted.pop(f"prompt_encoder.point_embeddings.{kind}.weight") for kind in range(4)]
    return {
        **converted,
        "prompt_encoder.shared_embedding.positional_embedding": frequencies,
        "prompt_encoder.point_embed.weight": torch.cat(points),
    }


def _renamed(name: str) -> str:
    for pattern, new in _RENAMES:
        name = re.sub(pattern, new, name)
    # Each step of the memory encoder's mask downsampler is a convolution, a norm and an activation without weights.
    return re.sub(
        r"mask_downsampler\.encoder\.(\d+)\.",
        lambda at: f"mask_downsampler.layers.{int(at[1]) // 3}.{('conv', 'layer_norm')[int(at[1]) % 3]}.",
        name,
    )


def _config(image_size: int) -> Any:
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import (
        Sam2VideoMaskDecoderConfig,
        Sam2VideoPromptEncoderConfig,
    )

    side = image_size // 16
    trunk = Sam2HieraDetConfig(
        hidden_size=32,
        num_attention_heads=1,
        image_size=[image_size, image_size],
        window_positional_embedding_background_size=[8, 8],
        blocks_per_stage=[1, 2, 3, 1],
        embed_dim_per_stage=[32, 64, 128, 256],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[4, 5],
    )
    return Sam2VideoConfig(
        image_size=image_size,
        vision_config=Sam2VisionConfig(
            backbone_config=trunk,
            backbone_channel_list=[256, 128, 64, 32],
            backbone_feature_sizes=[[4 * side, 4 * side], [2 * side, 2 * side], [side, side]],
            fpn_hidden_size=HIDDEN,
        ),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=HIDDEN, image_size=image_size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(hidden_size=HIDDEN),
        memory_attention_hidden_size=HIDDEN,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=256,
        memory_attention_rope_feat_sizes=[side, side],
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=HIDDEN,
        memory_encoder_output_channels=MEMORY,
        mask_downsampler_embed_dim=HIDDEN,
        memory_fuser_embed_dim=HIDDEN,
        memory_fuser_intermediate_dim=4 * HIDDEN,
    )
