"""The patch for ultralytics' SAM2VideoPredictor: the legacy layout, one frame at a time, with a network of its own.

What differs from facebookresearch's: the predictor is no network, but has one; the state may be left out of a call; a
frame's pixels are in the state and nowhere else; frames count from 1; memories are float16; tracked frames older than
`num_maskmem` leave by themselves, and pointers with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

from torch import Tensor

from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.batched import Batched
from sam2_keyframe.patches.driving import Driver
from sam2_keyframe.patches.driving_ultralytics import UltralyticsDriver
from sam2_keyframe.patches.frames import Frames, scoring_image
from sam2_keyframe.patches.host import ObjectFrames
from sam2_keyframe.patches.sam2 import Sam2
from sam2_keyframe.patches.wrapping import Wrapping, during, missing, refuse_copying
from sam2_keyframe.types import FrameMemo

PREDICTOR = {
    "_run_single_frame_inference": {"output_dict", "frame_idx", "reverse", "run_mem_encoder", "inference_state"},
    "propagate_in_video_preflight": {"inference_state"},
    "clear_all_points_in_frame": {"inference_state", "frame_idx", "obj_id"},
    "_add_output_per_object": {"frame_idx", "current_out", "storage_key", "inference_state"},
    "_prune_non_cond_memory": {"frame_idx", "inference_state"},
    "get_im_features": {"im", "batch"},
}
MODEL = {
    "_prepare_memory_conditioned_features": {"frame_idx", "is_init_cond_frame", "output_dict", "track_in_reverse"},
    "track_step": {"frame_idx", "output_dict"},
    "_encode_new_memory": {"is_mask_from_pts"},
}

FEATURES: ContextVar[list[Tensor] | None] = ContextVar("the frame's image features", default=None)
"""Set while a frame is tracked or its prompts are encoded: (1, C, H/16, W/16), the newest last."""


class _FramesInState(Frames):
    """Frames whose pixels are in the state, and whose features are in the call."""

    def shared(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[FrameMemo, Tensor]:
        """Return what the scorers of all objects share on the frame that the state shows, and its image features."""
        image, known, features = state["im"], state.get(KEY), FEATURES.get()
        if known is None or known[0] is not image:
            state[KEY] = known = image, FrameMemo(functools.partial(scoring_image, image))
        return known[1], features[-1] if features else image.new_zeros(())

    def adopted(self, state: Mapping[str, Any], frame_idx: int, entry: Mapping[str, Any]) -> None:
        """Return None: the pixels of a past frame are gone."""


class Ultralytics(Batched):
    """Runs one method on an ultralytics `SAM2VideoPredictor` whose network is loaded."""

    NAME: ClassVar[str] = "ultralytics' SAM2VideoPredictor"
    TESTED: ClassVar[tuple[str, ...]] = ("8.4.190",)

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        super().__init__(predictor, method)
        self._frames = _FramesInState(self.model)
        self._on_model = Wrapping(self.model)

    @staticmethod
    def knows(predictor: object) -> bool:
        """Return whether some class of the predictor is a video predictor of ultralytics'."""
        return any(
            cls.__name__ == "SAM2VideoPredictor" and cls.__module__.split(".")[0] == "ultralytics"
            for cls in type(predictor).__mro__
        )

    @staticmethod
    def refuses(predictor: object) -> str | None:
        """Return why this host does not take the predictor, or None when it does."""
        if type(predictor).__name__.startswith("SAM3"):
            return "SAM 3's predictor chooses its memories by a rule of its own"
        model = getattr(predictor, "model", None)
        if model is None:
            return "its network is not loaded yet: call predictor.setup_model() first"
        return missing(predictor, PREDICTOR) or missing(model, MODEL)

    @staticmethod
    def model_of(predictor: Any) -> Any:
        """Return the network of a predictor."""
        return predictor.model

    # -- doing and undoing --------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put the wrappers in place."""
        on_predictor, on_model = self._wrapping, self._on_model
        on_predictor.wrap("_run_single_frame_inference", self._write)
        on_predictor.wrap("propagate_in_video_preflight", self._preflight)
        on_predictor.wrap("clear_all_points_in_frame", self._clear_prompts)
        on_predictor.wrap("_add_output_per_object", self._store)
        on_predictor.put("__getstate__", refuse_copying)
        on_model.wrap("_prepare_memory_conditioned_features", self._read)
        if self.method.store != "all":
            on_predictor.wrap("_prune_non_cond_memory", _keep_all)  # the bank decides what leaves
        if self.method.observes:
            self.look(on_predictor)
        if self.method.as_prompted:
            on_model.wrap("_encode_new_memory", self._encode_as_prompted)
        if self._attention is not None:
            self._attention.install()
            on_model.on_undo(self._attention.uninstall)

    def look(self, wrapping: Wrapping) -> None:
        """Put those wrappers in place that take note of what scorers look at."""
        wrapping.wrap("get_im_features", self._features)
        on_model = Wrapping(self.model)
        wrapping.on_undo(on_model.undo)
        on_model.wrap("track_step", self._encode)
        on_model.on_undo(self.model.sam_mask_decoder.register_forward_hook(self._decoded).remove)

    def uninstall(self) -> None:
        """Restore what was there before, and put each object's frames together in batches again."""
        self._on_model.undo()
        super().uninstall()

    @staticmethod
    def objects(session: Any) -> dict[Any, ObjectFrames] | None:
        """Return each object's frames by object id; None where the state has another layout."""
        ours = isinstance(session, Mapping) and "output_dict" in session and "images" not in session
        return Sam2.objects(session) if ours else None

    @staticmethod
    def forget(session: Any) -> None:
        """Remove banks, statistics and the shared frame from an inference state."""
        session.pop(KEY, None)
        for output_dict in session["output_dict_per_obj"].values():
            bank = output_dict.pop(KEY, None)
            prompt = next(iter(output_dict["cond_frame_outputs"].values()), None)
            if bank is not None and prompt is not None:
                bank.store.release(prompt["obj_ptr"].device)
        layout = session["constants"].pop(KEY, None)
        if layout is not None:
            layout.join()

    @staticmethod
    def driver(predictor: Any) -> Driver:
        """Return what drives the predictor over frames that it does not open by itself."""
        return UltralyticsDriver(predictor)

    # -- wrappers -----------------------------------------------------------------------------------------------

    def _write(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Track a frame of all objects, observe it, and let go what the next one does not need."""
        with during(FEATURES, []):
            entry = super()._write(original, self._with_state(call))
        if call["run_mem_encoder"] and self.method.store != "all":
            entry.pop("pred_masks_high_res", None)  # 4 MiB an object at 1024 px, which nothing reads again
        return entry

    def _without_tracking(self, parts: Sequence[Entry]) -> Any:
        """Return what the host expects of a frame that was not tracked."""
        return super()._without_tracking(parts)[0]

    @staticmethod
    def _stored(result: Any) -> tuple[MutableMapping[str, Any], Tensor]:
        """Return what the host stores of a tracked batch, and its mask logits."""
        return result, result["pred_masks"]

    def _store(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> None:
        """Give each object the entry that its bank knows, with the object score that the host leaves out."""
        call = self._with_state(call)
        super()._store(original, call)
        score = call["current_out"]["object_score_logits"]
        for obj_idx, place in call["inference_state"]["output_dict_per_obj"].items():
            entry = place[call["storage_key"]][call["frame_idx"]]
            entry.setdefault("object_score_logits", score[obj_idx : obj_idx + 1])
            if self.method.store != "all" and entry["maskmem_features"] is not None:
                # with one object the host makes an encoding a frame, twice as large as the memory
                shared = call["inference_state"]["constants"]["maskmem_pos_enc"]
                if entry["maskmem_features"].numel():
                    entry["maskmem_pos_enc"] = shared

    def _preflight(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take in prompts, which the host encodes here and nowhere else."""
        with during(FEATURES, []):
            return super()._preflight(original, self._with_state(call))

    def _features(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of the image features of the frame that is tracked or prompted."""
        result, noted = original(**call), FEATURES.get()
        if noted is not None:
            features, _, sizes = result
            noted.append(features[-1][:, :1].permute(1, 2, 0).unflatten(2, tuple(sizes[-1])))
        return result

    def _memo(self, state: MutableMapping[str, Any], frame_idx: int) -> tuple[FrameMemo, Tensor] | None:
        """Return the pixels and features of a frame whose prompts were just encoded: it is the one in the state."""
        return self._frames.prompt(state, frame_idx) if FEATURES.get() else None

    def _with_state(self, call: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**call, "inference_state": call["inference_state"] or self.predictor.inference_state}


def _keep_all(original: Callable[..., Any], call: Mapping[str, Any]) -> None:
    """Let nothing go: the host drops every memory older than seven frames, keyframes too."""
