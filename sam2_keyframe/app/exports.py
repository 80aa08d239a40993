"""Masks in the files of other tools: COCO and YouTube-VIS JSON, tables of boxes and outlines, a mask video, Detections.

Masks are given as `track` writes them: one picture of object ids a frame. Each function reads them once, in order.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.app.draw import need

Labels = NDArray[Any]
"""(H, W) whole numbers: 0 is background, the others are object ids."""

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
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False)) if len(flat) else np.zeros(0, int)
    counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
    box = _box(mask) if mask.any() else None
    segmentation = {"size": list(mask.shape), "counts": counts}
    return {"segmentation": segmentation, "bbox": box, "area": int(mask.sum())}


def coco(labels: Iterable[Labels], names: Sequence[str]) -> dict[str, Any]:
    """Return COCO's instances: an image a frame, an annotation a frame and object with its RLE, box and area.

    Boxes are x, y, width, height in pixels. `track_id` is the object's id, `frame_index` the image's frame.

    Args:
        labels: Object ids, a frame each.
        names: File names of the frames, at least as many.

    Raises:
        ImportError: pycocotools is missing.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t, (ids, name) in enumerate(zip(labels, names, strict=False)):
        height, width = ids.shape
        images.append({"id": t + 1, "file_name": name, "width": width, "height": height, "frame_index": t})
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


def boxes(labels: Iterable[Labels], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row a frame and object: frame, file, object, x0, y0, x1, y1 in pixels (x1, y1 behind it) and area.

    Arguments as in `coco`.
    """
    for t, (ids, name) in enumerate(zip(labels, names, strict=False)):
        for obj_id, mask in _objects(ids):
            x, y, width, height = _box(mask)
            corners = {"x0": x, "y0": y, "x1": x + width, "y1": y + height}
            yield {"frame": t, "file": name, "object": obj_id, **corners, "area": int(mask.sum())}


def polygons(labels: Iterable[Labels], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row an outline: frame, file, object, part, hole (0 or 1) and the polygon as "x,y x,y ..." in pixels.

    Outlines run through the middle of the outermost pixels, as OpenCV's do; those of holes, through the hole's. Filled
    in this order by `cv2.fillPoly`, parts with 1 and holes with 0, they give the mask. Arguments as in `coco`.

    Raises:
        ImportError: OpenCV is missing.
    """
    cv2 = need("cv2")
    for t, (ids, name) in enumerate(zip(labels, names, strict=False)):
        for obj_id, mask in _objects(ids):
            for part, (outline, hole) in enumerate(_outlines(cv2, mask)):
                points = " ".join(f"{x},{y}" for x, y in outline)
                yield {"frame": t, "file": name, "object": obj_id, "part": part, "hole": hole, "polygon": points}


def mask_video(labels: Iterable[Labels], path: Path, fps: float = 24.0) -> None:
    """Write the ids as the grey values of a lossless video (FFV1 in Matroska), which FFmpeg and OpenCV read.

    Args:
        labels: Object ids, 0 to 255, a frame each.
        path: The file, `.mkv`.
        fps: Frames per second.

    Raises:
        ImportError: PyAV is missing.
        OSError: It cannot be written; nothing is left of it.
    """
    from fractions import Fraction

    av = need("av")
    try:
        with closing(av.open(str(path), "w", format="matroska")) as file:
            stream = None
            for ids in labels:
                if stream is None:
                    stream = file.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
                    stream.height, stream.width = ids.shape
                    stream.pix_fmt = "gray"
                grey = np.ascontiguousarray(ids, dtype=np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="gray")))
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
) -> list[Path]:
    """Write masks as other tools read them; return the files.

    Args:
        labels: Gives the object ids, a frame each from the first one; called once a kind.
        names: File names of the frames.
        folder: Where the files go.
        kinds: Of `FILES`.
        fps: Frames per second of the video.

    Raises:
        ValueError: There is no such kind.
        ImportError: A package is missing.
        OSError: A file cannot be written; nothing is left of it.
    """
    written = []
    for kind in check_exports(kinds):
        path = folder / FILES[kind]
        try:
            _write(kind, labels(), names, path, fps)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        written.append(path)
    return written


def _write(kind: str, labels: Iterable[Labels], names: Sequence[str], path: Path, fps: float) -> None:
    if kind == "video":
        mask_video(labels, path, fps)
    elif kind in ("coco", "youtube-vis"):
        made = coco(labels, names) if kind == "coco" else youtube_vis(labels, names)
        path.write_text(json.dumps(made) + "\n")
    else:
        columns = "x0 y0 x1 y1 area" if kind == "boxes" else "part hole polygon"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["frame", "file", "object", *columns.split()], lineterminator="\n")
            table.writeheader()
            table.writerows(boxes(labels, names) if kind == "boxes" else polygons(labels, names))


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
