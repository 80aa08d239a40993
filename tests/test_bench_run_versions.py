"""Results of other versions: what they were made with stays written down, and they are never mixed."""

import json
import shutil

import pytest
import yaml

from benchmarks import results as _store
from benchmarks.__main__ import main

SMALL = ["--image-size", "128", "--clips", "1", "--frames", "6", "--size", "64", "--method", "stock"]


def run_static(out, *more):
    return main(["run", *SMALL, "--challenges", "static", *more, "--out", str(out)])


@pytest.fixture
def folder(tmp_path):
    assert run_static(tmp_path) == 0
    (config,) = tmp_path.glob("*/config.yaml")
    return config.parent


def change(file, **changes):
    config = yaml.safe_load(file.read_text())
    config["versions"].update(changes.pop("versions", {}))
    file.write_text(yaml.safe_dump({**config, **changes}))
    return file.read_text()


def test_results_of_another_version_are_left_alone(folder, capsys):
    file = folder / "config.yaml"
    for changes, sentence in (
        ({"schema": 0}, "made otherwise: schema was 0 and is 1"),
        ({"schema": 1, "versions": {"torch": "1.0"}}, "made otherwise: torch was '1.0' and is '2"),
    ):
        before = change(file, **changes)
        assert run_static(folder.parent) == 2
        assert sentence in capsys.readouterr().err
        assert file.read_text() == before
    file.write_text("nonsense")
    assert run_static(folder.parent) == 2
    assert "not a configuration of this version" in capsys.readouterr().err


def test_metrics_name_what_the_videos_were_made_with(folder, monkeypatch):
    now = _store.surroundings()
    change(folder / "config.yaml", commit="older", versions={"numpy": "1.0"})
    (video,) = (folder / "videos").iterdir()
    facts = json.loads((video / "video.json").read_text())
    assert facts.pop("commit") == now["commit"]
    (video / "video.json").write_text(json.dumps(facts))  # as written before videos had a commit of their own
    monkeypatch.setattr("benchmarks.plan.surroundings", lambda: {**now, "commit": "newer"})
    for commit in ("older", "newer"):
        assert run_static(folder.parent) == 0
        config = json.loads((folder / "metrics.json").read_text())["config"]
        assert (config["commit"], config["versions"]["numpy"]) == (commit, "1.0")
        shutil.rmtree(video)  # so that it is tracked again
    assert yaml.safe_load((folder / "config.yaml").read_text())["commit"] == "older"


@pytest.mark.parametrize("change_table", [True, False])
def test_a_broken_video_is_named(folder, capsys, change_table):
    (video,) = (folder / "videos").iterdir()
    file = video / ("objects.csv" if change_table else "video.json")
    file.write_text(file.read_text().replace("memory_frames", "held") if change_table else '{"peak_dev')
    assert run_static(folder.parent) == 2
    assert f"{video} is not a video of this version" in capsys.readouterr().err


def test_a_run_named_twice_is_run_once(tmp_path):
    small = ["--image-size", "64", "--clips", "1", "--frames", "4", "--size", "64", "--challenges", "static"]
    arguments = ["default", *small, "--method", "stock", "--workers", "1", "--results", str(tmp_path / "results")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*/metrics.json"))) == 1


def test_tables_of_different_columns_are_not_joined(tmp_path):
    for name, text in (("a", "x,y\n1,2\n"), ("b", "y,x\n2,1\n")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"b and .*a have different columns"):
        _store.join_tables([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")


def test_what_a_kill_leaves_behind_is_cleared(folder):
    (folder / ".tmp-table").write_text("half a ta")
    (folder / "failed").mkdir()
    (folder / "failed/.tmp-error").write_text("Value")
    assert run_static(folder.parent) == 0
    assert not list(folder.glob(".tmp-*"))
    assert json.loads((folder / "metrics.json").read_text())["failed"] == {}
