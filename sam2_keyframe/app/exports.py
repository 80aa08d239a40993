"""Masks in the files of other tools: COCO and YouTube-VIS JSON, tables of boxes and outlines, a mask video, Detections.

Masks are given as `track` writes them: one picture of object ids a frame. Each function reads them once, in order.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, overload
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.app.draw import need

Labels = NDArray[Any]
"""(H, W) whole numbers: 0 is background, the others are object ids."""

Times = Sequence[float | None]
"""Seconds of each frame from the first; None, or none at all, where the source does not say."""

MILLISECOND = Fraction(1, 1000)
"""The clock of Matroska files."""

LABEL_STUDIO = """\
<View>
  <Video name="video" value="$video"/>
  <VideoRectangle name="box" toName="video"/>
  <Labels name="labels" toName="video"><Label value="object"/></Labels>
</View>
"""
"""Label Studio's labelling interface for `label_studio`."""

CATEGORY = {"id": 1, "name": "object"}
"""Of every object: what it is is unknown. Objects are told apart by `track_id`, or by annotation in YouTube-VIS."""


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return an (H, W) bool mask as COCO's compressed run lengths: "size" [H, W] and "counts" as text.

    Raises:
        ImportError: pycocotools is missing.
    """
    encoded = need("pycocotools.mask", "export").encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return an (H, W) mask as COCO's run lengths in plain numbers, with its box (x, y, width, height) and area.

    The runs go down the columns, background first; `pycocotools.mask.frPyObjects` reads them.
    """
    counts = _runs(mask.T.ravel())
    box = _box(mask) if mask.any() else None
    segmentation = {"size": list(mask.shape), "counts": counts}
    return {"segmentation": segmentation, "bbox": box, "area": int(mask.sum())}


