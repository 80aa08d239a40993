"""Generated video with exact masks: the clips that demo, tests, benchmarks and the micro model's training share.

Every clip follows from its challenge, seed, length, size and number of objects alone. Photographs that ship in the
scikit-image wheel serve as textures when it is installed; without it everything is procedural.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sam2_keyframe.synthetic import textures as tex
from sam2_keyframe.synthetic.casting import KNOBS, WAYS, build, shortest
from sam2_keyframe.synthetic.scene import render

CHALLENGES: tuple[str, ...] = (
    "static",
    "deformation",
    "scale",
    "fast",
    "occlusion",
    "leave_and_return",
    "look_alike",
    "illumination",
    "camera_shake",
    "scene_cut",
    "long",
)
"""Names :func:`make_clip` takes for clips of any length: what a clip makes difficult."""

ABSENCES: tuple[str, ...] = ("absence", *(f"absence_{way}" for way in WAYS))
"""Names :func:`make_clip` takes for long clips: the object is away for 30 to 80 frames at a time, again and again.

It leaves the frame (``absence_leaving``), or scenery hides it and leaves part of the frame in view
(``absence_partial``) or fills the frame (``absence_filled``); ``absence`` has each of these by chance. Meanwhile its
colour, pose and scale drift slowly, and in half of the clips a look-alike of the same texture stays.
"""


@dataclass(frozen=True)
class Clip:
    """One generated video.

    Attributes:
        frames: ``(t, h, w, 3)`` uint8 RGB.
        masks: ``(t, h, w)`` uint8; 0 is background, 1 to ``objects`` the object seen at that pixel.
        challenge: the name it was made under.
        seed: the seed it was made from.
        objects: number of objects with an id; look-alikes and scenery have none.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    challenge: str
    seed: int
    objects: int = 1
    visible: NDArray[np.bool_] = field(init=False)
    """``(t, objects)``: whether the object of id column + 1 shows at least one pixel."""

    def __post_init__(self) -> None:
        ids = np.arange(1, self.objects + 1, dtype=np.uint8)
        seen = np.stack([(self.masks == i).any(axis=(1, 2)) for i in ids], 1)
        object.__setattr__(self, "visible", seen)


def make_clip(
    challenge: str,
    seed: int,
    frames: int = 24,
    size: tuple[int, int] | int = 256,
    objects: int = 1,
    photos: bool | None = None,
    times: Sequence[int] | None = None,
    absences: tuple[int, int] = (30, 80),
) -> Clip:
    """A generated clip with exact masks; the same arguments give the same clip.

    Args:
        challenge: one of :data:`CHALLENGES` or :data:`ABSENCES`.
        seed: any non-negative integer.
        frames: length; occlusions, departures and cuts come about once in 24 frames, and last 3 to 8; beyond 96 frames
            those of ``long`` and ``leave_and_return`` grow longer with the clip instead of more.
        size: (height, width) in pixels, or one number for a square.
        objects: number of objects with an id, 1 to 255.
        photos: use the photographs of the scikit-image wheel; None means when it is installed.
        times: render only these frames of the ``frames``, in this order; None means all.
        absences: shortest and longest absence of the first object in frames, 12 apart at least; other challenges than
            :data:`ABSENCES` have none of these.

    Returns:
        The clip; every object is visible in frame 0.

    Raises:
        ValueError: unknown challenge, or a number out of range.
        ImportError: ``photos=True`` without scikit-image.
    """
    if challenge not in KNOBS:
        raise ValueError(f"unknown challenge {challenge!r}; choose from {', '.join([*CHALLENGES, *ABSENCES])}")
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if seed < 0 or frames < 1 or min(shape) < 16 or not 1 <= objects <= 255:
        raise ValueError(f"seed={seed}, frames={frames}, size={size}, objects={objects}: out of range")
    knobs = KNOBS[challenge]
    if knobs.ways:
        knobs = replace(knobs, absences=absences)
        if absences[0] < 1 or absences[1] < absences[0] + 12:
            raise ValueError(f"absences={absences}: give at least 1 frame, and a longest one 12 above the shortest")
        if frames < shortest(absences):
            raise ValueError(
                f"frames={frames}: {challenge} with absences from {absences[0]} frames on needs "
                f"{shortest(absences)}; give more frames, or shorter absences"
            )
    wanted = list(range(frames)) if times is None else [int(t) for t in times]
    if not wanted or min(wanted) < 0 or max(wanted) >= frames:
        raise ValueError(f"times must lie in 0 to {frames - 1}, not {wanted}")
    use = tex.have_photos() if photos is None else photos
    if use and not tex.have_photos():
        raise ImportError("photos=True needs the photographs in scikit-image: pip install scikit-image")
    salt = (zlib.crc32(challenge.encode()), seed)
    scene = build(knobs, salt, frames, shape, objects, use)
    images, masks = render(scene, wanted, shape)
    return Clip(images, masks, challenge, seed, objects)
