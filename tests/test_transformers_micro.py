"""The micro model under transformers: every weight is there, and it tracks as it does under SAM 2's own classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sam2")
pytest.importorskip("transformers")

from on_transformers import add_points, middle, new_session

import sam2_keyframe as sk
from sam2_keyframe import micro
from sam2_keyframe.micro.transformers import convert
from sam2_keyframe.synthetic import make_clip


def overlap(one: Any, two: Any) -> float:
    """Return the IoU of two masks; 1 where both are empty."""
    union = (one | two).sum()
    return 1.0 if not union else float((one & two).sum() / union)


def test_it_is_a_model_of_transformers_with_every_weight() -> None:
    from safetensors.torch import load_file
    from transformers import Sam2VideoModel

    model = micro.load_micro_model("transformers", image_size=128)
    assert type(model) is Sam2VideoModel
    assert not model.training
    weights = load_file(micro.WEIGHTS)
    converted, own = convert(weights), model.state_dict()
    assert converted.keys() == own.keys()
    assert all(torch.equal(converted[name], own[name]) for name in own)
    shared = converted["shared_image_embedding.positional_embedding"].numel()  # which transformers keeps twice
    assert sum(t.numel() for t in converted.values()) == sum(t.numel() for t in weights.values()) + shared


def test_a_weight_too_few_is_refused() -> None:
    from safetensors.torch import load_file

    weights = load_file(micro.WEIGHTS)
    del weights["no_mem_embed"]
    with pytest.raises(RuntimeError, match="no_memory_embedding"):
        micro.build_transformers_model(weights, 128)


def test_loading_leaves_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    micro.load_micro_model("transformers", image_size=64)
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(ValueError, match="'sam2', 'transformers'"):
        micro.load_micro_model("ultralytics")


def test_sizes_are_checked_for_every_host() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        micro.load_micro_model("transformers", image_size=100)


@pytest.mark.parametrize(
    ("challenge", "seed", "frames", "size"),
    [
        ("leave_and_return", 3, 24, 128),
        pytest.param("static", 3, 60, 256, marks=pytest.mark.slow),
        pytest.param("leave_and_return", 1, 60, 256, marks=pytest.mark.slow),
    ],
)
def test_clicks_give_the_masks_of_sam2s_own_classes(challenge: str, seed: int, frames: int, size: int) -> None:
    """On clips that the model follows: two trackers that find nothing agree as well."""
    clip = make_clip(challenge, seed=seed, frames=frames, size=size, objects=1)
    click = middle(clip.masks[0] == 1)
    original = micro.load_micro_model("sam2", image_size=size)
    state = sk.init_state(original, clip.frames)
    original.add_new_points_or_box(state, 0, 1, points=[click], labels=[1])
    expected = {t: logits[0, 0] > 0 for t, _, logits in original.propagate_in_video(state)}

    model = micro.load_micro_model("transformers", image_size=size)
    session = new_session(model, torch.stack([state["images"][t] for t in range(frames)]).float())
    add_points(session, 0, 1, [click], [1])
    found = {}
    for output in model.propagate_in_video_iterator(session, start_frame_idx=0):
        logits = F.interpolate(output.pred_masks, size=(size, size), mode="bilinear", align_corners=False)
        found[output.frame_idx] = logits[0, 0] > 0

    assert found.keys() == expected.keys() == set(range(frames))
    assert min(overlap(found[t], expected[t]) for t in found) >= 0.999
    right = [overlap(expected[t], torch.from_numpy(clip.masks[t] == 1)) >= 0.5 for t in expected]
    assert np.sum(right) >= frames * 5 / 6