def coco(labels: Iterable[Labels], names: Sequence[str], times: Times = ()) -> dict[str, Any]:
    """Return COCO's instances: an image a frame, an annotation a frame and object with its RLE, box and area.

    Boxes are x, y, width, height in pixels. `track_id` is the object's id, `frame_index` the image's frame.

    Args:
        labels: Object ids, a frame each.
        names: File names of the frames, at least as many.
        times: Seconds of each frame from the first, where they are known: `time` of its image.

    Raises:
        ImportError: pycocotools is missing.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t, (ids, name) in enumerate(zip(labels, names, strict=False)):
        height, width = ids.shape
        image = {"id": t + 1, "file_name": name, "width": width, "height": height, "frame_index": t}
        images.append(image | ({} if _time(times, t) is None else {"time": _time(times, t)}))
        for obj_id, mask in _objects(ids):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": t + 1,
                    "category_id": CATEGORY["id"],
                    "track_id": obj_id,
                    "segmentation": rle(mask),
                    "bbox": _box(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
    return {"info": {}, "images": images, "annotations": annotations, "categories": [CATEGORY]}


def youtube_vis(labels: Iterable[Labels], names: Sequence[str]) -> dict[str, Any]:
    """Return YouTube-VIS's instances: one video, an annotation an object with a mask, box and area a frame.

    Where an object has no pixel, all three are None. `track_id` is the object's id. Arguments as in `coco`.
    """
    found: dict[int, dict[int, tuple[dict[str, Any], list[int], int]]] = {}
    size, length = (0, 0), 0
    for t, (ids, _) in enumerate(zip(labels, names, strict=False)):
        size, length = (ids.shape[0], ids.shape[1]), t + 1
        for obj_id, mask in _objects(ids):
            found.setdefault(obj_id, {})[t] = rle(mask), _box(mask), int(mask.sum())
    shape = {"height": size[0], "width": size[1], "length": length}
    annotations = []
    for number, (obj_id, frames) in enumerate(sorted(found.items()), 1):
        columns = [[frames[t][part] if t in frames else None for t in range(length)] for part in range(3)]
        parts = dict(zip(("segmentations", "bboxes", "areas"), columns, strict=True))
        about = {"id": number, "video_id": 1, "category_id": CATEGORY["id"], "track_id": obj_id, "iscrowd": 0}
        annotations.append({**about, **shape, **parts})
    videos = [{"id": 1, "file_names": list(names[:length]), **shape}]
    return {"info": {}, "videos": videos, "annotations": annotations, "categories": [CATEGORY]}


def boxes(labels: Iterable[Labels], names: Sequence[str], times: Times = ()) -> Iterator[dict[str, Any]]:
    """Yield a row a frame and object: frame, time, file, object, x0, y0, x1, y1 in pixels (x1, y1 behind it) and area.

    Arguments as in `coco`; time is None where it is not known.
    """
    for t, (ids, name) in enumerate(zip(labels, names, strict=False)):
        for obj_id, mask in _objects(ids):
            x, y, width, height = _box(mask)
            corners = {"x0": x, "y0": y, "x1": x + width, "y1": y + height}
            about = {"frame": t, "time": _time(times, t), "file": name, "object": obj_id}
            yield {**about, **corners, "area": int(mask.sum())}


def polygons(labels: Iterable[Labels], names: Sequence[str], times: Times = ()) -> Iterator[dict[str, Any]]:
    """Yield a row an outline: frame, time, file, object, part, hole (0 or 1), polygon ("x,y x,y ..." in pixels).

    Outlines run through the middle of the outermost pixels, as OpenCV's do; those of holes, through the hole's. Filled
    in this order by `cv2.fillPoly`, parts with 1 and holes with 0, they give the mask. Arguments as in `boxes`.

    Raises:
        ImportError: OpenCV is missing.
    """
    cv2 = need("cv2")
    for t, (ids, name) in enumerate(zip(labels, names, strict=False)):
        for obj_id, mask in _objects(ids):
            for part, (outline, hole) in enumerate(_outlines(cv2, mask)):
                points = " ".join(f"{x},{y}" for x, y in outline)
                about = {"frame": t, "time": _time(times, t), "file": name, "object": obj_id}
                yield {**about, "part": part, "hole": hole, "polygon": points}


def label_studio(
    labels: Iterable[Labels], names: Sequence[str], video: str, fps: float = 24.0, times: Times = ()
) -> list[dict[str, Any]]:
    """Return a task of Label Studio: a video, and its objects as predictions that people correct.

    Label Studio has no masks in videos: an object is a `VideoRectangle` with a box a frame, in percent of the frame,
    which ends where the object is gone. Its id is the region's, `object-3`. The labelling interface that goes with it
    is `LABEL_STUDIO`. Frames count from 1, at the frame rate that the video is played at.

    Args:
        labels: Object ids, a frame each.
        names: File names of the frames, at least as many.
        video: Where Label Studio finds the video, an address or a path that it serves.
        fps: Frames per second.
        times: Seconds of each frame, where they are known.
    """
    tracks: dict[int, list[dict[str, Any]]] = {}
    open_ones: set[int] = set()
    count = 0
    for t, (ids, _) in enumerate(zip(labels, names, strict=False)):
        height, width = ids.shape
        present = dict(_objects(ids))
        for obj_id in open_ones - present.keys():  # "enabled" says that the box goes on to the next one
            tracks[obj_id][-1]["enabled"] = False
        for obj_id, mask in present.items():
            x, y, w, h = _box(mask)
            tracks.setdefault(obj_id, []).append(
                {
                    "frame": t + 1,
                    "enabled": True,
                    "rotation": 0,
                    "x": 100 * x / width,
                    "y": 100 * y / height,
                    "width": 100 * w / width,
                    "height": 100 * h / height,
                    "time": _time(times, t, t / fps),
                }
            )
        open_ones, count = set(present), t + 1
    result = [
        {
            "id": f"object-{obj_id}",
            "type": "videorectangle",
            "from_name": "box",
            "to_name": "video",
            "value": {"framesCount": count, "duration": count / fps, "sequence": boxes, "labels": [CATEGORY["name"]]},
        }
        for obj_id, boxes in sorted(tracks.items())
    ]
    return [{"data": {"video": video}, "predictions": [{"model_version": "sam2_keyframe", "result": result}]}]


def cvat(labels: Iterable[Labels], names: Sequence[str]) -> ElementTree.Element:
    """Return "CVAT for video 1.1": a track a mask, as CVAT itself writes masks of videos, grouped by object.

    `rle` has the runs along the rows of the mask's box, background first.

    Args:
        labels: Object ids, a frame each.
        names: File names of the frames, at least as many.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    size = ElementTree.SubElement(task, "size")
    ElementTree.SubElement(task, "mode").text = "interpolation"
    label = ElementTree.SubElement(ElementTree.SubElement(task, "labels"), "label")
    ElementTree.SubElement(label, "name").text = str(CATEGORY["name"])
    ElementTree.SubElement(label, "attributes")
    original = ElementTree.SubElement(task, "original_size")
    shape, count = (0, 0), 0
    for t, (ids, _) in enumerate(zip(labels, names, strict=False)):
        shape, count = (ids.shape[0], ids.shape[1]), t + 1
        for obj_id, mask in _objects(ids):
            about = {"id": str(len(root) - 2), "label": str(CATEGORY["name"]), "source": "auto"}
            track = ElementTree.SubElement(root, "track", {**about, "group_id": str(obj_id)})
            x, y, width, height = _box(mask)
            runs = ", ".join(map(str, _runs(mask[y : y + height, x : x + width].ravel())))
            place = {"left": x, "top": y, "width": width, "height": height}
            given = {"rle": runs, **{name: str(value) for name, value in place.items()}, "z_order": "0"}
            for frame, outside in ((t, "0"), (t + 1, "1")):
                at = {"frame": str(frame), "keyframe": "1", "outside": outside, "occluded": "0"}
                ElementTree.SubElement(track, "mask", {**at, **given})
    for track in root.findall("track"):  # an end behind the last frame is none
        for mark in [mark for mark in track if int(mark.attrib["frame"]) >= count]:
            track.remove(mark)
    size.text = str(count)
    for name, side in zip(("height", "width"), shape, strict=True):
        ElementTree.SubElement(original, name).text = str(side)
    return root


