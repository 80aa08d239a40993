"""The host transformers' `Sam3VideoModel` (5.x): a detector, and a tracker whose memories are encoded apart.

Line of work on a frame: the tracker propagates every object without encoding a memory; `_tracker_update_memories`
encodes them all, once masks that overlap are settled, and makes a frame on which the detector confirms an object a
conditioning one; where new objects appeared, the tracker runs a second time. So objects are taken in when the whole
model's `forward` returns. Objects may be removed, and are then numbered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.bounded import keep_only
from sam2_keyframe.patches.driving import ENDLESS, Driver, Prompted
from sam2_keyframe.patches.sessions import SessionDriver
from sam2_keyframe.patches.transformers import ENCODED, HALF, STEPS, Session, Transformers, is_called
from sam2_keyframe.patches.wrapping import Wrapping, during, missing, refuse_copying

KEEP_PROMPTS = 16
"""Frames held of an object on which the detector found or confirmed it: the first and the newest, for bounded methods.

Every 16th frame may become one, and SAM 3 keeps them all and reads the pointers of all.
"""

OUTER: Mapping[str, set[str]] = {
    "forward": {"inference_session", "frame_idx", "frame", "reverse"},
    "_tracker_update_memories": {"inference_session", "frame_idx", "low_res_masks"},
}


class TextDriver(SessionDriver):
    """Opens sessions of the model over whole videos; its objects are found by text, so it does nothing more."""

    def open(self, frame: Any, images: Any = None, num_frames: int = ENDLESS, **options: Any) -> Any:
        """Return a session over a video; see `Driver.open`.

        Raises:
            TypeError: There are no `images`, as for a live stream.
        """
        return self._refuse() if images is None else super().open(frame, images, num_frames, **options)

    def prompt(self, state: Any, t: int, prompts: Prompted) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: Always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            f"{type(self.predictor).__name__} finds objects by text, not by masks, points or boxes: give it a session "
            "with session.add_prompt(), or track with a Sam3TrackerVideoModel"
        )


class Sam3Video(Transformers):
    """Runs one method on the tracker of one model, by wrapping methods on the instances.

    Args:
        predictor: The model; unchanged until `install`.
        method: The method.
    """

    NAME: ClassVar[str] = "Sam3VideoModel of transformers 5"
    MODELS: ClassVar[tuple[str, ...]] = ("Sam3VideoModel",)
    SESSIONS: ClassVar[tuple[str, ...]] = ("Sam3VideoInferenceSession",)

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        super().__init__(predictor, method)
        self._outer = Wrapping(predictor)

    def _memory_model(self) -> Any:
        return self.predictor.tracker_model

    @classmethod
    def knows(cls, predictor: object) -> bool:
        """Return whether the model is, or derives from, this host's."""
        return is_called(predictor, cls.MODELS)

    @classmethod
    def refuses(cls, predictor: object) -> str | None:
        """Return why this host does not take the model, or None when it does."""
        tracker = getattr(predictor, "tracker_model", None)
        return missing(predictor, OUTER) or missing(tracker, cls.REQUIRED)

    def install(self) -> None:
        """Put the wrappers in place."""
        super().install()
        self._outer.wrap("forward", self._whole)
        self._outer.put("__getstate__", refuse_copying)
        if self.method.as_prompted:
            self._outer.wrap("_tracker_update_memories", self._update)

    def uninstall(self) -> None:
        """Restore what was there before, and hand the sessions back as transformers has them."""
        self._outer.undo()
        super().uninstall()

    @classmethod
    def driver(cls, predictor: Any) -> Driver:
        """Return what opens sessions over videos."""
        return TextDriver(predictor, HALF)

    def _forward(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Let the tracker run: the frame is over when the whole model's is."""
        return original(**call)

    def _whole(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Detect and track on a frame, then take in what came of it."""
        result = super()._forward(original, call)
        if self.method.store == "bank":
            self._shorten(call["inference_session"], result.frame_idx)
        return result

    def _shorten(self, session: Session, frame_idx: int) -> None:
        """Let no table grow with the frames: those by frame keep this one, those by object what a threshold counts."""
        for table in (session.obj_id_to_tracker_score_frame_wise, session.suppressed_obj_ids):
            keep_only(table, {frame_idx})
        most = max(self.predictor.hotstart_unmatch_thresh, self.predictor.hotstart_dup_thresh, 1)
        for table in (session.unmatched_frame_inds, session.overlap_pair_to_frame_inds):
            for frames in table.values():
                del frames[:-most]
        for output_dict in session.output_dict_per_obj.values():
            cond = output_dict["cond_frame_outputs"]
            for past in list(cond)[1 : len(cond) - KEEP_PROMPTS + 1]:
                del cond[past]

    def _update(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Encode the memories of all objects, in their order."""
        steps = {id(step.output_dict): step for step in STEPS.get() or ()}
        output_dicts = call["inference_session"].output_dict_per_obj
        with during(ENCODED, [steps.get(id(output_dicts[i])) for i in range(len(output_dicts))]):
            return original(**call)
