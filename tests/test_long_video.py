"""Constant memory, as `benchmarks.studies.long_video` in short: file and stream are flat, stock is seen to grow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import long_video
from sam2_keyframe.bank import decisions as selection
from sam2_keyframe.bank import statistics as stats

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 600 frames, with statistics that are full after 100; the footage repeats every 50."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "ROWS", 100)
        patch.setattr(selection, "RECORDS", 100)
        for kind in long_video.KINDS:
            long_video.run(kind, folder, 600, every=100, loop=26)
    return folder


def summary(kind: str, results: Path) -> dict[str, Any]:
    return long_video.summarise(long_video.read(kind, results))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_memory_is_constant(kind: str, results: Path) -> None:
    found = summary(kind, results)
    holds = long_video.judge(found, within=0.1)  # so few rows of statistics that a memory more or less counts
    wrong = [claim for claim, true in holds.items() if not true and not claim.startswith("resident size")]
    assert wrong == [], found  # this process's resident size is that of the tests before
    assert len(holds) == 5
    assert found["entries"]["max"] < 30
    assert 0 < found["bank_mib"]["min"] < 0.05
    assert found["frames_mib"]["max"] == found["frames_mib"]["min"] < 0.3
    assert abs(found["held_mib"]["per_1000_frames"]) < 0.03  # stock: 2.4; numbers above 256 are objects of their own


def test_stock_is_seen_to_grow(results: Path) -> None:
    """The control: the same measures, of SAM 2 alone."""
    found = summary("stock", results)
    holds = long_video.judge(found)
    assert [claim for claim, true in holds.items() if true and not claim.startswith("resident size")] == []
    assert found["entries"]["per_1000_frames"] == pytest.approx(1000)
    assert found["tensors"]["per_1000_frames"] == pytest.approx(5000)
    assert found["bank_mib"]["per_1000_frames"] > 2


def test_the_report_ends_with_an_error_where_a_claim_does_not_hold(results: Path, tmp_path: Path) -> None:
    shutil.copy(results / "stock.csv", tmp_path / "stream.csv")
    with pytest.raises(SystemExit, match="not so: stream: bytes of frames, bank and bookkeeping"):
        long_video.report(tmp_path)
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    holds = json.loads((tmp_path / "summary.json").read_text())["stream"]["holds"]
    assert list(holds.values()).count(False) >= 4
