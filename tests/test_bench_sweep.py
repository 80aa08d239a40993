"""Sweeps: their grid, shared image features, and official checkpoints."""

import json

import numpy as np
import pytest
import torch

from benchmarks import plan as run_module
from benchmarks.__main__ import main
from benchmarks.models import shared_features
from benchmarks.plan import BASELINES, combinations
from benchmarks.results import read_csv
from sam2_keyframe import MaskIoU, PredictedIoU, Visible
from sam2_keyframe.app.models import recognise
from sam2_keyframe.app.options import parse_set
from sam2_keyframe.micro import load_micro_predictor

SMALL = ["--image-size", "128", "--clips", "1", "--frames", "8", "--size", "64", "--challenges", "deformation"]


def test_a_grid_is_every_combination_beside_the_baselines():
    found = combinations(["fifo", "window"], "keyframe", ["others=2"], ["fill=True,False", "change=0.1,0.2,MaxGap(5)"])
    assert [name for name, _ in found] == [*BASELINES, "fifo", *["keyframe"] * 6]
    assert found[len(BASELINES) + 1] == ("keyframe", ["others=2", "fill=True", "change=0.1"])
    assert found[-1] == ("keyframe", ["others=2", "fill=False", "change=MaxGap(5)"])
    assert combinations([], "compact", ["others=2"], [])[len(BASELINES) :] == [("compact", ["others=2"])]
    assert len(combinations([], "compact", [], [])) == len(BASELINES)


def test_a_sweep_reads_values_as_the_command_line_does():
    assert parse_set(["change=0.2", "codes=slot", "measure=[MaskIoU]", "choice=None"]) == {
        "change": 0.2,
        "codes": "slot",
        "measure": (MaskIoU(),),
        "choice": None,
    }
    assert parse_set(["change=Visible() & (PredictedIoU() > 0.5)"]) == {"change": Visible() & (PredictedIoU() > 0.5)}
    for text in ("__import__('os')", "open('x')", "wrap()", "1 +", "Adaptive(**{'k': 99})"):
        with pytest.raises(ValueError, match=r"there is no|cannot be read|is neither a literal nor built"):
            parse_set([f"change={text}"])


def test_shared_features_change_no_mask(tmp_path, monkeypatch):
    calls = []
    load = run_module.load_predictor

    def counting(*arguments):
        predictor = load(*arguments)
        predictor.image_encoder.register_forward_hook(lambda *_: calls.append(1))
        return predictor

    monkeypatch.setattr(run_module, "load_predictor", counting)
    arguments = ["sweep", *SMALL, "--grid", "keyframes=1,3"]
    assert main([*arguments, "--out", str(tmp_path / "shared")]) == 0
    shared = len(calls)
    assert main([*arguments, "--timed", "--out", str(tmp_path / "apart")]) == 0
    assert shared == 8  # once a frame for all six runs
    assert len(calls) - shared >= 6 * 8
    names = sorted(path.name for path in (tmp_path / "shared").glob("*"))
    assert len(names) == 6
    for name in names:
        here, there = (tmp_path / folder / name for folder in ("shared", "apart"))
        ours, theirs = read_csv(here / "frames.csv"), read_csv(there / "frames.csv")
        assert {row.pop("milliseconds") for row in ours} == {"", "nan"}  # no times with shared features
        assert all(float(row.pop("milliseconds") or 1) > 0 for row in theirs)
        assert ours == theirs
        masks = [np.load(path / "videos/deformation-10000/masks.npz")["1"] for path in (here, there)]
        assert np.array_equal(*masks)
        assert json.loads((here / "metrics.json").read_text())["time"]["frame_ms"] is None


def test_shared_features_help_on_a_clip_longer_than_the_limit_and_leave_nothing():
    predictor = load_micro_predictor(image_size=64)
    images = torch.rand(5, 1, 3, 64, 64)
    counted = []
    hook = predictor.image_encoder.register_forward_hook(lambda *_: counted.append(1))
    with torch.inference_mode():
        alone = [predictor.forward_image(image) for image in images]
        frame, codes = (sum(tensor.nbytes for tensor in alone[0][name]) for name in ("backbone_fpn", "vision_pos_enc"))
        counted.clear()
        with shared_features(predictor, limit=codes + 3 * frame + frame // 2):  # position codes are held once
            walks = [[predictor.forward_image(image) for image in images] for _ in range(3)]
    hook.remove()
    assert len(counted) == 5 + 2 + 2  # three of five frames are held
    assert "forward_image" not in vars(predictor)
    for walk in walks:
        for features, expected in zip(walk, alone, strict=True):
            assert features.keys() == expected.keys()
            assert torch.equal(features["vision_features"], expected["vision_features"])
            for name in ("backbone_fpn", "vision_pos_enc"):
                assert all(torch.equal(*pair) for pair in zip(features[name], expected[name], strict=True))


@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
@pytest.mark.parametrize("version", ["2", "2.1"])
def test_official_checkpoints_are_recognised(size, version, monkeypatch):
    import sam2.build_sam  # noqa: F401 - makes the configurations known to hydra
    from hydra import compose
    from hydra.utils import instantiate

    name = f"configs/sam{version}/sam{version}_hiera_{size}.yaml"
    trunk = dict(compose(config_name=name).model.image_encoder.trunk)
    trunk.pop("weights_path", None)  # it starts official training
    for kind in (torch.nn.Linear, torch.nn.Conv2d):
        monkeypatch.setattr(kind, "reset_parameters", lambda _: None)  # values do not matter here
    blocks = instantiate(trunk)
    weights = {f"image_encoder.trunk.{key}": value for key, value in blocks.state_dict().items()}
    if compose(config_name=name).model.get("no_obj_embed_spatial"):
        weights["no_obj_embed_spatial"] = torch.empty(0)
    assert recognise(weights, "x.pt") == name


def test_a_file_that_is_no_checkpoint_is_a_sentence(tmp_path, capsys):
    for content in (b"nonsense", b""):
        (tmp_path / "model.pt").write_bytes(content)
        assert main(["run", *SMALL, "--model", str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")]) == 2
        assert "model.pt: not a file" in capsys.readouterr().err
