"""Readers of native-size RGB frames: folders of images, video files, indexable and one-pass collections.

A reader turns frame numbers into `(H, W, 3)` uint8 RGB; it knows nothing of windows, threads or predictors
(`sam2_keyframe.video.source` adds those). Video files are read with PyAV: its wheel carries FFmpeg, where torchcodec
needs FFmpeg installed and one exact torch release beside it, and its pixels equal OpenCV's.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Frame = npt.NDArray[np.uint8]
"""One frame: (H, W, 3) uint8 RGB."""

Read: TypeAlias = "Frame | Picture"
"""One frame as a reader has it: a file's stays a PIL image, because an array of it is made under Python's lock."""

_JPEG = (".jpg", ".jpeg")
_IMAGES = (*_JPEG, ".png", ".bmp", ".webp", ".tif", ".tiff")
_SKIM = 32  # frames it is cheaper to decode and throw away than to seek over


class Reader(Protocol):
    """What a frame source is read through.

    Attributes:
        name: What error messages call it.
        fps: Frames per second; None where the source does not say.
        in_order: Whether reading frames out of order is slow, so that blocks are read forwards.
        rewinds: Whether a frame can be read again.
    """

    name: str
    fps: float | None
    in_order: bool
    rewinds: bool

    def __len__(self) -> int: ...

    def read(self, t: int) -> Read:
        """Return frame `t`; any exception means that it cannot be had."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def to_rgb(frame: Any) -> Frame:
    """Return one frame as (H, W, 3) uint8 RGB.

    Args:
        frame: (H, W, 3) uint8 array; (3, H, W) or (H, W, 3) tensor, uint8 or float in [0, 1]; a PIL image; or the
            path of an image file.

    Raises:
        ValueError: The shape or dtype is none of these.
        TypeError: It is not an image at all.
    """
    from PIL import Image

    if isinstance(frame, str | Path):
        return np.array(open_rgb(frame))
    if isinstance(frame, Image.Image):
        return np.array(frame.convert("RGB"))
    if isinstance(frame, torch.Tensor):
        tensor = frame.detach()
        if tensor.ndim == 3 and tensor.shape[0] == 3:
            tensor = tensor.permute(1, 2, 0)
        if tensor.is_floating_point():
            tensor = (tensor.float() * 255.0).round().clamp(0, 255).to(torch.uint8)
        frame = tensor.cpu().numpy()
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"a frame is a {type(frame).__name__}; give an (H, W, 3) uint8 array, a tensor or a PIL image")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(
            f"a frame has shape {frame.shape} and dtype {frame.dtype}; give (H, W, 3) uint8 RGB in 0..255, "
            "or a (3, H, W) tensor (float in [0, 1] is scaled)"
        )
    return frame


