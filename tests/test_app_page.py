"""The app in a browser: headless Chromium clicks through it, in two windows, wide and narrow, light and dark."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api")

CHROMIUM = "/usr/bin/chromium"
WAIT = 150_000  # milliseconds; a machine may be busy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"needs {CHROMIUM} (Debian's package chromium)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app as the command starts it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("videos")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sam2_keyframe.app.cli", "app", str(folder), "--model", "micro"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*command, "--device", "cpu", "--max-upload", "20", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    assert f"open http://127.0.0.1:{port} in a browser" in server.stdout.readline()
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait(60)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens pages; what they complain of, and what they ask of other machines, fails the test at its end."""
    wrong: list[str] = []
    contexts = []

    def open_page(width: int = 1440, height: int = 1000, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda each: None if _local(each.url, address) else wrong.append(each.url))
        page.goto(address)
        page.wait_for_selector("#example")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def _load(page: Any) -> None:
    page.click("#example")
    page.wait_for_selector("#picture img")


def _track(page: Any) -> None:
    page.click("#track")
    page.wait_for_selector("text=Tracked to the end")
    page.wait_for_selector(".sk-tile")


def _at(page: Any, across: float, down: float) -> tuple[float, float]:
    stage = page.locator(".sk-clickable .sk-stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def _upload(page: Any, path: Path) -> None:
    with page.expect_file_chooser() as found:
        page.click("#upload")
    found.value.set_files(path)


def _picture(page: Any) -> str:
    return str(page.get_attribute(".sk-clickable img", "src"))


def test_load_click_track_look_correct_export(window: Callable[..., Any], tmp_path: Path) -> None:
    page = window()
    _load(page)
    outlined = _picture(page)
    page.click("[data-choose=undo]")
    page.wait_for_function("before => document.querySelector('.sk-clickable img').src !== before", arg=outlined)
    page.click("#picture [data-choose=outline]")
    page.mouse.move(*_at(page, 0.6, 0.05))
    page.mouse.down()
    for step in range(1, 32):
        angle = 2 * math.pi * step / 32
        page.mouse.move(*_at(page, 0.58 + 0.14 * math.sin(angle), 0.22 - 0.17 * math.cos(angle)))
    page.mouse.up()
    page.wait_for_selector("text=Object 1 has a prompt on frame 0")
    page.click("#picture [data-choose=point]")
    page.mouse.click(*_at(page, 0.6, 0.25))
    page.wait_for_selector("#picture circle")
    page.click("#compare input")
    _track(page)
    assert page.locator(".sk-strip").count() == 2
    assert page.locator(".sk-badge", has_text="prompted").count() == 2
    assert page.locator("#picture img").count() == 2

    bound = page.locator(".sk-bound").bounding_box()
    across, down = bound["x"] + 200, bound["y"] + bound["height"] / 2
    page.mouse.move(across, down)
    page.mouse.down()
    page.mouse.move(across, down + 10)
    page.mouse.move(across, down + 40)
    page.mouse.up()
    page.wait_for_selector("text=Replayed with change=")
    assert "replayed on the same masks" in page.inner_text("#timeline")
    page.wait_for_selector("#use")

    page.locator(".sk-tile").nth(1).click()
    page.wait_for_function("document.querySelector('#frame input[type=number]').value !== '35'")
    page.fill("#frame input[type=number]", "20")
    page.press("#frame input[type=number]", "Enter")
    page.wait_for_selector("figcaption:has-text('frame 20')")
    page.mouse.click(*_at(page, 0.5, 0.5), button="right")
    page.wait_for_selector("text=Object 1 is corrected on frame 20")
    page.wait_for_selector("figcaption:has-text('SAM 2 alone: frame 20, not tracked yet')")
    _track(page)

    page.click("#along button >> nth=0")
    page.click("#kinds label:has-text('boxes')")
    page.click("#export")
    page.wait_for_selector("text=Exported; press Download.")
    with page.expect_download() as found:
        page.click("#download")
    found.value.save_as(tmp_path / "export.zip")
    with zipfile.ZipFile(tmp_path / "export.zip") as file:
        names = {name.removeprefix("sam2-keyframe/") for name in file.namelist()}
        assert "add_new_points_or_box(state, 20, 1, points=[[" in file.read("sam2-keyframe/again.py").decode()
    assert {"masks/00035.png", "frames.csv", "recording.npz", "overlay.mp4", "boxes.csv", "again.sh"} <= names
    page.click("text=Play the overlay")
    page.click("#film")
    page.wait_for_selector("#video video")
    page.wait_for_function("document.querySelector('#video video').readyState >= 2")


def test_two_windows_at_once_do_not_mix(window: Callable[..., Any]) -> None:
    first, second = window(), window(1200, 900)
    _load(first)
    _load(second)
    first.click("#more")
    first.wait_for_selector("#object label:has-text('2')")
    first.click("#picture [data-choose=box]")
    first.mouse.move(*_at(first, 0.45, 0.5))
    first.mouse.down()
    first.mouse.move(*_at(first, 0.95, 0.75))
    first.mouse.up()
    first.wait_for_selector("text=Object 2 has a prompt")
    first.click("#track")
    second.click("#track")
    for page in (first, second):
        page.wait_for_selector("text=Tracked to the end")
        page.wait_for_selector(".sk-tile")
    first.click("#along button >> nth=0")
    second.click("#along button >> nth=0")
    assert "2@0:" in first.inner_text("#along")
    assert "2@0:" not in second.inner_text("#along")
    assert _picture(first) != _picture(second)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_wide_and_narrow_light_and_dark(width: int, scheme: str, window: Callable[..., Any]) -> None:
    page = window(width, 844, scheme)
    _load(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.click("#track")
    page.wait_for_selector("text=frame")
    page.click("#stop")
    page.wait_for_selector("text=/Stopped behind|Tracked to the end/")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")


def test_uploads_that_are_no_videos_are_refused_in_a_sentence(window: Callable[..., Any], tmp_path: Path) -> None:
    page = window()
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    with zipfile.ZipFile(tmp_path / "a.mp4", "w") as file:
        file.writestr("../evil", "x")
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    (tmp_path / "c.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n")
    for name, told in (("a", "a.mp4 is a zip archive"), ("b", "b.mp4 is a playlist"), ("c", "c.mp4 is a playlist")):
        _upload(page, tmp_path / f"{name}.mp4")
        page.wait_for_selector(f"text={told}")
    assert page.locator("#picture img").count() == 0
    large = tmp_path / "large.mp4"
    with large.open("wb") as sparse:
        sparse.write(b"\0\0\0\x18ftypmp42")
        sparse.truncate(30 * 10**6)
    _upload(page, large)
    page.wait_for_selector("text=/maximum allowed size|exceeds|too large/i")


def test_files_of_the_machine_are_not_served(address: str, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    for path in ("/etc/passwd", "../../../../etc/passwd", str(Path(__file__).resolve()), os.getcwd() + "/README.md"):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404), path
    assert httpx.get(address, headers={"host": "evil.example"}).status_code == 400
    page = httpx.get(f"{address}config").json()
    upload = next(each["id"] for each in page["components"] if each["props"].get("elem_id") == "upload")
    handler = next(each["id"] for each in page["dependencies"] if [upload, "upload"] in map(list, each["targets"]))
    given = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    call = {"data": [[given]], "fn_index": handler, "session_hash": "abc"}
    assert httpx.post(f"{address}gradio_api/queue/join", json=call).status_code in (200, 403, 422)
    time.sleep(1)
    answer = ""
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=abc", timeout=60) as events:
        for line in events.iter_lines():
            answer += line
            if "process_completed" in line or "close_stream" in line:
                break
    assert '"success":false' in answer.replace(" ", "")
    assert "root:" not in answer


def test_without_gradio_the_pip_line_is_told(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError('no')\n")
    paths = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "sam2_keyframe.app.cli", "app", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'sam2-keyframe[app]'" in done.stderr
