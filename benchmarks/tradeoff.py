"""What smaller memories and fewer tokens cost: J&F against bytes and against tokens, with intervals.

    python -m benchmarks.tradeoff run --split dev     # to choose a setting
    python -m benchmarks.tradeoff run --data FOLDER   # to report all, on test clips and on real ones, laid out as DAVIS
    python -m benchmarks.tradeoff run --recommended   # to report one setting on more test clips
    python -m benchmarks.tradeoff table
    python -m benchmarks.tradeoff plot

Every codec, every token scheme and some of both run on our default method; on development clips only those that might
be recommended. `table` and `plot` write `results/tradeoff/` from the JSON files that `run` puts there. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

from benchmarks import _tables as tables
from benchmarks._compare import Difference, Group, Result, difference, keep_results, load_groups
from benchmarks._parts import add_real_data, parts
from benchmarks._store import write_text
from benchmarks._values import parse_value
from benchmarks.codecs import bytes_at_1024, tokens_at_1024
from benchmarks.run import add_arguments, carry_out, make_plan
from sam2_keyframe import KeyframeMemory

RESULTS = Path(__file__).parent / "results" / "tradeoff"
DEV_CLIPS, TEST_CLIPS, MORE_CLIPS, FRAMES = 24, 30, 300, 36
LOSS = 0.5
"""Most points of J&F that a recommended setting may lose."""
SMALL = "Chain(PCA(0.4), Int8())"
RECOMMENDED = (SMALL, "Foveated(0.2, 4)")

CODECS: Mapping[str, tuple[str, ...]] = {
    "number format": ("Int8()", "Cast('float8_e4m3fn')"),
    "PCA": ("PCA(0.5)", "PCA(0.25)", "PCA(0.125)"),
    "PCA, 8 bits": ("Chain(PCA(0.5), Int8())", SMALL, "Chain(PCA(0.25), Int8())"),
    "Prune": ("Prune(0.5)", "Prune(0.25)"),
    "Downsample": ("Downsample(2)", "Downsample(4)"),
}
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "Pool": ("Pool(2)", "Pool(4)"),
    "Foveated": ("Foveated(0.2, 4)", "Foveated(0.05, 4)"),
    "prompt too": ("Foveated(0.2, 2, conditioning=True)", "Pool(2, conditioning=True)"),
}
BOTH = (RECOMMENDED, (SMALL, "Pool(2)"), (SMALL, "Foveated(0.2, 2, conditioning=True)"))
FEWER = ("capacity=1", "fill=False")
"""Fewer keyframes instead of smaller ones: for comparison."""
CANDIDATES = (
    *(f"compressor={codec}" for codec in (SMALL, "Chain(PCA(0.25), Int8())")),
    *(f"attend={scheme}" for scheme in ("Foveated(0.25, 4)", "Foveated(0.2, 4)", "Foveated(0.05, 2)")),
    "attend=Foveated(0.2, 2, conditioning=True)",
)
"""Codecs of at least 4x fewer bytes and schemes of about 2x fewer keys, among which development clips decide."""


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


def runs() -> list[tuple[str, list[str]]]:
    """Return every setting once, as a method's name and its replacements: stock and the uncompressed method first."""
    found: list[tuple[str, list[str]]] = [("stock", []), ("keyframe", [])]
    found += [("keyframe", [f"compressor={codec}"]) for family in CODECS.values() for codec in family]
    found += [("keyframe", [f"attend={scheme}"]) for family in SCHEMES.values() for scheme in family]
    found += [_both(codec, scheme) for codec, scheme in BOTH]
    return [*found, ("keyframe", [*FEWER])]


def candidates() -> list[tuple[str, list[str]]]:
    """Return what development clips decide about."""
    found: list[tuple[str, list[str]]] = [("keyframe", []), *(("keyframe", [choice]) for choice in CANDIDATES)]
    return [*found, _both(*RECOMMENDED), ("keyframe", [*FEWER])]


def recommended() -> list[tuple[str, list[str]]]:
    """Return the recommended setting, which `compact` names, and what it is compared with."""
    return [("stock", []), ("keyframe", []), ("compact", [])]


def _both(codec: str, scheme: str) -> tuple[str, list[str]]:
    return "keyframe", [f"compressor={codec}", f"attend={scheme}"]


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


