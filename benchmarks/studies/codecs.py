"""What a codec or a token scheme costs: bytes, error of the features, error of memory attention's output.

The embedded micro model tracks generated clips as stock does. At every frame with a full bank its own
`_prepare_memory_conditioned_features` runs again on the same memories, all but the prompted and the newest frame's
passed through the codec (or attended to under the scheme), and its output is compared with stock's. An error is the
norm of the difference over the norm of stock's; "dropped" leaves those memories out altogether, for scale.

    python -m benchmarks.studies.codecs run
    python -m benchmarks.studies.codecs table
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import fingerprint
from benchmarks.results import write_json
from benchmarks.tables import markdown
from sam2_keyframe.attention.maths import Foveated, Pool, SalientTokens, TokenLayout, Whole
from sam2_keyframe.bank.compression import PCA, Cast, Chain, Downsample, Identity, Int8, Offload, Prune
from sam2_keyframe.bank.reading import plan_layout
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import Memory, Moment
from sam2_keyframe.video.source import init_state

OUT = Path(__file__).parent / "codecs"
CLIPS = [(name, seed) for name in ("static", "occlusion", "look_alike", "leave_and_return") for seed in (300, 301)]
FRAMES = 16
CODECS: Sequence[Any] = [
    Identity(), Offload(), Cast("bfloat16"), Cast("float16"), Cast("float8_e4m3fn"), Int8(), Prune(0.5), Prune(0.25),
    PCA(0.5), PCA(0.25), PCA(0.25, basis="running"), PCA(0.125), Downsample(2), Downsample(4), Chain(PCA(0.5), Int8()),
    Chain(PCA(0.4), Int8()), Chain(PCA(0.25), Int8()), Chain(PCA(0.25), Cast("float8_e4m3fn")),
    Chain(Downsample(2), Int8()), Chain(PCA(0.5), Downsample(2), Int8()),
]  # fmt: skip
SCHEMES: Sequence[Any] = [
    Pool(2), Pool(4), Foveated(0.05, 4), Foveated(0.125, 4), Foveated(0.2, 4), Foveated(0.05, 2), Foveated(0.25, 2),
    Foveated(0.25, 4), Foveated(0.2, 2, conditioning=True), SalientTokens(0.05), SalientTokens(0.25),
]  # fmt: skip


def error(ours: Tensor, stock: Tensor) -> float:
    """Return the norm of the difference over the norm of stock's."""
    return ((ours.float() - stock.float()).norm() / stock.float().norm()).item()


class Reads:
    """Wraps one predictor's read: stock runs as it is, then each variant runs beside it and is compared."""

    def __init__(self, predictor: Any) -> None:
        self.predictor, self.hook = predictor, AttentionHook(predictor)
        self.hook.install()
        self.original = predictor._prepare_memory_conditioned_features
        self.features: defaultdict[str, list[float]] = defaultdict(list)
        self.outputs: defaultdict[str, list[float]] = defaultdict(list)
        self.restored: dict[Any, Tensor] = {}
        self.previous: dict[Any, Any] = {}
        self.plans: defaultdict[Any, dict[Any, Any]] = defaultdict(dict)

    def __call__(self, frame_idx: int, output_dict: Mapping[str, Any], **given: Any) -> Tensor:
        def read(changed: Mapping[int, Any] | None = None) -> Tensor:
            replaced = output_dict | {"non_cond_frame_outputs": tracked | (changed or {})}
            found: Tensor = self.original(frame_idx=frame_idx, output_dict=replaced, **given)
            return found

        tracked = output_dict["non_cond_frame_outputs"]
        stock = self.original(frame_idx=frame_idx, output_dict=output_dict, **given)
        held = [t for t in range(frame_idx - 6, frame_idx) if t in tracked]
        full = len(held) == 6
        for scheme in SCHEMES:  # on every frame, as salience is measured when newest
            with self.hook.layout(self.layout(scheme, held, frame_idx, output_dict)):
                ours = read()
            if full:
                self.outputs[repr(scheme)].append(error(ours, stock))
        for codec in CODECS if full else ():
            changed = {t: tracked[t] | {"maskmem_features": self.through(codec, t, tracked[t])} for t in held[:-1]}
            self.outputs[repr(codec)].append(error(read(changed), stock))
        if full:
            self.outputs["dropped"].append(error(read({t: _emptied(tracked[t]) for t in held[:-1]}), stock))
        return stock

    def layout(self, scheme: Any, held: list[int], frame_idx: int, output_dict: Mapping[str, Any]) -> Any:
        """Return how a scheme lays out what is read on a frame."""
        tracked, prompted = (output_dict[f"{kind}_frame_outputs"] for kind in ("non_cond", "cond"))
        moment = Moment(frame_idx, reverse=False, slots=6, pointers=15)
        spatial = [(t, entry, None) for t, entry in prompted.items()]
        spatial += [(t, tracked[t], Memory(t, tracked[t], frame_idx - t - 1)) for t in held]  # the newest last
        side = self.predictor.image_size // 16
        return plan_layout(scheme, spatial, moment, (side, side), self.plans[scheme], self.predictor.device)

    def through(self, codec: Any, t: int, entry: Mapping[str, Any]) -> Tensor:
        """Return a frame's features after the codec; compressed once, in the order of the video."""
        if (codec, t) not in self.restored:
            payload = codec.compress(entry["maskmem_features"], self.previous.get(codec))
            self.previous[codec], self.restored[codec, t] = payload, codec.restore(payload)
            self.features[repr(codec)].append(error(self.restored[codec, t], entry["maskmem_features"]))
        return self.restored[codec, t]


