"""Videos with true masks, each under its dataset's own protocol: what is prompted when, and which frames are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe._checks import did_you_mean
from sam2_keyframe.synthetic import ABSENCES, CHALLENGES, make_clip

Mask = NDArray[np.bool_]

PAGES = {
    "DAVIS": "https://davischallenge.org/davis2017/code.html",
    "LVOS": "https://lingyihongfd.github.io/lvos.github.io/",
    "MOSE": "https://mose.video",
    "VOST": "https://www.vostdataset.org",
    "PUMaVOS": "https://max810.github.io/xmem2-project-page/",
    "Long Video": "https://github.com/xmlyqing00/AFB-URR",
    "YouTube-VOS": "https://youtube-vos.org/dataset/vos/",
    "SA-V": "https://ai.meta.com/datasets/segment-anything-video-downloads/",
}
"""Official download page of each dataset."""

SEEDS = {"dev": 10_000, "test": 20_000}
"""First seed of generated clips in each split. The embedded model was trained on seeds from 1,000,000,000 on."""


@dataclass(frozen=True, slots=True)
class Track:
    """One annotated object.

    Attributes:
        obj_id: Its id in the annotations.
        first: Index of the frame whose true mask is the prompt.
        scored: Indices of the frames on which its mask is scored, in order.
    """

    obj_id: int
    first: int
    scored: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Video:
    """One video with its annotations.

    Attributes:
        name: Its name in the dataset.
        challenge: What it makes difficult; empty where the dataset does not say.
        frames: Image files in order, or (T, H, W, 3) uint8 RGB.
        tracks: The annotated objects.
        exclusive: Whether a pixel belongs to one object at most, so that predictions must not overlap either.
        mask: Maps a frame's index and an object's id to its true (H, W) mask.
    """

    name: str
    challenge: str
    frames: Sequence[Path] | NDArray[np.uint8]
    tracks: tuple[Track, ...]
    exclusive: bool
    mask: Callable[[int, int], Mask]

    def prompts(self) -> dict[int, list[int]]:
        """Return the ids of the objects to prompt, by frame index, in order."""
        by_frame: dict[int, list[int]] = {}
        for track in sorted(self.tracks, key=lambda track: track.first):
            by_frame.setdefault(track.first, []).append(track.obj_id)
        return by_frame


class Dataset(Protocol):
    """Videos by name, of one split, opened one at a time; `fingerprint` digests annotations that are not generated."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str | None: ...
    def open(self, name: str) -> Video:
        """Return a video; raises ValueError with a sentence when its files do not fit together."""
        ...


