"""Whether two versions of the package do the same: every method on generated clips, compared row by row.

In use, from the root of a checkout, with another one made by ``git worktree add ../before COMMIT``::

    python tools/compare_versions.py ../before .                            # all methods, clips and directions
    python tools/compare_versions.py ../before . --methods keyframe,compact --clips occlusion --frames 12
    python tools/compare_versions.py ../before --save before.json.gz        # keep the rows of one version ...
    python tools/compare_versions.py before.json.gz .                       # ... and compare with them later
    python tools/compare_versions.py ../before . --ignore nbytes,memories   # where a change is meant

Each checkout runs in a process of its own with its own PYTHONPATH, on one thread, with the micro model. Four clips are
tracked forwards and in reverse: an occlusion, an object that leaves and returns, a look-alike, and two objects of which
the second is prompted late, when the first is being tracked, and the first is prompted again after that. The clips
are made by the first checkout that runs and read by the other. At the default sizes one version takes one to two
minutes. The exit code is 1 where a row differs, and the first difference of each run is shown.

A row is one object on one tracked frame. Columns that the version tells itself (`memory_stats`): ``attended``,
``keyframe``, ``evicted``, ``significance``, ``scores``, ``frames``, ``nbytes``, ``tokens``, ``host_nbytes``, ``stock``
and ``window``. Columns read off SAM 2, whatever the version says: ``codes``, the temporal code of each memory that
memory attention was given, in order; ``memories``, a digest of each one's features; ``pointers``, of the pointers and
their positions; ``masks``, of the mask logits given back.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLIPS = {
    "occlusion": ("occlusion", 4, 1),
    "leave_and_return": ("leave_and_return", 3, 1),
    "look_alike": ("look_alike", 5, 1),
    "late_prompt": ("occlusion", 4, 2),
}
"""Clips by name: challenge, seed and number of objects. On these seeds the micro model loses and finds the object
again, and keyframes come and go."""

ARGUMENTS = {"genetic": {"frames": (3, 8, 14)}}
"""What methods that need more than their name are given; these frames stand for what a first pass would find."""

DIRECTIONS = ("forward", "reverse")

NAMES = {
    "attended": ("attended",),
    "keyframe": ("keyframe",),
    "evicted": ("evicted",),
    "significance": ("significance",),
    "scores": ("scores",),
    "frames": ("memory.frames",),
    "nbytes": ("memory.nbytes",),
    "tokens": ("memory.tokens",),
    "host_nbytes": ("host_nbytes",),
    "stock": ("stock",),
    "window": ("window",),
}
"""Columns that a version tells itself, with the names that versions have had for them; the first that is there counts.
"""


# -- one version ----------------------------------------------------------------------------------------------------


class Reads:
    """What memory attention was given, read by hooks on SAM 2's modules, which no version of the package replaces."""

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self.seen: list[dict[str, Any]] = []
        self._plain: Any = None
        predictor.memory_encoder.register_forward_hook(self._encoded)
        predictor.memory_attention.register_forward_pre_hook(self._attends, with_kwargs=True)

    def _encoded(self, module: Any, inputs: Any, output: Any) -> None:
        self._plain = output["vision_pos_enc"][-1].flatten(2).permute(2, 0, 1)  # (tokens, 1, C), without any code

    def _attends(self, module: Any, args: Any, kwargs: Any) -> None:
        memory, position, pointers = (kwargs[name] for name in ("memory", "memory_pos", "num_obj_ptr_tokens"))
        size, spatial = len(self._plain), len(memory) - pointers
        codes, memories = [], []
        for start in range(0, spatial, size):
            added = position[start : start + size] - self._plain
            far = (added - self.predictor.maskmem_tpos_enc.flatten(1)[:, None, None]).abs().amax((1, 2, 3))
            codes.append(int(far.argmin()) if far.min() < 1e-4 else None)
            memories.append(digest(memory[start : start + size]))
        self.seen.append(
            {"codes": codes, "memories": memories, "pointers": digest(memory[spatial:], position[spatial:])}
        )


def digest(*tensors: Any) -> str:
    """Return 12 characters that tell tensors of other numbers apart."""
    numbers = hashlib.sha256()
    for tensor in tensors:
        numbers.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return numbers.hexdigest()[:12]


