"""Recording a run, for `replay`: each frame as the host leaves it, in a few small arrays on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sam2_keyframe.bank.bank import MemoryBank
from sam2_keyframe.patches.host import Host, ObjectFrames
from sam2_keyframe.patches.wrapping import Wrapping
from sam2_keyframe.plugin import handle_of, wrap
from sam2_keyframe.replay.recording import BLOCK, Recording, RecordingFile
from sam2_keyframe.replay.steps import DESCRIPTORS, Kind, Step, pack
from sam2_keyframe.rules.similarity import DescriptorCosine
from sam2_keyframe.scorers import Distractor, ObjectScore, PredictedIoU, Stability
from sam2_keyframe.scorers.features import describe
from sam2_keyframe.types import History, Moment, TrackedFrame

SCORES = (PredictedIoU(), ObjectScore(), Stability(), Distractor())
"""What cannot be computed again from the mask alone, and does not depend on any choice of a method."""


@contextmanager
def record(predictor: Any, inference_state: Any, path: str | Path | None = None) -> Iterator[Recording]:
    """Record a run on one video, for `replay`, while the `with` block is open.

    Open it after `wrap()` and before tracking; close it before `unwrap()`. What was tracked before is not in it.
    A frame and object take about 3 KB on the host, and one wait for the device.

    Args:
        predictor: What `sam2_keyframe.wrap` takes, wrapped or not.
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
    found = handle_of(predictor)
    handle = found or wrap(predictor, "stock")
    recorder = None
    try:
        recorder = _Recorder(handle.host, inference_state, path)
        recorder.start()
        try:
            yield recorder.recording
        except BaseException:
            with suppress(OSError, ValueError):  # the error inside tells more
                recorder.close()
            raise
        recorder.close()
        if not handle.active:
            raise RuntimeError(
                "the predictor was wrapped or unwrapped while it was recorded, so the recording is not whole: call "
                "wrap() before record(), and unwrap() after it"
            )
    finally:
        if recorder is not None:
            recorder.stop()
        if found is None and handle.active:
            handle.unwrap()
            handle.host.forget(inference_state)


class _Recorder:
    """Listens to the banks of one video's objects."""

    def __init__(self, host: Host, state: Any, path: str | Path | None) -> None:
        driver = host.driver(host.predictor)
        self.host, self.state = host, state
        self.recording = Recording(host.facts(), driver.length(state), driver.frame_size(state))
        self._file = None if path is None else RecordingFile(path, self.recording)
        self._wrapping = Wrapping(host.predictor)
        self._prompts: dict[Any, tuple[ObjectFrames, set[int]]] = {}
        self._corrected: dict[tuple[Any, int], Step] = {}

    def start(self) -> None:
        """Begin to listen; prompts that were given already are noted."""
        if not self.host.method.observes:
            self.host.look(self._wrapping)
        self.host.banks.listeners.append(self)
        for frames in (self.host.objects(self.state) or {}).values():
            bank = frames.bank
            if bank is not None and bank.listeners:
                for frame_idx, entry in frames.cond.items():
                    self.prompted(bank, frame_idx, self.host.adopted(self.state, frame_idx, entry), True)

    def stop(self) -> None:
        """Listen no more."""
        self.host.banks.listeners.remove(self)
        self._wrapping.undo()

    def close(self) -> None:
        """Write what is left, and finish the file."""
        if self._file is not None:
            self._write()
            self._file.close()

    # -- what banks tell ----------------------------------------------------------------------------------------

    def prompted(self, bank: MemoryBank, frame_idx: int, frame: TrackedFrame | None, cond: bool) -> None:
        """Take note of a prompted or corrected frame."""
        obj_id = self._follow(bank)
        if obj_id is None:
            return
        step = self._note(obj_id, frame, Kind.PROMPT if cond else Kind.CORRECTION)
        if cond:
            self._prompts[obj_id][1].add(frame_idx)
        elif step is not None:
            self._corrected[obj_id, frame_idx] = step

    def tracked(self, bank: MemoryBank, moment: Moment, frame: TrackedFrame | None) -> None:
        """Take note of a tracked frame."""
        obj_id, kind = self._follow(bank), Kind.REVERSE if moment.reverse else Kind.FORWARD
        corrected = self._corrected.get((obj_id, moment.frame_idx))
        if obj_id is None:
            return
        if frame is not None:
            self._note(obj_id, frame, kind)
        elif corrected is not None:
            self._add(replace(corrected, kind=kind))

    def taken_back(self, bank: MemoryBank, frame_idx: int) -> None:
        """Take note of a frame that is an ordinary one again: its prompts were taken back, or it was encoded anew."""
        noted = {obj_id for obj_id, (_, known) in self._prompts.items() if frame_idx in known}  # by `_follow`
        obj_id = self._follow(bank)
        if obj_id is not None and obj_id not in noted:
            self._add(Step(obj_id, frame_idx, Kind.CLEARED))

    def _follow(self, bank: MemoryBank) -> Any:
        """Return whose bank it is, None for another video's; take note of objects and prompts that were let go."""
        for obj_id, (frames, known) in self._prompts.items():
            for frame_idx in sorted(known - frames.cond.keys()):
                known.discard(frame_idx)
                self._add(Step(obj_id, frame_idx, Kind.CLEARED))
        found = None
        for obj_id, frames in (self.host.objects(self.state) or {}).items():
            before = self._prompts.get(obj_id)
            if before is None or before[0].place is not frames.place:
                self._prompts[obj_id] = frames, set()
                if before is not None:
                    self._add(Step(obj_id, 0, Kind.RESET))
                    self._corrected = {key: step for key, step in self._corrected.items() if key[0] != obj_id}
            if frames.bank is bank:
                found = obj_id
        return found

    # -- steps --------------------------------------------------------------------------------------------------

    def _note(self, obj_id: Any, frame: TrackedFrame | None, kind: Kind) -> Step | None:
        """Append a step: the mask's bits and all numbers, each brought to the host at once."""
        if frame is None:
            return None
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
        step = Step(obj_id, frame.frame_idx, kind, pack(mask), step_scores, described)
        self._add(step)
        return step

    def _add(self, step: Step) -> None:
        self.recording.steps.append(step)
        if len(self.recording.steps) >= BLOCK:
            self._write()

    def _write(self) -> None:
        if self._file is not None:
            self._file.write(self.recording.steps)
            self.recording.steps.clear()
