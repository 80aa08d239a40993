"""Folders that lack a frame or a mask they should have: an error that names it, never fewer scored frames."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import open_dataset

NAMES = [f"{t:08d}" for t in range(1, 32, 5)]


@pytest.fixture
def root(tmp_path):
    for kind, shape, suffix in (("JPEGImages", (24, 32, 3), "jpg"), ("Annotations", (24, 32), "png")):
        (tmp_path / kind / "v").mkdir(parents=True)
        for name in NAMES:
            Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / f"{kind}/v/{name}.{suffix}")
    return tmp_path


def list_object(root, entry):
    (root / "meta.json").write_text(json.dumps({"videos": {"v": {"objects": {"1": entry}}}}))


def test_a_mask_without_a_frame(root):
    (root / f"JPEGImages/v/{NAMES[2]}.jpg").unlink()
    with pytest.raises(ValueError, match=rf"v: 1 masks in .* belong to no frame \({NAMES[2]}.png\); unpack all images"):
        open_dataset(str(root))


@pytest.mark.parametrize("lvos", [False, True])
def test_a_listed_frame_without_a_mask(root, lvos):
    list_object(root, {"frame_range": {"start": "1", "end": "31"}} if lvos else {"frames": NAMES})
    video = open_dataset(str(root)).open("v")
    assert video.tracks[0].scored == (tuple(range(6)) if lvos else tuple(range(1, 7)))
    for i in (4, 2):
        (root / f"Annotations/v/{NAMES[i]}.png").unlink()
    (root / f"JPEGImages/v/{NAMES[4]}.jpg").unlink()
    with pytest.raises(ValueError, match=rf"v: object 1 has no mask on {NAMES[2]}, {NAMES[4]}, though meta.json lists"):
        open_dataset(str(root)).open("v")


def test_an_object_listed_nowhere(root):
    list_object(root, {"frames": []})
    with pytest.raises(ValueError, match="object 1 has no mask on any frame"):
        open_dataset(str(root)).open("v")


@pytest.mark.parametrize(
    "text",
    [
        '{"objects": ',
        '{"v": {"objects": {}}}',
        '{"videos": {"v": {"objects": {}}, "w": {}}}',
        '{"videos": {"v": {"objects": {"1": {"category": "cat"}}}}}',
        '{"videos": {"v": {"objects": {"cat": {"frames": []}}}}}',
        '{"videos": {"v": {"objects": {"1": {"frame_range": {"start": "1"}}}}}}',
    ],
)
def test_a_list_that_cannot_be_read_is_named(root, text):
    (root / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta.json lists no objects' frames by video .*unpack it again"):
        open_dataset(str(root))


def test_a_video_without_a_frame_to_track(root):
    (root / f"JPEGImages/v/{NAMES[-1]}.jpg").unlink()
    (root / f"Annotations/v/{NAMES[-1]}.png").unlink()
    late = {"frame_range": {"start": "26", "end": "31"}}  # as LVOS scores it, its prompt is its only frame
    early = {"frame_range": {"start": "1", "end": "31"}}
    objects = {"videos": {"v": {"objects": {"1": early, "2": late}}}}
    (root / "meta.json").write_text(json.dumps(objects))
    assert [track.scored for track in open_dataset(str(root)).open("v").tracks] == [tuple(range(6)), (5,)]
    del objects["videos"]["v"]["objects"]["1"]
    (root / "meta.json").write_text(json.dumps(objects))
    with pytest.raises(ValueError, match="v: every object is prompted on the last frame"):
        open_dataset(str(root)).open("v")