@dataclass(frozen=True)
class Synthetic:
    """Generated clips with exact masks: every challenge from `clips` seeds of the split.

    Scored as DAVIS is: every frame but the first and the last. An object that is seen on none of these is left out.

    Attributes:
        split: "dev" to choose methods on, "test" to report them.
        challenges: Names in `sam2_keyframe.synthetic.CHALLENGES` or `ABSENCES`.
        clips: Clips a challenge.
        frames: Frames a clip.
        size: Height and width in pixels.
        objects: Objects a clip.

    Raises:
        ValueError: A challenge or the split is unknown, or a number is out of range.
    """

    split: str = "dev"
    challenges: tuple[str, ...] = CHALLENGES
    clips: int = 2
    frames: int = 48
    size: int = 256
    objects: int = 1
    fingerprint = None

    def __post_init__(self) -> None:
        known = (*CHALLENGES, *ABSENCES)
        unknown = sorted(set(self.challenges) - set(known))
        if unknown:
            hint = did_you_mean(unknown[0], known)
            raise ValueError(f"no challenge is called {', '.join(unknown)}; choose from {', '.join(known)}{hint}")
        if self.split not in SEEDS:
            raise ValueError(f"generated clips have no split {self.split!r}; choose from {', '.join(SEEDS)}")
        if self.clips < 1 or not 1 <= self.objects <= 255 or self.frames < 3 or self.size < 16:
            raise ValueError(
                f"clips={self.clips}, objects={self.objects}, frames={self.frames}, size={self.size}: give at least "
                "one clip, 1 to 255 objects, three frames (the first and the last are not scored) and 16 pixels"
            )

    @property
    def name(self) -> str:
        """Name of the dataset in results: it tells length, size and objects."""
        objects = f"-{self.objects}obj" if self.objects > 1 else ""
        return f"synthetic-{self.frames}f-{self.size}px{objects}"

    @property
    def names(self) -> tuple[str, ...]:
        """`challenge-seed` of every clip."""
        first = SEEDS[self.split]
        return tuple(f"{challenge}-{first + i}" for challenge in self.challenges for i in range(self.clips))

    def open(self, name: str) -> Video:
        """Return a clip by its name."""
        challenge, seed = name.rsplit("-", 1)
        clip = make_clip(challenge, int(seed), self.frames, self.size, self.objects)
        tracks = []
        for i in np.flatnonzero(clip.visible.any(0)):  # among many objects some are never seen
            first = int(np.argmax(clip.visible[:, i]))
            tracks.append(Track(int(i) + 1, first, tuple(range(max(first, 1), self.frames - 1))))
        found = scored_tracks(name, tracks)
        return Video(name, challenge, clip.frames, found, True, lambda t, obj_id: clip.masks[t] == obj_id)


def scored_tracks(name: str, tracks: Sequence[Track]) -> tuple[Track, ...]:
    """Return a video's objects that are scored at all: one that appears on the last annotated frame never is.

    Raises:
        ValueError: There is none.
    """
    found = tuple(track for track in tracks if track.scored)
    if not found:
        raise ValueError(f"{name}: no object has a mask on a scored frame; the first and the last one are not scored")
    return found


def open_dataset(
    data: str,
    split: str | None = None,
    *,
    sequences: Sequence[str] = (),
    challenges: Sequence[str] = (),
    clips: int = 2,
    frames: int = 48,
    size: int = 256,
    objects: int = 1,
) -> Dataset:
    """Return a dataset; folders' layouts are recognised.

    Args:
        data: "synthetic"; or a folder that holds `JPEGImages` and `Annotations` (DAVIS, LVOS, MOSE, VOST, PUMaVOS,
            Long Videos), those and a `meta.json` (YouTube-VOS, LVOS), or `JPEGImages_24fps` and `Annotations_6fps`
            (SA-V); or the address of one for fsspec, of which a copy is made here.
        split: Name of the part: "dev" or "test" of generated clips, else of a list in `ImageSets`; None: "dev", or
            "val", or the only list there is, or every sequence.
        sequences: Of a folder, these videos only.
        challenges: Of generated clips: challenges, none means all.
        clips: As in `Synthetic`, like those that follow.
        frames: Length.
        size: Height and width.
        objects: Objects a clip.

    Raises:
        ValueError: Nothing is there or it is not laid out as any of these; the message names the download page.
        ImportError: It is an address, and fsspec or what it needs for it is not installed.
    """
    from benchmarks.layouts import open_folder
    from benchmarks.remote import local_copy

    if data == "synthetic":
        named = tuple(challenges) or CHALLENGES
        return Synthetic(split or "dev", named, clips, frames, size, objects)
    if "://" in data:
        return open_folder(local_copy(data), split, tuple(sequences))
    if not Path(data).is_dir():
        word = Path(data).name.lower().replace("-", "").replace("_", "").replace("ytvos", "youtubevos")
        pages = [
            f"{page} ({name})" for name, page in PAGES.items() if name.lower().replace("-", "").replace(" ", "") in word
        ] or [f"{page} ({name})" for name, page in PAGES.items()]
        raise ValueError(
            f"there is no folder {data}. Give synthetic, or the folder of a dataset downloaded from {', '.join(pages)}"
        )
    return open_folder(Path(data), split, tuple(sequences))
