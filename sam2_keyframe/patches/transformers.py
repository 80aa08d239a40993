"""The host transformers: `Sam2VideoModel` and `Sam3TrackerVideoModel` (5.x), one object at a time.

Every wrapper is an attribute of the instance; undoing restores what was there before, in the sessions too. Line of
work on a frame: `forward`, and in it for each object `_run_single_frame_inference` ->
`_prepare_memory_conditioned_features` (read); the memories of all objects are encoded in one batch at the end, so
objects are taken in when `forward` returns. What is read goes in as it is, (offset, entry) pairs and pointers at any
distance, where facebookresearch's looks up a dict by frame index (`view`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from sam2_keyframe.attention.maths import Whole, check_grid
from sam2_keyframe.bank.bank import KEY, Banks, MemoryBank, Tracking
from sam2_keyframe.bank.reading import Geometry, Reading
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.attention import AttentionHook
from sam2_keyframe.patches.bounded import PixelWindow, TrackedFrames
from sam2_keyframe.patches.driving import ENDLESS, Driver
from sam2_keyframe.patches.frames import IMAGENET, Colours, Frames, scoring_image
from sam2_keyframe.patches.host import ObjectFrames, first_of_video
from sam2_keyframe.patches.sessions import LazyPixels, SessionDriver
from sam2_keyframe.patches.wrapping import TRACKED_BY, TrackedBy, Wrapping, during, missing, refuse_copying
from sam2_keyframe.types import FrameMemo, TrackedFrame

KEEP_FRAMES = 2
"""Frames of a stream whose pixels stay after they were tracked, so that the last ones can be corrected."""

HALF: Colours = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Mean and deviation by which SAM 3 normalises."""

KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")

Session = Any
Pairs = list[tuple[int, Mapping[str, Any]]]

REQUIRED: Mapping[str, set[str]] = {
    "forward": {"inference_session", "frame_idx", "frame", "reverse"},
    "_run_single_frame_inference": {
        *("inference_session", "frame_idx", "obj_idx", "is_init_cond_frame", "point_inputs", "mask_inputs"),
        *("reverse", "streaming"),
    },
    "_prepare_memory_conditioned_features": {
        *("inference_session", "frame_idx", "obj_idx", "is_initial_conditioning_frame", "current_vision_features"),
        *("num_total_frames", "track_in_reverse_time", "streaming"),
    },
    "_gather_memory_frame_outputs": {"inference_session", "obj_idx", "frame_idx", "track_in_reverse_time"},
    "_get_object_pointers": {"inference_session", "obj_idx", "frame_idx", "num_total_frames", "device", "streaming"},
    "_encode_new_memory": {"current_vision_feats", "pred_masks_high_res", "object_score_logits", "is_mask_from_pts"},
}
"""The methods that are wrapped, with the arguments that the wrappers read."""

BATCH = (
    "objects_needing_memory_encoding",
    "high_res_masks_for_memory",
    "object_score_logits_for_memory",
    "is_mask_from_pts_per_obj",
)
"""Arguments of `_batch_encode_memories`, one element an object."""


@dataclass(slots=True, eq=False)
class Step:
    """One object on one frame, from its inference until it is taken in.

    Attributes:
        session: The session.
        output_dict: Where it keeps the object; the object's number may change meanwhile.
        frame_idx: The frame.
        bank: The object's bank.
        tracking: What is told of the frame while it is tracked; None where the user prompted or corrected it.
        corrected: The entry of a corrected frame that is not tracked over again.
        output: What the model returned, on its device.
        embed: (1, C, h, w) image features, where the model read memories.
        chosen: (1, K) of the decoder's candidates the highest is taken, and the (1, 1) object score that counts.
        seconds: What its inference took.
    """

    session: Session
    output_dict: MutableMapping[str, Any]
    frame_idx: int
    bank: MemoryBank
    tracking: Tracking | None = None
    corrected: Entry | None = None
    output: Mapping[str, Any] | None = None
    embed: Tensor | None = None
    chosen: tuple[Tensor, Tensor] | None = None
    seconds: float = 0.0


