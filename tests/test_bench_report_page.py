"""The report's plots and page: what is shown, not only what is held; names and looks that tell runs apart."""

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from benchmarks._compare import Group, Result, load_groups
from benchmarks._legend import BASELINE_LOOKS, families, left_out, looks, marker_path
from benchmarks._plots import _beside, pareto
from benchmarks.report import write_report

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
PAGE = Path(__file__).parents[1] / "benchmarks/page.html"
NODE = shutil.which("node")


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def run(name, *replacements, jf=70.0, frames=7.0):
    """A run of a method with replacements."""
    spec = {"name": name, "set": list(replacements), "label": " ".join([name, *replacements])}
    memory = {"peak_frames": frames, "peak_mib": frames / 30, "tokens": 250 * frames}
    metrics = {"accuracy": {"jf": jf}, "occupancy": {"memory": memory}, "config": {"method": spec}, "sequences": {}}
    return Result(None, metrics)


def grid(*fixed):
    """Eighteen runs of a grid."""
    choices = itertools.product(("MaskIoU()", "SSIM()"), (0.1, 0.2, 0.3), (1, 3, 5))
    return [run("keyframe", *fixed, f"scorer={s}", f"keep={k}", f"capacity={c}") for s, k, c in choices]


def test_many_runs_are_named_after_the_first_choice_in_which_they_differ():
    runs = [run("stock"), run("window"), *grid("recent=1")]
    assert set(families(runs).values()) == {"stock", "window", "scorer=MaskIoU()", "scorer=SSIM()"}
    assert families(runs)["keyframe recent=1 scorer=SSIM() keep=0.1 capacity=5"] == "scorer=SSIM()"
    assert left_out(runs) == "keyframe: recent=1 in every run"
    more = families([*runs, *(run("random", f"seed={seed}") for seed in range(3))])
    assert more["random seed=1"] == "random seed=1"
    assert more["keyframe recent=1 scorer=SSIM() keep=0.1 capacity=5"] == "keyframe scorer=SSIM()"


def test_few_runs_are_each_named_without_what_they_share():
    runs = [run("stock"), *grid("compressor=Chain(PCA(0.4), Int8())", "recent=1")[:9]]
    names = families(runs)
    assert len(set(names.values())) == 10
    assert names[runs[1].label] == "keep=0.1 capacity=1"  # one scorer among the nine
    assert left_out(runs).startswith("keyframe: compressor=Chain(PCA(0.4), Int8()) recent=1 scorer=MaskIoU()")
    alone = [run("stock"), run("keyframe", "keep=0.2"), run("fifo")]
    assert families(alone)["keyframe keep=0.2"] == "keyframe keep=0.2"
    assert left_out(alone) == ""


def test_looks_tell_families_apart():
    found = looks(["stock", "window", *map(str, range(100))])
    assert len({(look.colour, look.marker) for look in found.values()}) == 102
    assert list(found)[:2] == ["stock", "window"]


def test_markers_are_the_same_on_the_page():
    assert marker_path("s") == "M-0.500 0.500L0.500 0.500L0.500 -0.500L-0.500 -0.500Z"
    assert "C" in marker_path("o")
    tip = [float(y) for y in re.findall(r"-?[\d.]+ (-?[\d.]+)", marker_path("^"))]
    assert tip[0] == min(tip)  # y goes down: the tip is above


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
    short = _beside([tile.copy() for tile in tiles], ["truth", "stock", "fifo"])
    words = "keyframe " + " ".join(f"word{i}={'x' * 12}" for i in range(9))
    long = _beside(tiles, ["truth", "stock", words])
    assert short.width == long.width <= 1440
    assert long.height >= short.height + 60  # more lines
    top = np.asarray(long.convert("L"))[: long.height - short.height + 20]
    assert top[:, -4:].min() == 255  # nothing reaches the edge
    assert top[-60:, 2 * long.width // 3 :].min() < 100


@pytest.mark.skipif(NODE is None, reason="node runs the page's functions")
def test_the_page_shows_the_figures_that_it_holds():
    functions = re.search(r"^const show = .*?(?=^const options)", PAGE.read_text(), re.M | re.S)[0]
    shown = {
        (1580, 0): "1580", (28000, 0): "28000", (100, 0): "100", (0, 0): "0", (7, 1): "7", (7.25, 1): "7.3",
        (81.7, 1): "81.7", (0.2, 2): "0.2", (10, 2): "10", (-0.01, 1): "0", (-0.06, 1): "-0.1", (-20, 1): "-20",
        (-0.2, 0): "0", (None, 1): "",
    }  # fmt: skip
    padded = {
        (1580, 0): "1580",
        (79, 1): "79.0",
        (-0.01, 1): "0.0",
        (-0.06, 1): "-0.1",
        (0.2, 2): "0.20",
        (None, 1): "",
    }
    calls = f"[{json.dumps(list(shown))}.map(p => show(...p)), {json.dumps(list(padded))}.map(p => figure(...p))]"
    script = f"{functions}\nconsole.log(JSON.stringify({calls}))"
    found = subprocess.run([NODE, "-e", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(found) == [list(shown.values()), list(padded.values())]


@pytest.mark.skipif(CHROMIUM is None, reason="a browser draws the page")
def test_the_page_draws_and_names_every_run(tmp_path):
    groups = [group for group in load_groups(RESULTS / "methods") if group.config["split"] == "test"]
    write_report(groups, tmp_path)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--dump-dom", f"file://{tmp_path}/index.html"]
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    labels = {result.label for result in groups[0].results}
    legend = re.search(r'<div id="legend">(.*?)</div>', page, re.S)[1]
    assert {html.unescape(text) for text in re.findall(r"</svg>([^<]+)</span>", legend)} == labels  # none cut short
    assert set(re.findall(r'aria-label="([^"]+)"', page)) >= labels
    assert '<td class="">1745</td>' in page
