"""Run notebooks and keep their outputs: charts as PNG in few colours, photographs as JPEG, so that they stay small.

python -m benchmarks.notebooks              # all of them
python -m benchmarks.notebooks quickstart
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
WIDTH, COLOURS = 1100, 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute notebooks in place; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which, without .ipynb (default: all)")
    names = parser.parse_args(arguments).names
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no notebook {', '.join(unknown)}; choose from {', '.join(known)}")
    import nbformat
    from nbclient import NotebookClient

    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    os.environ["TQDM_DISABLE"] = "1"
    for path in [FOLDER / f"{name}.ipynb" for name in names or known]:
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
    image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH))
    # By an octree: the default method merges colours that few pixels have, such as the marks of a chart.
    chart = image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    encoded = {
        "image/png": _encoded(chart, "PNG", optimize=True),
        "image/jpeg": _encoded(image, "JPEG", quality=80),
    }
    kind = min(encoded, key=lambda kind: len(encoded[kind]))  # JPEG for photographs, PNG for the rest
    data.pop("image/jpeg", None)
    data[kind] = base64.b64encode(encoded[kind]).decode()


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
