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
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

from benchmarks import campaign, tables
from benchmarks.compare import Difference, Group, Result, difference, load_groups
from benchmarks.plan import Spec, label
from benchmarks.results import write_text
from benchmarks.studies.codecs import bytes_at_1024, tokens_at_1024
from sam2_keyframe import KeyframeMemory
from sam2_keyframe.app.options import parse_value

DEV_CLIPS, TEST_CLIPS, MORE_CLIPS, FRAMES = 60, 30, 300, 36
SMALL = "Chain(PCA(0.4), Int8())"
LOSS = 0.5
"""Most points of J&F that a recommended setting may lose."""
CODECS: Mapping[str, tuple[str, ...]] = {
    "number format": ("Int8()", "Cast('float8_e4m3fn')"),
    "PCA": ("PCA(0.5)", "PCA(0.25)", "PCA(0.125)"),
    "PCA, running basis": ("PCA(0.5, basis='running')", "PCA(0.25, basis='running')"),
    "PCA, 8 bits": ("Chain(PCA(0.5), Int8())", SMALL, "Chain(PCA(0.25), Int8())"),
    "Prune": ("Prune(0.5)", "Prune(0.25)"),
    "Downsample": ("Downsample(2)", "Downsample(4)"),
}
"""`Identity`, `Offload` and the other casts change no bit of what SAM 2 stores, bfloat16, so that there is no curve."""
SCHEMES: Mapping[str, tuple[str, ...]] = {
    "Pool": ("Pool(2)", "Pool(4)"),
    "Foveated": ("Foveated(0.25, 4)", "Foveated(0.2, 4)", "Foveated(0.05, 4)"),
    "SalientTokens": ("SalientTokens(0.25)", "SalientTokens(0.05)"),
    "prompt too": ("Foveated(0.2, 2, conditioning=True)", "Pool(2, conditioning=True)"),
}
FEWER = (["keyframes=1", "others=0", "fill=False"], ["others=0", "fill=False"])
"""Fewer memories instead of smaller ones: for comparison."""
SINGLE = ("compact", "prompt too", "codec and scheme", "fewer memories")
"""Families whose settings are not steps of one choice: no line joins them."""


def setting(codec: str | None = None, scheme: str | None = None, *more: str) -> Spec:
    """Return a method's name and its replacements: the memories held stored by a codec, attended to by a scheme."""
    stored = [] if codec is None else [f"codec={codec}"]
    return "keyframe", [*stored, *([] if scheme is None else [f"attend={scheme}"]), *more]


PLAIN = [setting(SMALL, scheme) for scheme in ("Pool(2)", "Foveated(0.2, 4)", "SalientTokens(0.25)")]
"""All five memories, stored and read smaller."""


def families() -> dict[str, list[Spec]]:
    """Return every setting besides the uncompressed method, by what it makes smaller."""
    codecs = {name: [setting(codec) for codec in found] for name, found in CODECS.items()}
    schemes = {name: [setting(None, scheme) for scheme in found] for name, found in SCHEMES.items()}
    fewer = [("keyframe", [*few]) for few in FEWER]
    both: dict[str, list[Spec]] = {"codec and scheme": [*PLAIN, *candidates()[3:]], "fewer memories": fewer}
    return {"compact": [("compact", [])], **codecs, **schemes, **both}


def runs() -> list[Spec]:
    """Return every setting once: stock and the uncompressed method first."""
    shown = [run for name, found in families().items() for run in found if name != "codec and scheme"]
    return [("stock", []), ("keyframe", []), *shown, *PLAIN]


def candidates() -> list[Spec]:
    """Return what development clips decide about: at least 4x smaller, 2x fewer keys."""
    fewer = ("others=1", "fill=False"), ("others=2", "fill=False"), ("keyframes=1", "others=1", "fill=False")
    return [
        setting(),
        *PLAIN[1:],
        *(setting(SMALL, scheme) for scheme in ("Foveated(0.25, 4)", "Foveated(0.05, 2)")),
        setting(SMALL, "Foveated(0.45, 4)", *fewer[0]),
        setting(SMALL, "Foveated(0.3, 4)", *fewer[1]),
        setting(SMALL, "Foveated(0.6, 4)", *fewer[2]),
        setting(SMALL, "Foveated(0.6, 4)", "others=0", "fill=False"),
        setting(SMALL, None, "keyframes=1", "others=0", "fill=False"),
    ]


RECOMMENDED: list[Spec] = [("stock", []), ("keyframe", []), ("compact", [])]
"""The recommended setting, which `compact` names, and what it is compared with."""


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
    plain = _uncompressed(group)
    # the methods as they were run; what a name stands for may change
    (stored, tokens), (most, all_tokens) = (_taken(parse_value(each.method["repr"])) for each in (result, plain))
    loss = None if result is plain else difference(result, plain)
    return Cost(stored, tokens, most / max(stored, 1), all_tokens / tokens, loss)


def _taken(method: KeyframeMemory) -> tuple[int, int]:
    """Return the bytes that a method's keyframes take, and the keys attended to."""
    keyframes, others = method.keyframes.n, method.room_for_others(6)
    stored = keyframes * bytes_at_1024(method.keyframes.codec) + others * bytes_at_1024(method.others.codec)
    each, whole = tokens_at_1024(method.attend), 64 * 64
    memories = keyframes + others if method.fill is False else 5
    return stored, whole + memories * each + (each if getattr(method.attend, "conditioning", False) else whole)


def _uncompressed(group: Group) -> Result:
    found = group.find("keyframe")
    if found is None:
        raise ValueError(f"{group.title}: the uncompressed method is missing; run keyframe on these clips")
    return found