def mask_video(labels: Iterable[Labels], path: Path, fps: float = 24.0, times: Times = ()) -> None:
    """Write the ids as the grey values of a lossless video (FFV1 in Matroska), which FFmpeg and OpenCV read.

    Args:
        labels: Object ids, 0 to 255, a frame each.
        path: The file, `.mkv`.
        fps: Frames per second.
        times: Seconds of each frame, where they are known; a frame is shown at its own.

    Raises:
        ImportError: PyAV is missing.
        OSError: It cannot be written; nothing is left of it.
    """
    av = need("av")
    try:
        with closing(av.open(str(path), "w", format="matroska")) as file:
            stream, last = None, -1
            for t, ids in enumerate(labels):
                if stream is None:
                    stream = file.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
                    stream.height, stream.width = ids.shape
                    stream.pix_fmt = "gray"
                    stream.codec_context.time_base = stream.time_base = MILLISECOND
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(ids, dtype=np.uint8), format="gray")
                last = max(last + 1, round(_time(times, t, t / fps) / MILLISECOND))
                picture.pts, picture.time_base = last, MILLISECOND
                file.mux(stream.encode(picture))
            if stream is not None:
                file.mux(stream.encode(None))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def detections(ids: Labels) -> Any:
    """Return one frame's objects as `supervision.Detections`: boxes, masks, and the object ids as `tracker_id`.

    Args:
        ids: Object ids of the frame.

    Raises:
        ImportError: supervision is missing.
    """
    make = need("supervision", "export").Detections
    found = list(_objects(ids))
    if not found:
        return make.empty()
    corners = [(x, y, x + width, y + height) for x, y, width, height in (_box(mask) for _, mask in found)]
    return make(
        xyxy=np.array(corners, np.float32),
        mask=np.stack([mask for _, mask in found]),
        class_id=np.zeros(len(found), int),
        tracker_id=np.array([obj_id for obj_id, _ in found]),
    )


FILES: Mapping[str, str] = {
    "coco": "coco.json",
    "youtube-vis": "youtube_vis.json",
    "boxes": "boxes.csv",
    "polygons": "polygons.csv",
    "video": "masks.mkv",
    "label-studio": "label_studio.json",
    "cvat": "cvat.xml",
}
"""What `--export` takes, and the file that each writes."""


def check_exports(kinds: Iterable[str]) -> list[str]:
    """Return the kinds of exports, none twice, once what they need is there.

    Raises:
        ValueError: There is no such kind.
        ImportError: A package is missing.
    """
    found = list(dict.fromkeys(kinds))
    for kind in found:
        if kind not in FILES:
            raise ValueError(f"--export {kind}: choose {', '.join(FILES)}{did_you_mean(kind, FILES)}")
        if kind in ("coco", "youtube-vis"):
            need("pycocotools.mask", "export")
    return found


