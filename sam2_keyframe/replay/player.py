"""Playing a recording to memory banks, as the patch of a predictor would: the code that decides is the bank's own."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_keyframe.bank.bank import MemoryBank, Tracking
from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.bank.statistics import MemoryStats
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.frames import scoring_image
from sam2_keyframe.replay.recorder import SCORES
from sam2_keyframe.replay.recording import Recording
from sam2_keyframe.replay.steps import Kind, Step, unpack
from sam2_keyframe.scorers import Stability
from sam2_keyframe.types import FrameMemo, Held, History, Scorer, TrackedFrame
from sam2_keyframe.video.source import FrameSource, normalise


class NotRecordedError(ValueError):
    """Something was asked for that no recording has."""


class _Absent:
    """Stands for a tensor that is not there, and says so when it is used."""

    def __init__(self, message: str) -> None:
        self._message = message

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotRecordedError(self._message)

    __getattr__ = __getitem__ = __call__ = _refuse

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        next(arg for arg in args if isinstance(arg, cls))._refuse()


class _Recorded(dict[str, Tensor]):
    """Descriptors of a frame: a recorded one is there as soon as it is asked for."""

    def __init__(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self._vectors = vectors

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str) and key in self._vectors and not super().__contains__(key):
            self[key] = torch.from_numpy(self._vectors[key])
        return super().__contains__(key)


class Thing:
    """One object's bank, the dicts that SAM 2 would keep for it, and what was held as each frame was tracked."""

    def __init__(self, method: KeyframeMemory) -> None:
        self.cond: dict[int, dict[str, Any]] = {}
        self.non_cond: dict[int, Any] = {}
        self.bank = MemoryBank(method, self, self.non_cond)
        self.bank.stats = MemoryStats(rows=deque())
        self.held: list[list[int]] = []


