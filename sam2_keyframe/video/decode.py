"""Readers of native-size RGB frames: folders of images, video files, indexable and one-pass collections.

A reader turns frame numbers into `(H, W, 3)` uint8 RGB; it knows nothing of windows, threads or predictors
(`sam2_keyframe.video.source` adds those). Video files are read with PyAV: its wheel carries FFmpeg, where torchcodec
needs FFmpeg installed and one exact torch release beside it, and its pixels equal OpenCV's.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
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
_ORIENTATION = 0x0112  # of EXIF
_SKIM = 32  # frames it is cheaper to decode and throw away than to seek over


class Reader(Protocol):
    """What a frame source is read through.

    Attributes:
        name: What error messages call it.
        fps: Frames per second; None where the source does not say.
        in_order: Whether reading frames out of order is slow, so that blocks are read forwards.
        rewinds: Whether a frame can be read again.
        steps: Grows while reading goes on, so that a reader that is stuck can be told from a slow one.
        note: What users should be told of the frames once; "" where there is nothing.
        times: Seconds of each frame after the first, as far as the source says.

    `copy.copy` gives a reader of the same frames that shares nothing with this one while it reads; a reader of what
    can be read only once raises TypeError.
    """

    name: str
    fps: float | None
    in_order: bool
    rewinds: bool
    steps: int
    note: str
    times: Sequence[float]

    def __len__(self) -> int: ...

    def read(self, t: int) -> Read:
        """Return frame `t`; any exception means that it cannot be had."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...

    def abandon(self) -> None:
        """Leave files and decoders as they are, for ever: a forked process can neither use nor free them."""
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
        return np.array(_as_rgb(frame))
    if isinstance(frame, torch.Tensor):
        tensor = frame.detach()
        if tensor.ndim == 3 and tensor.shape[0] == 3:
            tensor = tensor.permute(1, 2, 0)
        frame = tensor.float().cpu().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
        if tensor.is_floating_point() and frame.size:
            frame = _scaled(frame)
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"a frame is a {type(frame).__name__}; give an (H, W, 3) uint8 array, a tensor or a PIL image")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(
            f"a frame has shape {frame.shape} and dtype {frame.dtype}; give (H, W, 3) uint8 RGB in 0..255, "
            "or a (3, H, W) tensor (float in [0, 1] is scaled)"
        )
    return frame


def _scaled(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return floats in [0, 1] as 0..255; what exceeds that by rounding alone is cut."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -0.01 and high <= 1.01):
        raise ValueError(f"a frame holds floats from {low:g} to {high:g}; give uint8 in 0..255, or floats in [0, 1]")
    return (values * 255.0).round().clip(0, 255).astype(np.uint8)


def _as_rgb(image: Picture) -> Picture:
    """Return a picture as RGB; grey of more than 8 bits is scaled where its range is known, which PIL cuts at 255."""
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # a PNG holds 16 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image))).convert("RGB")
    if image.mode == "I":
        low, high = image.getextrema()
        if not (isinstance(low, int | float) and isinstance(high, int | float) and low >= 0 and high <= 255):
            raise ValueError(
                f"a frame holds 32-bit integers from {low} to {high}, whose scale is not known; give 8 or 16 bits"
            )
    return image.convert("RGB")


def open_rgb(path: str | Path) -> Picture:
    """Return a file's picture as PIL's RGB, not turned by EXIF, as SAM 2 has it."""
    return _as_rgb(_opened(path))


def _opened(path: str | Path) -> Picture:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
    return image


_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?")


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return the sort key that puts "2" before "10", and numbers before letters."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name) if part]


def _in_order(files: Sequence[Path]) -> list[Path]:
    """Return images in the order of their names: as SAM 2 has it where it can read them, else as numbers.

    Where all names are one number each, negative or decimal ones too, with the same text around it, they are ordered
    by it; other names naturally.

    Raises:
        ValueError: Names such as "1.9" and "1.10" have one order as decimal numbers and another as parts.
    """
    files = sorted(files, key=lambda p: (natural_key(p.stem), p.name))
    stems = [p.stem for p in files]
    with contextlib.suppress(ValueError):  # sam2/utils/misc.py sorts by int(stem)
        return sorted(files, key=lambda p: int(p.stem))
    before = os.path.commonprefix(stems).rstrip("0123456789.,+eE")  # noqa: RUF071 - characters are meant
    if re.search(r"(^|[\W_])-$", before):  # a sign, not the hyphen of "take-1"
        before = before[:-1]
    backwards = [stem[::-1] for stem in stems]
    after = re.sub(r"^[0-9.,]*", "", os.path.commonprefix(backwards)[::-1])  # noqa: RUF071
    cores = [stem[len(before) : len(stem) - len(after)] for stem in stems]
    if not all(_NUMBER.fullmatch(core) for core in cores):
        return files
    numbers = [Decimal(core.replace(",", ".")) for core in cores]
    order = sorted(range(len(files)), key=lambda i: numbers[i])
    padded = [core for core in cores if re.search(r"[.,][0-9]+0$", core)]
    if order != list(range(len(files))) and padded and len({len(re.split("[.,]", core)[-1]) for core in cores}) > 1:
        raise ValueError(
            f"the order of images with names such as {padded[0]!r} is not clear: as decimal numbers they come in "
            "another order than as parts; give them whole numbers, 00000, 00001, ..."
        )
    return [files[i] for i in order]


def folder_images(folder: Path) -> list[Path]:
    """Return a folder's images in order: its JPEGs where it has any, as SAM 2 does, else other images.

    Raises:
        ValueError: There are none, or their order is not clear.
    """
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.suffix.lower() in _IMAGES]
    images = [p for p in files if p.suffix.lower() in _JPEG] or files
    if not images:
        raise ValueError(f"no images found in {str(folder)!r}; put frames there as {', '.join(_IMAGES)}")
    return _in_order(images)


