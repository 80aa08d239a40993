"""Mask pictures: palette or grey values are object ids. What has lost them on the way is refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.app.draw import need
from sam2_keyframe.video.decode import folder_images

VOID = 255
"""Pixels of nothing known, as in DAVIS and PASCAL VOC; the object, in a picture that has no other value."""

LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "HEIF")
"""Formats, as Pillow calls them, that need not give back the values that were written."""

GREY = {"P": "palette", "L": "grey", "1": "black and white", "I;16": "16-bit grey", "I;16B": "16-bit grey", "I": "grey"}
"""Modes, as Pillow calls them, that have one whole number a pixel."""

BINARY = "if it shows one object, white on black, add --binary"
BINARY_HELP = "masks show one object, white on black: of any format, smooth edges are cut at half"
SMALL = 64
"""Objects that may all be tiny where they are numbered from 1 without gaps."""


class Numbered(Sequence[str]):
    """Names of frames by their numbers, 00000, 00001, ..., made when they are asked for.

    Args:
        count: How many.
        suffix: At their end.
    """

    def __init__(self, count: int, suffix: str = "") -> None:
        self.frames, self.suffix = count, suffix

    def __len__(self) -> int:
        return self.frames

    @overload
    def __getitem__(self, t: int) -> str: ...
    @overload
    def __getitem__(self, t: slice) -> list[str]: ...
    def __getitem__(self, t: int | slice) -> str | list[str]:
        if isinstance(t, slice):
            return [f"{number:05d}{self.suffix}" for number in range(self.frames)[t]]
        return f"{range(self.frames)[t]:05d}{self.suffix}"


def frame_names(source: Path | str | int, frames: int) -> Sequence[str]:
    """Return what the masks of a video's frames are called: as its pictures are in a folder, else 00000, 00001, ..."""
    if not isinstance(source, Path) or not source.is_dir():
        return Numbered(frames)
    pictures = folder_images(source)[:frames]
    stems = [picture.stem for picture in pictures]
    return stems if len(set(stems)) == len(stems) else [picture.name for picture in pictures]


def file_names(source: Path | str | int, frames: int) -> Sequence[str]:
    """Return what a video's frames are called as files: a folder's are, else 00000.jpg, 00001.jpg, ..."""
    if isinstance(source, Path) and source.is_dir():
        return [picture.name for picture in folder_images(source)[:frames]]
    return Numbered(frames, ".jpg")


def read_mask(path: Path, size: tuple[int, int], binary: bool = False) -> dict[int, NDArray[np.bool_]]:
    """Return the objects of a mask picture by id: palette or grey values; one mask of 0 and 255 is object 1.

    Args:
        path: A palette or grey picture; 255 beside other ids is "void" and left out.
        size: Height and width it must have.
        binary: Whether it shows object 1, brighter than half, on black; of any format then.

    Raises:
        ValueError: It cannot be read, is in colour or lossy, is of another size, or has no object or a soft edge.
    """
    label = f"--mask {path}"
    ids = read_ids(path, label, binary)
    if ids.shape != size:
        raise ValueError(
            f"{label}: {ids.shape[1]} x {ids.shape[0]} pixels, but the video has {size[1]} x {size[0]}; "
            "give a mask of the video's size"
        )
    present, solid = _present(ids)
    if not present:
        told = "no pixel is brighter than half: leave --binary out" if binary else "every pixel is 0"
        raise ValueError(f"{label}: no object in it, {told}; paint the object with its id, 1 to 254")
    _check_hard(label, present, solid)
    if present == {VOID}:
        return {1: ids > 0}
    return {obj_id: ids == obj_id for obj_id in sorted(present - {VOID})}


def read_masks(folder: Path, names: Sequence[str], binary: bool = False) -> NDArray[np.uint8]:
    """Return the (T, H, W) object ids of a folder of pictures named after the frames they belong to.

    Frames before the first picture are empty. Names that are no frame's are frame numbers; names without a number
    count from 0.

    Args:
        folder: Palette or grey pictures.
        names: Of the video's frames, as `frame_names` returns them.
        binary: As in `read_mask`.

    Raises:
        ValueError: A picture cannot be read, is in colour or lossy or of another size, one in between is missing, or
            the objects are those of smoothed masks.
    """
    pictures = folder_images(folder)
    frames = _places([picture.stem for picture in pictures], names)
    missing = sorted(set(range(frames[0], frames[-1])) - set(frames))
    if missing:
        at = missing[0]
        number = names[at] if at < len(names) else str(at)
        called = "" if number.isdecimal() and int(number) == at else f" ({number})"
        raise ValueError(
            f"{folder}: the mask of frame {at}{called} is missing; give one for every frame from the first"
        )
    found: list[NDArray[np.uint8]] = []
    present: set[int] = set()
    solid: set[int] = set()
    for path in pictures:
        ids = read_ids(path, str(path), binary)
        if found and ids.shape != found[0].shape:
            raise ValueError(f"{path} has another size than the masks before it: {ids.shape} and {found[0].shape}")
        found.append(ids)
        for known, more in zip((present, solid), _present(ids), strict=True):
            known |= more
    _check_hard(str(folder), present, solid)
    return np.stack([np.zeros_like(found[0])] * frames[0] + found)


