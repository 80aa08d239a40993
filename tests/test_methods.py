"""Every method on a real clip: finite masks, within its bounds, prompts never gone, the same choices again."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import make_predictor, write_frames
from sessions import run

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.rules.filters import as_filter
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import KeyframeFilter

LOOSE = sk.KeyframeMemory(keep=0.05)
SETTINGS: dict[str, sk.KeyframeMemory] = {
    **{name: sk.make_method(name) for name in sk.METHODS if name not in ("genetic", "compact")},
    "compact": sk.make_method("compact", attend=sk.Foveated(0.2, 2)),  # the model's grid is of 4 x 4
    "genetic": sk.make_method("genetic", frames=(3, 9, 21, 30)),
    "samurai by motion": sk.make_method("samurai", kalman=True),
    "stride 3": sk.make_method("stride", r=3),
    "kept all": sk.KeyframeMemory(keep=sk.Always(), gate=sk.Always()),
    "kept none": sk.KeyframeMemory(keep=sk.Never()),
    "small": sk.KeyframeMemory(capacity=2, fill=False, keep=0.05),
    "significant": sk.KeyframeMemory(keep=0.05, evict=sk.LeastSignificant(), recent=2, capacity=4),
    "anchors": sk.KeyframeMemory(keep=0.05, temporal="anchor", capacity=8),
    "as prompts": sk.KeyframeMemory(keep=0.05, temporal="prompt", capacity=3),
    "true slots": sk.KeyframeMemory(keep=0.05, temporal="slot"),
    "few pointers": sk.KeyframeMemory(keep=0.05, pointers="selected"),
    "ranked pointers": sk.KeyframeMemory(keep=0.05, pointers="ranked"),
    "moving pointers": sk.KeyframeMemory(
        pointers=sk.Threshold(0.02, of="feature_shift"), measure=(sk.FeatureShift(reference="previous"),)
    ),
    "no masks": sk.KeyframeMemory(keep_masks=False, keep=sk.MinGap(3) & sk.EveryNth(2) | ~sk.Visible()),
    "everything stays": sk.KeyframeMemory(keep=0.05, retain="all"),
    "no newest": sk.KeyframeMemory(recent=0, capacity=3, fill=False, keep=sk.EveryNth(4)),
    "one prompt": dataclasses.replace(LOOSE, conditioning=1),
    "minor": sk.KeyframeMemory(capacity=3, minor=2, compressor=sk.Int8()),
    "merged": dataclasses.replace(LOOSE, capacity=2, consolidate=1),
    "retrieved": dataclasses.replace(LOOSE, capacity=9, select=sk.Relevant()),
    "retrieved anchors": dataclasses.replace(
        LOOSE, capacity=9, select=sk.Relevant(), temporal="anchor", compressor=sk.Downsample(2)
    ),
    "reconstructed": dataclasses.replace(LOOSE, capacity=9, select=sk.Reconstruct()),
    "packed": dataclasses.replace(LOOSE, compressor=sk.Chain(sk.PCA(0.25, basis="running"), sk.Int8())),
    "offloaded": dataclasses.replace(LOOSE, compressor=sk.Offload()),
    "pooled": dataclasses.replace(LOOSE, attend=sk.Pool(2), minor=1, capacity=4),
    "foveated": dataclasses.replace(LOOSE, attend=sk.Foveated(size=2, conditioning=True), temporal="anchor"),
}
RULES: dict[str, sk.KeyframeMemory] = {
    **{
        f"{name} keeps": sk.KeyframeMemory(
            keep=rule, scorer=sk.Combine((sk.MaskIoU(), sk.Histogram(), sk.OpticalFlow())), gate=sk.Always()
        )
        for name, rule in {
            "Adaptive": sk.Adaptive(k=0.5, warmup=3), "Quantile": sk.Quantile(0.8, warmup=3),
            "MotionScaled": sk.MotionScaled(0.2), "Hysteresis": sk.Hysteresis(0.3, 0.1), "MaxGap": sk.MaxGap(7),
            "SceneBoundary": sk.SceneBoundary(0.05), "StableArea": sk.StableArea(), "Grid": sk.Grid(3),
            "EffectiveScore": sk.EffectiveScore(), "Frames": sk.Frames((2, 5, 8)), "Quality": sk.Quality(0.3),
        }.items()
    },
    **{
        f"{name} leaves": sk.KeyframeMemory(keep=sk.Always(), gate=sk.Always(), evict=rule(), capacity=3)
        for name, rule in sk.EVICTION.items()
    },
}  # fmt: skip
SETTINGS |= RULES


@pytest.fixture(scope="module")
def model() -> Any:
    return make_predictor(64)


@pytest.fixture(scope="module")
def absent(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A 40-frame clip of two objects, one of which leaves and returns."""
    clip = make_clip("leave_and_return", seed=1, frames=40, size=64, objects=2)
    return write_frames(tmp_path_factory.mktemp("absent"), clip.frames), clip


def _track(model: Any, video: Any, method: sk.KeyframeMemory, check: Any, reverse: bool = False) -> Any:
    folder, clip = video
    masks = []
    with sk.wrap(model, method):
        state = model.init_state(str(folder))
        start = 39 if reverse else 0
        prompt = 0  # both objects are in view on the first frame
        for obj_id in (1, 2):
            model.add_new_mask(state, start, obj_id, torch.from_numpy(clip.masks[prompt] == obj_id))
        model.add_new_mask(state, 20, 2, torch.from_numpy(clip.masks[prompt] == 2))
        for _, _, logits in model.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
            masks.append(logits.clone())
            check(state)
    return torch.stack(masks), sk.memory_stats(state)


