"""Textures, photographs and outlines that the synthetic clips are painted with."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_COLOUR = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
_GREY = ("brick", "grass", "gravel", "camera", "coins", "moon")
_LONG_SIDE = 320


def have_photos() -> bool:
    """Whether scikit-image, whose wheel ships the photographs, is installed."""
    try:
        import skimage.data  # noqa: F401
    except ImportError:
        return False
    return True


def _shrink(image: Any) -> Tensor:
    array = np.asarray(image)[..., :3] if np.asarray(image).ndim == 3 else np.repeat(np.asarray(image)[..., None], 3, 2)
    tensor = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).float() / 255.0
    scale = _LONG_SIDE / max(tensor.shape[1:])
    size = [max(8, round(n * scale)) for n in tensor.shape[1:]]
    return F.interpolate(tensor[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


@functools.lru_cache(maxsize=1)
def photos() -> tuple[Tensor, ...]:
    """Photographs that ship inside the scikit-image wheel: ``(3, h, w)`` RGB in [0, 1], long side 320.

    Raises:
        ImportError: scikit-image is not installed.
    """
    import skimage.data

    source: Any = skimage.data
    images = [getattr(source, name)() for name in (*_COLOUR, *_GREY)]
    images.extend(source.stereo_motorcycle()[:2])
    return tuple(_shrink(image) for image in images)


@functools.lru_cache(maxsize=32)
def photo_regions(index: int) -> tuple[tuple[int, int, int, int, Tensor], ...]:
    """Connected regions of one photograph: (top, bottom, left, right, mask) each, mask ``(h, w)`` of 0 and 1."""
    import skimage.measure
    import skimage.segmentation

    measure: Any = skimage.measure
    photo = photos()[index]
    segments = skimage.segmentation.felzenszwalb(photo.permute(1, 2, 0).numpy(), scale=250, sigma=1.0, min_size=300)
    total = photo.shape[1] * photo.shape[2]
    found = []
    for region in measure.regionprops(measure.label(segments + 1)):
        top, left, bottom, right = region.bbox
        tall, wide = bottom - top, right - left
        if 0.006 < region.area / total < 0.30 and region.solidity > 0.55 and 0.25 < tall / wide < 4:
            found.append((top, bottom, left, right, torch.from_numpy(region.image_filled.astype(np.float32))))
    return tuple(found)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``(c, h, w)`` resampled to ``(c, *size)``, anti-aliased."""
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def jitter(rng: np.random.Generator, image: Tensor, strength: float = 1.0) -> Tensor:
    """``(3, h, w)`` with a random rotation of the colours, contrast, gain and offset; clamped to [0, 1]."""
    angle = strength * rng.uniform(-math.pi, math.pi) * (rng.random() < 0.6)
    c, s = math.cos(angle), math.sin(angle)
    third, root = (1 - c) / 3, s / math.sqrt(3)
    turn = torch.tensor(
        [
            [c + third, third - root, third + root],
            [third + root, c + third, third - root],
            [third - root, third + root, c + third],
        ]
    )
    contrast = float(np.exp(strength * rng.uniform(-0.4, 0.4)))
    gain = torch.from_numpy(np.exp(strength * rng.uniform(-0.25, 0.25, 3))).float()[:, None, None]
    mixed = torch.einsum("ij,jhw->ihw", turn, image)
    mean = mixed.mean()
    offset = strength * rng.uniform(-0.12, 0.12)
    return (((mixed - mean) * contrast + mean) * gain + offset).clamp(0.0, 1.0)


