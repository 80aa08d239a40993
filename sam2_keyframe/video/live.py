"""Frames from a camera or from the network: read once, as they come, with new tries where the connection is lost."""

from __future__ import annotations

import re
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from sam2_keyframe.patches.driving import ENDLESS
from sam2_keyframe.video.decode import Frame, broken, rgb_of

SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "udp", "srt")
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}
"""What FFmpeg calls a camera and its driver, by `sys.platform`."""

TRIES, WAIT, LONGEST = 5, 0.5, 8.0
"""New tries in a row to connect; seconds before the first, each wait twice the one before, up to the longest."""

TIMEOUT = 10.0
"""Seconds without an answer after which a connection counts as lost."""

ALLOWED = "http,https,tls,tcp,udp,rtp,rtsp,rtmp,srt,httpproxy,crypto,data"
"""Protocols that an address may lead on to: not `file`, so that a playlist cannot read this machine's files."""


def is_live(source: object) -> bool:
    """Return whether a source is the number of a camera or an address."""
    return (isinstance(source, int) and not isinstance(source, bool)) or (
        isinstance(source, str) and re.match(rf"({'|'.join(SCHEMES)})://", source) is not None
    )


def without_password(address: str) -> str:
    """Return an address as it may be shown.

    >>> without_password("rtsp://me:secret@10.0.0.7/door")
    'rtsp://me@10.0.0.7/door'
    """
    return re.sub(r"(?<=//)([^/?#@:]*):[^/?#]*@", r"\1@", address)


