"""The micro model's configuration, built from SAM 2's own classes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

HIDDEN = 64
"""Width of features, tokens and object pointers (SAM 2: 256)."""
MEMORY = 32
"""Channels of a spatial memory (SAM 2: 64); a pointer is two tokens of it."""


class _NoInitialisation(AbstractContextManager[None]):
    """Skips the random start values of layers whose weights are about to be loaded: most of the building time."""

    def __enter__(self) -> None:
        self.saved = {kind: kind.reset_parameters for kind in (nn.Linear, nn.Conv2d)}
        for kind in self.saved:
            kind.reset_parameters = lambda _: None  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for kind, function in self.saved.items():
            kind.reset_parameters = function  # type: ignore[method-assign]


def _rope(side: int, **extra: Any) -> Any:
    from sam2.modeling.sam.transformer import RoPEAttention

    return RoPEAttention(
        rope_theta=10000.0,
        feat_sizes=[side, side],
        embedding_dim=HIDDEN,
        num_heads=1,
        downsample_rate=1,
        dropout=0.0,
        **extra,
    )


def check_image_size(image_size: int) -> None:
    """Check that the micro model can see squares of this side.

    Raises:
        ValueError: It cannot.
    """
    if image_size % 32 or not 64 <= image_size <= 1024:
        raise ValueError(f"image_size must be a multiple of 32 from 64 to 1024, not {image_size}")


def build_model(image_size: int = 256, initialise: bool = True) -> SAM2VideoPredictor:
    """The untrained micro SAM 2 (2.6 million parameters) as a stock ``SAM2VideoPredictor`` in training mode.

    Hiera trunk of seven blocks, width 32 to 256; hidden width 64; memories of 32 channels; two memory-attention
    layers; seven memories; SAM 2.1's object scores, temporal pointer codes and three candidate masks.

    Args:
        image_size: side of the square it sees, a multiple of 32 from 64 to 1024.
        initialise: draw start values from torch's generator; False leaves memory as it is, for loading weights.

    Raises:
        ImportError: ``sam2`` is not installed.
        ValueError: ``image_size`` is out of range.

    Source: the settings of ``sam2.1_hiera_t.yaml`` and ``build_sam2_video_predictor``, smaller.
    """
    check_image_size(image_size)
    try:
        from sam2.sam2_video_predictor import SAM2VideoPredictor
    except ImportError as error:
        raise ImportError("the micro model is built from SAM 2's own classes: pip install sam2") from error
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    side = image_size // 16
    with nullcontext() if initialise else _NoInitialisation():
        encoder = ImageEncoder(
            scalp=1,
            trunk=Hiera(
                embed_dim=32,
                num_heads=1,
                stages=(1, 2, 3, 1),
                global_att_blocks=(4, 5),
                window_spec=(8, 4, 8, 4),
                window_pos_embed_bkg_spatial_size=(8, 8),
                drop_path_rate=0.0,
            ),
            neck=FpnNeck(
                position_encoding=PositionEmbeddingSine(num_pos_feats=HIDDEN, normalize=True, temperature=10000),
                d_model=HIDDEN,
                backbone_channel_list=[256, 128, 64, 32],
                fpn_top_down_levels=[2, 3],
                fpn_interp_model="nearest",
            ),
        )
        layer = MemoryAttentionLayer(
            activation="relu",
            dim_feedforward=256,
            dropout=0.0,
            pos_enc_at_attn=False,
            self_attention=_rope(side),
            d_model=HIDDEN,
            pos_enc_at_cross_attn_keys=True,
            pos_enc_at_cross_attn_queries=False,
            cross_attention=_rope(side, rope_k_repeat=True, kv_in_dim=MEMORY),
        )
        memory = MemoryEncoder(
            out_dim=MEMORY,
            in_dim=HIDDEN,
            position_encoding=PositionEmbeddingSine(num_pos_feats=MEMORY, normalize=True, temperature=10000),
            mask_downsampler=MaskDownSampler(embed_dim=HIDDEN, kernel_size=3, stride=2, padding=1),
            fuser=Fuser(CXBlock(dim=HIDDEN, kernel_size=7, padding=3, layer_scale_init_value=1e-6), num_layers=2),
        )
        return SAM2VideoPredictor(
            image_encoder=encoder,
            memory_attention=MemoryAttention(d_model=HIDDEN, pos_enc_at_input=True, layer=layer, num_layers=2),
            memory_encoder=memory,
            num_maskmem=7,
            image_size=image_size,
            sigmoid_scale_for_mem_enc=20.0,
            sigmoid_bias_for_mem_enc=-10.0,
            use_mask_input_as_output_without_sam=True,
            directly_add_no_mem_embed=True,
            no_obj_embed_spatial=True,
            use_high_res_features_in_sam=True,
            multimask_output_in_sam=True,
            iou_prediction_use_sigmoid=True,
            use_obj_ptrs_in_encoder=True,
            add_tpos_enc_to_obj_ptrs=True,
            proj_tpos_enc_in_obj_ptrs=True,
            use_signed_tpos_enc_to_obj_ptrs=True,
            only_obj_ptrs_in_the_past_for_eval=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            fixed_no_obj_ptr=True,
            multimask_output_for_tracking=True,
            use_multimask_token_for_obj_ptr=True,
            multimask_min_pt_num=0,
            multimask_max_pt_num=1,
            use_mlp_for_obj_ptr_proj=True,
            binarize_mask_from_pts_for_mem_enc=True,
            sam_mask_decoder_extra_args={
                "dynamic_multimask_via_stability": True,
                "dynamic_multimask_stability_delta": 0.05,
                "dynamic_multimask_stability_thresh": 0.98,
            },
            fill_hole_area=0,
        )
