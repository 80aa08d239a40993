"""What a GPU shows, by one command: the tests marked `gpu`, and tables of times with the card's name.

    python -m benchmarks.gpu                                  # `make gpu`: all of it, in under nine minutes on one card
    python -m benchmarks.gpu objects --device cpu             # many objects of the micro model in processor time

Official architectures at 1024 px have random weights: right for time only. Such a model sees no object, so the masks of
its decoder are replaced by a disc that covers a tenth of the frame, with a high object score; everything after it runs
as it would. Settings track the same frames in turn, frame by frame, each on a copy of the predictor; a ratio is the
median over frames of SAM 2's own time over the setting's on the same frame.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from torch import Tensor

import sam2_keyframe as sk
from benchmarks.models import random_official
from benchmarks.results import write_json, write_text
from benchmarks.studies.reaction import QUALITY, SCORERS, tracked
from benchmarks.tables import markdown
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.types import History

OUT = Path(__file__).parent / "results" / "gpu"
ALONE = "SAM 2 alone"
SHARE = 0.1
"""Of the frame that the disc covers."""
WARM_UP = 10
"""Frames left out: prompts, first calls, memories that fill."""


def settings(objects: int, size: int) -> dict[str, dict[str, Any] | None]:
    """Return what is compared, as arguments of `wrap`; None is the predictor as it is."""
    window = 4 if size >= 512 else 2
    fewer = {"method": "compact", "attend": sk.Foveated(0.45, window), "queries": sk.NearObject(window)}
    found: dict[str, dict[str, Any] | None] = {ALONE: None, "keyframe": {"method": "keyframe"}, "compact near": fewer}
    if objects == 1:
        return found
    together = {"stock, one batch": {"method": "stock", "batch_objects": True}}
    together |= {f"{name}, one batch": {**how, "batch_objects": True} for name, how in found.items() if how}
    return {**found, **together}


def disc(height: int, width: int, share: float = SHARE) -> Tensor:
    """Return the (height, width) bool mask of a disc in the middle that covers this share of the frame."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = (y - (height - 1) / 2).square() + (x - (width - 1) / 2).square()
    return squares <= share * height * width / np.pi


def supply_disc(predictor: Any) -> None:
    """Have the predictor's decoder answer with the disc, whatever it computes."""
    side = predictor.image_size // 4
    logits = torch.where(disc(side, side), 8.0, -8.0).to(predictor.device)

    def replace(module: Any, inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        masks, ious, tokens, score = output
        return logits.to(masks.dtype).expand_as(masks).clone(), ious, tokens, torch.full_like(score, 8.0)

    predictor.sam_mask_decoder.register_forward_hook(replace)


class Clock:
    """Seconds of a device; processor time on a CPU that others use too."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def __call__(self) -> float:
        """Return the time, once what was asked of the device is done."""
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


class AttentionTime:
    """Adds up the time of a predictor's memory attention: on a GPU by events, without waiting in the frame."""

    def __init__(self, predictor: Any, clock: Clock) -> None:
        self.clock, self.marks = clock, []  # type: ignore[var-annotated]
        for register in (
            predictor.memory_attention.register_forward_pre_hook,
            predictor.memory_attention.register_forward_hook,
        ):
            register(lambda *_: self._mark())

    def _mark(self) -> None:
        if self.clock.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(self.clock())

    def take(self) -> float:
        """Return the seconds since the last call; the device has to be done."""
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))
        self.marks.clear()
        if self.clock.cuda:
            return sum(float(begin.elapsed_time(end)) for begin, end in pairs) / 1000
        return sum(end - begin for begin, end in pairs)


def walk(
    predictor: Any, how: Mapping[str, Any] | None, frames: np.ndarray, objects: int
) -> Generator[None, None, None]:
    """Track so many objects, prompted with the disc, a frame a step."""
    with ExitStack() as stack:
        if how is not None:
            stack.enter_context(sk.wrap(predictor, **how))
        state = sk.init_state(predictor, frames)
        for obj_id in range(objects):
            predictor.add_new_mask(state, 0, obj_id, disc(*frames.shape[1:3]))
        for _ in predictor.propagate_in_video(state):
            yield


