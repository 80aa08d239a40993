"""What a run leaves behind for `replay`: masks, SAM 2's own estimates and small descriptors of each frame."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.replay.steps import DESCRIPTORS, Kind, Step

RECORDING = "recording.npz"
"""What `track` calls the file."""

VERSION = 1
BLOCK = 256
"""Steps that are written together."""


@dataclass
class Recording:
    """What happened in a run, in order.

    Attributes:
        geometry: Of the model that ran.
        num_frames: Frames of the video.
        frame_size: Height and width of its frames.
        steps: One a frame and object.
        complete: Whether SAM 2's descriptors and estimates are in it; not so for masks from elsewhere.
    """

    geometry: Geometry
    num_frames: int
    frame_size: tuple[int, int]
    steps: list[Step] = field(default_factory=list, repr=False)
    complete: bool = True

    @property
    def obj_ids(self) -> list[Any]:
        """Ids of the objects, in the order in which they appeared."""
        return list(dict.fromkeys(step.obj_id for step in self.steps))

    def descriptors(self, obj_id: Any, key: str = "object/image") -> tuple[list[int], Tensor]:
        """Return the frames on which an object was described, and its (n, C) float32 descriptors for `choose_frames`.

        Args:
            obj_id: The object.
            key: One of `DESCRIPTORS`.

        Raises:
            ValueError: There are none.
        """
        found = {s.frame_idx: s.descriptors[key] for s in self.steps if s.obj_id == obj_id and key in s.descriptors}
        if not found:
            raise ValueError(f"no {key!r} of object {obj_id!r} is in this recording; its objects are {self.obj_ids}")
        frames = sorted(found)
        return frames, torch.from_numpy(np.stack([found[frame_idx] for frame_idx in frames]))

    def save(self, path: str | Path) -> None:
        """Write a `.npz` file; object ids become whole numbers or text.

        Raises:
            OSError: It cannot be written; nothing is left of it.
        """
        file = RecordingFile(path, self)
        file.write(self.steps)
        file.close()

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Return a recording that was saved, as a file or in the folder that `sam2-keyframe track` wrote.

        Raises:
            ValueError: The file is no recording, or one of another version.
            OSError: It cannot be read.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f"{str(path)!r} does not exist; give a run's folder, its {RECORDING}, or masks of object ids"
            )
        path = path / RECORDING if path.is_dir() else path
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(file["about"].tobytes())
                if about["sam2_keyframe"] == VERSION:
                    size = (int(about["frame_size"][0]), int(about["frame_size"][1]))
                    loaded = cls(Geometry(**about["geometry"]), about["num_frames"], size, [], about["complete"])
                    for block in range(sum(name.endswith("/about") for name in file.files)):
                        loaded.steps.extend(_steps_of(file, f"{block}/"))
                    return loaded
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise ValueError(
                f"{path} is no recording of a run: give the recording.npz that `sam2-keyframe track` writes"
            ) from None
        version = about["sam2_keyframe"]
        raise ValueError(f"{path} was recorded by another version (format {version}, not {VERSION}): record it again")


class RecordingFile:
    """A recording's file, written block by block, so that a run of any length takes no memory.

    Args:
        path: The file; one that is there is replaced.
        recording: What it is a recording of; its steps are not written by themselves.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """

    def __init__(self, path: str | Path, recording: Recording) -> None:
        self.path = Path(path)
        self._file = self.path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w")
        self._blocks = 0
        about = {
            "sam2_keyframe": VERSION,
            "geometry": asdict(recording.geometry),
            "num_frames": recording.num_frames,
            "frame_size": recording.frame_size,
            "complete": recording.complete,
        }
        self._add({"about": _text(about)})

    def write(self, steps: Sequence[Step]) -> None:
        """Append a block of steps."""
        self._add({f"{self._blocks}/{name}": column for name, column in _columns_of(steps).items()})
        self._blocks += 1

    def close(self) -> None:
        """Finish the file."""
        with self._whole():
            self._zip.close()
            self._file.close()

    def _add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        with self._whole():
            for name, column in columns.items():
                with self._zip.open(f"{name}.npy", "w", force_zip64=True) as member:
                    form: Any = np.lib.format  # typed in some releases of NumPy only
                    form.write_array(member, column, allow_pickle=False)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Remove the file when it cannot be written."""
        try:
            yield
        except OSError:
            self._zip.fp = None  # or it tries again when it is collected
            with suppress(OSError):
                self._file.close()
            self.path.unlink(missing_ok=True)
            raise


def _text(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _columns_of(steps: Sequence[Step]) -> dict[str, NDArray[Any]]:
    """Return steps as arrays; missing scores and descriptors are NaN."""
    obj_ids = list(dict.fromkeys(step.obj_id for step in steps))
    names = sorted({name for step in steps for name in step.scores})
    columns: dict[str, NDArray[Any]] = {
        "about": _text({"obj_ids": [int(i) if isinstance(i, Integral) else str(i) for i in obj_ids], "scores": names}),
        "obj": np.array([obj_ids.index(step.obj_id) for step in steps], np.int32),
        "frame": np.array([step.frame_idx for step in steps], np.int32),
        "kind": np.array([step.kind for step in steps], np.uint8),
        "masks": np.frombuffer(b"".join(step.mask for step in steps), np.uint8),
        "ends": np.cumsum([len(step.mask) for step in steps], dtype=np.int64),
        "scores": np.array([[step.scores.get(name, math.nan) for name in names] for step in steps], np.float32),
    }
    for key in DESCRIPTORS:
        known = [step.descriptors.get(key) for step in steps]
        blank = next((np.full_like(vector, math.nan) for vector in known if vector is not None), None)
        if blank is not None:
            columns[key.replace("/", "_")] = np.stack([blank if vector is None else vector for vector in known])
    return columns


def _steps_of(file: Any, block: str) -> Iterator[Step]:
    about = json.loads(file[f"{block}about"].tobytes())
    keys = {key: f"{block}{key.replace('/', '_')}" for key in DESCRIPTORS}
    vectors = {key: file[name] for key, name in keys.items() if name in file.files}
    masks, ends = file[f"{block}masks"].tobytes(), file[f"{block}ends"].tolist()
    places = (file[f"{block}{name}"].tolist() for name in ("obj", "frame", "kind"))
    for i, (obj, frame_idx, kind, row) in enumerate(zip(*places, file[f"{block}scores"].tolist(), strict=True)):
        yield Step(
            about["obj_ids"][obj],
            frame_idx,
            Kind(kind),
            masks[ends[i - 1] if i else 0 : ends[i]],
            {name: value for name, value in zip(about["scores"], row, strict=True) if not math.isnan(value)},
            {key: column[i] for key, column in vectors.items() if not np.isnan(column[i, 0])},
        )
