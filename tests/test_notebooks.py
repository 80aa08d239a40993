"""The notebooks run from top to bottom, are committed with their outputs, and use public names only."""

import ast
import base64
import colorsys
import gc
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from footage import decode_threads
from matplotlib import pyplot
from PIL import Image

from benchmarks.models import check_model, load_predictor
from benchmarks.notebooks import _slim
from sam2_keyframe.synthetic import make_clip

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("quickstart", "threshold_sweep", "occupancy_vs_accuracy", "new_scorer")


def read(name):
    return nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def switched(first):
    """Return the first cell with its last line, which switches model and video, in force."""
    before, comment, line = first.rsplit("\n", 2)
    assert comment.startswith("# Official weights, ")
    assert line.startswith("# ")
    return f"{before}\n{line.removeprefix('# ')}"


def footage(folder):
    """Write a DAVIS-style folder with the video "bear"."""
    clip = make_clip("look_alike", 5, 6, 64)
    for kind, images, suffix in (("JPEGImages", clip.frames, "jpg"), ("Annotations", clip.masks, "png")):
        (folder / kind / "bear").mkdir(parents=True)
        for t, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{kind}/bear/{t:05d}.{suffix}")
    return folder


def elsewhere(source, checkpoint, data):
    """Return a switched first cell with a checkpoint and data that are there."""
    found = re.sub(r'"sam2\.1_hiera_\w+\.pt"', repr(str(checkpoint)), source)
    assert found != source
    for there, here in (("video.mp4", data / "JPEGImages/bear"), ("/data/DAVIS", data)):
        found = found.replace(f'"{there}"', repr(str(here)))
    assert str(data) in found
    return found.replace("(210, 80, 350, 300)", "(10, 10, 50, 50)")


def test_all_notebooks_are_listed():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_short_public_and_committed_with_outputs(name):
    notebook = read(name)
    cells = code(notebook)
    assert len(notebook.cells) < 15
    assert switched(cells[0].source) != cells[0].source
    for cell in cells:
        assert cell.execution_count or not cell.source
        assert not [output for output in cell.outputs if output.output_type == "error"]
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute):
                assert not re.match("_[^_]", node.attr), node.attr
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sam2_keyframe"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not [word for word in names if word.startswith("_")], names
        drawn = [output for output in cell.outputs if {"image/png", "image/jpeg"} & set(output.get("data", {}))]
        if re.search(r"pictures\.(timeline|filmstrip)|display\(|plt\.show|^Image\(|^sheet$", cell.source, re.M):
            assert drawn, cell.source
    text = "".join(str(output) for cell in cells for output in cell.outputs)
    assert not re.search(r"/(root|work|home|tmp)/", text)  # no path of the machine it was made on


def slimmed(pixels):
    """Return the type under which a picture is kept, and its pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "image/jpeg": "of the same picture"}
    _slim(data)
    ((kind, kept),) = data.items()
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(kept))).convert("RGB")).astype(int)


def test_a_chart_keeps_the_colours_of_its_marks():
    chart = np.full((400, 600, 3), 255, np.uint8)
    chart[200:, :, :2] = np.mgrid[0:200, 0:600].transpose(1, 2, 0) // (1, 3)  # what the other colours are used up by
    colours = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(i / 12, 0.8, 0.7)) for i in range(12)]
    for i, colour in enumerate(colours):
        chart[20:26, 20 + 40 * i : 26 + 40 * i] = colour
    kind, after = slimmed(chart)
    assert kind == "image/png"
    for i, colour in enumerate(colours):
        assert np.abs(after[20:26, 20 + 40 * i : 26 + 40 * i] - colour).max() < 16, colour


def test_a_photograph_keeps_its_shades():
    photo = np.random.default_rng(0).normal(np.linspace((40, 90, 20), (220, 30, 200), 600), 5, (400, 600, 3))
    kind, after = slimmed(photo.clip(0, 255).astype(np.uint8))
    assert kind == "image/jpeg"
    assert np.abs(after - photo).mean() < 6  # of noise of 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights in the official format."""
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(0)
    weights = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()
    file = tmp_path_factory.mktemp("checkpoint") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": weights}, file)
    return file


@pytest.fixture
def names():
    """What cells define; let go afterwards, as the videos that they opened read on threads of their own."""
    defined = {}
    yield defined
    defined.clear()
    if "ipywidgets" in sys.modules:
        sys.modules["ipywidgets"].Widget.close_all()
    gc.collect()
    assert decode_threads() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_takes_official_weights_and_the_users_video(name, names, checkpoint, tmp_path):
    first = switched(code(read(name))[0].source)
    exec(elsewhere(first, checkpoint, footage(tmp_path)), names)
    if "MODEL" in names:
        path = check_model(names["MODEL"], tmp_path)
        predictor = load_predictor(path, "cpu")
    else:
        predictor = names["predictor"]
    assert (predictor.image_size, predictor.hidden_dim) == (1024, 256)  # tiny, not micro


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_on_the_users_video_and_then_on_another(name, names, tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.chdir(tmp_path)
    cells = [cell.source for cell in code(read(name))]
    for data in ("mine", "yours"):
        with pyplot.rc_context({"backend": "agg"}):
            for source in (elsewhere(switched(cells[0]), "micro", footage(tmp_path / data)), *cells[1:]):
                exec(source, names)
        if "OUT" in names:  # where the notebook's runs are: of this configuration alone
            report = (tmp_path / names["OUT"] / "report/README.md").read_text()
            assert re.findall(r"^## (\w+), all, 1 videos", report, re.M) == [data]
    assert ("OUT" in names) == ("bench-out" in "".join(cells))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    (tmp_path / "installed").mkdir()  # the package alone, as where it is installed from the repository
    (tmp_path / "installed" / "sam2_keyframe").symlink_to(ROOT / "sam2_keyframe")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    notebook = read(name)
    committed = [len(cell.outputs) for cell in code(notebook)]
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    client.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [bool(cell.outputs) for cell in code(notebook)] == [bool(count) for count in committed]
    red = [each.text for cell in code(notebook) for each in cell.outputs if each.get("name") == "stderr"]
    assert red == []
