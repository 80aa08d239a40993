"""Reports: who may be compared, differences and intervals, fronts, files, and results of others."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs
from scipy.stats import bootstrap

from benchmarks.__main__ import main
from benchmarks.compare import Difference, Group, Result, difference, load_groups, worst_videos
from benchmarks.results import read_csv, write_csv
from benchmarks.tables import interval

SMALL = ["--image-size", "128", "--clips", "1", "--frames", "10", "--size", "64"]


def result(label, jf, videos, **occupancy):
    """A result made of its objects' J&F by video."""
    side = {"frames": 1.0, "mib": 1.0, "tokens": 1.0, "peak_frames": 1.0, "peak_mib": 1.0, "peak_tokens": 1.0}
    metrics = {
        "accuracy": {"jf": jf},
        "occupancy": {"memory": {**side, **occupancy}},
        "config": {"method": {"label": label, "set": [], "name": label}},
    }
    return Result(None, {**metrics, "sequences": videos})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    for split in ("dev", "test"):
        arguments = ["sweep", *SMALL, "--challenges", "static,occlusion", "--split", split, "--method", "first"]
        assert main([*arguments, "--grid", "change=0.1,0.5", "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    return out


def test_difference_is_paired_over_objects():
    ours = result("a", 0, {"x": [80, 60], "y": [50], "only": [9]})
    theirs = result("stock", 0, {"y": [40], "x": [70, 60]})
    found = difference(ours, theirs)
    assert found.mean == pytest.approx((10 + 0 + 10) / 3)
    assert found.videos == 2
    assert (found.low, found.high) == pytest.approx((5, 10))  # resamples: xx 10/2 = 5, yy 10, mixed 20/3
    assert difference(ours, result("stock", 0, {"x": [70, 60]})) is None


def test_interval_agrees_with_scipy():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(40, 90, 30)
    ours = theirs + rng.normal(1, 4, 30)
    found = difference(
        result("a", 0, {str(i): [v] for i, v in enumerate(ours)}),
        result("stock", 0, {str(i): [v] for i, v in enumerate(theirs)}),
    )
    expected = bootstrap(
        ((ours - theirs),), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.06)


def test_an_interval_is_shown_of_enough_videos_only():
    shown = Difference(1.0, -0.04, 2.0, 5)
    assert interval(shown) == "+1.0 (+0.0 to +2.0)"
    assert interval(dataclasses.replace(shown, videos=4)) == "+1.0 (4 videos)"
    assert interval(None) == ""


def test_front():
    results = [
        result("stock", 80, {}, mib=10.0),
        result("cheap", 70, {}, mib=1.0),
        result("beaten", 69, {}, mib=2.0),
        result("good", 81, {}, mib=5.0),
        result("same as cheap, dearer", 70, {}, mib=3.0),
    ]
    assert [r.label for r in Group({}, results).front("mib")] == ["cheap", "good"]


def test_a_run_that_lacks_videos_is_not_ranked():
    stock = result("stock", 70, {"x": [90], "hard": [50]}, mib=10.0)
    lucky = result("lucky", 91, {"x": [91]}, mib=1.0)
    other = result("other", 71, {"x": [91], "hard": [51], "y": []}, mib=5.0)
    group = Group({}, [stock, lucky, other, result("window", 70, {"x": [90], "hard": [50], "y": []}, mib=5.0)])
    assert group.videos == {"x", "hard", "y"}
    assert [r.label for r in group.ranked] == ["other", "window"]
    assert [r.label for r in group.front("mib")] == ["other"]


def test_worst_videos_are_those_furthest_below_stock():
    ours = result("a", 0, {"x": [50], "y": [70], "z": [10, 30]})
    group = Group({}, [ours, result("stock", 0, {"x": [60], "y": [60], "z": [80, 90]})])
    assert worst_videos(group, ours, 5) == [("z", -65.0), ("x", -10.0)]
    assert worst_videos(group, ours, 1) == [("z", -65.0)]
    assert worst_videos(group, ours, 5, best=True) == [("y", 10.0)]
    near = result("a", 0, {"x": [59.97], "y": [59.9]})
    assert [name for name, _ in worst_videos(group, near, 5)] == ["y"]  # -0.03 is shown as 0.0


@pytest.mark.slow
def test_development_and_test_data_are_never_mixed(swept):
    groups = load_groups(swept)
    assert [group.config["split"] for group in groups] == ["dev", "test"]
    for group in groups:
        labels = sorted(r.label for r in group.results)
        kept = ["keyframe change=0.1", "keyframe change=0.5"]
        assert labels == ["every_nth", "first", *kept, "random", "stock", "window"]
        assert {video for r in group.results for video in r.by_video()} == {
            f"{challenge}-{10_000 if group.config['split'] == 'dev' else 20_000}"
            for challenge in ("static", "occlusion")
        }


@pytest.mark.slow
def test_report_holds_every_run_and_the_baselines(swept):
    report = swept / "report"
    text = (report / "README.md").read_text()
    folders = [path for path in report.iterdir() if path.is_dir()]
    assert len(folders) == 2
    for folder in folders:
        with Image.open(folder / "pareto.png") as picture:
            assert picture.width > 1000
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
        svg = (folder / "pareto.svg").read_text()
        assert svg.startswith("<?xml")
        rows = read_csv(folder / "table.csv")
        assert {"stock", "window", "every_nth", "random"} < {row["method"] for row in rows}
        window = next(row for row in rows if row["method"] == "window")
        assert (float(window["vs_stock"]), window["low"], window["high"]) == (0, "", "")  # bit-identical; two videos
        assert [float(row["jf"]) for row in rows] == sorted((float(row["jf"]) for row in rows), reverse=True)
        for row in rows:
            assert row["method"] in text
        sequences = read_csv(folder / "sequences.csv")
        assert np.mean([float(row["stock"]) for row in sequences]) == pytest.approx(
            float(next(row for row in rows if row["method"] == "stock")["jf"]), abs=0.02
        )
        assert {row[""] for row in read_csv(folder / "challenges.csv")} == {"static", "occlusion"}
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (report / name).exists(), name


@pytest.mark.slow
def test_page_opens_offline_and_holds_the_figures(swept):
    page = (swept / "report/index.html").read_text()
    ours = page.replace(get_plotlyjs(), "")
    assert len(ours) < len(page) / 8
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|@import|url\(|fetch\(|XMLHttp""", ours)
    for folder in (path for path in (swept / "report").iterdir() if path.is_dir()):
        for row in read_csv(folder / "table.csv"):
            assert re.search(rf"<td>{row['method']}( ◆)?</td><td>{float(row['jf']):.1f}</td>", page)
        for row in read_csv(folder / "sequences.csv"):
            assert f"<td>{row['']}</td><td>{float(row['first']):.1f}</td><td>{float(row['stock']):.1f}</td>" in page
    assert page.count("Plotly.newPlot(") - page.count(get_plotlyjs()) * get_plotlyjs().count("Plotly.newPlot(") == 2


def test_worst_cases_are_pictures(swept, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(swept, runs, ignore=shutil.ignore_patterns("report"))
    (fallen,) = (path for path in runs.glob("*-first-*") if "-dev-" in path.name)
    metrics = json.loads((fallen / "metrics.json").read_text())
    metrics["sequences"]["occlusion-10000"] = [1.0]  # far below stock, whatever the model does
    (fallen / "metrics.json").write_text(json.dumps(metrics))
    folder = fallen / "videos/occlusion-10000"
    rows = read_csv(folder / "frames.csv")
    for row in rows:
        row["j"] = "-1" if row["frame_idx"] == "7" else row["j"]  # and furthest on this frame
    write_csv(folder / "frames.csv", rows)
    assert main(["report", str(runs), "--worst", "1"]) == 0
    (path,) = (runs / "report").glob("*dev*/worst/first_occlusion-10000.jpg")
    with Image.open(path) as picture:
        assert picture.width > 2.5 * picture.height  # truth, stock, method
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    third = pixels.shape[1] // 3
    assert all(
        tile[-third:].std() > 20 for tile in (pixels[:, :third], pixels[:, third : 2 * third], pixels[:, -third:])
    )
    text = (runs / "report/README.md").read_text()
    assert re.search(r"first on occlusion-10000: -\d+\.\d points, frame 7\.", text)
    assert f"worst/{path.name})" in text


def test_missing_baselines_are_said(swept, tmp_path):
    for name in ("first", "window"):
        (source,) = (path for path in swept.glob(f"*-{name}-*") if "-dev-" in path.name)
        shutil.copytree(source, tmp_path / source.name)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report/README.md").read_text()
    assert "Missing to compare with: stock, every_nth, random. `python -m benchmarks run --method stock`" in text
    assert "Missing" not in (swept / "report/README.md").read_text()