def table(groups: Sequence[Group]) -> str:
    """Return the Markdown text that shows every setting on every set of clips."""
    lines = [
        "# Smaller memories, fewer tokens: what they cost",
        "",
        "Our default method `keyframe`: its five memories besides the newest stored by a codec (`codec`), "
        "its memories attended to by a token scheme (`attend`). Made by "
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
    order = dict.fromkeys(map(label, [*runs(), *candidates()]))
    for group in sorted(groups, key=lambda group: (not group.generated, group.config["split"] != "test")):
        shown = [(result, cost(group, result)) for name in order if (result := group.find(name))]
        head = ["setting", "held", "spatial keys", "J&F", "vs uncompressed", "vs stock", "bank", "tokens"]
        met = "; ".join(_name(result) for result, each in shown if each.meets) or "none"
        lines += [
            f"## {group.title}",
            "",
            *tables.markdown(head, [_row(group, *each) for each in shown]),
            "",
            "Memories held at least 4x smaller, spatial keys at least 2x fewer, and with 95 % at most "
            f"{LOSS} J&F lost: {met}.",
            "",
            f"![J&F against bytes and tokens]({_picture(group)})",
            "",
            tables.machine(group.config),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _name(result: Result) -> str:
    """Return a setting's name: its codec and scheme, and what else was set."""
    given = dict(pair.split("=", 1) for pair in result.method["set"])
    shown = [given.pop(name) for name in ("codec", "attend") if name in given]
    words = [*shown, *(f"{name}={value}" for name, value in given.items())]
    return ", ".join(f"`{word}`" for word in words) or f"`{result.label}`"


def _row(group: Group, result: Result, each: Cost) -> list[str]:
    return [
        _name(result),
        f"{each.stored / 1024:.0f} KiB ({each.fewer_bytes:.1f}x)" if result.label != "stock" else "",
        f"{each.tokens:,} ({each.fewer_tokens:.2f}x)",
        f"{result.jf:.1f}",
        tables.interval(each.loss, digits=2),
        tables.interval(group.gain(result), digits=2),
        f"{result.occupancy('peak_mib'):.3f} MiB",
        f"{result.occupancy('tokens'):.0f}",
    ]


def _picture(group: Group) -> str:
    return f"{group.config['data']['name']}_{group.config['split']}_{group.results[0].metrics['videos']}.png"


AXES: Mapping[str, Callable[[Result, Cost], float]] = {
    "KiB of the memories held at 1024 px": lambda result, cost: cost.stored / 1024,
    "MiB of the whole bank, measured": lambda result, cost: result.occupancy("peak_mib"),
    "spatial keys attended to at 1024 px": lambda result, cost: cost.tokens,
}
"""What accuracy is drawn against."""


def plot(groups: Sequence[Group], folder: Path) -> None:
    """Draw J&F minus the uncompressed method's against bytes and tokens, a picture for each set of clips."""
    from matplotlib.figure import Figure

    for group in groups:
        figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for panel, title in zip(panels, AXES, strict=True):
            draw(panel, group, AXES[title])
            panel.set_xlabel(title)
        panels[0].set_ylabel("J&F minus uncompressed, points")
        handles = {
            name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
        title = f"{group.title}. Dashed: -{LOSS}; dotted: stock; star: uncompressed"
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        figure.savefig(folder / _picture(group))


def draw(panel: Any, group: Group, x: Callable[[Result, Cost], float]) -> None:
    """Draw one panel: each family that this axis tells apart from the uncompressed method, which is a star."""
    plain = _uncompressed(group)
    full = x(plain, cost(group, plain))
    panel.plot([full], [0], "*", color="#1c1e21", ms=12)
    for i, (name, specs) in enumerate(families().items()):
        found = [(result, cost(group, result)) for result in map(group.find, map(label, specs)) if result is not None]
        points = sorted(((x(r, c), c.loss) for r, c in found if c.loss is not None), key=lambda point: point[0])
        if any(abs(place / full - 1) > 0.05 for place, _ in points):
            means = [loss.mean for _, loss in points]
            spread = [[loss.mean - loss.low for _, loss in points], [loss.high - loss.mean for _, loss in points]]
            look = {"color": "#1c1e21" if name == "compact" else f"C{i % 10}", "marker": "osD^vPXd<>hp"[i % 12]}
            look |= {"ls": "none" if name in SINGLE else "-", "ms": 6, "lw": 1.2, "capsize": 2}
            panel.errorbar([place for place, _ in points], means, spread, label=name, **look)
    panel.set_xlim(0, 1.06 * full)
    panel.axhline(0, color="#565b66", lw=1)
    panel.axhline(-LOSS, color="#b0402f", lw=1, ls="--")
    if group.reference is not None:
        panel.axhline(group.reference.jf - plain.jf, color="#9aa0ab", lw=1, ls=":")
    panel.grid(color="#e6e8ec", lw=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _run(options: argparse.Namespace) -> int:
    settings, clips = (candidates(), DEV_CLIPS) if options.split == "dev" else (runs(), TEST_CLIPS)
    if options.recommended:
        settings, clips = RECOMMENDED, MORE_CLIPS
    options.clips = options.clips or clips
    options.results.mkdir(parents=True, exist_ok=True)
    return campaign.run_plans(campaign.make_plans(campaign.places(options), settings, counted=True), options.workers)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    campaign.add_campaign_arguments(run, "tradeoff", challenges=("occlusion",), clips=None, frames=FRAMES, split="test")
    run.add_argument("--recommended", action="store_true", help="only the recommended setting and its parts")
    for name in ("table", "plot"):
        made = commands.add_parser(name)
        made.add_argument("--results", type=Path, default=campaign.RESULTS / "tradeoff", help="where they lie")
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