def export(
    labels: Callable[[], Iterable[Labels]],
    names: Sequence[str],
    folder: Path,
    kinds: Iterable[str],
    fps: float = 24.0,
    times: Times = (),
    video: str = "video.mp4",
) -> list[Path]:
    """Write masks as other tools read them; return the files.

    Args:
        labels: Gives the object ids, a frame each from the first one; called once a kind.
        names: File names of the frames.
        folder: Where the files go.
        kinds: Of `FILES`.
        fps: Frames per second of the video.
        times: Seconds of each frame, where the source says.
        video: What the source is called, for tools that load it themselves.

    Raises:
        ValueError: There is no such kind.
        ImportError: A package is missing.
        OSError: A file cannot be written; nothing is left of it.
    """
    written = []
    for kind in check_exports(kinds):
        path = folder / FILES[kind]
        try:
            _write(kind, labels(), names, path, fps, times, video)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        written.append(path)
    return written


def _write(
    kind: str, labels: Iterable[Labels], names: Sequence[str], path: Path, fps: float, times: Times, video: str
) -> None:
    if kind == "video":
        mask_video(labels, path, fps, times)
    elif kind == "cvat":
        tree = ElementTree.ElementTree(cvat(labels, names))
        ElementTree.indent(tree)
        tree.write(path, encoding="utf-8", xml_declaration=True)
    elif kind in ("coco", "youtube-vis", "label-studio"):
        made: Any
        if kind == "label-studio":
            made = label_studio(labels, names, video, fps, times)
        else:
            made = coco(labels, names, times) if kind == "coco" else youtube_vis(labels, names)
        path.write_text(json.dumps(made) + "\n")
    else:
        columns = "x0 y0 x1 y1 area" if kind == "boxes" else "part hole polygon"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["frame", "time", "file", "object", *columns.split()], lineterminator="\n")
            table.writeheader()
            table.writerows((boxes if kind == "boxes" else polygons)(labels, names, times))


def saved_masks(folder: Path, names: Sequence[str]) -> Iterator[Labels]:
    """Yield the object ids that a run wrote, to its last frame; frames before the first prompt are empty.

    Args:
        folder: With pictures named after the frames, as `track` writes `masks`.
        names: What the pictures are called, without suffix, a frame each.

    Raises:
        ValueError: There is none.
    """
    module = need("PIL.Image")
    pictures = [folder / f"{name}.png" for name in names]
    there = [picture.is_file() for picture in pictures]
    if not any(there):
        raise ValueError(f"{folder} holds no mask of these frames, such as {names[0] if names else 'none'}.png")
    with module.open(pictures[there.index(True)]) as first:
        blank = np.zeros((first.height, first.width), np.uint8)
    last = max(t for t, found in enumerate(there) if found)
    for picture, found in zip(pictures[: last + 1], there, strict=False):
        if not found:
            yield blank
            continue
        with module.open(picture) as image:
            yield np.asarray(image)


def _runs(flat: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of runs, the first of which is False and may be 0."""
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    runs: list[int] = np.diff(edges, prepend=0, append=len(flat)).tolist()
    return runs


@overload
def _time(times: Times, t: int) -> float | None: ...
@overload
def _time(times: Times, t: int, otherwise: float) -> float: ...
def _time(times: Times, t: int, otherwise: float | None = None) -> float | None:
    """Return a frame's time in seconds, to the microsecond."""
    known = times[t] if t < len(times) else None
    return otherwise if known is None else round(known, 6)


def _objects(ids: Labels) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    for obj_id in np.unique(ids):
        if obj_id:
            yield int(obj_id), ids == obj_id


def _box(mask: NDArray[np.bool_]) -> list[int]:
    """Return x, y, width and height of a mask that is not empty."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def _outlines(cv2: Any, mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Yield outlines as (n, 2) x and y, each with 1 where it is a hole's: painted in this order they are the mask."""
    hole = 0
    while mask.any():
        whole = np.zeros(mask.shape, np.uint8)
        for outline in cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            cv2.drawContours(whole, [outline], -1, 1, cv2.FILLED)
            yield outline[:, 0], hole
        mask, hole = (whole > 0) & ~mask, 1 - hole  # the holes, then what lies in them, ...
