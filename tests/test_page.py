"""The page of a run: what it holds, what becomes of broken ones, and how it behaves in a browser."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from commandline import FRAMES, folder, out, track  # noqa: F401
from PIL import Image

from sam2_keyframe import make_method
from sam2_keyframe.app import cli
from sam2_keyframe.app.output import write_mask
from sam2_keyframe.app.page import PAGE, Page, read_page, view
from sam2_keyframe.bank.statistics import FrameStats, Occupancy

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def runs(clip: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of two objects under each of two methods."""
    place = tmp_path_factory.mktemp("runs")
    write_mask(place / "mask.png", (clip.masks[0] == 1).astype(np.uint8))
    prompts = ["--mask", place / "mask.png", "--box", "2@1:10,10,40,30"]
    for name in ("stock", "keyframe"):
        assert track(folder, place / name, *prompts, "--method", name) == 0
    return {name: place / name for name in ("stock", "keyframe")}


def painted(run: dict[str, Any], obj_id: str, i: int) -> np.ndarray:
    """Return the mask that the outlines of a frame enclose, drawn as the page draws them: every second line counts."""
    image = np.zeros(run["size"][::-1], np.uint8)
    parts = [
        np.cumsum(np.array(part).reshape(-1, 2), 0).astype(np.int32) for part in run["objects"][obj_id]["masks"][i]
    ]
    cv2.drawContours(image, parts, -1, 1, cv2.FILLED)
    return image > 0


@pytest.mark.slow
def test_page_holds_what_the_other_files_of_the_run_hold(runs: dict[str, Path]) -> None:
    (run,), films = read_page(runs["keyframe"])
    assert run["frames"] == list(range(FRAMES))
    with (runs["keyframe"] / "frames.csv").open() as file:
        rows = {(row["object"], int(row["frame"])): row for row in csv.DictReader(file)}
    for obj_id, each in run["objects"].items():
        for t in run["frames"]:
            row = rows.get((obj_id, t))
            if row is None:  # before the object's first prompt
                assert (obj_id, t) == ("2", 0)
                assert not each["prompted"][t]
                continue
            assert each["prompted"][t] == int(row["prompted"])
            if each["prompted"][t]:
                continue
            assert each["attended"][t] == [int(s) for s in row["attended"].split()]
            assert each["keyframe"][t] == int(row["keyframe"])
            assert each["stock_tokens"][t] == int(row["stock_tokens"])
            assert each["mib"][t] == pytest.approx(int(row["bytes"]) / 2**20, abs=1e-3)
            for name in ("mask_iou", "predicted_iou", "object_score", "stability", "agreement", "area"):
                value = float(row[name]) if row[name] else None
                assert each["scores"][name][t] == (value if value is None else pytest.approx(value, rel=1e-3))
    for t in run["frames"]:
        ids = np.asarray(Image.open(runs["keyframe"] / "masks" / f"{t:05d}.png"))
        for obj_id in run["objects"]:
            mask = painted(run, obj_id, t)
            union = (mask | (ids == int(obj_id))).sum()
            assert (mask != (ids == int(obj_id))).sum() <= 0.02 * union, "outlines of the video's size are exact"
    with av.open(io.BytesIO(films[run["video"]])) as film:
        assert sum(1 for _ in film.decode(video=0)) == FRAMES


def test_page_is_small_and_one_file(runs: dict[str, Path]) -> None:
    text = (runs["keyframe"] / PAGE).read_text()
    _, films = read_page(runs["keyframe"])
    assert len(text) - 4 / 3 * sum(map(len, films.values())) < 3e6
    assert "http://" not in text
    assert "https://" not in text
    assert not (runs["keyframe"] / "page.mp4").exists()


