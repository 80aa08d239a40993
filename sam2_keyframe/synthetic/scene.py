"""Layers, paths and the renderer behind :mod:`sam2_keyframe.synthetic`.

World units: the shorter side of the view is [-1, 1] at zoom 1. A layer is a textured patch with an outline, carried
along a path; a frame paints the background and then every layer from back to front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_keyframe.synthetic import textures as tex

Array = NDArray[np.float64]
REACH = 2.4
"""Half-extent of the background in world units."""


def smooth(values: Array, width: float) -> Array:
    """``(t, ...)`` filtered over time by a Gaussian of ``width`` frames, ends held."""
    if width <= 0 or len(values) < 2:
        return values
    half = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / width) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate([np.repeat(values[:1], half, 0), values, np.repeat(values[-1:], half, 0)])
    stacked = np.stack([padded[i : i + len(values)] for i in range(2 * half + 1)])
    return np.asarray(np.tensordot(kernel, stacked, 1))


def wander(rng: np.random.Generator, frames: int, speed: float, start: Array, bound: Array) -> Array:
    """A path ``(frames, 2)`` of about ``speed`` units a frame that stays within ``bound`` of the origin."""
    turn = smooth(rng.standard_normal(frames) * 0.9, 2.0)
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(turn)
    pace = speed * np.exp(smooth(rng.standard_normal(frames) * 0.8, 3.0))
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * pace[:, None]
    path = start + np.cumsum(steps, 0) - steps[:1]
    folded = np.abs((path + bound) % (4 * bound) - 2 * bound) - bound
    sign = np.where(np.abs((start + bound) % (4 * bound) - 2 * bound) - bound == start, 1.0, -1.0)
    return smooth(np.asarray(folded * sign), 0.8)


def drift(rng: np.random.Generator, frames: int, amount: float, width: float) -> Array:
    """A smooth series ``(frames,)`` of standard deviation about ``amount`` that starts at 0."""
    series = smooth(rng.standard_normal(frames + 8), width)[:frames] * (amount * math.sqrt(3.5 * max(width, 0.3)))
    started: Array = series - series[0]
    return started


@dataclass
class Layer:
    """One textured patch and its motion; ``obj_id`` 0 is scenery."""

    patch: Tensor  # (4, p, p): RGB and alpha
    centre: Array  # (t, 2)
    half: Array  # (t, 2) half-extents of the patch
    angle: Array  # (t,)
    obj_id: int = 0
    bend: Array = field(default_factory=lambda: np.zeros((1, 4)))  # (t, 4): amplitude and phase of two bends
    fixed: bool = False  # to the screen, not to the world
    tint: Array | None = None  # (t, 3) gains of its colours


@dataclass
class Scene:
    """Everything a clip is rendered from; ``cut`` names the frames that show another background and no layer."""

    background: Tensor  # (3, b, b)
    layers: list[Layer]
    camera: Array  # (t, 4): x, y, log zoom, angle
    light: Array  # (t, 3) gains
    offset: Array  # (t,)
    blur: float
    noise: float
    seed: int
    smear: int = 1
    cut: NDArray[np.bool_] | None = None
    other: Scene | None = None


def body(rng: np.random.Generator, pixels: int, photos: bool, avoid: int = -1) -> Tensor:
    """A patch ``(4, p, p)``: a region of a photograph as it is, or an outline with one or two textures."""
    size = int(np.clip(pixels, 24, 256))
    count = len(tex.photos()) if photos else 0
    index = int(rng.integers(count)) if count else 0
    if index == avoid:
        index = (index + 1) % count
    kind, inner = rng.random(), int(rng.integers(2**62))
    if photos and kind < 0.3 and tex.photo_regions(index):
        sub = np.random.default_rng(inner)
        regions = tex.photo_regions(index)
        top, bottom, left, right, inside = regions[int(sub.integers(len(regions)))]
        crop = tex.jitter(sub, tex.photos()[index][:, top:bottom, left:right])
        scale = size / max(bottom - top, right - left)
        both = torch.cat([crop, inside[None]])
        small = tex.resize(both, (max(4, round(scale * (bottom - top))), max(4, round(scale * (right - left)))))
        pad_y, pad_x = size - small.shape[1], size - small.shape[2]
        pads = (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2)
        return F.pad(small.clamp(0, 1), pads)
    sub = np.random.default_rng(inner)

    def texture() -> Tensor:
        if photos and sub.random() < 0.6:
            return tex.photo_texture(sub, (size, size), index, low=0.15)
        return tex.procedural_texture(sub, (size, size))

    colour = texture()
    if sub.random() < 0.4:
        where = tex.outline(sub, size).roll((int(sub.integers(size)), int(sub.integers(size))), (0, 1))
        colour = colour + (texture() - colour) * where
    line = torch.linspace(-1, 1, size)
    slope = sub.uniform(-0.25, 0.25, 2)
    shade = 1 + float(slope[0]) * line[:, None] + float(slope[1]) * line[None, :]
    return torch.cat([(colour * shade).clamp(0, 1), tex.outline(sub, size)[None]])


def backdrop(rng: np.random.Generator, pixels: int, photos: bool, clutter: int) -> tuple[Tensor, int]:
    """A background ``(3, b, b)`` with ``clutter`` patches pasted on it, and the photograph it is made of (or -1)."""
    size, index = int(pixels * 1.5), -1
    kind, inner = rng.random(), int(rng.integers(2**62))
    sub = np.random.default_rng(inner)
    if photos and kind < 0.75:
        index = int(sub.integers(len(tex.photos())))
        image = tex.photo_texture(sub, (size, size), index, low=0.5)
    else:
        image = tex.procedural_texture(sub, (size, size))
    image = image.clone()
    for _ in range(clutter):
        span, fx, fy = sub.uniform(0.08, 0.3), sub.random(), sub.random()
        patch = body(sub, int(span * size), photos)
        n = patch.shape[1]
        top, left = int(fy * max(1, size - n)), int(fx * max(1, size - n))
        spot = image[:, top : top + n, left : left + n]
        spot += (patch[:3, : spot.shape[1], : spot.shape[2]] - spot) * patch[3:, : spot.shape[1], : spot.shape[2]]
    return image, index


def _view(scene: Scene, t: float, size: tuple[int, int]) -> tuple[Array, float]:
    x, y, zoom, angle = _at(scene.camera, t)
    gain = math.exp(zoom)
    c, s = math.cos(angle), math.sin(angle)
    half = min(size) / 2
    matrix = np.array([[c, -s], [s, c]]) * gain * half
    shift = np.array([size[1] / 2, size[0] / 2]) - matrix @ np.array([x, y])
    return np.concatenate([matrix, shift[:, None]], 1), gain * half


def _at(series: Array, t: float) -> Array:
    low = min(max(math.floor(t), 0), len(series) - 1)
    high, part = min(low + 1, len(series) - 1), t - low
    return np.asarray(series[low] + (series[high] - series[low]) * max(part, 0.0))


def _paint(scene: Scene, t: float, size: tuple[int, int], with_mask: bool) -> tuple[Tensor, Tensor | None]:
    """One instant: ``(3, h, w)`` colours and, if asked, ``(h, w)`` uint8 object ids."""
    height, width = size
    view, _ = _view(scene, t, size)
    inverse = np.linalg.inv(view[:, :2])
    origin = inverse @ (np.array([0.5, 0.5]) - view[:, 2])
    theta = np.empty((2, 3))
    theta[:, 0], theta[:, 1] = inverse[:, 0] * width / 2, inverse[:, 1] * height / 2
    theta[:, 2] = origin + inverse @ (np.array([width, height]) / 2 - 0.5)
    grid = F.affine_grid(torch.from_numpy(theta / REACH).float()[None], [1, 1, height, width], align_corners=False)
    frame = F.grid_sample(scene.background[None], grid, padding_mode="reflection", align_corners=False)[0]
    ids = torch.zeros(size, dtype=torch.uint8) if with_mask else None
    for layer in scene.layers:
        centre, half, angle = _at(layer.centre, t), _at(layer.half, t), float(_at(layer.angle, t))
        c, s = math.cos(angle), math.sin(angle)
        local = np.array([[c * half[0], -s * half[1]], [s * half[0], c * half[1]]])
        if layer.fixed:
            scale = min(size) / 2
            matrix, middle = local * scale, centre * scale + np.array([width, height]) / 2
        else:
            matrix, middle = view[:, :2] @ local, view[:, :2] @ centre + view[:, 2]
        reach = np.abs(matrix).sum(1) * 1.15
        left, top = (max(int(v), 0) for v in np.floor(middle - reach))
        right, bottom = (min(int(v), n) for v, n in zip(np.ceil(middle + reach), (width, height), strict=True))
        if right - left < 1 or bottom - top < 1:
            continue
        back = np.linalg.inv(matrix)
        xs, ys = torch.arange(left, right) + 0.5 - middle[0], torch.arange(top, bottom) + 0.5 - middle[1]
        u = float(back[0, 0]) * xs[None, :] + float(back[0, 1]) * ys[:, None]
        v = float(back[1, 0]) * xs[None, :] + float(back[1, 1]) * ys[:, None]
        bend = _at(layer.bend, t)
        if bend[0] or bend[2]:
            u, v = u + bend[0] * torch.sin(2.2 * v + bend[1]), v + bend[2] * torch.sin(2.2 * u + bend[3])
        spot = F.grid_sample(layer.patch[None], torch.stack([u, v], -1).float()[None], align_corners=False)[0]
        alpha = spot[3:]
        if layer.tint is not None:
            spot = (spot * torch.from_numpy(np.append(_at(layer.tint, t), 1.0)).float()[:, None, None]).clamp(0, 1)
        window = frame[:, top:bottom, left:right]
        window += (spot[:3] - window) * alpha
        if ids is not None:
            ids[top:bottom, left:right][alpha[0] > 0.5] = layer.obj_id
    return frame, ids


def _soften(frame: Tensor, sigma: float) -> Tensor:
    half = max(1, math.ceil(2 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    padded = F.pad(frame[:, None], (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[..., None]), kernel[:, :, None])[:, 0]


def render(scene: Scene, times: list[int], size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames ``(len(times), h, w, 3)`` and object ids ``(len(times), h, w)``, both uint8, at whole frame times."""
    frames, masks = np.empty((len(times), *size, 3), np.uint8), np.zeros((len(times), *size), np.uint8)
    for row, t in enumerate(times):
        away = scene.cut is not None and bool(scene.cut[t])
        source = scene.other if away and scene.other is not None else scene
        frame, ids = _paint(source, t, size, True)
        for part in range(1, source.smear):
            frame = frame + _paint(source, t - 0.4 * part / source.smear, size, False)[0]
        frame = frame / source.smear
        if scene.blur > 0:
            frame = _soften(frame, scene.blur * min(size) / 128)
        frame = frame * torch.from_numpy(scene.light[t]).float()[:, None, None] + float(scene.offset[t])
        if scene.noise > 0:
            maker = torch.Generator().manual_seed((scene.seed * 1_000_003 + t) % 2**63)
            frame = frame + torch.randn(frame.shape, generator=maker) * scene.noise
        frames[row] = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        if not away and ids is not None:
            masks[row] = ids.numpy()
    return frames, masks