def photo_texture(rng: np.random.Generator, size: tuple[int, int], index: int, low: float = 0.25) -> Tensor:
    """A random crop of photograph ``index``, flipped, re-coloured and resampled to ``(3, *size)``."""
    photo = photos()[index]
    part = rng.uniform(low, 1.0)
    tall, wide = max(8, int(photo.shape[1] * part)), max(8, int(photo.shape[2] * part))
    top, left = int(rng.integers(photo.shape[1] - tall + 1)), int(rng.integers(photo.shape[2] - wide + 1))
    crop = photo[:, top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        crop = crop.flip(2)
    return jitter(rng, resize(crop, size))


def procedural_texture(rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
    """Coloured 1/f noise, stripes, checks or dots over it: ``(3, *size)`` in [0, 1]."""
    decay, field = rng.uniform(0.4, 1.3), torch.zeros(2, *size)
    for level in range(5):
        cells = 3 * 2**level
        grid = torch.from_numpy(rng.standard_normal((2, cells, cells)).astype(np.float32))
        field += F.interpolate(grid[None], size=size, mode="bicubic", align_corners=False)[0] * (
            2.0 ** (-decay * level)
        )
    palette = torch.from_numpy(rng.random((3, 3)).astype(np.float32))[:, :, None, None]
    first, second = torch.sigmoid(2.5 * field)
    image = palette[0] + (palette[1] - palette[0]) * first + 0.6 * (palette[2] - palette[0]) * (second - 0.5)
    kind = rng.random()
    if kind < 0.45:
        y = torch.linspace(-1, 1, size[0])[:, None]
        x = torch.linspace(-1, 1, size[1])[None, :]
        angle, freq = rng.uniform(0, math.pi), rng.uniform(6, 22)
        a, b = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        wave = torch.sin(freq * a + 0.6 * field[0])
        if kind < 0.25:
            wave = wave * torch.sin(freq * b)
        colour = torch.from_numpy(rng.random((3, 1, 1)).astype(np.float32))
        image = image + (colour - image) * torch.sigmoid(6 * wave) * rng.uniform(0.4, 0.9)
    clamped: Tensor = image.clamp(0.0, 1.0)
    return clamped


def outline(rng: np.random.Generator, size: int) -> Tensor:
    """A random filled outline: ``(size, size)`` in [0, 1], soft by about a pixel, filling most of the square."""
    line = torch.linspace(-1, 1, size)
    y, x = line[:, None], line[None, :]
    soft = 1.5 / size
    kind = rng.random()
    if kind < 0.5:
        theta, radius = torch.atan2(y, x), torch.sqrt(x * x + y * y)
        orders = torch.arange(1, 7).float()[:, None, None]
        size_of = torch.from_numpy((rng.standard_normal(6) * 0.28 / np.arange(1, 7) ** 0.7).astype(np.float32))
        phase = torch.from_numpy(rng.uniform(0, 2 * math.pi, 6).astype(np.float32))
        edge = 1 + (size_of[:, None, None] * torch.cos(orders * theta + phase[:, None, None])).sum(0)
        edge = edge.clamp(0.3, 2.0)
        edge = 0.95 * edge / edge.max()
        squash = rng.uniform(0.55, 1.0)
        stretched = torch.sqrt(x * x + (y / squash) ** 2) if rng.random() < 0.5 else radius
        return torch.sigmoid((edge - stretched) / soft)
    if kind < 0.7:
        power, squash = rng.uniform(1.2, 6.0), rng.uniform(0.4, 0.95)
        level = (x.abs() / 0.92) ** power + (y.abs() / (0.92 * squash)) ** power
        return torch.sigmoid((1 - level.clamp(min=1e-6) ** (1 / power)) * 0.92 / soft)
    alpha = torch.zeros(size, size)
    spots = rng.uniform(-0.5, 0.5, (int(rng.integers(3, 7)), 2))
    for index, (px, py) in enumerate(spots):
        if index:
            px, py = 0.6 * spots[index - 1] + 0.6 * np.array([px, py])
            spots[index] = (px, py) = (float(np.clip(px, -0.6, 0.6)), float(np.clip(py, -0.6, 0.6)))
        angle, a, b = rng.uniform(0, math.pi), rng.uniform(0.2, 0.4), rng.uniform(0.12, 0.3)
        u = (x - px) * math.cos(angle) + (y - py) * math.sin(angle)
        v = (y - py) * math.cos(angle) - (x - px) * math.sin(angle)
        inside = torch.sigmoid((1 - torch.sqrt((u / a) ** 2 + (v / b) ** 2)) * b / soft)
        alpha = torch.maximum(alpha, inside)
    return alpha
