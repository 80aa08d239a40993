"""Time of memory attention and of the whole frame against tokens attended.

Official SAM 2.1 architectures at 1024 px with random weights; the time does not depend on the weights. Stock and every
scheme run in turn in one process, so that a slow minute falls on all of them; the ratio is the median over rounds of
stock's time over the scheme's in the same round.

    python -m benchmarks.studies.attention memory --arch tiny --rounds 5
    python -m benchmarks.studies.attention frame --arch tiny --rounds 5
    python -m benchmarks.studies.attention memory --note near --memories 7 --clock cpu --rounds 3 --schemes compact \
        near "compact near" "salient near" --object 0.05 0.1 0.25 0.5
    python -m benchmarks.studies.attention profile --arch tiny
    python -m benchmarks.studies.attention frame --arch large --device cuda --dtype bfloat16 --objects 8
    python -m benchmarks.studies.attention table
"""

import argparse
import contextlib
import dataclasses
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch

from sam2_keyframe import make_method
from sam2_keyframe.attention.maths import Foveated, Pool, SalientTokens, TokenLayout, Whole, scheme_for
from sam2_keyframe.attention.queries import NearObject
from sam2_keyframe.patches.attention import AttentionHook

OUT = Path(__file__).parent / "attention"
CONFIGS = {
    "tiny": "sam2.1_hiera_t",
    "small": "sam2.1_hiera_s",
    "base_plus": "sam2.1_hiera_b+",
    "large": "sam2.1_hiera_l",
}
SCHEMES = {
    "whole": Whole(),
    "pool2": Pool(2),
    "pool4": Pool(4),
    "foveated": Foveated(share=0.05, size=4),
    "foveated 0.2": Foveated(share=0.2, size=4),
    "compact": make_method("compact").attend,
    "salient": SalientTokens(0.05),
    "pool2+conditioning": Pool(2, conditioning=True),
    "foveated+conditioning": Foveated(share=0.05, size=4, conditioning=True),
}
NEAR = {"near": "whole", "compact near": "compact", "salient near": "salient", "pool2 near": "pool2"}
"""Schemes of keys with fewer queries too, near a disc of each share of the frame that `--object` names."""
QUERIES = NearObject()
COMPACT = 5
"""Memories that `compact` reads once its bank is full, in place of seven: prompt, newest, and three held."""
GRID, POINTERS, LAYERS, DIM, MEM_DIM, HIDDEN = (64, 64), 16, 4, 256, 64, 2048


def build(arch, device):
    from sam2.build_sam import build_sam2_video_predictor

    torch.manual_seed(0)
    predictor = build_sam2_video_predictor(f"configs/sam2.1/{CONFIGS[arch]}.yaml", None, device=device)
    predictor.memory_attention.requires_grad_(False)
    return predictor


def gflop(keys, n=GRID[0] * GRID[1]):
    """Return GFLOP of memory attention for a frame and object: its attention and its matrices, n tokens that run."""
    pairs = 4 * n * DIM * (keys + n)
    projections = 2 * n * DIM * DIM * 6 + 2 * 2 * keys * MEM_DIM * DIM + 2 * 2 * n * DIM * HIDDEN
    return LAYERS * (pairs + projections) / 1e9


def layout_of(scheme, memories, device):
    """Return the layout of one conditioning frame and the others, the last of which is the newest."""
    mask = torch.full((1, 1, 256, 256), -5.0, device=device)
    mask[..., 100:150, 90:150] = 5.0
    chosen = [scheme_for(scheme, conditioning=i == 0, newest=i == memories - 1) for i in range(memories)]
    drawn = torch.rand(1, GRID[0] * GRID[1], device=device)
    plans = [s.plan(GRID, drawn=drawn) if isinstance(s, SalientTokens) else s.plan(GRID, mask) for s in chosen]
    if isinstance(scheme, SalientTokens):  # the newest is measured in each read, as it is new in each
        return TokenLayout(GRID, tuple(plans), memories - 1, lambda drawn: None)
    return TokenLayout(GRID, tuple(plans))


