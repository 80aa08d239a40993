"""The report's plots and page: what is shown, not only what is held; names and looks that tell runs apart."""

import html
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from benchmarks import page
from benchmarks.compare import Group, Result, load_groups
from benchmarks.pictures import BASELINE_LOOKS, beside, families, left_out, looks, pareto
from benchmarks.report import figures, write_report
from sam2_keyframe import METHODS

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def run(name, *replacements, jf=70.0, frames=7.0):
    """A run of a method with replacements."""
    spec = {"name": name, "set": list(replacements), "label": " ".join([name, *replacements])}
    memory = {"peak_frames": frames, "peak_mib": frames / 30, "tokens": 250 * frames}
    metrics = {"accuracy": {"jf": jf}, "occupancy": {"memory": memory}, "config": {"method": spec}, "sequences": {}}
    return Result(None, metrics)


def grid(*fixed):
    """Eighteen runs of a grid."""
    choices = itertools.product(("True", "False"), (0.1, 0.2, 0.3), (1, 3, 5))
    return [run("keyframe", *fixed, f"fill={s}", f"change={k}", f"keyframes={c}") for s, k, c in choices]


def test_many_runs_are_named_after_the_first_choice_in_which_they_differ():
    runs = [run("stock"), run("window"), *grid("others=1")]
    assert set(families(runs).values()) == {"stock", "window", "fill=True", "fill=False"}
    assert families(runs)["keyframe others=1 fill=False change=0.1 keyframes=5"] == "fill=False"
    assert left_out(runs) == "keyframe: others=1 in every run"
    more = families([*runs, *(run("random", f"seed={seed}") for seed in range(3))])
    assert more["random seed=1"] == "random seed=1"
    assert more["keyframe others=1 fill=False change=0.1 keyframes=5"] == "keyframe fill=False"


def test_few_runs_are_each_named_without_what_they_share():
    runs = [run("stock"), *grid("codec=Chain(PCA(0.4), Int8())", "others=1")[:9]]
    names = families(runs)
    assert len(set(names.values())) == 10
    assert names[runs[1].label] == "change=0.1 keyframes=1"  # one filling among the nine
    assert left_out(runs).startswith("keyframe: codec=Chain(PCA(0.4), Int8()) others=1 fill=True")
    alone = [run("stock"), run("keyframe", "change=0.2"), run("fifo")]
    assert families(alone)["keyframe change=0.2"] == "keyframe change=0.2"
    assert left_out(alone) == ""


def test_looks_tell_families_apart():
    found = looks(["stock", "window", *map(str, range(100))])
    assert len({(look.colour, look.marker) for look in found.values()}) == 102
    assert list(found)[:2] == ["stock", "window"]


def test_a_method_looks_the_same_whatever_is_beside_it():
    few, many = looks(["stock", "keyframe", "samurai"]), looks(["stock", "window", *METHODS, "keyframe change=0.3"])
    assert all(many[name] == few[name] for name in few)
    assert len({(look.colour, look.marker) for look in many.values()}) == len(many)


def test_stock_and_the_default_are_in_front_with_intervals():
    (group,) = [group for group in load_groups(RESULTS / "methods") if group.config["split"] == "test"]
    rows = {row["method"]: row for row in figures(group)}
    made = page.plot(group, list(rows.values()))
    points = [trace for trace in made.data if trace.mode == "markers"]
    assert {trace.name for trace in points[-2:]} == {"stock", "keyframe"}, "drawn last"
    assert {trace.name for trace in points if trace.legendrank == 1} == {"stock", "keyframe"}, "named first"
    known = 0
    for trace in points:
        row = rows[trace.name]
        if row["low"] is not None:
            assert trace.error_y.array[0] == pytest.approx(row["high"] - row["vs_stock"])
            assert trace.error_y.arrayminus[0] == pytest.approx(row["vs_stock"] - row["low"])
            known += 1
    assert known > 5
    ys = {button.label: button.args[0] for button in made.layout.updatemenus[0].buttons}
    assert any(ys[page.YS["jf"]]["error_y.visible"])
    assert not any(ys[page.YS["j_decay"]]["error_y.visible"]), "of which no interval is known"


def test_the_plot_of_the_page_holds_every_figure_and_its_choices_of_axes():
    (group,) = [group for group in load_groups(RESULTS / "methods") if group.config["split"] == "test"]
    rows = {row["method"]: row for row in figures(group)}
    made = page.plot(group, list(rows.values()))
    points, lines = ([trace for trace in made.data if trace.mode == mode] for mode in ("markers", "lines"))
    assert {trace.name for trace in points} == set(rows)
    assert [len(trace.x) for trace in points] == [1] * len(rows)
    ys, xs = ({button.label: button.args for button in menu.buttons} for menu in made.layout.updatemenus)
    for key, title in (*page.XS.items(), *page.YS.items()):
        axis, (data, layout) = ("x", xs[title]) if key in page.XS else ("y", ys[title])
        assert [values[0] for values in data[axis][: len(points)]] == [rows[trace.name][key] for trace in points]
        assert layout[f"{axis}axis.title.text"] == title
    assert [trace.visible for trace in lines] == [False, True, False]  # of the peak of MiB, which is shown first
    for key, number in (("tokens", 2), ("peak_frames", 0)):
        data, _ = xs[page.XS[key]]
        assert data["visible"][len(points) :] == [i == number for i in range(3)]
        assert data["x"][len(points) + number] == [result.occupancy(key) for result in group.front(key)]


def test_equal_runs_are_all_seen(tmp_path):
    equal = [run("stock"), run("window"), run("a"), run("b"), run("c")]
    others = [run("low", jf=60.0, frames=3.0), run("high", jf=80.0, frames=20.0)]
    pareto(
        Group({"data": {"name": "x"}, "split": "test", "model": "m", "image_size": None}, [*equal, *others]),
        tmp_path / "p",
    )
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))[: int(0.8 * picture.height), : picture.width // 3]  # no legend
    for name, look in looks(["stock", "window", "a", "b", "c"]).items():
        seen = (np.abs(pixels - 255 * np.array(to_rgb(look.colour))) < 40).all(-1).sum()
        assert seen >= (30 if name in BASELINE_LOOKS else 5), name


def test_captions_are_not_cut_off():
    tiles = [Image.new("RGB", (1000, 400), "red") for _ in range(3)]
    short = beside([tile.copy() for tile in tiles], ["truth", "stock", "fifo"])
    words = "keyframe " + " ".join(f"word{i}={'x' * 12}" for i in range(9))
    long = beside(tiles, ["truth", "stock", words])
    assert short.width == long.width <= 1440
    assert long.height >= short.height + 60  # more lines
    top = np.asarray(long.convert("L"))[: long.height - short.height + 20]
    assert top[:, -4:].min() == 255  # nothing reaches the edge
    assert top[-60:, 2 * long.width // 3 :].min() < 100


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="a browser draws the page")
def test_the_page_draws_and_names_every_run(tmp_path):
    groups = [group for group in load_groups(RESULTS / "methods") if group.config["split"] == "test"]
    write_report(groups, tmp_path)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--dump-dom"]
    command += [f"file://{tmp_path}/index.html"]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    labels = {result.label for result in groups[0].results}
    legend = {html.unescape(text) for text in re.findall(r'<text class="legendtext"[^>]*>([^<]+)</text>', drawn)}
    assert labels <= legend  # none cut short
    assert drawn.count('class="point"') >= len(labels)
    assert "<td>1745</td>" in drawn
