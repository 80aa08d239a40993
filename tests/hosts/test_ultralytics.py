"""The plugin under ultralytics' SAM2VideoPredictor, where it is installed: `make test-hosts` sets up an environment."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_without_cuda

import sam2_keyframe as sk
from sam2_keyframe.app import cli
from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.patches import driver_of, find_host
from sam2_keyframe.patches import sam2 as patch
from sam2_keyframe.patches.ultralytics import Ultralytics
from sam2_keyframe.synthetic import make_clip

torchvision_without_cuda.declare()
pytest.importorskip("ultralytics", reason="ultralytics is not installed: make test-hosts")
cv2 = pytest.importorskip("cv2", reason="ultralytics reads videos with OpenCV")

from ultralytics.models.sam import SAM2VideoPredictor  # noqa: E402
from ultralytics.models.sam.build import _build_sam2  # noqa: E402

SIZE, FRAMES = 128, 12
BOUND = 1e-3
"""Most that mask logits may differ where attention runs object by object and not in one batch."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A clip of two objects as a video file, and its masks."""
    made = make_clip("occlusion", seed=3, frames=FRAMES, size=SIZE, objects=2)
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (SIZE, SIZE))
    for frame in made.frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return made, path


def make_predictor(tmp_path: Path, seed: int = 0, **flags: Any) -> Any:
    """Return a small predictor with random weights on which objects are visible and masks vary."""
    torch.manual_seed(seed)
    model = _build_sam2(
        encoder_embed_dim=32,
        encoder_stages=(1, 2, 3, 1),
        encoder_num_heads=1,
        encoder_global_att_blocks=(4, 5),
        encoder_backbone_channel_list=[256, 128, 64, 32],
        encoder_window_spatial_size=(8, 8),
        encoder_window_spec=(8, 4, 8, 4),
    )
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(5.0)
        model.maskmem_tpos_enc.add_(torch.randn_like(model.maskmem_tpos_enc))
    model.set_binarize(True)
    settings = {"imgsz": SIZE, "save": False, "verbose": False, "model": "sam2_t.pt", "project": str(tmp_path)}
    predictor = SAM2VideoPredictor(overrides={**settings, "device": "cpu", "conf": 0.0})
    predictor.setup_model(model, verbose=False)
    for name, value in flags.items():
        setattr(predictor, name, value)
    return predictor


def track(predictor: Any, clip: Any, count: int = 2) -> torch.Tensor:
    """Return (frames, objects, H/4, W/4) mask logits."""
    made, path = clip
    logits = []
    inference = predictor.inference

    def seen(*args: Any, **kwargs: Any) -> Any:
        masks, scores = inference(*args, **kwargs)
        logits.append(masks.clone())
        return masks, scores

    predictor.inference = seen
    try:
        points = [[float(x) for x in np.argwhere(made.masks[0] == i).mean(0)[::-1]] for i in range(1, count + 1)]
        for _ in predictor(source=str(path), points=points, labels=[1] * count, stream=True):
            pass
    finally:
        del predictor.inference
    return torch.stack(logits)


def test_this_version_was_tested() -> None:
    found = version("ultralytics")
    assert found in Ultralytics.TESTED, (
        f"ultralytics {found} is new here: run this file, read what changed in models/sam/predict.py and "
        "modules/sam.py, then add it to TESTED"
    )


def test_a_method_that_changed_is_named_with_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor(tmp_path)
    monkeypatch.setattr(SAM2VideoPredictor, "_prune_non_cond_memory", lambda self: None)
    with pytest.raises(TypeError, match=r"_prune_non_cond_memory\(\) does not take .* \(ultralytics .*; tested with 8"):
        sk.wrap(predictor)


def test_the_host_is_found(tmp_path: Path) -> None:
    assert find_host(make_predictor(tmp_path)).__name__ == "Ultralytics"
    with pytest.raises(TypeError, match=r"its network is not loaded yet: call predictor.setup_model\(\) first"):
        sk.wrap(SAM2VideoPredictor(overrides={"model": "sam2_t.pt", "imgsz": SIZE, "project": str(tmp_path)}))


