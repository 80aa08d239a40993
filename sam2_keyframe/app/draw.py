"""What pictures are drawn with: colours, tint and outline, text, and the packages that are imported late."""

from __future__ import annotations

import importlib
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (255, 176, 0),
    (60, 170, 255),
    (255, 80, 120),
    (60, 215, 140),
    (190, 130, 255),
    (255, 235, 90),
    (0, 215, 220),
    (255, 130, 60),
    (160, 120, 80),
    (120, 130, 255),
    (170, 210, 60),
    (255, 150, 215),
)
"""Colours of objects 1, 2, ... in pictures; they repeat after twelve."""

INK, PAPER, WARNING = (30, 32, 36), (255, 255, 255), (190, 30, 40)


def need(module: str, extra: str = "video") -> Any:
    """Return a module of an extra; ImportError names the pip line."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = "pictures need" if extra == "video" else "this needs"
        raise ImportError(f"{what} {module.split('.')[0]}: pip install 'sam2-keyframe[{extra}]'") from error


def colour_of(obj_id: Any, place: int = 0) -> Colour:
    """Return the colour of an object in pictures: by its id, or by its place among others where that is no number."""
    return COLOURS[(int(obj_id) - 1 if isinstance(obj_id, Integral) else place) % len(COLOURS)]


def tint(pixels: Pixels, mask: NDArray[np.bool_], colour: Colour, opacity: float, line: int) -> None:
    """Tint the mask and outline it with `line` pixels inside its edge, in place."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inner = np.pad(mask[box], line)
    for axis in (0, 1):
        shifted = [np.roll(inner, step, axis) for step in range(-line, line + 1)]
        inner = np.logical_and.reduce(shifted)
    inside, part = mask[box], pixels[box].astype(np.float32)
    part[inside] += opacity * (np.asarray(colour, np.float32) - part[inside])
    part[inside & ~inner[line:-line, line:-line]] = colour
    pixels[box] = part.round().astype(np.uint8)


def write(
    image: Image,
    place: tuple[int, int],
    text: str,
    size: int,
    ink: Colour,
    behind: Colour | None = None,
    centre: bool = False,
) -> None:
    """Write text at its top left corner or around its centre, on a box where `behind` is given."""
    draw = need("PIL.ImageDraw").Draw(image)
    fonts = need("PIL.ImageFont")
    font = fonts.load_default(size)
    anchor = "mm" if centre else "lt"
    if behind is not None:
        x0, y0, x1, y1 = draw.textbbox(place, text, font=font, anchor=anchor)
        room = max(2, size // 4)
        draw.rectangle((x0 - room, y0 - room, x1 + room, y1 + room), fill=behind)
    draw.text(place, text, fill=ink, font=font, anchor=anchor)


def picture(figure: Any) -> Image:
    """Return a matplotlib figure as an RGB image."""
    canvas = need("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    return need("PIL.Image").fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-any-return]
