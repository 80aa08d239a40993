"""What a codec or a token scheme costs: bytes, error of the features, error of memory attention's output.

The embedded micro model tracks generated clips as stock does. At every frame with a full bank its own
`_prepare_memory_conditioned_features` runs again on the same memories, all but the prompted and the newest frame's
passed through the codec (or attended to under the scheme), and its output is compared with stock's. An error is the
norm of the difference over the norm of stock's; "dropped" leaves those memories out altogether, for scale.

    python -m benchmarks.codecs run
    python -m benchmarks.codecs table
"""

import argparse
import hashlib
import json
import statistics
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from sam2_keyframe.attention.maths import Foveated, Pool, SalientTokens, TokenLayout, Whole
from sam2_keyframe.bank.compression import PCA, Cast, Chain, Downsample, Identity, Int8, Offload, Prune
from sam2_keyframe.bank.reading import plan_layout
from sam2_keyframe.micro import WEIGHTS, load_micro_predictor
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.synthetic import make_clip
from sam2_keyframe.types import Memory, Moment

OUT = Path(__file__).parent / "results" / "codecs"
CLIPS = [
    (challenge, seed) for challenge in ("static", "occlusion", "look_alike", "leave_and_return") for seed in (300, 301)
]
FRAMES = 16
CODECS = [
    Identity(),
    Offload(),
    Cast("bfloat16"),
    Cast("float16"),
    Cast("float8_e4m3fn"),
    Int8(),
    Prune(0.5),
    Prune(0.25),
    PCA(0.5),
    PCA(0.25),
    PCA(0.25, basis="running"),
    PCA(0.125),
    Downsample(2),
    Downsample(4),
    Chain(PCA(0.5), Int8()),
    Chain(PCA(0.4), Int8()),
    Chain(PCA(0.25), Int8()),
    Chain(PCA(0.25), Cast("float8_e4m3fn")),
    Chain(Downsample(2), Int8()),
    Chain(PCA(0.5), Downsample(2), Int8()),
]
SCHEMES = [
    Pool(2),
    Pool(4),
    Foveated(0.05, 4),
    Foveated(0.125, 4),
    Foveated(0.2, 4),
    Foveated(0.05, 2),
    Foveated(0.25, 2),
    Foveated(0.25, 4),
    Foveated(0.2, 2, conditioning=True),
    SalientTokens(0.05),
    SalientTokens(0.25),
]


def error(ours, stock):
    return ((ours.float() - stock.float()).norm() / stock.float().norm()).item()


class Reads:
    """Wraps one predictor's read: stock runs as it is, then each variant runs beside it and is compared."""

    def __init__(self, predictor):
        self.predictor, self.hook = predictor, AttentionHook(predictor)
        self.hook.install()
        self.original = predictor._prepare_memory_conditioned_features
        self.side = predictor.image_size // 16
        self.features, self.outputs = {}, {}
        self.restored, self.previous, self.plans = {}, {}, {}

    def __call__(self, frame_idx, output_dict, **given):
        stock = self.original(frame_idx=frame_idx, output_dict=output_dict, **given)
        tracked = output_dict["non_cond_frame_outputs"]
        held = [t for t in range(frame_idx - 6, frame_idx) if t in tracked]
        for scheme in SCHEMES:
            ours = self.under(scheme, held, frame_idx, output_dict, **given)
            if len(held) == 6:
                self.outputs.setdefault(repr(scheme), []).append(error(ours, stock))
        if len(held) < 6:
            return stock
        for codec in CODECS:
            replaced = {t: tracked[t] | {"maskmem_features": self.through(codec, t, tracked[t])} for t in held[:-1]}
            ours = self.original(
                frame_idx=frame_idx, output_dict=output_dict | {"non_cond_frame_outputs": tracked | replaced}, **given
            )
            self.outputs.setdefault(repr(codec), []).append(error(ours, stock))
        empty = {t: dict(tracked[t]) for t in held[:-1]}
        for entry in empty.values():
            entry["maskmem_features"] = entry["maskmem_features"][:, :, :0]
            entry["maskmem_pos_enc"] = [entry["maskmem_pos_enc"][-1][:, :, :0]]
        ours = self.original(
            frame_idx=frame_idx, output_dict=output_dict | {"non_cond_frame_outputs": tracked | empty}, **given
        )
        self.outputs.setdefault("dropped", []).append(error(ours, stock))
        return stock

    def under(self, scheme, held, frame_idx, output_dict, **given):
        """Return the output of the read under a scheme; on every frame, as salience is measured when newest."""
        memories = [Memory(t, output_dict["non_cond_frame_outputs"][t], frame_idx - t - 1) for t in held]
        moment = Moment(frame_idx, reverse=False, slots=6, pointers=15)
        prompts, plans = list(output_dict["cond_frame_outputs"]), self.plans.setdefault(scheme, {})
        grid, device = (self.side, self.side), self.predictor.device
        spatial = [(t, output_dict["cond_frame_outputs"][t], None) for t in prompts]
        spatial += [(m.frame_idx, m.entry, m) for m in sorted(memories, key=lambda m: -m.code)]
        with self.hook.layout(plan_layout(scheme, spatial, moment, grid, plans, device)):
            return self.original(frame_idx=frame_idx, output_dict=output_dict, **given)

    def through(self, codec, t, entry):
        """Return a frame's features after the codec; compressed once, in the order of the video."""
        features = entry["maskmem_features"]
        if (codec, t) not in self.restored:
            payload = codec.compress(features, self.previous.get(codec))
            self.previous[codec], self.restored[codec, t] = payload, codec.restore(payload)
            self.features.setdefault(repr(codec), []).append(error(self.restored[codec, t], features))
        return self.restored[codec, t]