@pytest.mark.parametrize("count", [1, 2])
def test_stock_is_the_host(count: int, tmp_path: Path, clip: Any) -> None:
    """To the last bit with one object; the host's own pruning stays on."""
    plain = track(make_predictor(tmp_path), clip, count)
    assert plain.std() > 0
    assert not torch.equal(plain[1], plain[-1])
    predictor = make_predictor(tmp_path)
    sk.wrap(predictor, "stock")
    ours = track(predictor, clip, count)
    assert torch.equal(ours, plain) if count == 1 else float((ours - plain).abs().max()) <= BOUND
    assert min(predictor.inference_state["output_dict"]["non_cond_frame_outputs"]) == FRAMES - 7


@pytest.mark.parametrize("count", [1, 2])
def test_window_is_the_host_without_its_pruning(count: int, tmp_path: Path, clip: Any) -> None:
    plain = track(make_predictor(tmp_path, clear_non_cond_mem=False), clip, count)
    predictor = make_predictor(tmp_path)
    sk.wrap(predictor, "window")
    ours = track(predictor, clip, count)
    assert torch.equal(ours, plain) if count == 1 else float((ours - plain).abs().max()) <= BOUND
    state = predictor.inference_state
    assert not state["output_dict"]["non_cond_frame_outputs"]
    for place in state["output_dict_per_obj"].values():
        whole = [e for e in place["non_cond_frame_outputs"].values() if e["maskmem_features"].numel()]
        assert len(whole) == 6
        assert all("pred_masks_high_res" not in entry for entry in place["non_cond_frame_outputs"].values())


def test_a_fault_in_the_view_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Any) -> None:
    """Negative control: without what lies in the slots the masks are others."""
    plain = track(make_predictor(tmp_path), clip)
    view = patch.memory_view

    def faulty(*args: Any) -> Any:
        return {**view(*args), "non_cond_frame_outputs": {}}

    monkeypatch.setattr(patch, "memory_view", faulty)
    predictor = make_predictor(tmp_path)
    sk.wrap(predictor, "stock")
    assert float((track(predictor, clip) - plain).abs().max()) > BOUND


@pytest.mark.parametrize("name", [name for name in sk.METHODS if name not in ("sentry", "sam2long_tree")])
def test_every_method(name: str, tmp_path: Path, clip: Any) -> None:
    how = {"compact": {"attend": sk.Foveated(0.2, 2)}, "genetic": {"frames": (3, 6, 9)}}.get(name, {})
    predictor = make_predictor(tmp_path)
    sk.wrap(predictor, name, **how)
    assert torch.isfinite(track(predictor, clip)).all()
    stats = sk.memory_stats(predictor.inference_state)
    assert set(stats) == {0, 1}
    for one in stats.values():
        assert [row.frame_idx for row in one.rows] == list(range(2, FRAMES + 1))
        assert all(1 in row.attended for row in one.rows)
        assert name == "stock" or one.rows[-1].memory.frames <= 20


def test_nothing_is_left(tmp_path: Path, clip: Any) -> None:
    predictor = make_predictor(tmp_path)
    track(predictor, clip)
    before, model = set(vars(predictor)), dict(vars(predictor.model))
    hooks = dict(predictor.model.sam_mask_decoder._forward_hooks)
    handle = sk.wrap(predictor, "keyframe")
    track(predictor, clip)
    handle.unwrap()
    assert set(vars(predictor)) == before
    assert vars(predictor.model).keys() == model.keys()
    assert predictor.model.sam_mask_decoder._forward_hooks == hooks
    state = predictor.inference_state
    sk.forget(state)
    assert KEY not in state
    assert KEY not in state["constants"]
    for place in state["output_dict_per_obj"].values():
        assert place.keys() == {"cond_frame_outputs", "non_cond_frame_outputs"}
    plain = track(make_predictor(tmp_path), clip)
    assert torch.equal(track(predictor, clip), plain)


# -- driven over frames that are given to it ---------------------------------------------------------------------------


def frames_of(path: Path) -> list[np.ndarray]:
    """Return the frames of a video as the predictor decodes them, BGR."""
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    return frames


def host_masks(predictor: Any, clip: Any) -> list[np.ndarray]:
    """Return (2, H, W) masks as the predictor's own results have them."""
    made, path = clip
    points = [[float(x) for x in np.argwhere(made.masks[0] == i).mean(0)[::-1]] for i in (1, 2)]
    return [
        result.masks.data.numpy() for result in predictor(source=str(path), points=points, labels=[1, 1], stream=True)
    ]


