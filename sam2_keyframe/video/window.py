"""The window of frames around the last one asked for, and the threads that read ahead of it."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sam2_keyframe.video.decode import Frame, Read, Reader

_BEHIND = 2  # frames kept behind the last one asked for
_PATIENCE = 60.0  # seconds without a sign of life after which a reader counts as stuck


def resize(frame: Read, size: int) -> Tensor:
    """Resize as `sam2.utils.misc._load_img_as_tensor` does: (3, size, size) uint8."""
    from PIL import Image

    image = Image.fromarray(frame) if isinstance(frame, np.ndarray) else frame
    resized = np.array(image.resize((size, size)))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


class _Held:
    """One frame in the window: at native size and resized, where each was asked for; or why it cannot be had."""

    __slots__ = ("error", "native", "reported", "resized")

    def __init__(self) -> None:
        self.native: Frame | None = None
        self.resized: Tensor | None = None
        self.error: Exception | None = None
        self.reported = False


class Window:
    """The frames around the last one asked for, and the threads that read them.

    Threads hold this object but not the `FrameSource` in front of it, so that dropping the source ends them.
    """

    def __init__(self, reader: Reader, ahead: int, threads: int):
        self.reader = reader
        self.ahead = ahead
        self.behind = _BEHIND if reader.rewinds else ahead
        self.native = not reader.rewinds  # native frames are kept once asked for, or where they cannot be read again
        self.image_size: int | None = None
        self.frame_size: tuple[int, int] | None = None
        self.held: dict[int, _Held] = {}
        self.position = 0
        self.reverse = False
        self.stopped = False
        self.threads = threads
        self._noted = False
        self._reads = 0
        self._forked = False
        self._begin()
        _WINDOWS.add(self)

    def _begin(self) -> None:
        self._busy: set[int] = set()
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._threads: list[threading.Thread] = []

    def fork(self) -> None:
        """Forget, in a forked child, what it has not: threads, what they locked, and decoders that they ran."""
        self._begin()
        if not self._forked:
            self.reader.abandon()
        self._forked = True

    def _reopen(self) -> None:
        """Read through a reader of this process's own: after a fork two would move one file's position."""
        try:
            self.reader = copy.copy(self.reader)
        except TypeError as error:
            raise RuntimeError(str(error)) from None
        self._forked = False

    def _wanted(self) -> Iterator[int]:
        """Yield the frames to have, most urgent first."""
        last = len(self.reader) - 1
        if not self.reverse:
            yield from range(self.position, min(self.position + self.ahead, last) + 1)
        elif not self.reader.in_order:
            yield from range(self.position, max(self.position - self.ahead, 0) - 1, -1)
        else:  # a video decodes forwards only: read blocks of frames, the block before this one next
            start = self.position // self.ahead * self.ahead
            yield from range(start, self.position + 1)
            yield from range(max(start - self.ahead, 0), start)

    def _lacks(self, t: int) -> bool:
        held = self.held.get(t)
        if held is None:
            return True
        if held.error is not None:
            return False
        return (self.native and held.native is None) or (self.image_size is not None and held.resized is None)

    def _pick(self) -> tuple[int, Frame | None] | None:
        """Wait for a frame to be wanted; return its number, and its pixels where only another form is lacking."""
        with self._changed:
            while not self.stopped:
                for t in self._wanted():
                    if t not in self._busy and self._lacks(t):
                        self._busy.add(t)
                        return t, self.held[t].native if t in self.held else None
                self._changed.wait()
        return None

    def _work(self) -> None:
        in_turn = self._reading if self.reader.in_order else contextlib.nullcontext()
        while True:
            held = _Held()
            with in_turn:
                picked = self._pick()
                if picked is None:
                    return
                t, known = picked
                try:
                    frame = self.reader.read(t) if known is None else known
                except Exception as error:
                    held.error = error
                self._reads += 1
            try:
                if held.error is None:
                    self._prepare(held, frame)
            except Exception as error:
                held.error = error
            with self._changed:
                self._busy.discard(t)
                if held.resized is not None and held.resized.shape[-1] != self.image_size:
                    held.resized = None  # another size was asked for meanwhile
                self.held[t] = held
                self._trim()
                self._changed.notify_all()

    def _prepare(self, held: _Held, frame: Read) -> None:
        size = (frame.shape[0], frame.shape[1]) if isinstance(frame, np.ndarray) else (frame.height, frame.width)
        if self.frame_size is None:
            self.frame_size = size
        if size != self.frame_size:
            raise ValueError(
                f"its size is {size[1]}x{size[0]} and that of the first frame read "
                f"{self.frame_size[1]}x{self.frame_size[0]}; give frames of one size"
            )
        if self.native:
            held.native = frame if isinstance(frame, np.ndarray) else np.array(frame)
        if self.image_size is not None:
            held.resized = resize(frame, self.image_size)

    def _trim(self) -> None:
        keep = set(self._wanted())
        sign = -1 if self.reverse else 1
        keep.update(self.position - sign * i for i in range(1, self.behind + 1))
        for t in [t for t in self.held if t not in keep]:
            del self.held[t]

    def want(self, native: bool | None = None, image_size: int | None = None) -> None:
        """Say in which forms frames are to be held from now on."""
        with self._changed:
            if native is not None:
                self.native = native or not self.reader.rewinds
            if image_size is not None and image_size != self.image_size:
                self.image_size = image_size
                for held in self.held.values():
                    held.resized = None

    def get(self, t: int, form: Literal["native", "resized"]) -> Any:
        """Return frame `t` in a form that is wanted, waiting for it."""
        frame = self._wait_for(t, form)
        if self.reader.note and not self._noted:
            self._noted = True
            warnings.warn(self.reader.note, stacklevel=3)
        return frame

    def _wait_for(self, t: int, form: Literal["native", "resized"]) -> Any:
        with self._changed:
            if t != self.position:
                self.reverse = t < self.position
                self.position = t
            if t in self.held and self.held[t].reported:
                del self.held[t]  # asking again tries again
            self._trim()
            if self._forked and not self.stopped and (t not in self.held or self._lacks(t)):
                self._reopen()
            while len(self._threads) < self.threads and not self.stopped and not self._forked:
                self._threads.append(threading.Thread(target=self._work, name="sam2-keyframe-decode", daemon=True))
                self._threads[-1].start()
            self._changed.notify_all()
            waited, life = 0.0, -1
            while True:
                if self.stopped:
                    raise RuntimeError(f"frame {t} was asked for after close(); open {self.reader.name} again")
                held = self.held.get(t)
                if held is not None and held.error is not None:
                    held.reported = True
                    raise self._failure(t, held.error) from held.error
                if held is not None and getattr(held, form) is not None:
                    return getattr(held, form)
                if life != self.reader.steps + self._reads:
                    waited, life = 0.0, self.reader.steps + self._reads
                elif waited >= _PATIENCE and self.reader.rewinds:  # a live source may take its time
                    raise RuntimeError(
                        f"frame {t} of {self.reader.name} did not come: nothing was read for {waited:.0f} seconds; see "
                        "to it that the disk or network it lies on answers, then ask again, or copy it elsewhere"
                    )
                if not self._changed.wait(min(1.0, _PATIENCE)):
                    waited += min(1.0, _PATIENCE)

    def _failure(self, t: int, error: Exception) -> Exception:
        kind = type(error) if isinstance(error, ValueError | TypeError) else RuntimeError
        items = getattr(self.reader, "items", None)
        path = f" ({items[t]})" if isinstance(items, list) and isinstance(items[t], str | Path) else ""
        return kind(f"frame {t}{path} of {self.reader.name} cannot be used: {error}; replace it, or track up to it")

    def stop(self) -> None:
        """End the threads and close what they read; called by `close`, by garbage collection and at exit."""
        with self._changed:
            self.stopped = True
            self.held.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5.0)
        if self._forked or any(thread.is_alive() for thread in self._threads):
            return  # nothing is freed under a thread that is stuck in it
        with contextlib.suppress(ValueError):  # a generator may be running
            self.reader.close()


_WINDOWS: weakref.WeakSet[Window] = weakref.WeakSet()


def _fork() -> None:
    if _WINDOWS:
        gc.freeze()  # decoders that the parent had dropped must not be freed here, where their threads are not
    for window in list(_WINDOWS):
        window.fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
