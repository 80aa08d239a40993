"""What fewer queries in memory attention do to accuracy: each setting beside the same method with every query, by clip.

The embedded micro model on generated clips with exact masks; J&F in percent, first and last frame left out. The margin
is the same share of the frame at every size. Windows of 2 tokens at 512 px cover what windows of 4 do at 1024 px; at
256 px they cover twice as much of a side.

    python -m benchmarks.studies.queries run --size 256 --first 920000 --clips 4     # four clips of each challenge
    python -m benchmarks.studies.queries run --size 512 --first 920000 --clips 1
    python -m benchmarks.studies.queries run --size 256 --first 920000 --clips 1 --only "NearObject(2, 0.0, 0.1)"
    python -m benchmarks.studies.queries table
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sam2_keyframe as sk
from benchmarks.metrics import jaccard, score_masks
from benchmarks.studies.attention import gflop
from sam2_keyframe.app.options import parse_value
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import CHALLENGES, make_clip

OUT = Path(__file__).parent / "attention" / "queries"
KEYS = {"keyframe": 7 * 4096 + 64, "compact": 14199}
"""Keys of a read at 1024 px, once the bank is full."""
SETTINGS = {
    "keyframe": ("NearObject(2, 0.0625, 0.0)", "NearObject(2, 0.03125, 0.05)", "NearObject(2, 0.0, 0.1)"),
    "compact": ("NearObject(2, 0.0625, 0.0)",),
}


def track(predictor: Any, clip: Any, method: str, queries: str | None) -> dict[str, Any]:
    """Return J&F of a clip's object, its J on every frame, and the shares of the tokens and windows that ran."""
    choices = {} if queries is None else {"queries": parse_value(queries)}
    if method == "compact" and predictor.image_size < 1024:
        choices["attend"] = sk.Foveated(0.45, 2)
    with torch.inference_mode(), sk.wrap(predictor, method, **choices):
        state = sk.init_state(predictor, clip.frames)
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        found = [logits[0, 0].numpy() > 0 for *_, logits in predictor.propagate_in_video(state)]
        rows = sk.memory_stats(state)[1].rows
    truth = [mask == 1 for mask in clip.masks]
    score = score_masks(found, truth)
    tokens = (predictor.image_size // 16) ** 2
    ran = [row.queries / tokens for row in rows]
    return {
        "jf": 100 * score.jf,
        "j": [round(100 * jaccard(a, b), 2) for a, b in zip(found, truth, strict=True)],
        "ran": statistics.mean(ran),
        "whole": statistics.mean(share == 1 for share in ran),
        "windows": statistics.mean(_windows(share, queries) for share in ran),
    }


def _windows(share: float, queries: str | None) -> float:
    """Return the share of the windows that ran whole, from the share of the tokens that ran."""
    if queries is None:
        return 1.0
    area = parse_value(queries).size ** 2
    return (share * area - 1) / (area - 1)


def run(args: argparse.Namespace) -> None:
    """Track every clip with every setting in turn, and keep each clip as soon as it is done."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"micro_{args.size}_{args.first}.json"
    rows = json.loads(path.read_text())["clips"] if path.exists() else []
    known = {(row["challenge"], row["seed"]): row for row in rows}
    predictor = load_micro_predictor(image_size=args.size)
    for number in range(args.clips):
        for challenge in CHALLENGES:
            seed = args.first + number
            row = known.get((challenge, seed)) or {"challenge": challenge, "seed": seed, "results": {}}
            clip, begun = None, time.time()
            for method in args.methods:
                for queries in (None, *(q for q in SETTINGS[method] if not args.only or q in args.only)):
                    name = method if queries is None else f"{method} {queries}"
                    if name in row["results"]:
                        continue
                    clip = clip or make_clip(challenge, seed, args.frames, args.size)
                    row["results"][name] = track(predictor, clip, method, queries)
            if (challenge, seed) not in known:
                known[challenge, seed] = row
                rows.append(row)
            if clip is not None:
                print(f"{challenge} {seed}: {time.time() - begun:.0f} s", flush=True)
                head = {"model": "micro", "size": args.size, "frames": args.frames, "torch": torch.__version__}
                path.write_text(json.dumps(head | {"clips": rows}) + "\n")


def with_interval(values: NDArray[np.float64]) -> str:
    """Return a mean over clips with its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (5000, len(values))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{values.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def _worst(clips: list[dict[str, Any]], name: str) -> str:
    """Return the ten clips on which a setting loses most, with the change and the share of the windows whole."""
    lost = []
    for row in (row for row in clips if name in row["results"]):
        ours, base = row["results"][name], row["results"][name.split()[0]]
        lost.append((ours["jf"] - base["jf"], f"{row['challenge']} {row['seed']}", ours["windows"]))
    return ", ".join(f"{clip} {change:+.1f} ({windows:.0%})" for change, clip, windows in sorted(lost)[:10])


def table(args: argparse.Namespace) -> None:
    """Write queries.md from the results on disk."""
    lines = [
        "# Fewer queries: accuracy",
        "",
        "Embedded micro model, generated clips; J&F in percent, each setting against the same method with every query, "
        "paired by clip, 95 % bootstrap intervals. `windows whole`: mean share of the windows whose every token ran; "
        "`frames whole`: share of the frames on which every token ran (after a prompt, a loss, a jump; large objects). "
        "`memory attention`: how many times fewer operations than with every key and query it would take at 1024 px "
        "with the same mean share of the tokens, by arithmetic.",
    ]
    for path in sorted(OUT.glob("*.json")):
        data = json.loads(path.read_text())
        clips = data["clips"]
        lines += ["", f"## {data['size']} px, seeds from {clips[0]['seed']}, {data['frames']} frames", ""]
        lines += [
            "| setting | clips | J&F | change | of clips with at most 3/8 whole | worst clip | clips that lose > 5 "
            "| windows whole | frames whole | memory attention |",
            "|---" * 10 + "|",
        ]
        names = list(dict.fromkeys(name for row in clips for name in row["results"]))
        for name in names:
            some = [row for row in clips if name in row["results"]]
            mine = np.array([row["results"][name]["jf"] for row in some])
            base = np.array([row["results"][name.split()[0]]["jf"] for row in some])
            change, against, small = mine - base, "", ""
            few = np.array([row["results"][name]["windows"] <= 3 / 8 for row in some])
            if " " in name:
                against = with_interval(change)
                small = f"{with_interval(change[few])}, {few.sum()} clips" if few.sum() > 2 else ""
            windows, whole = (statistics.mean(row["results"][name][k] for row in some) for k in ("windows", "whole"))
            worst = some[int(change.argmin())]
            named = f"{change.min():+.1f} ({worst['challenge']} {worst['seed']})" if " " in name else ""
            lost = str(int((change < -5).sum())) if " " in name else ""
            cells = [name, str(len(some)), f"{mine.mean():.2f}", against, small, named, lost]
            faster = gflop(KEYS["keyframe"]) / statistics.mean(
                gflop(KEYS[name.split()[0]], row["results"][name]["ran"] * 4096) for row in some
            )
            lines.append(f"| {' | '.join([*cells, f'{windows:.0%}', f'{whole:.0%}', f'{faster:.2f}x'])} |")
        for name in (n for n in names if " " in n):
            lines += ["", f"**{name}**, change by challenge:", ""]
            cells = []
            for challenge in CHALLENGES:
                change = [
                    row["results"][name]["jf"] - row["results"][name.split()[0]]["jf"]
                    for row in clips
                    if row["challenge"] == challenge and name in row["results"]
                ]
                if change:
                    cells.append(f"{challenge} {statistics.mean(change):+.2f}")
            lines += [", ".join(cells), "", "The ten clips that lose most: " + _worst(clips, name)]
    (OUT.parent / "queries.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Command line."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--first", type=int, default=920000, help="seed of the first clip of each challenge")
    parser.add_argument("--clips", type=int, default=1, help="clips of each challenge")
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--only", nargs="+", help="settings, as they are written in SETTINGS")
    args = parser.parse_args()
    {"run": run, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
