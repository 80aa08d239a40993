"""Commands that keep results: what is refused before anything runs, and what is said of too little."""

import re

import pytest

from benchmarks import notebooks, tradeoff
from benchmarks.__main__ import main
from benchmarks.micro import card
from sam2_keyframe import METHODS, KeyframeMemory

SMALL = ["--image-size", "64", "--frames", "14", "--size", "64"]


def folders(root):
    return ["--out", str(root / "out"), "--results", str(root / "results")]


def test_a_trial_replaces_no_results_of_other_clips(tmp_path, capsys):
    clips = [*SMALL, "--challenges", "static", "--workers", "1"]
    assert main(["default", *clips, "--clips", "2", "--set", "change=0.1", *folders(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for command, more in (("default", ["--clips", "3"]), ("methods", ["--image-size", "128"])):
        assert main([command, *clips, "--clips", "2", *more, *folders(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "synthetic-14f-64px_test.json holds runs under another protocol" in said
        assert "another --results" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before  # nothing was run
    assert main(["default", *clips, "--clips", "2", "--set", "change=0.3", *folders(tmp_path)]) == 0
    text = (tmp_path / "results/README.md").read_text()
    assert re.findall(r"`keyframe (change=\S+)`", text) in (["change=0.1", "change=0.3"], ["change=0.3", "change=0.1"])


@pytest.mark.parametrize("command", ["default", "methods", "study", "tradeoff"])
def test_real_clips_that_are_not_there_are_said_before_anything_runs(command, tmp_path, capsys):
    arguments = [*SMALL, "--clips", "1", "--data", str(tmp_path / "davsi"), *folders(tmp_path)]
    run = tradeoff.main(["run", *arguments]) if command == "tradeoff" else main([command, *arguments])
    assert run == 2
    assert f"there is no folder {tmp_path / 'davsi'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_clips_without_a_bound_are_refused_and_too_few_are_said(tmp_path, capsys):
    assert main(["default", *SMALL, "--challenges", "static,long", *folders(tmp_path)]) == 2
    assert "no bound is known for long; choose --challenges from static, deformation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    clips = ["--challenges", "static,occlusion", "--clips", "1", "--workers", "1"]
    assert main(["default", *SMALL, *clips, *folders(tmp_path)]) == 0
    rows = re.findall(r"^\| `keyframe` .*", (tmp_path / "results/README.md").read_text(), re.M)
    assert rows == [
        "| `keyframe` | static | 1 |  | -0.5 | too few clips |",
        "| `keyframe` | occlusion | 1 |  | 0 | too few clips |",
    ]


class Failing:
    name = "failing"

    def score(self, frame, history):
        raise RuntimeError("no score")


@pytest.mark.slow
def test_a_method_that_failed_on_every_video_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "failing", lambda: KeyframeMemory(measure=(Failing(),)))
    arguments = ["methods", *SMALL, "--clips", "1", "--workers", "1", "--method", "failing", *folders(tmp_path)]
    assert main(arguments) == 1
    text = (tmp_path / "results/README.md").read_text()
    assert "**window**" in text
    assert "Not in this table: `failing` (finished no video)." in text


def test_help_is_shown_and_nothing_is_done(capsys):
    written = card.CARD.stat().st_mtime_ns
    for command in (notebooks, card):
        with pytest.raises(SystemExit) as ended:
            command.main(["--help"])
        assert ended.value.code == 0
        assert "usage:" in capsys.readouterr().out
    assert card.CARD.stat().st_mtime_ns == written
    with pytest.raises(SystemExit):
        notebooks.main(["quickstrat"])
    assert "there is no notebook quickstrat; choose from new_scorer" in capsys.readouterr().err
