"""Who appears in a generated clip, how it moves and what befalls it: the challenges of :mod:`.synthetic`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sam2_keyframe.synthetic import textures as tex
from sam2_keyframe.synthetic.scene import Array, Layer, Scene, backdrop, body, drift, render, smooth, wander


@dataclass(frozen=True)
class Knobs:
    """What a challenge asks for: ranges of speeds a frame, sizes, counts, and which events happen."""

    speed: tuple[float, float] = (0.01, 0.035)
    radius: tuple[float, float] = (0.34, 0.72)
    bend: tuple[float, float] = (0.0, 0.10)
    growth: tuple[float, float] = (0.02, 0.12)
    spin: tuple[float, float] = (0.0, 0.12)
    limbs: float = 0.35
    pan: tuple[float, float] = (0.0, 0.02)
    zoom: tuple[float, float] = (0.0, 0.06)
    shake: tuple[float, float] = (0.0, 0.006)
    light: tuple[float, float] = (0.0, 0.06)
    twins: tuple[int, int] = (0, 0)
    others: tuple[int, int] = (0, 2)
    posts: tuple[int, int] = (0, 1)
    clutter: tuple[int, int] = (0, 5)
    smear: float = 0.0
    hide: bool = False
    leave: bool = False
    cut: bool = False
    still: float = 0.15
    ways: tuple[str, ...] = ()
    """How the first object goes away for long, chosen anew each time: "leaving", "partial", "filled"."""
    absences: tuple[int, int] = (30, 80)
    """Shortest and longest absence in frames, as the masks show it."""
    ageing: float = 0.0
    """How far colour, pose and scale of an object, not of its look-alikes, drift over hundreds of frames."""


BASE = Knobs()
KNOBS: dict[str, Knobs] = {
    "static": replace(BASE, speed=(0.0, 0.004), pan=(0.0, 0.002), spin=(0.0, 0.02), still=0.8),
    "deformation": replace(BASE, bend=(0.14, 0.3), growth=(0.06, 0.2), spin=(0.05, 0.25), limbs=0.8),
    "scale": replace(BASE, growth=(0.3, 0.5), zoom=(0.1, 0.2), radius=(0.34, 0.6)),
    "fast": replace(BASE, speed=(0.07, 0.13), pan=(0.01, 0.03), smear=0.7),
    "occlusion": replace(BASE, hide=True, posts=(0, 2)),
    "leave_and_return": replace(BASE, leave=True),
    "look_alike": replace(BASE, twins=(1, 2), others=(0, 1), speed=(0.01, 0.03)),
    "illumination": replace(BASE, light=(0.2, 0.35)),
    "camera_shake": replace(BASE, shake=(0.02, 0.045), pan=(0.01, 0.03), smear=0.4),
    "scene_cut": replace(BASE, cut=True),
    "long": replace(BASE, hide=True, leave=True, twins=(0, 1), light=(0.05, 0.15), posts=(0, 1)),
}
AWAY = replace(
    BASE,
    radius=(0.3, 0.5),
    light=(0.04, 0.12),
    growth=(0.05, 0.15),
    bend=(0.05, 0.18),
    twins=(0, 1),
    still=0.0,
    ageing=1,
)
WAYS = ("leaving", "partial", "filled")
KNOBS["absence"] = replace(AWAY, ways=WAYS)
KNOBS |= {f"absence_{way}": replace(AWAY, ways=(way,)) for way in WAYS}

SHORT = 96
"""Frames up to which a clip's hidden spans are of 3 to 8 frames, one in 24; longer ones have longer ones, not more."""


