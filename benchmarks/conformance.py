"""Whether our rules choose what their upstreams choose: `python -m benchmarks conformance --upstream NAME=FOLDER ...`.

A user's clones of upstream forks (samurai, sam2long, dam4sam, d4sm, surgical) are run with the embedded micro weights,
each in a process of its own in which the clone's `sam2` is the one imported; ours runs on the `sam2` that is installed.
What memory attention is given is told apart by content: each spatial memory by the frame whose memory encoder made it
and by its temporal code, each pointer by its frame. So nothing depends on how a fork keeps its books, and no code of a
fork is in here.

Clones need Python packages of their own (samurai: loguru); torchvision and the VOT toolkit, which their video path only
imports, are stood in for.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "conformance"
CLIPS = (
    ("occlusion", 20000, 40),
    ("leave_and_return", 20004, 40),
    ("look_alike", 20005, 60),
    ("look_alike", 20020, 60),
)
"""Challenge, seed and frames of the generated clips, 256 px, one object, prompted with its exact mask."""

UPSTREAM: dict[str, tuple[str, dict[str, Any], str]] = {
    "samurai": ("samurai", {}, "yangchris11/samurai"),
    "samurai_kalman": ("samurai", {"kalman": True}, "yangchris11/samurai"),
    "sam2long": ("sam2long", {"theta": 0.1}, "Mark12Ding/SAM2Long"),
    "sam2long_tree": ("sam2long_tree", {"lag": 1000}, "Mark12Ding/SAM2Long"),
    "sam2long_tree_unsure": ("sam2long_tree", {"lag": 1000, "sure": 1e9}, "Mark12Ding/SAM2Long"),
    "dam4sam": ("dam4sam", {}, "jovanavidenovic/DAM4SAM"),
    "d4sm": ("d4sm", {}, "alanlukezic/d4sm"),
    "surgical": ("surgical", {}, "jinlab-imvr/Surgical-SAM-2"),
}
"""By name: our method, its arguments, and where the rule comes from."""

CLONES = {"samurai_kalman": "samurai", "sam2long_tree": "sam2long", "sam2long_tree_unsure": "sam2long"}
"""Further settings of a clone; `sam2long_tree_unsure` is the tree on a model that is never sure."""


MENDED = ", mended"

SLIPS: dict[str, tuple[str, str, str]] = {
    "samurai": ("range(frame_idx - 1, 1, -1)", "range(frame_idx - 1, 0, -1)", "frame 1 is accepted too"),
    "sam2long": ("if -t_diff <= -len(", "if -t_diff < -len(", "the oldest accepted pointer is read too"),
}
"""Slips of an upstream that ours does not repeat: what mends it in its `sam2_base.py`, for a second comparison."""


class Witness:
    """Takes note of what memory attention is given, whatever the code around it looks like.

    Args:
        predictor: A predictor built from the `sam2` that is imported.
        paths: Whether a frame is read along several paths: then all reads that differ are noted, one after the other.
    """

    def __init__(self, predictor: Any, paths: bool = False) -> None:
        import torch

        self.torch, self.predictor, self.paths = torch, predictor, paths
        self._each: dict[int, dict[bytes, tuple[Any, Any]]] = defaultdict(dict)
        self.frame: int | None = 0
        self.reads: dict[int, dict[str, Any]] = {}
        self._memories: dict[bytes, int | None] = {}
        self._pointers: dict[bytes, int | None] = {}
        base = next(cls for cls in type(predictor).__mro__ if cls.__name__ == "SAM2Base")
        self._after(base, "_encode_new_memory", self._encoded)
        self._after(base, "_forward_sam_heads", self._decoded)
        step = base.track_step

        @functools.wraps(step)
        def track_step(model: Any, *args: Any, **kwargs: Any) -> Any:
            self.frame = kwargs.get("frame_idx", args[0] if args else None)
            return step(model, *args, **kwargs)

        base.track_step = track_step
        encode = type(predictor)._run_memory_encoder
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def run_memory_encoder(model: Any, *args: Any, **kwargs: Any) -> Any:
            now, self.frame = self.frame, signature.bind(model, *args, **kwargs).arguments["frame_idx"]
            try:
                return encode(model, *args, **kwargs)
            finally:
                self.frame = now

        type(predictor)._run_memory_encoder = run_memory_encoder
        predictor.memory_attention.register_forward_pre_hook(self._read, with_kwargs=True)

    def note_pointers(self, base: Any, name: str) -> None:
        """Take note of the pointers that a method returns."""
        self._after(base, name, lambda pointer: self._pointers.setdefault(self._key(pointer), self.frame))

    @staticmethod
    def _after(base: Any, name: str, note: Callable[[Any], None]) -> None:
        original = getattr(base, name)

        @functools.wraps(original)
        def wrapped(model: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(model, *args, **kwargs)
            note(out)
            return out

        setattr(base, name, wrapped)

    @staticmethod
    def _key(tensor: Any) -> bytes:
        content: bytes = tensor.detach().float().contiguous().numpy().tobytes()
        return content

    def _encoded(self, out: Any) -> None:
        features = out[0].to(self.torch.bfloat16).float().flatten(2).permute(2, 0, 1)
        self._memories.setdefault(self._key(features), self.frame)

    def _decoded(self, out: Any) -> None:
        self._pointers.setdefault(self._key(out[5]), self.frame)
        if len(out) == 8 and self.torch.is_tensor(out[7]):  # SAM2Long has a pointer for each of three masks
            for pointer in out[7].unbind(1):
                self._pointers.setdefault(self._key(pointer), self.frame)

    def _read(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        model, memory, pos = self.predictor, given["memory"].detach().float(), given["memory_pos"].detach().float()
        pointers = given.get("num_obj_ptr_tokens", 0)
        side = model.image_size // 16
        blank = self.torch.zeros(1, model.mem_dim, side, side)
        place = model.memory_encoder.position_encoding(blank).flatten(2).permute(2, 0, 1)
        rows = model.maskmem_tpos_enc.detach().float()[:, 0, 0]
        spatial = []
        for start in range(0, len(memory) - pointers, side * side):
            part = slice(start, start + side * side)
            code = ((rows - (pos[part] - place).mean(0)[0]) ** 2).sum(1).argmin()
            spatial.append((self._memories.get(self._key(memory[part])), int(code)))
        each = model.hidden_dim // model.mem_dim
        tail = memory[len(memory) - pointers :].reshape(-1, each, 1, model.mem_dim).permute(0, 2, 1, 3)
        found = [self._pointers.get(self._key(pointer)) for pointer in tail.reshape(-1, 1, model.hidden_dim)]
        if self.frame is None:
            return
        each = self._each[self.frame]
        if not self.paths:
            each.clear()
        each[self._key(memory)] = sorted(spatial, key=str), sorted(found, key=str)
        reads = sorted(each.values(), key=str)
        self.reads[self.frame] = {
            "spatial": [x for r in reads for x in r[0]],
            "pointers": [x for r in reads for x in r[1]],
        }


def stand_in() -> None:
    """Put empty modules where a fork's video path imports torchvision; frames have the model's size already."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision.ops.boxes"] = types.ModuleType("torchvision.ops.boxes")
    for owner, names in (
        ("torchvision.transforms", ("Normalize", "Resize", "ToTensor")),
        ("torchvision.ops.boxes", ("batched_nms", "box_area")),
    ):
        for name in names:
            setattr(sys.modules[owner], name, object)
    sys.modules["torchvision.transforms.functional"].resize = lambda image, size: image  # type: ignore[attr-defined]
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"].functional = sys.modules[  # type: ignore[attr-defined]
        "torchvision.transforms.functional"
    ]


