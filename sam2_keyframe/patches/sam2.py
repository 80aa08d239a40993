"""The patch for facebookresearch SAM 2, one object at a time (PyPI `sam2` 1.1.0, GitHub main since 12/2024).

Every wrapper is an attribute of the instance; undoing restores what was there before. Line of work in a frame:
`_run_single_frame_inference` (write) -> `_prepare_memory_conditioned_features` (read) -> write returns.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import Whole, check_grid
from sam2_keyframe.bank.bank import MemoryBank
from sam2_keyframe.bank.statistics import has_memory, pointer_tokens
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.attention import AttentionHook, read_layout
from sam2_keyframe.patches.frames import KEY, Frames
from sam2_keyframe.patches.view import (
    allowed_prompts,
    beside_prompts,
    closest,
    come_upon,
    frames_attended,
    memory_view,
    pointers_read,
)
from sam2_keyframe.patches.wrapping import Wrapping, method_signature
from sam2_keyframe.rules.motion import Track
from sam2_keyframe.types import FrameMemo, Memory, Moment

REQUIRED = {
    "_prepare_memory_conditioned_features": {"frame_idx", "is_init_cond_frame", "output_dict", "track_in_reverse"},
    "_run_single_frame_inference": {"inference_state", "output_dict", "frame_idx", "reverse", "run_mem_encoder"},
    "_run_memory_encoder": {"inference_state", "frame_idx"},
    "track_step": {"frame_idx", "output_dict"},
    "propagate_in_video_preflight": {"inference_state"},
    "clear_all_prompts_in_frame": {"inference_state", "frame_idx", "obj_id"},
    "_obj_id_to_idx": {"inference_state", "obj_id"},
}


@dataclass(slots=True)
class Step:
    """What the wrappers learn about the frame being tracked; there is none while SAM 2 infers a click.

    Attributes:
        encoded: The frame's output as the model returned it, on its device.
        candidates: The decoder's candidate masks and predicted IoUs.
        track: The object's motion, where the method chooses masks by it.
        measured: Scores that are known before the frame is measured.
        attended: Frames whose spatial memory was attended to.
        tokens: Keys that memory attention read.
    """

    encoded: Mapping[str, Any] | None = None
    candidates: tuple[Tensor, Tensor] | None = None
    track: Track | None = None
    measured: dict[str, Tensor] = field(default_factory=dict)
    attended: tuple[int, ...] = ()
    tokens: int = 0


class Sam2Patch:
    """Runs one method on one predictor, by wrapping its methods on the instance.

    Args:
        predictor: The predictor; unchanged until `apply`.
        method: The method.
    """

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        self.predictor = predictor
        self.method = method
        self.banks: weakref.WeakSet[MemoryBank] = weakref.WeakSet()
        self._wrapping = Wrapping(predictor)
        self._token = object()  # a bank that held the patch would keep the model alive
        self._step: Step | None = None
        self._prompt_memos: dict[int, tuple[FrameMemo, Tensor]] = {}
        self._frames = Frames(predictor)
        check_grid(method.attend, (predictor.sam_image_embedding_size,) * 2)
        self._attention = None if method.attend == Whole() else AttentionHook(predictor)

    @staticmethod
    def refuses(predictor: object) -> str | None:
        """Return why this patch does not know the predictor, or None when it does."""
        if not any(cls.__name__.endswith("VideoPredictor") for cls in type(predictor).__mro__):
            return "it is not a SAM 2 video predictor"
        if hasattr(predictor, "samurai_mode"):
            return "SAMURAI's fork has a memory rule of its own; wrap an unmodified predictor with method='samurai'"
        if hasattr(predictor, "_add_output_per_object"):
            return "it is the legacy predictor, which tracks all objects in one batch"
        for name, wanted in REQUIRED.items():
            parameters = set(method_signature(predictor, name).parameters) if hasattr(type(predictor), name) else set()
            if not wanted <= parameters:
                return f"its method {name}() does not take {', '.join(sorted(wanted))}"
            if "mem_pick_index" in parameters:
                return "SAM2Long's fork has a memory rule of its own"
        return None

    # -- doing and undoing --------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Put the wrappers in place."""
        self._wrapping.wrap("_prepare_memory_conditioned_features", self._read)
        self._wrapping.wrap("_run_single_frame_inference", self._write)
        self._wrapping.wrap("propagate_in_video_preflight", self._preflight)
        self._wrapping.wrap("clear_all_prompts_in_frame", self._clear_prompts)
        self._wrapping.put("__deepcopy__", _refuse_copying)
        self._supply_clearing()
        if self.method.observes:
            self._wrapping.wrap("_run_memory_encoder", self._encode_prompt)
            self._wrapping.wrap("track_step", self._encode)
            hook = self.predictor.sam_mask_decoder.register_forward_hook(self._decoded)
            self._wrapping.on_undo(hook.remove)
        if self._attention is not None:
            self._attention.install()
            self._wrapping.on_undo(self._attention.uninstall)

    def undo(self) -> None:
        """Restore what was there before, and hand SAM 2 back what it can read by itself."""
        self._wrapping.undo()
        for bank in self.banks:
            bank.store.release(self.predictor.device)

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

    # -- banks --------------------------------------------------------------------------------------------------

    def _bank(self, state: MutableMapping[str, Any] | None, output_dict: MutableMapping[str, Any]) -> MemoryBank:
        bank, non_cond = output_dict.get(KEY), output_dict["non_cond_frame_outputs"]
        if isinstance(bank, MemoryBank) and bank.owner is self._token and bank.non_cond is non_cond:
            return bank
        bank = MemoryBank(self.method, self._token, non_cond)
        output_dict[KEY] = bank
        self.banks.add(bank)
        if state is not None and self.method.observes:
            for frame_idx, entry in output_dict["cond_frame_outputs"].items():
                bank.prompted(frame_idx, entry, self._frames.adopted(state, frame_idx, entry), cond=True)
        return bank

    def _moment(self, frame_idx: int, reverse: bool, num_frames: int) -> Moment:
        model = self.predictor
        pointers = min(num_frames, model.max_obj_ptrs_in_encoder) - 1
        return Moment(frame_idx, reverse, model.num_maskmem - 1, pointers, model.memory_temporal_stride_for_eval)

    # -- wrappers -----------------------------------------------------------------------------------------------

    def _read(self, original: Callable[..., Tensor], call: MutableMapping[str, Any]) -> Tensor:
        """Show SAM 2 the bank's memories instead of its own."""
        if call["is_init_cond_frame"] or self.predictor.num_maskmem == 0:
            return original(**call)
        output_dict = call["output_dict"]
        cond, non_cond = output_dict["cond_frame_outputs"], output_dict["non_cond_frame_outputs"]
        moment = self._moment(call["frame_idx"], call["track_in_reverse"], call["num_frames"])
        prompts = allowed_prompts(cond, self.method.conditioning, moment)
        read = closest(moment.frame_idx, prompts, self.predictor.max_cond_frames_in_attn)
        embed = None
        if self.method.select.on_device:
            embed = call["current_vision_feats"][-1].permute(1, 2, 0).unflatten(2, call["feat_sizes"][-1])
        bank = self._bank(None, output_dict)
        memories, pointers = bank.memories(cond, moment, len(read), embed, tracking=self._step is not None)
        view, anchors = memory_view(memories, pointers, prompts, non_cond, moment, self.predictor.maskmem_tpos_enc)
        others, pointing = come_upon(prompts, read, view["non_cond_frame_outputs"], moment)
        height, width = call["feat_sizes"][-1]
        tokens = (len(read) + len(others) + len(memories)) * height * width
        with self._anchors_allowed(anchors, read, view):
            shown = {**call, "output_dict": view}
            if self._attention is None:
                result = original(**shown)
            else:
                selected = list(view["cond_frame_outputs"]) if anchors else read
                attend, grid, device = self.method.attend, (height, width), self.predictor.device
                layout = read_layout(attend, view, selected, memories, moment, grid, bank.store.plans, device)
                tokens = layout.tokens
                with self._attention.layout(layout):
                    result = original(**shown)
        if self._step is not None:
            self._step.attended = frames_attended([*read, *others], memories)
            self._step.tokens = tokens + self._pointer_tokens(cond, [*read, *pointing], memories, pointers, moment)
        return result

    def _pointer_tokens(self, cond: Any, read: list[int], memories: list[Memory], pointers: Any, moment: Moment) -> int:
        """Return the tokens of pointers that are attended to, as SAM 2 concatenates them."""
        model = self.predictor
        if not model.use_obj_ptrs_in_encoder or not cond:
            return 0
        count = pointers_read(read, memories, pointers, moment, model.only_obj_ptrs_in_the_past_for_eval)
        return count * pointer_tokens(next(iter(cond.values())))

    @contextmanager
    def _anchors_allowed(self, anchors: int, read: list[int], view: dict[str, Any]) -> Iterator[None]:
        """Let SAM 2 read memories that are shown among the conditioning frames, beside all prompts it would read."""
        model = self.predictor
        cap, past_only = model.max_cond_frames_in_attn, model.only_obj_ptrs_in_the_past_for_eval
        if not anchors:
            yield
            return
        beside_prompts(view, anchors, read)
        model.max_cond_frames_in_attn, model.only_obj_ptrs_in_the_past_for_eval = -1, True
        try:
            yield
        finally:
            model.max_cond_frames_in_attn, model.only_obj_ptrs_in_the_past_for_eval = cap, past_only

    def _write(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Track a frame, observe it, and let go what the next one does not need."""
        state, output_dict, frame_idx = call["inference_state"], call["output_dict"], call["frame_idx"]
        bank = self._bank(state, output_dict)
        if not call["run_mem_encoder"]:
            return original(**call)
        cond = output_dict["cond_frame_outputs"]
        start = time.perf_counter()
        moment = self._moment(frame_idx, call["reverse"], state["num_frames"])
        bank.begin(moment)
        corrected = bank.pass_over(frame_idx, moment)
        if corrected is not None:
            return corrected, corrected["pred_masks"].to(self.predictor.device, non_blocking=True)
        step = self._step = Step(track=bank.track)
        try:
            entry, masks = original(**call)
        finally:
            self._step = None
        frame = None
        if step.encoded is not None:
            candidates = step.candidates or (masks, masks.new_ones(1, 1))
            frame = self._frames.tracked(state, frame_idx, entry, step.encoded, masks, *candidates)
            frame.measured.update(step.measured)
        bank.observe(entry, frame, moment, cond)
        bank.trim(moment.then())
        alone, taken = closest(frame_idx, cond, self.predictor.max_cond_frames_in_attn), time.perf_counter() - start
        bank.account(cond, alone, moment, step.attended, step.tokens, 1000 * taken)
        return entry, masks

    def _encode(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a frame's output before SAM 2 moves it to where it stores it."""
        output = original(**call)
        if self._step is not None:
            self._step.encoded = output
        return output

    def _decoded(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> Any:
        """Take note of the decoder's candidates; SAM 2 throws their predicted IoUs away. Choose another by motion."""
        step = self._step
        if step is None:
            return None
        masks, ious, tokens, score = output
        if hasattr(self.predictor.sam_mask_decoder.forward, "_torchdynamo_orig_callable"):
            masks, ious = masks.clone(), ious.clone()  # a compiled decoder overwrites its output on the next call
        step.candidates = masks, ious
        if step.track is None:
            return None
        if ious.shape[1] == 1:
            step.measured["kalman_overlap"] = ious.new_full((), float("nan"))
            return None
        visible = torch.where(score[..., None, None] > 0, masks, -1.0)
        ranking, step.measured["kalman_overlap"] = step.track.choose(visible, ious)
        step.measured["predicted_iou"] = ious[0].gather(0, ranking[0].argmax()[None])[0]
        # SAM 2 takes the mask and the pointer of the highest; in float32 no two are rounded to one.
        return masks, ranking, tokens, score

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
        try:
            return original(**call)
        finally:  # SAM 2 has taken in some prompts even where it raises on another
            for obj_idx, key, frame_idx in new:
                output_dict = state["output_dict_per_obj"][obj_idx]
                entry = output_dict[key].get(frame_idx)
                if entry is not None and entry["maskmem_features"] is not None:
                    frame = self._frames.prompted(frame_idx, entry, self._prompt_memos.get(frame_idx))
                    bank = self._bank(state, output_dict)
                    bank.prompted(frame_idx, entry, frame, cond=key == "cond_frame_outputs")
            self._prompt_memos.clear()

    def _encode_prompt(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a prompted frame's pixels and features while SAM 2 has them at hand."""
        result = original(**call)
        frame_idx, state = call["frame_idx"], call["inference_state"]
        if frame_idx not in self._prompt_memos:
            self._prompt_memos[frame_idx] = self._frames.prompt(state, frame_idx)
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


def _refuse_copying(memo: Any) -> Any:
    raise RuntimeError(
        "a wrapped predictor cannot be copied, as its copy would run the original: copy it after sam2_keyframe.unwrap()"
    )