def _windows(rng: np.random.Generator, frames: int, kinds: list[str], grow: bool = False) -> list[tuple[str, int, int]]:
    """Spans (kind, first, last + 1) of hidden frames, one in about 24 frames, apart from one another and the ends.

    With ``grow`` a clip of n times :data:`SHORT` frames has spans n times as long, and as far apart.
    """
    spans = []
    scale = max(1.0, frames / SHORT) if grow else 1.0
    count = max(1, round(frames / (24 * scale)))
    pitch = frames / count
    for index in range(count):
        length = min(round(scale * int(rng.integers(3, 9))), max(1, int(pitch) // 3))
        low, high = index * pitch + 0.2 * pitch, (index + 1) * pitch - 0.12 * pitch - length
        first = round(rng.uniform(low, max(low, high)))
        spans.append((kinds[int(rng.integers(len(kinds)))], first, min(first + length, frames)))
    return spans


def shortest(absences: tuple[int, int]) -> int:
    """Frames a clip with one absence of this range needs at least."""
    return 20 + absences[0] + 14


def _absences(rng: np.random.Generator, frames: int, knobs: Knobs) -> list[tuple[str, int, int]]:
    """Spans (way, first, last + 1) of frames that the object is to be away, 25 to 45 frames apart; at least one."""
    low, high = knobs.absences
    spans: list[tuple[str, int, int]] = []
    first = min(int(rng.integers(18, 40)), frames - low - 14)
    while (room := frames - 12 - first) >= low:
        length = int(rng.integers(low, min(high - 10, room) + 1))
        spans.append((str(rng.choice(knobs.ways)), first, first + length))
        first += length + int(rng.integers(25, 46))
    return spans


def _ramp(frames: int, first: int, last: int, width: float) -> tuple[Array, Array]:
    """Two series in [0, 1]: the way in before ``first`` and the way out after ``last``."""
    t = np.arange(frames, dtype=float)
    into, out = np.clip((first - t) / width, 0, 1), np.clip((t - (last - 1)) / width, 0, 1)
    return into * into * (3 - 2 * into), out * out * (3 - 2 * out)


def _range(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _count(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


class Maker:
    """Draws everything of one scene, in a fixed order, from one generator."""

    def __init__(self, rng: np.random.Generator, knobs: Knobs, frames: int, size: tuple[int, int], photos: bool):
        self.rng, self.knobs, self.frames, self.size, self.photos = rng, knobs, frames, size, photos
        self.pixels = min(size)
        self.aspect = np.array([size[1] / self.pixels, size[0] / self.pixels])
        self.still = self._clock()
        self.away: list[tuple[str, int, int, list[Layer]]] = []

    def _clock(self) -> Array:
        """Time as the objects see it: it stands still during static stretches."""
        run = np.ones(self.frames)
        if self.rng.random() < self.knobs.still:
            first = int(self.rng.integers(0, max(1, self.frames // 2)))
            run[first : first + int(self.rng.integers(4, max(5, self.frames // 2)))] = 0.0
        clock: Array = np.cumsum(smooth(run, 0.7)) - run[0]
        return clock

    def warp(self, series: Array) -> Array:
        """A series over frames, replayed on the objects' clock."""
        low = np.clip(np.floor(self.still).astype(int), 0, self.frames - 1)
        high = np.minimum(low + 1, self.frames - 1)
        part = (self.still - low).clip(0, 1)
        part = part.reshape(-1, *([1] * (series.ndim - 1)))
        return np.asarray(series[low] * (1 - part) + series[high] * part)

    def thing(self, obj_id: int, avoid: int, like: list[Layer] | None = None) -> list[Layer]:
        """A moving thing: its main layer and perhaps limbs; ``like`` gives another thing's patches."""
        rng, knobs, frames = self.rng, self.knobs, self.frames
        radius = _range(rng, knobs.radius)
        bound = np.maximum(self.aspect - 0.5 * radius, 0.15)
        start = rng.uniform(-0.8, 0.8, 2) * bound
        path = self.warp(wander(rng, frames, _range(rng, knobs.speed), start, bound))
        size = radius * np.exp(self.warp(drift(rng, frames, _range(rng, knobs.growth), 4.0)).clip(-0.7, 0.6))
        stretch = np.exp(rng.uniform(-0.25, 0.25) + self.warp(drift(rng, frames, 0.4 * _range(rng, knobs.bend), 3.0)))
        half = np.stack([size * np.sqrt(stretch), size / np.sqrt(stretch)], 1)
        angle = rng.uniform(-0.6, 0.6) + self.warp(drift(rng, frames, 2 * _range(rng, knobs.spin), 3.0))
        amount = rng.uniform(0.3, 1.0, 2) * _range(rng, knobs.bend)
        phase = rng.uniform(0, 2 * math.pi, 2) + np.outer(self.still, rng.uniform(-0.7, 0.7, 2))
        bend = np.stack([np.full(frames, amount[0]), phase[:, 0], np.full(frames, amount[1]), phase[:, 1]], 1)
        pixels = int(2.2 * radius * self.pixels / 2)
        patch = like[0].patch if like else body(rng, pixels, self.photos, avoid)
        main = Layer(patch, path, half, angle, obj_id, bend)
        limbs = len(like) - 1 if like else (int(rng.integers(1, 4)) if rng.random() < knobs.limbs else 0)
        layers = []
        for index in range(limbs):
            share = rng.uniform(0.3, 0.6)
            side, swing = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.7)
            turn = side + swing * np.sin(rng.uniform(0.2, 0.8) * self.still + rng.uniform(0, 6.3))
            place = rng.uniform(0.45, 0.75)
            direction = np.stack([np.cos(turn + angle), np.sin(turn + angle)], 1)
            limb = like[index + 1].patch if like else body(rng, int(pixels * share), self.photos, avoid)
            if not like and rng.random() < 0.5:
                limb = limb.clone()
                limb[:3] = tex.resize(patch[:3], (limb.shape[1], limb.shape[2]))
            limb_half = np.stack([size * share * 1.2, size * share * 0.7], 1)
            layers.append(Layer(limb, path + direction * size[:, None] * place, limb_half, turn + angle, obj_id))
        return [main, *layers]

    def hide(self, target: list[Layer], first: int, last: int) -> Layer:
        """Scenery that slides before ``target``, covers it over frames ``first`` to ``last`` - 1, and slides off."""
        rng = self.rng
        span = slice(max(0, first - 1), min(self.frames, last + 1))
        extra = 0.35 if len(target) > 1 else 0.0
        reach = 1.25 * max(float(layer.half[span].max()) for layer in target)
        reach += extra * float(target[0].half[span].max())
        heading = rng.uniform(0, 2 * math.pi)
        way = np.array([math.cos(heading), math.sin(heading)])
        into, out = _ramp(self.frames, first, last, rng.uniform(3, 6))
        travel = 2.3 * reach + 2.2
        slide = (out * rng.choice([-1, 1]) - into)[:, None] * way * travel
        half = np.tile(reach * np.array([rng.uniform(1.45, 1.8), rng.uniform(1.45, 1.8)]), (self.frames, 1))
        patch = body(rng, int(2.2 * reach * self.pixels / 2), self.photos).clone()
        line = np.abs(np.linspace(-1, 1, patch.shape[1]))
        power = rng.uniform(3, 8)
        level = (line[:, None] ** power + line[None, :] ** power) ** (1 / power)
        side = (patch.shape[1], patch.shape[2])
        if self.photos and rng.random() < 0.6:
            patch[:3] = tex.resize(tex.photo_texture(rng, (64, 64), int(rng.integers(len(tex.photos())))), side)
        else:
            patch[:3] = tex.procedural_texture(rng, side)
        patch[3] = torch.from_numpy((level < 0.97).astype(np.float32))
        return Layer(patch, smooth(target[0].centre, 1.0) + slide, half, np.full(self.frames, rng.uniform(-0.6, 0.6)))

    def age(self, target: list[Layer]) -> None:
        """Let a thing's own colour, pose and scale drift over hundreds of frames; in frame 0 it is as it was."""
        rng, t = self.rng, np.arange(self.frames)

        def slow(low: float, high: float) -> Array:
            amount = self.knobs.ageing * rng.uniform(low, high) * rng.choice([-1, 1])
            return np.asarray(amount * np.sin(2 * math.pi * t / rng.uniform(250, 600)))

        turn, scale, tint = slow(0.3, 1.0), np.exp(slow(0.05, 0.25)), np.stack([slow(0.1, 0.3) for _ in range(3)], 1)
        c, s = np.cos(turn) * scale, np.sin(turn) * scale
        middle = target[0].centre
        for layer in target:
            x, y = (layer.centre - middle).T
            layer.centre = middle + np.stack([c * x - s * y, s * x + c * y], 1)
            layer.half, layer.angle = layer.half * scale[:, None], layer.angle + turn
            layer.tint = np.exp(tint)

    def screen(self, follow: list[Layer], first: int, last: int) -> Layer:
        """Scenery before a thing over frames ``first`` to ``last`` - 1 and little else; before the whole view if none.

        It slides in over a few frames and out again.
        """
        rng = self.rng
        path: NDArray[np.float64] = np.zeros((self.frames, 2))
        half = 1.15 * self.aspect
        if follow:
            span = slice(max(0, first - 1), min(self.frames, last + 1))
            path = smooth(follow[0].centre, 1.0)
            ends = [np.abs(x.centre - follow[0].centre).max(1) + 1.2 * x.half.max(1) for x in follow]
            half = np.full(2, max(float(end[span].max()) for end in ends))
        half = half * rng.uniform(1.05, 1.2, 2)
        into, out = _ramp(self.frames, first, last, rng.uniform(4, 9))
        heading = rng.uniform(0, 2 * math.pi)
        way = np.array([math.cos(heading), math.sin(heading)])
        way *= (1.3 * self.aspect.max() + 1.0 + 1.6 * half.max()) / np.abs(way).max()
        slide = (out * rng.choice([-1, 1]) - into)[:, None] * way
        side = int(np.clip(half.max() * self.pixels, 24, 256))
        if self.photos and rng.random() < 0.6:
            colour = tex.photo_texture(rng, (side, side), int(rng.integers(len(tex.photos()))))
        else:
            colour = tex.procedural_texture(rng, (side, side))
        patch = torch.cat([colour, torch.ones(1, side, side)])
        angle = np.full(self.frames, rng.uniform(-0.08, 0.08) if follow else 0.0)
        return Layer(patch, path + slide, np.tile(half, (self.frames, 1)), angle, fixed=not follow)

    def leave(self, follow: list[Layer], camera: Array, first: int, last: int) -> None:
        """Send a thing out of view before frame ``first``, and back after frame ``last`` - 1."""
        rng, frames = self.rng, self.frames
        into, out = _ramp(frames, first, last, rng.uniform(4, 8))
        heading = rng.uniform(0, 2 * math.pi)
        away = np.array([math.cos(heading), math.sin(heading)])
        away /= np.abs(away / self.aspect).max()
        gone = (1 - into) * (1 - out)
        side = np.where(np.arange(frames) < (first + last) / 2, 1.0, float(rng.choice([-1, 1])))
        room = 1.3 + 2.2 * max(float(layer.half.max()) for layer in follow)
        spot = camera[:, :2] + away * room * side[:, None] / np.exp(camera[:, 2:3]).clip(max=1.0)
        for layer in follow:
            shift = layer.centre - follow[0].centre if layer is not follow[0] else 0.0
            layer.centre = layer.centre + gone[:, None] * (spot + shift - layer.centre)

    def post(self) -> Layer:
        """A narrow piece of scenery that stands in front of everything."""
        rng = self.rng
        upright = rng.random() < 0.7
        patch = body(rng, self.pixels // 2, self.photos).clone()
        patch[3] = 1.0
        half = np.array([rng.uniform(0.03, 0.1), 2.6]) if upright else np.array([2.6, rng.uniform(0.03, 0.1)])
        place = np.tile(rng.uniform(-0.8, 0.8, 2) * self.aspect, (self.frames, 1))
        return Layer(patch, place, np.tile(half, (self.frames, 1)), np.full(self.frames, rng.uniform(-0.25, 0.25)))

    def scene(self, objects: int, seed: int) -> Scene:
        """One scene with ``objects`` objects and the events of the challenge."""
        rng, knobs, frames = self.rng, self.knobs, self.frames
        background, avoid = backdrop(rng, int(1.6 * self.pixels), self.photos, _count(rng, knobs.clutter))
        pan = wander(rng, frames, _range(rng, knobs.pan), np.zeros(2), np.full(2, 0.5))
        shake = (
            smooth(rng.standard_normal((frames, 4)), 0.6) * _range(rng, knobs.shake) * np.array([1.5, 1.5, 0.5, 0.6])
        )
        zoom = drift(rng, frames, _range(rng, knobs.zoom), 5.0).clip(-0.25, 0.5)
        camera = np.concatenate([pan, zoom[:, None], drift(rng, frames, 0.02, 5.0)[:, None]], 1) + shake
        targets = [self.thing(index + 1, avoid) for index in range(objects)]
        back = [self.thing(0, -1) for _ in range(_count(rng, knobs.others))]
        twins = [self.thing(0, avoid, like=targets[0]) for _ in range(_count(rng, knobs.twins))]
        front = [self.post() for _ in range(_count(rng, knobs.posts))]
        hidden = [k for k in ("hide", "leave") if getattr(knobs, k)]
        for index, target in enumerate(targets):
            follow = [layer for layer in target]
            if not hidden or (index and rng.random() < 0.4):
                continue
            for kind, first, last in _windows(rng, frames, hidden, grow=knobs.leave):
                if kind == "hide":
                    front.append(self.hide(follow, first, last))
                    continue
                self.leave(follow, camera, first, last)
        for index, target in enumerate(targets if knobs.ways else []):
            self.age(target)
            if index and rng.random() < 0.4:
                continue
            for way, first, last in _absences(rng, frames, knobs):
                if way == "leaving":
                    self.leave(target, camera, first, last)
                else:
                    front.append(self.screen(target if way == "partial" else [], first, last))
                if not index:
                    self.away.append((way, first, last, front[-1:]))
        order = [*back, *twins, *targets]
        if knobs.twins[1] or objects > 1:
            order = [*back, *[[*twins, *targets][i] for i in rng.permutation(len(twins) + len(targets))]]
        light = np.stack([drift(rng, frames, 0.25 * _range(rng, knobs.light), 4.0) for _ in range(3)], 1)
        amount = _range(rng, knobs.light)
        light = np.exp((light + drift(rng, frames, amount, 4.0)[:, None]).clip(-0.7, 0.45))
        return Scene(
            background,
            [layer for thing in order for layer in thing] + front,
            camera,
            light,
            drift(rng, frames, 0.15 * amount, 4.0).clip(-0.1, 0.1),
            blur=_range(rng, (0.3, 0.8)) if rng.random() < 0.5 else 0.0,
            noise=_range(rng, (0.0, 0.03)),
            seed=seed,
            smear=3 if rng.random() < knobs.smear else 1,
        )


def runs(hidden: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Spans (first, last + 1) of frames where it is True.

    >>> runs(np.array([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hidden, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _absent(scene: Scene, maker: Maker, size: tuple[int, int]) -> bool:
    """Whether the masks show the first object away as asked, and well seen before and after; nothing else counts."""
    low, high = maker.knobs.absences
    scene = replace(scene, smear=1, blur=0.0, noise=0.0)  # masks have none
    share = (render(scene, list(range(maker.frames)), size)[1] == 1).mean((1, 2))
    spans = runs(share == 0)
    if len(spans) != len(maker.away) or share[: spans[0][0]].mean() < 0.015:
        return False
    for (start, stop), (way, first, last, screen) in zip(spans, maker.away, strict=True):
        back = share[stop : stop + 30]
        if not (low <= stop - start <= high and start <= first and last <= stop) or len(back) < 8:
            return False
        if back[5:].mean() < 0.012:
            return False
        if way != "leaving":
            alone = replace(scene, layers=[replace(layer, obj_id=1) for layer in screen])
            covered = (render(alone, [first, (first + last) // 2, last - 1], size)[1] == 1).mean((1, 2))
            if covered.min() < 1 if way == "filled" else covered.max() > 0.75:
                return False
    return True


def build(knobs: Knobs, salt: tuple[int, ...], frames: int, size: tuple[int, int], objects: int, photos: bool) -> Scene:
    """The first scene of a seed whose first frame shows every object well."""
    scene = None
    for attempt in range(200 if knobs.ways else 40):
        rng = np.random.default_rng([*salt, attempt])
        maker = Maker(rng, knobs, frames, size, photos)
        scene = maker.scene(objects, int(rng.integers(2**40)))
        small = (48 * size[0] // min(size), 48 * size[1] // min(size))
        first = render(scene, [0], small)[1][0]
        lone = [replace(scene, layers=[x for x in scene.layers if x.obj_id == i + 1]) for i in range(objects)]
        areas = [(int((first == i + 1).sum()), int((render(s, [0], small)[1] > 0).sum())) for i, s in enumerate(lone)]
        shown = all(seen > 0.015 * first.size and seen > 0.7 * whole for seen, whole in areas)
        if shown and (not knobs.ways or _absent(scene, maker, small)):
            break
    if scene is None or (knobs.ways and attempt == 199):
        raise RuntimeError("no scene")
    if knobs.cut:
        scene.cut = np.zeros(frames, bool)
        for _, start, stop in _windows(rng, frames, ["cut"]):
            scene.cut[start:stop] = True
        scene.other = Maker(rng, BASE, frames, size, photos).scene(1, int(rng.integers(2**40)))
        scene.other.layers = [layer for layer in scene.other.layers if layer.obj_id == 0]
    return scene