def import_changed(name: str, changes: dict[str, str]) -> Any:
    """Import a module of a clone with some texts in place of others: sizes and devices that it has written in."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no {name} in this clone")
    source = Path(spec.origin).read_text()
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    for before, after in changes.items():
        source = source.replace(before, after)
    exec(compile(source, spec.origin, "exec"), vars(module))
    return module


def micro(drop: Sequence[str] = (), **more: Any) -> Any:
    """Return the micro predictor, built from the `sam2` that is imported, with a fork's own settings.

    Args:
        drop: Settings that the fork does not know; their weights are left out.
        **more: Settings that only the fork knows.
    """
    import sam2.sam2_video_predictor as module
    from safetensors.torch import load_file

    from sam2_keyframe.micro import WEIGHTS, build_model

    real = module.SAM2VideoPredictor

    def build(**settings: Any) -> Any:
        return real(**{**{k: v for k, v in settings.items() if k not in drop}, **more})

    module.SAM2VideoPredictor = build
    try:
        predictor = build_model(256)
    finally:
        module.SAM2VideoPredictor = real
    weights = {name: weight.float() for name, weight in load_file(WEIGHTS).items() if name.split(".")[0] not in drop}
    predictor.load_state_dict(weights)
    return predictor.eval()


def run_child(name: str, folder: Path, out: Path, ours: bool) -> None:
    """Track a clip under one rule, ours or upstream's, and write what was read and the masks."""
    import torch

    torch.set_num_threads(1)
    frames, first = folder / "frames", np.load(folder / "masks.npy")[0] == 1
    clone = _clone(name)
    if not ours and name.endswith(MENDED):
        before, after, _ = SLIPS[clone]
        import_changed("sam2.modeling.sam2_base", {before: after})
    name = name.removesuffix(MENDED)
    with torch.inference_mode():
        predictor, masks = (track_ours if ours else TRACKERS[name])(name, frames, first)
    witness: Witness = predictor
    content = {"reads": witness.reads, "masks": [np.packbits(mask).tolist() for mask in masks]}
    out.write_text(json.dumps(content))