def disc(share, device):
    """Return (1, 1, 256, 256) mask logits of a disc in the middle that covers this share of the frame."""
    y, x = torch.meshgrid(torch.arange(256, device=device), torch.arange(256, device=device), indexing="ij")
    inside = (y - 127.5).square() + (x - 127.5).square() <= share * 256 * 256 / math.pi
    return torch.where(inside, 5.0, -5.0)[None, None]


def near(layout, share, device):
    """Return the layout with the tokens that run near such a disc, as they are on the frame after it was found."""
    windows = QUERIES.windows(disc(share, device), GRID)[1]
    return dataclasses.replace(layout, queries=QUERIES.plan(GRID, windows, windows.float().mean().item()))


def output_dict(predictor, memories, device, dtype):
    """Return stored outputs as SAM 2 has them at frame `memories`, with random features."""

    def entry():
        return {
            "maskmem_features": torch.randn(1, MEM_DIM, *GRID, device=device, dtype=torch.bfloat16),
            "maskmem_pos_enc": [torch.randn(1, MEM_DIM, *GRID, device=device, dtype=dtype)],
            "obj_ptr": torch.randn(1, DIM, device=device),
        }

    spatial = {t: entry() for t in range(16)}
    first = 16 - (memories - 1)
    for t in range(1, first):  # further back only the pointer
        empty = spatial[t]["maskmem_features"][:, :, :0]
        spatial[t] |= {"maskmem_features": empty, "maskmem_pos_enc": [empty.to(dtype)]}
    return {"cond_frame_outputs": {0: spatial.pop(0)}, "non_cond_frame_outputs": spatial}


class Timer:
    """Runs one thing as stock or under a layout and returns seconds."""

    def __init__(self, args, predictor):
        self.args, self.hook = args, AttentionHook(predictor)
        self.hook.install()

    def __call__(self, function, layout=None):
        device, cuda = self.args.device, self.args.device.startswith("cuda")
        if cuda:
            torch.cuda.synchronize()
        clock = time.process_time if self.args.clock == "cpu" else time.perf_counter
        begin = clock()
        half = torch.autocast(device, torch.bfloat16, enabled=self.args.dtype == "bfloat16")
        with half, self.hook.layout(layout) if layout else contextlib.nullcontext():
            function()
        if cuda:
            torch.cuda.synchronize()
        return clock() - begin


def memory_attention(args, predictor, memories):
    """Return a function that runs memory attention once on random inputs of the right shapes."""
    n, p = GRID[0] * GRID[1], POINTERS * DIM // MEM_DIM
    half = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    sizes = {"curr": (n, DIM), "curr_pos": (n, DIM), "memory": (memories * n + p, MEM_DIM)}
    given = {k: torch.randn(s[0], 1, s[1], device=args.device, dtype=half) for k, s in sizes.items()}
    given["memory_pos"] = torch.randn_like(given["memory"])
    return lambda: predictor.memory_attention(**given, num_obj_ptr_tokens=p)


def whole_frame(args, predictor, memories):
    """Return a function that tracks one frame as SAM 2 does: encoder once; attention, decoder, memory an object."""
    image = torch.randn(1, 3, 1024, 1024, device=args.device)
    half = torch.bfloat16 if args.dtype == "bfloat16" else torch.float32
    stored = output_dict(predictor, memories, args.device, half)

    def run():
        features = predictor._prepare_backbone_features(predictor.forward_image(image))
        _, vision, positions, sizes = features
        for _ in range(args.objects):
            predictor.track_step(
                frame_idx=16,
                is_init_cond_frame=False,
                current_vision_feats=vision,
                current_vision_pos_embeds=positions,
                feat_sizes=sizes,
                point_inputs=None,
                mask_inputs=None,
                output_dict=stored,
                num_frames=64,
                run_mem_encoder=True,
            )

    return run


