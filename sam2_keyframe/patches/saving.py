"""States of SAM 2 and sessions of transformers in a file, and back.

Both keep their objects under the same names. The file is of safetensors: tensors, and one text of JSON beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sam2_keyframe._checks import brief
from sam2_keyframe.bank.bank import MemoryBank
from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.bank.saving import (
    Packer,
    Saved,
    SavedBank,
    Unpacker,
    check,
    conditioning,
    rebuild,
    rules_of,
    snapshot,
)
from sam2_keyframe.patches.bounded import FrameSet, PixelWindow
from sam2_keyframe.patches.host import Host
from sam2_keyframe.patches.sam2 import Sam2
from sam2_keyframe.patches.transformers import KEEP_FRAMES, Transformers, is_called

FORMAT = "sam2_keyframe memory"
VERSION = 1
KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")
SMALL = 4096
"""Weights of so many numbers at most tell models apart; the larger ones by their shape."""


@dataclass
class SavedObject:
    """One object.

    Attributes:
        obj_id: Its id.
        cond: Prompted frames.
        tracked: The others.
        new: Prompts and corrections of SAM 2 that no tracking has taken in yet, likewise.
        points: Clicks and boxes by frame: where, and of which label.
        masks: Masks that were given, by frame.
        passed: Frames that the host calls tracked, each with whether in reverse.
        bank: Its bank; None where nothing was tracked yet.
    """

    obj_id: int | str
    cond: Saved
    tracked: Saved
    new: tuple[Saved, Saved]
    points: dict[int, dict[str, Tensor]]
    masks: dict[int, Tensor]
    passed: dict[int, bool]
    bank: SavedBank | None


@dataclass
class SavedState:
    """What goes on of a video.

    Attributes:
        num_frames: Frames of the video; of a stream those that came.
        size: Height and width of its frames.
        objects: The objects, in the host's order.
        waiting: Ids of objects whose prompts a session has yet to infer.
    """

    num_frames: int
    size: tuple[int, int]
    objects: list[SavedObject]
    waiting: list[int | str]


def write(session: Any, host: Host, path: Path) -> None:
    """Write a state's memory to a file; see `save_memory`."""
    _, save_file = _safetensors()
    state = _state(session, host)
    device = torch.device(host.model.device)  # type: ignore[attr-defined]
    packer = Packer(device)
    content = packer.pack(state)
    text = json.dumps({**_about(host), "layouts": packer.layouts, "state": content})
    tensors = {str(i): tensor for i, tensor in enumerate(packer.tensors)}
    metadata = {"format": FORMAT, "version": str(VERSION), "memory": text}
    metadata["sha256"] = _digest(text, list(tensors.values()))
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, metadata)
        unfinished.replace(path)
    except Exception as error:  # safetensors has errors of its own for a disk that is full
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from error