def _clone(name: str) -> str:
    name = name.removesuffix(MENDED)
    return CLONES.get(name, name)


def _propagated(predictor: Any, frames: Path, first: Any) -> Iterator[Any]:
    import torch

    state = predictor.init_state(str(frames))
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(first))
    yield from (logits[0, 0].numpy() > 0 for _, _, logits in predictor.propagate_in_video(state))


def track_ours(name: str, frames: Path, first: Any) -> tuple[Witness, list[Any]]:
    """Track under our rule."""
    from sam2_keyframe import wrap

    predictor = micro()
    if name == "surgical":  # its clone is of SAM 2.0
        predictor.no_obj_embed_spatial, predictor.use_signed_tpos_enc_to_obj_ptrs = None, False
    method, choices, _ = UPSTREAM[name]
    witness = Witness(predictor, paths=method == "sam2long_tree")
    wrap(predictor, method, **choices)
    if method == "sam2long_tree":  # it makes the pointers of candidates that SAM 2 did not choose
        from sam2_keyframe.patches.paths import Paths

        witness.note_pointers(Paths, "_pointer")
    return witness, list(_propagated(predictor, frames, first))


def track_samurai(name: str, frames: Path, first: Any) -> tuple[Witness, list[Any]]:
    """Track with samurai's predictor and the thresholds of its configurations."""
    settings = {"stable_frames_threshold": 15, "stable_ious_threshold": 0.3, "min_obj_score_logits": 0}
    settings |= {"memory_bank_iou_threshold": 0.5, "memory_bank_obj_score_threshold": 0.0}
    settings |= {"memory_bank_kf_score_threshold": 0.0, "kf_score_weight": 0.25 if name == "samurai_kalman" else 0.0}
    predictor = micro(samurai_mode=True, **settings)
    witness = Witness(predictor)
    return witness, list(_propagated(predictor, frames, first))


def track_sam2long(name: str, frames: Path, first: Any) -> tuple[Witness, list[Any]]:
    """Track with SAM2Long's predictor along a single path, or along three."""
    import torch

    # The tokens of a memory and of a pointer, which are written in for the official models at 1024 px.
    import_changed(
        "sam2.modeling.memory_attention", {"4096": "256", "num_ptr, 4,": "num_ptr, 2,", "num_ptr*4": "num_ptr*2"}
    )
    predictor = micro()
    tree = name.startswith("sam2long_tree")
    witness = Witness(predictor, paths=tree)
    state = predictor.init_state(str(frames))
    state["num_pathway"], state["iou_thre"], state["uncertainty"] = (
        3 if tree else 1,
        0.1,
        UPSTREAM[name][1].get("sure", 2),
    )
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(first))
    _, masks = predictor.propagate_in_video(state)
    return witness, [mask[0, 0].numpy() > 0 for mask in masks]


def track_surgical(name: str, frames: Path, first: Any) -> tuple[Witness, list[Any]]:
    """Track with Surgical SAM 2's predictor, which is of SAM 2.0: it does not know two of our settings."""
    predictor = micro(drop=("no_obj_embed_spatial", "use_signed_tpos_enc_to_obj_ptrs"))
    witness = Witness(predictor)
    return witness, list(_propagated(predictor, frames, first))


def _images(frames: Path) -> Iterator[Any]:
    from PIL import Image

    return (Image.open(path).convert("RGB") for path in sorted(frames.iterdir()))


