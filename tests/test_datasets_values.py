"""What a folder's files stand for: the value 255, ids beyond a byte, lists of frames, names that a machine hid."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import open_dataset

SIZE = (24, 32)


def write(root, masks, sequence="a"):
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / sequence).mkdir(parents=True)
    for t, mask in enumerate(masks):
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(root / f"JPEGImages/{sequence}/{t:05d}.jpg")
        Image.fromarray(mask).save(root / f"Annotations/{sequence}/{t:05d}.png")
    return root


def square(value, kind=np.uint8):
    mask = np.zeros(SIZE, kind)
    mask[4:10, 4:10] = value
    return mask


def tracks(root):
    return {track.obj_id: (track.first, track.scored) for track in open_dataset(str(root)).open("a").tracks}


def test_an_object_of_value_255_may_appear_late(tmp_path):
    root = write(tmp_path, [square(0), square(0), *[square(255)] * 4])
    assert tracks(root) == {1: (2, (2, 3, 4))}
    video = open_dataset(str(root)).open("a")
    assert [video.mask(t, 1).sum() for t in (1, 2)] == [0, 36]
    write(tmp_path / "whole", [np.full(SIZE, 255, np.uint8)] * 3)
    assert tracks(tmp_path / "whole") == {1: (0, (1,))}


def test_void_alone_in_the_first_mask_is_no_object(tmp_path):
    both = square(1)
    both[14:20, 14:20], both[0, 0] = 2, 255
    root = write(tmp_path, [square(255), both, both, both])
    assert tracks(root) == {1: (1, (1, 2)), 2: (1, (1, 2))}
    video = open_dataset(str(root)).open("a")
    assert not video.mask(0, 1).any()
    assert [video.mask(2, i).sum() for i in (1, 2)] == [36, 36]


def test_ids_beyond_a_byte_are_refused(tmp_path):
    root = write(tmp_path, [square(300, np.uint16)] * 3)
    with pytest.raises(ValueError, match=r"a/00000.png is a colour image or has ids above 255"):
        tracks(root)
    assert tracks(write(tmp_path / "small", [square(44, np.uint16)] * 3)) == {44: (0, (1,))}


def test_a_davis_2016_list_names_every_frame(tmp_path):
    for sequence in ("bear", "camel", "dog"):
        write(tmp_path, [square(255)] * 3, sequence)
    lines = [
        f"/JPEGImages/480p/{sequence}/{t:05d}.jpg /Annotations/480p/{sequence}/{t:05d}.png\n"
        for sequence in ("camel", "bear")
        for t in range(3)
    ]
    (tmp_path / "ImageSets/480p").mkdir(parents=True)
    (tmp_path / "ImageSets/480p/val.txt").write_text("".join(lines))
    assert open_dataset(str(tmp_path)).names == ("camel", "bear")


def test_hidden_names_are_not_data(tmp_path):
    root = write(tmp_path, [square(1)] * 3)
    (root / "Annotations/.ipynb_checkpoints").mkdir()
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("a\n")
    before = open_dataset(str(root)).fingerprint
    for name in ("JPEGImages/a/._00000.jpg", "Annotations/a/._00000.png", "._meta.json", "ImageSets/._train.txt"):
        (root / name).write_bytes(b"\0\5\26\7objects\xff")
    dataset = open_dataset(str(root))
    assert (dataset.split, dataset.names, dataset.fingerprint) == ("train", ("a",), before)
    assert [path.name for path in dataset.open("a").frames] == [f"{t:05d}.jpg" for t in range(3)]
    (root / "ImageSets/train.txt").unlink()
    (root / "ImageSets/._train.txt").unlink()
    assert open_dataset(str(root)).names == ("a",)
