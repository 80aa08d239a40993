"""What `track` writes, as frames come: masks as DAVIS palette PNGs, a video that browsers play, a table.

Results are written into a hidden folder of their place and moved out of it when they are whole, so that nothing
half-written is left behind.
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.app.draw import Pixels, need
from sam2_keyframe.bank.statistics import FrameStats
from sam2_keyframe.video.confidence import told

TABLE = "frames.csv"
TICK = Fraction(1, 90000)  # of the overlay's clock
WORK, LOCK = ".sam2-keyframe.unfinished", "lock"
OCCUPANCY = [f"{who}{what}" for who in ("", "stock_", "window_") for what in ("frames", "bytes", "tokens")]
COLUMNS = ["frame", "time", "object", "prompted", "significance", "keyframe", "evicted", "attended"]


@contextmanager
def new_folder(place: Path, ours: Sequence[str]) -> Iterator[Path]:
    """Give a folder to write in, to one process at a time; what it wrote takes its place when no error comes through.

    Args:
        place: Where the results will be. An earlier run's are replaced at the end, anything else is refused.
        ours: Names that a run writes.

    Raises:
        ValueError: The place cannot be written, holds something else, or another process is writing it.
    """
    check_place(place, ours)
    place = place.absolute()
    work, missing = place / WORK, [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / LOCK).open("w")
    except OSError as error:
        _remove(missing)
        raise ValueError(f"--out {place}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        if not locked(lock):
            raise ValueError(f"--out {place}: another process is writing there; wait for it or choose another folder")
        try:
            for left in work.iterdir():  # by a process that was killed
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != LOCK:
                    left.unlink()
            earlier = work / "earlier"
            earlier.mkdir()
            yield work
            try:
                _move(ours, place, earlier)
                _move(ours, work, place)
            except BaseException:
                _move(ours, place, work)
                _move(ours, earlier, place)
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            _remove(missing)


def check_place(place: Path, ours: Sequence[str]) -> None:
    """Refuse a place that is a file or holds what no run of ours wrote.

    Raises:
        ValueError: It is.
    """
    try:
        if not place.exists():
            return
        held = sorted(path.name for path in place.iterdir() if path.name != WORK)
    except OSError as error:
        raise ValueError(f"--out {place}: cannot be written ({error.strerror}); choose another folder") from None
    foreign = [name for name in held if name not in ours]
    if foreign or (held and not any((place / name).is_file() for name in ours)):
        names = ", ".join((foreign or held)[:3])
        raise ValueError(f"--out {place}: holds other files ({names}); choose a new or an empty folder")


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).exists() and not (target / name).exists():
            (source / name).rename(target / name)


def locked(file: IO[str]) -> bool:
    """Lock an open file, where the system can; False when another process has it, or had it and took it away."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except (BlockingIOError, FileNotFoundError):
        return False
    except (ImportError, OSError):  # Windows; a file system without locks
        return True


def _remove(missing: Sequence[Path]) -> None:
    """Remove those of the folders made here, inner ones first, that hold nothing."""
    for folder in missing:
        with suppress(OSError):
            folder.rmdir()


def palette() -> list[int]:
    """Return the 256 colours of DAVIS and PASCAL VOC masks as red, green, blue, red, ...

    Source: the colour map of the PASCAL VOC development kit: the bits of an id spread over the high bits of the
    three channels.
    """
    ids = np.arange(256)
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return [int(value) for value in colours.flatten()]


def write_mask(path: Path, ids: NDArray[Any]) -> None:
    """Write (H, W) object ids, 0 to 255, as a palette PNG."""
    image = need("PIL.Image").fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette(palette())
    write_png(path, image)


def write_png(path: Path, image: Any) -> None:
    """Write a PIL image, whole or not at all.

    Raises:
        OSError: It cannot be written, for want of space for one.
    """
    store = io.BytesIO()
    image.save(store, "PNG")
    try:
        path.write_bytes(store.getvalue())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class Video:
    """An H.264 file that browsers play (4:2:0, header first), written frame by frame.

    Args:
        path: The file; frames of odd width or height lose a row or column.
        fps: Frames per second.
        still: Whether single frames will be looked up: key frames are close to each other then.

    Raises:
        ImportError: PyAV is missing.
    """

    def __init__(self, path: Path, fps: float, still: bool = False) -> None:
        self.path, self.fps = path, fps
        self._options = {"preset": "veryfast", **({"crf": "25", "g": "12", "bf": "0"} if still else {"crf": "20"})}
        self._av = need("av")
        self._container: Any = None
        self._stream: Any = None
        self._last, self._ticks = 0.0, -1

    def add(self, pixels: Pixels, time: float | None = None) -> None:
        """Append a frame, (H, W, 3) uint8 RGB, shown `time` seconds after frame 0 or a frame's length after the last.

        Pauses are cut to ten seconds.
        """
        height, width = (side // 2 * 2 for side in pixels.shape[:2])
        if self._container is None:
            self._container = self._av.open(str(self.path), "w", options={"movflags": "+faststart"})
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options=self._options)
            self._stream.codec_context.time_base = self._stream.time_base = TICK
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        length = 1 / self.fps if time is None else min(max(time - self._last, 0.0), 10.0)
        self._last = self._last if time is None else time
        self._ticks = 0 if self._ticks < 0 else self._ticks + max(1, round(length / TICK))
        picture.pts, picture.time_base = self._ticks, TICK
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file; one that cannot be finished is removed."""
        if self._container is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            self._container = None


class Table:
    """`frames.csv`: a row a frame and object, each written at once and whole.

    Args:
        path: The file.
        scores: Names of the scores, a column each.
    """

    def __init__(self, path: Path, scores: Sequence[str]) -> None:
        self.scores = list(scores)
        self.columns = [*COLUMNS, *self.scores, *OCCUPANCY, "host_bytes", "milliseconds"]
        self._file = path.open("wb", buffering=0)
        self._write(self.columns)

    def add(self, frame_idx: int, obj_id: int, row: FrameStats | None, time: float | None = None) -> None:
        """Write an object's row on a frame; None where the frame was prompted, so that SAM 2 did not track it.

        `time` is in seconds after frame 0, None where the source does not say.

        Raises:
            OSError: It cannot be written.
        """
        seconds = "" if time is None else f"{time:.6f}"
        cells = [frame_idx, seconds, obj_id, int(row is None), *([] if row is None else self._cells(row))]
        self._write(cells + [""] * (len(self.columns) - len(cells)))

    def _write(self, cells: Sequence[Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        data, whole = line.getvalue().encode(), self._file.tell()
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(whole)
            raise

    def _cells(self, row: FrameStats) -> list[Any]:
        scored = told(row.scores)
        numbers = [row.significance, *(scored.get(name, math.nan) for name in self.scores)]
        significance, *scores = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        kept = "" if row.keyframe is None else int(row.keyframe)
        lists = [" ".join(map(str, frames)) for frames in (row.evicted, row.attended)]
        taken = [(each.frames, each.nbytes, each.tokens) for each in (row.memory, row.stock, row.window)]
        occupancy = [number for three in taken for number in three]
        return [significance, kept, *lists, *scores, *occupancy, row.host_nbytes, f"{row.milliseconds:.2f}"]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
