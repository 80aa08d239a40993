"""Who may import whom, and what importing the package must not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sam2_keyframe

PACKAGE = Path(sam2_keyframe.__file__).parent
MAY_IMPORT = {
    "types": [],
    "_checks": ["types"],
    "scorers": ["types", "_checks"],
    "attention": ["types", "_checks"],
    "rules": ["types", "_checks", "scorers"],
    "memory": ["types", "_checks", "scorers", "rules", "attention", "bank"],
    "methods": ["types", "scorers", "rules", "attention", "bank", "memory"],
    "bank": ["types", "_checks", "scorers", "rules", "attention", "memory"],
    "patches": ["types", "scorers", "rules", "attention", "memory", "bank", "replay"],
    "plugin": ["types", "memory", "methods", "bank", "patches"],
    "video": ["methods", "bank", "plugin", "patches"],
    "replay": ["types", "scorers", "attention", "memory", "methods", "bank", "patches", "video"],
    "synthetic": [],
    "micro": [],
}


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def _files(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_import_directions(part: str) -> None:
    for path in _files(part):
        ours = {name.split(".")[1] for name in _imports(path) if name.startswith("sam2_keyframe.")}
        assert ours - {part} <= set(MAY_IMPORT[part]), path


def test_no_host_at_module_level() -> None:
    for path in [*PACKAGE.rglob("*.py"), *_files("patches")]:
        hosts = {name for name in _imports(path, top_level_only=True) if name.split(".")[0] in ("sam2", "transformers")}
        assert not hosts, path


def test_importing_needs_torch_and_numpy_only() -> None:
    """Neither the host nor an extra is imported, and torch is unchanged, when the package is imported."""
    code = (
        "import sys, torch; before = dict(vars(torch.nn.Module)); import sam2_keyframe; "
        "assert dict(vars(torch.nn.Module)) == before; "
        "extras = {'sam2', 'cv2', 'av', 'PIL', 'matplotlib', 'skimage', 'scipy', 'safetensors'}; "
        "print(sorted(extras & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
