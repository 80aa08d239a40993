"""SAM 2's stored frames of one object, as the bank sees them: what is held, compressed, moved and let go.

The host's dict is the truth. An entry is in the one form that the core knows, which is SAM 2's own: `maskmem_features`
(1, C, h, w), or (1, C, n, 1) where a host's memories are no grid; `maskmem_pos_enc`, shared by all; `pred_masks`,
`obj_ptr` and `object_score_logits`. A host that stores another form turns it into this one as frames come.

The store mirrors those of the host's entries that still hold a spatial memory or a pointer on the device, and changes
them in place. Long-term memories, into which keyframes that leave the buffer are merged, lie here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import Plan
from sam2_keyframe.bank.compression import Identity
from sam2_keyframe.bank.statistics import entry_nbytes, has_memory
from sam2_keyframe.types import Compressor, Payload

Entry = MutableMapping[str, Any]
"""SAM 2's stored output of one frame."""


class Store:
    """What SAM 2 stores of one object's tracked frames.

    Args:
        non_cond: The host's dict of tracked frames. What it holds already is adopted.
        keep_all: Whether nothing is ever let go, so that every frame of the host can be read.
        keep_masks: Whether mask logits of past frames stay, on the CPU.

    Attributes:
        entries: The mirror.
        payloads: Compressed memories with their codecs; their entries hold zero tokens.
        spatial: Frames of the mirror whose spatial memory is at hand, compressed or not.
        moved: Frames whose mask logits left the device.
        plans: Which tokens of a memory are attended to, prompted ones included, where a scheme chose among them.
    """

    def __init__(self, non_cond: MutableMapping[int, Entry], keep_all: bool, keep_masks: bool) -> None:
        self.non_cond = non_cond
        self.keep_all = keep_all
        self.keep_masks = keep_masks
        self.entries: dict[int, Entry] = {idx: entry for idx, entry in non_cond.items() if has_memory(entry)}
        self.spatial = set(self.entries)
        self.payloads: dict[int, tuple[Compressor, Payload]] = {}
        self.moved: set[int] = set()
        self.plans: dict[int, Plan] = {}
        self._encoding: Any = None  # the position encoding, which all memories share
        self._leaving: list[tuple[Entry, Tensor]] = []  # mask logits on their way to the CPU
        self._blank: Tensor | None = None

    def fork(self, non_cond: MutableMapping[int, Entry]) -> Store:
        """Return a store of its own that holds the same: entries are copied into `non_cond`, tensors are shared.

        It keeps no masks of frames that it lets go.
        """
        store = Store(non_cond, self.keep_all, keep_masks=False)
        store.entries = {idx: {**entry} for idx, entry in self.entries.items()}
        non_cond.update(store.entries)
        store.spatial = set(self.spatial)
        store.payloads, store.moved, store.plans = dict(self.payloads), set(self.moved), dict(self.plans)
        copies = {id(entry): store.entries[idx] for idx, entry in self.entries.items()}
        store._leaving = [(copies[id(entry)], masks) for entry, masks in self._leaving if id(entry) in copies]
        store._encoding, store._blank = self._encoding, self._blank
        return store

    # -- reading --------------------------------------------------------------------------------------------------

    def usable(self, frame_idx: int) -> bool:
        """Return whether a frame's spatial memory is at hand."""
        if frame_idx in self.spatial or not self.keep_all or frame_idx in self.entries:
            return frame_idx in self.spatial
        entry = self.non_cond.get(frame_idx)  # the mirror leaves out what is far off, the host does not
        return entry is not None and has_memory(entry)

    def entry(self, frame_idx: int) -> Mapping[str, Any]:
        """Return a usable frame's entry with its spatial memory, restored where it is compressed.

        Raises:
            RuntimeError: The frame is not stored.
        """
        entry = self.entries.get(frame_idx) or (self.non_cond.get(frame_idx) if self.keep_all else None)
        if entry is None:
            raise RuntimeError(f"frame {frame_idx} is not stored; this is a fault of sam2_keyframe, please report it")
        if frame_idx not in self.payloads:
            return entry
        codec, payload = self.payloads[frame_idx]
        return {**entry, "maskmem_features": codec.restore(payload), "maskmem_pos_enc": self._encoding}

    # -- what comes -----------------------------------------------------------------------------------------------

    def put(self, frame_idx: int, entry: Entry) -> None:
        """Take in a frame just tracked, which the host has yet to store."""
        self.forget(frame_idx)
        self.entries[frame_idx] = entry
        if has_memory(entry):
            self.spatial.add(frame_idx)

    def forget(self, frame_idx: int) -> None:
        """Forget a frame that the host replaced or dropped."""
        self.payloads.pop(frame_idx, None)
        self.plans.pop(frame_idx, None)
        self.moved.discard(frame_idx)
        self.spatial.discard(frame_idx)
        self.entries.pop(frame_idx, None)

    def replaced(self) -> list[int]:
        """Forget what the host replaced or dropped, take in what it has there instead; return those frames."""
        changed = [idx for idx, entry in self.entries.items() if self.non_cond.get(idx) is not entry]
        for frame_idx in changed:
            self.forget(frame_idx)
            stored = self.non_cond.get(frame_idx)
            if stored is not None and has_memory(stored):
                self.put(frame_idx, stored)
        return changed

    def compress(self, frame_idx: int, codec: Compressor) -> None:
        """Keep a usable frame's memory in compressed form, unless it is already."""
        if codec == Identity() or frame_idx in self.payloads or not self.usable(frame_idx):
            return
        entry = self.entries[frame_idx]
        # From the last memory still held PCA goes on; a basis kept apart would outlive a pass over the video.
        known = (payload for other, payload in reversed(self.payloads.values()) if other == codec)
        features = entry["maskmem_features"]
        if features.device.type == "cpu" and entry["obj_ptr"].is_cuda:  # SAM 2's copy to the CPU may be under way
            torch.cuda.current_stream(entry["obj_ptr"].device).synchronize()
        payload = codec.compress(features, next(known, None))
        self._encoding = entry["maskmem_pos_enc"]
        self.drop_memory(frame_idx, entry)
        self.payloads[frame_idx] = codec, payload
        self.spatial.add(frame_idx)

    # -- what leaves ----------------------------------------------------------------------------------------------

    def drop_memory(self, frame_idx: int, entry: Entry) -> None:
        """Leave zero tokens in place of a frame's spatial memory, so that SAM 2 can still read the entry."""
        self.payloads.pop(frame_idx, None)
        self.spatial.discard(frame_idx)
        features = entry["maskmem_features"]
        if self._blank is None or self._blank.dtype != features.dtype:
            self._blank = features.new_empty((*features.shape[:2], 0, features.shape[3]))
        entry["maskmem_features"] = self._blank
        entry["maskmem_pos_enc"] = [self._blank]

    def move_masks(self, frame_idx: int, entry: Entry) -> None:
        """Move a frame's mask logits to the CPU."""
        masks = entry["pred_masks"]
        if frame_idx in self.moved:
            return
        self.moved.add(frame_idx)
        if masks.device.type != "cpu":
            # The copy does not wait, so the entry takes it over one frame later.
            self._leaving.append((entry, masks.to("cpu", non_blocking=True)))

    def land(self) -> None:
        """Let the entries take over the mask logits that have reached the CPU."""
        for entry, masks in self._leaving:
            entry["pred_masks"] = masks
        self._leaving.clear()

    def drop_entry(self, frame_idx: int, entry: Entry) -> None:
        """Let go all of a frame but its mask logits, and those too where they are not kept."""
        self.forget(frame_idx)
        if not self.keep_masks:
            if self.non_cond.get(frame_idx) is entry:
                del self.non_cond[frame_idx]
            return
        for key in ("obj_ptr", "object_score_logits"):
            entry[key] = entry[key].to("cpu", non_blocking=True)

    def drop_plans(self, but: Callable[[int], bool]) -> None:
        """Forget which tokens are attended to, but of frames for which `but` is true."""
        self.plans = {idx: plan for idx, plan in self.plans.items() if but(idx)}

    def release(self, device: torch.device) -> None:
        """Give SAM 2 what it can read by itself: memories restored, pointers of past frames back on the device."""
        self.land()
        self.plans.clear()
        for frame_idx in list(self.payloads):
            restored = self.entry(frame_idx)
            entry = self.entries[frame_idx]
            entry["maskmem_features"], entry["maskmem_pos_enc"] = restored["maskmem_features"], self._encoding
            del self.payloads[frame_idx]
        for entry in self.non_cond.values():
            for key in ("obj_ptr", "object_score_logits"):
                if entry.get(key) is not None:
                    entry[key] = entry[key].to(device)

    # -- what it takes --------------------------------------------------------------------------------------------

    def takes(
        self, entry: Entry, cond: Mapping[int, Entry], frame_idx: int, device: torch.device
    ) -> tuple[int, int, int]:
        """Return frames held, their bytes on the device, and those elsewhere; `tensors` come on top.

        Args:
            entry: The frame just tracked, which the host has yet to store.
            cond: The host's prompted frames.
            frame_idx: Index of the frame just tracked.
            device: The device.
        """
        stored = len(self.non_cond) + (frame_idx not in self.non_cond)
        here, there = map(sum, zip(*[entry_nbytes(e, device) for e in cond.values()], strict=True)) if cond else (0, 0)
        if self.keep_all:
            each = entry_nbytes(entry, device)
            return stored + len(cond), here + stored * each[0], there + stored * each[1]
        masks = int(entry["pred_masks"].nbytes)
        for idx, held in self.entries.items():
            on_device, elsewhere = entry_nbytes(held, device)
            here, there = here + on_device, there + elsewhere
            if idx in self.moved:  # mask logits count as elsewhere, below, while the copy is under way too
                if held["pred_masks"].device == device:
                    here -= masks
                else:
                    there -= masks
        left = stored - len(self.entries)
        small = int(entry["obj_ptr"].nbytes + entry["object_score_logits"].nbytes)
        return len(cond) + len(self.spatial), here, there + (left + len(self.moved)) * masks + left * small

    def tensors(self) -> list[Tensor]:
        """Return what compressed memories and plans consist of."""
        chosen = [part.index for plan in self.plans.values() for part in plan if part.index is not None]
        return [*chosen, *(tensor for _, payload in self.payloads.values() for tensor in payload.tensors())]


