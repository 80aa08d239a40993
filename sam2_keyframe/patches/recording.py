"""Recording a run, for `replay`: each frame as SAM 2 leaves it, in a few small arrays on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_keyframe.bank.statistics import has_memory
from sam2_keyframe.patches.frames import Frames
from sam2_keyframe.patches.sam2 import Sam2, geometry_of
from sam2_keyframe.patches.together import AHEAD
from sam2_keyframe.patches.wrapping import Wrapping, during
from sam2_keyframe.replay.recording import BLOCK, Recording, RecordingFile
from sam2_keyframe.replay.steps import DESCRIPTORS, Kind, Step, pack
from sam2_keyframe.rules.similarity import DescriptorCosine
from sam2_keyframe.scorers import Distractor, ObjectScore, PredictedIoU, Stability
from sam2_keyframe.scorers.features import describe
from sam2_keyframe.types import FrameMemo, History, TrackedFrame

SCORES = (PredictedIoU(), ObjectScore(), Stability(), Distractor())
"""What cannot be computed again from the mask alone, and does not depend on any choice of a method."""

WRAPPED = ("propagate_in_video_preflight", "_run_memory_encoder", "_run_single_frame_inference", "track_step")


@contextmanager
def record(
    predictor: Any, inference_state: MutableMapping[str, Any], path: str | Path | None = None
) -> Iterator[Recording]:
    """Record a run on one video, for `replay`, while the `with` block is open.

    Open it after `wrap()` and before tracking; close it before `unwrap()`. What was tracked before is not in it.
    A frame and object take about 3 KB on the host, and one wait for the device.

    Args:
        predictor: A SAM 2 video predictor, wrapped or not.
        inference_state: Of the video; other videos are not recorded.
        path: A file to which frames are written as they come, so that nothing grows; `Recording.load` reads it. An
            error inside the block leaves what came before it.

    Yields:
        The recording, which grows with every frame; with a `path`, what is not yet written.

    Raises:
        TypeError: The predictor is of no supported host.
        OSError: The file cannot be written; nothing is left of it.
        RuntimeError: The predictor was wrapped or unwrapped while the block was open.
    """
    reason = Sam2.refuses(predictor)
    if reason is not None:
        raise TypeError(f"cannot record {type(predictor).__qualname__}: {reason}")
    recorder = _Recorder(predictor, inference_state, path)
    recorder.start()
    try:
        yield recorder.recording
    except BaseException:
        recorder.stop()
        with suppress(OSError, ValueError):  # the error inside tells more
            recorder.close()
        raise
    whole = recorder.stop()
    recorder.close()
    if not whole:
        raise RuntimeError(
            "the predictor was wrapped or unwrapped while it was recorded, so the recording is not whole: call "
            "wrap() before record(), and unwrap() after it"
        )


class _Recorder:
    """Wraps what SAM 2 tracks and prompts with, and takes note of each frame."""

    def __init__(self, predictor: Any, state: MutableMapping[str, Any], path: str | Path | None) -> None:
        model = self.predictor = predictor
        self.state: Any = state
        self.recording = Recording(
            geometry_of(model), state["num_frames"], (state["video_height"], state["video_width"])
        )
        self._file = None if path is None else RecordingFile(path, self.recording)
        self._frames = Frames(model)
        self._wrapping = Wrapping(model)
        self._ours: dict[str, Any] = {}
        self._prompted: dict[Any, tuple[Mapping[str, Any], dict[int, Any]]] = {}
        self._shared: dict[int, tuple[FrameMemo, Tensor | None]] = {}
        self._hooks: list[Any] = []
        self._encoded: Mapping[str, Any] | None = None
        self._candidates: tuple[Tensor, Tensor] | None = None
        self._ranking: Tensor | None = None

    def start(self) -> None:
        """Put the wrappers in place."""
        wrappers = (self._preflight, self._encode_prompt, self._track, self._encode)
        for name, wrapper in zip(WRAPPED, wrappers, strict=True):
            self._wrapping.wrap(name, wrapper)
            self._ours[name] = vars(self.predictor)[name]
        decoder = self.predictor.sam_mask_decoder
        self._hooks = [decoder.register_forward_hook(self._decoded, prepend=True)]
        self._hooks.append(decoder.register_forward_hook(self._ranked))

    def stop(self) -> bool:
        """Take the wrappers off; return whether they were in place all the time.

        Where others were put over them or took them off, they stay as they are and do nothing any more.
        """
        whole = all(vars(self.predictor).get(name) is ours for name, ours in self._ours.items())
        for hook in self._hooks:
            hook.remove()
        if whole:
            self._wrapping.undo()
        self.state = self._encoded = None
        return whole

    def close(self) -> None:
        """Write what is left, and finish the file."""
        if self._file is not None:
            self._write()
            self._file.close()

    # -- wrappers -----------------------------------------------------------------------------------------------

    def _preflight(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take in prompts and corrections, which SAM 2 encodes here and nowhere else."""
        state = call["inference_state"]
        if state is not self.state:
            return original(**call)
        corrected = {
            obj_idx: list(temporary["non_cond_frame_outputs"])
            for obj_idx, temporary in state["temp_output_dict_per_obj"].items()
        }
        self._cleared()
        self._shared.clear()
        result = original(**call)
        for obj_idx, output_dict in state["output_dict_per_obj"].items():
            obj_id = state["obj_idx_to_id"][obj_idx]
            known = self._known(obj_id, output_dict)
            for frame_idx, entry in output_dict["cond_frame_outputs"].items():
                if known.get(frame_idx) is not entry:
                    known[frame_idx] = entry
                    self._note_prompt(obj_id, frame_idx, entry, Kind.PROMPT)
            for frame_idx in corrected[obj_idx]:
                self._note_prompt(obj_id, frame_idx, output_dict["non_cond_frame_outputs"][frame_idx], Kind.CORRECTION)
        return result

    def _known(self, obj_id: Any, output_dict: Mapping[str, Any]) -> dict[int, Any]:
        """Return the prompted frames of an object so far; one that was reset begins anew."""
        before = self._prompted.get(obj_id)
        if before is not None and before[0] is output_dict:
            return before[1]
        if before is not None:
            self._add(Step(obj_id, 0, Kind.RESET))
        known: dict[int, Any] = {}
        self._prompted[obj_id] = output_dict, known
        return known

    def _cleared(self) -> None:
        """Take note of prompts that were taken back."""
        for obj_id, (output_dict, known) in self._prompted.items():
            for frame_idx in known.keys() - output_dict["cond_frame_outputs"].keys():
                del known[frame_idx]
                self._add(Step(obj_id, frame_idx, Kind.CLEARED))

    def _encode_prompt(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a prompted frame's features while SAM 2 has them at hand."""
        result, state = original(**call), call["inference_state"]
        if state is self.state:
            self._shared[call["frame_idx"]] = self._frames.shared(state, call["frame_idx"])
        return result

    def _track(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        """Take note of a tracked frame."""
        state = call["inference_state"]
        if state is not self.state or not call["run_mem_encoder"]:
            return original(**call)
        self._encoded = self._candidates = None
        with during(AHEAD, None):  # one by one, as a frame is noted where it is tracked
            entry, masks = original(**call)
        if not has_memory(entry):  # before its first prompt, where a method does not look ahead
            return entry, masks
        frame_idx, kind = call["frame_idx"], Kind.REVERSE if call["reverse"] else Kind.FORWARD
        if self._encoded is None or self._candidates is None:  # a corrected frame that the method protects
            frame = self._frames.prompted(frame_idx, entry, self._shared.get(frame_idx, (FrameMemo(_no_pixels), None)))
        else:
            frame = self._frames.tracked(state, frame_idx, entry, self._encoded, masks, *self._candidates)
            if self._ranking is not None:  # a method may choose another candidate than the best rated one
                frame.measured["predicted_iou"] = self._candidates[1][0].gather(0, self._ranking[0].argmax()[None])[0]
        for obj_idx, output_dict in state["output_dict_per_obj"].items():
            if output_dict is call["output_dict"]:
                self._note(state["obj_idx_to_id"][obj_idx], frame, kind)
        return entry, masks

    def _encode(self, original: Callable[..., Any], call: MutableMapping[str, Any]) -> Any:
        output = original(**call)
        self._encoded = None if self.state is None else output
        return output

    def _decoded(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
        self._candidates = output[0].clone(), output[1].clone()  # a compiled decoder overwrites its output

    def _ranked(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
        self._ranking = output[1].clone()

    # -- steps --------------------------------------------------------------------------------------------------

    def _note_prompt(self, obj_id: Any, frame_idx: int, entry: Mapping[str, Any], kind: Kind) -> None:
        shared = self._shared.get(frame_idx, (FrameMemo(_no_pixels), None))
        self._note(obj_id, self._frames.prompted(frame_idx, entry, shared), kind)

    def _note(self, obj_id: Any, frame: TrackedFrame | None, kind: Kind) -> None:
        """Append a step: the mask's bits and all numbers, each brought to the host at once."""
        if frame is None:
            return
        with torch.inference_mode(), torch.autocast(frame.pred_masks.device.type, enabled=False):
            scores = torch.stack([frame.measure(scorer, History()).float() for scorer in SCORES])
            for feature in ("pointer", "memory", "image"):
                describe(frame, feature)
            DescriptorCosine().describe(frame)
            found = [key for key in DESCRIPTORS if key in frame.kept]
            sizes = [frame.kept[key].numel() for key in found]
            numbers = torch.cat([scores, *(frame.kept[key].float() for key in found)]).cpu()
            mask = (frame.pred_masks[0, 0] > 0).cpu().numpy()
        first, *vectors = (part.numpy().copy() for part in torch.split(numbers, [len(SCORES), *sizes]))
        names = [scorer.name for scorer in SCORES]
        step_scores = dict(zip(names, first.tolist(), strict=True))
        described = dict(zip(found, vectors, strict=True))
        self._add(Step(obj_id, frame.frame_idx, kind, pack(mask), step_scores, described))

    def _add(self, step: Step) -> None:
        self.recording.steps.append(step)
        if len(self.recording.steps) >= BLOCK:
            self._write()

    def _write(self) -> None:
        if self._file is not None:
            self._file.write(self.recording.steps)
            self.recording.steps.clear()


def _no_pixels() -> Tensor:
    raise RuntimeError("a recorded frame's pixels were asked for, which no recorded score needs")
