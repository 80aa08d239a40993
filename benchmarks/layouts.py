"""Folders of published datasets: DAVIS and its kin, YouTube-VOS and LVOS with their `meta.json`, SA-V."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import PAGES, Mask, Track, Video, scored_tracks

VOID = 255
HIDDEN = "the others are on the dataset's own server; take a split whose masks are published, as the training one"
LVOS_STEP = 5  # LVOS annotates 1 frame of 5 (lvos-evaluation, lvos/evaluation.py)


def open_folder(root: Path, split: str | None, sequences: tuple[str, ...]) -> Folder:
    """Return the dataset in a folder, whichever of the layouts it has.

    Raises:
        ValueError: It has none of them, names no such split or sequence, or a sequence lacks frames or masks.
    """
    kind: type[Folder]
    if (root / "JPEGImages_24fps").is_dir():
        images, annotations, kind = root / "JPEGImages_24fps", root / "Annotations_6fps", SAV
    else:
        images, annotations = _resolution(root / "JPEGImages"), _resolution(root / "Annotations")
        kind = Meta if _meta_file(root) else Folder
    for folder in (images, annotations):
        if not folder.is_dir():
            raise ValueError(
                f"{root} has no folder {folder.relative_to(root)}, so it is laid out neither as DAVIS (JPEGImages, "
                "Annotations) nor as SA-V (JPEGImages_24fps, Annotations_6fps). Download pages: "
                + ", ".join(f"{page} ({name})" for name, page in PAGES.items())
            )
    found, name = _split(root, split)
    listed = found if found is not None else sorted(path.name for path in annotations.glob("[!.]*") if path.is_dir())
    unknown = sorted(set(sequences) - set(listed))
    if unknown:
        raise ValueError(f"{root} has no sequence {', '.join(unknown)}; it has {', '.join(listed[:20])}")
    dataset = kind(root.resolve().name, name, tuple(sequences or listed), root, images, annotations)
    dataset.check()
    return dataset


@dataclass(frozen=True)
class Folder:
    """DAVIS and datasets laid out like it: one PNG a frame, its values the objects' ids.

    Objects are prompted with their true mask where they first appear, and scored from there on at every annotated
    frame except the sequence's first and last annotated one; one that appears on the last is left out. A pixel of
    value 255 is void and counts as background, as in the official DAVIS 2017 and VOST evaluations; where 255 is the
    only value in all masks of a sequence, it is the object (DAVIS 2016).

    Source: davisvideochallenge/davis2017-evaluation; hkchengrex/vos-benchmark (late objects, sparse annotations).
    """

    name: str
    split: str
    names: tuple[str, ...]
    root: Path
    images: Path
    annotations: Path

    @property
    def fingerprint(self) -> str:
        """Digest of masks, lists of objects and frames' names: the same wherever the folder lies."""
        digest = hashlib.sha256()
        if file := _meta_file(self.root):
            digest.update(file.read_bytes())
        for name in sorted(self.names):
            digest.update(f"{name}: {[path.name for path in self.frames(name)]}".encode())
            for path in sorted((self.annotations / name).rglob("[!.]*.png")):
                digest.update(f"{path.relative_to(self.annotations)}: ".encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    def check(self) -> None:
        """Raise ValueError when a sequence lacks frames or masks, or their sizes differ."""
        for name in self.names:
            frames, masks = self.frames(name), self.mask_files(name)
            with Image.open(frames[0]) as image, Image.open(next(iter(masks.values()))) as mask:
                if image.size != mask.size:
                    raise ValueError(
                        f"{name}: frames are {image.size[0]} x {image.size[1]} and masks {mask.size[0]} x "
                        f"{mask.size[1]} pixels; take both from the same resolution folder"
                    )
        if all(self.only_prompts(name) for name in self.names):
            raise ValueError(f"{self.annotations}: there are masks of objects' first frames only; {HIDDEN}")

    def only_prompts(self, name: str) -> bool:
        """Return whether a sequence's masks are those of its prompts, so that nothing can be scored."""
        return len(self.mask_files(name)) == 1

    def frames(self, name: str) -> list[Path]:
        """Return a sequence's image files in natural order."""
        found = [p for p in (self.images / name).glob("[!.]*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
        if not found:
            raise ValueError(f"{name}: no frames in {self.images / name}; unpack the images there")
        return sorted(found, key=_natural)

    def mask_files(self, name: str) -> dict[int, Path]:
        """Return a sequence's mask files by frame index, in order."""
        return _match(name, self.annotations / name, self.frames(name))

    def open(self, name: str) -> Video:
        """Return a sequence."""
        frames, files = self.frames(name), self.mask_files(name)
        reader = _Reader(files)
        first: dict[int, int] = {}
        for t in files:
            for obj_id in reader.ids(t):
                first.setdefault(obj_id, t)
        if not first:
            raise ValueError(f"{name}: no mask in {self.annotations / name} shows an object")
        tracks = [Track(i, t, self.scored(name, i, t, list(files))) for i, t in sorted(first.items())]
        return Video(name, "", frames, scored_tracks(name, tracks), True, reader)

    def scored(self, name: str, obj_id: int, first: int, annotated: list[int]) -> tuple[int, ...]:
        """Return the indices of the frames on which an object is scored."""
        return tuple(t for t in annotated[1:-1] if t >= first)


@dataclass(frozen=True)
class Meta(Folder):
    """YouTube-VOS and LVOS: as `Folder`, with a `meta.json` that lists each object's frames.

    YouTube-VOS lists every annotated frame of an object: it is prompted on the first and scored on the others. LVOS
    gives a range: it is prompted on its start and scored on every fifth frame from there to before its end. Objects
    that the list does not name are not tracked. A listed frame without a mask is an error, as in official evaluations.

    LVOS's own mean divides by `frame_nums` of the list, ours by the frames scored: they differ where `frame_nums` is
    not the number of frames scored, for LVOS counts a frame beyond them as 0.

    Source: youtube-vos.org/dataset/vos (`meta.json`); LingyiHongfd/lvos-evaluation, `lvos/evaluation.py`.
    """

    videos: Mapping[str, Mapping[int, tuple[list[str], bool]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        file = _meta_file(self.root)
        try:
            videos = json.loads(file.read_text())["videos"] if file else {}
            found = {
                name: {int(i): (_listed(entry), "frame_range" in entry) for i, entry in video["objects"].items()}
                for name, video in videos.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} lists no objects' frames by video ({error!r}); unpack it again") from error
        object.__setattr__(self, "videos", found)

    def only_prompts(self, name: str) -> bool:
        """Return whether a sequence's masks are those of its objects' first listed frames."""
        return set(self.mask_files(name)) <= {min(listed, default=0) for listed in self.listed(name).values()}

    def listed(self, name: str) -> dict[int, list[int]]:
        """Return the frames that `meta.json` lists, by the object's id.

        Raises:
            ValueError: It does not list the sequence.
        """
        if name not in self.videos:
            raise ValueError(f"{name}: meta.json in {self.root} does not list it")
        index = {path.stem: t for t, path in enumerate(self.frames(name))}
        return {i: [index[stem] for stem in stems if stem in index] for i, (stems, _) in self.videos[name].items()}

    def open(self, name: str) -> Video:
        """Return a sequence."""
        if self.only_prompts(name):
            raise ValueError(f"{name}: there are masks of objects' first frames only; {HIDDEN}")
        frames, files = self.frames(name), self.mask_files(name)
        tracks = []
        for obj_id, listed in self.listed(name).items():
            stems, is_range = self.videos[name][obj_id]
            found = {frames[t].stem for t in listed if t in files}
            missing = [stem for stem in stems if stem not in found]
            if missing or not listed:
                raise ValueError(
                    f"{name}: object {obj_id} has no mask on {', '.join(missing[:10]) or 'any frame'}, though "
                    "meta.json lists it there; unpack all images and annotations"
                )
            tracks.append(Track(obj_id, listed[0], tuple(listed if is_range else listed[1:])))
        scored = scored_tracks(name, tracks)
        if all(track.first == len(frames) - 1 for track in scored):
            raise ValueError(f"{name}: every object is prompted on the last frame, so that nothing is tracked")
        return Video(name, "", frames, scored, True, _Reader(files))


@dataclass(frozen=True)
class SAV(Folder):
    """SA-V val and test: a folder of PNGs an object, which may overlap; frames at 24 and masks at 6 a second.

    Every frame is tracked; an object is scored on its annotated frames but the first and the last.

    Source: facebookresearch/sam2, `sav_dataset/README.md` and `sav_benchmark.py`.
    """

    def mask_files(self, name: str) -> dict[int, Path]:
        """Return the first object's mask files by frame index."""
        return next(iter(self.objects(name).values()))

    def objects(self, name: str) -> dict[int, dict[int, Path]]:
        """Return every object's mask files by frame index."""
        folders = sorted((self.annotations / name).glob("[0-9]*"), key=_natural)
        if not folders:
            raise ValueError(f"{name}: no objects in {self.annotations / name}; unpack the annotations there")
        frames = self.frames(name)
        return {int(folder.name): _match(name, folder, frames) for folder in folders}

    def open(self, name: str) -> Video:
        """Return a sequence."""
        readers = {obj_id: _Reader(files, binary=True) for obj_id, files in self.objects(name).items()}
        tracks = []
        for obj_id, reader in readers.items():
            first = next((t for t in reader.files if reader(t, 1).any()), None)
            if first is not None:
                scored = self.scored(name, obj_id, first, list(reader.files))
                tracks.append(Track(obj_id, first, scored))
        found = scored_tracks(name, tracks)
        return Video(name, "", self.frames(name), found, False, lambda t, obj_id: readers[obj_id](t, 1))


class _Reader:
    """True masks of a sequence of PNG files, the last few kept."""

    def __init__(self, files: Mapping[int, Path], binary: bool = False) -> None:
        self.files = files
        self.values = {} if binary else {t: np.unique(_read(path)).tolist() for t, path in files.items()}
        self.binary = binary or set().union(*self.values.values()) - {0} == {VOID}
        self._labels = lru_cache(maxsize=4)(self._load)

    def __getstate__(self) -> dict[str, object]:
        """Return what goes to another process: all but what is kept."""
        return {name: value for name, value in vars(self).items() if name != "_labels"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._labels = lru_cache(maxsize=4)(self._load)

    def _load(self, t: int) -> NDArray[np.uint8]:
        if t not in self.files:
            raise ValueError(f"frame {t} has no mask; annotated are {sorted(self.files)[:10]}")
        labels = _read(self.files[t])
        return (labels > 0).astype(np.uint8) if self.binary else np.where(labels == VOID, 0, labels).astype(np.uint8)

    def ids(self, t: int) -> list[int]:
        return [1] if self.binary and VOID in self.values[t] else [i for i in self.values[t] if 0 < i < VOID]

    def __call__(self, t: int, obj_id: int) -> Mask:
        mask: Mask = self._labels(t) == obj_id
        return mask


def _read(path: Path) -> NDArray[np.uint8]:
    labels = np.asarray(Image.open(path))
    if labels.ndim != 2 or labels.max(initial=0) > VOID:
        raise ValueError(f"{path} is a colour image or has ids above {VOID}; masks must be palette or grey PNGs of ids")
    return labels.astype(np.uint8)


def _listed(entry: Mapping[str, object]) -> list[str]:
    span = entry.get("frame_range")
    if isinstance(span, Mapping):
        return [f"{t:08d}" for t in range(int(span["start"]), int(span["end"]), LVOS_STEP)]
    frames = entry["frames"]
    return [str(stem) for stem in frames] if isinstance(frames, list) else []


def _match(name: str, folder: Path, frames: list[Path]) -> dict[int, Path]:
    index = {path.stem: t for t, path in enumerate(frames)}
    found = sorted(folder.glob("[!.]*.png"), key=_natural)
    if not found:
        raise ValueError(f"{name}: no masks in {folder}; unpack the annotations there")
    alone = [path.name for path in found if path.stem not in index]
    if alone:
        raise ValueError(
            f"{name}: {len(alone)} masks in {folder} belong to no frame ({', '.join(alone[:10])}); unpack all images "
            f"in {frames[0].parent}"
        )
    return dict(sorted((index[path.stem], path) for path in found))


def _meta_file(root: Path) -> Path | None:
    files = (path for path in root.glob("[!.]*.json") if path.stem.endswith("meta"))
    found = sorted(path for path in files if "objects" in path.read_text()[:10_000])
    return found[0] if found else None


def _resolution(folder: Path) -> Path:
    return next((folder / size for size in ("480p", "Full-Resolution") if (folder / size).is_dir()), folder)


def _split(root: Path, split: str | None) -> tuple[list[str] | None, str]:
    lists = {path.stem: path for path in sorted(root.glob("sav_*.txt"))}
    lists |= {path.stem: path for path in sorted((root / "ImageSets").rglob("[!.]*.txt"))}
    if split is None and "val" not in lists and len(lists) != 1:
        return None, "all"
    name = split or ("val" if "val" in lists else next(iter(lists)))
    if name not in lists:
        raise ValueError(f"{root} lists no split {name!r}; it has {', '.join(lists) or 'none'}")
    words = lists[name].read_text().split()  # sequences, or for DAVIS 2016 every frame's image and mask
    return list(dict.fromkeys(Path(word).parent.name if "/" in word else word for word in words)), name


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
