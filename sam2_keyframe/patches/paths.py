"""A frame tracked along several paths, each with a memory bank of its own; what they share is stored once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.bank.bank import NO_OBJECT, MemoryBank, Path, Tracking
from sam2_keyframe.bank.reading import Geometry, closest
from sam2_keyframe.patches.frames import Frames
from sam2_keyframe.patches.wrapping import during
from sam2_keyframe.rules.tree import Branch, Tree
from sam2_keyframe.types import Moment, TrackedFrame

Entry = MutableMapping[str, Any]


class Paths:
    """Tracks the frames of all objects of one predictor along their paths.

    Args:
        predictor: The predictor.
        frames: Makes what scorers look at.
        rule: Which paths go on.
        tracking: The variable that says what is being tracked.
    """

    def __init__(
        self, predictor: Any, frames: Frames, rule: Tree, tracking: ContextVar[Sequence[Tracking] | None]
    ) -> None:
        self.predictor = predictor
        self.rule = rule
        self._frames = frames
        self._tracking = tracking

    def start(self, bank: MemoryBank, frame_idx: int, masks: Tensor) -> None:
        """Let all paths begin with a frame that was tracked once for all of them."""
        bank.paths = [Path(bank, 0.0, tuple(range(self.rule.paths)))]
        self._remember(bank.paths[0], frame_idx, masks)

    def track(
        self, original: Callable[..., Any], call: Mapping[str, Any], bank: MemoryBank, moment: Moment, facts: Geometry
    ) -> tuple[Entry, Tensor]:
        """Return the entry and the (1, 1, H/4, W/4) mask logits of the path that is the best on a frame.

        Reads the candidates' ratings on the host, once a frame and object.

        Args:
            original: The predictor's own `_run_single_frame_inference`.
            call: Its arguments.
            bank: The object's memory, that of the best path so far.
            moment: The frame.
            facts: How far the model reads.
        """
        began, cond, paths = time.perf_counter(), call["output_dict"]["cond_frame_outputs"], list(bank.paths)
        runs: list[tuple[Tracking, Entry]] = []
        for path in paths:
            tracking = Tracking.begin(path.bank, cond, moment, facts)
            place = {"cond_frame_outputs": cond, "non_cond_frame_outputs": path.bank.non_cond}
            with during(self._tracking, [tracking]):
                entry, _ = original(**{**call, "output_dict": place, "run_mem_encoder": False})
            runs.append((tracking, entry))
        told = torch.stack([torch.cat([t.found[1][0].float(), e["object_score_logits"][0].float()]) for t, e in runs])
        rows = told.tolist()
        branches = self.rule.grow(
            [(path.score, path.places) for path in paths], [row[:-1] for row in rows], [row[-1] for row in rows]
        )
        grown: list[Path] = []
        best: tuple[Entry, Tensor, TrackedFrame] | None = None
        for k in range(len(branches) - 1, -1, -1):  # the best last: what goes on once goes on in its own bank
            branch = branches[k]
            tracking, entry = runs[branch.parent]
            own = tracking.bank
            if (own is bank and k) or any(other.parent == branch.parent for other in branches[:k]):
                own = own.fork()
            child = Path(own, branch.score, branch.places, dict(paths[branch.parent].masks))
            best = self._write(call, tracking, entry, branch, child, moment)
            grown.insert(0, child)
        if best is None:
            raise RuntimeError("no path went on; this is a fault of sam2_keyframe, please report it")
        bank.go_on(grown)
        entry, masks, frame = best
        for listener in bank.listeners:
            listener.tracked(bank, moment, frame)
        reading = runs[branches[0].parent][0].reading
        tokens = sum(tracking.reading.tokens for tracking, _ in runs if tracking.reading is not None)
        bank.account(cond, closest(moment.frame_idx, cond, facts.prompts), moment, reading, began, facts, tokens)
        return entry, masks

    def _write(
        self,
        call: Mapping[str, Any],
        tracking: Tracking,
        entry: Mapping[str, Any],
        branch: Branch,
        child: Path,
        moment: Moment,
    ) -> tuple[Entry, Tensor, TrackedFrame]:
        """Encode the memory of a branch and hand it to its bank; return its entry, its mask logits, and the frame."""
        state, frame_idx, model = call["inference_state"], moment.frame_idx, self.predictor
        candidates, ious = tracking.found
        score, j = entry["object_score_logits"], branch.mask
        drawn = candidates.float()
        if model.pred_obj_scores:  # as SAM 2 draws an object that it holds hidden
            drawn = torch.where(score[:, None, None] > 0, drawn, NO_OBJECT)
        # All of them, as in SAM 2: one by one they come out a rounding apart.
        full = F.interpolate(drawn, (model.image_size, model.image_size), mode="bilinear", align_corners=False)
        logits, full = (masks[:, j : j + 1].contiguous() for masks in (drawn, full))
        features, encoding = model._run_memory_encoder(state, frame_idx, 1, full, score, False)
        if model.fill_hole_area > 0:
            fill = type(model)._run_single_frame_inference.__globals__["fill_holes_in_mask_scores"]
            logits = fill(logits, model.fill_hole_area)
        written: Entry = {
            **entry,
            "maskmem_features": features,
            "maskmem_pos_enc": encoding,
            "pred_masks": logits.to(state["storage_device"], non_blocking=True),
            "obj_ptr": self._pointer(tracking, score, j),
        }
        encoded = {**written, "maskmem_features": features.to(logits.device)}
        frame = self._frames.tracked(state, frame_idx, written, encoded, logits, candidates, ious)
        frame.measured["predicted_iou"] = ious[0, j].float()
        child.bank.observe(written, frame, moment, tracking.cond)
        child.bank.non_cond[frame_idx] = written
        child.bank.trim(moment.then())
        self._remember(child, frame_idx, written["pred_masks"])
        return written, logits, frame

    def _pointer(self, tracking: Tracking, score: Tensor, j: int) -> Tensor:
        """Return the object pointer of a candidate, (1, C), as SAM 2 makes that of the one it chooses."""
        model, tokens = self.predictor, tracking.tokens
        if tokens is None:
            raise RuntimeError("the decoder's tokens were not seen; this is a fault of sam2_keyframe, please report it")
        pointer: Tensor = model.obj_ptr_proj(tokens[:, j if tokens.shape[1] > 1 else 0])
        if not model.pred_obj_scores:
            return pointer
        there = score.sigmoid() if model.soft_no_obj_ptr else (score > 0).float()
        if model.fixed_no_obj_ptr:
            pointer = there * pointer
        pointer = pointer + (1 - there) * model.no_obj_ptr
        return pointer

    def _remember(self, path: Path, frame_idx: int, masks: Tensor) -> None:
        """Keep a path's masks for as many frames as they are shown late."""
        if self.rule.lag:
            path.masks[frame_idx] = masks
            for idx in list(path.masks)[: -self.rule.lag]:
                del path.masks[idx]
