"""Frames from the network: a file on a web server, and a stream that breaks off and comes back."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import functools
import http.server
import io
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import folder, out, track  # noqa: F401
from footage import av, footage, no_thread_left, opencv_frames, write_video  # noqa: F401
from PIL import Image

from sam2_keyframe import FrameSource
from sam2_keyframe.app.output import write_mask
from sam2_keyframe.app.page import read_page
from sam2_keyframe.video import live
from sam2_keyframe.video.live import Live, without_password


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "WAIT", 0.02)
    monkeypatch.setattr(live, "TRIES", 2)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve with a handler of requests; returns the address of the server, which ends with the test."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(handler: Any) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def stream_of(frames: np.ndarray) -> bytes:
    """Return frames as an MPEG transport stream, which players join anywhere."""
    store = io.BytesIO()
    with av.open(store, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "4", "crf": "4", "bf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return store.getvalue()


def sender(parts: list[bytes], times: list[float] | None = None) -> Any:
    """Return a handler that answers each request with the next part, without a length, and hangs up; then with 404."""
    left = list(parts)

    class Sender(Quiet):
        def do_GET(self) -> None:
            if times is not None:
                times.append(time.monotonic())
            if not left:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(left.pop(0))

    return Sender


def test_a_file_on_a_web_server_is_the_file(footage: np.ndarray, tmp_path: Path, serve: Any) -> None:
    path = write_video(tmp_path / "a.mkv", footage[:20])
    address = serve(functools.partial(Quiet, directory=str(tmp_path)))
    expected = opencv_frames(path)
    with FrameSource(f"{address}/a.mkv") as source:
        assert not source.rewinds
        for t, frame in enumerate(expected):
            np.testing.assert_array_equal(source.frame(t), frame)
        assert source.time(10) == pytest.approx(10 * 1001 / 30000, abs=2e-3)
        with pytest.raises(RuntimeError, match="ended after 20 frames"):
            source.frame(20)
        assert "ended after 20 frames" in source.ended


def test_a_stream_that_breaks_off_is_connected_to_again(footage: np.ndarray, serve: Any) -> None:
    parts = [stream_of(footage[:8]), stream_of(footage[8:14]), stream_of(footage[14:20])]
    address = serve(sender(parts))
    with FrameSource(f"{address}/live.ts", ahead=2, threads=1) as source:
        frames = [source.frame(t) for t in range(20)]
        nearest = [int(np.abs(footage.astype(int) - frame).mean((1, 2, 3)).argmin()) for frame in frames]
        assert nearest == list(range(20)), "in order, none twice and none left out"
        times = [source.time(t) for t in range(20)]
        assert times == sorted(times)
        assert times[7] == pytest.approx(7 / 25, abs=1e-3)
        assert times[13] - times[8] == pytest.approx(5 / 25, abs=1e-3)
        with pytest.raises(RuntimeError, match="did not come back in 2 tries"):
            source.frame(20)
        assert "broke off after 20 frames" in source.ended


def test_a_file_that_breaks_off_goes_on_where_it_was(footage: np.ndarray, tmp_path: Path, serve: Any) -> None:
    data = write_video(tmp_path / "a.mkv", footage[:40], g="6").read_bytes()
    calls = []

    class Halting(Quiet):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if len(calls) == 1 else data)

    expected = opencv_frames(tmp_path / "a.mkv")
    reader = Live(f"{serve(Halting)}/a.mkv")
    for t, frame in enumerate(expected):
        np.testing.assert_array_equal(reader.read(t), frame)
    assert len(calls) >= 2
    reader.close()


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("http://127.0.0.1:9/none.mp4", "refused"),
        ("rtsp://me:secret@127.0.0.1:9/door", "refused"),
        (64, "camera 64"),
    ],
)
def test_what_cannot_be_opened_says_why_and_keeps_passwords(address: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        FrameSource(address)
    assert "secret" not in str(caught.value)
    assert "see whether" in str(caught.value)


def test_not_found_and_no_video(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    address = serve(functools.partial(Quiet, directory=str(tmp_path)))
    with pytest.raises(ValueError, match=r"404|not found|Not Found"):
        FrameSource(f"{address}/none.mp4")
    with pytest.raises(ValueError, match="cannot be opened"):
        FrameSource(f"{address}/text.mp4")


def test_a_playlist_does_not_read_files_of_this_machine(footage: np.ndarray, tmp_path: Path, serve: Any) -> None:
    (tmp_path / "here.ts").write_bytes(stream_of(footage[:4]))
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:10", "#EXTINF:1,", (tmp_path / "here.ts").as_uri(), "#EXT-X-ENDLIST"]
    (tmp_path / "list.m3u8").write_text("\n".join(lines))
    address = serve(functools.partial(Quiet, directory=str(tmp_path)))
    with pytest.raises((ValueError, RuntimeError)), FrameSource(f"{address}/list.m3u8") as source:
        source.frame(0)


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://a:b@c/d?e=f:g@h") == "rtsp://a@c/d?e=f:g@h"
    assert without_password("http://c:8080/x@y") == "http://c:8080/x@y"
    assert without_password("http://c:80?x@y") == "http://c:80?x@y"
    assert without_password("rtsp://me:p@ss:word@c/d") == "rtsp://me@c/d", "FFmpeg takes the last @ for its end"


def test_track_follows_a_stream(clip: Any, tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks come out as they are made, the end is told, and nothing asks for frames that have gone by."""
    utils = pytest.importorskip("pycocotools.mask")
    address = serve(sender([stream_of(clip.frames[:5]), stream_of(clip.frames[5:9])]))
    write_mask(tmp_path / "mask.png", (clip.masks[0] == 1).astype(np.uint8))
    target = tmp_path / "out"
    given = [f"{address}/live.ts", target, "--mask", tmp_path / "mask.png"]
    assert track(*given, "--follow", "--export", "boxes") == 0
    caught = capsys.readouterr()
    lines = [json.loads(line) for line in caught.out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(9))
    for line in lines:
        mask = utils.decode(utils.frPyObjects(line["segmentation"], *line["segmentation"]["size"]))
        ids = np.asarray(Image.open(target / "masks" / f"{line['frame']:05d}.png"))
        np.testing.assert_array_equal(mask, ids == line["object"])
        assert line["area"] == mask.sum()
    assert "broke off after 9 frames" in caught.err
    assert "9 of 9 frames" in caught.err
    assert read_page(target)[0][0]["frames"] == list(range(9))
    assert {"boxes.csv", "timeline.png"} <= {path.name for path in target.iterdir()}


def test_max_frames_ends_a_stream(clip: Any, tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address = serve(sender([stream_of(clip.frames[:12])]))
    given = [f"{address}/live.ts", tmp_path / "out", "--box", "20,20,50,50"]
    assert track(*given, "--max-frames", 3) == 0
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3
    assert track(*given, "--suggest-prompts") == 2
    assert "leave it out" in capsys.readouterr().err