LEAST = 1e-3
"""Weight of a keyframe that was never attended to."""


@dataclass(slots=True)
class Merged:
    """A long-term memory.

    Attributes:
        entry: What else SAM 2 reads of an entry, from the newest frame merged.
        features: (1, C_mem, H/16, W/16) float32 weighted mean, cell by cell.
        dtype: In which SAM 2 stores them.
        weight: Sum of the weights.
        frames: How many frames were merged.
    """

    entry: Mapping[str, Any]
    features: Tensor
    dtype: torch.dtype
    weight: float
    frames: int

    def merge(self, entry: Mapping[str, Any], features: Tensor, weight: float, frames: int) -> None:
        """Take in one more memory."""
        self.weight += weight
        self.features = self.features.lerp(features, weight / self.weight)
        self.entry, self.frames = entry, self.frames + frames


class MergedMemories:
    """At most `n` long-term memories, oldest first; when there is one too many, the two oldest are merged.

    Args:
        n: Memories held at most; with 0 nothing may be added.
        of: Keyframes merged into one, before a new one is begun.
    """

    def __init__(self, n: int, of: int) -> None:
        self.n, self.of = n, of
        self._held: list[Merged] = []

    def add(self, entry: Mapping[str, Any], weight: float) -> None:
        """Merge a memory that leaves, with a weight of at least 0."""
        features, dtype, weight = entry["maskmem_features"].float(), entry["maskmem_features"].dtype, max(weight, LEAST)
        entry = {**entry, "maskmem_features": None}
        if self._held and self._held[-1].frames < self.of:
            self._held[-1].merge(entry, features, weight, 1)
        else:
            self._held.append(Merged(entry, features, dtype, weight, 1))
        if len(self._held) > self.n:
            oldest = self._held.pop(0)
            into = self._held[0]
            into.merge(into.entry, oldest.features, oldest.weight, oldest.frames)

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """The memories as SAM 2 reads them."""
        return [{**m.entry, "maskmem_features": m.features.to(m.dtype)} for m in self._held]

    def tensors(self) -> list[Tensor]:
        """Return what the memories consist of."""
        return [merged.features for merged in self._held]

    def clear(self) -> None:
        """Forget them all."""
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)
