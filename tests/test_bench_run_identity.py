"""What makes two runs the same run, or runs that may be compared: not how a folder is spelled."""

import json

import pytest
import yaml
from PIL import Image

from benchmarks.__main__ import main
from benchmarks._compare import load_groups
from benchmarks._store import protocol
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


def test_results_written_with_paths_can_still_be_compared():
    parts = ("schema", "split", "model", "weights", "image_size", "device", "dtype", "threads", "seed")
    shared = {**dict.fromkeys(parts), "method": {"name": "stock"}}
    here = {**shared, "data": {"name": "davis", "path": "/here/davis", "sequences": ["a"], "clips": 2}}
    there = {**shared, "data": {"name": "davis", "path": "davis/", "sequences": ["a"]}, "method": {"name": "fifo"}}
    assert protocol(here) == protocol(there)
    assert protocol(here) != protocol({**here, "data": {**here["data"], "sequences": ["b"]}})
    assert json.loads(protocol({**shared, "data": {"name": "elsewhere"}}))["data"] == {"name": "elsewhere"}
