"""Replays of recorded runs give the rows that they gave when `tools/record_replays.py` wrote them down."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import sam2_keyframe as sk

DATA = Path(__file__).with_name("data")
TOOLS = Path(__file__).parents[1] / "tools"
EXPECTED: dict[str, Any] = json.loads(gzip.decompress((DATA / "replays.json.gz").read_bytes()))
COLUMNS = ("frame", "attended", "keyframe", "evicted", "significance", "frames", "nbytes", "tokens")


@pytest.fixture(scope="module")
def tools() -> Any:
    """The tools that compare versions and wrote the rows down."""
    sys.path.insert(0, str(TOOLS))
    try:
        import compare_versions
        import record_replays
    finally:
        sys.path.remove(str(TOOLS))
    return compare_versions, record_replays


@pytest.fixture(scope="module")
def recordings(tools: Any) -> dict[str, sk.Recording]:
    return {name: tools[1].load(DATA, name) for name in EXPECTED}


@pytest.mark.parametrize("method", sk.METHODS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_replay_gives_the_rows_written_down(name: str, method: str, recordings: Any, tools: Any) -> None:
    if method not in EXPECTED[name]:
        pytest.skip("the method came after the rows; run tools/record_replays.py to add it")
    before, now = EXPECTED[name][method], tools[1].rows(recordings[name], method)
    assert (before is None) == (now is None), "refused before, or refused now"
    for obj_id, expected in (before or {}).items():
        found = now[obj_id]
        assert len(found) == len(expected)
        for a, b in zip(expected, found, strict=True):
            old, new = dict(zip(COLUMNS, a, strict=True)), dict(zip(COLUMNS, b, strict=True))
            # Of cosines the last digits depend on the machine; the decisions do not.
            significance = old.pop("significance"), new.pop("significance")
            assert new == old
            assert significance[1] == pytest.approx(significance[0], abs=1e-5)


def test_the_rows_could_show_a_difference(recordings: Any, tools: Any) -> None:
    """Keyframes come and go in them, and another rule gives other rows."""
    rows = [row for runs in EXPECTED.values() for row in (runs["keyframe"] or {}).get("1", ())]
    assert sum(bool(row[COLUMNS.index("keyframe")]) for row in rows) > 10
    assert sum(len(row[COLUMNS.index("evicted")]) for row in rows) > 5
    assert tools[1].rows(recordings["look_alike"], "samurai") != EXPECTED["look_alike"]["keyframe"]


def test_the_comparison_of_versions_names_the_first_difference(tools: Any) -> None:
    compare, _ = tools
    old = {"look_alike, forward, keyframe": {"1": [{"frame": t, "codes": [6, 0], "nbytes": 8 * t} for t in (1, 2)]}}
    new = json.loads(json.dumps(old))
    assert list(compare.differences(old, new, [])) == []
    new["look_alike, forward, keyframe"]["1"][1].update(codes=[6, 1], nbytes=9)
    (told,) = compare.differences(old, new, [])
    assert "object 1, frame 2, codes: [6, 0], now [6, 1]" in told
    assert "of 2 rows differ: codes 1, nbytes 1" in told
    assert list(compare.differences(old, new, ["codes", "nbytes"])) == []
    new["look_alike, forward, keyframe"]["1"].pop()
    assert "2 rows, now 1" in next(compare.differences(old, new, []))
    assert list(compare.differences(old, {}, [])) == ["look_alike, forward, keyframe: only the old version has it"]


@pytest.mark.slow
def test_the_comparison_runs_a_checkout_and_finds_another_method(tmp_path: Path, tools: Any) -> None:
    """The codes are those that SAM 2 was given: under `stock` the slots, the prompted frame last of the seven."""
    compare, _ = tools
    saved, root = tmp_path / "rows.json.gz", Path(__file__).parents[1]
    options = ["--clips", "occlusion", "--frames", "10", "--methods", "stock"]

    def run(*arguments: Any) -> int:
        command = [sys.executable, TOOLS / "compare_versions.py", *arguments, *options]
        return compare.subprocess.run(list(map(str, command)), check=False).returncode

    assert run(root, "--save", saved) == 0
    rows = json.loads(gzip.decompress(saved.read_bytes()))
    first = rows["occlusion, forward, stock"]["1"]
    assert [sorted(row["codes"]) for row in first[1:4]] == [[0, 6], [0, 1, 6], [0, 1, 2, 6]]
    assert len({row["masks"] for row in first}) > 3
    assert run(saved, root) == 0
    first[2]["masks"] = "another"
    saved.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert run(saved, root) == 1
