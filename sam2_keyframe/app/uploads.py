"""What the app loads: videos and pictures by their first bytes, of bounded size, from its own folder or an upload.

FFmpeg opens whatever it recognises, playlists among it, which name other files of the machine. So a file is looked at
before FFmpeg sees it, and refused in a sentence unless it begins as a video or a picture does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_keyframe.app.draw import need
from sam2_keyframe.video.decode import folder_images, has_images
from sam2_keyframe.video.source import FrameSource

VIDEOS: tuple[tuple[int, bytes], ...] = (
    *((4, name) for name in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),  # MP4, QuickTime
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"FLV"),
    (0, b"OggS"),
    (0, b"GIF8"),
    (0, b"\x30\x26\xb2\x75"),  # ASF, WMV
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
)
"""Where in a file, and what, tells a video."""

PICTURES: tuple[tuple[int, bytes], ...] = (
    (0, b"\xff\xd8\xff"), (0, b"\x89PNG"), (0, b"BM"), (8, b"WEBP"), (0, b"II*\x00"), (0, b"MM\x00*"),
)  # fmt: skip
"""The same for pictures."""

NO_VIDEO: tuple[tuple[bytes, str], ...] = (
    (b"PK", "a zip archive; unpack it and load the video or the pictures in it"),
    (b"\x1f\x8b", "an archive; unpack it and load the video or the pictures in it"),
    (b"#EXTM3U", "a playlist, which names other files; load the video itself"),
    (b"ffconcat", "a playlist, which names other files; load the video itself"),
    (b"<", "a page or a playlist; load the video itself"),
)
"""What is told of files that begin so."""

ENDINGS = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".flv", ".ogv", ".gif", ".wmv"),
)
"""Of files that count as videos where a folder is looked through."""

LISTED = 200
"""Videos and folders that are offered, at most."""


@dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
        megabytes: Of a video, or of all pictures together (10^6 bytes).
        frames: Of a video.
        side: Width or height in pixels.
    """

    megabytes: int = 500
    frames: int = 5000
    side: int = 4096


def open_source(paths: Sequence[Path], limits: Limits) -> FrameSource:
    """Return the frames of one video, one folder of pictures, or several pictures in order.

    Raises:
        ValueError: One of them is no video or picture, or exceeds a limit.
    """
    if not paths:
        raise ValueError("nothing was given; load a video, a folder of pictures, or several pictures")
    files = folder_images(paths[0]) if len(paths) == 1 and paths[0].is_dir() else list(paths)
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path.name} is no file; load a video or pictures")
    size = sum(path.stat().st_size for path in files) / 1e6
    if size > limits.megabytes:
        raise ValueError(
            f"{paths[0].name}: {size:,.0f} MB are more than the {limits.megabytes:,} MB that this app takes; cut it, "
            "or start the app with a larger --max-upload"
        )
    kinds = {_kind(path) for path in files}
    if kinds == {"video", "picture"} or (kinds == {"video"} and len(files) > 1):
        raise ValueError(f"{len(files)} files with a video among them: load one video, or pictures alone")
    width, height = _video_size(files[0]) if kinds == {"video"} else _picture_size(files)
    if max(width, height) > limits.side:
        raise ValueError(
            f"{paths[0].name}: {width} x {height} pixels are more than {limits.side} on a side; make it smaller"
        )
    if kinds == {"picture"} and len(files) > limits.frames:
        _refuse_length(paths[0].name, len(files), limits)
    source = FrameSource(paths[0] if len(paths) == 1 and kinds == {"video"} else files)
    if len(source) > limits.frames:
        source.close()
        _refuse_length(paths[0].name, len(source), limits)
    return source


def _refuse_length(name: str, frames: int, limits: Limits) -> None:
    raise ValueError(
        f"{name}: {frames:,} frames are more than the {limits.frames:,} that this app takes; cut it, or start the app "
        "with a larger --max-frames"
    )


def _kind(path: Path) -> str:
    """Return "video" or "picture".

    Raises:
        ValueError: It is neither.
    """
    with path.open("rb") as file:
        head = file.read(400)
    if any(head[at : at + len(magic)] == magic for at, magic in PICTURES):
        return "picture"
    if any(head[at : at + len(magic)] == magic for at, magic in VIDEOS):
        return "video"
    if any(head[at : at + 1] == head[at + size : at + size + 1] == b"G" for at, size in ((0, 188), (4, 192))):
        return "video"  # MPEG transport stream: a mark in every packet
    for begins, told in NO_VIDEO:
        if head.lstrip().startswith(begins):
            raise ValueError(f"{path.name} is {told}")
    raise ValueError(f"{path.name} is neither a video nor a picture that this app knows, or it is damaged")


def _video_size(path: Path) -> tuple[int, int]:
    """Return width and height as the header has them, before any frame is decoded."""
    av = need("av")
    try:
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            sizes = [(stream.width, stream.height) for stream in container.streams.video]
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be opened as a video ({error}); it may have been cut short") from None
    if not sizes:
        raise ValueError(f"{path.name} holds no pictures; load a video")
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def _picture_size(files: Sequence[Path]) -> tuple[int, int]:
    module: Any = need("PIL.Image")
    sizes = []
    for path in files:
        try:
            with module.open(path) as image:
                sizes.append(image.size)
        except (OSError, module.DecompressionBombError):
            raise ValueError(f"{path.name} is not a picture that can be read; replace it or leave it out") from None
    if len(set(sizes)) > 1:
        raise ValueError(f"the pictures have {len(set(sizes))} different sizes; load frames of one size")
    return max(size[0] for size in sizes), max(size[1] for size in sizes)


def inside(root: Path, text: str) -> Path:
    """Return the path that a text names in the app's folder; links that lead out of it are followed and refused.

    Raises:
        ValueError: It lies elsewhere, or is not there.
    """
    root = root.resolve()
    try:
        path = (root / text).resolve()
        found = path.is_relative_to(root) and path.exists()
    except (OSError, ValueError, RuntimeError):  # a null byte, a name too long, links in a circle
        found = False
        path = root
    if not path.is_relative_to(root):
        raise ValueError(f"{text!r} lies outside of the folder of this app; choose something in it, or upload it")
    if not found:
        raise ValueError(f"{text!r} is not in the folder of this app; choose something in it, or upload it")
    if path.is_dir() and not all(image.resolve().is_relative_to(root) for image in folder_images(path)):
        raise ValueError(f"{text!r} holds links that lead outside of the folder of this app")
    return path


def offered(root: Path) -> list[str]:
    """Return the videos and folders of pictures in the app's folder and one level below, at most `LISTED`."""
    found: list[str] = []
    for folder in [root, *(each for each in sorted(root.iterdir()) if each.is_dir() and each.name[:1] != ".")]:
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        if folder != root and has_images(folder):
            found.append(str(folder.relative_to(root)))
        found += [str(each.relative_to(root)) for each in entries if each.suffix.lower() in ENDINGS]
        if len(found) >= LISTED:
            break
    return found[:LISTED]