def session(predictor: Any, state: Any, masks: Any, reverse: bool, late: bool) -> Iterator[tuple[set[int], Any]]:
    """Track a clip; yield the objects tracked on each frame, which are those not prompted there, and what SAM 2 gave.

    Args:
        predictor: The predictor.
        state: Its inference state.
        masks: (T, H, W) ids of the objects.
        reverse: Whether to start at the last frame on which the objects are seen.
        late: Whether object 2 is prompted when object 1 has been tracked, and object 1 again after that.
    """
    import torch

    prompted: dict[int, list[int]] = {}

    def visible(obj_id: int, about: int) -> int:
        return min((t for t in range(len(masks)) if (masks[t] == obj_id).any()), key=lambda t: abs(t - about))

    def prompt(obj_id: int, frame_idx: int) -> None:
        prompted.setdefault(obj_id, []).append(frame_idx)
        predictor.add_new_mask(state, frame_idx, obj_id, torch.from_numpy(masks[frame_idx] == obj_id))

    def track(start: int, **how: Any) -> Iterator[tuple[set[int], Any]]:
        for output in predictor.propagate_in_video(state, start_frame_idx=start, reverse=reverse, **how):
            yield {obj_id for obj_id, frames in prompted.items() if output[0] not in frames}, output

    last = len(masks) - 1
    place = (lambda part: round(last * (1 - part))) if reverse else (lambda part: round(last * part))
    start = visible(1, place(0))
    prompt(1, start)
    if not late:
        yield from track(start)
        return
    middle = visible(2, place(0.4))
    yield from track(start, max_frame_num_to_track=abs(middle - start) - 1)
    prompt(2, middle)
    prompt(1, visible(1, place(0.7)))
    yield from track(middle)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: floats to the last digit, dataclasses and slots by name."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(name): plain(each) for name, each in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    fields = getattr(type(value), "__dataclass_fields__", None)
    return value if fields is None else {name: plain(getattr(value, name)) for name in fields}


def named(row: Any, names: tuple[str, ...]) -> Any:
    """Return the attribute of a row under the first name that it has; None where it has none."""
    for name in names:
        value = row
        try:
            for part in name.split("."):
                value = getattr(value, part)
        except AttributeError:
            continue
        return plain(value)
    return None


def run(predictor: Any, reads: Reads, method: str, clip: Any, reverse: bool, late: bool) -> dict[str, Any]:
    """Return the rows of one run, by object."""
    import sam2_keyframe as sk

    frames, masks = clip
    state = sk.init_state(predictor, frames)
    given: dict[int, list[dict[str, Any]]] = {}
    with sk.wrap(predictor, method, **ARGUMENTS.get(method, {})):
        reads.seen.clear()
        for tracked, (frame_idx, obj_ids, logits) in session(predictor, state, masks, reverse, late):
            calls, reads.seen[:] = list(reads.seen), []
            owners = [obj_id for obj_id in obj_ids if obj_id in tracked]
            if len(calls) != len(owners):
                raise RuntimeError(f"frame {frame_idx}: {len(calls)} reads of memory for the objects {owners}")
            for obj_id, call in zip(owners, calls, strict=True):
                mask = digest(logits[list(obj_ids).index(obj_id)])
                given.setdefault(obj_id, []).append({"frame": frame_idx, **call, "masks": mask})
        stats = sk.memory_stats(state)
    rows = {}
    for obj_id, seen in given.items():
        told = stats[obj_id].rows
        if [row.frame_idx for row in told] != [row["frame"] for row in seen]:
            raise RuntimeError(f"{method}: memory_stats has not the frames that were tracked")
        rows[str(obj_id)] = [
            {**row, **{column: named(each, names) for column, names in NAMES.items()}}
            for row, each in zip(seen, told, strict=True)
        ]
    return rows


def rows_of_this_version(options: argparse.Namespace) -> dict[str, Any]:
    """Return {"clip, direction, method": {object: rows}} of the version that Python imports here."""
    import numpy as np
    import torch

    import sam2_keyframe as sk
    from sam2_keyframe.micro import load_micro_predictor
    from sam2_keyframe.synthetic import make_clip

    torch.set_num_threads(1)
    root = Path(sk.__file__).resolve().parents[1]
    if root != Path(options.checkout).resolve():
        raise SystemExit(f"{options.checkout}: Python imports the package from {root}; give the root of a checkout")
    found: dict[str, Any] = {}
    predictor = load_micro_predictor(image_size=options.size)
    reads = Reads(predictor)
    methods = [name for name in sk.METHODS if not options.methods or name in options.methods]
    for name in options.clips:
        file = Path(options.shared, f"{name}.npz")
        if not file.exists():
            challenge, seed, objects = CLIPS[name]
            clip = make_clip(challenge, seed, frames=options.frames, size=options.size, objects=objects)
            np.savez_compressed(file, frames=clip.frames, masks=clip.masks)
        with np.load(file) as saved:
            clip = saved["frames"], saved["masks"]
        for direction in DIRECTIONS:
            for method in methods:
                late, reverse = name == "late_prompt", direction == "reverse"
                found[f"{name}, {direction}, {method}"] = run(predictor, reads, method, clip, reverse, late)
    return found


