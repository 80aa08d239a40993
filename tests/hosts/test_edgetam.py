"""The plugin under EdgeTAM's own package, where it is installed: `make test-hosts` sets up an environment."""

from __future__ import annotations

import functools
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("sam2.modeling.perceiver", reason="EdgeTAM's package is not installed: make test-hosts")

from conftest import make_predictor
from sam2 import sam2_video_predictor
from sam2.modeling.perceiver import PerceiverResampler
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttentionv2
from sessions import assert_equal, assert_lively, run

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.micro.config import HIDDEN, MEMORY
from sam2_keyframe.patches import edgetam_batched as patch
from sam2_keyframe.patches import find_host

FRAMES, LATENTS = 24, 32


def make_edgetam(**flags: Any) -> Any:
    """Return a small EdgeTAM with random weights: SAM 2's small encoder, 16 latents of either kind."""
    torch.manual_seed(1)
    perceiver = PerceiverResampler(
        dim=MEMORY, depth=2, dim_head=MEMORY, heads=1, ff_mult=2, hidden_dropout_p=0.0, attention_dropout_p=0.0,
        pos_enc_at_key_value=True, num_latents=16, num_latents_2d=16, use_self_attn=True,
        position_encoding=PositionEmbeddingSine(num_pos_feats=MEMORY, normalize=True, temperature=10000),
    )  # fmt: skip
    made = functools.partial(sam2_video_predictor.SAM2VideoPredictor, spatial_perceiver=perceiver)
    with mock.patch.object(sam2_video_predictor, "SAM2VideoPredictor", made):
        predictor = make_predictor(**flags)
    for layer in predictor.memory_attention.layers:
        layer.cross_attn_image = RoPEAttentionv2(
            embedding_dim=HIDDEN, num_heads=1, downsample_rate=1, dropout=0.0, kv_in_dim=MEMORY,
            q_sizes=[8, 8], k_sizes=[4, 4],
        )  # fmt: skip
    return predictor.eval()


@pytest.fixture
def predictor() -> Any:
    return make_edgetam()


def plain(session: str, folder: Path, clip: Any) -> Any:
    seen = run(make_edgetam(), session, folder, clip)
    assert_lively(seen[0])
    return seen


def test_this_version_was_tested() -> None:
    found = version("edgetam-dimos")
    assert found in patch.EdgeTamBatched.TESTED, (
        f"edgetam-dimos {found} is new here: run this file, then add it to TESTED"
    )


