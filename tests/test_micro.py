"""The embedded micro SAM 2: what it is built of, what its weights show, and that its training can be trusted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sam2")

from benchmarks.metrics import jaccard
from benchmarks.micro import clips, evaluate, train
from sam2_keyframe import micro
from sam2_keyframe.synthetic import CHALLENGES, make_clip

TINY = train.Config(((64, 20, 2),), frames=4, warmup=4, pair=0.0, rate=1e-3)


@pytest.fixture(scope="module")
def predictor():
    return micro.load_micro_predictor()


def test_it_is_sam2s_own_predictor_with_the_21_settings(predictor) -> None:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    assert type(predictor) is SAM2VideoPredictor
    assert not predictor.training
    assert predictor.image_size == 256
    assert predictor.num_maskmem == 7
    assert (predictor.hidden_dim, predictor.mem_dim) == (64, 32)
    assert predictor.pred_obj_scores
    assert predictor.multimask_output_for_tracking
    assert predictor.use_multimask_token_for_obj_ptr
    assert predictor.add_tpos_enc_to_obj_ptrs
    assert predictor.no_obj_embed_spatial is not None
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in predictor.parameters())


def test_the_weights_fit_the_package() -> None:
    from safetensors import safe_open

    assert micro.WEIGHTS.stat().st_size <= 8_000_000
    with safe_open(micro.WEIGHTS, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert micro.WEIGHTS.with_name("MODEL_CARD.md").is_file()


def test_loading_is_deterministic_and_leaves_torch_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.nn.Linear.reset_parameters
    one, two = (micro.load_micro_predictor().state_dict() for _ in range(2))
    assert torch.nn.Linear.reset_parameters is before
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.nn.Linear(4, 4).weight.abs().sum() > 0


@pytest.mark.parametrize("size", [32, 100, 2048])
def test_a_size_it_cannot_take_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        micro.load_micro_predictor(image_size=size)


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(micro, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        micro.load_micro_predictor()


def test_every_temporal_row_moved_from_its_initial_value(predictor) -> None:
    torch.manual_seed(0)  # the shipped run's --seed
    initial = micro.build_model(128).maskmem_tpos_enc.detach()[:, 0, 0]
    moved = (predictor.maskmem_tpos_enc.detach()[:, 0, 0] - initial).norm(dim=1) / initial.norm(dim=1)
    assert moved.shape == (7,)
    assert moved.min() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
def test_it_follows_an_easy_object(size: int) -> None:
    predictor = micro.load_micro_predictor(image_size=size)
    found, kept = [], []
    for seed in (31, 32, 33):
        clip = make_clip("static", seed, 10, size, photos=False)
        masks = evaluate.track(predictor, clip.frames, clip.masks[0])
        found += [jaccard(m, t) for m, t in zip(masks[1:], clip.masks[1:], strict=True)]
        kept.append(jaccard(masks[0], clip.masks[0]))
    assert np.mean(found) > 0.6
    assert min(kept) > 0.7


def test_clicks_and_boxes_are_taken(predictor) -> None:
    clip = make_clip("static", 40, 2, 256, photos=False)
    for prompt in ({"points": [[128, 128]], "labels": [1]}, {"box": [60, 60, 200, 180]}):
        state = evaluate.start(predictor, clip.frames)
        _, _, logits = predictor.add_new_points_or_box(state, 0, 1, **prompt)
        assert logits.shape == (1, 1, 256, 256)
        assert torch.isfinite(logits).all()


def test_evaluation_clips_are_apart_from_training() -> None:
    assert len(clips.CLIPS) == 66
    assert {name for name, _ in clips.CLIPS} == set(CHALLENGES)
    seeds = {seed for _, seed in clips.CLIPS} | set(clips.LONG_SEEDS)
    assert max(seeds) < train.CHECK_SEED < train.TRAIN_SEED


@pytest.mark.slow
def test_it_beats_the_trivial_trackers_where_things_move(predictor) -> None:
    """On three of the evaluation clips, tracked here and now; the model card has all of them."""
    model, trivial = [], {name: [] for name in evaluate.TRIVIAL}
    for challenge in ("fast", "leave_and_return", "scale"):
        clip = make_clip(challenge, clips.SEEDS[0], clips.FRAMES, clips.SIZE, photos=False)
        model.append(np.mean(evaluate.score(evaluate.track(predictor, clip.frames, clip.masks[0]), clip.masks)))
        for name, tracker in evaluate.TRIVIAL.items():
            trivial[name].append(np.mean(evaluate.score(tracker(clip.frames, clip.masks[0]), clip.masks)))
    assert np.mean(model) > max(np.mean(scores) for scores in trivial.values()), (model, trivial)


def test_trivial_trackers_score_perfectly_where_nothing_moves() -> None:
    clip = make_clip("static", 1, 1, 64, photos=False)
    frames, truth = np.repeat(clip.frames, 5, 0), np.repeat(clip.masks, 5, 0)
    for name in ("first mask copied", "optical flow"):
        found = evaluate.TRIVIAL[name](frames, truth[0])
        assert evaluate.score(found, truth) == pytest.approx((100, 100))


def _losses(trainer: train.Trainer, count: int) -> list[float]:
    start = trainer.step
    steps = range(start, start + count)
    return [trainer.train_step(train.make_batch(trainer.config, step))["loss"] for step in steps]


@pytest.mark.slow
def test_twenty_steps_learn_and_the_weights_round_trip(tmp_path: Path) -> None:
    trainer = train.Trainer(TINY, tmp_path)
    losses = _losses(trainer, 20)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    train.export(trainer.average, tmp_path / "w.safetensors")
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "w.safetensors")
    assert loaded.keys() == trainer.average.keys()
    for name, value in trainer.average.items():
        torch.testing.assert_close(loaded[name].float(), value.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_losses(tmp_path: Path) -> None:
    whole = _losses(train.Trainer(TINY, tmp_path), 6)
    first = train.Trainer(TINY, tmp_path)
    before = _losses(first, 3)
    first.save(tmp_path / "last.pt")
    again = train.Trainer(TINY, tmp_path)
    again.load(tmp_path / "last.pt")
    assert again.step == 3
    assert before + _losses(again, 3) == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_the_model_is_measured_where_an_object_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "AWAY_FRAMES", 64)
    found = evaluate.run_absence(evaluate.load(None), 1)
    assert found["clips"] == 3
    assert [row["way"] for row in found["rows"]] == ["leaving", "partial", "filled"]
    for name in ("j_before", "false_masks", "recovery"):
        assert found["all"][name] == pytest.approx(np.mean([row[name] for row in found["rows"]]), abs=0.01)
    assert found["all"]["j_before"] > 30


def test_training_goes_on_with_absences_and_prompts_and_leaves_the_image_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "POOL", 2)
    config = train.Config(((64, 2, 1),), frames=9, pair=0.0, rate=1e-3, warmup=1, away=1.0, prompts=2, freeze=True)
    batches = [train.make_batch(config, step) for step in range(4)]
    assert any((batch.masks.amax((2, 3)) == 0).any() for batch in batches)  # frames on which an object is away
    trainer = train.Trainer(config, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    logged = trainer.train_step(batches[0])
    assert logged.get("click_n", 0) + logged.get("box_n", 0) == 2
    assert (tmp_path / "pool.pt").is_file()
    after = trainer.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "image_encoder" not in changed
    assert {"sam_mask_decoder", "sam_prompt_encoder", "memory_attention"} <= changed


def test_every_temporal_row_gets_gradient_from_one_eight_frame_clip(tmp_path: Path) -> None:
    config = train.Config(((64, 1, 2),), pair=0.0)
    trainer = train.Trainer(config, tmp_path)
    batch = train.make_batch(config, 0)
    batch.index = list(range(8))
    loss, _ = train.run_clips(trainer.model, batch, np.random.default_rng(0))
    loss.backward()
    assert (trainer.model.maskmem_tpos_enc.grad.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_training_from_the_command_line_resumes(tmp_path: Path, processes: str) -> None:
    options = ["--out", str(tmp_path), "--frames", "4", "--processes", processes]
    command = [sys.executable, "-m", "benchmarks.micro.train", *options, "--stages"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for steps in ("64:10:2", "64:20:2"):
        subprocess.run([*command, steps], check=True, capture_output=True, env=environment)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [10, 20]


def test_it_meets_the_network_never(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    micro.load_micro_predictor()


@pytest.mark.slow
def test_an_installed_wheel_loads_the_model_with_the_network_off(tmp_path: Path) -> None:
    pytest.importorskip("build.__main__")
    root, source, built = Path(__file__).parents[1], tmp_path / "source", tmp_path / "dist"
    for folder in ("sam2_keyframe", "patches"):
        shutil.copytree(root / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(root / file, source / file)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    code = (
        "import socket\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "from sam2_keyframe.micro import WEIGHTS, load_micro_predictor\n"
        "load_micro_predictor()\n"
        "raise SystemExit(0 if 'site' in str(WEIGHTS) else str(WEIGHTS))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, env=environment)