def read(session: Any, host: Host, path: Path, video: Literal["same", "other"]) -> None:
    """Take a file's memory into a state without objects; see `load_memory`."""
    part = _part(session)
    if part("output_dict_per_obj"):
        raise ValueError("this state has objects already: load a memory into a new one, or reset it first")
    about, tensors = _open(path)
    for key, what in (("host", "predictor"), ("model", "model"), ("method", "method")):
        mine, saved = _about(host)[key], about.get(key)
        if saved != mine:
            hint = f'; wrap the predictor as it was saved, with "{brief(saved, 600)}"' if key == "method" else ""
            raise ValueError(f"{path} was saved with another {what}: {brief(saved)}, and this is {brief(mine)}{hint}")
    geometry, method = host.facts(), host.banks.method
    try:
        with torch.inference_mode():
            unpacker = Unpacker(tensors, about["layouts"], torch.device(host.model.device), rules_of(method))  # type: ignore[attr-defined]
            state: SavedState = unpacker.read(SavedState, about["state"])
            for each in state.objects:
                parts: tuple[Saved, ...] = (each.cond, each.tracked, *each.new)
                for entries in parts:
                    _check_entries(entries, geometry)
            banks = [
                None if each.bank is None else rebuild(each.bank, method, each.tracked, geometry)
                for each in state.objects
            ]
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is no memory that save_memory() wrote: {brief(error)}") from None
    if video == "other":
        _begin_with(session, host, state, banks)
        return
    streams = part("num_frames") is None
    now = part("num_frames"), (part("video_height"), part("video_width"))
    if not streams and now != (state.num_frames, state.size):
        raise ValueError(
            f"{path} was saved in a video of {_described(state.num_frames, state.size)}, and this one has "
            f"{_described(*now)}: load_memory(..., video='other') goes on with its objects in another video"
        )
    for each, bank in zip(state.objects, banks, strict=True):
        obj_idx = _add_object(session, host, each.obj_id)
        places = [part("output_dict_per_obj")[obj_idx]]
        given = [(each.cond, each.tracked)]
        if isinstance(session, Mapping):
            places.append(part("temp_output_dict_per_obj")[obj_idx])
            given.append(each.new)
        for place, kinds in zip(places, given, strict=True):
            for kind, found in zip(KINDS, kinds, strict=True):
                place[kind].update(found)
        part("point_inputs_per_obj")[obj_idx].update(each.points)
        part("mask_inputs_per_obj")[obj_idx].update(each.masks)
        for frame_idx, reverse in each.passed.items():
            part("frames_tracked_per_obj")[obj_idx][frame_idx] = {"reverse": reverse}
        if bank is not None:
            bank.non_cond = bank.store.non_cond = places[0][KINDS[1]]
            host.banks.take_in(places[0], bank)
    if not isinstance(session, Mapping):
        session.obj_with_new_inputs.extend(state.waiting)
        if streams:
            session.processed_frames = PixelWindow({}, KEEP_FRAMES)
            last = max((t for each in state.objects for t in (*each.cond, *each.tracked)), default=-1)
            session.processed_frames._came = FrameSet(range(last + 1))  # new frames are counted on from there


def _check_entries(entries: Saved, geometry: Geometry) -> None:
    """Raise ValueError unless stored frames have the sizes of a model's."""
    side, masks = geometry.memory_side, geometry.mask_side
    for frame_idx, entry in entries.items():
        features, encoding, logits = (entry.get(key) for key in ("maskmem_features", "maskmem_pos_enc", "pred_masks"))
        sizes = [] if features is None or "obj_ptr" not in entry else [features, *(encoding or ())]
        there = all(isinstance(t, Tensor) and t.ndim == 4 and t.shape[1] == geometry.memory_dim for t in sizes)
        whole = there and all(t.shape[2:] == (side, side) or not t.numel() for t in sizes)
        drawn = isinstance(logits, Tensor) and logits.shape == (1, 1, masks, masks)
        pointer = entry.get("obj_ptr")
        check(
            whole and drawn and (pointer is None or pointer.shape == (1, geometry.pointer_dim)),
            f"frame {frame_idx} has other sizes",
        )


def _begin_with(session: Any, host: Host, state: SavedState, banks: Sequence[MemoryBank | None]) -> None:
    """Give a new video the prompted frames and keyframes of another one, as if prompted before its first frame."""
    part = _part(session)
    found = [conditioning(bank, each.cond) for each, bank in zip(state.objects, banks, strict=True)]
    if not all(entries and all(e.get("obj_ptr") is not None for e in entries.values()) for entries, _ in found):
        raise ValueError("an object of this memory has no prompted frame that was tracked from: track it first")
    for each, (entries, references) in zip(state.objects, found, strict=True):
        place = part("output_dict_per_obj")[_add_object(session, host, each.obj_id)]
        place[KINDS[0]].update(entries)
        bank = MemoryBank(host.banks.method, None, place[KINDS[1]])
        bank.selection.prompts = references
        host.banks.take_in(place, bank)


def _add_object(session: Any, host: Host, obj_id: Any) -> int:
    obj_idx: int
    if isinstance(session, Mapping):
        obj_idx = host.predictor._obj_id_to_idx(session, obj_id)
    else:
        host._sessions.add(session)  # type: ignore[attr-defined]
        obj_idx = session.obj_id_to_idx(obj_id)
    return obj_idx


