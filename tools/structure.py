"""How the package hangs together, in numbers: `python tools/structure.py [CHECKOUT ...]`, a line for each checkout.

Rooms are folders, or modules where the package is flat. Floors are the longest chain of modules of which each imports
the next; arrows are pairs of modules of which one imports the other, and those between rooms. Lines are of Python.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "sam2_keyframe"


def modules(root: Path) -> dict[str, Path]:
    """Return the package's modules by dotted name, as files; what lies behind a link is read too."""
    found = {}
    for path in sorted(Path(root, PACKAGE).rglob("*.py")) + sorted(Path(root, PACKAGE, "patches").rglob("*.py")):
        found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the package's modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inside]
        yield from (name for name in names if name in known)


def measure(root: Path) -> dict[str, int]:
    """Return the numbers of a checkout."""
    known = modules(root)
    edges = {name: {other for other in imported(path, known) if other != name} for name, path in known.items()}

    @cache
    def floor(name: str) -> int:
        below = [floor(other) for other in edges[name] if name not in edges[other]]
        return 1 + max(below, default=0)

    def room(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[:2]) if len(parts) > 1 else name

    across = {(room(name), room(other)) for name, others in edges.items() for other in others}
    sys.setrecursionlimit(10_000)
    return {
        "rooms": len({room(name) for name in known}),
        "modules": len(known),
        "floors": max(floor(name) for name in known if name != PACKAGE),
        "arrows": sum(map(len, edges.values())),
        "arrows between rooms": len({pair for pair in across if pair[0] != pair[1]}),
        "lines": sum(len(path.read_text().splitlines()) for path in known.values()),
    }


def main() -> None:
    """Write a line for each checkout."""
    for root in sys.argv[1:] or ["."]:
        numbers = measure(Path(root))
        sys.stdout.write(f"{root}: {', '.join(f'{number:,} {name}' for name, number in numbers.items())}\n")


if __name__ == "__main__":
    main()
