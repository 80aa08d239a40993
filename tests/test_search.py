"""Searches: spaces, studies that go on, first passes by replay, the front, winners on other clips."""

import csv
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

pytest.importorskip("optuna")

import optuna

from benchmarks.__main__ import main
from benchmarks.compare import load_groups
from benchmarks.plan import BASELINES, label
from benchmarks.results import read_csv
from benchmarks.search import samplers
from benchmarks.search.measures import Replayed, check_objectives, mean_of
from benchmarks.search.space import SPACES, build, load_space
from benchmarks.search.study import Study, make_sampler
from sam2_keyframe import KeyframeMemory

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--clips", "1", "--frames", "10", "--size", "64", "--image-size", "64", "--challenges", "occlusion,scale"]
"""Two clips of ten frames."""


def written(tmp_path: Path, **space: object) -> list[str]:
    file = tmp_path / "spaces.yaml"
    file.write_text(yaml.safe_dump({"own": space}, sort_keys=False))
    return ["own", "--spaces", str(file)]


def rows(folder: Path) -> list[dict[str, str]]:
    return read_csv(folder / "report" / "trials.csv")


# -- spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(yaml.safe_load(SPACES.read_text())))
def test_every_member_of_the_examples_is_a_method(name):
    space = load_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    specs = [space.suggest(study.ask()) for _ in range(20)]
    assert all(isinstance(build(spec), KeyframeMemory) for spec in specs)
    assert len({label(spec) for spec in specs}) >= 8
    shown = " ".join(label(spec) for _, spec in space.members())
    for parameter in space.parameters.values():
        for text in getattr(parameter, "texts", ()):
            assert text.partition("{")[0] in shown  # every choice is tried before a search begins


def test_the_spaces_of_the_page_are_spaces(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "search.md").read_text(), re.S)
    (tmp_path / "spaces.yaml").write_text(text)
    for name in yaml.safe_load(text):
        assert len(list(load_space(name, tmp_path / "spaces.yaml").members())) > 4