def supported(host: Host, session: Any) -> None:
    """Raise TypeError unless a host's states can be saved, and a state is one of them."""
    sam2 = type(host) is Sam2 and isinstance(session, Mapping)
    if not sam2 and not (type(host) is Transformers and is_called(session, Transformers.SESSIONS)):
        raise TypeError(
            f"the memory of a {type(session).__name__} of {type(host.predictor).__name__} cannot be saved: only "
            "inference states of SAM2VideoPredictor and sessions of Sam2VideoModel and Sam3TrackerVideoModel can"
        )


def _state(session: Any, host: Host) -> SavedState:
    part = _part(session)
    objects = []
    for obj_id, frames in (type(host).objects(session) or {}).items():
        if not isinstance(obj_id, int | str):
            raise TypeError(f"the object id {obj_id!r} cannot be saved: use whole numbers or texts")
        obj_idx = (session["obj_id_to_idx"] if isinstance(session, Mapping) else session._obj_id_to_idx)[obj_id]
        bank = frames.bank
        if bank is not None and not host.banks.owns(bank):
            raise ValueError(
                f"object {obj_id!r} was not tracked by the predictor as it is wrapped now: track a frame, then save"
            )
        new: Any = {kind: {} for kind in KINDS}
        if isinstance(session, Mapping):
            new = session["temp_output_dict_per_obj"][obj_idx]
        objects.append(
            SavedObject(
                obj_id,
                dict(frames.cond),  # type: ignore[arg-type]
                dict(frames.tracked),  # type: ignore[arg-type]
                (new[KINDS[0]], new[KINDS[1]]),
                part("point_inputs_per_obj")[obj_idx],
                part("mask_inputs_per_obj")[obj_idx],
                {t: bool(how["reverse"]) for t, how in part("frames_tracked_per_obj")[obj_idx].items()},
                None if bank is None else snapshot(bank, frames.cond),
            )
        )
    if not objects:
        raise ValueError("nothing is prompted in this state: there is no memory to save")
    waiting = [] if isinstance(session, Mapping) else list(session.obj_with_new_inputs)
    return SavedState(part("num_frames") or 0, (part("video_height"), part("video_width")), objects, waiting)


def _part(session: Any) -> Any:
    """Return what gives a part of a state or session by its name, which is the same in both."""
    return session.__getitem__ if isinstance(session, Mapping) else lambda name: getattr(session, name)


def _described(num_frames: Any, size: Any) -> str:
    return f"{num_frames} frames of {size[1]} x {size[0]}"


def _about(host: Host) -> dict[str, str]:
    """Return what has to be the same where a memory goes on."""
    geometry = host.facts()
    sizes = ", ".join(f"{field.name}={getattr(geometry, field.name)!r}" for field in fields(geometry))
    weights = _fingerprint(host.model)  # type: ignore[attr-defined]
    return {"host": type(host).__name__, "model": f"weights {weights}, {sizes}", "method": repr(host.method)}


def _fingerprint(model: torch.nn.Module) -> str:
    """Return 16 letters that tell a model's weights from another's: names, kinds and shapes, the small ones whole."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        if weight.numel() <= SMALL:
            digest.update(_bytes(weight))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(text: str, tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _open(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """Return what a file tells and its tensors.

    Raises:
        ValueError: It is no such file, one of another version, or not as it was written.
        OSError: It cannot be read.
    """
    safe_open, _ = _safetensors()
    with path.open("rb"):  # says in Python's words what is wrong with a path
        pass
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
    except Exception as error:  # its own class, which is not at hand where it is not installed
        raise ValueError(f"{path} is no memory that save_memory() wrote: {brief(error)}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no memory that save_memory() wrote: it says nothing of being one")
    if metadata.get("version") != str(VERSION):
        found = brief(metadata.get("version"))
        raise ValueError(f"{path} is of version {found}, and this release reads version {VERSION}: save it again")
    text = metadata.get("memory", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise ValueError(f"{path} is not as save_memory() wrote it: its checksum does not match. Save it again")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not {"host", "model", "method", "layouts", "state"} <= about.keys():
        raise ValueError(f"{path} is no memory that save_memory() wrote: its description cannot be read")
    return about, tensors


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError:
        raise ImportError(
            "memories are saved with safetensors, which is not installed: pip install 'sam2-keyframe[save]'"
        ) from None
    return safe_open, save_file