def machine(args):
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if args.device == "cpu" else ():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def measure(args):
    """Time stock and every scheme in turn, and write one JSON file."""
    predictor = build(args.arch, args.device)
    timer, rows = Timer(args, predictor), []
    for memories in args.memories:
        make = memory_attention if args.what == "memory" else whole_frame
        functions, layouts = {"stock": make(args, predictor, memories)}, {"stock": None}
        for name in args.schemes:
            keys = NEAR.get(name, name)
            if keys == "compact" and memories <= COMPACT:
                continue
            layout = layout_of(SCHEMES[keys], COMPACT if keys == "compact" else memories, args.device)
            if keys == "compact" and "compact" not in functions:
                functions["compact"] = make(args, predictor, COMPACT)
            for share in args.object if name in NEAR else [None]:
                label = name if share is None else f"{name} {share:.0%}"
                if share is not None or name == "whole" or layout.tokens < layout.spatial:
                    layouts[label] = layout if share is None else near(layout, share, args.device)
                    functions[label] = functions["compact" if keys == "compact" else "stock"]
        timer(functions["stock"])  # warm-up
        times = {name: [] for name in layouts}
        for _ in range(args.rounds):
            for name, layout in layouts.items():
                times[name].append(timer(functions[name], layout))
                print(f"{memories} {name:22s} {times[name][-1]:.3f} s", flush=True)
        spatial = memories * GRID[0] * GRID[1]
        pointers = POINTERS * DIM // MEM_DIM
        for name, layout in layouts.items():
            keys = (layout.tokens if layout else spatial) + pointers
            scheme = name.rpartition(" ")[0] if layout and layout.queries else name
            setting = repr(SCHEMES[NEAR.get(scheme, scheme)]) if layout else None
            asked = layout.asked if layout else GRID[0] * GRID[1]
            ratios = [a / b for a, b in zip(times["stock"], times[name], strict=True)]
            rows.append(
                {
                    "memories": memories,
                    "scheme": name,
                    "setting": f"{setting}, {QUERIES!r}" if layout and layout.queries else setting,
                    "keys": keys,
                    "queries": asked,
                    "gflop": gflop(keys, asked),
                    "bound": gflop(spatial + pointers) / gflop(keys, asked),
                    "seconds": times[name],
                    "median_s": statistics.median(times[name]),
                    "ratio": statistics.median(ratios),
                    "ratios": ratios,
                }
            )
            print(
                f"{memories} {name:22s} {keys:6d} keys {rows[-1]['median_s']:.3f} s {rows[-1]['ratio']:.2f}x",
                flush=True,
            )
    save(args, {"objects": args.objects, "rows": rows})


KINDS = {
    "fused attention": ("flash_attention", "efficient_attention"),
    "matrices": ("mm", "linear"),
    "rotary and merge": ("mul", "complex", "addcmul", "exp", "softmax", "polar"),
}


def profile(args):
    """Account for where memory attention's time goes, by kind of operator, stock and three schemes."""
    predictor = build(args.arch, args.device)
    timer, shares = Timer(args, predictor), {}
    function = memory_attention(args, predictor, 7)
    timer(function)
    for name in ("stock", "foveated", "foveated+conditioning", "near 10%"):
        layout = None if name == "stock" else layout_of(SCHEMES.get(name, Whole()), 7, args.device)
        if layout and name not in SCHEMES:
            layout = near(layout, 0.1, args.device)
        with torch.profiler.profile() as trace:
            timer(function, layout)
        kinds = dict.fromkeys([*KINDS, "the rest"], 0.0)
        for event in trace.key_averages():
            seconds = (event.self_device_time_total if args.device != "cpu" else event.self_cpu_time_total) / 1e6
            kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), "the rest")
            kinds[kind] += seconds
        shares[name] = kinds
        print(name, {k: round(v, 3) for k, v in kinds.items()}, flush=True)
    save(args, {"seconds": shares})


def save(args, results):
    """Write a JSON file; rows of settings that were not measured now stay as they are there."""
    OUT.mkdir(parents=True, exist_ok=True)
    note = f"{args.note}_" if args.note else ""
    path = OUT / f"{note}{args.what}_{args.arch}_{args.device.split(':')[0]}_{args.dtype}_{args.objects}.json"
    if path.exists() and "rows" in results:
        new = {(row["memories"], row["scheme"]) for row in results["rows"]}
        before = [row for row in json.loads(path.read_text())["rows"] if (row["memories"], row["scheme"]) not in new]
        results["rows"] = sorted([*before, *results["rows"]], key=lambda row: (row["memories"], -row["keys"]))
    head = {"what": args.what, "arch": args.arch, "dtype": args.dtype, "clock": args.clock, "machine": machine(args)}
    path.write_text(json.dumps(head | results, indent=1) + "\n")


