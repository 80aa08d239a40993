"""Every command that the documents name is there, and `python -m benchmarks` lists it."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS, OTHERS, main

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "benchmarks/results/*.md", "sam2_keyframe/micro/*.md")
    for path in ROOT.glob(pattern)
]
SOURCES = [*ROOT.glob("benchmarks/**/*.py"), ROOT / "Makefile", *ROOT.glob("notebooks/*.ipynb")]


def named(path):
    """Return the modules, and the commands of `benchmarks`, that a file names."""
    return re.findall(r"python -m benchmarks(?:\.(\w+(?:\.\w+)*))?(?: ([a-z]+)\b)?", path.read_text())


def test_every_command_that_is_named_is_there():
    found = {(module, command) for path in (*PAGES, *SOURCES) for module, command in named(path)}
    assert {command for module, command in found if not module and command} >= {"run", "sweep", "report", "study"}
    for module, command in found:
        if module and module != "NAME":
            assert find_spec(f"benchmarks.{module}"), module
            assert module in OTHERS or module.split(".")[-1] in OTHERS, module
        elif command:
            assert command in COMMANDS, command


def test_without_a_command_all_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert {line.split()[0] for line in said.splitlines() if line.startswith("    ")} >= set(COMMANDS)
    assert OTHERS in said
    for names in re.findall(r"^  (\w[\w., ]*?)(?:  |$)", OTHERS, re.M):
        for name in names.split(", "):
            assert find_spec(f"benchmarks.{name}"), name