def bytes_at_1024(codec):
    return codec.compress(torch.randn(1, 64, 64, 64).bfloat16()).nbytes


def tokens_at_1024(scheme):
    given = (
        {"drawn": torch.zeros(1, 4096)} if isinstance(scheme, SalientTokens) else {"mask": torch.zeros(1, 1, 256, 256)}
    )
    return TokenLayout((64, 64), (scheme.plan((64, 64), **given),)).tokens


def run():
    """Measure every codec and scheme and write one JSON file."""
    predictor = load_micro_predictor()
    errors = {"features": {}, "outputs": {}}
    for challenge, seed in CLIPS:
        clip = make_clip(challenge, seed, FRAMES, predictor.image_size, photos=False)
        pixels = torch.from_numpy(np.ascontiguousarray(clip.frames)).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        loaded = ((pixels - mean[:, None, None]) / std[:, None, None], *clip.frames.shape[1:3])
        with mock.patch("sam2.sam2_video_predictor.load_video_frames", return_value=loaded):
            state = predictor.init_state("frames in memory")
        predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        reads = Reads(predictor)
        predictor._prepare_memory_conditioned_features = reads
        try:
            for _ in predictor.propagate_in_video(state):
                pass
        finally:
            del predictor._prepare_memory_conditioned_features
            reads.hook.uninstall()
        for kind, found in (("features", reads.features), ("outputs", reads.outputs)):
            for name, values in found.items():
                errors[kind].setdefault(name, []).append(statistics.mean(values))
        print(challenge, seed, len(reads.outputs["dropped"]), "frames", flush=True)
    rows = [{"setting": "dropped", "bytes": 0, "tokens": 0}]
    rows += [{"setting": repr(c), "bytes": bytes_at_1024(c), "tokens": tokens_at_1024(Whole())} for c in CODECS]
    rows += [{"setting": repr(s), "bytes": bytes_at_1024(Identity()), "tokens": tokens_at_1024(s)} for s in SCHEMES]
    for row in rows:
        row["feature_error"] = errors["features"].get(row["setting"])
        row["output_error"] = errors["outputs"][row["setting"]]
    OUT.mkdir(parents=True, exist_ok=True)
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]
    results = {"weights": weights, "image_size": predictor.image_size, "clips": CLIPS, "frames": FRAMES, "rows": rows}
    (OUT / "codecs.json").write_text(json.dumps(results, indent=1) + "\n")


def table():
    """Write codecs.md from the results on disk."""
    r = json.loads((OUT / "codecs.json").read_text())
    whole = next(row for row in r["rows"] if row["setting"] == "Identity()")
    lines = [
        f"Micro model at {r['image_size']} px (weights {r['weights']}), {len(r['clips'])} generated clips of "
        f"{r['frames']} frames. Errors: mean over clips (smallest to largest clip). "
        "Bytes and tokens: of one memory at 1024 px.",
        "",
        "| setting | bytes | fewer | tokens | fewer | error of the features | error of memory attention's output |",
        "|" + "---|" * 7,
    ]

    def spread(values):
        if values is None:
            return ""
        return f"{statistics.mean(values):.2%} ({min(values):.2%} to {max(values):.2%})"

    for row in r["rows"]:
        fewer = [f"{whole[k] / row[k]:.1f}x" if row[k] else "" for k in ("bytes", "tokens")]
        lines.append(
            f"| `{row['setting']}` | {row['bytes']:,} | {fewer[0]} | {row['tokens']:,} | {fewer[1]} "
            f"| {spread(row['feature_error'])} | {spread(row['output_error'])} |"
        )
    (OUT / "codecs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    with torch.inference_mode():
        {"run": run, "table": table}[parser.parse_args().what]()