# -- both -----------------------------------------------------------------------------------------------------------


def rows_of(checkout: Path, options: argparse.Namespace, shared: str) -> dict[str, Any]:
    """Return the rows of a checkout, from a process that imports it, or those saved in a file."""
    if checkout.is_file():
        return json.loads(gzip.decompress(checkout.read_bytes()))
    if not (checkout / "sam2_keyframe" / "__init__.py").is_file():
        raise SystemExit(f"{checkout}: neither saved rows nor the root of a checkout")
    out = Path(shared, "rows.json")
    command = [sys.executable, __file__, str(checkout), "--write", str(out), "--shared", shared]
    command += ["--frames", str(options.frames), "--size", str(options.size), "--clips", ",".join(options.clips)]
    command += ["--methods", ",".join(options.methods)] if options.methods else []
    quiet = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(checkout.resolve())}
    subprocess.run(command, check=True, env={**os.environ, **quiet})
    return json.loads(out.read_text())


def differences(old: dict[str, Any], new: dict[str, Any], ignore: list[str]) -> Iterator[str]:
    """Yield a sentence a run whose rows differ: the first difference, and how many rows differ in which columns."""
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            yield f"{name}: only the {'new' if name in new else 'old'} version has it"
            continue
        first, counts, total = None, dict[str, int](), 0
        for obj_id in sorted({*old[name], *new[name]}):
            ours, theirs = old[name].get(obj_id, []), new[name].get(obj_id, [])
            if len(ours) != len(theirs):
                first = first or f"object {obj_id} has {len(ours)} rows, now {len(theirs)}"
            for a, b in zip(ours, theirs, strict=False):
                total += 1
                for column in a:
                    if column not in ignore and a[column] != b.get(column):
                        counts[column] = counts.get(column, 0) + 1
                        where = f"object {obj_id}, frame {a['frame']}, {column}"
                        first = first or f"{where}: {a[column]}, now {b.get(column)}"
        if first:
            many = ", ".join(f"{column} {count}" for column, count in counts.items())
            yield f"{name}: {first} (of {total} rows differ: {many or 'their number'})"


def names(text: str) -> list[str]:
    """Return names that were given with commas between them."""
    return [name for name in text.split(",") if name]


def main() -> int:
    """Compare two versions as the module says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", metavar="OLD", help="root of a checkout, or saved rows")
    parser.add_argument("new", metavar="NEW", nargs="?", help="the other one")
    parser.add_argument("--methods", type=names, default=[], help="methods by name; all")
    parser.add_argument("--clips", type=names, default=list(CLIPS), help=f"some of {','.join(CLIPS)}")
    parser.add_argument("--frames", type=int, default=20, help="frames a clip (20)")
    parser.add_argument("--size", type=int, default=128, help="side of the clip and of the model's input (128)")
    parser.add_argument("--ignore", type=names, default=[], help="columns that may differ")
    parser.add_argument("--save", help="write the rows of OLD, gzipped")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--shared", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.clips if name not in CLIPS]
    if unknown:
        parser.error(f"unknown clip {', '.join(unknown)}; choose from {', '.join(CLIPS)}")
    if options.write:
        Path(options.write).write_text(json.dumps(rows_of_this_version(options)))
        return 0
    if not options.new and not options.save:
        parser.error("give a second checkout to compare with, or --save")
    with tempfile.TemporaryDirectory() as shared:
        old = rows_of(Path(options.checkout), options, shared)
        if options.save:
            Path(options.save).write_bytes(gzip.compress(json.dumps(old).encode(), mtime=0))
        if not options.new:
            return 0
        new = rows_of(Path(options.new), options, shared)
    found = list(differences(old, new, options.ignore))
    rows = sum(len(each) for runs in new.values() for each in runs.values())
    print("\n".join([*found, f"{len(new)} runs, {rows} rows; {len(found)} runs differ"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