class Player:
    """Plays the steps of a recording to a bank an object, as the patch of a predictor would.

    Args:
        recording: What happened.
        source: The video; None: there are no pixels.
        method: The method.
        geometry: What memories are counted and read as.
    """

    def __init__(
        self, recording: Recording, source: FrameSource | None, method: KeyframeMemory, geometry: Geometry
    ) -> None:
        self.recording, self.source, self.method, self.geometry = recording, source, method, geometry
        self.objects: dict[Any, Thing] = {}
        self._memo: tuple[int, FrameMemo] | None = None
        names = {scorer.name: _recorded_as(scorer) for scorer in method.scorers}
        self._known = {name: known for name, known in names.items() if known is not None}
        blank = torch.zeros((1, 1, 1, 1))
        grid, side = (geometry.memory_side,) * 2, (geometry.mask_side,) * 2
        features = blank.expand(1, geometry.memory_dim, *grid)
        self._blank = blank.expand(1, 1, *side)
        # Tensors of SAM 2's sizes that take no memory: the bank counts them and never looks inside.
        self._entry: dict[str, Any] = {
            "maskmem_features": blank.to(torch.bfloat16).expand_as(features),
            "maskmem_pos_enc": [features],
            "pred_masks": self._blank,
            "obj_ptr": blank[0, 0].expand(1, geometry.pointer_dim),
            "object_score_logits": blank[0, 0],
        }

    def check(self) -> None:
        """Refuse a method that needs what is not there.

        Raises:
            ValueError: It does.
        """
        if self.source is not None:
            more = len(self.source) - self.recording.num_frames
            if more < 0 or (more and not self.recording.complete):
                raise ValueError(
                    f"the video has {len(self.source)} frames, the masks {self.recording.num_frames}: give the video "
                    "that they were made on"
                )
        if self.method.choice is not None:
            raise ValueError(
                f"choice={self.method.choice!r} chooses masks, and a replay has them held fixed: run it with SAM 2"
            )
        if self.method.again is not None:
            raise ValueError(
                f"{self.method.again} draws masks anew, and a replay has them held fixed: run it with SAM 2"
            )
        if self.method.keyframes.read.on_device:
            raise ValueError(
                f"read={self.method.keyframes.read!r} looks at the features of the frame to be tracked, which are not "
                "recorded: run it with SAM 2, or replay read=Nearest()"
            )
        step = next((s for s in self.recording.steps if s.mask), None)
        if step is None or not self.method.observes:
            return
        frame = self._frame(step)
        for scorer in self.method.scorers:
            if isinstance(scorer, Stability) and scorer.name not in frame.measured:
                raise ValueError(
                    f"{scorer!r} needs the mask's logits, of which only Stability() of a recording is known"
                )
        held = [Held(step.frame_idx, self._absent("the memory features"), None)]
        relation = self.method.relation
        checks: list[tuple[object, Callable[[], object]]] = [
            (scorer, lambda scorer=scorer: frame.measure(scorer, History()))  # type: ignore[misc]
            for scorer in reversed(self.method.scorers)  # parts before what they are parts of
        ]
        checks.append((self.method.keyframes.read, lambda: self.method.keyframes.read.describe(frame)))
        if relation is not None:
            checks.append((relation, lambda: relation.relate(frame, held)))
        for asked, check in checks:
            try:
                check()
            except NotRecordedError as error:
                raise ValueError(f"{asked!r} {error}") from None

    def play(self) -> dict[Any, Thing]:
        """Return what became of each object."""
        for step in self.recording.steps:
            if step.obj_id not in self.objects or step.kind is Kind.RESET:
                self.objects[step.obj_id] = Thing(self.method)
            thing = self.objects[step.obj_id]
            if step.kind in (Kind.FORWARD, Kind.REVERSE):
                self._track(thing, step)
            elif step.kind is not Kind.RESET:
                self._prompt(thing, step)
        for thing in self.objects.values():
            thing.bank.settle()
        return self.objects

    def _prompt(self, thing: Thing, step: Step) -> None:
        """Take in a prompt, a correction, or a prompt that was taken back."""
        frame_idx = step.frame_idx
        if step.kind is Kind.CLEARED:
            entry = thing.non_cond[frame_idx] = thing.cond.pop(frame_idx, None) or self._output()
            thing.bank.taken_back(frame_idx, entry)
            return
        prompted, entry = step.kind is Kind.PROMPT, self._output()
        (thing.cond if prompted else thing.non_cond)[frame_idx] = entry
        if prompted:
            thing.non_cond.pop(frame_idx, None)
        frame = self._frame(step) if self.method.observes else None
        thing.bank.prompted(frame_idx, entry, frame, cond=prompted)

    def _track(self, thing: Thing, step: Step) -> None:
        """Plan what is read, take in the frame, let go what the next one does not need."""
        bank, geometry = thing.bank, self.geometry
        moment = geometry.moment(step.frame_idx, step.kind is Kind.REVERSE, self.recording.num_frames)
        if bank.not_yet(thing.cond, moment) is not None:
            return
        tracking = Tracking.begin(bank, thing.cond, moment, geometry, began=math.nan)
        if bank.pass_over(step.frame_idx, moment) is not None:
            return
        grid = (geometry.memory_side,) * 2
        layout = tracking.plan(grid, torch.device("cpu")).layout
        if layout is not None and layout.keep is not None:
            layout.keep(torch.zeros(1, grid[0] * grid[1]))  # how many tokens are kept is known, not which
        thing.held.append(sorted(bank.selection.held()))
        entry = self._output()
        if self.method.as_prompted:
            tracking.as_prompted = entry["maskmem_features"]
        tracking.finish(entry, self._frame(step) if self.method.observes else None)
        thing.non_cond[step.frame_idx] = entry

    def _output(self) -> dict[str, Any]:
        """Return a frame's stored output, its features told from other frames'."""
        return {**self._entry, "maskmem_features": self._entry["maskmem_features"].detach()}

    # -- frames -------------------------------------------------------------------------------------------------

    def _frame(self, step: Step) -> TrackedFrame:
        """Return a recorded frame as scorers see it."""
        mask = torch.from_numpy(unpack(step.mask, self.recording.geometry.mask_side)).float()[None, None] * 2 - 1
        iou, visible = (
            torch.full((1, 1), step.scores.get(name, math.nan)) for name in ("predicted_iou", "object_score")
        )
        undescribed = self.recording.complete and "object/image" not in step.descriptors
        return TrackedFrame(
            step.frame_idx,
            None if undescribed else self._absent("the image features"),
            self._absent("the memory features"),
            mask,
            self._absent("the candidate masks"),
            iou,
            self._absent("the object pointer"),
            visible,
            self._shared(step.frame_idx),
            self._absent("SAM 2's attention"),
            kept=_Recorded(step.descriptors),
            measured={name: torch.tensor(step.scores[key]) for name, key in self._known.items() if key in step.scores},
        )

    def _shared(self, frame_idx: int) -> FrameMemo:
        """Return what the objects share on a frame; its pixels are read when a scorer asks for them."""
        if self._memo is None or self._memo[0] != frame_idx:
            self._memo = frame_idx, FrameMemo(partial(self._pixels, frame_idx))
        return self._memo[1]

    def _pixels(self, frame_idx: int) -> Tensor:
        source, size = self.source, self.recording.frame_size
        if source is None:
            raise ValueError("a scorer looks at pixels: give the video as `frames`")
        if source.size != size:
            raise ValueError(
                f"the video has {source.size[1]} x {source.size[0]} pixels, the masks are of {size[1]} x {size[0]}: "
                "give the video that they were made on"
            )
        resized = source.resized(frame_idx, self.recording.geometry.image_size)
        return scoring_image(normalise(resized, torch.device("cpu"))[None])

    def _absent(self, what: str) -> Any:
        if self.recording.complete:
            return _Absent(f"needs {what}, of which a recording does not hold enough: run it with SAM 2")
        return _Absent(
            f"needs {what}, which masks alone do not have: run it with SAM 2, or try a recording of a run, in which "
            "there is some of that (record(), or recording.npz of `sam2-keyframe track`)"
        )


def _recorded_as(scorer: Scorer) -> str | None:
    """Return the name under which a recording holds the scorer's very numbers; None where it does not."""
    for recorded in SCORES:
        if type(scorer) is type(recorded) and replace(scorer, name=recorded.name) == recorded:
            return recorded.name
    return None
