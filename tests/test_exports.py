"""Exports, each read back by the tool that it is for: masks bit for bit."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
from commandline import FRAMES, film, folder, out, track  # noqa: F401
from PIL import Image
from test_cli_errors import nothing_left, refused

from sam2_keyframe.app import exports
from sam2_keyframe.app.track import OUTPUTS

SIZE = (37, 53)


def label_maps(seed: int = 0, count: int = 6) -> list[np.ndarray]:
    """Return ids with objects that come and go, in parts, with holes and islands in them."""
    draw, maps = np.random.default_rng(seed), []
    for t in range(count):
        ids = np.zeros(SIZE, np.uint8)
        if t != 2:
            noise = cv2.GaussianBlur(draw.normal(size=SIZE), (0, 0), 2)
            ids[noise > 0.08] = 1
            ids[noise < -0.12] = 7
            cv2.circle(ids, (30, 18), 12, 200, 4)
            cv2.circle(ids, (30, 18), 3, 200, -1)
        maps.append(ids)
    return maps


LABELS = label_maps()
NAMES = [f"shot {t}.jpg" for t in range(len(LABELS))]


def objects(ids: np.ndarray) -> dict[int, np.ndarray]:
    return {int(each): ids == each for each in np.unique(ids) if each}


def written(tmp_path: Path, kind: str) -> Path:
    (path,) = exports.export(lambda: iter(LABELS), NAMES, tmp_path, [kind], fps=25)
    return path


def test_coco_is_read_by_pycocotools(tmp_path: Path) -> None:
    reader = pytest.importorskip("pycocotools.coco")
    data = reader.COCO(str(written(tmp_path, "coco")))
    assert [data.imgs[i]["file_name"] for i in data.getImgIds()] == NAMES
    for t, ids in enumerate(LABELS):
        (image,) = [each for each in data.imgs.values() if each["frame_index"] == t]
        found = {each["track_id"]: each for each in data.loadAnns(data.getAnnIds(imgIds=image["id"]))}
        assert found.keys() == objects(ids).keys()
        for obj_id, mask in objects(ids).items():
            assert (data.annToMask(found[obj_id]) == mask).all()
            box = reader.maskUtils.toBbox(data.annToRLE(found[obj_id]))
            assert found[obj_id]["bbox"] == box.tolist()
            assert found[obj_id]["area"] == mask.sum()
    evaluator = pytest.importorskip("pycocotools.cocoeval").COCOeval
    results = data.loadRes([{**each, "score": 1.0} for each in data.dataset["annotations"]])
    judged = evaluator(data, results, "segm")
    for step in (judged.evaluate, judged.accumulate, judged.summarize):
        step()
    assert judged.stats[0] == pytest.approx(1.0), "as ground truth against itself"


def test_youtube_vis_has_a_row_an_object(tmp_path: Path) -> None:
    utils = pytest.importorskip("pycocotools.mask")
    data = json.loads(written(tmp_path, "youtube-vis").read_text())
    (video,) = data["videos"]
    assert (video["file_names"], video["length"]) == (NAMES, len(LABELS))
    assert [each["track_id"] for each in data["annotations"]] == [1, 7, 200]
    for each in data["annotations"]:
        assert len(each["segmentations"]) == len(each["bboxes"]) == len(each["areas"]) == video["length"]
        for ids, code, box, area in zip(LABELS, each["segmentations"], each["bboxes"], each["areas"], strict=True):
            mask = ids == each["track_id"]
            if not mask.any():
                assert (code, box, area) == (None, None, None)
            else:
                assert (utils.decode(code) == mask).all()
                assert (utils.toBbox(code).tolist(), utils.area(code)) == (box, area)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_and_boxes_are_the_masks_again(seed: int) -> None:
    labels = label_maps(seed)
    drawn: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(SIZE, np.uint8))
    for row in exports.polygons(labels, NAMES):
        points = np.array([tuple(map(int, point.split(","))) for point in row["polygon"].split()])
        cv2.fillPoly(drawn[row["frame"], row["object"]], [points], 0 if row["hole"] else 1)
    given = {(t, obj_id): mask for t, ids in enumerate(labels) for obj_id, mask in objects(ids).items()}
    assert drawn.keys() == given.keys()
    assert all((drawn[place] == mask).all() for place, mask in given.items())
    for row in exports.boxes(labels, NAMES):
        mask = given.pop((row["frame"], row["object"]))
        inside = mask[row["y0"] : row["y1"], row["x0"] : row["x1"]]
        assert inside.sum() == mask.sum() == row["area"]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
    assert not given


def test_the_mask_video_is_lossless(tmp_path: Path) -> None:
    path = written(tmp_path, "video")
    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == 25
        frames = [frame.to_ndarray() for frame in file.decode(video=0)]
    assert (np.stack(frames) == np.stack(LABELS)).all()
    reader = cv2.VideoCapture(str(path))
    for ids in LABELS:
        there, picture = reader.read()
        assert there
        assert (picture[..., 0] == ids).all()
    assert not reader.read()[0]
    reader.release()


def test_times_are_the_sources(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.1, 0.11, 0.5, 0.51]
    kinds = ["video", "boxes", "polygons", "coco", "label-studio"]
    paths = dict(zip(kinds, exports.export(lambda: iter(LABELS), NAMES, tmp_path, kinds, 25, times), strict=True))
    with av.open(str(paths["video"])) as file:
        assert [frame.time for frame in file.decode(video=0)] == pytest.approx(times, abs=1e-3)
    for kind in ("boxes", "polygons"):
        with paths[kind].open() as file:
            assert all(float(row["time"]) == times[int(row["frame"])] for row in csv.DictReader(file))
    assert [image["time"] for image in json.loads(paths["coco"].read_text())["images"]] == times
    ((task,),) = (json.loads(paths["label-studio"].read_text()),)
    for region in task["predictions"][0]["result"]:
        assert all(box["time"] == times[box["frame"] - 1] for box in region["value"]["sequence"])


def test_label_studio_takes_the_task(tmp_path: Path) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(exports.LABEL_STUDIO)
    interface.validate()
    path = written(tmp_path, "label-studio")
    (task,) = json.loads(path.read_text())
    assert interface.validate_task({"data": task["data"]})
    (prediction,) = task["predictions"]
    assert interface.validate_prediction(prediction, return_errors=True) == []
    assert interface.validate_prediction({"result": [{**prediction["result"][0], "from_name": "none"}]}) is False
    regions = {int(each["id"].removeprefix("object-")): each["value"] for each in prediction["result"]}
    assert regions.keys() == {obj_id for ids in LABELS for obj_id in objects(ids)}
    for obj_id, value in regions.items():
        assert value["framesCount"] == len(LABELS)
        shown = {box["frame"] - 1: box for box in value["sequence"]}
        assert shown.keys() == {t for t, ids in enumerate(LABELS) if obj_id in ids}
        for t, box in shown.items():
            rows, columns = np.nonzero(LABELS[t] == obj_id)
            corner = (box["x"] * SIZE[1] / 100, box["y"] * SIZE[0] / 100)
            assert corner == pytest.approx((columns.min(), rows.min()))
            far = (box["width"] * SIZE[1] / 100, box["height"] * SIZE[0] / 100)
            assert far == pytest.approx((np.ptp(columns) + 1, np.ptp(rows) + 1))
            assert box["enabled"] == (t + 1 in shown or t + 1 == len(LABELS)), "off where the object is gone next"


def test_cvat_has_every_mask_as_a_track_of_one_frame(tmp_path: Path) -> None:
    """Read as CVAT documents its XML: runs along the rows of the box, background first."""
    root = ElementTree.parse(written(tmp_path, "cvat")).getroot()
    assert root.findtext("version") == "1.1"
    assert root.findtext("meta/task/size") == str(len(LABELS))
    found: dict[tuple[int, int], np.ndarray] = {}
    for track_ in root.findall("track"):
        first, *rest = track_.findall("mask")
        t = int(first.attrib["frame"])
        ends = [(int(each.attrib["frame"]), each.attrib["outside"]) for each in rest]
        assert ends == ([(t + 1, "1")] if t + 1 < len(LABELS) else [])
        assert first.attrib["outside"] == "0"
        left, top, width, height = (int(first.attrib[name]) for name in ("left", "top", "width", "height"))
        runs = [int(run) for run in first.attrib["rle"].split(",")]
        values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        mask = np.zeros(SIZE, bool)
        mask[top : top + height, left : left + width] = values > 0
        found[t, int(track_.attrib["group_id"])] = mask
    given = {(t, obj_id): mask for t, ids in enumerate(LABELS) for obj_id, mask in objects(ids).items()}
    assert found.keys() == given.keys()
    assert all((found[place] == mask).all() for place, mask in given.items())


def test_detections_are_supervisions(tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision")
    for ids in LABELS:
        found = exports.detections(ids)
        assert isinstance(found, sv.Detections)
        masks = objects(ids)
        assert len(found) == len(masks)
        if len(found):
            assert found.tracker_id.tolist() == list(masks)
            assert (found.mask == np.stack(list(masks.values()))).all()
            corners = sv.mask_to_xyxy(found.mask)  # the last pixel, where ours is the one behind it
            assert (found.xyxy == corners + np.array((0, 0, 1, 1))).all()
            assert (found.area == [mask.sum() for mask in masks.values()]).all()
            scene = np.zeros((*SIZE, 3), np.uint8)
            assert sv.MaskAnnotator().annotate(scene.copy(), found).any()


def test_track_exports_beside_its_masks(folder: Path, clip: Any, out: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("pycocotools.coco")
    Image.fromarray(clip.masks[0]).save(tmp_path / "first.png")
    prompts = ("--mask", f"2:{tmp_path / 'first.png'}", "--no-overlay", "--no-pictures")
    kinds = [word for kind in exports.FILES for word in ("--export", kind)]
    assert track(folder, out, *prompts, *kinds) == 0
    left = {*OUTPUTS, *exports.FILES.values()} - {"overlay.mp4", "timeline.png", "memory.png", "index.html"}
    assert {path.name for path in out.iterdir()} == left
    data = reader.COCO(str(out / "coco.json"))
    assert [each["file_name"] for each in data.imgs.values()] == [f"{t:05d}.jpg" for t in range(FRAMES)]
    seen = 0
    for image in data.imgs.values():
        ids = np.zeros((128, 128), int)
        for each in data.loadAnns(data.getAnnIds(imgIds=image["id"])):
            ids[data.annToMask(each) > 0] = each["track_id"]
            seen += 1
        path = out / "masks" / f"{Path(image['file_name']).stem}.png"
        assert path.is_file() == (image["frame_index"] >= 2)
        assert (ids == (np.asarray(Image.open(path)) if path.is_file() else 0)).all()
    with (out / "boxes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == seen > 0
    assert track(folder, out, *prompts) == 0
    assert not (out / "coco.json").exists(), "of the run before"


def test_exports_that_there_are_not(folder: Path, out: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(capsys, track(folder, out, "--point", "5,5", "--export", "cocoo"), "--export cocoo", "did you mean 'coco'?")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    code = track(folder, out, "--point", "5,5", "--export", "coco")
    refused(capsys, code, "needs pycocotools: pip install 'sam2-keyframe[export]'")
    nothing_left(out)
