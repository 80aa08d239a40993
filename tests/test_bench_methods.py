"""The tables of every method, and the verdicts on the default: what is run, kept, compared and said."""

import json
import re
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from benchmarks import default, methods
from benchmarks.__main__ import main
from benchmarks.compare import Difference, difference, load_groups
from benchmarks.datasets import Synthetic
from benchmarks.results import keep_results, read_csv
from benchmarks.timing import WARM_UP, beside_stock
from sam2_keyframe import METHODS, Frames, KeyframeMemory, Keyframes, Recent, make_method
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip

SMALL = ["--image-size", "64", "--clips", "2", "--frames", "14", "--size", "64", "--workers", "1"]


class Clock:
    """A clock that goes on by a second whenever it is read, so that a busy machine fails no test."""

    now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


@dataclass(frozen=True)
class Slow:
    """A scorer that takes four seconds."""

    clock: Clock
    name: str = "slow"

    def score(self, frame, history):
        self.clock.now += 4
        return frame.unknown()


def write_folder(root, names):
    """Write clips as a DAVIS-style folder."""
    for i, name in enumerate(names):
        clip = make_clip("deformation", i, 6, 64)
        for kind, images, suffix in (("JPEGImages", clip.frames, "jpg"), ("Annotations", clip.masks, "png")):
            (root / kind / name).mkdir(parents=True)
            for t, image in enumerate(images):
                Image.fromarray(image).save(root / f"{kind}/{name}/{t:05d}.{suffix}")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The table of three methods on generated and on real clips."""
    root = tmp_path_factory.mktemp("methods")
    write_folder(root / "footage", ["a", "b"])
    arguments = ["methods", *SMALL, "--method", "random", "keyframe", "--data", str(root / "footage")]
    arguments += ["--out", str(root / "out"), "--results", str(root / "results")]
    assert main(arguments) == 0
    return root, arguments


@pytest.mark.slow
def test_every_method_is_beside_stock_on_both_kinds_of_clips(made):
    groups = {group.config["data"]["name"]: group for group in load_groups(made[0] / "results")}
    assert set(groups) == {"synthetic-14f-64px", "footage"}
    seeds = [f"random seed={seed}" for seed in range(3)]
    for group in groups.values():
        assert sorted(result.label for result in group.results) == sorted(
            ["stock", "window", "every_nth", "keyframe", *seeds]
        )
    assert groups["synthetic-14f-64px"].config["split"] == "test"
    names = set(groups["synthetic-14f-64px"].results[0].by_video())
    assert names == {"occlusion-20000", "occlusion-20001"}  # test seeds
    assert set(groups["footage"].results[0].by_video()) == {"a", "b"}


@pytest.mark.slow
def test_what_is_kept_says_what_the_runs_say(made):
    root = made[0]
    runs = {path.parent.name: json.loads(path.read_text()) for path in root.glob("out/*/metrics.json")}
    for group in load_groups(root / "results"):
        for result in group.results:
            whole = runs[result.metrics["name"]]
            assert result.jf == pytest.approx(whole["accuracy"]["jf"], abs=1e-3)
            rows = read_csv(root / "out" / result.metrics["name"] / "objects.csv")
            assert result.by_video() == {
                row["video"]: [pytest.approx(100 * float(row["jf"]), abs=1e-3)] for row in rows
            }
            assert str(root) not in json.dumps(result.metrics)  # no path of this machine
            if result.label != "keyframe":
                continue
            kept = np.mean([float(row["keyframes"]) / float(row["tracked_frames"]) for row in rows])
            assert result.metrics["keep_rate"] == pytest.approx(100 * kept, abs=1e-3)


@pytest.mark.slow
def test_the_table_is_made_of_what_is_kept(made):
    root, arguments = made
    text = (root / "results/README.md").read_text()
    for group in load_groups(root / "results"):
        for result in group.results:
            gain = difference(result, group.reference)
            row = next(
                line
                for line in text.partition(group.title)[2].splitlines()
                if f"| {result.jf:.1f} |" in line and re.search(rf"[`*]{re.escape(result.label)}[`*]", line)
            )
            if result.label != "stock":
                assert f"{round(gain.mean, 1) + 0.0:+.1f} (2 videos)" in row
    assert text.index("synthetic") < text.index("footage")
    (root / "results/README.md").unlink()
    assert main([*arguments, "--only-table"]) == 0
    assert (root / "results/README.md").read_text() == text


@pytest.mark.slow
def test_nothing_finished_is_tracked_again(made, capsys):
    root, arguments = made
    before = {path: path.stat().st_mtime_ns for path in root.glob("out/*/videos/*/*")}
    times = {path: path.read_text() for path in root.glob("out/*/time.json")}
    assert len(times) == 7
    shutil.rmtree(next(root.glob("out/footage*keyframe*")) / "videos/b")
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert [line.split("  ")[:2] for line in said.splitlines() if "  J&F" in line] == [["b", "keyframe"]]
    after = {path: path.stat().st_mtime_ns for path in root.glob("out/*/videos/*/*")}
    assert {path for path in before if after[path] != before[path]} == {
        p for p in before if "footage" in str(p) and "keyframe" in str(p) and p.parent.name == "b"
    }
    assert {path: path.read_text() for path in root.glob("out/*/time.json")} == times


def test_time_beside_stock_is_of_both_sides(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("benchmarks.timing.MOST", 20)
    monkeypatch.setattr("benchmarks.timing.time", clock)
    pair = [load_micro_predictor(image_size=64) for _ in range(2)]
    video = Synthetic("dev", ("static",), 1, 30, 64).open("static-10000")
    same = beside_stock(pair, video, make_method("stock"))
    assert same["frames"] == 20 - WARM_UP  # of 30
    assert same["ratio"] == 1
    slow = beside_stock(pair, video, KeyframeMemory(measure=(Slow(clock),)))
    assert (slow["ratio"], slow["frame_ms"], slow["stock_ms"]) == (5, 5000, 1000)
    assert not any("propagate" in name for predictor in pair for name in vars(predictor))  # unwrapped again
    with pytest.raises(ValueError, match="needs 13"):
        beside_stock(pair, Synthetic("dev", ("static",), 1, 12, 64).open("static-10000"), make_method("window"))


def test_methods_that_cannot_run_are_named_with_the_reason(monkeypatch):
    def chosen(frames):
        return KeyframeMemory(Keyframes(5, Frames(frames)))

    def large():
        return KeyframeMemory(Recent(2), Keyframes(9))

    monkeypatch.setitem(METHODS, "chosen", chosen)
    monkeypatch.setitem(METHODS, "large", large)
    runs, left_out = methods.choose(["stock", "chosen", "large", "random"], 6)
    assert runs == [("stock", []), *(("random", [f"seed={seed}"]) for seed in range(3))]
    assert left_out["chosen"] == "needs frames of the video"
    assert "Recent(2) and Keyframes(9)" in left_out["large"]
    with pytest.raises(ValueError, match="no method 'best'"):
        methods.choose(["best"], 6)


def test_methods_that_look_ahead_are_marked(made, monkeypatch):
    groups = load_groups(made[0] / "results")
    assert "†" not in methods.table(groups, {})
    monkeypatch.setattr("sam2_keyframe.methods.NON_CAUSAL", frozenset({"random"}), raising=False)
    text = methods.table(groups, {"genetic": "needs frames of the video"})
    assert "`random seed=1` †" in text
    assert "†: not causal" in text
    assert "Not in the tables: `genetic` (needs frames of the video)." in text


def test_kept_results_are_replaced_by_label_and_never_mixed(made, tmp_path):
    metrics = [json.loads(path.read_text()) for path in sorted(made[0].glob("out/synthetic*/metrics.json"))]
    file = tmp_path / "kept.json"
    keep_results(metrics, file)
    changed = json.loads(json.dumps(metrics[0]))
    changed["accuracy"]["jf"] = 12.5
    keep_results([changed], file)
    (group,) = load_groups(tmp_path)
    assert len(group.results) == len(metrics)
    assert [r.jf for r in group.results if r.label == changed["config"]["method"]["label"]] == [12.5]
    before = file.read_text()
    changed["config"]["data"]["clips"] = 99
    with pytest.raises(ValueError, match=r"kept\.json holds .* clips is 2 there and 99 here\. Give another --results"):
        keep_results([changed], file)
    assert file.read_text() == before
    file.write_text(file.read_text().replace('"jf": 12.5', '"jf": 125'))
    with pytest.raises(ValueError, match=r"accuracy\.jf: 125 is greater than the maximum of 100"):
        load_groups(tmp_path)


@pytest.mark.parametrize(
    ("low", "mean", "bound", "expected"),
    [(-0.4, 0.1, -0.5, "holds"), (-0.6, -0.4, -0.5, "open"), (-1, -0.6, -0.5, "broken"), (0, 0, 0, "holds")],
)
def test_verdicts(low, mean, bound, expected):
    assert default.verdict(Difference(mean, low, mean + 1, 9), bound) == expected
    of_few = default.verdict(Difference(mean, low, mean + 1, 4), bound)
    assert of_few == ("open" if expected == "holds" else expected)


@pytest.mark.slow
def test_the_default_is_judged_by_kind_of_clip_and_split(tmp_path):
    write_folder(tmp_path / "footage", ["a", "b"])
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["default", *SMALL, "--split", "dev", "--method", "first", *folders]) == 0
    assert main(["default", *SMALL, "--split", "dev", "--set", "change=0.2", *folders]) == 0
    assert main(["default", *SMALL, "--data", str(tmp_path / "footage"), *folders]) == 0
    text = (tmp_path / "results/README.md").read_text()
    parts = {re.search(r"-64px, (\w+)|footage, (\w+)", part)[0]: part for part in text.split("## ")[1:]}
    assert list(parts) == ["-64px, dev", "-64px, test", "footage, all"]
    rows = {
        name: re.findall(r"\| `([^`]+)` \| ([a-z ]+) \| 2 \| .* \| (\S+) \|$", part, re.M)
        for name, part in parts.items()
    }
    kinds = ["static", "deformation", "occlusion", "leave and return"]
    by_candidate = {
        label: [kind for name, kind, _ in rows["-64px, dev"] if name == label]
        for label in ("first", "keyframe change=0.2")
    }
    assert by_candidate == {"first": kinds, "keyframe change=0.2": kinds}
    assert [(name, kind) for name, kind, _ in rows["-64px, test"]] == [("keyframe", kind) for kind in kinds]
    assert [(name, kind) for name, kind, _ in rows["footage, all"]] == [("keyframe", "real")]
    assert {verdict for found in rows.values() for *_, verdict in found} <= {"holds", "open", "broken"}
    dev = next(group for group in load_groups(tmp_path / "results") if group.config["split"] == "dev")
    ours, theirs = (
        {n: v for n, v in r.by_video().items() if n.startswith("static")}
        for r in (next(r for r in dev.results if r.label == "first"), dev.reference)
    )
    mean = np.mean([ours[name][0] - theirs[name][0] for name in ours])
    assert f"| `first` | static | 2 | {round(mean, 1) + 0.0:+.1f} (" in parts["-64px, dev"]


@pytest.mark.slow
def test_when_every_video_fails_it_is_said(tmp_path, capsys):
    root = write_folder(tmp_path / "footage", ["a", "b"])
    for file in root.glob("JPEGImages/*/00003.jpg"):
        file.write_bytes(b"no picture")
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["methods", *SMALL, "--method", "window", "--data", str(root), *folders]) == 2
    said = capsys.readouterr().err
    assert "failed: a under stock" in said
    assert "every video of footage failed under every method" in said


def test_results_that_cannot_be_written_are_said_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for command in ("methods", "default", "study"):
        assert main([command, *SMALL, "--out", str(tmp_path / "out"), "--results", str(tmp_path / "file")]) == 2
        assert "file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
