"""Memories in files: what goes on is what would have been, in another process and in another video; what is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_predictor, write_frames
from memories import AGAIN
from safetensors import safe_open
from safetensors.torch import save_file
from sessions import begin, propagated

import sam2_keyframe as sk
from sam2_keyframe.patches import saving
from sam2_keyframe.synthetic import make_clip

SETTINGS: dict[str, dict[str, Any]] = {
    "keyframe": {"change": 0.05},
    "compact": {"change": 0.05, "attend": sk.Foveated(0.45, 2)},
    "genetic": {"frames": (5, 20, 40, 80)},
    "adaptive": {"k": 0.2},
    "samurai": {"kalman": True},
    "window": {"confirm": sk.Confirm(quality=0.0, jump=100.0, overlap=0.95, within=3)},
}
"""So that much is decided on a short clip."""


def _wrapped(method: Any = "keyframe", size: int = 64, seed: int = 0, **choices: Any) -> Any:
    predictor = make_predictor(size, seed=seed)
    sk.wrap(predictor, method, **(choices or SETTINGS.get(method, {})))
    return predictor


def _rows(state: Any) -> Any:
    """Return all that statistics tell, but the time."""
    return {
        obj_id: [
            (row.frame_idx, row.attended, row.memory, row.stock, row.scores.keys(), row.keyframe, row.evicted)
            for row in stats.rows
        ]
        for obj_id, stats in sk.memory_stats(state).items()
    }


def _equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keyframe", "compact", "samurai", "window"])
def test_two_halves_are_the_whole(method: str, clip_folder: Any, clip: Any, tmp_path: Path) -> None:
    predictor, other = _wrapped(method), _wrapped(method)
    whole = begin(predictor, clip_folder, clip)
    expected = propagated(predictor, whole)
    half = begin(predictor, clip_folder, clip)
    found = propagated(predictor, half, max_frame_num_to_track=11)
    sk.save_memory(half, tmp_path / "half.safetensors")
    rest = other.init_state(str(clip_folder))
    sk.load_memory(rest, tmp_path / "half.safetensors")
    found += propagated(other, rest, start_frame_idx=12)
    assert _equal(found, expected)
    assert _rows(rest) == _rows(whole)
    assert len({float(masks.sum()) for masks in expected}) > 5
    assert not list(tmp_path.glob("*.unfinished"))


def test_prompts_that_nobody_took_in_and_corrections_go_along(clip_folder: Any, clip: Any, tmp_path: Path) -> None:
    """Saved between two clicks, which SAM 2 adds up, and before tracking takes them in; with a second object."""

    def session(predictor: Any, between: Callable[[Any], Any]) -> list[torch.Tensor]:
        state = predictor.init_state(str(clip_folder))
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(clip.masks[0] == 1))
        predictor.add_new_mask(state, 0, "two", torch.from_numpy(clip.masks[0] == 2))
        found = propagated(predictor, state, max_frame_num_to_track=5)
        for label, at in ((1, (40.0, 60.0)), (0, (4.0, 4.0))):
            point = {"points": np.array([at], np.float32), "labels": np.array([label], np.int32)}
            found.append(predictor.add_new_points_or_box(state, 4, 1, clear_old_points=label == 1, **point)[2].clone())
            state = between(state)
        return found + propagated(predictor, state, start_frame_idx=3, max_frame_num_to_track=6)

    predictor = _wrapped()

    def through_a_file(state: Any) -> Any:
        sk.save_memory(state, tmp_path / "memory.safetensors")
        anew = predictor.init_state(str(clip_folder))
        sk.load_memory(anew, tmp_path / "memory.safetensors")
        assert anew["obj_ids"] == [1, "two"]
        return anew

    assert _equal(session(predictor, through_a_file), session(_wrapped(), lambda state: state))


@pytest.mark.parametrize("method", ["stock", "keyframe", "samurai"])
def test_another_video_begins_as_if_its_prompt_lay_before_it(
    method: str, clip_folder: Any, clip: Any, tmp_path: Path
) -> None:
    """A prompted frame taken over is one that is put in front of the video."""
    predictor = _wrapped(method)
    front = write_frames(tmp_path / "front", np.concatenate([clip.frames[:1], clip.frames[4:]]))
    expected = propagated(predictor, begin(predictor, front, clip))[1:]
    prompted = begin(predictor, clip_folder, clip)
    propagated(predictor, prompted, max_frame_num_to_track=0)
    sk.save_memory(prompted, tmp_path / "memory.safetensors")
    video = predictor.init_state(str(write_frames(tmp_path / "video", clip.frames[4:])))
    sk.load_memory(video, tmp_path / "memory.safetensors", video="other")
    assert [t for t, _, _ in predictor.propagate_in_video(video, max_frame_num_to_track=1)] == [0, 1]
    assert sk.memory_stats(video)[1].rows[0].attended == (-1,)
    video = predictor.init_state(str(tmp_path / "video"))
    sk.load_memory(video, tmp_path / "memory.safetensors", video="other")
    assert _equal(propagated(predictor, video), expected)


def test_keyframes_of_another_video_count_as_prompted_frames(clip_folder: Any, clip: Any, tmp_path: Path) -> None:
    predictor = _wrapped("compact")
    state = begin(predictor, clip_folder, clip, (1, 2))
    propagated(predictor, state)
    kept = {obj_id: len(stats.rows[-1].keyframes) for obj_id, stats in sk.memory_stats(state).items()}
    sk.save_memory(state, tmp_path / "memory.safetensors")
    video = predictor.init_state(str(clip_folder))
    sk.load_memory(video, tmp_path / "memory.safetensors", video="other")
    assert len(propagated(predictor, video, max_frame_num_to_track=2)) == 3
    for obj_id, stats in sk.memory_stats(video).items():
        held = stats.rows[0].attended
        assert held == tuple(range(-len(held), 0))
        assert len(held) >= 1 + kept[obj_id] > 1
    # what is new here is saved again, and its own prompts come on top
    predictor.add_new_mask(video, 2, 1, torch.from_numpy(clip.masks[2] == 1))
    assert [t for t, _, _ in predictor.propagate_in_video(video, max_frame_num_to_track=3)] == [0, 1, 2, 3]
    sk.save_memory(video, tmp_path / "again.safetensors")
    sk.forget(video)
    assert not [key for key in video if str(key).startswith("_keyframe")]


@pytest.mark.slow
def test_sessions_of_transformers(clip: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import transformers_models
    from on_transformers import Video, new_session, start, track

    small = make_clip("occlusion", seed=3, frames=14, size=64, objects=2)
    video, file = Video(small), tmp_path / "memory.safetensors"
    model, other = (transformers_models.sam2_video(64) for _ in range(2))
    for each in (model, other):
        sk.wrap(each, "compact", **SETTINGS["compact"])
    seen: Any = []
    expected: Any = []
    track(model, start(model, video, (1, 2)), expected, 0, 13)
    session = start(model, video, (1, 2))
    track(model, session, seen, 0, 7)
    sk.save_memory(session, file)
    with pytest.raises(ValueError, match="no wrapped predictor is known to track this state"):
        sk.load_memory(new_session(other, video.frames), file)
    rest = new_session(other, video.frames)
    sk.load_memory(rest, file, other)
    track(other, rest, seen, 8, 5)
    assert _equal([each[3] for each in seen], [each[3] for each in expected])

    stream, streamed = new_session(model, None), []
    for t, frame in enumerate(video.frames[:10]):
        if t == 0:
            video.prompt(stream, 0, 1)
        if t == 6:
            sk.save_memory(stream, tmp_path / "stream.safetensors")
        streamed.append(model(inference_session=stream, frame=frame))
    counting_on = new_session(other, None)
    sk.load_memory(counting_on, tmp_path / "stream.safetensors", other)
    more = [other(inference_session=counting_on, frame=frame) for frame in video.frames[6:10]]
    assert [each.frame_idx for each in more] == [6, 7, 8, 9]
    assert _equal([each.pred_masks for each in more], [each.pred_masks for each in streamed[6:]])

    anew = new_session(other, video.frames)
    sk.load_memory(anew, file, other, video="other")
    assert [output.frame_idx for output in other.propagate_in_video_iterator(anew, max_frame_num_to_track=2)] == [
        0,
        1,
        2,
    ]
    sk.unwrap(other)
    track(other, rest, [], 5, 1)  # transformers finds what it knows


@pytest.fixture(scope="module")
def saved(clip_folder: Any, clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    predictor = _wrapped("compact")
    state = begin(predictor, clip_folder, clip)
    propagated(predictor, state, max_frame_num_to_track=8)
    path = tmp_path_factory.mktemp("saved") / "memory.safetensors"
    sk.save_memory(state, path)
    return path


def _rewritten(path: Path, to: Path, change: Callable[[Any, dict[str, str], dict[str, torch.Tensor]], Any]) -> Path:
    """Write a file whose description is changed and whose checksum is right."""
    with safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["memory"])
    about = change(about, metadata, tensors) or about
    metadata["memory"] = json.dumps(about)
    ordered = [tensors[str(i)] for i in range(len(tensors))]
    metadata["sha256"] = saving._digest(metadata["memory"], ordered)
    save_file(tensors, to, metadata)
    return to


def test_what_does_not_fit_is_refused_in_a_sentence(saved: Path, clip_folder: Any, clip: Any, tmp_path: Path) -> None:
    def refused(why: str, path: Path = saved, predictor: Any = None, folder: Any = clip_folder, **how: Any) -> None:
        predictor = predictor or _wrapped("compact")
        state = predictor.init_state(str(folder))
        with pytest.raises(ValueError, match=why):
            sk.load_memory(state, path, **how)
        assert not state["obj_ids"]

    refused(r"another method: .*wrap the predictor as it was saved, with \"KeyframeMemory\(", predictor=_wrapped())
    refused("another method", predictor=_wrapped("compact", change=0.06, attend=sk.Foveated(0.45, 2)))
    refused("another model: weights", predictor=_wrapped("compact", seed=1))
    refused("another model: .*image_size=64.*image_size=128", predictor=_wrapped("compact", size=128))
    refused("choose 'same' or 'other'", video="next")
    short = write_frames(tmp_path / "short", clip.frames[:9])
    refused(r"24 frames of 128 x 128, and this one has 9 frames of .* video='other'", folder=short)

    predictor = _wrapped("compact")
    state = begin(predictor, clip_folder, clip)
    with pytest.raises(ValueError, match="this state has objects already"):
        sk.load_memory(state, saved)
    with pytest.raises(OSError, match="nowhere"):
        sk.load_memory(predictor.init_state(str(clip_folder)), tmp_path / "nowhere.safetensors")
    with pytest.raises(OSError, match="cannot be written"):
        sk.save_memory(state, tmp_path / "nowhere" / "memory.safetensors")
    with pytest.raises(ValueError, match="nothing is prompted in this state"):
        sk.save_memory(predictor.init_state(str(clip_folder)), tmp_path / "memory.safetensors")
    sk.unwrap(predictor)
    with pytest.raises(ValueError, match="no wrapped predictor is known to track this state"):
        sk.save_memory(state, tmp_path / "memory.safetensors")
    with pytest.raises(TypeError, match="not an inference state"):
        sk.save_memory({}, tmp_path / "memory.safetensors")

    def version(about: Any, metadata: dict[str, str], tensors: Any) -> None:
        metadata["version"] = "2"

    refused("is of version 2, and this release reads version 1", _rewritten(saved, tmp_path / "v2", version))


def test_foreign_files_are_refused(saved: Path, clip_folder: Any, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    foreign = {
        "empty": b"",
        "text": b"not a memory at all, but long enough to be taken for a header",
        "pickle": pickle.dumps(Bomb()),
        "half": saved.read_bytes()[: saved.stat().st_size // 2],
        "short": saved.read_bytes()[:-1],
        "longer": saved.read_bytes() + b"\0",
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    torch.save(Bomb(), tmp_path / "torch")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights")
    predictor = _wrapped("compact")
    state = predictor.init_state(str(clip_folder))
    for name in [*foreign, "torch", "weights"]:
        with pytest.raises(ValueError, match="is no memory that save_memory"):
            sk.load_memory(state, tmp_path / name)
    assert not (tmp_path / "ran").exists()
    assert not state["obj_ids"]


def test_five_hundred_damaged_files_are_refused(saved: Path, clip_folder: Any, tmp_path: Path) -> None:
    """Whatever byte is changed, lost or added."""
    rng, whole, path = random.Random(0), saved.read_bytes(), tmp_path / "damaged.safetensors"
    predictor = _wrapped("compact")
    state = predictor.init_state(str(clip_folder))
    header = 8 + int.from_bytes(whole[:8], "little")
    for case in range(500):
        damaged = bytearray(whole)
        at = rng.randrange(header if case % 2 else len(whole))
        if case % 5 == 0:
            del damaged[at : at + rng.randint(1, 64)]
        elif case % 5 == 1:
            damaged[at:at] = rng.randbytes(rng.randint(1, 64))
        else:
            damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.safetensors"):
            sk.load_memory(state, path)
    assert not state["obj_ids"]
    sk.load_memory(state, saved)


@pytest.mark.slow
def test_made_up_descriptions_are_refused_and_run_nothing(saved: Path, clip_folder: Any, tmp_path: Path) -> None:
    """Files with a right checksum: what is of another kind is refused, and no text is ever run."""
    rng = random.Random(1)
    evil = f"__import__('os').system('touch {tmp_path / 'ran'}')"
    junk = [evil, None, True, -1, 2**70, 1e999, [], [[]], {}, {"tensor": 10**6}, {"tensor": -1}, {"tensor": evil}]

    def places(value: Any) -> Any:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in inside:
            yield value, key
            yield from places(each)

    def change(about: Any, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        owner, key = rng.choice([place for part in ("state", "layouts") for place in places(about[part])])
        if rng.random() < 0.3 and isinstance(owner, list):
            owner.pop(key)
        else:
            owner[key] = rng.choice(junk)

    predictor = _wrapped("compact")
    refused, state = 0, predictor.init_state(str(clip_folder))
    for _ in range(100):
        path = _rewritten(saved, tmp_path / "changed.safetensors", change)
        try:
            sk.load_memory(state, path)
        except ValueError as error:
            why = str(error)
        else:  # a number among others
            predictor.reset_state(state)
            continue
        assert "is no memory that save_memory() wrote" in why
        assert not state["obj_ids"]
        refused += 1
    assert refused > 60
    assert not (tmp_path / "ran").exists()

    def deep(about: Any, metadata: dict[str, str], tensors: Any) -> Any:
        nested: Any = []
        for _ in range(900):
            nested = [nested]
        about["state"] = nested
        return about

    def bigger(about: Any, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        features = next(name for name, tensor in tensors.items() if tensor.shape[1:2] == (predictor.mem_dim,))
        tensors[features] = torch.zeros(1, predictor.mem_dim, 99, 99)

    for changed in (deep, bigger):
        with pytest.raises(ValueError, match="is no memory that save_memory"):
            sk.load_memory(state, _rewritten(saved, tmp_path / "changed.safetensors", changed))


GO_ON = """
import sys
import torch
from sessions import propagated
from test_saving import _wrapped
import sam2_keyframe as sk

