"""What settings of codecs and token schemes cost, as a table and as pictures, from results on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _tables as tables
from benchmarks._compare import Difference, Group, Result, difference
from benchmarks._values import parse_value
from benchmarks.codecs import bytes_at_1024, tokens_at_1024
from sam2_keyframe import KeyframeMemory

LOSS = 0.5
"""Most points of J&F that a recommended setting may lose."""
SINGLE = ("compact", "prompt too", "codec and scheme", "fewer memories")
"""Families whose settings are not steps of one choice: no line joins them."""


@dataclass(frozen=True)
class Cost:
    """What a setting takes, at 1024 px, and loses.

    Attributes:
        stored: Bytes of the spatial memories of all keyframes held, once the buffer is full.
        tokens: Spatial keys attended to then: the prompt, the newest frame and the keyframes.
        fewer_bytes: How many times fewer the bytes are than uncompressed.
        fewer_tokens: How many times fewer the keys are.
        loss: J&F minus the uncompressed method's.
    """

    stored: int
    tokens: int
    fewer_bytes: float
    fewer_tokens: float
    loss: Difference | None

    @property
    def meets(self) -> bool:
        """Whether it is 4 times smaller in bytes and 2 in tokens, and its whole interval lies above the bound."""
        return self.fewer_bytes >= 4 and self.fewer_tokens >= 2 and self.loss is not None and self.loss.low >= -LOSS


def cost(group: Group, result: Result) -> Cost:
    """Return what a run's setting takes and loses against the uncompressed method on the same clips."""
    uncompressed = _uncompressed(group)
    method, plain = _method(result), _method(uncompressed)
    stored, most = map(_stored, (method, plain))
    tokens, all_tokens = _keys(method), _keys(plain)
    loss = None if result is uncompressed else difference(result, uncompressed)
    return Cost(stored, tokens, most / max(stored, 1), all_tokens / tokens, loss)


def _method(result: Result) -> KeyframeMemory:
    """Return the method as it was run; what a name stands for may change."""
    found: KeyframeMemory = parse_value(result.metrics["config"]["method"]["repr"])
    return found


def _stored(method: KeyframeMemory) -> int:
    minor = method.minor_slots(6) * bytes_at_1024(method.minor_compressor)
    return method.capacity * bytes_at_1024(method.compressor) + minor


def _keys(method: KeyframeMemory) -> int:
    each, whole = tokens_at_1024(method.attend), 64 * 64
    memories = method.capacity + method.minor_slots(6) if method.fill is False else 5
    return whole + memories * each + (each if getattr(method.attend, "conditioning", False) else whole)


def _uncompressed(group: Group) -> Result:
    return next(result for result in group.results if result.label == "keyframe")


