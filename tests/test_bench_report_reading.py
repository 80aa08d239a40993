"""Results read back: rows of others, files of several runs, what breaks the schema, other versions."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest

from benchmarks.__main__ import main
from benchmarks.compare import load_groups
from benchmarks.results import check_metrics, read_csv, validator

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
FILES = [path for path in sorted(RESULTS.glob("*/*.json")) if '"schema"' in path.read_text()[:20]]


@pytest.fixture
def stock():
    """The metrics of a run that is kept here."""
    group = next(group for group in load_groups(RESULTS / "methods") if group.config["split"] == "test")
    return copy.deepcopy(dict(group.reference.metrics))


def test_kept_results_are_of_the_schema():
    assert len(FILES) >= 10
    for path in FILES:
        check_metrics(json.loads(path.read_text()), path)


def test_the_schema_is_json_schema():
    jsonschema.Draft202012Validator.check_schema(validator().schema)


@pytest.mark.slow
def test_kept_results_are_shown_study_by_study(tmp_path):
    groups = load_groups(RESULTS)
    assert {group.study for group in groups} == {path.parent.name for path in FILES}
    assert len({group.slug for group in groups}) == len({group.title for group in groups}) == len(FILES)
    for group in groups:
        labels = [result.label for result in group.results]
        assert len(labels) == len(set(labels))  # nothing of another study
    (tmp_path / "results/mine").mkdir(parents=True)
    for name in ("methods/vos-mini_val.json", "../studies/loader/micro.json"):
        (tmp_path / "results/mine" / Path(name).name).write_text((RESULTS / name).read_text())
    assert main(["report", str(tmp_path / "results")]) == 0
    assert "## mine: vos-mini, val, 10 videos" in (tmp_path / "results/report/README.md").read_text()


def test_rows_of_others_are_read(stock, tmp_path):
    (tmp_path / "theirs.json").write_text(json.dumps(stock))
    assert main(["report", str(tmp_path)]) == 0
    assert "| **stock** ◆ |" in (tmp_path / "report/README.md").read_text()


def test_figures_are_rounded_once(stock, tmp_path):
    """58.4496 is 58.4; by way of 58.45 it would be 58.5."""
    stock["accuracy"] |= {"jf": 58.4496, "j": 61.4496, "f": 55.4496}
    beside = {"ratio": 1.0451, "frame_ms": 12.3, "stock_ms": 11.8, "frames": 50, "video": "a"}
    stock["time"] = {"frame_ms": 12.3496, "beside_stock": beside}
    (tmp_path / "theirs.json").write_text(json.dumps(stock))
    assert main(["report", str(tmp_path)]) == 0
    (row,) = (line for line in (tmp_path / "report/README.md").read_text().splitlines() if "**stock**" in line)
    assert re.match(r"\| \*\*stock\*\* ◆ \| 58.4 \|  \| 61.4 \| 55.4 \|.*\| 12.3 \| 1.05 \|$", row)
    page = (tmp_path / "report/index.html").read_text()
    assert "<td>stock ◆</td><td>58.4</td><td></td><td>61.4</td><td>55.4</td>" in page


def test_a_run_that_failed_on_a_video_is_marked_and_comes_last(stock, tmp_path):
    hardest = min(stock["sequences"], key=lambda name: stock["sequences"][name])
    for label in ("stock", "window", "keyframe"):
        metrics = copy.deepcopy(stock)
        metrics["config"]["method"].update(name=label, label=label)
        if label == "keyframe":
            metrics["sequences"].pop(hardest)
            metrics["accuracy"]["jf"] += 20
            metrics |= {"videos": 29, "failed": {hardest: "OSError: cannot\nread it"}}
        (tmp_path / f"{label}.json").write_text(json.dumps(metrics))
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report/README.md").read_text()
    assert "test, 30 videos" in text
    rows = [line for line in text.partition("### ")[0].splitlines() if line.startswith("| ") and "J&F" not in line]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        "**stock** ◆",
        "**window**",
        "keyframe (29 of 30 videos)",
    ]
    assert f"`keyframe` failed on {hardest}: OSError: cannot read it" in text
    assert "| keyframe |" not in text  # nor among the challenges
    page = (tmp_path / "report/index.html").read_text()
    assert "<td>keyframe (29 of 30 videos)</td>" in page
    assert '"name":"window"' in page
    assert '"name":"keyframe"' not in page  # in no plot


BROKEN = (
    (lambda m: m["accuracy"].update(jf=101), "accuracy.jf: 101 is greater than the maximum of 100"),
    (lambda m: m["accuracy"].pop("j"), "accuracy: 'j' is a required property"),
    (lambda m: m["accuracy"].update(f=None), "accuracy.f: None is not of type 'number'"),
    (lambda m: m.pop("occupancy"), "the file: 'occupancy' is a dependency of 'accuracy'"),
    (lambda m: m.pop("sequences"), "the file: 'sequences' is a dependency of 'accuracy'"),
    (lambda m: m["occupancy"]["memory"].pop("tokens"), "occupancy.memory: 'tokens' is a required property"),
    (lambda m: m["occupancy"]["memory"].update(mib=None), "occupancy.memory.mib: None is not of type 'number'"),
    (lambda m: m["occupancy"]["memory"].update(mib=-1), "occupancy.memory.mib: -1 is less than the minimum of 0"),
    (lambda m: m["config"].update(split=3), "config.split: 3 is not of type 'string'"),
    (lambda m: m["config"].pop("method"), "config: 'method' is a required property"),
    (lambda m: m["config"]["method"].update({"set": [1]}), r"set\[0\]: 1 is not of type 'string'"),
)


@pytest.mark.parametrize(("change", "sentence"), BROKEN)
def test_what_breaks_the_schema_is_a_sentence(change, sentence, stock, tmp_path, capsys):
    change(stock)
    (tmp_path / "theirs.json").write_text(json.dumps(stock))
    assert main(["report", str(tmp_path)]) == 2
    assert re.search(f"theirs.json: .*{sentence}", capsys.readouterr().err)


def test_a_run_in_which_nothing_was_scored_breaks_nothing(stock):
    stock["accuracy"] = dict.fromkeys(stock["accuracy"])
    check_metrics(stock)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"schema": 0}', "another version .schema 0"),
        ("[]", "another version .schema list"),
        ("{", "cannot be read"),
        ('{"schema": 1, "runs": [{}]}', "'config' is a required property"),
        (None, r"runs\[0\]: 'videos' is a required property"),
    ],
)
def test_results_of_another_version_are_a_sentence(content, sentence, tmp_path, capsys):
    if content is None:
        content = json.dumps({**json.loads(FILES[0].read_text()), "runs": [{}]})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_an_empty_folder_is_a_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_rows_of_the_same_label_are_told_apart(stock, tmp_path):
    for i, name in enumerate(("ours/run", "alice", "bob")):
        metrics = copy.deepcopy(stock)
        metrics["accuracy"]["jf"] = 10.0 + i
        metrics["challenges"] = {"occlusion": 20.0 + i}
        metrics["sequences"] = {video: [30.0 + i] for video in metrics["sequences"]}
        file = tmp_path / (f"{name}/metrics.json" if "/" in name else f"{name}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(metrics))
    assert main(["report", str(tmp_path)]) == 0
    report = tmp_path / "report"
    labels = ["stock", "stock (alice)", "stock (bob)"]
    text = (report / "README.md").read_text()
    assert [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| stock (")][:2] == [
        ["| stock (bob) ◆", "12.0"],
        ["| stock (alice)", "11.0"],
    ]
    (challenges,) = read_csv(next(report.glob("*/challenges.csv")))
    assert [challenges[label] for label in labels] == ["20.0", "21.0", "22.0"]
    assert [read_csv(next(report.glob("*/sequences.csv")))[0][label] for label in labels] == ["30.0", "31.0", "32.0"]
    page = (report / "index.html").read_text()
    assert re.findall(r"<summary>(.*), J&amp;F by video", page) == labels[::-1]


def test_a_file_of_the_same_label_twice_loses_none(tmp_path):
    kept = json.loads(FILES[0].read_text())
    kept["runs"] = [kept["runs"][0]] * 3
    (tmp_path / "theirs.json").write_text(json.dumps(kept))
    (group,) = load_groups(tmp_path)
    assert len({result.label for result in group.results}) == 3


def test_a_bar_in_a_label_breaks_no_table(stock, tmp_path):
    stock["config"]["method"]["label"] = "keyframe change=Visible() | MaxGap(6)"
    stock["challenges"] = {"occlusion": 80.0}
    (tmp_path / "theirs.json").write_text(json.dumps(stock))
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report/README.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 2
    for table in tables:
        assert "Visible() \\| MaxGap(6)" in table
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_runs_own_folder_and_a_file_are_reported(stock, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps(stock))
    (run / "time.json").write_text('{"ratio": 1.0}')
    assert main(["report", str(run)]) == 0
    text = (run / "report/README.md").read_text()
    assert "**stock** ◆" in text
    (tmp_path / "theirs.json").write_text(json.dumps(stock))
    assert main(["report", str(tmp_path / "theirs.json")]) == 0
    assert (tmp_path / "theirs-report/README.md").read_text() == text
