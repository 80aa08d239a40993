"""Scores around absences, worked out by hand, and that a run writes them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.absence import SCORES, absences
from benchmarks.compare import beside, load_groups
from benchmarks.metrics import boundary_f, boundary_f_of_size, jaccard
from benchmarks.results import read_csv
from sam2_keyframe.synthetic import make_clip


def test_two_absences_worked_out_by_hand() -> None:
    seen = [1, 1, 0, 0, 1, 1, 1, 0, 1]
    shown = [1, 1, 1, 0, 0, 1, 1, 0, 1]
    j = [0.9, 0.8, 0.0, 1.0, 0.0, 0.6, 0.9, 1.0, 0.7]
    f = [0.7, 0.6, 0.0, 1.0, 0.0, 0.8, 0.7, 1.0, 0.9]
    found = absences(seen, shown, j, f)
    assert found.returns == 2
    assert found.recovery == pytest.approx((0.5 + 0.7) / 2)  # J of frames 4 to 6, and of frame 8
    assert found.found == 0.5  # 0.5 is not above 0.5
    assert found.false_masks == pytest.approx(1 / 3)  # frame 2, of 2, 3 and 7
    assert found.jf_gone == pytest.approx((0.5 + 1.0) / 2)
    assert found.jf_back == pytest.approx(((0.0 + 0.7 + 0.8) / 3 + 0.8) / 2)
    assert found.jf_size == pytest.approx((sum(j) + sum(f)) / 18)


def test_recovery_looks_at_thirty_frames_and_the_return_at_all() -> None:
    j = [1.0, 1.0, *[0.0] * 12, *[1.0] * 18, *[0.0] * 20]
    found = absences([1, 0, *[1] * 50], [1] * 52, j, j)
    assert found.recovery == pytest.approx(18 / 30)
    assert found.found == 1
    assert found.jf_back == pytest.approx(18 / 50)


def test_an_absence_at_the_start_is_no_disappearance_but_a_return_follows() -> None:
    found = absences([0, 0, 1], [1, 0, 1], [0.0, 1.0, 0.6], [0.0, 1.0, 0.4])
    assert (found.returns, found.recovery, found.false_masks) == (1, 0.6, 0.5)
    assert math.isnan(found.jf_gone)
    assert found.jf_back == pytest.approx(0.5)


def test_an_object_that_stays_has_no_such_scores() -> None:
    found = absences([1, 1], [1, 0], [0.5, 0.0], [0.5, 0.0])
    assert found.returns == 0
    assert all(math.isnan(x) for x in (found.recovery, found.found, found.false_masks, found.jf_gone, found.jf_back))
    assert found.jf_size == 0.25


def test_series_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"have \[1, 2\] frames"):
        absences([1, 0], [1], [1.0], [1.0])


def _square(left: int, side: int = 20, size: int = 256) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[100 : 100 + side, left : left + side] = True
    return mask


def test_the_tolerance_goes_by_the_objects_size() -> None:
    truth = _square(100)  # 400 pixels: 0.1 x 20 = 2; 0.008 of the diagonal is 2.9, which DAVIS rounds up to 3
    assert boundary_f_of_size(_square(102), truth) == 1
    assert boundary_f(_square(103), truth) == 1
    # An outline is the border of 21 x 21 pixels: 80. Of that moved by 3, 20 pixels of the upper line and of the lower
    # one lie within 2 pixels of the other outline, and 4 of the near side, next to those lines: 44.
    assert boundary_f_of_size(_square(103), truth) == pytest.approx(44 / 80)


def test_large_objects_have_at_most_the_tolerance_of_the_diagonal() -> None:
    truth = _square(50, 100)  # 0.1 x 100 = 10, more than 2.9: distances of 2 count and of 3 do not
    assert boundary_f_of_size(_square(52, 100), truth) == 1
    assert boundary_f_of_size(_square(53, 100), truth) < 0.99


def test_empty_masks() -> None:
    none = np.zeros((256, 256), bool)
    assert boundary_f_of_size(none, none) == 1
    assert boundary_f_of_size(_square(100), none) == 0
    assert boundary_f_of_size(none, _square(100)) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of stock SAM 2 over a clip with one absence."""
    out = tmp_path_factory.mktemp("absence")
    small = ["--image-size", "64", "--clips", "1", "--frames", "64", "--size", "64"]
    assert main(["run", *small, "--challenges", "absence_filled", "--method", "stock", "--out", str(out)]) == 0
    (folder,) = out.iterdir()
    return folder


