"""Each layout on a small folder built from its official description."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import Synthetic, open_dataset

SIZE = (24, 32)


def write_frames(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / f"{name}.jpg")


def labels(*boxes, void=False):
    """A label image: box i (row, column of its corner; None: absent) becomes object i + 1, 6 pixels wide."""
    image = np.zeros(SIZE, np.uint8)
    for i, box in enumerate(boxes):
        if box is not None:
            image[box[0] : box[0] + 6, box[1] : box[1] + 6] = i + 1
    if void:
        image[0, 0] = 255
    return image


def write_mask(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    if image.max(initial=0) < 255:
        picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(path)


def tracks(video):
    return {track.obj_id: (track.first, track.scored) for track in video.tracks}


def test_davis(tmp_path):
    # JPEGImages/480p, Annotations/480p, ImageSets/2017/val.txt; every frame annotated; ends not scored.
    names = [f"{t:05d}" for t in range(6)]
    for sequence in ("dog", "cat"):
        write_frames(tmp_path / "JPEGImages/480p" / sequence, names)
        for name in names:
            write_mask(tmp_path / f"Annotations/480p/{sequence}/{name}.png", labels((2, 2), (12, 20), void=True))
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("dog\n")
    (tmp_path / "ImageSets/2017/train.txt").write_text("cat\n")
    dataset = open_dataset(str(tmp_path))
    assert (dataset.split, dataset.names) == ("val", ("dog",))
    video = dataset.open("dog")
    assert tracks(video) == {1: (0, (1, 2, 3, 4)), 2: (0, (1, 2, 3, 4))}
    assert video.exclusive
    assert video.prompts() == {0: [1, 2]}
    assert [path.stem for path in video.frames] == names
    assert video.mask(3, 2).sum() == 36
    assert not video.mask(3, 1)[0, 0]  # void is background
    elsewhere = pickle.loads(pickle.dumps(video))  # as workers of other machines get it
    assert all((elsewhere.mask(t, 2) == video.mask(t, 2)).all() for t in range(6))
    assert open_dataset(str(tmp_path), "train").names == ("cat",)
    with pytest.raises(ValueError, match=r"no split 'test'.*train, val"):
        open_dataset(str(tmp_path), "test")
    (tmp_path / "ImageSets/2017/train.txt").write_text("cat\ncat\n")
    assert open_dataset(str(tmp_path), "train").names == ("cat",)
    with pytest.raises(ValueError, match=r"no sequence bird.*dog"):
        open_dataset(str(tmp_path), sequences=["bird"])


def test_davis_2016_grey_masks(tmp_path):
    names = ["00000", "00001", "00002"]
    write_frames(tmp_path / "JPEGImages/480p/bear", names)
    for name in names:
        write_mask(tmp_path / f"Annotations/480p/bear/{name}.png", labels((3, 3)) * np.uint8(255))
    video = open_dataset(str(tmp_path)).open("bear")
    assert tracks(video) == {1: (0, (1,))}
    assert video.mask(1, 1).sum() == 36


def test_late_and_vanishing_objects(tmp_path):
    # MOSE, PUMaVOS and other plain folders: an object joins where it first appears; an absent one stays scored.
    frames = [
        labels((2, 2)),
        labels((2, 3)),
        labels(None, (12, 12)),
        labels(None, (12, 13)),
        labels((2, 6), (12, 14)),
        labels(),
    ]
    write_frames(tmp_path / "JPEGImages/a", [f"{t:05d}" for t in range(6)])
    for t, image in enumerate(frames):
        write_mask(tmp_path / f"Annotations/a/{t:05d}.png", image)
    video = open_dataset(str(tmp_path)).open("a")
    assert tracks(video) == {1: (0, (1, 2, 3, 4)), 2: (2, (2, 3, 4))}
    assert video.prompts() == {0: [1], 2: [2]}
    assert not video.mask(2, 1).any()


def test_mose(tmp_path):
    # henghuiding/MOSE-api: train/JPEGImages/<video>/00000.jpg, train/Annotations/<video>/00000.png, every frame; valid
    # holds first frames only. Objects leave, return and join.
    root = tmp_path / "train"
    frames = [labels((2, 2)), labels((2, 4)), labels(None, (12, 4)), labels((2, 8), (12, 8)), labels((2, 9), (12, 9))]
    write_frames(root / "JPEGImages/0a1b2c3d", [f"{t:05d}" for t in range(5)])
    for t, image in enumerate(frames):
        write_mask(root / f"Annotations/0a1b2c3d/{t:05d}.png", image)
    dataset = open_dataset(str(root))
    assert (dataset.split, dataset.names) == ("all", ("0a1b2c3d",))
    assert tracks(dataset.open("0a1b2c3d")) == {1: (0, (1, 2, 3)), 2: (2, (2, 3))}
    for t in range(1, 5):
        (root / f"Annotations/0a1b2c3d/{t:05d}.png").unlink()
    with pytest.raises(ValueError, match=r"masks of objects' first frames only.*training"):
        open_dataset(str(root))


def test_vost(tmp_path):
    # TRI-ML/VOST, evaluation/source: JPEGImages, Annotations and ImageSets/val.txt; masks of frames named with a word,
    # not of all frames; 255 is void and counts as background; all annotated frames but the outer two are scored.
    names = [f"frame{t:05d}" for t in range(12, 132, 12)]
    write_frames(tmp_path / "JPEGImages/555_tear_aluminium_foil", names)
    for name in (names[0], names[3], names[5], names[9]):
        image = labels((2, 2), (12, 12), void=True)
        write_mask(tmp_path / f"Annotations/555_tear_aluminium_foil/{name}.png", image)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/val.txt").write_text("555_tear_aluminium_foil\n")
    (tmp_path / "ImageSets/train.txt").write_text("1_other\n")
    dataset = open_dataset(str(tmp_path))
    video = dataset.open(dataset.names[0])
    assert dataset.split == "val"
    assert [path.stem for path in video.frames] == names
    assert tracks(video) == {1: (0, (3, 5)), 2: (0, (3, 5))}
    assert not video.mask(3, 1)[0, 0]
    with pytest.raises(ValueError, match="frame 4 has no mask"):
        video.mask(4, 1)


def test_pumavos(tmp_path):
    # max810/XMem2: JPEGImages/<video>, Annotations/<video>, every frame annotated, several parts as objects.
    names = [f"{t:05d}" for t in range(4)]
    for video in ("chair", "full_face_1"):
        write_frames(tmp_path / f"JPEGImages/{video}", names)
        for name in names:
            write_mask(tmp_path / f"Annotations/{video}/{name}.png", labels((2, 2), (12, 12)))
    (tmp_path / "README.txt").write_text("what this is\n")  # no list of videos
    dataset = open_dataset(str(tmp_path))
    assert (dataset.split, dataset.names) == ("all", ("chair", "full_face_1"))
    assert tracks(dataset.open("full_face_1")) == {1: (0, (1, 2)), 2: (0, (1, 2))}


def test_long_videos_are_sparse_and_in_natural_order(tmp_path):
    # xmlyqing00/AFB-URR: a video of thousands of frames, twenty of them annotated at equal distances; as hkchengrex's
    # vos-benchmark scores it: the annotated frames but the outer two. Numbers without leading zeros sort as numbers.
    names = [str(t) for t in range(95, 135)]
    write_frames(tmp_path / "JPEGImages/dressage", names)
    for name in names[::13]:
        write_mask(tmp_path / f"Annotations/dressage/{name}.png", labels((2, 2)))
    video = open_dataset(str(tmp_path)).open("dressage")
    assert [path.stem for path in video.frames] == names
    assert tracks(video) == {1: (0, (13, 26))}


def test_an_object_of_the_last_frame_is_left_out(tmp_path):
    write_frames(tmp_path / "JPEGImages/a", [f"{t:05d}" for t in range(4)])
    for t in range(4):
        write_mask(tmp_path / f"Annotations/a/{t:05d}.png", labels((2, 2), (12, 12) if t == 3 else None))
    assert tracks(open_dataset(str(tmp_path)).open("a")) == {1: (0, (1, 2))}


def test_youtube_vos(tmp_path):
    # valid/meta.json: {"videos": {id: {"objects": {id: {"category", "frames"}}}}}, frames an object is annotated on.
    names = [f"{t:05d}" for t in range(0, 50, 5)]
    write_frames(tmp_path / "JPEGImages/0a", names)
    for name in names:
        write_mask(tmp_path / f"Annotations/0a/{name}.png", labels((2, 2), (12, 12), (2, 20)))
    objects = {"1": {"category": "cat", "frames": names}, "2": {"category": "dog", "frames": names[4:7]}}
    (tmp_path / "meta.json").write_text(json.dumps({"videos": {"0a": {"objects": objects}}}))
    video = open_dataset(str(tmp_path)).open("0a")
    assert tracks(video) == {1: (0, tuple(range(1, 10))), 2: (4, (5, 6))}  # the third is not in the list
    everything = [f"{t:05d}" for t in range(46)]  # valid_all_frames: tracked are all frames, scored the annotated ones
    write_frames(tmp_path / "JPEGImages/0a", everything)
    video = open_dataset(str(tmp_path)).open("0a")
    assert tracks(video) == {1: (0, tuple(range(5, 50, 5))), 2: (20, (25, 30))}
    for name in (*names[1:4], *names[5:]):  # the validation set as published: objects' first frames only
        (tmp_path / f"Annotations/0a/{name}.png").unlink()
    with pytest.raises(ValueError, match=r"masks of objects' first frames only.*training"):
        open_dataset(str(tmp_path))


def test_lvos(tmp_path):
    # meta.json gives a range an object; annotated is one frame in five, from 00000001; the end is exclusive.
    names = [f"{t:08d}" for t in range(1, 32)]
    write_frames(tmp_path / "JPEGImages/v", names)
    for name in names[::5]:
        write_mask(tmp_path / f"Annotations/v/{name}.png", labels((2, 2), (12, 12)))
    objects = {
        "1": {"frame_range": {"start": "1", "end": "31", "frame_nums": "7"}},
        "2": {"frame_range": {"start": "11", "end": "26", "frame_nums": "4"}},
    }
    (tmp_path / "valid_meta.json").write_text(json.dumps({"videos": {"v": {"objects": objects}}}))
    attributes = {"sets": [1], "attributes": ["LR"], "videos": {"v": {"objects": {}, "set": 1, "attributes": ["LR"]}}}
    (tmp_path / "valid_meta_attribute.json").write_text(json.dumps(attributes))  # of version 2, beside the other
    video = open_dataset(str(tmp_path)).open("v")
    assert tracks(video) == {1: (0, (0, 5, 10, 15, 20, 25)), 2: (10, (10, 15, 20))}


def test_sav(tmp_path):
    # sav_val: JPEGImages_24fps/<id>/00000.jpg, Annotations_6fps/<id>/000/00000.png every fourth frame, sav_val.txt.
    write_frames(tmp_path / "JPEGImages_24fps/sav_1", [f"{t:05d}" for t in range(17)])
    for t in range(0, 17, 4):
        write_mask(tmp_path / f"Annotations_6fps/sav_1/000/{t:05d}.png", labels((2, 2)))
        write_mask(tmp_path / f"Annotations_6fps/sav_1/001/{t:05d}.png", labels((4, 4)) * np.uint8(255))
    (tmp_path / "sav_val.txt").write_text("sav_1\n")
    dataset = open_dataset(str(tmp_path))
    video = dataset.open("sav_1")
    assert dataset.split == "sav_val"
    assert tracks(video) == {0: (0, (4, 8, 12)), 1: (0, (4, 8, 12))}
    assert not video.exclusive
    assert (video.mask(4, 0) & video.mask(4, 1)).sum() == 16  # objects may overlap


def test_synthetic():
    dataset = Synthetic("dev", ("static", "leave_and_return"), clips=2, frames=8, size=64, objects=2)
    assert dataset.names == ("static-10000", "static-10001", "leave_and_return-10000", "leave_and_return-10001")
    video = dataset.open("static-10001")
    assert video.challenge == "static"
    assert video.frames.shape == (8, 64, 64, 3)
    assert tracks(video) == {1: (0, tuple(range(1, 7))), 2: (0, tuple(range(1, 7)))}
    assert video.mask(0, 1).any()
    assert np.array_equal(dataset.open("static-10001").frames, video.frames)
    assert not set(dataset.names) & set(Synthetic("test", dataset.challenges).names)


@pytest.mark.slow
def test_generated_objects_that_are_never_scored_are_left_out():
    video = Synthetic("dev", ("static",), clips=1, frames=6, size=64, objects=50).open("static-10000")
    assert len(video.tracks) < 50  # the others are hidden behind these, one of them until the last frame
    for track in video.tracks:
        assert track.scored == tuple(range(max(track.first, 1), 5))
        assert video.mask(track.first, track.obj_id).any()


@pytest.mark.parametrize(
    ("data", "page"),
    [
        ("nowhere/DAVIS", "davischallenge.org"),
        ("nowhere/LVOS_v2", "lingyihongfd.github.io/lvos"),
        ("nowhere/sav_val", "ai.meta.com"),
        ("nowhere/ytvos", "youtube-vos.org"),
        ("nowhere/long_video_x3", "AFB-URR"),
        ("nowhere/footage", "mose.video"),
    ],
)
def test_a_missing_path_names_the_download_page(data, page):
    with pytest.raises(ValueError, match=f"no folder {data}.*{page}"):
        open_dataset(data)


def test_bad_folders_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no folder JPEGImages"):
        open_dataset(str(tmp_path))
    write_frames(tmp_path / "JPEGImages/a", ["00000", "00001"])
    (tmp_path / "Annotations/a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a: no masks in .* unpack the annotations"):
        open_dataset(str(tmp_path))
    for name in ("00000", "00001"):
        write_mask(tmp_path / f"Annotations/a/{name}.png", np.ones((12, 16), np.uint8))
    with pytest.raises(ValueError, match="32 x 24 and masks 16 x 12"):
        open_dataset(str(tmp_path))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "Annotations/a/00000.png")
    with pytest.raises(ValueError, match="colour image"):
        open_dataset(str(tmp_path)).open("a")
    with pytest.raises(ValueError, match=r"no challenge is called fog.*static"):
        open_dataset("synthetic", challenges=["fog"])
    with pytest.raises(ValueError, match="no split 'val'"):
        open_dataset("synthetic", "val")
