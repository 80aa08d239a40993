"""The patch for hosts that track all objects in one batch: facebookresearch SAM 2's legacy predictor, and its layout.

Such a host keeps one entry a frame for all objects, and of each object a slice of it. Memory attention is independent
over the batch, so the read is split by object: each is shown what its own bank chose, and the features are put
together again. An object's entries are its own, no slices, and the batch's leave, so that what one bank lets go is
freed; prompted and corrected frames, which the host looks up in the batch, stay there.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sam2_keyframe.bank.bank import KEY, MemoryBank, Tracking
from sam2_keyframe.bank.statistics import has_memory
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.bounded import TrackedFrames, keep_only
from sam2_keyframe.patches.driving import ENDLESS, Driver
from sam2_keyframe.patches.host import ObjectFrames
from sam2_keyframe.patches.sam2 import PROMPTED, REQUIRED, TRACKING, Sam2, own_rule
from sam2_keyframe.patches.together import PARTS, copied, split
from sam2_keyframe.patches.wrapping import during, missing
from sam2_keyframe.types import FrameMemo

COND, TRACKED = "cond_frame_outputs", "non_cond_frame_outputs"


class Batched(Sam2):
    """Runs one method on one predictor that tracks all objects in one batch, with a bank an object.

    Args:
        predictor: The predictor; unchanged until `install`.
        method: The method.
    """

    AGAIN: ClassVar[bool] = False
    NAME: ClassVar[str] = "facebookresearch SAM 2's predictor of before December 2024 (sam2_video_predictor_legacy)"

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        super().__init__(predictor, method)
        self._layouts: weakref.WeakSet[Layout] = weakref.WeakSet()

    @staticmethod
    def knows(predictor: object) -> bool:
        """Return whether a video predictor slices a batch."""
        return Sam2.knows(predictor) and hasattr(predictor, "_add_output_per_object")

    @staticmethod
    def refuses(predictor: object) -> str | None:
        """Return why this host does not take the predictor, or None when it does."""
        more = {"_add_output_per_object": {"inference_state", "frame_idx", "current_out", "storage_key"}}
        return own_rule(predictor) or missing(predictor, {**REQUIRED, **more})

    # -- doing and undoing --------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put the wrappers in place."""
        super().install()
        self._wrapping.wrap("_add_output_per_object", self._store)

    def uninstall(self) -> None:
        """Restore what was there before, and put each object's frames together in batches again."""
        super().uninstall()
        for layout in list(self._layouts):
            layout.join()

    def _supply_clearing(self) -> None:
        """Supply nothing: the legacy predictor has what `clear_non_cond_mem_around_input` calls."""

    # -- where its state lies -----------------------------------------------------------------------------------

    @staticmethod
    def objects(session: Any) -> dict[Any, ObjectFrames] | None:
        """Return each object's frames by object id; None where the state has another layout."""
        return Sam2.objects(session) if isinstance(session, Mapping) and "output_dict" in session else None

    @staticmethod
    def forget(session: Any) -> None:
        """Remove banks, statistics and the shared frame from an inference state."""
        Sam2.forget(session)
        layout = session["constants"].pop(KEY, None)
        if layout is not None:
            layout.join()

    @staticmethod
    def driver(predictor: Any) -> Driver:
        """Return what drives the predictor frame by frame."""
        return BatchedDriver(predictor)

    def _banks(self, state: MutableMapping[str, Any]) -> list[MemoryBank]:
        """Return the objects' banks in the order of the batch, once what the host has in batches is split."""
        layout = state["constants"][KEY] = self._layout(state)
        self._layouts.add(layout)
        if self.method.store != "all":
            layout.split(but=state["consolidated_frame_inds"][TRACKED])
        return [self._bank_of(state, obj_idx) for obj_idx in sorted(state["output_dict_per_obj"])]

    def _layout(self, state: MutableMapping[str, Any]) -> Layout:
        """Return a state's frames in batches and in parts."""
        return state["constants"].get(KEY) or Layout(state)

    def _bank_of(self, state: MutableMapping[str, Any], obj_idx: int) -> MemoryBank:
        place = state["output_dict_per_obj"][obj_idx]

        def adopt(bank: MemoryBank) -> None:
            for frame_idx, entry in place[COND].items() if self.banks.observe else ():
                frame = self.adopted(state, frame_idx, entry)
                if _has_input(state, obj_idx, frame_idx):
                    bank.prompted(frame_idx, entry, frame, cond=True)
                else:
                    bank.tell(frame_idx, frame, cond=True)

        return self.banks.get(place, place[TRACKED], adopt)

    # -- wrappers -----------------------------------------------------------------------------------------------

    def _write(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Track a frame of all objects, observe it, and let go what the next one does not need."""
        state, frame_idx = call["inference_state"], call["frame_idx"]
        banks = self._banks(state)
        if not call["run_mem_encoder"]:
            return original(**call)
        began, geometry = time.perf_counter(), self.facts()
        moment = geometry.moment(frame_idx, call["reverse"], state["num_frames"])
        places = [place for _, place in sorted(state["output_dict_per_obj"].items())]
        absent = [bank.not_yet(place[COND], moment) for bank, place in zip(banks, places, strict=True)]
        parts = [part for part in absent if part is not None]
        if parts:  # every prompted frame is one of all objects here, so they are absent together
            return self._without_tracking(parts)
        batch = [Tracking.begin(bank, place[COND], moment, geometry) for bank, place in zip(banks, places, strict=True)]
        with during(TRACKING, batch):
            result = original(**call)
        entry, masks = self._stored(result)
        parts = split(entry, len(batch), own=self.method.store != "all")
        share = (time.perf_counter() - began) / len(batch)
        for i, (tracking, part) in enumerate(zip(batch, parts, strict=True)):
            tracking.began, frame = time.perf_counter() - share, None
            if tracking.encoded is not None:
                mask = masks[i : i + 1]
                candidates = tracking.candidates or (mask, mask.new_ones(1, 1))
                frame = self._frames.tracked(state, frame_idx, part, tracking.encoded, mask, *candidates)
            tracking.finish(part, frame)
        entry[KEY] = parts  # for `_store`, which the host hands this entry next
        return result

    def _without_tracking(self, parts: Sequence[Entry]) -> Any:
        """Return what the host expects of a frame that was not tracked: the objects' entries as a batch, and masks."""
        entry = joined(parts, whole=False)
        entry[KEY] = parts
        return entry, entry["pred_masks"].to(self.model.device)

    @staticmethod
    def _stored(result: Any) -> tuple[MutableMapping[str, Any], Tensor]:
        """Return what the host stores of a tracked batch, and its (B, 1, H/4, W/4) mask logits on the device."""
        entry, masks = result
        return entry, masks

    def _store(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> None:
        """Give each object the entry that its bank knows; of a frame just tracked nothing stays in the batch."""
        state, frame_idx, key = call["inference_state"], call["frame_idx"], call["storage_key"]
        places, parts = state["output_dict_per_obj"], call["current_out"].pop(KEY, None)
        if parts is not None:
            for obj_idx, part in zip(sorted(places), parts, strict=True):
                places[obj_idx][key][frame_idx] = part
            if self.method.store != "all":
                state["output_dict"][key].pop(frame_idx, None)
            return
        held = {obj_idx: place[key].get(frame_idx) for obj_idx, place in places.items()}
        original(**call)
        for obj_idx, entry in held.items():
            if entry is None or frame_idx in state["temp_output_dict_per_obj"][obj_idx][key]:
                continue  # this object was prompted, so it is a new entry
            if has_memory(entry):
                entry.update(places[obj_idx][key][frame_idx])
            elif PROMPTED.get() is not None:
                continue  # a prompt of another object had all of them encoded again
            places[obj_idx][key][frame_idx] = entry

    def _propagate(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Iterator[Any]:
        """Go on as `Sam2` does; the host passes over corrected frames by itself, and the banks follow."""
        state = call["inference_state"]
        for output in super()._propagate(original, call):
            self._pass_over(state, output[0], call["reverse"])
            yield output

    @torch.inference_mode()
    def _pass_over(self, state: MutableMapping[str, Any], frame_idx: int, reverse: bool) -> None:
        if frame_idx in state["consolidated_frame_inds"][TRACKED]:
            moment = self.facts().moment(frame_idx, reverse, state["num_frames"])
            for bank in self._banks(state):
                bank.begin(moment)
                bank.pass_over(frame_idx, moment)

    def _preflight(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take in prompts and corrections: where one object has one, the host encodes all of them again."""
        state = call["inference_state"]
        if "output_dict" not in state:
            raise RuntimeError("this inference state is not of the legacy layout; make one with predictor.init_state()")
        self._banks(state)
        temporary = state["temp_output_dict_per_obj"]
        new = {(i, key, t) for i, kinds in temporary.items() for key, entries in kinds.items() for t in entries}
        memos: dict[int, tuple[FrameMemo, Tensor]] = {}
        try:
            with during(PROMPTED, memos):
                return original(**call)
        finally:  # the host has taken in some prompts even where it raises on another
            frames = sorted({(key, t) for _, key, t in new})
            for obj_idx, bank in enumerate(self._banks(state)):
                for key, t in frames:
                    entry = state["output_dict_per_obj"][obj_idx][key].get(t)
                    if entry is None or entry["maskmem_features"] is None:
                        continue
                    frame = self._frames.prompted(t, entry, memos.get(t) or self._memo(state, t))
                    if (obj_idx, key, t) in new:
                        bank.prompted(t, entry, frame, cond=key == COND)
                    elif key == COND:  # with another object's prompt
                        bank.tell(t, frame, cond=True)
                    elif key == TRACKED and bank.store.entries.get(t) is not entry:
                        bank.taken_back(t, entry)

    def _memo(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[FrameMemo, Tensor] | None:
        """Return pixels and features of a prompted frame that were not noted while it was encoded."""
        return None

    def _clear_prompts(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Follow the host when a prompted or corrected frame becomes an ordinary one, of one object or of all."""
        state, t = call["inference_state"], call["frame_idx"]
        prompted = [obj_idx for obj_idx, place in state["output_dict_per_obj"].items() if t in place[COND]]
        result = original(**call)
        if not state["output_dict"][COND]:  # it was the last one, and the host forgot what it tracked
            for place in state["output_dict_per_obj"].values():
                place.pop(KEY, None)
            return result
        for obj_idx, bank in enumerate(self._banks(state)):
            entry = state["output_dict_per_obj"][obj_idx][TRACKED].get(t)
            free = t in bank.selection.corrected and not _has_input(state, obj_idx, t)
            if entry is not None and has_memory(entry) and (free or obj_idx in prompted):
                bank.taken_back(t, entry)
        return result


def _has_input(state: Mapping[str, Any], obj_idx: int, frame_idx: int) -> bool:
    """Return whether the user prompted or corrected an object on a frame; other prompted frames came with others'."""
    return any(frame_idx in state[name][obj_idx] for name in ("point_inputs_per_obj", "mask_inputs_per_obj"))


class BatchedDriver(Driver):
    """Drives a predictor of the legacy layout frame by frame."""

    def open(self, frame: Any, images: Any = None, num_frames: int = ENDLESS, **options: Any) -> Any:
        """Return an inference state of a video; see `Driver.open`."""
        state = super().open(frame, images, num_frames, **options)
        if state.pop("frames_tracked_per_obj", None) is not None:
            state["frames_already_tracked"] = TrackedFrames({})
        return state

    def trim(self, state: Any, t: int, most: int) -> None:
        """Let go of bookkeeping of frames before `t`; see `Driver.trim`.

        The host checks that it has consolidated the very frames that have inputs, so both leave together.
        """
        consolidated, places = state["consolidated_frame_inds"], state["output_dict_per_obj"].values()
        prompted, corrected = (sorted(consolidated[key]) for key in (COND, TRACKED))
        kept = {t, *prompted[:1], *prompted[1:][1 - most :], *corrected[-most:]}
        for frames in (consolidated[COND], consolidated[TRACKED]):
            frames &= kept
        for inputs in (*state["point_inputs_per_obj"].values(), *state["mask_inputs_per_obj"].values()):
            keep_only(inputs, kept)
        for frames in (state["output_dict"][COND], *(place[COND] for place in places)):
            keep_only(frames, kept)
        keep_only(state["frames_already_tracked"], {t})
        for place in places:
            bank = place.get(KEY)
            if bank is not None:
                bank.let_go_corrections(most)


class Layout:
    """One state's frames in batches, and in parts where they were split.

    Args:
        state: The host's inference state.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.batches: MutableMapping[int, Entry] = state["output_dict"][TRACKED]
        self.places: Mapping[int, MutableMapping[str, Any]] = state["output_dict_per_obj"]

    def split(self, but: set[int]) -> None:
        """Split the tracked frames that are still in batches, corrected ones left out."""
        for t in [t for t in self.batches if t not in but]:
            del self.batches[t]
            for place in self.places.values():
                entry = place[TRACKED].get(t)
                if entry is not None and len(self.places) > 1:
                    entry.update(copied(entry))

    def join(self) -> None:
        """Put the frames together that all objects still hold; where some let the memory go, with zero tokens."""
        tracked = [place[TRACKED] for _, place in sorted(self.places.items())]
        shared = set.intersection(*map(set, tracked)) if tracked else set()
        for t in sorted(shared - self.batches.keys()):
            entries: list[Entry] = [frames[t] for frames in tracked]
            whole = all(map(has_memory, entries))
            self.batches[t] = batch = joined(entries, whole)
            for entry, part in zip(entries, split(batch, len(entries), own=False), strict=True):
                entry.update(part if whole else {key: part[key] for key in PARTS[1:]})


def joined(entries: Sequence[Entry], whole: bool) -> Entry:
    """Return the objects' entries as a batch, `whole` or with zero tokens."""
    batch: Entry = {key: _cat([entry[key] for entry in entries]) for key in PARTS[1:]}
    features = [entry["maskmem_features"] for entry in entries]
    if whole:
        batch["maskmem_features"] = _cat(features)
        batch["maskmem_pos_enc"] = [x.expand(len(entries), *x.shape[1:]) for x in entries[0]["maskmem_pos_enc"]]
    else:
        blank = features[0].new_empty((len(entries), features[0].shape[1], 0, features[0].shape[3]))
        batch["maskmem_features"], batch["maskmem_pos_enc"] = blank, [blank]
    return batch


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the objects' tensors as a batch; on the CPU where some were moved there."""
    if len({x.device for x in tensors}) > 1:
        return torch.cat([x.cpu() for x in tensors])
    return torch.cat(list(tensors))
