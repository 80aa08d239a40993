"""What makes two runs the same run, or runs that may be compared: the data, not how a folder is spelled."""

import json
import shutil

import pytest
import yaml
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.compare import load_groups
from benchmarks.datasets import open_dataset
from benchmarks.results import protocol
from sam2_keyframe.synthetic import make_clip


@pytest.fixture
def data(tmp_path):
    for name in ("a", "b"):
        clip = make_clip("static", 1, 4, 64)
        for kind, images, suffix in (("JPEGImages", clip.frames, "jpg"), ("Annotations", clip.masks, "png")):
            folder = tmp_path / "data" / kind / name
            folder.mkdir(parents=True)
            for t, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{t:05d}.{suffix}")
    return tmp_path / "data"


def run(out, *arguments):
    return main(["run", "--image-size", "64", "--method", "stock", *arguments, "--out", str(out)])


def test_a_folder_is_known_by_name_and_sequences(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert run(out, "--data", str(data)) == 0
    for arguments in (["--data", "data/"], ["--data", "./data", "--sequences", "b,a", "--clips", "9"]):
        assert run(out, *arguments) == 0
        assert len(list(out.glob("*/config.yaml"))) == 1
    assert run(out, "--data", "data", "--sequences", "a") == 0
    configs = [yaml.safe_load(file.read_text()) for file in out.glob("*/config.yaml")]
    assert sorted(config["data"]["sequences"] for config in configs) == [["a"], ["a", "b"]]
    assert sorted(group.results[0].metrics["videos"] for group in load_groups(out)) == [1, 2]


def test_other_masks_under_the_same_names_are_not_taken_for_finished(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(out, "--data", str(data)) == 0
    shutil.copytree(data, tmp_path / "elsewhere/data")
    capsys.readouterr()
    assert run(out, "--data", str(tmp_path / "elsewhere/data")) == 0
    assert "a  stock" not in capsys.readouterr().err  # the folder was moved: nothing was tracked
    mended = tmp_path / "elsewhere/data/Annotations/b/00002.png"
    with Image.open(mended) as mask:
        mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mended)
    (file,) = out.glob("*/config.yaml")
    before = yaml.safe_load(file.read_text())
    for config in (before, {name: part for name, part in before.items() if name != "annotations"}):
        file.write_text(yaml.safe_dump(config))
        assert run(out, "--data", str(tmp_path / "elsewhere/data")) == 2
        assert f"made otherwise: annotations was {config.get('annotations')!r} and is" in capsys.readouterr().err


def test_a_digest_of_the_annotations_knows_lists_and_frames(data):
    digests = [open_dataset(str(data), sequences=order).fingerprint for order in (["a", "b"], ["b", "a"])]
    assert len(set(digests)) == 1
    for frames in (["00000", "00001"], ["00000", "00002"]):
        videos = {name: {"objects": {"1": {"frames": frames}}} for name in ("a", "b")}
        (data / "meta.json").write_text(json.dumps({"videos": videos}))
        digests.append(open_dataset(str(data)).fingerprint)
    Image.new("RGB", (64, 64)).save(data / "JPEGImages/a/00004.jpg")
    digests.append(open_dataset(str(data)).fingerprint)
    assert len(set(digests)) == 4


def test_runs_without_times_are_not_taken_for_timed_ones(tmp_path, capsys):
    small = ["--image-size", "64", "--size", "64", "--frames", "4", "--clips", "1", "--challenges", "static"]
    assert main(["sweep", *small, "--out", str(tmp_path)]) == 0
    for arguments in (["sweep", "--timed"], ["run", "--method", "stock"]):
        assert main([*arguments, *small, "--out", str(tmp_path)]) == 2
        assert "made otherwise: shared_features was True and is False" in capsys.readouterr().err
    assert main(["sweep", *small, "--out", str(tmp_path)]) == 0


def test_results_without_a_digest_can_still_be_compared(data, tmp_path):
    out = tmp_path / "out"
    for method in ("stock", "window"):
        assert run(out, "--data", str(data), "--method", method) == 0
    file = next(out.glob("*window*/metrics.json"))
    metrics = json.loads(file.read_text())
    assert metrics["config"].pop("annotations")
    file.write_text(json.dumps(metrics))
    (group,) = load_groups(out)
    assert {result.label for result in group.results} == {"stock", "window"}


def test_results_written_with_paths_can_still_be_compared():
    parts = ("schema", "split", "model", "weights", "image_size", "device", "dtype", "threads", "seed")
    shared = {**dict.fromkeys(parts), "method": {"name": "stock"}}
    here = {**shared, "data": {"name": "davis", "path": "/here/davis", "sequences": ["a"], "clips": 2}}
    there = {**shared, "data": {"name": "davis", "path": "davis/", "sequences": ["a"]}, "method": {"name": "fifo"}}
    assert protocol(here) == protocol(there)
    assert protocol(here) != protocol({**here, "data": {**here["data"], "sequences": ["b"]}})
    assert json.loads(protocol({**shared, "data": {"name": "elsewhere"}}))["data"] == {"name": "elsewhere"}
