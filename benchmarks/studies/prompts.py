"""What one more click is worth where `track --suggest-prompts` asks for it: against a random frame, and other choices.

    python -m benchmarks.studies.prompts run --seeds 10
    python -m benchmarks.studies.prompts table

Clips with absences under the default memory and the embedded model. On the frame that is chosen the true mask is given
as a correction, and tracking goes on with it; where the object is away there is nothing to give, and so nothing gained.
What is finished stays: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import tables
from benchmarks.compare import interval
from benchmarks.datasets import SEEDS
from benchmarks.metrics import boundary_f, jaccard
from benchmarks.models import shared_features
from sam2_keyframe import FrameSource, memory_stats, wrap
from sam2_keyframe.app.options import Prompt
from sam2_keyframe.app.suggest import Backwards, Evidence, check, suggest
from sam2_keyframe.app.track import new_state, sweep
from sam2_keyframe.methods import make_method
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.video.confidence import with_confidence

RESULTS = Path(__file__).parent.parent / "results" / "prompts"
WAYS = ("absence", "absence_partial", "absence_filled", "absence_leaving")
FRAMES, SIZE, AWAY = 100, 128, (10, 22)
RULES = {
    "suggested": "the first frame that is suggested",
    "random": "a random frame",
    "lowest": "the frame of the lowest object score",
    "lowest shown": "the frame of the lowest object score of those on which a mask is shown",
}
Masks = NDArray[np.bool_]


def tracked(predictor: Any, frames: Any, method: str, prompts: Sequence[Prompt]) -> tuple[Masks, dict[int, Any]]:
    """Return object 1's masks, (T, H, W), and its scores by frame."""
    with FrameSource(frames, threads=1) as source, wrap(predictor, with_confidence(make_method(method))):
        state = new_state(predictor, source)
        masks = [(logits[0, 0] > 0).numpy() for *_, logits in sweep(predictor, state, source, prompts)]
        return np.stack(masks), {row.frame_idx: row.scores for row in memory_stats(state)[1].rows}


def jf(masks: Masks, truth: Masks) -> float:
    """Return J&F over all frames but the first, in percent."""
    pairs = list(zip(masks[1:], truth[1:], strict=True))
    return 50 * float(np.mean([jaccard(*pair) + boundary_f(*pair) for pair in pairs]))


def one(predictor: Any, way: str, seed: int) -> dict[str, Any]:
    """Return a clip's J&F, and by rule the frame chosen and J&F with a correction on it."""
    clip = make_clip(way, seed, frames=FRAMES, size=SIZE, absences=AWAY)
    truth, numbers = clip.masks == 1, range(FRAMES)
    start = Prompt(0, 1, mask=truth[0])
    with shared_features(predictor):
        masks, scores = tracked(predictor, clip.frames, "keyframe", [start])
        stock, _ = tracked(predictor, clip.frames, "stock", [start])
        last = int(np.flatnonzero(masks.any((1, 2)))[-1])
        reversed_frames = Backwards(clip.frames.__getitem__, last + 1)
        back, _ = tracked(predictor, reversed_frames, "keyframe", [Prompt(0, 1, mask=masks[last])])

        def others(found: Masks, order: Sequence[int]) -> Iterator[tuple[int, NDArray[Any], list[int]]]:
            for t, mask in zip(order, found, strict=True):
                yield t, mask.astype(np.uint8), [1]

        ious = [scores[t]["predicted_iou"] if t in scores else np.nan for t in numbers]
        evidence = {1: Evidence(np.array(ious), masks.any((1, 2)).astype(float))}
        check(evidence, numbers, "stock", lambda t: masks[t], others(stock, numbers))
        check(evidence, numbers, "backward", lambda t: masks[t], others(back, range(last, -1, -1)))
        lowest = sorted(numbers[1:], key=lambda t: scores[t]["object_score"])
        asked = suggest(evidence, numbers)
        chosen = {
            "suggested": asked[0].frame if asked else None,
            "random": int(np.random.default_rng(seed + 1000 * WAYS.index(way)).integers(1, FRAMES)),
            "lowest": lowest[0],
            "lowest shown": next((t for t in lowest if masks[t].any()), None),
        }
        before, after = jf(masks, truth), {}
        for t in {t for t in chosen.values() if t is not None and truth[t].any()}:
            corrected, _ = tracked(predictor, clip.frames, "keyframe", [start, Prompt(t, 1, mask=truth[t])])
            after[t] = jf(corrected, truth)
    gained = {rule: after.get(t, before) - before for rule, t in chosen.items()}
    return {"clip": f"{way}-{seed}", "jf": before, "chosen": chosen, "gained": gained, "seen": {
        rule: t is not None and bool(truth[t].any()) for rule, t in chosen.items()
    }}  # fmt: skip


def run(split: str, seeds: int) -> None:
    """Work through the clips of a split, of each seed the ways in turn; write each when it is done."""
    torch.set_num_threads(1)
    predictor = load_micro_predictor(image_size=SIZE)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{split}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in range(SEEDS[split], SEEDS[split] + seeds):
        for way in WAYS:
            if f"{way}-{seed}" not in {row["clip"] for row in rows}:
                rows.append(one(predictor, way, seed))
                path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def table(split: str) -> list[str]:
    """Return the lines of the table of a split."""
    rows = json.loads((RESULTS / f"{split}.json").read_text())
    gains = {rule: [row["gained"][rule] for row in rows] for rule in RULES}
    body = []
    for rule, text in RULES.items():
        shown = [f"{interval(gains[rule])[0]:+.2f} ({', '.join(f'{x:+.2f}' for x in interval(gains[rule])[1:])})"]
        if rule == "suggested":
            shown.append("")
        else:
            mean, low, high = interval([a - b for a, b in zip(gains["suggested"], gains[rule], strict=True)])
            shown.append(f"{mean:+.2f} ({low:+.2f}, {high:+.2f})")
        body.append([text, *shown, f"{sum(row['seen'][rule] for row in rows)} of {len(rows)}"])
    head = ["correction on", "J&F gained", "suggested gains more by", "object is there"]
    return [
        "# What one more prompt is worth",
        "",
        f"{len(rows)} {'test' if split == 'test' else 'development'} clips of {FRAMES} frames at {SIZE} px, absences "
        f"of {AWAY[0]} to {AWAY[1]} frames, the embedded model at {SIZE} px under `keyframe`, whose J&F is "
        f"{np.mean([row['jf'] for row in rows]):.1f} without a correction. Points of J&F over the whole clip, means "
        "with 95 % bootstrap intervals over clips; differences are paired. On the chosen frame the true mask is given; "
        "where the object is away nothing can be given, so nothing is gained. Made by "
        "`python -m benchmarks.studies.prompts`.",
        "",
        *tables.markdown(head, body),
        "",
        "How the parts of the doubt are put together was chosen on seven development clips. An interval of a "
        "difference that holds 0 shows nothing: more clips are needed to tell the suggested frame from the others.",
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the clips or write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "table"))
    parser.add_argument("--split", choices=tuple(SEEDS), default="test")
    parser.add_argument("--seeds", type=int, default=10, help="of each of the four ways to be away")
    options = parser.parse_args(arguments)
    if options.do == "run":
        run(options.split, options.seeds)
    else:
        (RESULTS / "README.md").write_text("\n".join(table(options.split)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