def open_rgb(path: str | Path) -> Picture:
    """Return a file's picture as PIL's RGB."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
    if image.mode.startswith("I;16"):  # 16 bits, which PIL would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return the sort key that puts "2" before "10", and numbers before letters."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name) if part]


def folder_images(folder: Path) -> list[Path]:
    """Return a folder's images in natural order: its JPEGs where it has any, as SAM 2 does, else other images.

    Raises:
        ValueError: There are none.
    """
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.suffix.lower() in _IMAGES]
    images = [p for p in files if p.suffix.lower() in _JPEG] or files
    if not images:
        raise ValueError(f"no images found in {str(folder)!r}; put frames there as {', '.join(_IMAGES)}")
    return sorted(images, key=lambda p: natural_key(p.stem))


class Indexed:
    """Reader of anything with a length and `[t]`: image paths, arrays, tensors, lists of frames."""

    fps: float | None = None
    in_order = False
    rewinds = True

    def __init__(self, items: Any, name: str):
        self.items = items
        self.name = name
        if len(items) == 0:
            raise ValueError(f"{name} holds no frames; give at least one")

    def __len__(self) -> int:
        return len(self.items)

    def read(self, t: int) -> Read:
        """Return frame `t`."""
        item = self.items[t]
        return open_rgb(item) if isinstance(item, str | Path) else to_rgb(item)

    def close(self) -> None:
        """Nothing is held open."""


class Iterated:
    """Reader of a one-pass iterable: forwards only, each frame once."""

    fps: float | None = None
    in_order = True
    rewinds = False

    def __init__(self, items: Iterable[Any], num_frames: int):
        self.name = f"the {type(items).__name__}"
        self._iterator: Iterator[Any] = iter(items)
        self._next = 0
        self._num_frames = num_frames

    def __len__(self) -> int:
        return self._num_frames

    def read(self, t: int) -> Frame:
        """Return frame `t`, dropping those before it."""
        if t < self._next:
            raise RuntimeError(
                f"frame {t} of {self.name} has gone by; give a list, a folder or a file to go back in it, "
                "or raise `ahead`, which is also how many past frames are kept"
            )
        for item in self._iterator:
            self._next += 1
            if self._next > t:
                return to_rgb(item)
        raise RuntimeError(f"{self.name} ended after {self._next} frames; lower num_frames from {self._num_frames}")

    def close(self) -> None:
        """Close a generator."""
        close = getattr(self._iterator, "close", None)
        if callable(close):
            close()


class VideoFile:
    """Reader of a video file, exact to the frame: frame numbers come from a scan of its packets' time stamps.

    The scan reads the file once without decoding. Pixels are FFmpeg's conversion to RGB, turned upright where the
    file says so; damaged frames raise instead of being painted over.

    Args:
        path: The file.

    Raises:
        ValueError: It is not a video that FFmpeg can open, or has no frames.
        ImportError: PyAV is not installed.
    """

    in_order = True
    rewinds = True

    def __init__(self, path: Path):
        self._path = str(path)
        self.name = repr(self._path)
        self._open()
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps: float | None = float(rate) if rate else None
        self._scan()
        self._restart(0)

    def _open(self) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError("reading video files needs PyAV; install it with: pip install av") from error
        try:
            self._container = av.open(str(Path(self._path).absolute()))  # "12:30.mp4" alone would be a protocol
            self._stream = self._container.streams.video[0]
        except IndexError:
            raise ValueError(f"{self.name} holds no video, only other streams such as sound; give a video") from None
        except av.FFmpegError as error:
            raise ValueError(
                f"{self.name} cannot be opened as a video ({error}); if it was cut short or copied in part, "
                "fetch it again, or give a folder of images"
            ) from error
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"err_detect": "explode"}

    def _scan(self) -> None:
        stamps: list[tuple[int | None, bool]] = []
        total = 0
        for packet in self._container.demux(self._stream):
            if packet.size:
                total += 1
                if not packet.is_discard:
                    stamps.append((packet.pts, packet.is_keyframe))
        if not stamps:
            raise ValueError(f"{self.name} holds no video frames; it may have been cut short: fetch it again")
        known = sorted((pts, key) for pts, key in stamps if pts is not None)
        self._pts = [pts for pts, _ in known]
        # Else frames are counted from the start. AVI knows the order of packets alone, which is not that of frames.
        reordered = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        self._timed = len(set(self._pts)) == len(stamps) and not reordered
        self._keys = [i for i, (_, key) in enumerate(known) if key] if self._timed else [0]
        if not self._keys or self._keys[0] != 0:
            self._keys.insert(0, 0)
        self._readable = len(stamps)
        # the header of an MP4 names more frames than can be read when the file was cut short
        self._missing = max(0, self._stream.frames - total)

    def __len__(self) -> int:
        return self._readable + self._missing

    def _restart(self, key: int) -> None:
        """Go to key frame number `key`; to the first by opening the file anew, which never fails to be exact."""
        if key:
            self._container.seek(self._pts[key], stream=self._stream)
        else:
            self._container.close()
            self._open()
        self._frames: Iterator[Any] = self._container.decode(self._stream)
        self._next = key

    def _decode_to(self, t: int) -> Frame | None:
        """Decode forwards to frame `t`; None when it does not come."""
        for frame in self._frames:
            if self._timed:
                index = bisect.bisect_left(self._pts, frame.pts) if frame.pts is not None else self._next
                if index == len(self._pts) or (frame.pts is not None and self._pts[index] != frame.pts):
                    continue  # a frame that the scan left out
            else:
                index = self._next
            self._next = index + 1
            if index == t:
                return None if frame.is_corrupt else self._rgb(frame)
            if index > t:
                return None
        return None

    @staticmethod
    def _rgb(frame: Any) -> Frame:
        pixels: Frame = frame.to_ndarray(format="rgb24")
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    def read(self, t: int) -> Frame:
        """Return frame `t`, going on from the last one read or from the nearest key frame before `t`."""
        if t >= self._readable:
            raise RuntimeError(f"the file was cut short after {self._readable} of its {len(self)} frames")
        at = bisect.bisect_right(self._keys, t) - 1
        key = self._keys[at]
        starts = [self._keys[i] for i in (at, max(at - 1, 0))] + [0]
        if self._next <= t and (key <= self._next or t - self._next <= _SKIM):
            starts.insert(0, -1)
        failure: Exception | None = None
        for start in dict.fromkeys(starts):
            try:
                if start >= 0:
                    self._restart(start)
                pixels = self._decode_to(t)
            except Exception as error:  # FFmpeg's many kinds; the decoder cannot go on from where it is
                failure = error
                self._next = len(self) + 1
                continue
            if pixels is not None:
                return pixels
            self._next = len(self) + 1
        raise RuntimeError("its data are damaged" if failure is None else f"its data are damaged ({failure})")

    def close(self) -> None:
        """Close the file."""
        self._container.close()
