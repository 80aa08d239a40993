"""The patch for facebookresearch SAM 2, one object at a time (PyPI `sam2` 1.1.0, GitHub main since 12/2024).

Every wrapper is an attribute of the instance; undoing restores what was there before. Line of work in a frame:
`_run_single_frame_inference` (write) -> `_prepare_memory_conditioned_features` (read) -> write returns.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import Whole, check_grid
from sam2_keyframe.bank.bank import KEY, NO_OBJECT, Banks, MemoryBank, Tracking
from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.bank.statistics import has_memory
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.attention import AttentionHook, compiles
from sam2_keyframe.patches.driving import Driver
from sam2_keyframe.patches.frames import Frames
from sam2_keyframe.patches.host import ObjectFrames, first_of_video
from sam2_keyframe.patches.paths import Paths
from sam2_keyframe.patches.together import AHEAD, BY_OBJECT, Read, Tracked, attend_together, split
from sam2_keyframe.patches.verifying import ASIDE, FEATURES, Verifier
from sam2_keyframe.patches.view import in_dtype, memory_view
from sam2_keyframe.patches.wrapping import (
    TRACKED_BY,
    TrackedBy,
    Wrapping,
    during,
    method_signature,
    missing,
    refuse_copying,
)
from sam2_keyframe.types import FrameMemo, TrackedFrame

REQUIRED = {
    "_prepare_memory_conditioned_features": {"frame_idx", "is_init_cond_frame", "output_dict", "track_in_reverse"},
    "_run_single_frame_inference": {"inference_state", "output_dict", "frame_idx", "reverse", "run_mem_encoder"},
    "_run_memory_encoder": {"inference_state", "frame_idx"},
    "track_step": {"frame_idx", "output_dict"},
    "propagate_in_video_preflight": {"inference_state"},
    "clear_all_prompts_in_frame": {"inference_state", "frame_idx", "obj_id"},
    "propagate_in_video": {"inference_state", "start_frame_idx", "max_frame_num_to_track", "reverse"},
    "add_new_mask": {"inference_state", "mask"},
    "_encode_new_memory": {"is_mask_from_pts"},
}


TRACKING: ContextVar[Sequence[Tracking] | None] = ContextVar("objects that are tracked in this thread", default=None)
"""Set while `_run_single_frame_inference` tracks a frame, in the order of the batch; not while SAM 2 infers a click."""

PROMPTED: ContextVar[dict[int, tuple[FrameMemo, Tensor]] | None] = ContextVar("frames prompted", default=None)
"""Set while `propagate_in_video_preflight` encodes prompts: pixels and features of each prompted frame."""


class Sam2:
    """Runs one method on one predictor, by wrapping its methods on the instance.

    Args:
        predictor: The predictor; unchanged until `install`.
        method: The method.
    """

    AGAIN: ClassVar[bool] = True
    NAME: ClassVar[str] = (
        "facebookresearch SAM 2's SAM2VideoPredictor of December 2024 or later (and its VOS variant), EfficientTAM's"
    )

    TESTED: ClassVar[tuple[str, ...]] = ("1.1.0",)

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        self.predictor = predictor
        self.model: Any = self.model_of(predictor)
        self.method = method
        self.banks = Banks(method)
        self._wrapping = Wrapping(predictor)
        self._tracked_by = TrackedBy(predictor)
        self._frames = Frames(self.model)
        self._verifier = None if method.verify is None else Verifier(predictor, method.verify)
        self._paths = None if method.tree is None else Paths(predictor, self._frames, method.tree, TRACKING)
        for scheme in (method.attend, method.queries):
            check_grid(scheme, (self.model.sam_image_embedding_size,) * 2)
        self._attention = None if method.attend == method.queries == Whole() else AttentionHook(self.model)
        self._together = False

    def batch_objects(self) -> None:
        """Track the objects of a frame in one batch from now on.

        Raises:
            RuntimeError: The predictor is compiled, for one object at a time.
        """
        if compiles(self.predictor):
            raise RuntimeError(
                f"{type(self.predictor).__name__} compiles its parts for one object at a time: leave out "
                "batch_objects, or build the predictor with vos_optimized=False"
            )
        self._together = True

    @staticmethod
    def knows(predictor: object) -> bool:
        """Return whether some class of the predictor calls itself a video predictor."""
        return any(cls.__name__.endswith(("VideoPredictor", "CameraPredictor")) for cls in type(predictor).__mro__)

    @staticmethod
    def refuses(predictor: object) -> str | None:
        """Return why this host does not take the predictor, or None when it does."""
        if not Sam2.knows(predictor):
            return "it is not a SAM 2 video predictor"
        if hasattr(predictor, "_add_output_per_object"):
            return "it is the legacy predictor, which tracks all objects in one batch"
        return own_rule(predictor) or missing(predictor, REQUIRED)

    @staticmethod
    def model_of(predictor: Any) -> Any:
        """Return the network of a predictor: here it is one itself."""
        return predictor

    # -- doing and undoing --------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put the wrappers in place."""
        self._wrapping.wrap("_prepare_memory_conditioned_features", self._read)
        self._wrapping.wrap("_run_single_frame_inference", self._write)
        self._wrapping.wrap("propagate_in_video_preflight", self._preflight)
        self._wrapping.wrap("clear_all_prompts_in_frame", self._clear_prompts)
        self._wrapping.wrap("propagate_in_video", self._propagate)
        self._wrapping.wrap("init_state", self._open)
        self._wrapping.put("__getstate__", refuse_copying)  # what copy, deepcopy, pickle and torch.save ask for
        if self.method.store != "all":
            self._wrapping.wrap("add_new_mask", self._add_mask)
        self._supply_clearing()
        if self.method.observes:
            self.look(self._wrapping)
        if self.method.as_prompted:
            self._wrapping.wrap("_encode_new_memory", self._encode_as_prompted)
        if self._attention is not None:
            self._attention.install()
            self._wrapping.on_undo(self._attention.uninstall)

    def look(self, wrapping: Wrapping) -> None:
        """Put those wrappers in place that take note of what scorers look at."""
        wrapping.wrap("_run_memory_encoder", self._encode_prompt)
        wrapping.wrap("track_step", self._encode)
        wrapping.on_undo(self.model.sam_mask_decoder.register_forward_hook(self._decoded).remove)

    def adopted(self, session: Any, frame_idx: int, entry: Entry) -> TrackedFrame | None:
        """Return a frame that was prompted earlier as scorers see it, if its pixels are still there."""
        return self._frames.adopted(session, frame_idx, entry)

    def uninstall(self) -> None:
        """Restore what was there before, and hand SAM 2 back what it can read by itself."""
        self._wrapping.undo()
        self.banks.release(self.model.device)
        if self._verifier is not None:
            self._verifier.release()

    def _supply_clearing(self) -> None:
        """Supply the method that `clear_non_cond_mem_around_input` calls and SAM 2 does not have (its issue 571)."""
        name, model = "_clear_obj_non_cond_mem_around_input", self.predictor
        if hasattr(model, name):
            return

        def clear(state: Mapping[str, Any], frame_idx: int, obj_idx: int) -> None:
            around = model.num_maskmem * model.memory_temporal_stride_for_eval
            tracked = state["output_dict_per_obj"][obj_idx]["non_cond_frame_outputs"]
            for near in range(frame_idx - around, frame_idx + around + 1):
                tracked.pop(near, None)

        self._wrapping.put(name, clear)

    # -- what the model is, and where its state lies ---------------------------------------------------------------

    def facts(self) -> Geometry:
        """Return what the model stores and how far it reads, as it is set now."""
        return geometry_of(self.model)

    @staticmethod
    def objects(session: Any) -> dict[Any, ObjectFrames] | None:
        """Return each object's frames by object id; None where the state has another layout."""
        if not isinstance(session, Mapping) or not {"obj_id_to_idx", "output_dict_per_obj"} <= session.keys():
            return None
        found = {}
        for obj_id, obj_idx in session["obj_id_to_idx"].items():
            place = session["output_dict_per_obj"][obj_idx]
            found[obj_id] = ObjectFrames(place["cond_frame_outputs"], place["non_cond_frame_outputs"], place)
        return found

    @staticmethod
    def forget(session: Any) -> None:
        """Remove banks, statistics and the shared frame from an inference state."""
        session.pop(KEY, None)
        session.pop(TRACKED_BY, None)
        session.pop(FEATURES, None)
        for output_dict in session["output_dict_per_obj"].values():
            bank = output_dict.pop(KEY, None)
            if bank is not None:
                bank.store.release(session["device"])

    @staticmethod
    def driver(predictor: Any) -> Driver:
        """Return what drives the predictor frame by frame."""
        return Driver(predictor)

    @staticmethod
    def tracked_by(session: Any) -> Any:
        """Return the predictor that tracks an inference state, wrapped; None where that is not known."""
        known = session.get(TRACKED_BY)
        return known.predictor() if isinstance(known, TrackedBy) else None

    def _bank(self, state: MutableMapping[str, Any], output_dict: MutableMapping[str, Any]) -> MemoryBank:
        state[TRACKED_BY] = self._tracked_by

        def adopt(bank: MemoryBank) -> None:
            if self.banks.observe:
                for frame_idx, entry in output_dict["cond_frame_outputs"].items():
                    bank.prompted(frame_idx, entry, self.adopted(state, frame_idx, entry), cond=True)

        return self.banks.get(output_dict, output_dict["non_cond_frame_outputs"], adopt)

    # -- wrappers -----------------------------------------------------------------------------------------------

    def _open(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Let a new state know who will track it."""
        state = original(**call)
        state[TRACKED_BY] = self._tracked_by
        return state

    def _read(self, original: Callable[..., Tensor], call: MutableMapping[str, Any]) -> Tensor:
        """Show SAM 2 the bank's memories instead of its own."""
        if call["is_init_cond_frame"] or self.model.num_maskmem == 0 or ASIDE.get():
            return original(**call)
        batch, reads = TRACKING.get(), []
        if batch is None:
            return self._read_of(original, call, None).alone(self._attention)
        for i, tracking in enumerate(batch):
            one = {name: [x[:, i : i + 1] for x in call[name]] for name in BY_OBJECT}
            frames = {"cond_frame_outputs": tracking.cond, "non_cond_frame_outputs": tracking.bank.non_cond}
            reads.append(self._read_of(original, {**call, **one, "output_dict": frames}, tracking))
        if self._together and len(batch) > 1:
            fused = attend_together(reads, self.model.memory_attention, self._attention)
            return fused.reshape(*fused.shape[:2], *call["feat_sizes"][-1])
        alone = [read.alone(self._attention) for read in reads]
        return torch.cat(alone) if len(alone) > 1 else alone[0]

    def _memory_grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """Return (h, w) of a spatial memory."""
        grid: tuple[int, int] = call["feat_sizes"][-1]
        return grid

    def _read_of(
        self, original: Callable[..., Tensor], call: MutableMapping[str, Any], tracking: Tracking | None
    ) -> Read:
        """Return one object's read, of the memories that its bank chooses; `tracking` is None for a click."""
        output_dict, device, grid = call["output_dict"], self.model.device, self._memory_grid(call)
        embed = None
        if self.method.keyframes.read.on_device:
            embed = call["current_vision_feats"][-1].permute(1, 2, 0).unflatten(2, call["feat_sizes"][-1])
        if tracking is not None:
            reading = tracking.plan(grid, device, embed)
        else:
            geometry, cond = self.facts(), output_dict["cond_frame_outputs"]
            moment = geometry.moment(call["frame_idx"], call["track_in_reverse"], call["num_frames"])
            bank = self.banks.get(output_dict, output_dict["non_cond_frame_outputs"])
            reading = bank.plan(cond, moment, geometry, grid, device, embed, tracking=False)
        view = memory_view(reading, output_dict["non_cond_frame_outputs"], self.model.maskmem_tpos_enc)
        if not reading.pointing and not torch.is_autocast_enabled(device.type):
            view = in_dtype(view, self.model.maskmem_tpos_enc.dtype)
        settings: dict[str, Any] = {}
        if reading.anchors:
            settings = {"max_cond_frames_in_attn": -1, "only_obj_ptrs_in_the_past_for_eval": True}
        return Read.of(original, {**call, "output_dict": view}, reading.layout, settings)

    def _write(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Track a frame, observe it, and let go what the next one does not need."""
        state, frames = call["inference_state"], call["output_dict"]
        self._bank(state, frames)
        if not call["run_mem_encoder"]:
            return original(**call)
        ahead, frame_idx = AHEAD.get(), call["frame_idx"]
        places = [frames]
        if ahead is None:
            ahead = {}
        else:  # SAM 2 goes on to the others, but for those prompted on this frame, or in the loop and not yet encoded
            places += [
                place
                for place in state["output_dict_per_obj"].values()
                if place is not frames and place["cond_frame_outputs"] and frame_idx not in place["cond_frame_outputs"]
            ]
        if id(frames) not in ahead:
            ahead.update(self._track(original, call, places))
        tracked = ahead.pop(id(frames))
        entry, masks, tracking = tracked.entry, tracked.masks, tracked.tracking
        if tracking is None:
            return entry, masks
        frame, tracking.began = None, time.perf_counter() - tracked.seconds
        if self._verifier is not None:
            masks = self._verifier.check(original, call, tracking, entry, masks)
        if tracking.encoded is not None:
            candidates = tracking.candidates or (masks, masks.new_ones(1, 1))
            frame = self._frames.tracked(state, frame_idx, entry, tracking.encoded, masks, *candidates)
        tracking.finish(entry, frame)
        if self._paths is not None:
            self._paths.start(tracking.bank, frame_idx, entry["pred_masks"])
        return entry, masks

    def _track(
        self, original: Callable[..., Any], call: MutableMapping[str, Any], places: Sequence[MutableMapping[str, Any]]
    ) -> dict[int, Tracked]:
        """Track objects on a frame in one batch; return them by the `id` of their frames."""
        state, frame_idx, device = call["inference_state"], call["frame_idx"], self.model.device
        began, geometry = time.perf_counter(), self.facts()
        moment = geometry.moment(frame_idx, call["reverse"], state["num_frames"])
        found: dict[int, Tracked] = {}
        batch: dict[int, Tracking] = {}
        for place in places:
            bank, cond = self._bank(state, place), place["cond_frame_outputs"]
            known = bank.not_yet(cond, moment)
            if known is None:
                tracking = Tracking.begin(bank, cond, moment, geometry)
                known = bank.pass_over(frame_idx, moment)
            if known is None and self._paths is not None and bank.paths:
                found[id(place)] = Tracked(*self._paths.track(original, call, bank, moment, geometry))
            elif known is None:
                batch[id(place)] = tracking
            else:
                found[id(place)] = Tracked(known, known["pred_masks"].to(device, non_blocking=True))
        if not batch:
            return found
        with during(TRACKING, list(batch.values())):
            entry, masks = original(**{**call, "batch_size": len(batch)})
        parts = [entry] if len(batch) == 1 else split(entry, len(batch), own=self.method.store != "all")
        share = (time.perf_counter() - began) / len(batch)
        for i, (key, part) in enumerate(zip(batch, parts, strict=True)):
            found[key] = Tracked(part, masks[i : i + 1], batch[key], share)
        return found

    def _encode(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a frame's output before SAM 2 moves it to where it stores it."""
        output = original(**call)
        if output["maskmem_features"] is None:  # of several paths, memories are encoded of those that go on
            return output
        for i, tracking in enumerate(TRACKING.get() or ()):
            tracking.encoded = {"maskmem_features": output["maskmem_features"][i : i + 1]}
        return output

    def _encode_as_prompted(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Encode a tracked frame's memory a second time, as that of a prompted one: it may be shown as such."""
        batch = TRACKING.get()
        if batch is not None:
            features = original(**{**call, "is_mask_from_pts": True})[0]
            for i, tracking in enumerate(batch):
                tracking.as_prompted = features[i : i + 1].clone()
        return original(**call)

    def _decoded(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> Any:
        """Take note of the decoder's candidates; SAM 2 throws their predicted IoUs away. Choose another by motion."""
        batch = TRACKING.get()
        if batch is None:
            return None
        masks, ious, tokens, score = output
        if hasattr(self.model.sam_mask_decoder.forward, "_torchdynamo_orig_callable"):
            # A compiled decoder overwrites its output on the next call.
            masks, ious, tokens = masks.clone(), ious.clone(), tokens.clone()
        for i, tracking in enumerate(batch):
            tracking.tokens = tokens[i : i + 1]
        chosen = [
            tracking.choose(masks[i : i + 1], ious[i : i + 1], score[i : i + 1]) for i, tracking in enumerate(batch)
        ]
        if self.method.choice is None and self.method.confirm is None:
            return None
        return masks, torch.cat([ranking for ranking, _ in chosen]), tokens, torch.cat([judged for _, judged in chosen])

    def _propagate(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Show masks late where the method asks for that, each as the path has it that is the best by then."""
        lag = 0 if self.method.tree is None else self.method.tree.lag
        tracked, waiting = self._go_on(original, call), deque[int]()
        if not lag:
            yield from tracked
            return
        for t, _, _ in tracked:
            waiting.append(t)
            if len(waiting) > lag:
                yield self._shown(call["inference_state"], waiting.popleft())
        while waiting and call["inference_state"]["obj_ids"]:
            yield self._shown(call["inference_state"], waiting.popleft())

    def _shown(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[int, list[Any], Tensor]:
        """Return a past frame, the objects' ids and their masks at the video's size, as SAM 2 yields them."""
        found, side = [], self.facts().mask_side
        absent = torch.full((1, 1, side, side), NO_OBJECT, device=state["device"])
        for output_dict in state["output_dict_per_obj"].values():
            entry = output_dict["cond_frame_outputs"].get(frame_idx)
            entry = output_dict["non_cond_frame_outputs"].get(frame_idx) if entry is None else entry
            found.append(absent if entry is None else entry["pred_masks"].to(state["device"]))
        _, masks = self.predictor._get_orig_video_res_output(state, torch.cat(found))
        return frame_idx, state["obj_ids"], masks

    def _go_on(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Go on with the objects that there are when some are removed or added in the loop over the frames.

        SAM 2 fixes their number when it begins: after a removal it fails, and an object added is not tracked. Under
        `store="all"` only the failure is mended.
        """
        state, reverse, most = call["inference_state"], call["reverse"], call["max_frame_num_to_track"]
        end, repeated = None, False
        if call["start_frame_idx"] is None:
            call = {**call, "start_frame_idx": first_of_video(state["output_dict_per_obj"])}
        while True:
            known = list(state["obj_ids"])
            for t, obj_ids, masks in (tracking := self._frame_by_frame(original(**call))):
                if end is None:
                    most = state["num_frames"] if most is None else most
                    end = max(t - most, 0) if reverse else min(t + most, state["num_frames"] - 1)
                if not repeated:
                    yield t, obj_ids, masks
                repeated, now = False, state["obj_ids"]
                if now != known and (self.method.store != "all" or not set(known) <= set(now)):
                    break
            else:
                return
            tracking.close()
            if not state["obj_ids"] or t == end:
                return
            # In reverse SAM 2 does not begin at frame 0: it is reached from frame 1, which is tracked once more.
            repeated = reverse and t == 1
            start = t if repeated else t + (-1 if reverse else 1)
            call = {**call, "start_frame_idx": start, "max_frame_num_to_track": abs(end - start)}

    def _frame_by_frame(self, outputs: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """Yield what the host yields; under `batch_objects` its objects of one frame are tracked together."""
        with contextlib.closing(outputs):
            while True:
                together = self._together and not self.model.non_overlap_masks_for_mem_enc  # that mixes a batch's masks
                together &= self.method.again is None
                try:
                    with during(AHEAD, {} if together else None):
                        output = next(outputs)
                except StopIteration:
                    return
                yield output

    def _add_mask(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take a mask of whole numbers for one of zeros and others: SAM 2 takes 255 for 255 times as sure as 1."""
        mask = call["mask"]
        if isinstance(mask, Tensor) and not mask.is_floating_point():
            call = {**call, "mask": mask != 0}
        return original(**call)

    def _preflight(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take in prompts and corrections, which SAM 2 encodes here and nowhere else."""
        state = call["inference_state"]
        if "output_dict" in state:
            raise RuntimeError("this inference state has the legacy layout; make a new one with predictor.init_state()")
        new = [
            (obj_idx, key, frame_idx)
            for obj_idx, temporary in state["temp_output_dict_per_obj"].items()
            for key, entries in temporary.items()
            for frame_idx in entries
        ]
        for output_dict in state["output_dict_per_obj"].values():
            self._bank(state, output_dict)
        memos: dict[int, tuple[FrameMemo, Tensor]] = {}
        try:
            with during(PROMPTED, memos):
                return original(**call)
        finally:  # SAM 2 has taken in some prompts even where it raises on another
            for obj_idx, key, frame_idx in new:
                output_dict = state["output_dict_per_obj"][obj_idx]
                entry = output_dict[key].get(frame_idx)
                if entry is not None and entry["maskmem_features"] is not None:
                    frame = self._frames.prompted(frame_idx, entry, memos.get(frame_idx))
                    bank = self._bank(state, output_dict)
                    bank.prompted(frame_idx, entry, frame, cond=key == "cond_frame_outputs")

    def _encode_prompt(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a prompted frame's pixels and features while SAM 2 has them at hand."""
        result, memos, frame_idx = original(**call), PROMPTED.get(), call["frame_idx"]
        if memos is not None and frame_idx not in memos:
            memos[frame_idx] = self._frames.prompt(call["inference_state"], frame_idx)
        return result

    def _clear_prompts(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Follow SAM 2 when it makes a prompted or corrected frame an ordinary one."""
        state, frame_idx = call["inference_state"], call["frame_idx"]
        output_dict = state["output_dict_per_obj"].get(state["obj_id_to_idx"].get(call["obj_id"]), {})
        was_prompt = frame_idx in output_dict.get("cond_frame_outputs", {})
        result = original(**call)
        bank, entry = output_dict.get(KEY), output_dict.get("non_cond_frame_outputs", {}).get(frame_idx)
        if not isinstance(bank, MemoryBank) or entry is None or not has_memory(entry):
            return result
        if was_prompt or frame_idx in bank.selection.corrected:
            bank.taken_back(frame_idx, entry)
        return result


def own_rule(predictor: object) -> str | None:
    """Return which fork with a memory rule of its own a predictor is of, in a sentence; None where it is of none."""
    if any(cls.__name__.endswith("CameraPredictor") for cls in type(predictor).__mro__):
        return "a realtime fork's camera predictor has no inference state: stream with a SAM2VideoPredictor in a Stream"
    if hasattr(predictor, "samurai_mode"):
        return "SAMURAI's fork has a memory rule of its own; wrap an unmodified predictor with method='samurai'"
    for name in filter(functools.partial(hasattr, type(predictor)), REQUIRED):
        if "mem_pick_index" in method_signature(predictor, name).parameters:
            return "SAM2Long's fork has a memory rule of its own"
    return None


def geometry_of(model: Any) -> Geometry:
    """Return what a SAM 2 video predictor stores and how far it reads, as it is set now."""
    grid = model.image_size // model.backbone_stride
    return Geometry(
        model.image_size, model.mem_dim, grid, 4 * grid, model.hidden_dim, model.num_maskmem,
        model.max_obj_ptrs_in_encoder, model.memory_temporal_stride_for_eval, model.max_cond_frames_in_attn,
        model.only_obj_ptrs_in_the_past_for_eval, model.use_obj_ptrs_in_encoder,
    )  # fmt: skip