class Live:
    """Reader of a camera or an address; forwards only, each frame once.

    A file on a web server (whose length its header tells) ends where it ends. What has no end is connected to again
    when it breaks off; frames go on being numbered.

    Args:
        source: Number of a camera, or an address.

    Attributes:
        ended: Why no frame comes any more; "" while one may.
        reconnected: How often it was connected to again.

    Raises:
        ValueError: It cannot be opened.
        ImportError: PyAV is not installed.
    """

    in_order = True
    rewinds = False

    def __init__(self, source: int | str) -> None:
        self.source = source
        self.name = f"camera {source}" if isinstance(source, int) else repr(without_password(source))
        self.fps: float | None = None
        self.steps = 0
        self.note = ""
        self.ended = ""
        self.reconnected = 0
        self._times = array("d")
        self.times: Sequence[float] = self._times
        self._next = 0
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._length: float | None = None  # in seconds, of what has an end
        self._closed = False
        self._start: float | None = None  # the source's time of frame 0
        self._latest: float | None = None  # and of the newest frame
        self._arrived = 0.0  # when that came, by our clock
        self._offset = 0.0  # what is added to the source's time since it was connected to again
        self._anew = False  # whether the next frame is the first since then
        self._again_from: float | None = None  # time to which frames of a file are passed over then
        try:
            self._open()
        except broken() as error:
            raise ValueError(f"{self.name} cannot be opened ({_reason(error)}); {self._remedy()}") from error

    def __len__(self) -> int:
        return ENDLESS

    def _remedy(self) -> str:
        if isinstance(self.source, int):
            return "see whether the number is right, and whether another program has the camera"
        return "see whether the address is right, and whether it answers"

    def _open(self) -> None:
        import av

        if isinstance(self.source, int):
            if sys.platform not in CAMERAS:
                raise ValueError(f"{self.name}: cameras are read on Linux and macOS; elsewhere give a stream's address")
            name, form = CAMERAS[sys.platform]
            self._container = av.open(name.format(self.source), format=form, timeout=TIMEOUT)
        else:
            options = {"protocol_whitelist": ALLOWED}
            if self.source.startswith("rtsp"):
                options["rtsp_transport"] = "tcp"  # UDP loses packets, and decoders paint over that in silence
            self._container = av.open(self.source, options=options, timeout=TIMEOUT, metadata_errors="replace")
        videos = self._container.streams.video
        if not videos:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise ValueError(f"{self.name} holds no video ({kinds}); {self._remedy()}")
        stream = videos[0]
        self._base = stream.time_base
        stream.thread_type = "SLICE"  # threads that take a frame each hold frames back
        stream.codec_context.options = {"err_detect": "explode", "log_level_offset": "1000"}
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else None
        duration = self._container.duration
        self._length = duration / 1e6 if duration and duration > 0 and not isinstance(self.source, int) else None
        self._frames = self._decoded(self._container, stream)

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        from av.error import InvalidDataError

        try:
            for packet in container.demux(stream):
                self.steps += 1
                with suppress(InvalidDataError):  # a damaged packet costs its frames, not the connection
                    yield from packet.decode()
        except broken():
            with suppress(*broken()):
                yield from stream.codec_context.decode(None)  # what it still held
            raise

    def read(self, t: int) -> Frame:
        """Return frame `t`, dropping those before it.

        Raises:
            RuntimeError: It has gone by, or no frame comes any more.
        """
        if t < self._next:
            raise RuntimeError(f"frame {t} of {self.name} has gone by, and what is live cannot be gone back in")
        while True:
            if self.ended:
                raise RuntimeError(self.ended)
            frame = self._following()
            if frame is not None and self._next > t:
                return rgb_of(frame)

    def _following(self) -> Any:
        """Return the next frame; None where it ended or was connected to anew."""
        failures: tuple[type[Exception], ...] = (StopIteration, *broken())
        try:
            frame = next(self._frames)
        except failures as error:
            whole = isinstance(error, StopIteration | EOFError)
            if whole and self._length is not None and self._near_end():
                self.ended = f"{self.name} ended after {self._next} frames"
            else:
                self._connect_again("it ended" if whole else _reason(error))
            return None
        seconds = None if frame.pts is None else float(frame.pts * self._base)
        if seconds is not None and self._again_from is not None and seconds <= self._again_from:
            return None  # of a file that is read again after the connection was lost
        self._stamp(seconds)
        self._next += 1
        return frame

    def _stamp(self, seconds: float | None) -> None:
        """Note a frame's time; after a break, time goes on by the clock, because the source's begins anew."""
        now = time.monotonic()
        if seconds is None:
            seconds = now
        if self._start is None:
            self._start = seconds
        elif self._anew:
            self._offset = self.times[-1] + (now - self._arrived) - (seconds - self._start)
        self._anew = False
        self._arrived, self._latest = now, seconds
        self._times.append(seconds - self._start + self._offset)

    def _near_end(self) -> bool:
        step = 2 / self.fps if self.fps else 0.1
        begin = self._container.start_time / 1e6 if self._container.start_time else 0.0
        return self._latest is None or self._latest - begin + max(step, 0.25) >= (self._length or 0.0)

    def _connect_again(self, why: str) -> None:
        """Connect again; where that fails as often as it is tried, say in `ended` why."""
        failures: tuple[type[Exception], ...] = (ValueError, *broken())
        self._shut()
        wait = WAIT
        for _ in range(TRIES):
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline and not self._closed:
                time.sleep(0.05)
                self.steps += 1
            if self._closed:
                self.ended = f"{self.name} was closed"
                return
            try:
                self._open()
                first = next(self._frames, None)
                if first is None:
                    raise EOFError("no frame came")
            except failures as error:
                why = _reason(error)
                self._shut()
                wait = min(2 * wait, LONGEST)
                continue
            self.reconnected += 1
            if self._length is None:
                self._anew = True
            else:
                self._again_from = self._latest
            self._frames = chain([first], self._frames)
            return
        self.ended = f"{self.name} broke off after {self._next} frames ({why}) and did not come back in {TRIES} tries"

    def _shut(self) -> None:
        container, self._container = self._container, None
        self._frames = iter(())
        if container is not None:
            with suppress(*broken()):
                container.close()

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._shut()

    def abandon(self) -> None:
        """The connection stays with its process."""

    def __reduce__(self) -> Any:
        raise TypeError(f"{self.name} can be read only once and in this process, so it can be neither copied nor saved")


def _reason(error: Exception) -> str:
    """Return FFmpeg's words without the address, which may hold a password."""
    return str(getattr(error, "strerror", None) or error).split(": ")[0]