def table(groups: Sequence[Group]) -> str:
    """Return the Markdown text that shows every setting on every set of clips."""
    lines = [
        "# Smaller memories, fewer tokens: what they cost",
        "",
        "A keyframe method, its keyframes stored by a codec and its memories attended to by a token scheme. `keyframe` "
        "stands for the choices that the files beside this one record (`repr`): five keyframes (`KeyframeMemory()`), "
        "the default when they were run; where `compact` is compared, the default it is made of. Made by "
        "`python -m benchmarks.tradeoff table`, the pictures by `plot`.",
        "",
        "J&F in percent; differences in points with 95 % intervals, paired by clip. Keyframes: what the spatial "
        "memories of all that are held besides the newest take at 1024 px. Spatial keys: attended to at 1024 px once "
        "the bank is full (prompt, newest, five more). Bank: MiB on the device as measured in these runs, "
        "mean over frames, with the prompt, the newest frames, mask logits, pointers and references, "
        "which no codec touches. Tokens: measured, mean over frames, pointers included.",
        "",
    ]
    for group in sorted(groups, key=_order):
        costs = {result.label: cost(group, result) for result in _sorted(group)}
        head = ["setting", "keyframes", "spatial keys", "J&F", "vs uncompressed", "vs stock", "bank", "tokens"]
        lines += [f"## {group.title}", "", *tables.markdown(head, [_row(group, r, costs) for r in _sorted(group)])]
        met = [f"`{label}`" for label, each in costs.items() if each.meets]
        lines += [
            "",
            f"Keyframes at least 4x smaller, spatial keys at least 2x fewer, and with 95 % at most {LOSS} J&F lost: "
            f"{', '.join(met) or 'none'}.",
            "",
            f"![J&F against bytes and tokens]({_picture(group)})",
            "",
            tables.machine(group.config),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _order(group: Group) -> tuple[bool, bool]:
    name = group.config["data"]["name"]
    return not name.startswith("synthetic"), group.config["split"] != "test"


def _sorted(group: Group) -> list[Result]:
    order = list(dict.fromkeys(" ".join([name, *given]) for name, given in [*runs(), *candidates(), *recommended()]))
    known = [result for result in group.results if result.label in order]
    return sorted(known, key=lambda result: order.index(result.label))


def _row(group: Group, result: Result, costs: Mapping[str, Cost]) -> list[str]:
    each, memory = costs[result.label], result.metrics["occupancy"]["memory"]
    ours = result.label != "stock"
    stored = f"{each.stored / 1024:.0f} KiB ({each.fewer_bytes:.1f}x)" if ours else ""
    return [
        f"`{result.label}`",
        stored,
        f"{each.tokens:,} ({each.fewer_tokens:.2f}x)",
        f"{result.jf:.1f}",
        _interval(each.loss),
        _interval(difference(result, group.reference)) if ours and group.reference else "",
        f"{memory['mib']:.3f} MiB",
        f"{memory['tokens']:.0f}",
    ]


def _interval(found: Difference | None) -> str:
    return "" if found is None else f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _picture(group: Group) -> str:
    return f"{group.config['data']['name']}_{group.config['split']}_{group.results[0].metrics['videos']}.png"


def plot(groups: Sequence[Group], folder: Path) -> None:
    """Draw J&F minus the uncompressed method's against bytes and tokens, a picture for each set of clips."""
    from matplotlib.figure import Figure

    for group in groups:
        by_set = {tuple(r.metrics["config"]["method"]["set"]): r for r in group.results if r.label != "stock"}
        figure = Figure(figsize=(12, 4.6), dpi=120, layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        codecs = {name: [(f"compressor={c}",) for c in family] for name, family in CODECS.items()}
        schemes = {name: [(f"attend={s}",) for s in family] for name, family in SCHEMES.items()}
        both = {"codec and scheme": [(f"compressor={c}", f"attend={s}") for c, s in BOTH]}
        shown: tuple[tuple[str, Any, Any], ...] = (
            ("KiB of the keyframes' memories at 1024 px", codecs | both, lambda r, c: c.stored / 1024),
            ("MiB of the whole bank, measured", codecs | both, lambda r, c: r.occupancy("mib")),
            ("spatial keys attended to at 1024 px", schemes | both, lambda r, c: c.tokens),
        )
        for panel, (title, families, x) in zip(panels, shown, strict=True):
            for name, members in families.items():
                found = [(r, cost(group, r)) for r in (by_set.get(m) for m in members) if r is not None]
                points = [(x(r, c), c.loss) for r, c in found if c.loss is not None]
                points.sort(key=lambda point: point[0])
                _curve(panel, name, points)
            panel.set_xlabel(title)
            panel.set_xlim(left=0)
            panel.axhline(0, color="#565b66", lw=1)
            panel.axhline(-LOSS, color="#b0402f", lw=1, ls="--")
            if group.reference is not None:
                panel.axhline(group.reference.jf - _uncompressed(group).jf, color="#9aa0ab", lw=1, ls=":")
            if panel.get_legend_handles_labels()[0]:
                panel.legend(frameon=False, fontsize=8)
            panel.grid(color="#e6e8ec", lw=0.8)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("J&F minus uncompressed, points")
        figure.suptitle(f"{group.title}. Dashed: -{LOSS}; dotted: stock", fontsize=11, x=0.01, ha="left")
        figure.savefig(folder / _picture(group))


def _curve(panel: Any, name: str, points: Sequence[tuple[float, Difference]]) -> None:
    if points:
        means = [loss.mean for _, loss in points]
        style = "o" if name in ("prompt too", "codec and scheme") else "o-"  # not of one family: no line
        spread = [[loss.mean - loss.low for _, loss in points], [loss.high - loss.mean for _, loss in points]]
        panel.errorbar([x for x, _ in points], means, spread, label=name, fmt=style, ms=5, lw=1.2, capsize=2)


def _run(options: argparse.Namespace) -> int:
    code = 0
    settings, clips = (candidates(), DEV_CLIPS) if options.split == "dev" else (runs(), TEST_CLIPS)
    if options.recommended:
        settings, clips = recommended(), MORE_CLIPS
    options.clips = options.clips or clips
    options.results.mkdir(parents=True, exist_ok=True)
    for part in parts(options):
        plan = make_plan(part, settings, share=True)
        code = max(code, carry_out(plan, options.workers))
        metrics = [json.loads((run.path / "metrics.json").read_text()) for run, _ in plan.runs]
        name = f"{plan.dataset.name}_{plan.dataset.split}_{len(plan.dataset.names)}.json"
        keep_results([each for each in metrics if each["objects"]], options.results / name)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table", "plot"):
        command = commands.add_parser(name)
        if name == "run":
            add_arguments(command)
            add_real_data(command)
            command.add_argument(
                "--recommended", action="store_true", help="only the recommended setting and its parts"
            )
            command.set_defaults(challenges=("occlusion",), clips=None, frames=FRAMES, split="test")
        command.add_argument("--results", type=Path, default=RESULTS, help="where tables go (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            return _run(options)
        groups = load_groups(options.results)
        if options.command == "plot":
            plot(groups, options.results)
        else:
            write_text(options.results / "README.md", table(groups))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks tradeoff: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