def table(groups: Sequence[Group], order: Sequence[str]) -> str:
    """Return the Markdown text that shows every setting on every set of clips, by label in the order given."""
    lines = [
        "# Smaller memories, fewer tokens: what they cost",
        "",
        "Our default method `keyframe`: its five memories besides the newest stored by a codec (`compressor` and "
        "`minor_compressor` both), its memories attended to by a token scheme (`attend`). Made by "
        "`python -m benchmarks.tradeoff table`, the pictures by `plot`; the JSON files beside this one record each "
        "method whole (`repr`).",
        "",
        "J&F in percent; differences in points with 95 % intervals, paired by clip. Held: what the spatial "
        "memories that are held besides the newest take at 1024 px. Spatial keys: attended to at 1024 px once "
        "the bank is full. Bank: MiB on the device as measured in these runs, mean over frames, with the prompt, the "
        "newest frame, mask logits, pointers and references, which no codec touches. Tokens: measured, mean over "
        "frames, pointers included.",
        "",
    ]
    for group in sorted(groups, key=_order):
        shown = _sorted(group, order)
        costs = {result.label: cost(group, result) for result in shown}
        head = ["setting", "held", "spatial keys", "J&F", "vs uncompressed", "vs stock", "bank", "tokens"]
        lines += [f"## {group.title}", "", *tables.markdown(head, [_row(group, r, costs) for r in shown])]
        met = [_name(result) for result in shown if costs[result.label].meets]
        lines += [
            "",
            "Memories held at least 4x smaller, spatial keys at least 2x fewer, and with 95 % at most "
            f"{LOSS} J&F lost: {'; '.join(met) or 'none'}.",
            "",
            f"![J&F against bytes and tokens]({_picture(group)})",
            "",
            tables.machine(group.config),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _name(result: Result) -> str:
    """Return a setting's name: its codec and scheme, and what else was set."""
    given = dict(pair.split("=", 1) for pair in result.metrics["config"]["method"]["set"])
    codec = given.get("compressor")
    if codec is not None and given.pop("minor_compressor", codec) == codec:
        del given["compressor"]
    shown = [codec if "compressor" not in given else None, given.pop("attend", None)]
    words = [*filter(None, shown), *(f"{name}={value}" for name, value in given.items())]
    return ", ".join(f"`{word}`" for word in words) or f"`{result.label}`"


def _order(group: Group) -> tuple[bool, bool]:
    name = group.config["data"]["name"]
    return not name.startswith("synthetic"), group.config["split"] != "test"


def _sorted(group: Group, order: Sequence[str]) -> list[Result]:
    known = [result for result in group.results if result.label in order]
    return sorted(known, key=lambda result: order.index(result.label))


def _row(group: Group, result: Result, costs: Mapping[str, Cost]) -> list[str]:
    each, memory = costs[result.label], result.metrics["occupancy"]["memory"]
    ours = result.label != "stock"
    stored = f"{each.stored / 1024:.0f} KiB ({each.fewer_bytes:.1f}x)" if ours else ""
    return [
        _name(result),
        stored,
        f"{each.tokens:,} ({each.fewer_tokens:.2f}x)",
        f"{result.jf:.1f}",
        tables.interval(each.loss, digits=2),
        tables.interval(difference(result, group.reference), digits=2) if ours and group.reference else "",
        f"{memory['mib']:.3f} MiB",
        f"{memory['tokens']:.0f}",
    ]


def _picture(group: Group) -> str:
    return f"{group.config['data']['name']}_{group.config['split']}_{group.results[0].metrics['videos']}.png"


def plot(groups: Sequence[Group], folder: Path, families: Mapping[str, Sequence[str]]) -> None:
    """Draw J&F minus the uncompressed method's against bytes and tokens, a picture for each set of clips.

    Args:
        groups: The results.
        folder: Where the pictures go.
        families: Labels of the settings drawn together, by the family's name.
    """
    from matplotlib.figure import Figure

    for group in groups:
        figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for panel, (title, x) in zip(panels, AXES, strict=True):
            draw(panel, group, families, x)
            panel.set_xlabel(title)
        panels[0].set_ylabel("J&F minus uncompressed, points")
        handles = {
            label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
        figure.suptitle(
            f"{group.title}. Dashed: -{LOSS}; dotted: stock; star: uncompressed", fontsize=11, x=0.01, ha="left"
        )
        figure.savefig(folder / _picture(group))


AXES: tuple[tuple[str, Callable[[Result, Cost], float]], ...] = (
    ("KiB of the memories held at 1024 px", lambda result, cost: cost.stored / 1024),
    ("MiB of the whole bank, measured", lambda result, cost: result.occupancy("mib")),
    ("spatial keys attended to at 1024 px", lambda result, cost: cost.tokens),
)
"""What accuracy is drawn against."""


def draw(panel: Any, group: Group, families: Mapping[str, Sequence[str]], x: Callable[[Result, Cost], float]) -> None:
    """Draw one panel: each family that this axis tells apart from the uncompressed method, which is a star."""
    by_label, plain = {result.label: result for result in group.results}, _uncompressed(group)
    full = x(plain, cost(group, plain))
    panel.plot([full], [0], "*", color="#1c1e21", ms=12)
    for i, (name, labels) in enumerate(families.items()):
        found = [(result, cost(group, result)) for result in map(by_label.get, labels) if result is not None]
        points = sorted(((x(r, c), c.loss) for r, c in found if c.loss is not None), key=lambda point: point[0])
        if any(abs(place / full - 1) > 0.05 for place, _ in points):
            _curve(panel, name, points, i)
    panel.set_xlim(0, 1.06 * full)
    panel.axhline(0, color="#565b66", lw=1)
    panel.axhline(-LOSS, color="#b0402f", lw=1, ls="--")
    if group.reference is not None:
        panel.axhline(group.reference.jf - plain.jf, color="#9aa0ab", lw=1, ls=":")
    panel.grid(color="#e6e8ec", lw=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _curve(panel: Any, name: str, points: Sequence[tuple[float, Difference]], number: int) -> None:
    means = [loss.mean for _, loss in points]
    spread = [[loss.mean - loss.low for _, loss in points], [loss.high - loss.mean for _, loss in points]]
    look = {"color": "#1c1e21" if name == "compact" else f"C{number % 10}", "marker": "osD^vPXd<>hp"[number % 12]}
    line = "none" if name in SINGLE else "-"
    panel.errorbar([x for x, _ in points], means, spread, label=name, ls=line, ms=6, lw=1.2, capsize=2, **look)