def _emptied(entry: Mapping[str, Any]) -> dict[str, Any]:
    features, position = entry["maskmem_features"], entry["maskmem_pos_enc"][-1]
    return {**entry, "maskmem_features": features[:, :, :0], "maskmem_pos_enc": [position[:, :, :0]]}


def bytes_at_1024(codec: Any) -> int:
    """Return the bytes of one memory at 1024 px under a codec."""
    return int(codec.compress(torch.randn(1, 64, 64, 64).bfloat16()).nbytes)


def tokens_at_1024(scheme: Any) -> int:
    """Return the tokens of one memory at 1024 px under a scheme."""
    drawn, mask = {"drawn": torch.zeros(1, 4096)}, {"mask": torch.zeros(1, 1, 256, 256)}
    given = drawn if isinstance(scheme, SalientTokens) else mask
    return int(TokenLayout((64, 64), (scheme.plan((64, 64), **given),)).tokens)


def run() -> None:
    """Measure every codec and scheme and write codecs.json."""
    predictor: Any = load_micro_predictor()
    features: defaultdict[str, list[float]] = defaultdict(list)
    outputs: defaultdict[str, list[float]] = defaultdict(list)
    for challenge, seed in CLIPS:
        clip = make_clip(challenge, seed, FRAMES, predictor.image_size, photos=False)
        state = init_state(predictor, clip.frames)
        predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        reads = Reads(predictor)
        predictor._prepare_memory_conditioned_features = reads
        try:
            for _ in predictor.propagate_in_video(state):
                pass
        finally:
            del predictor._prepare_memory_conditioned_features
            reads.hook.uninstall()
        for found, each in ((features, reads.features), (outputs, reads.outputs)):
            for name, values in each.items():
                found[name].append(statistics.mean(values))
        print(challenge, seed, len(reads.outputs["dropped"]), "frames", flush=True)
    sizes = {"dropped": (0, 0)}
    sizes |= {repr(codec): (bytes_at_1024(codec), tokens_at_1024(Whole())) for codec in CODECS}
    sizes |= {repr(scheme): (bytes_at_1024(Identity()), tokens_at_1024(scheme)) for scheme in SCHEMES}
    rows = [
        {"setting": n, "bytes": b, "tokens": t, "feature_error": features.get(n), "output_error": outputs[n]}
        for n, (b, t) in sizes.items()
    ]
    about = {"weights": fingerprint(None), "image_size": predictor.image_size, "clips": CLIPS, "frames": FRAMES}
    write_json(OUT / "codecs.json", about | {"rows": rows})


def table() -> str:
    """Return codecs.md from the results on disk."""
    found = json.loads((OUT / "codecs.json").read_text())
    whole = next(row for row in found["rows"] if row["setting"] == "Identity()")

    def spread(values: list[float] | None) -> str:
        return f"{statistics.mean(values):.2%} ({min(values):.2%} to {max(values):.2%})" if values else ""

    def cells(row: Mapping[str, Any]) -> list[str]:
        sizes = [
            text for k in ("bytes", "tokens") for text in (f"{row[k]:,}", f"{whole[k] / row[k]:.1f}x" if row[k] else "")
        ]
        return [f"`{row['setting']}`", *sizes, spread(row["feature_error"]), spread(row["output_error"])]

    text = (
        f"Micro model at {found['image_size']} px (weights {found['weights']}), {len(found['clips'])} generated clips "
        f"of {found['frames']} frames. Errors: mean over clips (smallest to largest clip). "
        "Bytes and tokens: of one memory at 1024 px."
    )
    errors = ("error of the features", "error of memory attention's output")
    head = ["setting", "bytes", "fewer", "tokens", "fewer", *errors]
    return "\n".join([text, "", *markdown(head, map(cells, found["rows"]), align="---")]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    if parser.parse_args().what == "table":
        (OUT / "codecs.md").write_text(table())
    else:
        with torch.inference_mode():
            run()
