"""What must hold on a GPU, run on the CPU too where it can; and the script that measures there, at a small size.

`make gpu` runs the tests marked `gpu`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sam2_keyframe as sk
from benchmarks import gpu
from sam2_keyframe.micro import load_micro_predictor
from sam2_keyframe.synthetic import make_clip

SIZE, FRAMES = 64, 8
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
METHODS: dict[str, dict[str, Any]] = {
    "keyframe": {"method": "keyframe"},
    "compact near": {"method": "compact", "attend": sk.Foveated(0.3, 2), "queries": sk.NearObject(2)},
    "keyframe, one batch": {"method": "keyframe", "batch_objects": True},
}


@pytest.fixture(scope="module")
def clip() -> Any:
    return make_clip("occlusion", seed=5, frames=FRAMES, size=SIZE, objects=2)


@contextmanager
def exact() -> Iterator[None]:
    """Compute in float32 as it is, which convolutions on a GPU do not by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def tracked(model: Any, clip: Any, each: Callable[[int], None] = lambda t: None) -> tuple[Any, list[torch.Tensor]]:
    """Return the state of a tracked clip and its masks; `each(t)` is called after frame `t`."""
    found = []
    with torch.inference_mode(), exact():
        state = sk.init_state(model, clip.frames)
        for obj_id in (1, 2):
            model.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
        for t, _, masks in model.propagate_in_video(state):
            found.append(masks.cpu())
            each(t)
    return state, found


@each_device
def test_stock_by_our_path_is_identical(device: str, clip: Any) -> None:
    model = load_micro_predictor(device, SIZE)
    _, plain = tracked(model, clip)
    with sk.wrap(model, "stock"):
        _, ours = tracked(model, clip)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    with sk.wrap(model, "stock", batch_objects=True):
        _, together = tracked(model, clip)
    for a, b in zip(plain, together, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()), rtol=0)


class Reads(TorchDispatchMode):
    """Counts numbers that are read on the host, and tensors that are copied from a device to it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def waits(model: Any, clip: Any, how: dict[str, Any] | None) -> int:
    """Return how often the host waited for the device from frame 3 on, while 2 objects were tracked.

    On a CPU there is nothing to wait for: there it is how often a number was read.
    """
    cuda = torch.device(model.device).type == "cuda"
    reads, seen = Reads(), []

    def begin(t: int) -> None:
        if t == 2 and cuda:
            torch.cuda.set_sync_debug_mode("warn")
        elif t == 2:
            reads.__enter__()
        elif t == FRAMES - 1 and not cuda:
            reads.__exit__(None, None, None)

    found: list[torch.Tensor] = []
    handle = sk.wrap(model, **how) if how is not None else None
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        try:
            state = sk.init_state(model, clip.frames)
            for obj_id in (1, 2):
                model.add_new_mask(state, 0, obj_id, torch.from_numpy(clip.masks[0] == obj_id))
            for t, _, masks in model.propagate_in_video(state):
                found.append(masks)
                begin(t)
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
            if handle is not None:
                handle.unwrap()
        seen = [str(warning.message) for warning in caught]
    return sum("synchroniz" in message for message in seen) if cuda else reads.count


@pytest.mark.slow
@each_device
@pytest.mark.parametrize("name", METHODS)
def test_at_most_one_wait_a_frame_and_object_beside_those_of_sam2(device: str, name: str, clip: Any) -> None:
    model = load_micro_predictor(device, SIZE)
    waits(model, clip, METHODS[name])  # the first time libraries are loaded, and tables made
    alone, ours = waits(model, clip, None), waits(model, clip, METHODS[name])
    assert ours - alone <= 2 * (FRAMES - 3)


def held(state: Any) -> int:
    """Return the bytes of all tensors that a state's tracked frames hold, with what their slices keep alive."""
    storages = {}
    for place in state["output_dict_per_obj"].values():
        for entry in place["non_cond_frame_outputs"].values():
            for key in ("maskmem_features", "pred_masks", "obj_ptr"):
                storage = entry[key].untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@each_device
@pytest.mark.parametrize("together", [False, True])
def test_bytes_stay_what_they_are_once_the_bank_is_full(device: str, together: bool) -> None:
    clip = make_clip("deformation", seed=2, frames=34, size=SIZE, objects=2)
    model = load_micro_predictor(device, SIZE)
    now, taken = [], []

    def note(t: int) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
            taken.append(torch.cuda.memory_allocated())

    with sk.wrap(model, "keyframe", batch_objects=together):
        state, _ = tracked(model, clip, note)
    now = [row.memory.nbytes for row in sk.memory_stats(state)[1].rows]
    assert max(now[-10:]) <= 1.1 * max(now[18:24])
    spatial = 6 * 32 * (SIZE // 16) ** 2 * 2  # six memories of 32 channels in bfloat16
    assert held(state) <= 2 * (spatial + 40 * ((SIZE // 4) ** 2 * 4 + 1024)), "an object's frames are slices of a batch"
    if device == "cuda":
        assert taken[-1] - taken[20] <= 2**20


@pytest.mark.slow
def test_the_script_runs_at_a_small_size_and_writes_its_tables(tmp_path: Path, capsys: Any) -> None:
    small = ["--device", "cpu", "--sizes", "64", "--objects", "1", "2", "--frames", "2", "--repeats", "1"]
    assert gpu.main([*small, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    rows = found["frames"]["micro at 64 px"]
    assert [row["setting"] for row in rows if row["objects"] == 1] == [gpu.ALONE, "keyframe", "compact near"]
    assert {row["setting"] for row in rows if row["objects"] == 2} >= {"keyframe, one batch", "stock, one batch"}
    assert all(row["frame_ratio"] == 1 for row in rows if row["setting"] == gpu.ALONE)
    assert all(0 < row["attention_ms"] < row["frame_ms"] for row in rows)
    assert all(row["ms"] > 0 for row in found["scorers"])
    assert len(found["scorers"]) > 20
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# {found['machine']['device']}")
    assert "| keyframe, one batch | 2 |" in text
    assert found["tests"]["passed"], found["tests"]["output"]
    if not torch.cuda.is_available():
        assert gpu.main(["--device", "cuda"]) == 2
        assert "finds no CUDA device" in capsys.readouterr().err


def test_the_disc_covers_its_share_and_is_what_is_tracked(clip: Any) -> None:
    assert abs(gpu.disc(256, 256).float().mean() - gpu.SHARE) < 0.001
    model = load_micro_predictor("cpu", SIZE)
    gpu.supply_disc(model)
    _, masks = tracked(model, clip)
    expected = gpu.disc(SIZE, SIZE)
    assert all((mask[0, 0] > 0).logical_xor(expected).float().mean() < 0.02 for mask in masks[1:])
