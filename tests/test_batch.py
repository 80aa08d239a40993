"""Folders of videos in one go: prompts beside them, what is finished stays, what fails is told of by video."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_frames
from PIL import Image

from sam2_keyframe.app import cli
from sam2_keyframe.app.workers import Engine, Failure
from sam2_keyframe.synthetic import make_clip

ROOT = Path(__file__).parents[1]
QUICK = ("--model", "micro", "--image-size", "64", "--no-overlay", "--no-pictures", "--device", "cpu")


def _box(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def _folder(root: Path, videos: int, frames: int) -> Path:
    """Write videos, and prompts for them in every form."""
    rows = []
    (root / "masks" / "v1").mkdir(parents=True)
    for i in range(videos):
        clip = make_clip("occlusion", seed=i, frames=frames, size=64, objects=1)
        write_frames(root / "videos" / f"v{i}", clip.frames)
        rows.append([f"v{i}", 0, 1, *_box(clip.masks[0] == 1)])
        mask = Image.fromarray((clip.masks[0] == 1).astype(np.uint8))
        mask.save(root / "masks" / ("v1/00000.png" if i == 1 else f"v{i}.png"))
    with open(root / "prompts.csv", "w") as file:
        csv.writer(file).writerows([["video", "frame", "object", "x0", "y0", "x1", "y1"], *rows])
    listed = {name: [{"frame": frame, "object": obj_id, "box": box}] for name, frame, obj_id, *box in rows}
    (root / "prompts.json").write_text(json.dumps(listed))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("batch"), 3, 4)


def _track(folder: Path, out: Path, *more: str, prompts: str = "prompts.csv") -> int:
    return cli.main(
        ["track", str(folder / "videos"), "--prompts", str(folder / prompts), *QUICK, "--out", str(out), *more]
    )


def _masks(out: Path) -> dict[str, bytes]:
    return {f"{path.parents[1].name}/{path.stem}": path.read_bytes() for path in sorted(out.glob("*/masks/*.png"))}


def _table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "videos.csv", newline="") as file:
        return {row["video"]: row for row in csv.DictReader(file)}


def test_a_folder_is_tracked_as_each_video_alone_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _track(folder, out) == 0
    found = _masks(out)
    assert len(found) == 12
    with open(folder / "prompts.csv") as file:
        _, first, *_ = csv.reader(file)
    box = ",".join(first[3:])
    assert cli.main(["track", str(folder / "videos" / "v0"), "--box", box, *QUICK, "--out", str(tmp_path / "one")]) == 0
    alone = {path.stem: path.read_bytes() for path in (tmp_path / "one" / "masks").glob("*.png")}
    assert alone == {name.split("/")[1]: content for name, content in found.items() if name.startswith("v0/")}
    told = _table(out)
    assert {row["status"] for row in told.values()} == {"done"}
    assert {row["frames"] for row in told.values()} == {"4"}

    # interrupted in v1: it is done again, the others are not; the table in JSON says the same
    (out / "v1" / "run.json").unlink()
    (out / "v1" / "masks" / "00003.png").unlink()
    (out / "v2" / ".sam2-keyframe.unfinished").mkdir()
    before = {name: (out / name / "run.json").stat().st_mtime_ns for name in ("v0", "v2")}
    capsys.readouterr()
    assert _track(folder, out, prompts="prompts.json") == 0
    assert "2 of 3 videos are finished already" in capsys.readouterr().out
    assert _masks(out) == found
    assert {name: (out / name / "run.json").stat().st_mtime_ns for name in ("v0", "v2")} == before

    # other prompts are other work: masks for all of them; and other choices are another batch
    assert _track(folder, out, prompts="masks") == 0
    assert _masks(out).keys() == found.keys()
    assert _masks(out)["v1/00000"] != found["v1/00000"]
    assert _track(folder, out, "--method", "stock") == 2
    assert "holds results of another batch: method was KeyframeMemory" in capsys.readouterr().err


def test_videos_that_fail_are_told_of_and_end_no_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "root"))
    (root / "videos" / "v0" / "00002.jpg").write_bytes(b"no picture")
    shutil.copytree(root / "videos" / "v2", root / "videos" / "unprompted")
    assert _track(root, tmp_path / "out") == 1
    shown = capsys.readouterr().out
    assert "2 of 4 videos done" in shown
    assert "failed: v0: " in shown
    assert "failed: unprompted: no prompt" in shown
    told = _table(tmp_path / "out")
    assert [told[name]["status"] for name in ("unprompted", "v0", "v1", "v2")] == ["failed", "failed", "done", "done"]
    assert "00002.jpg" in told["v0"]["error"]
    assert not (tmp_path / "out" / "v0").exists()
    shutil.copy(folder / "videos" / "v0" / "00002.jpg", root / "videos" / "v0")  # mended, it alone is done
    assert _track(root, tmp_path / "out") == 1
    assert "2 of 4 videos are finished already" in capsys.readouterr().out
    assert _table(tmp_path / "out")["v0"]["status"] == "done"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.csv", "video,x0,y0,x1,y1\nv11,1,1,9,9\n", "line 2: there is no video 'v11'; did you mean"),
        ("p.csv", "clip,x\nv0,1\n", "an unknown column 'clip'; there are frame, label, mask"),
        ("p.csv", "frame,x\n0,1\n", "no column 'video'"),
        ("p.csv", "video,x,y,mask\nv0,1,1,m.png\n", "line 2: give one of a box"),
        ("p.csv", "video,frame,x,y\nv0,first,1,1\n", "frame is 'first'; write a whole number"),
        ("p.csv", "video,x,y,label\nv0,1,1,yes\n", "label is 'yes'; write 1 on the object"),
        ("p.json", "[1", "no JSON"),
        ("p.json", "[]", "write {"),
        ("p.json", '{"v0": [{"bbox": [1, 2, 3, 4]}]}', r"v0 \[0\]: \['bbox'\]; write frame, object"),
        ("p.json", '{"v0": [{"points": [[5]]}]}', r"v0 \[0\]: write points as"),
        ("p.txt", "", "give a .csv, a .json or a folder of masks"),
    ],
)
def test_prompts_that_cannot_be_read(
    name: str, content: str, why: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert _track(folder, tmp_path / "out", prompts=str(tmp_path / name)) == 2
    assert re.search(why, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_bad_choices(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(why: str, *more: str, prompts: str = "prompts.csv") -> None:
        assert _track(folder, tmp_path / "out", *more, prompts=prompts) == 2
        assert why in capsys.readouterr().err

    refused("no such file or folder", prompts="nowhere.csv")
    refused("leave --mask, --box and --point out", "--box", "1,1,9,9")
    refused("give at least one worker", "--workers", "0")
    refused("--address and --gpus are for --engine ray", "--gpus", "0.5")
    refused("looks for the frames of one video: give them", "--method", "genetic")
    refused("--follow and --suggest-prompts are for one video", "--suggest-prompts")
    refused("--follow and --suggest-prompts are for one video", "--follow")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (
        cli.main(["track", str(empty), "--prompts", str(folder / "masks"), *QUICK, "--out", str(tmp_path / "o")]) == 2
    )
    assert "holds no video" in capsys.readouterr().err
    one = ["track", str(folder / "videos" / "v0"), "--box", "1,1,9,9", *QUICK, "--out", str(tmp_path / "o")]
    assert cli.main([*one, "--workers", "2"]) == 2
    assert "for many videos: give a folder of them and --prompts" in capsys.readouterr().err
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").touch()
    assert _track(folder, tmp_path / "foreign") == 2
    assert "holds other files (thesis.txt)" in capsys.readouterr().err


class Sometimes:
    """A worker that dies on some tasks, and on others only the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Any:
        return self.work

    def work(self, task: str) -> str:
        with open(self.folder / task, "a") as file:
            file.write("x")
        times = (self.folder / task).stat().st_size
        if task == "always" or (task == "once" and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "raises":
            raise ValueError("a sentence")
        return f"{task} {times}"


def check_deaths(engine: Engine, tmp_path: Path) -> None:
    """Check that a worker that dies costs its task a retry and no more."""
    tasks = ["a", "once", "b", "raises", "always", "c"]
    found = dict(engine.run(tasks, Sometimes(tmp_path)))
    assert found.keys() == set(tasks)
    assert [found[name] for name in ("a", "once", "b", "c")] == ["a 1", "once 2", "b 1", "c 1"]
    assert found["raises"] == Failure("ValueError: a sentence")
    assert isinstance(found["always"], Failure)
    assert "its worker process ended 2 times" in found["always"].error
    assert (tmp_path / "always").stat().st_size == 2


class Broken:
    def __call__(self) -> Any:
        raise ValueError("there is no model")


@pytest.mark.slow
def test_workers_that_die_or_cannot_begin(tmp_path: Path) -> None:
    check_deaths(Engine(workers=2), tmp_path)
    with pytest.raises(ValueError, match="there is no model"):
        list(Engine(workers=2).run(["a"], Broken()))


def killed_in_the_middle(folder: Path, out: Path, *more: str) -> list[str]:
    """Run a batch and kill it when a video is finished; return what was finished then."""
    command = [
        *(sys.executable, "-m", "sam2_keyframe.app.cli", "track", str(folder / "videos"), *QUICK),
        *("--prompts", str(folder / "prompts.csv"), "--out", str(out), *more),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*/run.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60  # its workers end by themselves
    while time.monotonic() < deadline:
        finished = sorted(path.parent.name for path in out.glob("*/run.json"))
        if not list(out.glob("*/.sam2-keyframe.unfinished/lock")) or _unlocked(out):
            return finished
        time.sleep(0.2)
    raise AssertionError("workers live on after their driver was killed")


def _unlocked(out: Path) -> bool:
    import fcntl

    for path in out.glob("*/.sam2-keyframe.unfinished/lock"):
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def check_killed_batch(tmp_path: Path, *more: str) -> None:
    """Check that a batch killed in the middle goes on with the masks of one that was not."""
    folder = _folder(tmp_path / "root", 6, 8)
    assert _track(folder, tmp_path / "whole") == 0
    finished = killed_in_the_middle(folder, tmp_path / "killed", *more)
    assert 1 <= len(finished) < 6
    times = {name: (tmp_path / "killed" / name / "run.json").stat().st_mtime_ns for name in finished}
    assert _track(folder, tmp_path / "killed", *more) == 0
    assert _masks(tmp_path / "killed") == _masks(tmp_path / "whole")
    assert {name: (tmp_path / "killed" / name / "run.json").stat().st_mtime_ns for name in finished} == times


@pytest.mark.slow
def test_a_killed_batch_goes_on(tmp_path: Path) -> None:
    check_killed_batch(tmp_path, "--workers", "2")
