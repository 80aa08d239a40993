"""The snippets of README and docs run, and the site builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from footage import write_video

import sam2_keyframe as sk
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"(<!-- not run: (?P<why>.+?) -->\n)?```python\n(?P<code>.*?)```", re.S)


def snippets(page: Path) -> list[str]:
    """Return a page's Python, without what it says cannot be run."""
    return [found["code"] for found in SNIPPET.finditer(page.read_text()) if not found["why"]]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one namespace, with a predictor, a state with a prompted object, masks and a video."""
    monkeypatch.chdir(tmp_path)
    clip = make_clip("occlusion", seed=1, frames=12, size=128)
    write_video(tmp_path / "video.mp4", clip.frames)
    predictor = load_micro_predictor(image_size=128)
    inference_state = sk.init_state(predictor, clip.frames)
    predictor.add_new_mask(inference_state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
    known: dict[str, Any] = {"sk": sk, "torch": torch, "np": np, "predictor": predictor}
    known |= {"inference_state": inference_state, "masks": clip.masks, "clip": clip}
    for code in snippets(page):
        exec(compile(code, f"{page.name}", "exec"), known)
        sk.unwrap(predictor)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site/reference/index.html").read_text()
    assert 'id="sam2_keyframe.wrap"' in page
