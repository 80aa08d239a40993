"""The patch for facebookresearch SAM 2, one object at a time (PyPI `sam2` 1.1.0, GitHub main since 12/2024).

Every wrapper is an attribute of the instance; undoing restores what was there before. Line of work in a frame:
`_run_single_frame_inference` (write) -> `_prepare_memory_conditioned_features` (read) -> write returns.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.bank import Entry, MemoryBank
from sam2_keyframe.methods import KeyframeMemory
from sam2_keyframe.patches.view import memory_view
from sam2_keyframe.patches.wrapping import Wrapping, method_signature
from sam2_keyframe.stats import has_memory, pointer_tokens
from sam2_keyframe.types import FrameMemo, Moment, TrackedFrame

KEY = "_keyframe"
"""Where a bank lies in an object's `output_dict`, and the shared frame in the inference state."""

SCORING_SIZE = 256

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
        attended: Frames whose spatial memory was attended to.
        tokens: Keys that memory attention read.
    """

    encoded: Mapping[str, Any] | None = None
    candidates: tuple[Tensor, Tensor] | None = None
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
        self._supply_clearing()
        if self.method.observes:
            self._wrapping.wrap("_run_memory_encoder", self._encode_prompt)
            self._wrapping.wrap("track_step", self._encode)
            hook = self.predictor.sam_mask_decoder.register_forward_hook(self._decoded)
            self._wrapping.on_undo(hook.remove)

    def undo(self) -> None:
        """Restore what was there before, and hand SAM 2 back what it can read by itself."""
        self._wrapping.undo()
        for bank in self.banks:
            bank.release(self.predictor.device)

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
                bank.prompted(frame_idx, entry, self._adopted(state, frame_idx, entry), cond=True)
        return bank

    def _adopted(self, state: Mapping[str, Any], frame_idx: int, entry: Entry) -> TrackedFrame | None:
        """Return a prompted frame that was encoded before the predictor was wrapped, if its pixels are still there."""
        try:
            image = state["images"][frame_idx]
        except (KeyError, IndexError):
            return None
        memo = FrameMemo(functools.partial(self._scoring_image, image.to(self.predictor.device).float()[None]))
        return self._prompt_frame(frame_idx, entry, memo, None)

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
        memories, pointers = self._bank(None, output_dict).memories(cond, moment)
        view, anchors = memory_view(memories, pointers, cond, non_cond, moment, self.predictor.maskmem_tpos_enc)
        self._note(cond, memories, pointers, moment, call["feat_sizes"][-1])
        with self._anchors_allowed(anchors, call["frame_idx"], view):
            return original(**{**call, "output_dict": view})

    def _note(self, cond: Any, memories: Any, pointers: Any, moment: Moment, size: tuple[int, int]) -> None:
        """Record what is attended to: spatial and pointer tokens, as SAM 2 will concatenate them."""
        model, step = self.predictor, self._step
        if step is None:
            return
        shown = _closest(moment.frame_idx, cond, model.max_cond_frames_in_attn)
        frames = sorted([*shown, *(memory.frame_idx for memory in memories)])
        step.attended = tuple(frames)
        step.tokens = len(frames) * size[0] * size[1]
        if model.use_obj_ptrs_in_encoder and cond:
            past = [t for t in shown if moment.distance(t) >= 0 or not model.only_obj_ptrs_in_the_past_for_eval]
            step.tokens += (len(pointers) + len(past)) * pointer_tokens(next(iter(cond.values())))

    @contextmanager
    def _anchors_allowed(self, anchors: int, frame_idx: int, view: dict[str, Any]) -> Iterator[None]:
        """Let SAM 2 read memories that are shown among the conditioning frames, beside all prompts it would read."""
        model = self.predictor
        cap, past_only = model.max_cond_frames_in_attn, model.only_obj_ptrs_in_the_past_for_eval
        if not anchors:
            yield
            return
        shown = list(view["cond_frame_outputs"].items())
        prompts = dict(shown[:-anchors])
        kept = _closest(frame_idx, prompts, cap)
        for t, entry in prompts.items():
            if t not in kept:
                view["non_cond_frame_outputs"].setdefault(t, entry)
        view["cond_frame_outputs"] = {**{t: prompts[t] for t in kept}, **dict(shown[-anchors:])}
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
        step = self._step = Step()
        try:
            entry, masks = original(**call)
        finally:
            self._step = None
        bank.observe(entry, self._tracked(state, frame_idx, entry, step, masks), moment, cond)
        bank.trim(moment.then())
        bank.account(cond, moment, step.attended, step.tokens, 1000 * (time.perf_counter() - start))
        return entry, masks

    def _encode(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a frame's output before SAM 2 moves it to where it stores it."""
        output = original(**call)
        if self._step is not None:
            self._step.encoded = output
        return output

    def _decoded(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
        """Take note of the decoder's candidates; SAM 2 throws their predicted IoUs away."""
        if self._step is not None:
            masks, ious = output[0], output[1]
            if hasattr(self.predictor.sam_mask_decoder.forward, "_torchdynamo_orig_callable"):
                masks, ious = masks.clone(), ious.clone()  # a compiled decoder overwrites its output on the next call
            self._step.candidates = masks, ious

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
                    frame = self._prompt_frame(frame_idx, entry, *self._prompt_memos.get(frame_idx, (None, None)))
                    bank = self._bank(state, output_dict)
                    bank.prompted(frame_idx, entry, frame, cond=key == "cond_frame_outputs")
            self._prompt_memos.clear()

    def _encode_prompt(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a prompted frame's pixels and features while SAM 2 has them at hand."""
        result = original(**call)
        frame_idx, state = call["frame_idx"], call["inference_state"]
        if frame_idx not in self._prompt_memos:
            self._prompt_memos[frame_idx] = self._shared(state, frame_idx)
        return result

    def _clear_prompts(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Follow SAM 2 when it makes a prompted frame an ordinary one."""
        state, frame_idx = call["inference_state"], call["frame_idx"]
        output_dict = state["output_dict_per_obj"].get(state["obj_id_to_idx"].get(call["obj_id"]), {})
        was_prompt = frame_idx in output_dict.get("cond_frame_outputs", {})
        result = original(**call)
        bank, entry = output_dict.get(KEY), output_dict.get("non_cond_frame_outputs", {}).get(frame_idx)
        if was_prompt and isinstance(bank, MemoryBank) and entry is not None and has_memory(entry):
            bank.prompted(frame_idx, entry, None, cond=False)
        return result

    # -- frames -------------------------------------------------------------------------------------------------

    def _shared(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[FrameMemo, Tensor]:
        """Return what the scorers of all objects share on a frame, and its image features."""
        image, backbone = state["cached_features"][frame_idx]
        known = state.get(KEY)
        if known is None or known[0] is not image:
            state[KEY] = known = image, FrameMemo(functools.partial(self._scoring_image, image))
        return known[1], backbone["backbone_fpn"][-1]

    @staticmethod
    def _scoring_image(image: Tensor) -> Tensor:
        """Return (3, h, w) RGB in [0, 1], at most 256 on a side, from (1, 3, S, S) as SAM 2 normalises it."""
        mean, std = _normalisation(image.device)
        if image.shape[-1] > SCORING_SIZE:
            image = F.interpolate(image, size=(SCORING_SIZE, SCORING_SIZE), mode="area")
        return (image[0].float() * std + mean).clamp(0, 1)

    def _tracked(
        self, state: MutableMapping[str, Any], frame_idx: int, entry: Entry, step: Step, masks: Tensor
    ) -> TrackedFrame | None:
        if step.encoded is None:
            return None
        memo, image_embed = self._shared(state, frame_idx)
        candidates, ious = step.candidates or (masks, masks.new_ones(1, 1))
        features = step.encoded["maskmem_features"]
        pointer, score = entry["obj_ptr"], entry["object_score_logits"]
        return TrackedFrame(frame_idx, image_embed, features, masks, candidates, ious, pointer, score, memo)

    def _prompt_frame(
        self, frame_idx: int, entry: Entry, memo: FrameMemo | None, image_embed: Tensor | None
    ) -> TrackedFrame | None:
        if memo is None:
            return None
        device = self.predictor.device
        masks, features = entry["pred_masks"].to(device), entry["maskmem_features"].to(device)
        pointer, score = entry["obj_ptr"], entry["object_score_logits"]
        return TrackedFrame(
            frame_idx, image_embed, features, masks, masks, masks.new_ones(1, 1), pointer, score, memo
        )


@functools.cache
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of SAM 2's input, made once: making them waits for the device."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)


def _closest(frame_idx: int, cond: Mapping[int, Any], cap: int) -> list[int]:
    """Return the conditioning frames that SAM 2 attends to: all, or at most `cap`, the closest.

    Source: the rule of sam2/modeling/sam2_utils.py, select_closest_cond_frames: the nearest frame before, the nearest
    at or after, then the closest of the rest.
    """
    if cap == -1 or len(cond) <= cap:
        return list(cond)
    before = max((t for t in cond if t < frame_idx), default=None)
    after = min((t for t in cond if t >= frame_idx), default=None)
    chosen = [t for t in (before, after) if t is not None]
    rest = sorted((t for t in cond if t not in chosen), key=lambda t: abs(t - frame_idx))
    return chosen + rest[: cap - len(chosen)]
