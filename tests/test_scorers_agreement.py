"""Scorers against other libraries' implementations, on photographs and on generated motion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sam2_keyframe import scorers as sk
from sam2_keyframe.scorers.dense_flow import dense_flow, translation
from sam2_keyframe.scorers.edges import edges
from sam2_keyframe.scorers.masks import canonical
from sam2_keyframe.types import FrameMemo, History, TrackedFrame

cv2 = pytest.importorskip("cv2")
data = pytest.importorskip("skimage.data")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "brick", "grass", "gravel")


def photo(name: str, size: int = 256) -> np.ndarray:
    """(size, size, 3) uint8 RGB."""
    image = np.asarray(getattr(data, name)())
    image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image[..., :3]
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=cv2.INTER_AREA)


def tracked(image: np.ndarray, mask: np.ndarray | None = None, index: int = 0) -> TrackedFrame:
    """A frame of (h, w, 3) uint8 pixels and, at a quarter of 1024 px, a (256, 256) mask."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    logits = torch.full((1, 1, 256, 256), -8.0)
    if mask is not None:
        logits[0, 0, torch.from_numpy(mask)] = 8.0
    ones = torch.ones(1, 1)
    features = torch.zeros(1, 64, 64, 64)
    return TrackedFrame(
        index, None, features, logits, logits, ones, torch.ones(1, 256), ones, FrameMemo(lambda: pixels)
    )