def _vot() -> None:
    """Stand in for the parts of the VOT toolkit that the trackers import, where it is not installed."""
    names = ("vot", "vot.region", "vot.region.raster", "vot.region.shapes", "vot.utilities", "vot.utilities.draw")
    for name in names:
        sys.modules.setdefault(name, types.ModuleType(name))

    def overlaps(first: Sequence[Any], second: Sequence[Any], *rest: Any) -> list[float]:
        found = []
        for one, other in zip(first, second, strict=True):
            a, b = one.region(), other.region()
            union = (a | b).sum()
            found.append(float((a & b).sum() / union) if union else 0.0)
        return found

    class Region:
        """A region on the raster: a mask, or a rectangle's."""

        def __init__(self, *given: Any) -> None:
            self.given = given

        def region(self) -> Any:
            if len(self.given) == 1 or np.ndim(self.given[0]) == 2:
                return np.asarray(self.given[0]) > 0
            x, y, width, height = (round(float(number)) for number in self.given)
            raster = np.zeros((1024, 1024), bool)
            raster[y : y + height, x : x + width] = True
            return raster

        def rasterize(self, bounds: Any) -> Any:
            return self.region()

        def convert(self, kind: Any) -> Any:
            mask = self.region()
            rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
            if not len(rows):
                return Region(0, 0, 0, 0)
            size = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
            return Region(columns[0], rows[0], *size)

    sys.modules["vot.region.raster"].calculate_overlaps = overlaps  # type: ignore[attr-defined]
    sys.modules["vot.region.shapes"].Mask = Region  # type: ignore[attr-defined]
    sys.modules["vot.region.shapes"].Rectangle = Region  # type: ignore[attr-defined]
    sys.modules["vot.region"].RegionType = types.SimpleNamespace(RECTANGLE="rectangle")  # type: ignore[attr-defined]


def track_dam4sam(name: str, frames: Path, first: Any) -> tuple[Witness, list[Any]]:
    """Track with DAM4SAM's tracker, by the settings of its configurations."""
    import torch

    _vot()
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    stride = {"max_cond_frames_in_attn": 4, "memory_temporal_stride_for_eval": 5}
    predictor = micro(add_all_frames_to_correct_as_cond=True, non_overlap_masks=False, **stride)
    import sam2.build_sam as build

    build.build_sam2_video_predictor = lambda *args, **kwargs: predictor
    upstream = import_changed("dam4sam_tracker", {'torch.device("cuda")': 'torch.device("cpu")'})
    witness = Witness(predictor)
    tracker = upstream.DAM4SAMTracker("sam21pp-T")
    tracker.input_image_size = 256
    masks = []
    for t, image in enumerate(_images(frames)):
        witness.frame = t
        found = tracker.track(image) if t else tracker.initialize(image, first.astype(np.uint8))
        masks.append(np.asarray(found["pred_mask"]) > 0)
    return witness, masks


def track_d4sm(name: str, frames: Path, first: Any) -> tuple[Witness, list[Any]]:
    """Track with d4sm's tracker of several objects, of which there is one."""
    import torch

    _vot()
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    predictor = micro()
    import tracking_wrapper_mot as upstream

    upstream.build_sam = lambda *args, **kwargs: predictor
    witness = Witness(predictor)
    tracker = upstream.DAM4SAMMOT("tiny")
    tracker.input_image_size, tracker.fill_hole_area = 256, 0
    masks = [first]
    for t, image in enumerate(_images(frames)):
        witness.frame = t
        if t:
            masks.append(np.asarray(tracker.track(image)["masks"][0]) > 0)
        else:
            tracker.initialize(image, [{"mask": first}])
    return witness, masks


