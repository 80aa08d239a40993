"""Relations between a frame and the memories held, against NumPy and SciPy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from tracked import FAKE, Count, fake_tensors, frame

from sam2_keyframe.rules.similarity import (
    RELATIONS,
    AttentionShare,
    CellCosine,
    DescriptorCosine,
    ImageCosine,
    PrototypeCosine,
    attention_shares,
    foreground_queries,
)
from sam2_keyframe.types import FrameMemo, Held, Relation, TrackedFrame

ALL: list[Any] = [CellCosine(), DescriptorCosine(), PrototypeCosine(), ImageCosine(), ImageCosine(3), AttentionShare()]
each = pytest.mark.parametrize("relation", ALL, ids=repr)


def attending(now: TrackedFrame) -> TrackedFrame:
    """The frame with a proxy attention that projects nothing."""

    def attention(memories: Any) -> torch.Tensor:
        keys = torch.cat(list(memories)).float().flatten(2).transpose(1, 2)
        queries, _ = foreground_queries(now.maskmem_features, now.pred_masks, 8)
        return attention_shares(queries, keys) / 2

    return dataclasses.replace(now, attention=attention)


def held(relation: Any, frames: list[TrackedFrame]) -> list[Held]:
    for item in frames:
        relation.describe(item)
    return [Held(f.frame_idx, lambda f=f: f.maskmem_features, f.reference()) for f in frames]


@each
def test_registered_rebuilt_and_alike_to_itself(relation: Any) -> None:
    assert isinstance(relation, Relation)
    assert type(relation) in RELATIONS.values()
    assert eval(repr(relation), {type(relation).__name__: type(relation)}) == relation
    frames = [frame(seed, 128, seed) for seed in range(5)]
    alike = relation.relate(attending(frame(2, 128, 9)), held(relation, frames))
    assert alike.shape == (5,)
    assert alike.dtype == torch.float32
    if isinstance(relation, AttentionShare):
        assert float(alike.sum()) == pytest.approx(1)
        assert float(alike.min()) > 0
    else:
        assert alike.argmax() == 2
        assert float(alike[2]) == pytest.approx(1, abs=1e-6)
        assert float(alike.abs().max()) <= 1 + 1e-6


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - pytest.importorskip("scipy.spatial.distance").cosine(a.ravel(), b.ravel()))


def test_cell_cosine_is_the_mean_over_cells() -> None:
    a, b = frame(0, 64), frame(1, 64)
    x, y = (f.maskmem_features[0].float().flatten(1).numpy().astype(np.float64) for f in (a, b))
    expected = np.mean([cosine(x[:, i], y[:, i]) for i in range(x.shape[1])])
    relation = CellCosine()
    assert float(relation.relate(a, held(relation, [b]))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_descriptor_cosine_averages_inside_the_mask(empty: bool) -> None:
    edit = {"pred_masks": lambda x: x * 0 - 1} if empty else {}
    frames = [frame(seed, 64, **edit) for seed in range(2)]
    vectors = []
    for item in frames:
        cells = item.maskmem_features[0].float().numpy()
        inside = (item.pred_masks[0, 0] > 0).float().numpy().reshape(4, 4, 4, 4).mean((1, 3))
        vectors.append((cells * (np.ones_like(inside) if empty else inside)).sum((1, 2)))
    relation = DescriptorCosine()
    assert float(relation.relate(frames[0], held(relation, frames[1:]))) == pytest.approx(cosine(*vectors), abs=1e-5)


def test_image_cosine_is_shared_by_objects_and_kept_small() -> None:
    before, now = frame(0, 256), frame(1, 256)
    relation = ImageCosine()
    memories = held(relation, [before])
    kept = memories[0].reference.values["frame/embedding/8"]  # type: ignore[union-attr]
    assert kept.dtype == torch.float16
    assert kept.numel() == 64 * 32
    a, b = (f.image_embed[0].reshape(32, 8, 2, 8, 2).mean((2, 4)).numpy() for f in (before, now))  # type: ignore[index]
    assert float(relation.relate(now, memories)) == pytest.approx(cosine(a, b), abs=1e-3)
    other = dataclasses.replace(now, kept={}, scratch={}, measured={}, pred_masks=-now.pred_masks)
    with Count() as count:
        relation.describe(other)
    assert count.total == 0


@pytest.mark.parametrize("relation", [DescriptorCosine(), ImageCosine()], ids=repr)
def test_a_memory_without_descriptors_is_unknown(relation: Any) -> None:
    frames = [frame(seed, 64, seed) for seed in range(3)]
    memories = held(relation, frames)
    memories[1] = dataclasses.replace(memories[1], reference=None)
    alike = relation.relate(frame(5, 64), memories)
    assert alike.isnan().tolist() == [False, True, False]


def test_what_is_not_at_hand_is_unknown() -> None:
    now = frame(0, 64)
    memories = held(CellCosine(), [frame(1, 64)] * 2)
    assert AttentionShare().relate(now, memories).isnan().all()
    assert ImageCosine().relate(dataclasses.replace(now, image_embed=None), memories).isnan().all()


def test_attention_shares_equal_the_softmax_over_all_keys() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(6, 16, generator=rng), 2 * torch.randn(4, 9, 16, generator=rng)
    logits = queries.double().numpy() @ keys.double().reshape(36, 16).numpy().T / 4
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = weights.reshape(6, 4, 9).sum(2).mean(0)
    assert attention_shares(queries, keys).numpy() == pytest.approx(expected, abs=1e-6)
    many = attention_shares(queries.bfloat16(), 100 * keys.bfloat16())  # large logits stay finite
    assert float(many.sum()) == pytest.approx(1, abs=1e-5)


def test_foreground_queries_lie_on_the_object() -> None:
    embed = torch.arange(2 * 16 * 16, dtype=torch.float32).view(1, 2, 16, 16)
    logits = torch.full((1, 1, 64, 64), -5.0)
    logits[..., 8:24, 40:56] = 5.0
    queries, where = foreground_queries(embed, logits, 16)
    rows, columns = where // 16, where % 16
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (y, x) for y in range(2, 6) for x in range(10, 14)
    }
    assert torch.equal(queries, embed[0].flatten(1)[:, where].T)
    assert foreground_queries(embed, logits, 1000)[0].shape == (256, 2)
    assert foreground_queries(embed, logits * 0 - 1, 3)[1].tolist() == [0, 1, 2]


@each
def test_few_operations_whatever_the_number_held(relation: Any) -> None:
    counts = []
    for n in (2, 12):
        memories = held(relation, [frame(seed, 64, seed) for seed in range(n)])
        now = attending(frame(20, 64))
        with Count() as count:
            relation.relate(now, memories)
        counts.append(count.total)
    assert counts[0] == counts[1] <= 25


@each
def test_on_the_device_no_value_is_read(relation: Any) -> None:
    with fake_tensors():
        memories = held(relation, [frame(0, 64, 0, "fake"), frame(0, 64, 1, "fake")])
        memories[1] = dataclasses.replace(memories[1], reference=None)
        alike = relation.relate(attending(frame(0, 64, 2, "fake")), memories)
    assert alike.device.type == FAKE
    assert alike.shape == (2,)


@pytest.mark.gpu
@each
def test_on_cuda_nothing_waits_for_the_device(relation: Any) -> None:
    memories = held(relation, [frame(seed, 64, seed, "cuda") for seed in range(3)])
    now = attending(frame(9, 64, 9, "cuda"))
    relation.relate(attending(frame(8, 64, 8, "cuda")), memories)  # the first call may load libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        alike = relation.relate(now, memories)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = relation.relate(attending(frame(9, 64)), held(relation, [frame(seed, 64, seed) for seed in range(3)]))
    assert torch.allclose(alike.cpu(), expected, atol=1e-3)


@each
def test_under_autocast_the_same_numbers(relation: Any) -> None:
    memories = held(relation, [frame(seed, 64, seed) for seed in range(3)])
    now = attending(frame(9, 64))
    plain = relation.relate(now, memories)
    fresh = dataclasses.replace(now, kept={}, scratch={}, shared=FrameMemo(now.shared.make_image))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relation.relate(attending(fresh), memories), plain)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="choose"):
        ImageCosine(0)
    assert math.isnan(float(DescriptorCosine().relate(frame(0, 64), [Held(0, lambda: torch.zeros(1), None)])))