def change(scorer: Any, before: TrackedFrame, now: TrackedFrame) -> float:
    scorer.score(before, History())
    return float(scorer.score(now, History(keyframe=before.reference(), previous=before.reference())))


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def edited(image: np.ndarray, kind: str) -> np.ndarray:
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), 2.0)
    if kind == "noise":
        return np.clip(image + np.random.default_rng(0).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    if kind == "dark":
        return (image * 0.6).astype(np.uint8)
    return np.roll(image, (3, 5), (0, 1))


@pytest.mark.parametrize("kind", ["blur", "noise", "dark", "shift"])
@pytest.mark.parametrize("name", PHOTOS[:6])
def test_ssim_equals_scikit_image(name: str, kind: str) -> None:
    from skimage.metrics import structural_similarity

    a = photo(name)
    b = edited(a, kind)
    luma = [(np.float64([0.299, 0.587, 0.114]) * image / 255).sum(-1) for image in (a, b)]
    theirs = structural_similarity(*luma, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert change(sk.SSIM(), tracked(a), tracked(b)) == pytest.approx(1 - theirs, abs=1e-5)


@pytest.mark.parametrize("level", [0, 128, 250])
def test_ssim_of_noise_of_one_level_is_within_3e_5_of_scikit_image(level: int) -> None:
    """The worst case of the luminance's 15 bits: variances far below the constant that steadies the ratio."""
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(level)
    a, b = (rng.integers(level, level + 2, (256, 256, 3)).astype(np.uint8) for _ in range(2))
    luma = [(np.float64([0.299, 0.587, 0.114]) * image / 255).sum(-1) for image in (a, b)]
    theirs = structural_similarity(*luma, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert change(sk.SSIM(), tracked(a), tracked(b)) == pytest.approx(1 - theirs, abs=3e-5)


def reference_histogram(image: np.ndarray, space: str, bins: int) -> np.ndarray:
    real = image.astype(np.float32) / 255
    if space == "hsv":
        planes, top = cv2.cvtColor(real, cv2.COLOR_RGB2HSV), (360.0, 1.0 + 1e-6)
        counts = cv2.calcHist([planes], [0, 1], None, [bins, bins], [0, top[0], 0, top[1]])
    elif space == "rgb":
        counts = cv2.calcHist([real], [0, 1, 2], None, [bins] * 3, [0, 1.0 + 1e-6] * 3)
    else:
        luma = (np.float32([0.299, 0.587, 0.114]) * real).sum(-1)
        counts = cv2.calcHist([luma], [0], None, [bins], [0, 1.0 + 1e-6])
    return (counts / counts.sum()).astype(np.float32)


@pytest.mark.parametrize("space", ["hsv", "rgb", "luminance"])
@pytest.mark.parametrize("metric", ["bhattacharyya", "chi_square", "correlation", "intersection"])
def test_histograms_equal_opencv(space: Any, metric: Any) -> None:
    # Eleven bins, on whose edges few values lie: there OpenCV goes by rounding. Its correlation needs flat counts.
    a, b = photo("astronaut"), photo("coffee")
    first, second = (reference_histogram(image, space, 11).ravel() for image in (a, b))
    theirs = {
        "bhattacharyya": lambda: cv2.compareHist(first, second, cv2.HISTCMP_BHATTACHARYYA),
        "chi_square": lambda: cv2.compareHist(first, second, cv2.HISTCMP_CHISQR_ALT) / 4,
        "correlation": lambda: 1 - cv2.compareHist(first, second, cv2.HISTCMP_CORREL),
        "intersection": lambda: 1 - cv2.compareHist(first, second, cv2.HISTCMP_INTERSECT),
    }[metric]()
    ours = change(sk.Histogram(space, metric, bins=11), tracked(a), tracked(b))
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert theirs > 0.05


def test_frame_difference_equals_numpy() -> None:
    a, b = photo("chelsea"), photo("coffee")
    colour = np.abs(a.astype(float) - b).mean() / 255
    assert change(sk.FrameDifference(colour=True, noise_floor=0), tracked(a), tracked(b)) == pytest.approx(colour, 1e-5)
    luma = [(np.float64([0.299, 0.587, 0.114]) * image / 255).sum(-1) for image in (a, b)]
    gap = np.abs(luma[0] - luma[1])
    assert change(sk.FrameDifference(), tracked(a), tracked(b)) == pytest.approx((gap * (gap > 0.02)).mean(), abs=2e-4)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("threshold", [60, 100])
def test_edges_equal_opencv(name: str, threshold: int) -> None:
    plane = grey(photo(name))
    theirs = cv2.Canny(plane, threshold, threshold, apertureSize=3, L2gradient=True) > 0
    ours = edges(torch.from_numpy(plane).float(), threshold).numpy()
    # OpenCV rounds the tangent of 22.5 degrees to 15 bits; a handful of pixels lie between.
    assert (ours != theirs).mean() < 1e-4
    assert theirs.mean() > 0.005


@pytest.mark.parametrize("shift", [0, 2, 7])
def test_edge_change_ratio_equals_its_definition(shift: int) -> None:
    a = photo("coffee")
    b = np.roll(photo("coffee"), shift, 1)
    b[:60, :60] = 128
    planes = [np.repeat(grey(image)[..., None], 3, 2) for image in (a, b)]
    old, new = (cv2.Canny(plane[..., 0], 100, 100, apertureSize=3, L2gradient=True) > 0 for plane in planes)
    box = np.ones((5, 5), np.uint8)
    entered = (new & ~(cv2.dilate(old.astype(np.uint8), box) > 0)).sum() / new.sum()
    left = (old & ~(cv2.dilate(new.astype(np.uint8), box) > 0)).sum() / old.sum()
    ours = change(sk.EdgeChangeRatio(), tracked(planes[0]), tracked(planes[1]))
    assert ours == pytest.approx(max(entered, left), abs=1e-3)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (9, -15), (-40, 28), (3, 90)])
def test_compensated_edges_equal_their_definition_under_a_moving_camera(down: int, right: int) -> None:
    big = np.repeat(grey(photo("coffee", 440))[..., None], 3, 2)
    a = big[92:348, 92:348].copy()
    b = big[92 + down : 348 + down, 92 + right : 348 + right].copy()
    b[100:140, 100:140] = 128
    old, new = (cv2.Canny(image[..., 0].copy(), 100, 100, apertureSize=3, L2gradient=True) > 0 for image in (a, b))
    seen, met = np.zeros((2, 256, 256), bool)
    rows, columns = (slice(max(0, -n), 256 - max(0, n)) for n in (down, right))
    seen[rows, columns] = True
    met[rows, columns] = old[max(0, down) : 256 + min(0, down), max(0, right) : 256 + min(0, right)]
    box = np.ones((5, 5), np.uint8)
    full = cv2.erode(np.uint8(seen), box, borderValue=1) > 0  # where the whole neighbourhood can be compared
    dilated = [cv2.dilate(np.uint8(plane), box) > 0 for plane in (met, new)]
    entered = (new & full & ~dilated[0]).sum() / (new & full).sum()
    left = (met & ~dilated[1]).sum() / met.sum()
    ours = change(sk.EdgeChangeRatio(compensate=True), tracked(a), tracked(b))
    assert ours == pytest.approx(max(entered, left), abs=5e-3)
    assert ours < 0.15
    assert change(sk.EdgeChangeRatio(), tracked(a), tracked(b)) > (0.2 if down else 0.01)


@pytest.mark.parametrize("compensate", [False, True])
def test_edges_on_one_frame_alone_are_one_and_on_none_are_zero(compensate: bool) -> None:
    scorer = sk.EdgeChangeRatio(compensate=compensate)
    full, flat = photo("coffee"), np.full((256, 256, 3), 90, np.uint8)
    assert change(scorer, tracked(full), tracked(flat)) == 1
    assert change(scorer, tracked(flat), tracked(full)) == 1
    assert change(scorer, tracked(flat), tracked(flat)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_mask_iou_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (cv2.GaussianBlur(rng.normal(size=(256, 256)), (0, 0), 9) > 0.01 for _ in range(2))
    image = photo("coins")
    jaccard = pytest.importorskip("scipy.spatial.distance").jaccard(a.ravel(), b.ravel())
    assert change(sk.MaskIoU(), tracked(image, a), tracked(image, b)) == pytest.approx(jaccard, abs=1e-6)


def test_canonical_mask_has_the_moments_scikit_image_measures() -> None:
    measure = pytest.importorskip("skimage.measure")
    mask = np.zeros((256, 256), bool)
    mask[40:90, 100:180] = True
    mask[60:70, 120:150] = False
    out = canonical(torch.from_numpy(mask)).numpy()
    centre = measure.regionprops((out > 0.5).astype(int))[0].centroid
    assert centre == pytest.approx((47.5, 47.5), abs=0.5)
    assert out.sum() == pytest.approx((96 / 4) ** 2, rel=0.03)


def moved(big: np.ndarray, kind: str, amount: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two (256, 256) uint8 views of a larger picture, and the (2, 256, 256) flow from the first to the second."""
    y, x = np.mgrid[:256, :256].astype(np.float32) - 127.5
    if kind == "translation":
        dx, dy = amount * np.cos(0.5), amount * np.sin(0.5)
        flow, source = np.stack([np.full_like(x, dx), np.full_like(y, dy)]), (x - dx, y - dy)
    elif kind == "rotation":
        c, s = np.cos(np.deg2rad(amount)), np.sin(np.deg2rad(amount))
        flow, source = np.stack([c * x - s * y - x, s * x + c * y - y]), (c * x + s * y, c * y - s * x)
    else:
        flow, source = np.stack([(amount - 1) * x, (amount - 1) * y]), (x / amount, y / amount)
    middle = (big.shape[0] - 1) / 2
    views = [
        cv2.remap(big, np.float32(u + middle), np.float32(v + middle), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        for u, v in ((x, y), source)
    ]
    return views[0], views[1], flow


MOTIONS = [("translation", n) for n in (1, 2, 5, 10, 20, 30)]
MOTIONS += [("rotation", 2), ("rotation", 10), ("zoom", 0.9), ("zoom", 1.1), ("zoom", 1.25)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "amount"), MOTIONS)
def test_flow_is_no_worse_than_opencv_and_scikit_image(kind: str, amount: float) -> None:
    """Mean end-point error over nine photographs; Farneback with five levels, both others otherwise as they come."""
    from skimage.registration import optical_flow_ilk

    errors: dict[str, list[float]] = {"ours": [], "farneback": [], "ilk": []}
    for name in PHOTOS:
        a, b, truth = moved(grey(photo(name, 400)), kind, amount)
        rows, columns = optical_flow_ilk(a / 255, b / 255)
        flows = {
            "ours": dense_flow(torch.from_numpy(a).float() / 255, torch.from_numpy(b).float() / 255).numpy(),
            "farneback": cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 5, 15, 3, 5, 1.2, 0).transpose(2, 0, 1),
            "ilk": np.stack([columns, rows]),
        }
        for key, flow in flows.items():
            errors[key].append(float(np.hypot(*(flow - truth)).mean()))
    mean = {key: float(np.mean(values)) for key, values in errors.items()}
    assert mean["ours"] <= min(mean["farneback"], mean["ilk"]), mean


@pytest.mark.parametrize("offset", [(0, 0), (7, -3), (-30, 12)])
def test_phase_correlation_finds_whole_pixel_shifts(offset: tuple[int, int]) -> None:
    big = grey(photo("camera", 400))
    x, y = offset
    a, b = big[50:306, 50:306], big[50 - y : 306 - y, 50 - x : 306 - x]
    found = translation(torch.from_numpy(a).float() / 255, torch.from_numpy(b.copy()).float() / 255)
    assert found.tolist() == [x, y]