def frame_times(predictor: Any, objects: int, frames: int, half: bool, clock: Clock) -> list[dict[str, Any]]:
    """Return a row a setting: milliseconds of a frame and of its memory attention, and ratios to SAM 2 alone."""
    device, size = torch.device(predictor.device).type, predictor.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (WARM_UP + frames, size, size, 3), np.uint8)
    chosen = settings(objects, size)
    shared = {id(predictor.image_encoder): predictor.image_encoder}
    twins = {name: copy.deepcopy(predictor, dict(shared)) for name in chosen}
    for twin in twins.values():
        supply_disc(twin)
    attention = {name: AttentionTime(twin, clock) for name, twin in twins.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
        walks = {name: walk(twins[name], how, pixels, objects) for name, how in chosen.items()}
        for t in range(len(pixels)):
            for name in list(walks)[:: 1 if t % 2 else -1]:
                began = clock()
                next(walks[name])
                spent[name].append((clock() - began, attention[name].take()))
        for each in walks.values():
            each.close()
    rows = []
    for name, times in spent.items():
        pairs = list(zip(spent[ALONE][WARM_UP:], times[WARM_UP:], strict=True))
        row: dict[str, Any] = {"objects": objects, "setting": name}
        for i, part in enumerate(("frame", "attention")):
            row[f"{part}_ms"] = 1000 * statistics.median(ours[i] for _, ours in pairs)
            row[f"{part}_ratio"] = statistics.median(stock[i] / max(ours[i], 1e-9) for stock, ours in pairs)
        rows.append(row)
    return rows


def scorer_times(device: str, repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """Return a row a scorer: median milliseconds on a frame whose tensors are on the device, with official sizes."""
    clip = sk.synthetic.make_clip("deformation", 1, frames=4, size=256)
    rows = []
    for name, scorer in {**SCORERS, **QUALITY}.items():
        times = []
        for _ in range(3 + repeats):
            features = {
                "image_embed": torch.randn(1, 256, 64, 64, device=device),
                "maskmem_features": torch.randn(1, 64, 64, 64, device=device).bfloat16(),
                "obj_ptr": torch.randn(1, 256, device=device),
            }
            pair = [tracked(i, clip.frames[i], clip.masks[i] == 1, features, device) for i in (0, 3)]
            with torch.inference_mode():
                scorer.score(pair[0], History())
                pair[1].image  # noqa: B018 - bringing pixels to scoring resolution is shared by all scorers
                reference = pair[0].reference()
                began = clock()
                scorer.score(pair[1], History(reference, reference, [reference] * 6))
                times.append(clock() - began)
        rows.append({"scorer": name, "ms": 1000 * statistics.median(times[3:])})
    return rows


def run_tests(device: str) -> dict[str, Any]:
    """Return how many of the tests marked `gpu` passed; on a CPU they are collected alone."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    command += ["tests"] if device.startswith("cuda") else ["--collect-only", "tests/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1], check=False)
    return {"passed": done.returncode == 0, "end": done.stdout.strip().splitlines()[-1:], "output": done.stdout[-8000:]}


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were measured on: the card's name, or the processor's."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif info.is_file():
        name = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), name
        )
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def table(found: Mapping[str, Any]) -> str:
    """Return the tables of a file of results, in Markdown."""
    host = found["machine"]
    lines = [f"# {host['device']}", "", f"torch {host['torch']}, {found['dtype']}, {found['clock']}.", ""]
    if "tests" in found:
        lines += [f"Tests marked `gpu`: {' '.join(found['tests']['end'])}", ""]
    for name, rows in found.get("frames", {}).items():
        lines += [f"## {name}: a frame, and its memory attention", ""]
        head = ["setting", "objects", "frame ms", "faster", "memory attention ms", "faster"]
        cells = [
            (
                *(row["setting"], row["objects"], f"{row['frame_ms']:.2f}", f"{row['frame_ratio']:.2f}x"),
                *(f"{row['attention_ms']:.2f}", f"{row['attention_ratio']:.2f}x"),
            )
            for row in rows
        ]
        lines += [*markdown(head, cells), ""]
    if "scorers" in found:
        lines += ["## Scorers, milliseconds a frame and object", ""]
        lines += [*markdown(["scorer", "ms"], [[r["scorer"], f"{r['ms']:.3f}"] for r in found["scorers"]]), ""]
    return "\n".join(lines)


def models(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return what makes each model, by the name that its table has."""
    made: dict[str, Callable[[], Any]] = {}
    for name in args.models:
        if name == "micro":
            for size in args.sizes:
                made[f"micro at {size} px"] = lambda size=size: load_micro_predictor(args.device, size)
        else:
            made[f"SAM 2.1 {name} at 1024 px"] = lambda name=name: random_official(name, args.device)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write `results.json` and `README.md`; returns 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "objects"], default="all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16, on a CPU float32")
    parser.add_argument("--models", nargs="+", choices=["tiny", "large", "micro"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 256], help="of the micro model, in pixels")
    parser.add_argument("--objects", nargs="+", type=int)
    parser.add_argument("--frames", type=int, default=12, help="after 10 that are left out")
    parser.add_argument("--repeats", type=int, default=15, help="of each scorer")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu/NAME OF THE DEVICE")
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write("benchmarks.gpu: torch finds no CUDA device; --device cpu runs the same at small sizes\n")
        return 2
    cpu = not args.device.startswith("cuda")
    args.dtype = args.dtype or ("float32" if cpu else "bfloat16")
    args.models = args.models or (["micro"] if cpu or args.what == "objects" else ["tiny", "large"])
    args.objects = args.objects or ([1, 2, 4, 8, 32] if args.what == "objects" else [1, 8])
    clock, host = Clock(args.device), machine(args.device)
    if cpu:
        torch.set_num_threads(1)
    folder = args.out or OUT / "-".join([*host["device"].split(), *(["objects"] * (args.what != "all"))])
    found: dict[str, Any] = {"machine": host, "dtype": args.dtype}
    found["clock"] = "processor time, one thread" if cpu else "wall time, synchronised"
    if args.what == "all":
        found["tests"] = run_tests(args.device)
        found["scorers"] = scorer_times(args.device, args.repeats, clock)
    found["frames"] = {}
    for name, make in models(args).items():
        predictor = make()
        rows = found["frames"][name] = []
        for objects in args.objects:
            rows += frame_times(predictor, objects, args.frames, args.dtype == "bfloat16", clock)
            write_json(folder / "results.json", found)
            write_text(folder / "README.md", table(found))
            sys.stdout.write(f"{name}, {objects} objects\n")
            sys.stdout.flush()
        del predictor
    sys.stdout.write(f"{folder / 'README.md'}\n")
    return 0 if found.get("tests", {}).get("passed", True) else 1


if __name__ == "__main__":
    sys.exit(main())
