"""Write the figures of the micro model's card from the results on disk.

python -m benchmarks.micro.card             # rewrites what lies between the markers in MODEL_CARD.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.micro.evaluate import RESULTS
from sam2_keyframe.micro import WEIGHTS

CARD = WEIGHTS.with_name("MODEL_CARD.md")
BEGIN, END = "<!-- figures: benchmarks/micro/card.py -->", "<!-- end of figures -->"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def accuracy(result: dict[str, Any]) -> str:
    """J&F, J and F by challenge or sequence, the trivial trackers below."""
    rows = [[name, v["clips"], v["J&F"], v["J"], v["F"]] for name, v in result["model"].items()]
    rows += [[f"*{name}*, overall", v["clips"], v["J&F"], v["J"], v["F"]] for name, v in result["trivial"].items()]
    return table(["clips", "number", "J&F", "J", "F"], rows)


def figures(folder: Path = RESULTS) -> str:
    """All figures as Markdown, from what ``evaluate`` and ``methods`` wrote."""

    def read(name: str) -> dict[str, Any] | None:
        path = folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    parts = []
    if clips := read("clips"):
        parts.append("### The evaluation clips (256 px, 24 frames, mask in the first)\n\n" + accuracy(clips))
        parts.append(
            "### What the signals mean\n\n"
            + table(["on the tracked frames", "value"], list(map(list, clips["signals"].items())))
        )
    if real := read("real"):
        parts.append("### Real clips (first 40 frames)\n\n" + accuracy(real))
    if prompts := read("prompts"):
        text = table(["prompt", "mean IoU in its own frame"], list(map(list, prompts.items())))
        parts.append("### Clicks and boxes (first frames of the evaluation clips)\n\n" + text)
    if methods := read("methods"):
        rows = [[name, value] for name, value in methods["mean J&F"].items()]
        text = table(["method", f"mean J&F of {methods['clips']} clips"], rows)
        if gap := methods.get("best against worst of equally many memories"):
            best, worst, mean, low, high = gap
            text += f"\n\n`{best}` minus `{worst}`, paired by clip: {mean} J&F, 95 % interval {low} to {high} "
            text += "(best and worst picked by these same means)."
        parts.append("### Memory methods on long occlusion clips (72 frames)\n\n" + text)
    if speed := read("speed"):
        parts.append("### Speed (two CPU cores)\n\n" + table(["measure", "value"], list(map(list, speed.items()))))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the card's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    text = CARD.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    CARD.write_text(f"{head}{BEGIN}\n\n{figures()}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
