"""Runs: what they write, that they go on, that processes agree, and that bad input is a sentence."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import sam2_keyframe
from benchmarks import metrics
from benchmarks.__main__ import main
from benchmarks.datasets import Synthetic
from benchmarks.results import Run, check_metrics, read_csv
from benchmarks.tracking import Tracked
from sam2_keyframe.app.options import parse_value
from sam2_keyframe.app.page import read_page, view
from sam2_keyframe.synthetic import make_clip

ROOT = Path(__file__).parents[1]
SMALL = ["--image-size", "128", "--clips", "1", "--frames", "8", "--size", "64"]


def only_run(out):
    (run,) = [path.parent for path in out.glob("*/config.yaml")]
    return run


def untimed(table):
    return [{key: value for key, value in row.items() if key != "milliseconds"} for row in read_csv(table)]


def write_folder(root, clips):
    """Write clips as a DAVIS-style folder."""
    for name, clip in clips.items():
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / name).mkdir(parents=True)
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            Image.fromarray(frame).save(root / f"JPEGImages/{name}/{t:05d}.jpg", quality=95)
            Image.fromarray(mask).save(root / f"Annotations/{name}/{t:05d}.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    arguments = [*SMALL, "--challenges", "static,occlusion", "--method", "keyframe", "--set", "change=0.2"]
    assert main(["run", *arguments, "--set", "keyframes=2", "--out", str(out)]) == 0
    return only_run(out)


def test_every_video_has_a_page(finished, tmp_path):
    for folder in (finished / "videos").iterdir():
        (shown,), _ = read_page(folder)
        rows = {(row["obj_id"], int(row["frame_idx"])): row for row in read_csv(folder / "frames.csv")}
        assert (shown["title"], len(shown["frames"])) == (folder.name, 8)
        for obj_id, each in shown["objects"].items():
            for t in shown["frames"]:
                row = rows[obj_id, t]
                expected = pytest.approx(float(row["j"]), rel=1e-3) if row["j"] else None
                assert each["scores"]["J"][t] == expected
                assert each["attended"][t] == (
                    [int(s) for s in row["attended"].split()] if row["memory_frames"] else None
                )
    view([folder, folder], tmp_path / "view.html")


def test_a_run_is_named_and_described_by_its_configuration(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    for word in ("synthetic-8f-64px", "dev", "micro", "keyframe", "change=0.2", "keyframes=2"):
        assert word in finished.name
    method = sam2_keyframe.make_method("keyframe", change=0.2, keyframes=2)
    assert parse_value(config["method"]["repr"]) == method  # repr rebuilds it
    assert config["versions"]["torch"]
    assert (config["device"], config["seed"], config["schema"]) == ("cpu", 0, 1)


def test_scores_and_occupancy_are_those_of_the_masks_and_statistics(finished):
    result = json.loads((finished / "metrics.json").read_text())
    check_metrics(result)
    assert (result["videos"], result["objects"], result["failed"]) == (2, 2, {})
    rows = read_csv(finished / "frames.csv")
    dataset = Synthetic("dev", ("static", "occlusion"), 1, 8, 64)
    scores = []
    for name in dataset.names:
        video = dataset.open(name)
        with np.load(finished / "videos" / name / "masks.npz") as packed:
            masks = np.unpackbits(packed["1"], axis=1, count=64 * 64).reshape(8, 64, 64)
        scores.append(metrics.score_masks(list(masks), [video.mask(t, 1) for t in range(8)]))
        ours = [row for row in rows if row["video"] == name]
        assert [row["j"] != "" for row in ours] == [False, *[True] * 6, False]
        assert float(ours[3]["j"]) == metrics.jaccard(masks[3], video.mask(3, 1))
    assert result["accuracy"]["jf"] == pytest.approx(100 * np.mean([score.jf for score in scores]), abs=1e-9)
    assert result["challenges"] == pytest.approx(
        {"occlusion": 100 * scores[1].jf, "static": 100 * scores[0].jf}, abs=1e-9
    )
    tracked = [row for row in rows if row["memory_frames"]]
    peaks = [max(int(row["memory_frames"]) for row in tracked if row["video"] == name) for name in dataset.names]
    assert result["occupancy"]["memory"]["peak_frames"] == np.mean(peaks)
    assert result["occupancy"]["stock"]["peak_frames"] == 8
    assert result["time"]["frame_ms"] > 0


def test_a_second_run_skips_what_is_finished(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("videos/*/*")}
    table = (finished / "frames.csv").read_text()
    arguments = [*SMALL, "--challenges", "static,occlusion", "--method", "keyframe", "--set", "change=0.2"]
    assert main(["run", *arguments, "--set", "keyframes=2", "--out", str(finished.parent)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.glob("videos/*/*")} == before
    assert (finished / "frames.csv").read_text() == table
    assert "static-10000  " not in capsys.readouterr().err  # nothing was tracked


@pytest.mark.slow
def test_processes_agree_with_one_process(tmp_path, finished):
    arguments = [*SMALL, "--challenges", "static,occlusion", "--method", "keyframe", "--set", "change=0.2"]
    code = main(["run", *arguments, "--set", "keyframes=2", "--out", str(tmp_path), "--workers", "2"])
    assert code == 0
    run = only_run(tmp_path)
    assert run.name == finished.name
    assert untimed(run / "frames.csv") == untimed(finished / "frames.csv")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_goes_on(tmp_path, workers, capsys):
    command = [sys.executable, "-m", "benchmarks", "run", "--method", "window", "--out", str(tmp_path), *SMALL]
    command += [
        "--challenges",
        "static,scale,fast,occlusion,look_alike,illumination",
        "--frames",
        "16",
        "--workers",
        workers,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    started = time.monotonic()
    while not list(tmp_path.glob("*/videos/*")):
        assert process.poll() is None
        assert time.monotonic() - started < 120
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    while processes_of(process.pid):  # workers end with the process that started them
        assert time.monotonic() - started < 20
        time.sleep(0.02)
    run = only_run(tmp_path)
    kept = {path.parent.name: path.stat().st_mtime_ns for path in run.glob("videos/*/frames.csv")}
    done = [path.name for path in run.glob("videos/*")]
    assert 1 <= len(done) < 6
    (run / ".tmp-cut-off").mkdir()  # what a kill in the middle of writing leaves behind
    assert main([*command[3:]]) == 0
    assert "failed" not in capsys.readouterr().err
    assert len(list(run.glob("videos/*"))) == 6
    assert {p.parent.name: p.stat().st_mtime_ns for p in run.glob("videos/*/frames.csv")}.items() >= kept.items()
    assert not list(run.glob(".tmp-*"))
    assert len({row["video"] for row in read_csv(run / "frames.csv")}) == 6


def processes_of(session):
    """Ids of the live processes of a session, without those that nobody has waited for yet."""
    shown = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [
        pid for pid, group, state in map(str.split, shown.splitlines()) if group == f"{session}" and state[0] != "Z"
    ]


def test_a_video_that_another_process_finished_is_no_failure(finished, tmp_path):
    run = Run(tmp_path, yaml.safe_load((finished / "config.yaml").read_text()))
    (tmp_path / "videos").mkdir()
    tracked = Tracked((1, 8), {1: {0: np.packbits(np.ones(8, np.uint8))}})
    for j in (1, 0):
        run.write_video("a", [{"j": j}], [{"j": j}], tracked)
    assert read_csv(tmp_path / "videos/a/frames.csv") == [{"j": "1"}]
    assert not list(tmp_path.glob(".tmp-*"))
    for name in ("a", "b"):
        run.write_failure(name, ValueError("no"))
    assert run.failures() == {"b": "ValueError: no"}


def test_a_failing_video_is_reported_and_the_others_are_finished(tmp_path, capsys):
    write_folder(tmp_path / "data", {name: make_clip("static", i, 6, 64) for i, name in enumerate("abc")})
    (tmp_path / "data/JPEGImages/b/00003.jpg").write_bytes(b"no picture")
    arguments = ["run", "--data", str(tmp_path / "data"), "--image-size", "128", "--method", "stock"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    run = only_run(tmp_path / "out")
    assert sorted(path.name for path in run.glob("videos/*")) == ["a", "c"]
    assert "failed: b under stock" in capsys.readouterr().err
    Image.fromarray(make_clip("static", 1, 6, 64).frames[3]).save(tmp_path / "data/JPEGImages/b/00003.jpg")
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in run.glob("videos/*")) == ["a", "b", "c"]
    assert not list(run.glob("failed/*"))


def test_a_late_object_is_prompted_where_it_appears(tmp_path):
    clip = make_clip("static", 3, 8, 64, objects=2)
    clip.masks[:4][clip.masks[:4] == 2] = 0
    write_folder(tmp_path / "data", {"late": clip})
    arguments = ["run", "--data", str(tmp_path / "data"), "--image-size", "128", "--method", "window"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    rows = read_csv(only_run(tmp_path / "out") / "frames.csv")
    assert [int(row["frame_idx"]) for row in rows if row["obj_id"] == "1"] == list(range(8))
    late = [row for row in rows if row["obj_id"] == "2"]
    assert [int(row["frame_idx"]) for row in late] == [4, 5, 6, 7]
    assert float(late[0]["j"]) > 0.85  # the prompt itself, through the model's mask resolution
    with np.load(only_run(tmp_path / "out") / "videos/late/masks.npz") as packed:
        both = packed["1"][4:] & packed["2"]
    assert not both.any()  # annotations are exclusive, so predictions are


def test_two_processes_do_not_write_one_run(finished, capsys):
    arguments = [*SMALL, "--challenges", "static,occlusion", "--method", "keyframe", "--set", "change=0.2"]
    being_written = finished / ".tmp-being-written"
    being_written.mkdir()
    with Run(finished, {}).lock():
        assert main(["run", *arguments, "--set", "keyframes=2", "--out", str(finished.parent)]) == 2
    assert "another process is writing" in capsys.readouterr().err
    being_written.rmdir()  # it is still there


def test_what_is_named_twice_is_run_once(tmp_path, capsys):
    arguments = ["sweep", *SMALL, "--challenges", "static,static", "--method", "stock", "--grid", "change=0.1,0.1"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*/videos/*"))) == 5  # stock, window, every_nth, random, keyframe
    assert "failed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--data", "nowhere/DAVIS"], "no folder nowhere/DAVIS.*davischallenge.org"),
        (["run", "--challenges", "fog"], "no challenge is called fog"),
        (["run", "--method", "best"], "no method 'best'; choose one of stock, window"),
        (["run", "--set", "change"], "--set 'change': write key=value"),
        (["run", "--set", "chnge=0.2"], "unknown keyword chnge"),
        (["run", "--set", "change=Best() > 1"], "there is no 'Best'; there are Adaptive"),
        (["run", "--model", "huge"], "no model is called 'huge'"),
        (["run", "--model", "large", "--checkpoints", "x"], r"x/sam2.1_hiera_large.pt is missing.*curl .*https://"),
        (["run", "--model", "missing.pt"], "missing.pt: no such file"),
        (["run", "--workers", "0"], "workers=0"),
        (["run", "--set", "keyframes=6"], r"keyframe keyframes=6: Recent.*Keyframes.* has 6"),
        (["sweep", "--base", "fifo", "--grid", "recent=1,7"], r"fifo recent=7: Recent\(7\).* 6 memories"),
        (["run", "--split", "val"], "no split 'val'"),
        (["run", "--frames", "2"], "three frames"),
        (["run", "--size", "4"], "size=4.*16 pixels"),
        (["run", "--objects", "256"], "1 to 255 objects"),
        (["run", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["run", "--device", "foo", "--workers", "2"], "--device foo: there is no such device"),
        (["run", "--image-size", "0"], "--image-size 0: give a multiple of 32"),
        (["run", "--sequences", "a,b"], "--sequences a,b: .* for synthetic leave --sequences empty"),
        (["run", "--data", ".", "--challenges", "static"], "--challenges static: .* leave --challenges empty"),
        (["sweep", "--grid", "change"], "'change' is not name=value,value"),
        (
            ["sweep", "--grid", "change=1", "--grid", "change=2"],
            "keyframe change=1 change=2: .*: change is given twice; give it once",
        ),
        (
            ["sweep", "--set", "change=1", "--grid", "change=2"],
            "keyframe change=1 change=2: .*: change is given twice; give it once",
        ),
        (["bench", "--data", "."], "--data .: bench runs on generated clips; give a folder to official or sweep"),
        (["report", "nowhere"], "there is no nowhere"),
    ],
)
def test_bad_input_is_a_sentence_and_code_2(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert re.search(sentence, shown), shown


def test_folders_that_do_not_fit_together_are_a_sentence(tmp_path, capsys):
    write_folder(tmp_path / "data", {"a": make_clip("static", 0, 4, 64)})
    for t in range(4):
        file = tmp_path / f"data/Annotations/a/{t:05d}.png"
        Image.fromarray(np.asarray(Image.open(file))[::2, ::2]).save(file)
    assert main(["run", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2
    assert "a: frames are 64 x 64 and masks 32 x 32 pixels" in capsys.readouterr().err
    for file in (tmp_path / "data/Annotations/a").glob("*"):
        file.unlink()
    assert main(["run", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2
    assert "a: no masks in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_split_whose_masks_are_not_published_is_a_sentence(tmp_path, capsys):
    write_folder(tmp_path / "valid", {"a": make_clip("static", 0, 4, 64)})
    for t in range(1, 4):
        (tmp_path / f"valid/Annotations/a/{t:05d}.png").unlink()
    assert main(["run", "--data", str(tmp_path / "valid"), "--out", str(tmp_path / "out")]) == 2
    assert "masks of objects' first frames only" in capsys.readouterr().err


def test_unwritable_results_are_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        assert main(["run", *SMALL, "--challenges", "static", "--out", str(tmp_path / out)]) == 2
        assert str(tmp_path / out) in capsys.readouterr().err
    arguments = ["run", *SMALL, "--challenges", "static", "--method", "stock", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