def test_the_host_is_found(predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_host(predictor).__name__ == "EdgeTamBatched"
    monkeypatch.setattr(type(predictor), "_run_memory_encoder", lambda self: None)
    with pytest.raises(
        TypeError, match=r"_run_memory_encoder\(\) does not take .* \(edgetam-dimos .*; tested with 1\.0\.1"
    ):
        sk.wrap(predictor)


@pytest.mark.parametrize(
    ("session", "method"),
    [
        *[(session, method) for session in ("forward", "reverse") for method in ("stock", "window")],
        *[("both_ways", "window"), ("over_again", "stock")],  # a second pass reads what the window let go
    ],
)
def test_stock_and_window_are_the_host(session: str, method: str, predictor: Any, clip_folder: Path, clip: Any) -> None:
    sk.wrap(predictor, method)
    assert_equal(run(predictor, session, clip_folder, clip), plain(session, clip_folder, clip), tensors=False)


def test_pointers_without_a_memory_are_not_counted(
    predictor: Any, clip_folder: Path, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: EdgeTAM counts entries; with those of pointers alone among them the masks are others."""
    few = sk.KeyframeMemory(sk.Recent(1), fill=False)
    sk.wrap(predictor, few)
    seen = run(predictor, "forward", clip_folder, clip)
    sk.unwrap(predictor)
    monkeypatch.setattr(patch.EdgeTamBatched, "_read_of", patch.Batched._read_of)
    sk.wrap(predictor, few)
    with pytest.raises((AssertionError, RuntimeError)):
        assert_equal(run(predictor, "forward", clip_folder, clip), seen, tensors=False)


def two_objects(predictor: Any, folder: Path, clip: Any) -> tuple[Any, torch.Tensor]:
    state = predictor.init_state(str(folder))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
    return state, torch.stack([masks.clone() for _, _, masks in predictor.propagate_in_video(state)])


@pytest.mark.parametrize("name", sk.METHODS)
def test_every_method_with_two_objects(name: str, predictor: Any, clip_folder: Path, clip: Any) -> None:
    """EdgeTAM alone fails on two; what needs a grid is refused in a sentence."""
    if name in ("compact", "sam2long", "sam2long_tree"):
        with pytest.raises(TypeError, match=r"use attend=Whole\(\)"):
            sk.wrap(predictor, name)
        return
    if name == "sentry":
        with pytest.raises(ValueError, match="frames inferred a second time"):
            sk.wrap(predictor, name)
        return
    sk.wrap(predictor, name, **({"frames": (3, 6, 9)} if name == "genetic" else {}))
    state, logits = two_objects(predictor, clip_folder, clip)
    assert torch.isfinite(logits).all()
    for one in sk.memory_stats(state).values():
        assert [row.frame_idx for row in one.rows] == list(range(1, FRAMES))
        assert name in ("stock", "samite") or one.rows[-1].memory.frames <= 20  # samite holds a hundred


def test_two_objects_are_tracked_as_each_alone(predictor: Any, clip_folder: Path, clip: Any) -> None:
    with pytest.raises(RuntimeError, match="view"):  # when this no longer fails, EdgeTAM was mended
        two_objects(predictor, clip_folder, clip)
    both = {}
    for method in ("stock", "window"):
        with sk.wrap(predictor, method):
            both[method] = two_objects(predictor, clip_folder, clip)[1]
    assert torch.equal(both["stock"], both["window"])
    for index, obj_id in enumerate((1, 2)):
        state = predictor.init_state(str(clip_folder))
        predictor.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
        alone = torch.stack([masks.clone() for _, _, masks in predictor.propagate_in_video(state)])
        assert float((both["stock"][:, index] - alone[:, 0]).abs().max()) < 1e-2


def test_nothing_is_left(predictor: Any, clip_folder: Path, clip: Any) -> None:
    before = dict(vars(predictor))
    seen = run(predictor, "forward", clip_folder, clip)
    state = seen[2][0]
    shapes = {t: e["maskmem_features"].shape for t, e in state["output_dict"]["non_cond_frame_outputs"].items()}
    sk.wrap(predictor, "keyframe")
    state = run(predictor, "forward", clip_folder, clip)[2][0]
    sk.unwrap(predictor)
    assert vars(predictor) == before
    tracked = state["output_dict"]["non_cond_frame_outputs"]
    assert {t: e["maskmem_features"].shape for t, e in tracked.items()}.items() <= shapes.items()
    assert len(tracked) >= 6
    assert all(e["maskmem_features"].ndim == 3 for e in state["output_dict"]["cond_frame_outputs"].values())
    for _ in predictor.propagate_in_video(state, start_frame_idx=20):  # the host goes on with it
        pass
    sk.forget(state)
    assert KEY not in state
    assert KEY not in state["constants"]
    assert_equal(run(predictor, "forward", clip_folder, clip), seen)


def test_a_state_of_the_host_is_taken_over(predictor: Any, clip_folder: Path, clip: Any) -> None:
    """Wrapped in mid-video, and unwrapped: masks as if it had always been so."""
    state = predictor.init_state(str(clip_folder))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    seen = [masks.clone() for _, _, masks in predictor.propagate_in_video(state)]
    again = predictor.init_state(str(clip_folder))
    predictor.add_new_mask(again, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    parts = [masks.clone() for _, _, masks in predictor.propagate_in_video(again, 0, 7)]
    with sk.wrap(predictor, "window"):
        parts += [masks.clone() for _, _, masks in predictor.propagate_in_video(again, 8, 7)]
    parts += [masks.clone() for _, _, masks in predictor.propagate_in_video(again, 16, 7)]
    assert len(parts) == len(seen) == FRAMES
    assert all(torch.equal(a, b) for a, b in zip(parts[:16], seen[:16], strict=True))
    # what left is gone: pointers beyond the window are no longer there once it is unwrapped
    assert all(torch.isfinite(part).all() for part in parts)


@pytest.mark.parametrize("method", ["keyframe", "window"])
def test_a_stream_and_a_replay(method: str, predictor: Any, clip: Any) -> None:
    state = sk.init_state(predictor, clip.frames)
    with sk.wrap(predictor, method), sk.record(predictor, state) as recording:
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        offline = [masks.clone() for _, _, masks in predictor.propagate_in_video(state)]
        live = sk.memory_stats(state)[1]
    played = sk.replay(clip.frames, recording, method).stats[1]
    assert [row.attended for row in live.rows] == [row.attended for row in played.rows]
    with sk.Stream(predictor, method) as stream:
        for t, frame in enumerate(clip.frames):
            logits = stream.step(frame, masks={1: clip.masks[0] == 1} if t == 0 else None)[2]
            assert torch.equal(logits, offline[t])


def test_what_needs_a_grid_is_refused(predictor: Any) -> None:
    with pytest.raises(ValueError, match="32 latents and no grid: choose Int8"):
        sk.wrap(predictor, sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, codec=sk.Downsample(2))))
    with pytest.raises(RuntimeError, match="leave out batch_objects"):
        sk.wrap(predictor, batch_objects=True)
    assert "_sam2_keyframe" not in vars(predictor)
