"""Run the notebooks and keep their outputs, pictures in few colours so that the files stay small.

python -m benchmarks.notebooks              # all of them
python -m benchmarks.notebooks quickstart
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
WIDTH, COLOURS = 1100, 256


def main(names: list[str]) -> int:
    """Execute notebooks in place; returns 0."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    os.environ["TQDM_DISABLE"] = "1"
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", []):
                _slim(output.get("data", {}))
        nbformat.write(notebook, path)
        sys.stderr.write(f"{path.name}: {path.stat().st_size // 1024} kB\n")
    return 0


def _slim(data: dict[str, Any]) -> None:
    if "image/png" not in data:
        return
    before = base64.b64decode(data["image/png"])
    image = Image.open(io.BytesIO(before)).convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH))
    after = io.BytesIO()
    # By an octree: the default method merges colours that few pixels have, such as the marks of a chart.
    few = image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(after, "PNG", optimize=True)
    if after.tell() < len(before):
        data["image/png"] = base64.b64encode(after.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