torch.set_num_threads(1)
folder, work, *methods = sys.argv[1:]
for method in methods:
    predictor = _wrapped(method)
    state = predictor.init_state(folder)
    sk.load_memory(state, f"{work}/{method}.safetensors")
    torch.save(torch.stack(propagated(predictor, state, start_frame_idx=60)), f"{work}/{method}.pt")
"""


@pytest.mark.slow
def test_every_method_goes_on_in_another_process(tmp_path: Path) -> None:
    """60 frames, and 60 more in another process, are 120 in one go."""
    clip = make_clip("occlusion", seed=3, frames=120, size=64, objects=1)
    folder = write_frames(tmp_path / "clip", clip.frames)
    expected = {}
    methods = [name for name in sk.METHODS if name not in AGAIN]
    for method in methods:
        predictor = _wrapped(method)
        state, seen = begin(predictor, folder, clip), []
        for t, _, masks in predictor.propagate_in_video(state):
            seen.append(masks.clone())
            if t == 59:
                sk.save_memory(state, tmp_path / f"{method}.safetensors")
        expected[method] = torch.stack(seen[60:])
    root = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (root, root / "tests")))
    subprocess.run(
        [sys.executable, "-c", GO_ON, str(folder), str(tmp_path), *methods],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    for method in methods:
        assert torch.equal(torch.load(tmp_path / f"{method}.pt"), expected[method]), method
    assert len({float(masks.sum()) for masks in expected["keyframe"]}) > 20