def _bound(method: sk.KeyframeMemory) -> int:
    """Return how many tracked frames a method may hold and attend to."""
    kept = method.recent + method.capacity + method.minor
    window = 8 if isinstance(method.fill, KeyframeFilter) else 6 if method.fill else 0
    return max(window, kept) if isinstance(method.fill, bool) else window + kept


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_matrix(name: str, reverse: bool, model: Any, absent: Any) -> None:
    method = SETTINGS[name]

    def check(state: Any) -> None:
        for obj_idx, output_dict in state["output_dict_per_obj"].items():
            prompts = output_dict["cond_frame_outputs"]
            assert set(prompts) == {39 if reverse else 0} | ({20} if obj_idx == 1 else set())
            assert all(entry["maskmem_features"].numel() for entry in prompts.values())
            held = [t for t, e in output_dict["non_cond_frame_outputs"].items() if e["maskmem_features"].numel()]
            held += output_dict[KEY].store.payloads
            if method.retain == "bank":
                assert len(held) <= _bound(method) + 1  # + 1: the newest, undecided
            selection = output_dict[KEY].selection
            assert len(selection.buffer) <= method.capacity
            assert len(selection.minor) <= method.minor
            assert len(output_dict[KEY].long_term) <= method.consolidate

    masks, stats = _track(model, absent, method, check, reverse)
    assert masks.isfinite().all()
    assert masks.std() > 0
    for obj_id, number in ((1, 39), (2, 38)):
        rows = list(stats[obj_id].rows)
        assert len(rows) == number == stats[obj_id].frames
        for row in rows:
            prompts = {39, 20} if reverse else {0, 20}
            tracked = [t for t in row.attended if obj_id == 1 or t not in prompts]
            past = [(t - row.frame_idx) * (1 if reverse else -1) for t in tracked]
            own = sum(distance > 0 for distance in past)
            assert own <= (6 if method.select.chooses else _bound(method)) + 1  # + 1: its prompt, for object 1
            newest = row.frame_idx + 1 if reverse else row.frame_idx - 1
            if method.recent and isinstance(method.fill, bool) and row.frame_idx not in (38, 1, 19, 21):
                assert newest in row.attended
            first = 39 if reverse else 0
            assert first in row.attended or method.conditioning == 1
        assert stats[obj_id].keyframes == sum(bool(row.keyframe) for row in rows)
    again, repeated = _track(model, absent, method, lambda state: None, reverse)
    assert torch.equal(masks, again)
    assert [r.attended for s in stats.values() for r in s.rows] == [
        r.attended for s in repeated.values() for r in s.rows
    ]


def test_objects_are_independent(model: Any, absent: Any) -> None:
    """Alone or beside the other, the same choices for each."""
    folder, clip = absent
    found: dict[tuple[int, ...], dict[int, Any]] = {}
    for objects in ((1,), (2,), (1, 2)):
        with sk.wrap(model, "keyframe", keep=0.05, measure=(sk.Histogram(region="object"), sk.FeatureShift("memory"))):
            state = model.init_state(str(folder))
            for obj_id in objects:
                model.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
            for _ in model.propagate_in_video(state):
                pass
        stats = sk.memory_stats(state)
        found[objects] = {i: [(row.attended, row.scores, row.keyframe) for row in stats[i].rows] for i in objects}
    assert found[1, 2] == found[(1,)] | found[(2,)]
    assert found[1, 2][1] != found[1, 2][2]


@pytest.mark.parametrize(
    "name", ["keyframe", "random", "window", "significant", "anchors", "dam4sam", "sam2long", "xmem_style", "adaptive"]
)
def test_a_second_pass_equals_the_first(name: str, model: Any, absent: Any) -> None:
    folder, clip = absent
    with sk.wrap(model, SETTINGS[name]):
        state = model.init_state(str(folder))
        model.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        first, second = ([m.clone() for _, _, m in model.propagate_in_video(state)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_repr_rebuilds(name: str) -> None:
    method = SETTINGS[name]
    assert eval(repr(method), vars(sk)) == method
    assert dataclasses.replace(method) == method


def test_methods_are_factories() -> None:
    assert sk.make_method("fifo", capacity=4).recent == 4
    every_third = sk.make_method("every_nth", n=3, capacity=2)
    assert every_third == dataclasses.replace(sk.make_method("every_nth"), capacity=2, keep=sk.EveryNth(3))
    assert sk.make_method("keyframe", keep=0.7).keep == as_filter(0.7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sk.make_method("keyframe").recent = 2  # type: ignore[misc]


def test_the_gate_stays_when_keep_is_swept(clip_folder: Any, clip: Any) -> None:
    """No frame that the gate rejects becomes a keyframe, at any threshold."""
    model = make_predictor()
    for keep in (0.0, 0.1, 0.5):
        with sk.wrap(model, "keyframe", keep=keep, gate=sk.Quality(0.551)):
            state = run(model, "forward", clip_folder, clip)[2][0]
        rows = sk.memory_stats(state)[1].rows
        gated = [row.scores["predicted_iou"] > 0.551 for row in rows]
        assert any(gated)
        assert not all(gated)
        assert [bool(row.keyframe) for row in rows] == [
            ok and row.significance > keep for ok, row in zip(gated, rows, strict=True)
        ]
