"""What CONTRIBUTING.md says is so: its examples run on the real host, its files are there, its rooms are the rooms."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sam2_keyframe as sk
from sam2_keyframe.patches.host import Host

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def examples() -> Any:
    """What the examples define, as a module."""
    module = type(sys)("examples")
    sys.modules["examples"] = module  # where dataclasses look annotations up
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "CONTRIBUTING.md", "exec"), vars(module))
    yield module
    del sys.modules["examples"]


def test_the_examples_run_on_a_predictor(examples: Any, predictor: Any, clip: Any) -> None:
    state = sk.init_state(predictor, clip.frames[:12])
    with sk.wrap(predictor, examples.covered(low=0.3)):
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        for _ in predictor.propagate_in_video(state):
            pass
    rows = sk.memory_stats(state)[1].rows
    assert len(rows) == 11
    for row in rows:
        assert row.significance == pytest.approx(row.scores["area"])
        assert row.keyframe == (row.scores["object_score"] > 0 and 0.3 < row.significance < 0.5)
    assert {row.keyframe for row in rows} == {True, False}


def test_the_example_of_a_rule_combines_and_has_its_scorer_measured(examples: Any) -> None:
    method = sk.KeyframeMemory(sk.Keyframes(5, examples.Between() & ~sk.Visible()))
    assert method.scorers == (examples.Coverage(),)
    assert method.significance == examples.Coverage()


def test_files_and_rooms_are_there() -> None:
    named = re.findall(r"`((?:sam2_keyframe|tests|tools|benchmarks|notebooks|\.github|\.ci)/[^` ]+)`", TEXT)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXT, re.MULTILINE)
    rooms = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    package = ROOT / "sam2_keyframe"
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms == there - {"__init__", "_checks", "types"}


def test_what_a_host_gives_is_what_is_written() -> None:
    written = set(re.findall(r"`(\w+)`", TEXT[TEXT.index("## Add a host") : TEXT.index("Three things are")]))
    asked = {name for name, member in vars(Host).items() if callable(member) or isinstance(member, staticmethod)}
    assert {name for name in asked if not name.startswith("_")} == written - {"Host", "HOSTS"}


def test_targets_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE))
    assert len(targets) >= 5
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