@pytest.mark.parametrize("size", [SIZE, 192])
@pytest.mark.parametrize("method", ["stock", "window"])
def test_frames_that_are_given_are_tracked_as_the_host_tracks_its_own(
    method: str, size: int, tmp_path: Path, clip: Any
) -> None:
    """Frames that are no squares are letterboxed, and masks scaled back, as the host does it."""
    made, path = clip
    if size != SIZE:
        frames = [np.ascontiguousarray(np.pad(f, ((0, 0), (0, 64), (0, 0)))) for f in frames_of(path)]
        path = tmp_path / "wide.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (size, SIZE))
        for frame in frames:
            writer.write(frame)
        writer.release()
    predictor = make_predictor(tmp_path)
    with sk.wrap(predictor, method):
        expected = host_masks(predictor, (made, path))
    points = {i: {"points": [np.argwhere(made.masks[0] == i).mean(0)[::-1]], "labels": [1]} for i in (1, 2)}
    with sk.wrap(predictor, method):
        driver = driver_of(predictor)
        state = sk.init_state(predictor, [np.ascontiguousarray(frame[..., ::-1]) for frame in frames_of(path)])
        driver.prompt(state, 0, points)
        for t, obj_ids, logits in driver.track(state, 0, FRAMES):
            assert obj_ids == [1, 2]
            assert np.array_equal((logits[:, 0] > 0).numpy(), expected[t].astype(bool)), t
        assert [row.frame_idx for row in sk.memory_stats(state)[2].rows] == list(range(1, FRAMES))
    assert t == FRAMES - 1
    assert len({masks.sum() for masks in expected}) > 3


def test_a_stream_is_corrected_and_stays_small(tmp_path: Path, clip: Any) -> None:
    made, path = clip
    predictor, frames = make_predictor(tmp_path), frames_of(path)
    with sk.Stream(predictor, "keyframe", channels="bgr", max_prompts=2) as stream:
        for t in range(30):
            stream.step(frames[t % FRAMES], masks={7: made.masks[0] == 1} if t == 0 else None)
            if t == 5:
                _, _, logits = stream.correct(masks={7: made.masks[5] == 1})
                assert ((logits[0, 0] > 0).numpy() == (made.masks[5] == 1)).mean() > 0.98
        state = stream._state
        assert 5 in stream.stats[7].rows[-1].attended
        assert set(state["frames_already_tracked"]) == {29}
        assert len(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]) < 21
        with pytest.raises(RuntimeError, match="Cannot add new object id 8"):
            stream.step(frames[0], boxes={8: (5, 5, 40, 40)})
        with pytest.raises(TypeError, match="cannot let an object go"):
            stream.remove(7)


@pytest.mark.parametrize("method", ["keyframe", "window"])
def test_a_replay_repeats_the_run(method: str, tmp_path: Path, clip: Any) -> None:
    made, _ = clip
    predictor = make_predictor(tmp_path)
    state = sk.init_state(predictor, made.frames)
    driver = driver_of(predictor)
    with sk.wrap(predictor, method), sk.record(predictor, state) as recording:
        driver.prompt(state, 0, {i: {"mask": made.masks[0] == i} for i in (1, 2)})
        assert len(list(driver.track(state, 0, FRAMES))) == FRAMES
        live = sk.memory_stats(state)
    played = sk.replay(made.frames, recording, method).stats
    for obj_id, stats in live.items():
        assert [row.attended for row in stats.rows] == [row.attended for row in played[obj_id].rows]


def test_the_command_line_takes_it(tmp_path: Path, clip: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An official size, its weights random."""
    torch.manual_seed(0)
    from ultralytics.models.sam.build import build_sam2_t

    torch.save({"model": build_sam2_t().state_dict()}, tmp_path / "sam2_t.pt")
    out, model = tmp_path / "out", f"ultralytics:{tmp_path / 'sam2_t.pt'}"
    call = ["track", str(clip[1]), "--model", model, "--image-size", "128", "--device", "cpu", "--frames", "4"]
    assert cli.main([*call, "--box", "20,20,90,90", "--no-pictures", "--no-overlay", "--out", str(out)]) == 0
    assert len(list((out / "masks").iterdir())) == 4
    assert (out / "recording.npz").stat().st_size > 1000
    capsys.readouterr()
    call[3] = f"ultralytics:{tmp_path / 'no.pt'}"
    assert cli.main([*call, "--box", "20,20,90,90", "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be loaded" in error
    assert "such as sam2.1_t.pt" in error
