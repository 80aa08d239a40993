"""What is installed: from a clone without symbolic links, as on Windows, and from the wheel built in it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sam2_keyframe
from sam2_keyframe.app import cli

ROOT = Path(__file__).parents[1]
CHECK = """
import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_predictor
predictor = load_micro_predictor(image_size=64)
with sk.wrap(predictor, "stock"):
    pass
print(sk.__file__)
"""


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.split() == ["sam2-keyframe", sam2_keyframe.__version__]


def test_changes_and_citation_are_of_this_version() -> None:
    version = sam2_keyframe.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    headings = [line.split()[1] for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert next(heading for heading in headings if heading != "Unreleased") == version


def _run(*command: Any, **how: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check(site: Path, work: Path) -> None:
    """Run what was installed, from a folder where no checkout is found."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    assert Path(_run(sys.executable, "-P", "-c", CHECK, cwd=work, env=environment).strip()).is_relative_to(site)
    told = _run(sys.executable, "-P", "-m", "sam2_keyframe.app.cli", "--version", cwd=work, env=environment)
    (found,) = importlib.metadata.distributions(name="sam2-keyframe", path=[str(site)])
    assert told.split()[1] == sam2_keyframe.__version__ == found.version
    files = {path.relative_to(ROOT) for path in (ROOT / "sam2_keyframe").rglob("*.py")}
    assert files == {path.relative_to(site) for path in (site / "sam2_keyframe").rglob("*.py")}
    assert not (site / "patches").exists(), "the link is for readers of the repository"


@pytest.mark.slow
def test_a_clone_without_symbolic_links_installs_and_so_does_its_wheel(tmp_path: Path) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    clone, wheels = tmp_path / "clone", tmp_path / "wheels"
    _run("git", "-c", "core.symlinks=false", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), clone)
    assert (clone / "patches").is_file(), "no link here: a file that names its target"
    assert not (clone / "patches").is_symlink()
    for change in _run("git", "ls-files", "--modified", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / change).is_file():  # what is not committed yet
            (clone / change).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / change, clone / change)
    pip, offline = (sys.executable, "-m", "pip"), ("--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    _run(*pip, "wheel", *offline, "--wheel-dir", wheels, clone)
    (wheel,) = wheels.glob("sam2_keyframe-*.whl")
    for what, site in ((clone, tmp_path / "from_clone"), (wheel, tmp_path / "from_wheel")):
        _run(*pip, "install", *offline, "--target", site, what)
        _check(site, tmp_path)