def test_a_text_stands_in_a_text_and_a_grid_has_no_method_twice(tmp_path):
    definition = {
        "method": "keyframe",
        "change": ["MaskIoU() > {bound}", "MinGap({gap})"],
        "bound": {"low": 0.2, "high": 0.6, "step": 0.2},
        "gap": {"low": 2, "high": 6, "step": 4},
        "keyframes": [1, 2],
        "fill": False,
    }
    written(tmp_path, **definition)
    space = load_space("own", tmp_path / "spaces.yaml")
    labels = [label(space.spec(values)) for values in space.grid()]
    assert len(labels) == len(set(labels)) == (3 + 2) * 2
    assert labels[0] == "keyframe change=MaskIoU() > 0.2 keyframes=1 fill=False"
    assert "keyframe change=MinGap(6) keyframes=2 fill=False" in labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chnage": [0.1]}, "unknown key chnage.*did you mean 'change'"),
        ({"method": "keyframes"}, "there is no method 'keyframes'"),
        ({"memory": "KeyframeMemory()"}, "either method: NAME or memory"),
        ({"change": ["MaskIoU() > {bound}"]}, r"\{bound\} stands in a text and there is no key 'bound'"),
        ({"change": ["MaskIuO() > 0.1"]}, "there is no 'MaskIuO'"),
        ({"change": {"low": 0.1, "hihg": 0.3}}, "unknown key 'hihg' of a range.*did you mean 'high'"),
        ({"change": {"low": 0.3, "high": 0.1}}, "low lies below high"),
        ({"change": {"low": "a", "high": 0.1}}, "write numbers"),
        ({"change": {"low": 0, "high": 0.1, "log": True}}, "log takes a low above 0"),
        ({"change": []}, "give a list of numbers"),
        ({"change": None}, "nothing is given"),
        ({"change": ["{a}"], "a": ["{b}"], "b": ["{a}"]}, "stand in each other without end"),
        ({"keyframes": {"low": -2, "high": 1}}, r"keyframes=-2.*|n=-2"),
    ],
)
def test_a_malformed_space_is_refused_in_a_sentence(tmp_path, capsys, change, message):
    space = written(tmp_path, **{"method": "keyframe", **change})
    assert main(["search", *space, *TINY, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert pytest.raises(ValueError, match=message).matches(ValueError(error)), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keyframes"], "has no space 'keyframes'.*did you mean 'keyframe'"),
        (["keyframe", "--sampler", "nsga"], "there is no sampler 'nsga'.*did you mean 'nsga2'"),
        (["keyframe", "--sampler", "grid"], "change is a range without a step"),
        (["keyframe", "--objectives", "jf", "byte"], "nothing measures byte"),
        (["keyframe", "--objectives", "jf", "jf"], "give each once"),
        (["keyframe", "--objectives", "coverage"], "a live run does not measure coverage.*add --replay"),
        (["keyframe", "--replay", "--objectives", "jf", "time"], "cannot know jf, time"),
        (["keyframe", "--live", "2"], "--live runs what a replay found"),
        (["keyframe", "--split", "test"], "a search looks at development clips alone"),
        (["keyframe", "--confirm", "dev"], "the search has seen these clips"),
        (["keyframe", "--trials", "0"], "--trials 0: give at least 1"),
        (["keyframe", "--storage", "nosuch://x"], "--storage nosuch://x cannot be opened"),
        (["keyframe", "--spaces", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(tmp_path, capsys, arguments, message):
    assert main(["search", *arguments, *TINY, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert pytest.raises(ValueError, match=message).matches(ValueError(error)), error


def test_absences_are_no_objective_where_nobody_is_away(tmp_path, capsys):
    clips = ["--clips", "1", "--frames", "10", "--size", "64", "--challenges", "static"]
    assert main(["search", "keyframe", *clips, "--objectives", "recovery", "mib", "--out", str(tmp_path)]) == 2
    assert "nothing measures recovery here: no object is away" in capsys.readouterr().err


def test_an_objective_nobody_has_is_none():
    assert np.isnan(mean_of([{"jf": float("nan"), "mib": 1.0}], ["jf"])[0])
    assert mean_of([{"jf": 1.0}, {"jf": 3.0}, {"jf": float("nan")}], ["jf"]) == [2.0]
    check_objectives(["coverage", "tokens"], replayed=True)


# -- studies ----------------------------------------------------------------------------------------------------------


def open_study(folder: Path, sampler: str = "nsga2", **about: object) -> Study:
    make = make_sampler(sampler, 0, 4, [])
    return Study("s", str(folder / "s.journal"), {"space": 1, **about}, ["maximize", "minimize"], make, folder / "p")


def two(trial: object) -> tuple[float, float]:
    x, y = (trial.suggest_float(name, 0, 1) for name in "xy")  # type: ignore[attr-defined]
    return x * (1 - y), x + y


class Killed(BaseException):
    """Stands where a process ends without a word: the trial stays under way."""


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_a_study_that_is_cut_off_tries_what_a_whole_one_does(tmp_path, sampler):
    whole = open_study(tmp_path / "whole", sampler)
    whole.search(14, two)
    found = [trial.params for trial in whole.trials]
    assert len({tuple(params.values()) for params in found}) > 6
    calls = 0

    def ends(trial: object) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        if calls in (3, 9):
            raise Killed
        return two(trial)

    for _ in range(2):
        with pytest.raises(Killed):
            open_study(tmp_path / "cut", sampler).search(14, ends)
    again = open_study(tmp_path / "cut", sampler)
    again.search(14, ends)
    assert [trial.params for trial in again.trials] == found
    assert [trial.values for trial in again.front] == [trial.values for trial in whole.front]


def test_a_trial_whose_process_is_gone_gives_its_place_back(tmp_path):
    study = open_study(tmp_path)
    study.search(2, two)
    left = study._study.ask()  # as if the process had been killed here, or a moment later
    for attributes in ({}, {"process": "gone", "home": study._home, "place": 2}):
        for key, value in attributes.items():
            left.set_user_attr(key, value)
        again = open_study(tmp_path)
        again.search(4, two)
        assert [trial.user_attrs["place"] for trial in again.trials] == [0, 1, 2, 3]
        left = again._study.ask()
        again._study.tell(left, state=optuna.trial.TrialState.FAIL)
        left = again._study.ask()
    other = open_study(tmp_path)
    left = other._study.ask()
    left.set_user_attr("process", "there")
    left.set_user_attr("home", "another machine")
    left.set_user_attr("place", 4)
    other.search(6, two)  # what is under way elsewhere is left alone
    assert [trial.user_attrs["place"] for trial in other.trials] == [0, 1, 2, 3, 5]


def test_a_journal_whose_last_line_was_cut_off_goes_on(tmp_path):
    open_study(tmp_path).search(3, two)
    journal = tmp_path / "s.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":5,"worker')
    again = open_study(tmp_path)
    again.search(5, two)
    assert len(again.complete) == 5


def test_a_failed_trial_is_told_and_does_not_end_the_search(tmp_path):
    def fails(trial: object) -> tuple[float, float]:
        found = two(trial)
        if trial.number == 1:  # type: ignore[attr-defined]
            raise ValueError("no such memory")
        return found

    study = open_study(tmp_path)
    study.search(4, fails)
    assert [trial.user_attrs.get("error") for trial in study.trials] == [None, "ValueError: no such memory", None, None]
    assert len(study.complete) == 3


def test_a_study_of_another_search_is_refused(tmp_path):
    open_study(tmp_path).search(1, two)
    with pytest.raises(ValueError, match=r"of another search: seed was None and is 2.*another --study"):
        open_study(tmp_path, seed=2)


# -- searches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """A first pass by replay, its best two tracked."""
    out = tmp_path_factory.mktemp("replayed")
    more = ["--replay", "--trials", "12", "--population", "4", "--live", "2", "--prune-after", "1"]
    assert main(["search", "shelves", *TINY, *more, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_replay_finds_a_front_beside_the_baselines(replayed):
    trials = rows(replayed)
    assert [int(row["trial"]) for row in trials] == list(range(12))
    done = [row for row in trials if row["state"] == "complete"]
    assert len({row["method"] for row in done}) > 2
    front = read_csv(replayed / "report" / "front.csv")
    found = {row["method"]: [float(row[name]) for name in ("coverage", "clean", "mib")] for row in front}
    assert set(BASELINES) < set(found)
    values = {row["method"]: [float(row[name]) for name in ("coverage", "clean", "mib")] for row in done}

    def beaten(ours: list[float], theirs: list[float]) -> bool:
        gained = [(a - b) * sign for a, b, sign in zip(theirs, ours, (1, 1, -1), strict=True)]
        return min(gained) >= 0 and max(gained) > 0

    for method, ours in values.items():
        assert (method in found) == (not any(beaten(ours, theirs) for theirs in values.values()))
    assert (replayed / "report" / "front.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_replay_tells_bytes_and_tokens_as_a_live_run(replayed):
    text = (replayed / "report" / "README.md").read_text()
    assert "The best of the replay, tracked" in text
    lines = [line.split("|")[1:-1] for line in text.partition("tracked\n")[2].splitlines() if line.startswith("| ")]
    head = [cell.strip() for cell in lines[0]]
    for line in lines[1:]:
        row = dict(zip(head, (cell.strip() for cell in line), strict=True))
        if row["method"] == "**stock**":  # what was recorded: masks, and so all, are the same
            assert row["replay: mib"] == row["live: mib"]
    assert len(lines) >= len(BASELINES) + 2


def test_a_trial_stops_where_another_is_as_good_on_every_video(replayed):
    stopped = [row for row in rows(replayed) if row["state"] == "stopped early"]
    assert stopped
    assert all(row["videos"] == "1" and row["coverage"] == "" for row in stopped)


@pytest.mark.slow
def test_samplers_are_compared_by_what_they_dominate(replayed):
    arguments = ["shelves", *TINY, "--replay", "--trials", "4", "--seeds", "0", "1", "--out", str(replayed)]
    assert samplers.main([*arguments, "--storage", str(replayed / "samplers.journal")]) == 0
    found = json.loads((replayed / "samplers" / "samplers.json").read_text())
    runs = {(run["sampler"], run["seed"]): run for run in found["runs"]}
    assert set(runs) == {(sampler, seed) for sampler in ("nsga2", "random") for seed in (0, 1)}
    assert all(run["trials"] == [4] and 0 < run["hypervolume"][0] < 1 for run in runs.values())
    assert "nsga2 has the larger one than random with" in (replayed / "samplers" / "README.md").read_text()


def test_a_hypervolume_is_the_share_of_the_box_that_is_dominated():
    best, worst, middle = (np.array(each, float) for each in ([0, 0], [10, 2], [5, 1]))
    found = samplers.hypervolumes({("a", 0): [worst, middle, None, best], ("b", 0): [middle]}, [1, 2, 4])
    box = 1.1**2
    assert found["a", 0] == pytest.approx([0.1**2 / box, 0.6**2 / box, 1])
    assert found["b", 0] == pytest.approx([0.6**2 / box] * 3)


@pytest.mark.parametrize(
    ("shelf", "why"),
    [
        ("Keyframes(9, read=Relevant())", "looks at the features of the frame to be tracked"),
        ("Keyframes(2, evict=LeastUsed(AttentionShare()))", "run it with SAM 2"),
        ("Keyframes(2, Stability(2.0) > 0.5)", "needs the mask's logits"),
    ],
)
def test_what_a_replay_cannot_know_is_refused(tmp_path, replayed, capsys, shelf, why):
    space = written(tmp_path, memory="KeyframeMemory(Recent(1), {shelf})", shelf=["Keyframes(2)", shelf])
    assert main(["search", *space, *TINY, "--replay", "--out", str(replayed)]) == 2
    error = capsys.readouterr().err
    assert f"space own, shelf={shelf}: a replay cannot know what" in error
    assert why in error
    assert "leave --replay out" in error


def test_coverage_and_clean_are_what_they_say(replayed):
    from argparse import ArgumentParser

    from benchmarks.plan import make_plan
    from benchmarks.search import add_search_arguments

    parser = ArgumentParser()
    add_search_arguments(parser)
    options = parser.parse_args(["keyframe", *TINY, "--out", str(replayed)])
    bench = Replayed(make_plan(options, [("stock", [])], share=True), replayed / "recordings")
    (first, *_) = bench.names
    recording = bench.recording(first)
    (row,) = bench.measure(("window", []), first)
    frames, vectors = recording.descriptors(1, "object/image")
    units = {t: v / np.linalg.norm(v) for t, v in zip(frames, vectors.numpy(), strict=True) if np.linalg.norm(v)}
    best = []
    for t in range(1, 10):  # the prompt, and the last six frames but the newest
        if t in units:
            older = [units[s] for s in {0, *range(max(0, t - 6), t)} - {t - 1} if s in units]
            best.append(max((float(u @ units[t]) for u in older), default=0.0))
    assert row["coverage"] == pytest.approx(100 * np.mean(best), abs=1e-3)
    assert 0 < row["clean"] <= 100


@pytest.mark.slow
def test_a_live_search_ends_with_winners_on_test_clips(tmp_path, capsys):
    out = tmp_path / "out"
    change = {"low": 0.2, "high": 0.6, "step": 0.4}
    space = written(tmp_path, method="keyframe", change=change, keyframes={"low": 0, "high": 2, "step": 2}, others=1)
    more = ["--sampler", "grid", "--objectives", "jf", "mib", "--prune-after", "0", "--confirm", "--winners", "1"]
    arguments = ["search", *space, *TINY, *more, "--confirm-clips", "1", "--out", str(out)]
    assert main(arguments) == 0
    trials = rows(out)
    assert len(trials) == 4  # the grid has no more, whatever --trials says
    kept = [f"keyframe change={change} keyframes={count} others=1" for change in (0.2, 0.6) for count in (0, 2)]
    assert [row["method"] for row in trials] == kept
    for row in trials:
        metrics = [json.loads(file.read_text()) for file in (out / "runs").glob("*/metrics.json")]
        (found,) = (each for each in metrics if each["config"]["method"]["label"] == row["method"])
        assert float(row["jf"]) == pytest.approx(found["accuracy"]["jf"])
        assert float(row["mib"]) == pytest.approx(found["occupancy"]["memory"]["peak_mib"])
    (group,) = load_groups(out / "report" / "synthetic-10f-64px_test.json")
    assert {*BASELINES, "keyframe"} < {result.label for result in group.results}
    assert "On videos that took no part" in (out / "report" / "README.md").read_text()
    capsys.readouterr()
    assert main(arguments) == 0  # again: nothing is tracked a second time
    assert "trial" not in capsys.readouterr().err.replace("trials", "")
    assert main([*arguments, "--objectives", "jf", "tokens", "--study", "own-grid-0"]) == 2
    assert "objectives was ['jf', 'mib'] and is ['jf', 'tokens']" in capsys.readouterr().err


@pytest.mark.slow
def test_a_time_is_measured_beside_stocks(tmp_path):
    space = written(tmp_path, method="keyframe", keyframes=[1])
    clips = ["--clips", "1", "--frames", "15", "--size", "64", "--image-size", "64", "--challenges", "scale"]
    more = ["--objectives", "time", "--trials", "1", "--sampler", "random", "--out", str(tmp_path)]
    assert main(["search", *space, *clips, *more]) == 0
    (row,) = rows(tmp_path)
    (run,) = (tmp_path / "timed").glob("*keyframe*")
    assert float(row["time"]) == json.loads((run / "time.json").read_text())["ratio"] > 0
    assert (tmp_path / "report" / "front.png").exists()  # of one objective: over the trials


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_the_numbers_of_one_that_is_not(tmp_path):
    arguments = [
        *(sys.executable, "-m", "benchmarks", "search", "keyframe", *TINY, "--trials", "10", "--population", "3"),
        *("--prune-after", "1", "--objectives", "jf", "mib"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = subprocess.run([*arguments, "--out", str(tmp_path / "whole")], env=environment, capture_output=True)
    assert whole.returncode == 0, whole.stderr.decode()
    killed = [*arguments, "--out", str(tmp_path / "killed")]
    for seen in (1, 4):
        process = subprocess.Popen(killed, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"trial {seen}:"):
                break
        time.sleep(0.2)  # in the middle of the next
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    again = subprocess.run(killed, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "trial 0:" not in again.stderr
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("url", [None, "sqlite"])
def test_processes_share_a_study(tmp_path, url):
    out = tmp_path / "out"
    storage = ["--storage", f"sqlite:///{tmp_path}/study.db"] if url else []
    more = [*TINY, *storage, "--replay", "--trials", "16", "--population", "4", "--workers", "2"]
    assert main(["search", "keyframe", *more, "--out", str(out)]) == 0
    trials = rows(out)
    assert [int(row["trial"]) for row in trials] == list(range(16))
    assert not list((out / "processes").iterdir())
    with open(out / "report" / "front.csv") as file:
        assert len(list(csv.DictReader(file))) > len(BASELINES)