@pytest.mark.slow
def test_long_videos_of_many_objects_stay_below_three_megabytes(tmp_path: Path) -> None:
    """Every n-th frame is shown, and ragged outlines are simplified."""
    draw = np.random.default_rng(0)
    ids = (cv2.GaussianBlur(draw.normal(size=(48, 64)), (0, 0), 1) > 0.05).astype(np.uint8)
    taken = Occupancy(7, 2**20, 5000)
    page = Page(tmp_path, 4500, 4, 24.0)
    frame = np.zeros((48, 64, 3), np.uint8)
    for t in range(4500):
        scores = {"mask_iou": 0.123456789 * t, "object_score": -t / 7, "stability": 1 / (t + 1), "predicted_iou": 0.5}
        row = FrameStats(t, taken, taken, taken, tuple(range(t, t + 7)), 1.0, scores=scores, keyframes=(t, t + 1))
        page.add(t, t / 24, frame, ids * (1 + t // 3 % 4), dict.fromkeys(range(1, 5), row))
    page.write("long", "keyframe", make_method("keyframe"))
    page.close()
    (run,), films = read_page(tmp_path)
    assert run["frames"] == list(range(0, 4500, 3))
    assert "1500 of 4500" in dict(run["about"])["frames"]
    assert any(run["objects"]["2"]["masks"])
    size = (tmp_path / PAGE).stat().st_size - 4 / 3 * sum(map(len, films.values()))
    assert 1e6 < size < 3e6


def test_text_of_users_cannot_end_the_data(tmp_path: Path) -> None:
    page = Page(tmp_path, 1, 1, 24.0)
    page.add(0, None, np.zeros((8, 8, 3), np.uint8), np.ones((8, 8)), {1: None})
    page.write("</script><script>alert(1)</script>", "stock", make_method("stock"))
    page.close()
    (run,), _ = read_page(tmp_path)
    assert run["title"].startswith("</script>")
    assert "</script><script>alert" not in (tmp_path / PAGE).read_text()


def test_no_pictures_writes_no_page(folder: Path, out: Path) -> None:
    assert track(folder, out, "--box", "20,20,50,50", "--no-pictures", "--frames", "2") == 0
    assert not (out / PAGE).exists()
    assert not (out / "page.mp4").exists()


def test_view_puts_runs_side_by_side(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "both.html"
    assert cli.main(["view", *map(str, runs.values()), "--out", str(target)]) == 0
    shown, films = read_page(target)
    assert [run["name"] for run in shown] == ["stock", "keyframe"]
    assert len(films) == 1, "both show one video, which is there once"
    view([runs["stock"], runs["stock"]], target)
    assert [run["name"] for run in read_page(target)[0]] == ["stock (stock)"] * 2
    for wrong, word in ((tmp_path, "no index.html"), (tmp_path / "none", "no index.html")):
        assert cli.main(["view", str(wrong), "--out", str(target)]) == 2
        assert word in capsys.readouterr().err
    (tmp_path / PAGE).write_text("<html>")
    assert cli.main(["view", str(tmp_path), "--out", str(target)]) == 2
    assert "no page of a run" in capsys.readouterr().err
    assert cli.main(["view", str(runs["stock"]), "--out", str(tmp_path)]) == 2
    assert "view.html" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser: {CHROMIUM}")
    with api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM))
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, runs: dict[str, Path], tmp_path: Path, width: int, scheme: str) -> None:
    both = tmp_path / "both.html"
    view(list(runs.values()), both)
    for path in (runs["keyframe"] / PAGE, both):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, said=said: said.append(request.url) if "http" in request.url[:5] else None)
        page.goto(path.as_uri())
        page.wait_for_function("stages.every(s => s.video.readyState >= 2)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is wider than the screen"
        assert page.evaluate("document.documentElement.classList.contains('dark')") is (scheme == "dark")
        page.keyboard.press("End")
        page.wait_for_function(f"stages.every(s => !s.video.seeking && s.video.currentTime * s.run.fps > {FRAMES - 1})")
        assert page.evaluate("cursor") == FRAMES - 1
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.querySelectorAll('.strip figure').length > 0 && !busy && !wanted.length")
        attended = read_page(path)[0][0]["objects"]["1"]["attended"][FRAMES - 2]
        shown = page.locator(".strip").first.locator("figcaption").all_inner_texts()
        assert [int(text.split(",")[0].split()[1]) for text in shown] == attended
        blank = "Object.assign(document.createElement('canvas'), {width: c.width, height: c.height})"
        drawn = f"(c => c.toDataURL() !== {blank}.toDataURL())(stages[0].canvas)"
        assert page.evaluate(drawn)
        page.keyboard.press("m")
        assert not page.evaluate(drawn), "masks are off"
        page.keyboard.press("m")
        page.keyboard.press("1")
        page.keyboard.press("2")
        assert not page.evaluate(drawn), "both objects' masks are off"
        page.keyboard.press("1")
        assert page.evaluate(drawn)
        page.evaluate("$('scores').scrollIntoView({block: 'center'})")
        box = page.locator("#scores").bounding_box()
        page.mouse.click(box["x"] + 46, box["y"] + 40)
        assert page.evaluate("cursor") == 0
        page.keyboard.press("Space")
        page.wait_for_function(f"cursor === {FRAMES - 1} && !playing")
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.classList.contains('dark')") is (scheme == "light")
        assert said == []
        page.close()