def has_images(folder: Path) -> bool:
    """Return whether a folder is read as a video."""
    try:
        return bool(folder_images(folder))
    except (ValueError, OSError):
        return False


class Indexed:
    """Reader of anything with a length and `[t]`: image paths, arrays, tensors, lists of frames."""

    fps: float | None = None
    in_order = False
    rewinds = True
    steps = 0
    times: Sequence[float] = ()

    def __init__(self, items: Any, name: str):
        self.items = items
        self.name = name
        self.note = ""
        if len(items) == 0:
            raise ValueError(f"{name} holds no frames; give at least one")

    def __len__(self) -> int:
        return len(self.items)

    def read(self, t: int) -> Read:
        """Return frame `t`."""
        item = self.items[t]
        if not isinstance(item, str | Path):
            return to_rgb(item)
        image = _opened(item)
        turn = image.getexif().get(_ORIENTATION, 1)
        if turn not in (0, 1) and not self.note:
            self.note = (
                f"frame {t} ({item}) carries the EXIF orientation {turn}, which is not applied, as in SAM 2: pictures, "
                "prompts and masks are as the camera's sensor has them; to have them upright turn the pixels first, "
                "with `mogrify -auto-orient` or PIL.ImageOps.exif_transpose"
            )
        return _as_rgb(image)

    def close(self) -> None:
        """Nothing is held open."""

    def abandon(self) -> None:
        """Nothing is held open."""


class Iterated:
    """Reader of a one-pass iterable: forwards only, each frame once."""

    fps: float | None = None
    in_order = True
    rewinds = False
    steps = 0
    note = ""
    times: Sequence[float] = ()

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

    def abandon(self) -> None:
        """Nothing but the iterator is held, which stays with its process."""

    def __reduce__(self) -> Any:
        raise TypeError(
            f"the frames of {self.name} can be read only once and in this process, so they can be neither copied nor "
            "saved nor read after a fork; give a list, a folder or a file"
        )


