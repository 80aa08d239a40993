"""The study: its grid, how winners are chosen, and what its tables say."""

import json
import re
import shutil

import numpy as np
import pytest

from benchmarks import study
from benchmarks.__main__ import main
from benchmarks.compare import Group, Result, difference, load_groups
from benchmarks.study import FAMILIES, winners
from sam2_keyframe import make_method
from sam2_keyframe.app.options import parse_set

NAMES = ("mask IoU", "optical flow", "IoU + flow, sum")


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A small study of three families, and the arguments that made it."""
    root = tmp_path_factory.mktemp("study")
    arguments = ["study", "--families", *NAMES, "--challenges", "scale,occlusion", "--clips", "1", "--frames", "14"]
    arguments += ["--test-clips", "2", "--size", "64", "--image-size", "64", "--workers", "1"]
    arguments += ["--out", str(root / "out"), "--results", str(root / "results")]
    assert main(arguments) == 0
    return root, arguments


def test_the_grid_has_six_thresholds_and_three_capacities_in_every_family():
    rules = {family.rule for family in FAMILIES.values()}
    assert len(rules) >= 4
    for name, family in FAMILIES.items():
        runs = family.runs()
        assert len(runs) == len({tuple(replacements) for _, replacements in runs}) == 18, name
        assert set(family.parts) | ({family.instead} - {""}) <= set(FAMILIES)
        methods = [make_method(method, **parse_set(replacements)) for method, replacements in runs]
        assert len({repr(method) for method in methods}) == 18, name
        assert {method.keyframes.n for method in methods} == {1, 3, 5}
        assert len({method.keyframes.when for method in methods}) == 6


def result(family, index, jf, rate):
    """A family's run with a J&F and a keep-rate."""
    method, replacements = FAMILIES[family].runs()[index]
    spec = {"name": method, "set": replacements, "label": " ".join([method, *replacements])}
    return Result(None, {"config": {"method": spec}, "accuracy": {"jf": jf}, "keep_rate": rate, "sequences": {}})


def test_a_winner_is_the_best_of_its_family_and_of_equals_the_one_that_keeps_fewer():
    runs = [
        ("mask IoU", 0, 70.0, 10.0),
        ("mask IoU", 5, 71.0, 30.0),
        ("mask IoU", 7, 71.0, 20.0),
        ("SSIM", 3, 60.0, 1.0),
    ]
    group = Group({}, [result(*run) for run in runs])
    found = winners(group, FAMILIES)
    assert {name: winner.label for name, winner in found.items()} == {
        "mask IoU": result(*runs[2]).label,
        "SSIM": result(*runs[3]).label,
    }


@pytest.mark.slow
def test_winners_are_chosen_on_development_clips_and_shown_on_others(studied):
    dev, test = load_groups(studied[0] / "results")
    assert (dev.config["split"], test.config["split"]) == ("dev", "test")
    assert len(dev.results) == 3 * 18 + 6
    assert not {name for r in dev.results for name in r.by_video()} & {
        name for r in test.results for name in r.by_video()
    }
    won = winners(dev, {name: FAMILIES[name] for name in NAMES})
    for name, winner in won.items():
        assert winner.jf == max(r.jf for r in FAMILIES[name].members(dev))
    expected = {"stock", "window", *study.METHODS, *(winner.label for winner in won.values())}
    assert {r.label for r in test.results} == expected
    assert all("beside_stock" in r.metrics["time"] for r in test.results)


@pytest.mark.slow
def test_the_tables_say_what_the_results_say(studied):
    root, arguments = studied
    text = (root / "results/README.md").read_text()
    dev, test = load_groups(root / "results")
    won = winners(dev, {name: FAMILIES[name] for name in NAMES})
    ours, theirs = (
        next(r for r in test.results if r.label == won[name].label) for name in ("IoU + flow, sum", "mask IoU")
    )
    gain = difference(ours, theirs)
    cell = f"{round(gain.mean, 1) + 0.0:+.1f} (4 videos) |"  # too few for an interval or a verdict
    assert f"| IoU + flow, sum minus mask IoU | {cell}" in text
    runs = [r for r in FAMILIES["mask IoU"].members(dev) if "change=MaskIoU() > 0.1" in r.method["set"]]
    assert len(runs) == 3
    rate = np.mean([r.metrics["keep_rate"] for r in runs])
    assert f"MaskIoU() > 0.1: {np.mean([r.jf for r in runs]):.1f} ({rate:.0f} %)" in text
    changing = [r.by_video()["scale-10000"][0] for r in FAMILIES["mask IoU"].members(dev)]
    assert f"| mask IoU | {np.mean(changing):.1f} |" in text.partition("## Shape and scale change")[2]
    (root / "results/README.md").write_text("")
    assert main([*arguments, "--only-table"]) == 0
    assert (root / "results/README.md").read_text() == text


@pytest.mark.slow
def test_results_can_be_reported_and_keep_no_path(studied, tmp_path):
    folder = studied[0] / "results"
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    assert "IoU" in (tmp_path / "report/README.md").read_text()
    for file in folder.glob("*.json"):
        assert str(studied[0]) not in file.read_text()
        assert json.loads(file.read_text())["config"]["data"]["name"] == "synthetic-14f-64px"


def test_bad_input_is_a_sentence(tmp_path, capsys):
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["study", "--families", "colour", *folders]) == 2
    assert "no family is called colour; choose from mask IoU" in capsys.readouterr().err
    assert main(["study", "--only-table", *folders]) == 2
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_holds_one_study(studied, tmp_path, capsys):
    root, arguments = studied
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for option, there in (("--frames", 14), ("--test-clips", 2), ("--size", 64)):
        assert main([*arguments, option, "16"]) == 2
        name = "clips" if option == "--test-clips" else option[2:]
        assert f"{name} is {there} there and 16 here" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    shutil.copytree(root / "results", tmp_path / "results")
    grid = (root / "results/synthetic-14f-64px_dev.json").read_text()
    (tmp_path / "results/longer_dev.json").write_text(re.sub('"frames": 14|synthetic-14f', _longer, grid, count=2))
    assert main(["study", "--only-table", "--results", str(tmp_path / "results")]) == 2
    assert re.search(r"grids on several kinds .*synthetic-14f.*; .*synthetic-20f", capsys.readouterr().err)


def _longer(found):
    return found[0].replace("14", "20")


@pytest.mark.slow
def test_without_clips_of_a_change_it_is_said(studied):
    groups = [
        Group(g.config, [Result(None, {**r.metrics, "sequences": _of_occlusion(r)}) for r in g.results])
        for g in load_groups(studied[0] / "results")
    ]
    families = {name: FAMILIES[name] for name in NAMES}
    text = study.write(groups, families)
    assert "None of the clips is of deformation or scale." in text
    assert "nan" not in text


def _of_occlusion(result):
    return {name: values for name, values in result.by_video().items() if name.startswith("occlusion")}
