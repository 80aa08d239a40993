"""The hook into the attention of an official predictor: bit-identical tracking, what stays whole, clear refusals."""

import numpy as np
import pytest
import torch
from plans import shown_memories, view_layout

from sam2_keyframe.attention.maths import Foveated, Whole
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.types import Memory, Moment

pytest.importorskip("sam2")
Image = pytest.importorskip("PIL.Image")

GRID = (8, 8)


def official(cls_override=None, **kwargs):
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(3)
    overrides = ["++model.image_size=128"]
    predictor = build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu", hydra_overrides_extra=overrides, **kwargs
    )
    # Random weights call every object hidden, and then every mask is the same constant.
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return predictor


def test_compiled_and_foreign_predictors_are_refused():
    with pytest.raises(RuntimeError, match=r"Whole\(\)"):
        AttentionHook(official(vos_optimized=True))
    with pytest.raises(TypeError, match="no rotary memory attention"):
        AttentionHook(torch.nn.Linear(2, 2))


@torch.inference_mode()
def track(predictor, folder, scheme=None, reverse=False, cap=-1, empty=()):
    """Two objects, four prompts, some late. With a scheme, by the hook; checks the order that it assumes."""
    from sam2.modeling.sam2_utils import select_closest_cond_frames

    hook, shown = AttentionHook(predictor), []
    whole, read = predictor.memory_attention.forward, predictor._prepare_memory_conditioned_features

    def concatenated(memory, num_obj_ptr_tokens=0, **kwargs):
        shown.append((memory, num_obj_ptr_tokens))
        return whole(memory=memory, num_obj_ptr_tokens=num_obj_ptr_tokens, **kwargs)

    def wrapped(frame_idx, output_dict, track_in_reverse, is_init_cond_frame, feat_sizes, **kwargs):
        given = {"frame_idx": frame_idx, "is_init_cond_frame": is_init_cond_frame, "feat_sizes": feat_sizes, **kwargs}
        given |= {"output_dict": output_dict, "track_in_reverse": track_in_reverse}
        if is_init_cond_frame:
            return read(**given)
        tracked = dict(output_dict["non_cond_frame_outputs"])
        for t in set(empty) & set(tracked):
            blank = tracked[t]["maskmem_features"][:, :, :0]
            tracked[t] = tracked[t] | {"maskmem_features": blank, "maskmem_pos_enc": [blank]}
        given["output_dict"] = view = output_dict | {"non_cond_frame_outputs": tracked}
        if scheme is None:
            return read(**given)
        moment = Moment(frame_idx, track_in_reverse, 6, 15)
        selected = list(select_closest_cond_frames(frame_idx, view["cond_frame_outputs"], cap)[0])
        held = [Memory(t, tracked[t], code) for code in range(6) if (t := moment.slot(code)) in tracked]
        with hook.layout(view_layout(scheme, view, selected, held, moment, GRID, {})):
            out = read(**given)
        memories, (memory, pointers) = shown_memories(view, selected, moment), shown[-1]
        chunks = memory[: len(memory) - pointers].split(64)
        assert len(chunks) == len(memories)
        for chunk, (_, entry) in zip(chunks, memories, strict=True):
            assert torch.equal(chunk, entry["maskmem_features"].flatten(2).permute(2, 0, 1).to(chunk.dtype))
        return out

    hook.install()
    predictor.memory_attention.forward = concatenated
    predictor._prepare_memory_conditioned_features = wrapped
    predictor.max_cond_frames_in_attn = cap
    try:
        state = predictor.init_state(str(folder))
        first = 8 if reverse else 0
        for frame, obj, (y, x) in ((first, 1, (20, 30)), (first, 2, (70, 60)), (4, 1, (24, 50)), (5, 1, (25, 54))):
            prompt = torch.zeros(96, 128)
            prompt[y : y + 20, x : x + 30] = 1
            predictor.add_new_mask(state, frame, obj, prompt)
        given = {"start_frame_idx": 8, "reverse": True} if reverse else {}
        masks = [logits.clone() for _, _, logits in predictor.propagate_in_video(state, **given)]
        stored = [state["output_dict_per_obj"][o]["non_cond_frame_outputs"] for o in (0, 1)]
        entries = [e for d in stored for _, e in sorted(d.items())]
        out = [e[key] for e in entries for key in ("maskmem_features", "pred_masks", "obj_ptr")]
    finally:
        del predictor.memory_attention.forward, predictor._prepare_memory_conditioned_features
        predictor.max_cond_frames_in_attn = -1
        hook.uninstall()
    return masks + out, hook.calls, [((len(m) - p) // 64, p) for m, p in shown]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    rng = np.random.default_rng(0)
    back = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    for t in range(9):
        frame = back.copy()
        frame[20 + t : 40 + t, 30 + 4 * t : 60 + 4 * t] = (200, 40, 40)
        frame[70:90, 60 - 3 * t : 90 - 3 * t] = (40, 200, 60)
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("autocast", "options"),
    [
        (False, {}),
        (True, {}),
        (False, {"reverse": True, "empty": (5, 6)}),
        (False, {"cap": 2, "empty": (2,)}),
    ],
    ids=["fp32", "bf16", "reverse", "capped"],
)
def test_official_tiny_predictor_with_whole_memories_is_bit_identical(clip, autocast, options):
    predictor = official()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        stock, calls, _ = track(predictor, clip, **options)
        assert calls == 0
        ours, calls, shown = track(predictor, clip, Whole(), **options)
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))
    assert stock[1].std() > 0
    assert not torch.equal(stock[0], stock[3])
    assert calls == 4 * len(shown)
    assert len({p for _, p in shown}) > 3
    assert max(shown)[0] >= 6
    if not options and not autocast:  # negative control
        fewer, _, _ = track(predictor, clip, Foveated(0.3, 2))
        assert not torch.equal(stock[8], fewer[8])
        assert all(t.isfinite().all() for t in fewer)
