"""Every method on a real clip: finite masks, within its bounds, prompts never gone, the same choices again."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pickle
from typing import Any

import pytest
import torch
from conftest import a_few, make_predictor, write_frames
from memories import GOOD, LOOSE, memory
from sessions import run

import sam2_keyframe as sk
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip

ALL = sk.Always()
OTHERS = sk.Others(2, GOOD, codec=sk.Downsample(2))
SETTINGS: dict[str, sk.KeyframeMemory] = {
    **{name: sk.make_method(name) for name in sk.METHODS if name not in ("genetic", "compact")},
    "compact": sk.make_method("compact", attend=sk.Foveated(0.2, 2)),  # the model's grid is of 4 x 4
    "genetic": sk.make_method("genetic", frames=(3, 9, 21, 30)),
    "samurai by motion": sk.make_method("samurai", kalman=True),
    "three paths": sk.make_method("sam2long_tree", theta=0.3, sure=1e9),
    "two paths": memory(GOOD, n=3, others=OTHERS, tree=sk.Tree(2, sure=1e9), pointers="selected"),
    "checked": sk.make_method("dam4sam", verify=sk.Backward(frames=4)),
    "stride 3": sk.make_method("stride", r=3),
    "kept all": memory(ALL),
    "kept none": memory(~ALL),
    "small": memory(n=2, fill=False),
    "significant": memory(evict=sk.LeastSignificant(), recent=2, n=4),
    "anchors": memory(code="anchor", n=8),
    "as prompts": memory(code="prompt", n=3),
    "true slots": memory(codes="slot"),
    "slots and anchors": memory(codes="slot", code="anchor", n=3),
    "few pointers": memory(pointers="selected"),
    "ranked pointers": memory(pointers=sk.Ranked(GOOD)),
    "moving pointers": memory(pointers=sk.FeatureShift(reference="previous") > 0.02),
    "no masks": memory(GOOD & (sk.MinGap(3) & sk.EveryNth(2) | ~sk.Visible()), keep_masks=False),
    "everything stays": memory(store="all"),
    "no newest": memory(GOOD & sk.EveryNth(4), n=3, recent=0, fill=False),
    "no shelves": sk.KeyframeMemory(),
    "one prompt": memory(prompts=sk.Prompts(1)),
    "nearest prompts": memory(prompts=sk.Prompts(2, keep_first=False)),
    "others": memory(n=3, codec=sk.Int8(), others=OTHERS),
    "others first": sk.KeyframeMemory(sk.Recent(1), sk.Others(2, sk.EveryNth(3)), sk.Keyframes(3, LOOSE)),
    "merged": sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, LOOSE), sk.LongTerm(1, of=3)),
    "retrieved": memory(n=9, read=sk.Relevant()),
    "retrieved anchors": memory(n=9, read=sk.Relevant(), code="anchor", codec=sk.Downsample(2)),
    "reconstructed": memory(n=9, read=sk.Reconstruct()),
    "packed": memory(codec=sk.Chain(sk.PCA(0.25, basis="running"), sk.Int8())),
    "offloaded": memory(codec=sk.Offload()),
    "pooled": memory(n=4, attend=sk.Pool(2), others=sk.Others(1, GOOD)),
    "foveated": memory(attend=sk.Foveated(size=2, conditioning=True), code="anchor"),
    "shown on a grid": sk.KeyframeMemory(sk.Recent(4, sk.Area() > 0, every=3), sk.Keyframes(2, LOOSE)),
}
BOTH = sk.Combine((sk.MaskIoU(), sk.Histogram(), sk.OpticalFlow()))
RULES: dict[str, sk.KeyframeMemory] = {
    **{
        f"{name} keeps": memory(rule)
        for name, rule in {
            "Combine": BOTH > 0.3, "Adaptive": sk.Adaptive(BOTH, k=0.5, warmup=3), "MaxGap": sk.MaxGap(7),
            "Quantile": sk.Quantile(BOTH, 0.8, warmup=3),
            "MotionScaled": sk.MotionScaled(BOTH, 0.2, by=sk.OpticalFlow()), "EffectiveScore": sk.EffectiveScore(),
            "SceneBoundary": sk.SceneBoundary(sk.Histogram(), 0.05), "StableArea": sk.StableArea(),
            "Frames": sk.Frames((2, 5, 8)), "Surprise": sk.Surprise() > 1.0,
        }.items()
    },
    **{f"{name} leaves": memory(ALL, n=3, evict=rule()) for name, rule in sk.BLOCKS["eviction"].items()},
}  # fmt: skip
SETTINGS |= RULES
QUICK = (
    "stock", "window", "keyframe", "compact", "dam4sam", "sam2long", "samurai", "anchors", "others", "merged",
    "retrieved", "reconstructed", "packed", "offloaded", "shown on a grid", "MostSimilar leaves", "rcms", "three paths",
)  # fmt: skip
"""Of each kind one or two; the others are slow ones."""


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
    kept = method.newest + method.keyframes.n + method.others.n
    if method.fill and method.keyframes.read.chooses and not method.keyframes.read.on_device:
        return 6 + method.keyframes.n + method.others.n  # it may leave all its slots to the newest frames
    return 8 + kept if method.recent.when is not None else max(6 if method.fill else 0, kept)


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", a_few(SETTINGS, *QUICK))
def test_matrix(name: str, reverse: bool, model: Any, absent: Any) -> None:
    method = SETTINGS[name]

    def check(state: Any) -> None:
        for obj_idx, output_dict in state["output_dict_per_obj"].items():
            prompts = output_dict["cond_frame_outputs"]
            assert set(prompts) == {39 if reverse else 0} | ({20} if obj_idx == 1 else set())
            assert all(entry["maskmem_features"].numel() for entry in prompts.values())
            held = [t for t, e in output_dict["non_cond_frame_outputs"].items() if e["maskmem_features"].numel()]
            held += output_dict[KEY].store.payloads
            if method.store == "bank":
                assert len(held) <= _bound(method) + 1  # + 1: the newest, undecided
            selection = output_dict[KEY].selection
            assert len(selection.buffer) <= method.keyframes.n
            assert len(selection.others) <= method.others.n
            assert len(output_dict[KEY].long_term) <= method.long_term.n

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
            assert own <= (6 if method.keyframes.read.chooses else _bound(method)) + 1  # + 1: its prompt, for object 1
            newest = row.frame_idx + 1 if reverse else row.frame_idx - 1
            if method.recent.n and method.recent.when is None and row.frame_idx not in (38, 1, 19, 21):
                assert newest in row.attended
            first = 39 if reverse else 0
            assert first in row.attended or method.prompts.most == 1 or not method.prompts.keep_first
        assert stats[obj_id].keyframes == sum(bool(row.keyframe) for row in rows)
    again, repeated = _track(model, absent, method, lambda state: None, reverse)
    assert torch.equal(masks, again)
    assert [r.attended for s in stats.values() for r in s.rows] == [
        r.attended for s in repeated.values() for r in s.rows
    ]


@pytest.mark.slow
def test_slots_that_a_rule_leaves_free_are_filled() -> None:
    """How many keyframes the rule takes is known only when the frame is read: the newest frames wait until then."""
    predictor, clip = load_micro_predictor(), make_clip("leave_and_return", seed=1, frames=40, size=128)
    with sk.wrap(predictor, memory(n=9, read=sk.Reconstruct())):
        state = sk.init_state(predictor, clip.frames)
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for _ in predictor.propagate_in_video(state):
            pass
        rows = sk.memory_stats(state)[1].rows
    assert [len(row.attended) for row in rows] == [min(row.frame_idx, 7) for row in rows]


@pytest.mark.slow
def test_objects_are_independent(model: Any, absent: Any) -> None:
    """Alone or beside the other, the same choices for each."""
    folder, clip = absent
    found: dict[tuple[int, ...], dict[int, Any]] = {}
    for objects in ((1,), (2,), (1, 2)):
        with sk.wrap(
            model, "keyframe", change=0.05, measure=(sk.Histogram(region="object"), sk.FeatureShift("memory"))
        ):
            state = model.init_state(str(folder))
            for obj_id in objects:
                model.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
            for _ in model.propagate_in_video(state):
                pass
        stats = sk.memory_stats(state)
        found[objects] = {i: [(row.attended, row.scores, row.keyframe) for row in stats[i].rows] for i in objects}
    assert found[1, 2] == found[(1,)] | found[(2,)]
    assert found[1, 2][1] != found[1, 2][2]


@pytest.mark.slow
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
    assert method.with_choices() == method
    assert pickle.loads(pickle.dumps(method)) == method


def test_methods_are_factories() -> None:
    assert sk.make_method("fifo", recent=4).recent.n == 4
    every_third = sk.make_method("every_nth", n=3, keyframes=2)
    assert every_third == sk.KeyframeMemory(sk.Recent(1), sk.Keyframes(2, sk.EveryNth(3)), fill=False)
    assert sk.make_method("keyframe", change=0.7).keyframes.when == sk.Visible() & (sk.MaskIoU() > 0.7)
    assert sk.make_method("keyframe", change=sk.SSIM() > 0.2).keyframes.when == sk.Visible() & (sk.SSIM() > 0.2)
    assert sk.make_method("keyframe", codec=sk.Int8()).others == sk.Others(3, sk.Visible(), codec=sk.Int8())
    assert sk.make_method("keyframe", fill=False, codes="slot").with_choices(fill=True, codes="rank") == (
        sk.make_method("keyframe")
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        sk.make_method("keyframe").fill = False  # type: ignore[misc]


def test_each_method_is_written_in_eight_lines() -> None:
    for name, method in sk.METHODS.items():
        code = ast.parse(inspect.getsource(method)).body[0]
        assert isinstance(code, ast.FunctionDef)
        lines = [line for part in code.body[1:] for line in range(part.lineno, (part.end_lineno or 0) + 1)]
        assert len(lines) <= 8, name


def test_the_gate_stays_when_the_threshold_is_swept(clip_folder: Any, clip: Any) -> None:
    """No frame that the first rule rejects becomes a keyframe, at any threshold."""
    model = make_predictor()
    for change in (0.0, 0.1, 0.5):
        with sk.wrap(model, memory((sk.PredictedIoU() > 0.551) & (sk.MaskIoU() > change), n=2)):
            state = run(model, "forward", clip_folder, clip)[2][0]
        rows = sk.memory_stats(state)[1].rows
        gated = [row.scores["predicted_iou"] > 0.551 for row in rows]
        assert any(gated)
        assert not all(gated)
        assert all(row.significance == row.scores["mask_iou"] for row in rows)
        assert [bool(row.keyframe) for row in rows] == [
            ok and row.significance > change for ok, row in zip(gated, rows, strict=True)
        ]