class VideoFile:
    """Reader of a video file, exact to the frame: frame numbers come from a scan of its packets' time stamps.

    The scan reads the file once without decoding. Pixels are FFmpeg's conversion to RGB, turned and mirrored as the
    file says; damaged frames raise instead of being painted over. Frame 0 is the first that can be decoded.

    Args:
        path: The file.

    Raises:
        ValueError: It is not a video that FFmpeg can open, or has no frames.
        ImportError: PyAV is not installed.
    """

    in_order = True
    rewinds = True

    def __init__(self, path: Path):
        self._path = str(path.absolute())  # "12:30.mp4" alone would be a protocol
        self.name = repr(str(path))
        self.steps = 0
        self.note = ""
        self.fps: float | None = None
        self.times: Sequence[float] = ()
        self._lost: list[tuple[range, str]] = []
        self._threaded = True
        self._frames: Iterator[Any] = iter(())
        self._since: int | None = None
        self._open()
        try:
            self._scan()
            self._restart(0)
        except BaseException:
            self.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        own = ("_container", "_stream", "_frames")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._frames = iter(())
        if not os.path.exists(self._path):
            raise FileNotFoundError(f"{self._path!r} does not exist here; a saved frame source needs the file it reads")
        self._open()
        self._restart(0)

    def _open(self) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError("reading video files needs PyAV; install it with: pip install av") from error
        try:
            self._container: Any = av.open(self._path, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(
                f"{self.name} cannot be opened as a video ({error}); if it was cut short or copied in part, "
                "fetch it again, or give a folder of images"
            ) from error
        cover = av.stream.Disposition.attached_pic
        videos = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise ValueError(
                f"{self.name} cannot be opened as a video (it holds {kinds}); if it was cut short or copied in part, "
                "fetch it again, or give a folder of images"
            )
        self._stream: Any = videos[0]
        self._stream.thread_type = "AUTO" if self._threaded else "NONE"
        if not self._threaded:
            self._stream.codec_context.thread_count = 1
        # PyAV's log waits for Python's lock, also in FFmpeg's threads, which closing waits for: say nothing there.
        self._stream.codec_context.options = {"err_detect": "explode", "log_level_offset": "1000"}

    def _scan(self) -> None:
        """Number the frames: note their time stamps, where to begin to decode, and what is missing."""
        packets: list[tuple[int | None, bool]] = []  # of the frames to show, in the order of decoding
        total, sized, end, order, last = 0, 0, 0.0, True, None
        lead: tuple[int, int | None] | None = None  # packets before the first key frame, and its time
        gaps: list[int] = []
        codec = self._stream.codec_context.name
        with contextlib.suppress(*broken()):  # where the file was cut
            for packet in self._container.demux():
                self.steps += 1
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != self._stream.index or (packet.size == 0 and packet.dts is None):
                    continue
                total += 1
                if packet.size == 0:
                    continue
                if packet.is_keyframe and lead is None:
                    lead = sized, packet.pts
                sized += 1
                if packet.dts is not None:
                    order, last = order and (last is None or packet.dts >= last), packet.dts
                if packet.is_corrupt:
                    gaps.append(len(packets))
                if not packet.is_discard and _shows(codec, packet):
                    packets.append((packet.pts, packet.is_keyframe))
        if not packets:
            raise ValueError(f"{self.name} holds no video frames; it may have been cut short: fetch it again")
        known = sorted((pts, key) for pts, key in packets if pts is not None)
        self._pts = [pts for pts, _ in known]
        # Else frames are counted from the start. AVI knows the order of packets alone, which is not that of frames;
        # where recordings were joined, time goes back.
        reordered = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        self._timed = len(set(self._pts)) == len(packets) and order and not reordered
        self._keys = [i for i, (_, key) in enumerate(known) if key] if self._timed else [0]
        self._readable = len(packets)
        self._skip, first = lead or (0, self._pts[0] if self._pts else None)
        if lead is None or self._skip or (self._timed and first is not None and self._pts[0] < first):
            self._leave_out(first)
        if not self._keys or self._keys[0] != 0:
            self._keys.insert(0, 0)
        if self._timed:
            self._lose(packets, gaps)
        self._time(end, total)

    def _leave_out(self, first: int | None) -> None:
        """Begin with the first frame that can be decoded, in recordings that begin between key frames.

        Args:
            first: Time stamp of the first key frame; frames before it refer to what is not there.
        """
        self._since = first if self._timed else None
        self._restart(0)
        if self._timed:
            stamps = (frame.pts for frame in self._probe())
            found = next((pts for pts in stamps if pts is not None and (first is None or pts >= first)), None)
            left_out = 0 if found is None else bisect.bisect_left(self._pts, found)
        else:
            found = sum(1 for _ in self._probe())
            left_out = self._readable - found if found else 0
        if left_out > 0:
            self._readable -= left_out
            self._pts = self._pts[left_out:] if self._timed else self._pts
            self._keys = [key - left_out for key in self._keys if key >= left_out] if self._timed else self._keys
            self.note = (
                f"{self.name} begins between key frames: its first {left_out} frames cannot be decoded and are left "
                "out, so that frame 0 is the one after them"
            )

    def _lose(self, packets: list[tuple[int | None, bool]], gaps: list[int]) -> None:
        """Note the frames about which packets of a transport stream were lost: decoders paint over that in silence.

        FFmpeg marks the packet before the gap, so that the one after it may be cut: only the key frame after that one
        is sure to be whole.
        """
        for gap in gaps:
            key = next((i for i in range(gap + 2, len(packets)) if packets[i][1]), len(packets))
            stamps = [pts for pts, _ in packets[gap:key] if pts is not None]
            after = packets[key][0] if key < len(packets) else None
            end = len(self._pts) if after is None else bisect.bisect_left(self._pts, after)
            if stamps:
                lost = range(bisect.bisect_left(self._pts, min(stamps)), end)
                self._lost.append((lost, "its data are damaged (packets of the recording were lost)"))

    def _probe(self) -> Iterator[Any]:
        """Decode from the start on, whatever fails on the way."""
        while True:
            try:
                for frame in self._frames:
                    if not frame.is_corrupt:
                        yield frame
                return
            except EOFError:
                return
            except broken():
                self._frames = self._decoded(0)

    def _time(self, end: float, total: int) -> None:
        """Find each frame's time, the frame rate, and how many frames the file was to have and has not."""
        base = self._stream.time_base
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else None
        step = 1 / self.fps if self.fps else 0.04
        if self._timed and base is not None:
            self.times = [float((pts - self._pts[0]) * base) for pts in self._pts]
            gaps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
            if gaps:
                mean = self.times[-1] / len(gaps)
                if self.fps is None or abs(mean * self.fps - 1) > 0.05:
                    self.fps = 1 / mean
                step = statistics.median(gaps)
        # The header of a file that was cut short names more frames, in MP4, or a longer time than can be read.
        self._missing, self._cut, form = 0, "", self._container.format.name
        if form.startswith("mov"):
            self._missing = max(0, self._stream.frames - total)
            self._cut = f"the file was cut short after {self._readable} of its {len(self)} frames"
            return
        length = self._container.duration if form in ("matroska,webm", "flv", "asf") else None
        seconds = length / 1e6 if length else 0.0
        if form == "avi" and base is not None:
            seconds = float(self._stream.frames * base)
        if seconds - end > max(0.25, 2 * step):
            self._missing = 1  # at least
            self._cut = f"the file was cut short after {self._readable} frames, {end:.2f} of its {seconds:.2f} seconds"

    def __len__(self) -> int:
        return self._readable + self._missing

    def _restart(self, key: int) -> None:
        """Go to key frame number `key`; to the first by opening the file anew, which never fails to be exact."""
        if key:
            self._container.seek(self._pts[key], stream=self._stream)
        else:
            self.close()
            self._open()
        self._frames = self._decoded(0, self._pts[key], True) if key else self._decoded(self._skip, self._since)
        self._next = key

    def _decoded(self, skip: int, since: int | None = None, waiting: bool = False) -> Iterator[Any]:
        """Yield frames as they are decoded.

        Args:
            skip: Packets to pass over.
            since: Time stamp of the key frame to begin with: frames that come after it but are shown before it refer
                to what was passed over.
            waiting: Whether packets up to the next key frame are passed over: a seek may end among them.
        """
        for packet in self._container.demux(self._stream):
            self.steps += 1
            if packet.size:
                skip -= 1
                waiting = waiting and not packet.is_keyframe
                if skip >= 0 or waiting or (since is not None and packet.pts is not None and packet.pts < since):
                    continue
            try:
                frames = packet.decode()
            except broken():
                if not self._threaded:  # what is still held was decoded before the damage
                    with contextlib.suppress(*broken()):
                        yield from self._stream.codec_context.decode(None)
                raise
            yield from frames

    def _decode_to(self, t: int) -> Frame | None:
        """Decode forwards to frame `t`; None when it does not come, or something that it may refer to does not."""
        key = self._keys[bisect.bisect_right(self._keys, t) - 1]
        for frame in self._frames:
            if self._timed:
                index = bisect.bisect_left(self._pts, frame.pts) if frame.pts is not None else self._next
                if index == len(self._pts) or (frame.pts is not None and self._pts[index] != frame.pts):
                    continue  # a frame that the scan left out
            else:
                index = self._next
            if index < self._next:
                continue  # after a seek: it belongs before the key frame
            gap = index if frame.is_corrupt else self._next if index > self._next else t + 1
            self._next = index + 1
            if index > t or key <= gap <= t:
                return None
            if index == t:
                return rgb_of(frame)
        return None

    def read(self, t: int) -> Frame:
        """Return frame `t`, going on from the last one read or from the nearest key frame before `t`."""
        if t >= self._readable:
            raise RuntimeError(self._cut)
        for lost, reason in self._lost:
            if t in lost:
                raise RuntimeError(reason)
        at = bisect.bisect_right(self._keys, t) - 1
        key = self._keys[at]
        starts = [self._keys[i] for i in (at, max(at - 1, 0))] + [0]
        if self._next <= t and (key <= self._next or t - self._next <= _SKIM):
            starts.insert(0, -1)
        failure, transient = "", False  # the error itself would keep the decoder alive by its traceback
        for start in dict.fromkeys(starts):
            if start == 0 and at > 1 and failure:
                break  # the decoder failed twice: it is not that a seek missed its frame
            try:
                if start >= 0:
                    self._restart(start)
                pixels = self._decode_to(t)
            except Exception as error:  # FFmpeg's many kinds; the decoder cannot go on from where it is
                failure, transient, pixels = f" ({error})", isinstance(error, OSError), None
            if pixels is not None:
                return pixels
            self._next = len(self) + 1
            if self._threaded:  # one thread knows which packet is damaged, and so gives all frames before it
                self._threaded = False
                self.close()
                self._open()
                return self.read(t)
        reason = f"its data are damaged{failure}"
        if not transient:  # what refers to it is lost, too
            after = self._keys[at + 1] if at + 1 < len(self._keys) else self._readable
            self._lost.append((range(t, after), reason))
        raise RuntimeError(reason)

    def close(self) -> None:
        """Close the file."""
        if self._container is None:
            return
        self._frames = iter(())
        with contextlib.suppress(*broken()):
            # Freeing a decoder waits for its threads with Python's lock held; here they come to rest without it.
            self._stream.codec_context.flush_buffers()
        self._container.close()
        # Freed now, not by the garbage collector of a process forked from this one, which has no such threads.
        self._stream = self._container = None

    def abandon(self) -> None:
        """Keep what a forked process inherited for ever: freeing a decoder would wait for threads it has not."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


def rgb_of(frame: Any) -> Frame:
    """Return the pixels of a PyAV frame, turned and mirrored as it says."""
    pixels: Frame = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(_upright(pixels, frame))


def broken() -> tuple[type[Exception], ...]:
    """Return the errors that FFmpeg's reading and decoding end in."""
    import av

    return (av.FFmpegError, EOFError)


def _shows(codec: str, packet: Any) -> bool:
    """Return whether a packet has a picture to show: VP8 and VP9 have some that are only referred to.

    Source: RFC 6386, 9.1 (bit 4 of a VP8 frame's first byte); the VP9 bitstream specification, 6.2 and annex B.
    """
    if codec.startswith(("vp8", "libvpx")) and codec != "libvpx-vp9":
        return bool(memoryview(packet)[0] & 0x10)
    if codec in ("vp9", "libvpx-vp9"):
        data = memoryview(packet)
        starts, mark = [0], data[-1]
        count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
        index = len(data) - 2 - count * width  # where the sizes are, between two marks
        if mark >> 5 == 0b110 and index > 0 and data[index] == mark:  # several frames in one packet
            sizes = [int.from_bytes(data[index + 1 + i * width :][:width], "little") for i in range(count)]
            starts = [sum(sizes[:i]) for i in range(count) if sizes[i]]
        return any(_vp9_shows(data[start]) for start in starts if start < len(data))
    return True


def _vp9_shows(head: int) -> bool:
    bits = head << 1 if head >> 4 & 3 == 3 else head  # the fourth profile has a bit more before
    return bool(bits & 0b1000 or bits & 0b10)  # shows a frame decoded earlier, or is shown


def _upright(pixels: Frame, frame: Any) -> Frame:
    """Turn and mirror a frame by its display matrix, to the nearest right angle, as FFmpeg's own tools do.

    Source: libavutil/display.h: (x, y) goes to (a x + c y, b x + d y).
    """
    if not getattr(frame, "side_data", None) or "DISPLAYMATRIX" not in {each.type.name for each in frame.side_data}:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return pixels
