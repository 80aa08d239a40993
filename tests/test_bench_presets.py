"""`make bench` and `make official`, small: what they run, measure and write, the page's official column included."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import bench as presets
from benchmarks import methods
from benchmarks.__main__ import main
from benchmarks.bench import CELL
from benchmarks.timing import WARM_UP
from sam2_keyframe.synthetic import make_clip

ROOT = Path(__file__).parents[1]
FRAMES, SKIPPED = 6, 2
"""Of each clip, and of those how many before times are taken."""


def test_bench_runs_methods_that_need_nothing():
    runs, left_out = methods.choose(presets.METHODS, 6)
    assert len(runs) >= len(presets.METHODS)
    assert not left_out


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A small `bench`, its exit code, and its results by method."""
    out = tmp_path_factory.mktemp("bench")
    small = ["--image-size", "64", "--clips", "1", "--frames", str(FRAMES), "--size", "64", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.timing.WARM_UP", SKIPPED)
        code = main(["bench", *small, "--challenges", "occlusion,static", "--out", str(out)])
    return out, code, {metrics["config"]["method"]["label"]: metrics for metrics in read(out)}


def read(out):
    return [json.loads(file.read_text()) for file in out.glob("*/metrics.json")]


@pytest.mark.slow
def test_bench_runs_every_method_and_writes_the_report(bench):
    out, code, found = bench
    assert code == 0
    assert set(found) == {"stock", "window", *presets.METHODS}
    for metrics in found.values():
        assert set(metrics["sequences"]) == {"occlusion-20000", "static-20000"}  # test seeds
        assert metrics["failed"] == {}
    text = (out / "report/README.md").read_text()
    assert all(f"| {name}" in text.replace("*", "") for name in found)
    assert (out / "report/index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_bench_measures_time_beside_stock(bench):
    out, _, found = bench
    times = {name: metrics["time"]["beside_stock"] for name, metrics in found.items()}
    assert {time["frames"] for time in times.values()} == {FRAMES - SKIPPED}
    assert {time["video"] for time in times.values()} == {"occlusion-20000"}
    lines = (out / "report/README.md").read_text().splitlines()
    for name, time in times.items():
        row = next(line for line in lines if line.replace("*", "").startswith((f"| {name} |", f"| {name} ◆ |")))
        assert f"| {time['ratio']:.2f} |" in row


@pytest.mark.slow
def test_a_clip_too_short_for_a_time_is_no_failure(tmp_path, capsys):
    small = ["--image-size", "64", "--clips", "1", "--frames", "6", "--size", "64", "--workers", "1"]
    assert main(["bench", *small, "--challenges", "static", "--method", "fifo", "--out", str(tmp_path)]) == 0
    assert f"fifo: no time beside stock: static-20000 has 6 frames; a time beside stock needs {WARM_UP + 3}" in (
        capsys.readouterr().err
    )
    found = read(tmp_path)
    assert len(found) == 5
    assert all(metrics["failed"] == {} and "beside_stock" not in metrics["time"] for metrics in found)


def cells(text):
    return {cell[2]: cell[0].removeprefix(cell[1]).removesuffix(cell[3]) for cell in CELL.finditer(text)}


@pytest.mark.slow
def test_the_official_path_with_random_weights_fills_readme(tmp_path, monkeypatch):
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(0)
    weights = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()
    weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(5)  # visible, so that masks vary
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": weights}, tmp_path / "checkpoints/sam2.1_hiera_tiny.pt")
    clip = make_clip("static", 3, FRAMES, 96, objects=2)
    for kind, images in (("JPEGImages", clip.frames), ("Annotations", clip.masks)):
        (tmp_path / f"data/{kind}/480p/a").mkdir(parents=True)
        for t, image in enumerate(images):
            suffix = "jpg" if kind == "JPEGImages" else "png"
            Image.fromarray(image).save(tmp_path / f"data/{kind}/480p/a/{t:05d}.{suffix}")
    readme = tmp_path / "README.md"
    before = (ROOT / "docs/measuring.md").read_text()
    readme.write_text(before)
    monkeypatch.setattr("benchmarks.timing.WARM_UP", SKIPPED)
    arguments = ["official", "--model", "tiny", "--data", str(tmp_path / "data"), "--image-size", "128"]
    arguments += ["--checkpoints", str(tmp_path / "checkpoints"), "--method", "keyframe"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--readme", str(readme)]) == 0
    found = {metrics["config"]["method"]["name"]: metrics for metrics in read(tmp_path / "out")}
    assert set(found) == {"stock", "window", "every_nth", "random", "keyframe"}
    assert {metrics["config"]["model"] for metrics in found.values()} == {"sam2.1_hiera_tiny"}
    assert all(metrics["objects"] == 2 and metrics["time"]["frame_ms"] > 0 for metrics in found.values())
    title = "data, all, 1 videos, SAM 2 sam2.1_hiera_tiny at 128 px"
    assert title in (tmp_path / "out/report/README.md").read_text()

    runs = [found[name] for name in ("stock", "window", "keyframe")]
    filled = cells(readme.read_text())
    assert filled.keys() == {"head", "mib", "tokens", "time", "jf"}
    assert title in filled["head"]
    assert filled["jf"] == " / ".join(f"{run['accuracy']['jf']:.1f}" for run in runs)
    assert filled["time"] == " / ".join(f"{run['time']['beside_stock']['ratio']:.2f}" for run in runs)
    assert filled["mib"].startswith(" / ".join(f"{run['occupancy']['memory']['peak_mib']:.2f}" for run in runs))
    assert filled["tokens"].startswith(" / ".join(f"{run['occupancy']['memory']['tokens']:,.0f}" for run in runs))
    assert CELL.sub("", readme.read_text()) == CELL.sub("", before)  # nothing else


def test_the_page_says_that_official_weights_were_not_run_or_which_data_they_ran_on():
    found = cells((ROOT / "docs/measuring.md").read_text())
    assert found.keys() == {"head", "mib", "tokens", "time", "jf"}
    figures = {value for name, value in found.items() if name != "head"}
    assert figures == {"not run"} or "videos, SAM 2" in found["head"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("readme", "method", "said"),
    [
        ("no cells", ["keyframe"], "has no <!--official ...--> cells"),
        ("<!--official jf-->not run<!--/-->", ["fifo"], "keyframe missing or with failed videos"),
        ("<!--official jf-->not run<!--/-->", ["keyframe"], "the model is micro"),
    ],
)
def test_the_column_stays_where_there_is_nothing_to_fill_it_with(readme, method, said, tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text(readme)
    small = ["--image-size", "64", "--clips", "1", "--frames", "4", "--size", "64", "--challenges", "static"]
    arguments = ["official", "--model", "micro", *small, "--method", *method, "--readme", str(file)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert file.read_text() == readme


@pytest.mark.slow
def test_the_column_stays_when_every_video_fails(bench, tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text("<!--official jf-->not run<!--/-->")
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tmp_path / f"data/{kind}/a").mkdir(parents=True)
        for t in range(3):
            Image.new("P", (32, 32), 1).convert("P" if suffix == "png" else "RGB").save(
                tmp_path / f"data/{kind}/a/{t:05d}.{suffix}"
            )
    (tmp_path / "data/JPEGImages/a/00001.jpg").write_bytes(b"no picture")
    arguments = ["official", "--model", "micro", "--image-size", "64", "--data", str(tmp_path / "data")]
    arguments += ["--method", "keyframe", "--readme", str(file)]
    shutil.copytree(bench[0], tmp_path / "out")  # another model's results beside it
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "official column stays as it is: every video failed" in capsys.readouterr().err
    assert file.read_text() == "<!--official jf-->not run<!--/-->"
