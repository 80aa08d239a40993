"""What the comparison with upstream forks sees, on SAM 2 itself; the forks where their clones are at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import conformance
from benchmarks.__main__ import main

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_what_is_read_is_told_by_content(tmp_path: Path) -> None:
    """Of `samurai` on SAM 2: the frames and codes that attention is given are those that the plugin says it chose."""
    clip = conformance._write_clip(tmp_path, "occlusion", 20000, 12)
    code = (
        "import json, sys, numpy as np, torch, benchmarks.conformance as c\n"
        "from pathlib import Path; from sam2_keyframe import memory_stats, wrap\n"
        "p = c.micro(); w = c.Witness(p); wrap(p, 'samurai'); folder = Path(sys.argv[1])\n"
        "with torch.inference_mode():\n"
        "    state = p.init_state(str(folder / 'frames'))\n"
        "    p.add_new_mask(state, 0, 1, torch.from_numpy(np.load(folder / 'masks.npy')[0] == 1))\n"
        "    for _ in p.propagate_in_video(state): pass\n"
        "rows = [(r.frame_idx, r.attended) for r in memory_stats(state)[1].rows]\n"
        "print(json.dumps([rows, w.reads]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(clip)], env=environment, capture_output=True, text=True)
    rows, reads = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 11
    for frame_idx, attended in rows:
        spatial = reads[str(frame_idx)]["spatial"]
        assert sorted(frame for frame, _ in spatial) == attended
        assert sorted(code for _, code in spatial) == [*range(len(spatial) - 1), 6]
        assert reads[str(frame_idx)]["pointers"][0] == 0


def test_a_difference_shows() -> None:
    masks = [np.packbits(np.eye(8, dtype=bool)).tolist()] * 2
    read = {"spatial": [[0, 6], [1, 0]], "pointers": [0, 1]}
    ours = {"reads": {"1": read, "2": read}, "masks": masks}
    theirs = {"reads": {"1": read, "2": {**read, "spatial": [[0, 6], [1, 1]]}}, "masks": [masks[0], [0] * 8]}
    found = conformance.compare(ours, theirs)
    assert (found["frames"], found["memories"], found["codes"], found["pointers"]) == (2, 2, 1, 2)
    assert (found["iou"], found["least"]) == (0.5, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["samurai", "dam4sam", "surgical"])
def test_our_rule_chooses_as_its_upstream(name: str, tmp_path: Path) -> None:
    folder = os.environ.get(f"SAM2_KEYFRAME_{name.upper()}")
    if not folder:
        pytest.skip(f"set SAM2_KEYFRAME_{name.upper()} to a clone of {conformance.UPSTREAM[name][2]}")
    assert main(["conformance", "--upstream", f"{name}={folder}", "--clips", "1", "--results", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    best = max(row["memories"] / row["frames"] for row in rows)
    assert best >= 0.94
    assert max(row["iou"] for row in rows) > 0.999
