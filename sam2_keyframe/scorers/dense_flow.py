"""Dense optical flow: the camera's motion by one affine fit, and each pixel's own motion on top of it.

Both are found coarse to fine and iteratively. The fit starts from the translation that phase correlation finds, so
that motion far beyond the coarsest level's reach is met, and each pixel's own part is a windowed least-squares step.
Of an object, looked at alone, the fit may also start from the way its middle went.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from sam2_keyframe.scorers.pixels import gaussian, window_means

WINDOWS = ((5.0, 1), (4.0, 2), (5.0, 3), (6.0, 3))
"""Standard deviation of the window in pixels, and steps, of the local part by level, from full resolution down."""

NARROW = ((3.0, 1), *WINDOWS[1:])
"""The same on an object alone, whose outline a wide window blurs."""


def translation(a: Tensor, b: Tensor) -> Tensor:
    """Return the (2,) whole-pixel shift (x, y) with a(p) = b(p + shift) of two (h, w) float32 images.

    Source: C. Kuglin and D. Hines, The Phase Correlation Image Alignment Method, 1975.
    """
    height, width = a.shape
    planes = torch.stack([a, b])
    rows, columns = (
        torch.linspace(math.pi / 2 / n, math.pi - math.pi / 2 / n, n, device=a.device).sin() for n in (height, width)
    )
    window = (rows[:, None] * columns).square()
    first, second = torch.fft.rfft2((planes - planes.mean((1, 2), keepdim=True)) * window)
    cross = first.conj() * second
    peak = torch.fft.irfft2(cross / (cross.abs() + 1e-6), s=(height, width)).argmax()
    x, y = peak % width, peak // width
    return torch.stack([torch.where(x > width // 2, x - width, x), torch.where(y > height // 2, y - height, y)])


class _Level:
    """Two (h, w) images of one pyramid level, the (2, h, w) weights of their pixels, and what each step needs."""

    def __init__(self, a: Tensor, b: Tensor, weight: Tensor | None) -> None:
        self.a, self.b, self.weight = a, b, weight
        self.height, self.width = a.shape
        self.side = max(self.height, self.width)
        bordered = pad(a[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
        self.gx = (bordered[1:-1, 2:] - bordered[1:-1, :-2]) / 2
        self.gy = (bordered[2:, 1:-1] - bordered[:-2, 1:-1]) / 2
        self.x = torch.arange(self.width, device=a.device, dtype=torch.float32).expand(self.height, -1)
        self.y = torch.arange(self.height, device=a.device, dtype=torch.float32)[:, None].expand(-1, self.width)
        x, y = (self.x + 0.5) / self.side, (self.y + 0.5) / self.side
        centre = (self.width / 2 / self.side, self.height / 2 / self.side)
        self.basis = torch.stack([torch.ones_like(x), x - centre[0], y - centre[1]])

    def affine(self, parameters: Tensor) -> Tensor:
        """Return the (2, h, w) flow of (2, 3) affine parameters, which are in units of the longer side."""
        return (parameters[:, :, None, None] * self.basis).sum(1) * self.side

    def error(self, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Return a(p) - b(p + flow), and how much that counts: 0 where p + flow lies outside the image, in [0, 1]."""
        grid = torch.stack([(2 * (self.x + flow[0]) + 1) / self.width, (2 * (self.y + flow[1]) + 1) / self.height], -1)
        grid = grid - 1
        layers = self.b[None] if self.weight is None else torch.stack([self.b, self.weight[1]])
        warped = grid_sample(layers[None], grid[None], padding_mode="border", align_corners=False)[0]
        inside = (grid.abs().amax(-1) <= 1).float()
        return self.a - warped[0], inside if self.weight is None else inside * self.weight[0] * warped[1]

    def between(self, weight: Tensor) -> Tensor:
        """Return the (2,) way between the middles of (2, h, w) weights, in units of the longer side."""
        share = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-6)
        places = torch.stack([(share * self.x).sum((1, 2)), (share * self.y).sum((1, 2))])
        return (places[:, 1] - places[:, 0]) / self.side

    def mismatch(self, parameters: Tensor) -> Tensor:
        """Return an affine flow's mean squared error where both images show, and more the less of a that is."""
        error, inside = self.error(self.affine(parameters))
        mean = (error.square() * inside).sum() / inside.sum().clamp(min=1)
        if self.weight is None:
            return torch.where(inside.mean() < 0.25, torch.inf, mean)
        # Pixels that meet none count like those of another texture: else the flow that throws them out wins.
        missing = 1 - inside.sum() / self.weight[0].square().sum().clamp(min=1e-6)
        return mean + 2 * _statistics(self.a, self.weight[0])[1].square() * missing

    def exposure(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gain and the offset that bring b, moved by an affine flow, closest to a."""
        error, inside = self.error(self.affine(parameters))
        weight = inside / (1 + (error / 0.2).square()).square()
        weight = weight / weight.sum().clamp(min=1e-6)
        warped = self.a - error
        mean_a, mean_b = (weight * self.a).sum(), (weight * warped).sum()
        covariance = (weight * (self.a - mean_a) * (warped - mean_b)).sum()
        variance = (weight * (warped - mean_b).square()).sum()
        gain = ((covariance + 1e-5) / (variance + 1e-5)).clamp(0.5, 2)
        return gain, mean_a - mean_b * gain

    def fit(self, parameters: Tensor, steps: int) -> Tensor:
        """Return the affine parameters after robust Gauss-Newton steps."""
        slopes = torch.cat([self.gx * self.basis, self.gy * self.basis]).flatten(1) * self.side
        eye = torch.eye(6, device=slopes.device)
        for _ in range(steps):
            error, inside = self.error(self.affine(parameters))
            weighted = slopes * (inside / (1 + (error / 0.2).square()).square()).flatten()
            normal = weighted @ slopes.T
            damping = 1e-6 * normal.diagonal().mean() + 1e-9
            step, _ = torch.linalg.solve_ex(normal + damping * eye, (weighted * error.flatten()).sum(1))
            parameters = (parameters + step.view(2, 3)).clamp(-1, 1)
        return parameters

    def refine(self, flow: Tensor, own: Tensor, sigma: float, steps: int) -> Tensor:
        """Return each pixel's own (2, h, w) motion on top of the affine flow: constant within its window."""
        radius = math.ceil(3 * sigma)
        weights = gaussian(sigma, radius, flow.device)
        gx, gy = self.gx, self.gy
        for _ in range(steps):
            error, inside = self.error(flow + own)
            target = error + gx * own[0] + gy * own[1]
            sums = torch.stack([gx * gx, gx * gy, gy * gy, gx * target, gy * target]) * inside
            xx, xy, yy, bx, by = window_means(pad(sums, (radius,) * 4), weights)
            xx, yy = xx + 1e-5, yy + 1e-5
            determinant = (xx * yy - xy * xy).clamp(min=1e-10)
            own = torch.stack([yy * bx - xy * by, xx * by - xy * bx]) / determinant
            own = own.clamp(-self.side / 4, self.side / 4)
        return own


def _pyramid(*images: Tensor) -> list[_Level]:
    """Return the levels, full resolution first, down to about 12 pixels on the shorter side, at most five."""
    planes = torch.stack(images)
    levels = [_level(planes)]
    weights = gaussian(1.0, 2, planes.device)
    while len(levels) < 5 and min(planes.shape[1:]) >= 24:
        planes = window_means(pad(planes[None], (2, 2, 2, 2), mode="replicate")[0], weights)
        size = [planes.shape[1] // 2, planes.shape[2] // 2]
        planes = interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
        levels.append(_level(planes))
    return levels


def _level(planes: Tensor) -> _Level:
    # A pixel of a coarse level that is blended with what is not looked at tells little: its weight falls steeply.
    return _Level(planes[0], planes[1], planes[2:].square().square() if len(planes) > 2 else None)


def dense_flow(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the flow with a(p) = b(p + flow(p)).

    Args:
        a: (h, w) float32 luminance in [0, 1].
        b: The same of the other image.
        weight: (2, h, w) float32, how much each pixel of a and of b counts, in [0, 1]. Those of weight 0 do not
            change the flow anywhere. None looks at all.

    Returns:
        (2, h, w) float32: x to the right, y down, in pixels. Where b does not show what a shows (occlusion, beyond
        the border or the weight) it continues the motion around. A gain and an offset of the whole picture, as by a
        change of light, are estimated along with it and do not count as motion.

    Source: the affine fit follows J. Bergen et al., Hierarchical Model-Based Motion Estimation, 1992; the local part
    B. Lucas and T. Kanade, 1981, as a pyramid (J.-Y. Bouguet, 2000).
    """
    weights = (None, None) if weight is None else weight.unbind()
    mean_a, spread_a = _statistics(a, weights[0])
    mean_b, spread_b = _statistics(b, weights[1])
    gain = spread_a / spread_b
    offset = mean_a - mean_b * gain
    b = b * gain + offset
    if weight is not None:
        a, b = (torch.where(part > 0, plane, mean_a) for plane, part in ((a, weight[0]), (b, weight[1])))
    levels = _pyramid(a, b) if weight is None else _pyramid(a, b, *weight)
    finest = next((i for i, level in enumerate(levels) if level.side <= 64), len(levels) - 1)
    middle = levels[finest]
    still = torch.zeros(2, 3, device=a.device)
    moves = [translation(middle.a, middle.b) / middle.side]
    if middle.weight is not None:
        moves.append(middle.between(middle.weight))
    start = still
    for move in moves:
        shift = still + pad(move[:, None], (0, 2))
        start = torch.where(middle.mismatch(shift) < middle.mismatch(start), shift, start)
    # From the coarsest level the fit reaches further, from the next it is not misled by repeating texture.
    fits = [] if weight is None else [start]
    for coarsest in {len(levels) - 1, max(0, len(levels) - 2)}:
        parameters = start
        for level in reversed(levels[min(finest, coarsest) : coarsest + 1]):
            parameters = level.fit(parameters, 5)
        fits.append(parameters)
    best = fits[0]
    for other in fits[1:]:
        best = torch.where(middle.mismatch(other) < middle.mismatch(best), other, best)
    # Less than this the estimate's own error would cost more than the light does.
    more, rest = middle.exposure(best)
    steady = ((more * gain - 1).abs() < 0.05) & ((more * offset + rest).abs() < 0.03)
    more, rest = torch.where(steady, 1 / gain, more), torch.where(steady, -offset / gain, rest)
    own = torch.zeros_like(levels[-1].basis[:2])
    for level, (sigma, steps) in reversed(list(zip(levels, WINDOWS if weight is None else NARROW, strict=False))):
        if own.shape[1:] != level.a.shape:
            scale = level.side / max(own.shape[1:])
            own = interpolate(own[None], level.a.shape, mode="bilinear", align_corners=False)[0] * scale
        level.b = level.b * more + rest
        flow = level.affine(best)
        own = level.refine(flow, own, sigma, steps)
    return flow + own


def _statistics(plane: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean of (h, w) values and their standard deviation, at least 0.01."""
    if weight is None:
        return plane.mean(), plane.std(correction=0).clamp(min=0.01)
    total = weight.sum().clamp(min=1)
    mean = (plane * weight).sum() / total
    return mean, ((plane - mean).square() * weight).sum().div(total).sqrt().clamp(min=0.01)