NOTES = [
    "Memory attention is one module with the same settings in all four official architectures. The bound by arithmetic "
    "counts keys x queries x layers and every matrix product: 482 of stock's 606 GFLOP are products with keys of "
    "memories, which fewer keys save; self-attention (69), feed-forward and projections (55) stay. Fewer queries save "
    "of all of them.",
    "",
    "`near 10%`: with `queries=NearObject()` too, beside a disc of a tenth of the frame as on the frame after it was "
    "found; the share of the windows that stay whole follows from disc and margin. Those tables are in processor "
    "seconds on one thread of a machine that was busy with other work, so seconds differ from those beside.",
    "",
    "Published beside it, measured by their authors on other machines: Efficient-SAM2 (ICLR 2026) 1.68x on SAM 2.1 "
    "large at -1.0 SA-V test, a trained part included; Surgical SAM 2 (arXiv 2408.07931) 28 % cheaper attention; "
    "EfficientTAM (arXiv 2411.18933) and EdgeTAM (arXiv 2501.07256) are trained models.",
]


def table(args):
    """Write speed.md from the results on disk."""
    lines = []
    for path in sorted(OUT.glob("*.json")):
        r = json.loads(path.read_text())
        where = (
            f"{r['machine']['device']}, {r['machine']['threads']} threads, {r['dtype']}, torch {r['machine']['torch']}"
        )
        if r["what"] == "profile":
            lines += [f"**Where memory attention's time goes**, {r['arch']}, seven memories ({where}), seconds", ""]
            names = list(r["seconds"])
            lines += ["| kind | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
            for kind in r["seconds"]["stock"]:
                cells = [f"{r['seconds'][n][kind]:.2f}" for n in names]
                lines.append(f"| {kind} | " + " | ".join(cells) + " |")
            total = [f"{sum(r['seconds'][n].values()):.2f}" for n in names]
            lines += ["| all | " + " | ".join(total) + " |", ""]
            continue
        title = "Memory attention" if r["what"] == "memory" else f"Whole frame, {r['objects']} object(s)"
        lines += [f"**{title}**, SAM 2.1 {r['arch']}, 1024 px ({where})", ""]
        unit = "processor s" if r.get("clock") == "cpu" else "s"
        lines += [
            f"| memories | tokens attended | keys | queries | GFLOP | {unit} | faster | by arithmetic | share |",
            "|---" * 9 + "|",
        ]
        for row in r["rows"]:
            bound = f"{row['bound']:.2f}x" if r["what"] == "memory" else ""
            share = f"{row['ratio'] / row['bound']:.0%}" if r["what"] == "memory" else ""
            lines.append(
                f"| {row['memories']} | {row['scheme']} | {row['keys']:,} "
                f"| {row.get('queries', GRID[0] * GRID[1]):,} | {row['gflop']:.0f} | {row['median_s']:.2f} "
                f"| {row['ratio']:.2f}x ({min(row['ratios']):.2f} to {max(row['ratios']):.2f}) | {bound} | {share} |"
            )
        lines.append("")
    (OUT / "speed.md").write_text("\n".join([*lines, *NOTES]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "frame", "profile", "table"])
    parser.add_argument("--arch", choices=CONFIGS, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memories", type=int, nargs="+", default=None)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, where others run too"
    )
    parser.add_argument("--schemes", nargs="+", choices=[*SCHEMES, *NEAR], default=list(SCHEMES))
    parser.add_argument("--object", type=float, nargs="+", default=[0.1], help="shares of the frame of the disc")
    parser.add_argument("--note", help="begins the file's name, so that it is kept beside others")
    args = parser.parse_args()
    args.memories = args.memories or ([2, 4, 7] if args.what == "memory" else [7])
    with torch.inference_mode():
        {"memory": measure, "frame": measure, "profile": profile, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