def test_a_run_writes_scores_around_absences(run: Path) -> None:
    clip = make_clip("absence_filled", 10_000, 64, 64)
    saved = np.load(next(run.glob("videos/*/masks.npz")))
    masks = np.unpackbits(saved["1"], axis=1).reshape(64, 64, 64).astype(bool)
    pairs = [(masks[t], clip.masks[t] == 1) for t in range(1, 63)]
    expected = absences(
        [truth.any() for _, truth in pairs],
        [mask.any() for mask, _ in pairs],
        [jaccard(*pair) for pair in pairs],
        [boundary_f_of_size(*pair) for pair in pairs],
    )
    assert expected.returns == 1
    (row,) = read_csv(run / "objects.csv")
    assert {name: float(row[name]) for name in expected.columns()} == pytest.approx(expected.columns(), nan_ok=True)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["accuracy"]["recovery"] == pytest.approx(100 * expected.recovery)
    assert metrics["absences"]["false_masks"] == {
        "absence_filled-10000": [pytest.approx(100 * expected.false_masks, abs=1e-4)]
    }


def _write(folder: Path, metrics: dict[str, object], name: str, recovery: list[float | None]) -> Path:
    """A run's folder with scores as given, of as many videos, J&F 10 above recovery."""
    made = copy.deepcopy(metrics)
    made["config"]["method"] = {"name": name, "set": [], "label": name, "repr": name}
    made["sequences"] = {f"v{i}": [(value or 0) + 10] for i, value in enumerate(recovery)}
    made["absences"] = {score: {} for score in SCORES} | {"recovery": {f"v{i}": [x] for i, x in enumerate(recovery)}}
    made["accuracy"]["jf"] = float(np.mean([x[0] for x in made["sequences"].values()]))
    made["accuracy"]["recovery"] = float(np.mean([x for x in recovery if x is not None]))
    (folder / name).mkdir()
    (folder / name / "metrics.json").write_text(json.dumps(made))
    return folder / name


def test_methods_are_compared_with_stock_every_nth_and_random(run: Path, tmp_path: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    ours = _write(tmp_path, metrics, "keyframe", [50.0, 40.0, None, 60.0, 30.0, 20.0])
    _write(tmp_path, metrics, "stock", [40.0, 40.0, None, 20.0, 20.0, 20.0])
    lines = beside(ours)
    assert lines[0].startswith("  J&F +10.0 (")  # 10, 0, 0, 40, 10 and 0 over six videos
    assert lines[1].startswith("  recovery +12.0 (")  # the third has no absence
    assert lines[2:] == ["  not compared with every_nth, random: run them with the same options and --out"]
    _write(tmp_path, metrics, "every_nth", [40.0, 40.0, None, 20.0, 20.0, 20.0])
    _write(tmp_path, metrics, "random", [20.0, 10.0, None, 30.0, 0.0, 0.0])
    assert [line.split(" (")[0] for line in beside(ours)[4:]] == ["  J&F +23.3", "  recovery +28.0"]
    (group,) = load_groups(tmp_path)
    assert group.gain(group.find("keyframe"), of="random", score="recovery").mean == pytest.approx(28)
    assert group.gain(group.find("random"), of="random") is None
    assert main(["report", str(tmp_path), "--worst", "0"]) == 0
    text = (tmp_path / "report" / "README.md").read_text()
    table = text.partition("### Around absences")[2].partition("###")[0]
    (row,) = (line for line in table.splitlines() if line.startswith("| keyframe "))
    assert row.startswith("| keyframe | 43.3 | 40.0 | +12.0 (")
    assert "vs every_nth" in text
    assert "vs random" in text
    rows = read_csv(next(tmp_path.glob("report/*/table.csv")))
    assert [row["recovery"] for row in rows if row["method"] == "keyframe"] == ["40.0"]
