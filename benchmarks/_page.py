"""The report's interactive page: one file, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._compare import Result
from benchmarks._legend import families, left_out, looks, marker_path


def write_page(path: Path, pages: Sequence[dict[str, Any]]) -> None:
    """Write the page: a plot whose axes can be chosen, with every run's figures and worst cases a click away.

    Args:
        path: The file.
        pages: A group each: "title", "rows" of its table, "legend", "videos" with J&F by run and video, "pictures" of
            worst cases whose files lie in "folder"/worst.
    """
    groups = []
    for page in pages:
        pictures = [{**case, "src": _inline(page["folder"] / "worst" / case["file"])} for case in page["pictures"]]
        groups.append({name: page[name] for name in ("title", "rows", "legend", "videos")} | {"pictures": pictures})
    data = json.dumps(groups).replace("</", "<\\/")
    template = Path(__file__).with_name("page.html").read_text()
    path.write_text(template.replace("/*DATA*/[]", data))


def legend(results: Sequence[Result]) -> dict[str, Any]:
    """Return what the page draws runs with: "names" of their families by label, their "looks", and a "note"."""
    names = families(results)
    shown = {
        name: {"colour": look.colour, "path": marker_path(look.marker), "hollow": look.area > 0}
        for name, look in looks(names.values()).items()
    }
    return {"names": names, "looks": shown, "note": left_out(results)}


def _inline(file: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()