STEPS: ContextVar[list[Step] | None] = ContextVar("the objects of the frame under way in this thread", default=None)
STEP: ContextVar[Step | None] = ContextVar("the object that is being inferred", default=None)
ENCODED: ContextVar[Sequence[Step | None]] = ContextVar("the objects whose memories are being encoded", default=())
SHOWN: ContextVar[tuple[Pairs, tuple[list[int], list[Tensor], int]] | None] = ContextVar("what is read", default=None)


class Transformers:
    """Runs one method on one model, by wrapping its methods on the instance.

    Args:
        predictor: The model; unchanged until `install`.
        method: The method.
    """

    AGAIN: ClassVar[bool] = False
    NAME: ClassVar[str] = "Sam2VideoModel and Sam3TrackerVideoModel of transformers 5"
    TESTED: ClassVar[tuple[str, ...]] = ("5.16.1", "5.24.0")  # of the first, the contract and `stock`
    MODELS: ClassVar[tuple[str, ...]] = ("Sam2VideoModel", "Sam3TrackerVideoModel")
    SESSIONS: ClassVar[tuple[str, ...]] = ("Sam2VideoInferenceSession", "Sam3TrackerVideoInferenceSession")
    REQUIRED: ClassVar[Mapping[str, set[str]]] = {**REQUIRED, "_batch_encode_memories": set(BATCH)}

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None:
        self.predictor = predictor
        self.method = method
        # transformers never reads the masks of a past frame, so they leave with what else is not read again
        self.banks = Banks(method if method.store == "all" else method.with_choices(keep_masks=False))
        self.model = self._memory_model()
        self._sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        self._wrapping = Wrapping(self.model)
        self._tracked_by = TrackedBy(predictor)
        self._encodings: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._frames = Frames(self.model)
        self._colours = _colours(predictor)
        self._grid: tuple[int, int] = tuple(self.model.backbone_feature_sizes[-1])
        self._check_memories()
        self._attention = None if method.attend == method.queries == Whole() else AttentionHook(self.model)

    def _memory_model(self) -> Any:
        """Return the model whose methods read and write memories."""
        return self.predictor

    def _check_memories(self) -> None:
        """Check that memories can be attended to, and stored, as the method wants."""
        for scheme in (self.method.attend, self.method.queries):
            check_grid(scheme, self._grid)

    @classmethod
    def knows(cls, predictor: object) -> bool:
        """Return whether the model is of transformers at all; models with hosts of their own are asked for before."""
        return any(c.__module__.split(".")[0] == "transformers" for c in type(predictor).__mro__)

    @classmethod
    def refuses(cls, predictor: object) -> str | None:
        """Return why this host does not take the model, or None when it does."""
        if not is_called(predictor, cls.MODELS):
            return "it is no SAM 2 or SAM 3 video tracker"
        return missing(predictor, cls.REQUIRED)

    # -- doing and undoing --------------------------------------------------------------------------------------

    def batch_objects(self) -> None:
        """Raise: the model tracks one object at a time and encodes their memories together by itself.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"batch_objects=True is for facebookresearch's predictors; {type(self.predictor).__name__} of transformers "
            "tracks its objects one by one: leave it out"
        )

    def install(self) -> None:
        """Put the wrappers in place."""
        wrapping = self._wrapping
        wrapping.wrap("forward", self._forward)
        wrapping.wrap("_run_single_frame_inference", self._infer)
        wrapping.wrap("_prepare_memory_conditioned_features", self._read)
        wrapping.wrap("_gather_memory_frame_outputs", self._memories)
        wrapping.wrap("_get_object_pointers", self._pointers)
        wrapping.put("__getstate__", refuse_copying)
        if hasattr(self.model, "propagate_in_video_iterator"):
            wrapping.wrap("propagate_in_video_iterator", self._propagate)
        if "_batch_encode_memories" in self.REQUIRED:
            wrapping.wrap("_batch_encode_memories", self._encode)
        if self.method.observes:
            self.look(wrapping)
        if self.method.as_prompted:
            wrapping.wrap("_encode_new_memory", self._encode_as_prompted)
        if self._attention is not None:
            self._attention.install()
            wrapping.on_undo(self._attention.uninstall)

    def look(self, wrapping: Wrapping) -> None:
        """Have what scorers look at taken note of."""
        wrapping.on_undo(self.model.mask_decoder.register_forward_hook(self._decoded).remove)

    def uninstall(self) -> None:
        """Restore what was there before, and hand the sessions back as transformers has them."""
        self._wrapping.undo()
        for session in self._sessions:
            self.hand_back(session)
        self._sessions.clear()
        self.banks.release(self.model.device)

    # -- what the model is, and where its state lies ------------------------------------------------------------

    def facts(self) -> Geometry:
        """Return what the model stores and how far it reads, as it is set now."""
        model, config, side = self.model, self.model.config, self._grid[0]
        return Geometry(
            config.image_size, model.mem_dim, side, 4 * side, model.hidden_dim, model.num_maskmem,
            config.max_object_pointers_in_encoder, 1, config.max_cond_frame_num,
            every_prompt_points=True, beside_nbytes=self._beside_nbytes(),
        )  # fmt: skip

    def _beside_nbytes(self) -> int:
        """Return the bytes that transformers stores a frame and object beside what is kept here.

        Masks at the image's size, which `store="all"` keeps too, and in half precision a position encoding.
        """
        masks = 0 if self.method.store == "all" else int(self.model.config.image_size) ** 2
        encoding = 0 if self.model.dtype == torch.float32 else self._grid[0] * self._grid[1] * int(self.model.mem_dim)
        return (masks + encoding) * int(self.model.dtype.itemsize)

    @classmethod
    def objects(cls, session: Any) -> dict[Any, ObjectFrames] | None:
        """Return each object's frames by object id; None where the session is not one of these models'."""
        if not is_called(session, cls.SESSIONS):
            return None
        found = {}
        for obj_id, obj_idx in session._obj_id_to_idx.items():
            place = session.output_dict_per_obj[obj_idx]
            found[obj_id] = ObjectFrames(place["cond_frame_outputs"], place["non_cond_frame_outputs"], place)
        return found

    @classmethod
    def forget(cls, session: Any) -> None:
        """Remove banks and statistics from a session, and leave it as transformers has it."""
        cls.hand_back(session)
        vars(session).pop(TRACKED_BY, None)
        for output_dict in session.output_dict_per_obj.values():
            output_dict.pop(KEY, None)

    @staticmethod
    def tracked_by(session: Any) -> Any:
        """Return the model that tracks a session, wrapped; None where that is not known."""
        known = vars(session).get(TRACKED_BY)
        return known.predictor() if isinstance(known, TrackedBy) else None

    @classmethod
    def driver(cls, predictor: Any) -> Driver:
        """Return what opens sessions over whole videos and steps through them."""
        return SessionDriver(predictor, _colours(predictor))

    @classmethod
    def hand_back(cls, session: Session) -> None:
        """Leave a session as transformers has it; its statistics stay."""
        for obj_idx, output_dict in session.output_dict_per_obj.items():
            bank = output_dict.get(KEY)
            if isinstance(bank, MemoryBank):
                bank.settle()
                bank.store.release(torch.device(session.inference_device))
            for kind in KINDS:
                for entry in output_dict[kind].values():
                    if "obj_ptr" in entry:
                        entry["maskmem_features"] = cls.theirs(entry["maskmem_features"])
                        entry["maskmem_pos_enc"] = cls.theirs(entry["maskmem_pos_enc"][-1])
                        entry["object_pointer"] = entry.pop("obj_ptr")[:, None]
            tracked = session.frames_tracked_per_obj[obj_idx]
            if isinstance(tracked, TrackedFrames):
                session.frames_tracked_per_obj[obj_idx] = dict(tracked)
        if isinstance(session.processed_frames, PixelWindow):
            session.processed_frames = session.processed_frames.plain()

    def _map(self, features: Tensor) -> Tensor:
        """Return image features, (HW, 1, C) in transformers, as (1, C, h, w)."""
        return features.permute(1, 2, 0).reshape(*features.shape[1:], *self._grid)

    # -- stored frames in our form ------------------------------------------------------------------------------

    def ours(self, tokens: Tensor) -> Tensor:
        """Return a memory, or its position encoding, (HW, 1, C) in transformers, as (1, C, h, w)."""
        return self._map(tokens)

    @staticmethod
    def theirs(memory: Tensor) -> Tensor:
        """Return (HW, 1, C) for (1, C, h, w)."""
        return memory.flatten(2).permute(2, 0, 1)

    def take_in(self, entry: Entry) -> None:
        """Bring a stored frame into our form, in place: out of the batch of all objects, one position encoding."""
        if "obj_ptr" in entry or entry.get("maskmem_features") is None:
            return
        features, encoding = entry["maskmem_features"], entry["maskmem_pos_enc"]
        if not features.numel():  # its memory left under an earlier wrapping
            blank = features.new_empty(1, features.shape[-1], 0, 1)
            entry["maskmem_features"], entry["maskmem_pos_enc"] = blank, [blank]
        else:
            kind = encoding.dtype, encoding.device
            if kind not in self._encodings:
                self._encodings[kind] = _own(self.ours(encoding))
            entry["maskmem_features"], entry["maskmem_pos_enc"] = _own(self.ours(features)), [self._encodings[kind]]
        entry["obj_ptr"] = _own(entry.pop("object_pointer")[:, 0])
        if self.method.store == "bank":  # transformers reads them once, to encode the memory
            entry.pop("high_res_masks", None)

    def _bank(self, session: Session, output_dict: MutableMapping[str, Any]) -> MemoryBank:
        def adopt(bank: MemoryBank) -> None:
            for kind in KINDS:
                for entry in output_dict[kind].values():
                    self.take_in(entry)
            if self.banks.observe:
                for frame_idx, entry in output_dict["cond_frame_outputs"].items():
                    if "obj_ptr" in entry:
                        bank.prompted(frame_idx, entry, self.adopted(session, frame_idx, entry), cond=True)

        self._sessions.add(session)
        setattr(session, TRACKED_BY, self._tracked_by)
        return self.banks.get(output_dict, output_dict["non_cond_frame_outputs"], adopt)

    def _propagate(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Begin at the first frame where frames of another video were prompted before it."""
        if call["start_frame_idx"] is None:
            call["start_frame_idx"] = first_of_video(call["inference_session"].output_dict_per_obj)
        return original(**call)

    # -- a frame ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _forward(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Track all objects on a frame, then take them in, and let go what the next frame does not need."""
        session = call["inference_session"]
        with self._frame(session, call["frame"] is not None):
            result = original(**call)
        if isinstance(session.processed_frames, PixelWindow):
            session.processed_frames.passed(result.frame_idx)
        return result

    @contextmanager
    def _frame(self, session: Session, streamed: bool) -> Iterator[None]:
        """Take in, at the end of the block, the objects that were inferred in it."""
        if streamed and self.method.store == "bank" and not isinstance(session.processed_frames, PixelWindow):
            session.processed_frames = PixelWindow(session.processed_frames or {}, KEEP_FRAMES)
        steps: list[Step] = []
        with during(STEPS, steps):
            yield
        there = {id(output_dict) for output_dict in session.output_dict_per_obj.values()}
        memos: dict[int, FrameMemo] = {}
        for step in steps:
            if id(step.output_dict) in there:
                self._finish(step, memos)

    def _infer(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Track an object, or infer its prompt."""
        steps, session, frame_idx = STEPS.get(), call["inference_session"], call["frame_idx"]
        if steps is None:
            return original(**call)
        output_dict = session.output_dict_per_obj[call["obj_idx"]]
        tracked = session.frames_tracked_per_obj[call["obj_idx"]]
        if self.method.store == "bank" and not isinstance(tracked, TrackedFrames):
            session.frames_tracked_per_obj[call["obj_idx"]] = TrackedFrames(tracked)
        prompted = call["is_init_cond_frame"] or call["point_inputs"] is not None or call["mask_inputs"] is not None
        step = next((step for step in steps if step.output_dict is output_dict), None)
        if step is None or prompted:
            steps[:] = [other for other in steps if other is not step]
            step = Step(session, output_dict, frame_idx, self._bank(session, output_dict))
            steps.append(step)
            if not prompted:
                geometry = self.facts()
                moment = geometry.moment(frame_idx, call["reverse"], _length(session, call["streaming"]))
                step.tracking = Tracking.begin(step.bank, output_dict["cond_frame_outputs"], moment, geometry)
                step.corrected = step.bank.pass_over(frame_idx, moment)
        if step.corrected is not None:
            return self._as_stored(step.corrected, session)
        began = time.perf_counter()
        with during(STEP, step):
            step.output = original(**call)
        step.seconds += time.perf_counter() - began
        return step.output

    def _as_stored(self, entry: Entry, session: Session) -> dict[str, Any]:
        """Return the entry of a corrected frame as if it had been tracked over again."""
        masks = entry["pred_masks"].to(session.inference_device)
        pointer, score = entry["obj_ptr"][:, None], entry["object_score_logits"]
        return {"pred_masks": masks, "object_pointer": pointer, "high_res_masks": masks, "object_score_logits": score}

    def _encode(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Encode the memories of all objects but those that keep their corrected one."""
        steps = {id(step.output_dict): step for step in STEPS.get() or ()}
        output_dicts = call["inference_session"].output_dict_per_obj
        encoded = [steps.get(id(output_dicts[obj_idx])) for obj_idx in call[BATCH[0]]]
        anew = [i for i, step in enumerate(encoded) if step is None or step.corrected is None]
        call.update({name: [call[name][i] for i in anew] for name in BATCH})
        with during(ENCODED, [encoded[i] for i in anew]):
            return original(**call)

    def _encode_as_prompted(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        """Encode tracked frames' memories a second time, as those of prompted ones: they may be shown as such."""
        steps = ENCODED.get()
        if any(step is not None and step.tracking is not None for step in steps):
            memories = original(**{**call, "is_mask_from_pts": True})[0]
            for i, step in enumerate(steps):
                if step is not None and step.tracking is not None:
                    step.tracking.as_prompted = _own(self.ours(memories[:, i : i + 1]))
        return original(**call)

    def _finish(self, step: Step, memos: dict[int, FrameMemo]) -> None:
        """Take in what an object was inferred to be."""
        frame_idx, tracking = step.frame_idx, step.tracking
        cond, non_cond = (step.output_dict[kind] for kind in KINDS)
        if step.corrected is not None:
            non_cond[frame_idx] = step.corrected
            return
        entry = cond.get(frame_idx, non_cond.get(frame_idx))
        if entry is None or entry.get("maskmem_features") is None:  # the caller asked for no memory
            return
        began = time.perf_counter()
        self.take_in(entry)
        frame = self._tracked(step, entry, memos) if self.banks.observe else None
        if tracking is None or frame_idx in cond:
            step.bank.prompted(frame_idx, entry, frame, cond=frame_idx in cond)
        else:
            tracking.began = began - step.seconds  # the time of other objects is theirs
            tracking.finish(entry, frame)

    def _tracked(self, step: Step, entry: Entry, memos: dict[int, FrameMemo]) -> TrackedFrame:
        """Return what scorers look at of an object on a frame."""
        session, frame_idx, output, embed = step.session, step.frame_idx, step.output or entry, step.embed
        if embed is None:
            embed = self._map(session.cache.get_vision_features(frame_idx)["vision_feats"][-1])
        if frame_idx not in memos:
            memos[frame_idx] = self._memo(session, frame_idx)
        masks = output["pred_masks"]
        candidates = step.tracking.candidates if step.tracking is not None else None
        candidate_masks, ious = candidates or (masks, masks.new_ones(1, 1))
        attention = self._attention_shares(embed, masks, entry)
        return TrackedFrame(
            frame_idx, embed, entry["maskmem_features"].to(masks.device), masks, candidate_masks, ious,
            entry["obj_ptr"], entry["object_score_logits"].reshape(1, 1), memos[frame_idx], attention,
        )  # fmt: skip

    def _attention_shares(self, embed: Tensor, masks: Tensor, entry: Entry) -> Callable[..., Tensor] | None:
        return partial(self._frames._attention, embed, masks, entry["maskmem_pos_enc"])

    def _memo(self, session: Session, frame_idx: int) -> FrameMemo:
        def image() -> Tensor:
            return scoring_image(session.get_frame(frame_idx).float()[None], self._colours)

        return FrameMemo(image)

    def adopted(self, session: Session, frame_idx: int, entry: Entry) -> TrackedFrame | None:
        """Return a frame that was prompted earlier as scorers see it, if its pixels are still there."""
        pixels = (session.processed_frames or {}).get(frame_idx)
        if pixels is None or not pixels.numel():
            return None
        masks, features = (entry[key].to(session.inference_device) for key in ("pred_masks", "maskmem_features"))
        pointer, score = entry["obj_ptr"], entry["object_score_logits"].reshape(1, 1)
        memo = self._memo(session, frame_idx)
        return TrackedFrame(frame_idx, None, features, masks, masks, masks.new_ones(1, 1), pointer, score, memo)

    def _decoded(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> Any:
        """Take note of the decoder's candidates; the model throws their IoUs away. Choose another by motion."""
        step = STEP.get()
        if step is None or step.tracking is None:
            return None
        masks, ious, tokens, score = output  # (1, 1, K, H/4, W/4), (1, 1, K), (1, 1, K, C), (1, 1, 1)
        if step.chosen is None:  # a model may run an object twice on a frame, which moves once
            step.chosen = step.tracking.choose(masks[:, 0], ious[:, 0], score[:, 0])
        if step.bank.track is None and step.bank.returns is None:
            return None
        ranking, judged = step.chosen
        return masks, ranking[:, None], tokens, judged[:, None]

    # -- what is read -------------------------------------------------------------------------------------------

    def _read(self, original: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        """Show the model the bank's memories instead of its own."""
        step = STEP.get()
        if call["is_initial_conditioning_frame"] or self.model.num_maskmem == 0 or step is None:
            return original(**call)
        features = call["current_vision_features"]
        step.embed = self._map(features)
        grid, device = self._memory_grid(), features.device
        embed = step.embed if self.method.keyframes.read.on_device else None
        if step.tracking is not None:
            reading = step.tracking.plan(grid, device, embed)
        else:
            geometry, cond = self.facts(), step.output_dict["cond_frame_outputs"]
            length = _length(step.session, call["streaming"])
            moment = geometry.moment(call["frame_idx"], call["track_in_reverse_time"], length)
            reading = step.bank.plan(cond, moment, geometry, grid, device, embed, tracking=False)
        shown = self._pairs(reading), _pointers_of(reading, step.output_dict["non_cond_frame_outputs"], device)
        attending = self._attention is not None and reading.layout is not None
        with during(SHOWN, shown), self._attention.layout(reading.layout) if attending else nullcontext():  # type: ignore[union-attr, arg-type]
            return original(**call)

    def _memory_grid(self) -> tuple[int, int]:
        """Return (h, w) of a spatial memory."""
        return self._grid

    def _pairs(self, reading: Reading) -> Pairs:
        """Return the memories to be read, in the order of the plan, each with its offset: its temporal code and one.

        The offset of prompted frames is 0.
        """
        moment = reading.moment
        found: list[tuple[int, Mapping[str, Any]]] = [(0, reading.prompts[t]) for t in reading.read]
        found += [((m.code + 1) % (moment.slots + 1), m.entry) for m in reading.anchors]
        for code, place in reversed(list(enumerate(moment.places()))):
            if place in reading.slots:
                found.append((code + 1, reading.slots[place].entry))
            elif place in reading.found:
                found.append((code + 1, reading.prompts[place]))
        return [(offset, {key: self.theirs(tensor) for key, tensor in _spatial(entry)}) for offset, entry in found]

    def _memories(self, original: Callable[..., Pairs], call: dict[str, Any]) -> Pairs:
        shown = SHOWN.get()
        return original(**call) if shown is None else shown[0]

    def _pointers(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        shown = SHOWN.get()
        return original(**call) if shown is None else shown[1]


def keep_frames(session: Any, n: int) -> None:
    """Let the pixels of past frames leave a session of transformers: those of the last `n` frames tracked stay.

    Sessions that are streamed, frame by frame, do so by themselves under every bounded method. One that was given a
    whole video keeps it, 12 MiB a frame at 1024 px, until this allows its frames to leave as they are passed; they
    cannot be tracked again then. It takes effect while the model is wrapped.

    Raises:
        TypeError: This is no session of a video model of transformers.
        ValueError: `n` is not a whole number of at least 1.
    """
    if not hasattr(session, "processed_frames"):
        raise TypeError(f"{type(session).__name__} is no session of transformers: its frames are its owner's to keep")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of at least 1")
    if not isinstance(session.processed_frames, LazyPixels):  # which are read as they are needed
        session.processed_frames = PixelWindow(session.processed_frames or {}, n)


def is_called(thing: object, names: Sequence[str]) -> bool:
    """Return whether a thing is, or derives from, a class of transformers of one of these names."""
    return any(c.__name__ in names and c.__module__.split(".")[0] == "transformers" for c in type(thing).__mro__)


def _colours(predictor: object) -> Colours:
    """Return the mean and deviation by which the processor of a model normalises."""
    return HALF if is_called(predictor, ("Sam3TrackerVideoModel", "Sam3VideoModel")) else IMAGENET


def _length(session: Session, streaming: bool) -> int:
    return ENDLESS if streaming else session.num_frames


def _pointers_of(reading: Reading, tracked: Mapping[int, Entry], device: torch.device) -> Any:
    """Return the distances and (1, 1, C) pointers to be read, prompted frames' first, and how many there may be."""
    moment = reading.moment
    past: list[tuple[int, Mapping[str, Any]]]
    past = [(moment.distance(t), entry) for t, entry in reading.prompts.items() if moment.distance(t) >= 0]
    memories = [*reading.anchors, *reading.slots.values()]
    past += [(moment.distance(m.frame_idx), m.entry) for m in memories if m.pointer and m.frame_idx is not None]
    near = [(moment.distance(place), tracked[source]) for place, source in reading.pointers.items()]
    past += sorted(near, key=lambda pointer: pointer[0])
    # frames of which the caller wanted no memory were never brought into our form
    pointers = [entry["obj_ptr"][None] if "obj_ptr" in entry else entry["object_pointer"] for _, entry in past]
    return [distance for distance, _ in past], [p.to(device) for p in pointers], moment.pointers + 1


def _spatial(entry: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield "maskmem_features", entry["maskmem_features"]
    yield "maskmem_pos_enc", entry["maskmem_pos_enc"][-1]


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor that keeps no other alive: what is a part of something larger is copied."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