TRACKERS: dict[str, Callable[[str, Path, Any], tuple[Witness, list[Any]]]] = {
    "samurai": track_samurai,
    "samurai_kalman": track_samurai,
    **dict.fromkeys(("sam2long", "sam2long_tree", "sam2long_tree_unsure"), track_sam2long),
    "dam4sam": track_dam4sam,
    "d4sm": track_d4sm,
    "surgical": track_surgical,
}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return on how many frames the choices are equal, and how alike the masks are."""
    frames = sorted(set(ours["reads"]) & set(theirs["reads"]), key=int)
    same: dict[str, int] = defaultdict(int)
    for t in frames:
        one, other = ours["reads"][t], theirs["reads"][t]
        shown = [[sorted(str(frame) for frame, _ in read["spatial"])] for read in (one, other)]
        same["memories"] += shown[0] == shown[1]
        same["codes"] += one["spatial"] == other["spatial"]
        same["pointers"] += one["pointers"] == other["pointers"]
    unpacked = [[np.unpackbits(np.array(mask, np.uint8)) > 0 for mask in each["masks"]] for each in (ours, theirs)]
    ious = []
    for a, b in zip(*unpacked, strict=False):
        union = (a | b).sum()
        ious.append(float((a & b).sum() / union) if union else 1.0)
    return {"frames": len(frames), **same, "iou": float(np.mean(ious)), "least": float(min(ious))}


def add_conformance_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--upstream", action="append", default=[], metavar="NAME=FOLDER", help="a clone's folder")
    parser.add_argument("--clips", type=int, default=len(CLIPS), help="how many of the clips")
    parser.add_argument("--results", type=Path, default=RESULTS)


def main_conformance(options: argparse.Namespace) -> int:
    """Compare each clone's rule with ours; returns 1 where one failed."""
    folders = dict(_upstream(text) for text in options.upstream)
    folders |= {name: folders[clone] for name, clone in CLONES.items() if clone in folders}
    if not folders:
        raise ValueError(f"give --upstream NAME=FOLDER, a clone of one of {', '.join(UPSTREAM)}")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        clips = [_write_clip(Path(work), *clip) for clip in CLIPS[: options.clips]]
        names = [(name, name) for name in folders]
        names += [(name, name + MENDED) for name in folders if _clone(name) in SLIPS]
        for clone, name in sorted(names):
            for clip in clips:
                found = [_run(name, folders[clone], clip, Path(work), whose) for whose in ("ours", "theirs")]
                failed = [each for each in found if isinstance(each, str)]
                told = {"error": failed[0]} if failed else compare(*found)  # type: ignore[arg-type]
                rows.append({"name": name, "clip": clip.name, **told})
                sys.stderr.write(f"{rows[-1]}\n")
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.results / "README.md").write_text(table(rows))
    return int(any("error" in row for row in rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a page."""
    lines = [
        "# Our rules beside their upstreams",
        "",
        "Micro model, 256 px, one object, generated clips; made by `python -m benchmarks conformance`. Frames on which",
        "what memory attention is given is the same: the memories, those with their temporal codes, the pointers.",
        "",
        *(f"`{name}`, mended: {words}." for name, (_, _, words) in SLIPS.items()),
        "",
        "| rule | upstream | clip | frames | memories | with codes | pointers | mask IoU, mean | least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row['name']} | {UPSTREAM[row['name'].removesuffix(MENDED)][2]} | {row['clip']} |"
        if "error" in row:
            lines.append(f"{start} {row['error']} | | | | | |")
        else:
            numbers = [row[key] for key in ("frames", "memories", "codes", "pointers")]
            shown = " | ".join(map(str, numbers))
            lines.append(f"{start} {shown} | {row['iou']:.4f} | {row['least']:.3f} |")
    return "\n".join(lines) + "\n"


def _upstream(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if name not in UPSTREAM or not folder or not Path(folder).is_dir():
        raise ValueError(f"--upstream {text}: give NAME=FOLDER, a clone of one of {', '.join(UPSTREAM)}")
    inside = [Path(folder), Path(folder) / "sam2"]
    root = next((path for path in inside if (path / "sam2" / "sam2_video_predictor.py").is_file()), None)
    if root is None:
        raise ValueError(f"--upstream {text}: there is no sam2/sam2_video_predictor.py in it")
    return name, root.resolve()


def _write_clip(work: Path, challenge: str, seed: int, frames: int) -> Path:
    from PIL import Image

    from sam2_keyframe.synthetic import make_clip

    clip, folder = make_clip(challenge, seed, frames, 256), work / f"{challenge}-{seed}"
    (folder / "frames").mkdir(parents=True)
    for t, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(folder / "frames" / f"{t:05d}.jpg", quality=95)
    np.save(folder / "masks.npy", clip.masks)
    return folder


def _run(name: str, upstream: Path, clip: Path, work: Path, whose: str) -> dict[str, Any] | str:
    """Return what a process of its own found, or why it failed."""
    out, project = work / f"{clip.name}-{name}-{whose}.json", Path(__file__).resolve().parents[1]
    paths = [str(project)] if whose == "ours" else [str(upstream), str(project)]
    command = [sys.executable, "-c", CHILD, name, str(clip), str(out), whose]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, env=environment, cwd=work if whose == "ours" else upstream, capture_output=True, text=True
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    content: dict[str, Any] = json.loads(out.read_text())
    return content


CHILD = """
import sys
from pathlib import Path
from benchmarks import conformance

name, clip, out, whose = sys.argv[1:]
if whose == "theirs":
    conformance.stand_in()
conformance.run_child(name, Path(clip), Path(out), whose == "ours")
"""
