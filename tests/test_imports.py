"""What importing the package must not do. Who may import whom is in pyproject.toml (`lint-imports`)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import sam2_keyframe

PACKAGE = Path(sam2_keyframe.__file__).parent


def _imported_at_once(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_no_host_at_module_level() -> None:
    for path in PACKAGE.rglob("*.py"):
        hosts = {name for name in _imported_at_once(path) if name.split(".")[0] in ("sam2", "transformers")}
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