def read_ids(path: Path, label: str, binary: bool = False) -> NDArray[np.uint8]:
    """Return a picture's (H, W) values; 1 where it is brighter than half under `binary`, else 0.

    Args:
        path: The picture.
        label: What errors call it.
        binary: As in `read_mask`.

    Raises:
        ValueError: It cannot be read, or its values are no object ids.
    """
    module = need("PIL.Image")
    try:
        with module.open(path) as image:
            image.load()
            mode, kind = image.mode, "JPEG" if image.info.get("compression") == "jpeg" else image.format
            if binary:
                return _bright(image, kind in LOSSY)
            values = np.asarray(image)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a picture that can be read"
        raise ValueError(f"{label}: {reason}; give a palette or grey PNG of object ids") from None
    if kind in LOSSY:
        raise ValueError(
            f"{label}: a {kind} picture, whose compression changes values, and so makes up objects; give a PNG of "
            f"object ids; {BINARY}"
        )
    if mode not in GREY:
        what = {"F": "a picture of fractions", "LA": "a grey picture with transparency"}.get(mode, "a colour picture")
        raise ValueError(f"{label}: {what} ({mode}); give a palette or grey PNG whose values are ids; {BINARY}")
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise ValueError(
            f"{label}: a {GREY[mode]} picture ({mode}) with values to {values.max()}; object ids go from 1 to 254: "
            f"give them in a palette or grey PNG; {BINARY}"
        )
    return values.astype(np.uint8)


def _bright(image: Any, lossy: bool) -> NDArray[np.uint8]:
    """Return 1 where a picture is brighter than half of white, or painted at all in a coloured palette."""
    if image.mode in ("I", "I;16", "I;16B", "F"):
        values, white = np.asarray(image).astype(np.float64), 1.0 if image.mode == "F" else 65535.0
    else:
        coloured = np.asarray(image.convert("RGBA")).astype(np.float64)
        values, white = coloured[..., :3].max(2) * coloured[..., 3] / 255, 255.0
        if image.mode == "P" and (np.ptp(coloured[..., :3], axis=2) > 0).any():
            return (np.asarray(image) > 0).astype(np.uint8)
    if not lossy and values.max(initial=0) == 1:
        white = 1.0  # values of 0 and 1
    return (values > white / 2).astype(np.uint8)


def _present(ids: NDArray[np.uint8]) -> tuple[set[int], set[int]]:
    """Return the values of a picture besides 0, and those of them that fill 3 x 3 pixels somewhere."""
    present = {int(value) for value in np.unique(ids)} - {0}
    if min(ids.shape) < 3:
        return present, present
    height, width = ids.shape[0] - 2, ids.shape[1] - 2
    middle = ids[1:-1, 1:-1]
    same = np.ones_like(middle, bool)
    for row in range(3):
        for column in range(3):
            same &= ids[row : row + height, column : column + width] == middle
    return present, {int(value) for value in np.unique(middle[same])} - {0}


def _check_hard(label: str, present: Iterable[int], solid: set[int]) -> None:
    """Refuse the grey values of a smoothed edge, each of which would be an object.

    They are told from objects by being lines and specks, none of 3 x 3 pixels, and by not being numbered from 1.

    Raises:
        ValueError: There are such values.
    """
    objects = sorted(set(present) - {VOID})
    specks = [obj_id for obj_id in objects if obj_id not in solid]
    if objects == list(range(1, len(objects) + 1)) and len(objects) <= SMALL:
        return
    many = len(specks) > 3 and 2 * len(specks) > len(objects)
    if many or (VOID in solid and specks and specks == objects):
        raise ValueError(
            f"{label}: {len(objects)} values besides 0 and 255, of which {len(specks)} nowhere fill 3 x 3 pixels: the "
            f"shades of a smoothed or resized mask, which would become {len(objects)} objects; {BINARY}; else save "
            "object ids without smoothing, numbered from 1"
        )


def _places(stems: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the frames that pictures belong to, which are in order."""
    by_name = {name: t for t, name in enumerate(names)}
    if all(stem in by_name for stem in stems):
        return [by_name[stem] for stem in stems]
    if not all(stem.isdecimal() for stem in stems):
        return list(range(len(stems)))
    by_number = {int(name): t for name, t in by_name.items() if name.isdecimal()}
    numbers = [int(stem) for stem in stems]
    return [by_number[number] for number in numbers] if all(number in by_number for number in numbers) else numbers
