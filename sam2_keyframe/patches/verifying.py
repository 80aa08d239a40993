"""A doubtful mask is tracked backwards by the predictor itself, in a state of its own, before it is believed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.bank.bank import Tracking
from sam2_keyframe.patches.wrapping import during
from sam2_keyframe.rules.verify import FEWEST, LOST, Agreement, Backward, Box, Watch, area
from sam2_keyframe.scorers.masks import mask_boxes

FEATURES = "_keyframe_features"
"""Under which the image features of the last frames lie in an inference state, for all its objects."""

ASIDE: ContextVar[bool] = ContextVar("SAM 2 runs as it is, in a state of the check's own", default=False)


class Features(dict[int, Any]):
    """What is held of the last frames of one inference state, by frame."""


class Verifier:
    """Checks the masks of all objects of one predictor, tracked one by one.

    Args:
        predictor: The predictor.
        rule: The numbers.
    """

    def __init__(self, predictor: Any, rule: Backward) -> None:
        self.predictor = predictor
        self.rule = rule
        self._held: weakref.WeakValueDictionary[int, Features] = weakref.WeakValueDictionary()  # by `id`

    def release(self) -> None:
        """Let go of the features held in all states."""
        for held in list(self._held.values()):
            held.clear()

    def check(
        self,
        original: Callable[..., Any],
        call: Mapping[str, Any],
        tracking: Tracking,
        entry: MutableMapping[str, Any],
        masks: Tensor,
    ) -> Tensor:
        """Return the mask logits to show of a frame just tracked; where they change, the entry's memory does too.

        Reads boxes and ratings on the host, once a frame and object, and once a mask that is tracked back.

        Args:
            original: The predictor's own `_run_single_frame_inference`.
            call: Its arguments.
            tracking: The frame.
            entry: What SAM 2 stores of it.
            masks: (1, 1, H/4, W/4) logits of the mask chosen.
        """
        state, moment, watch = call["inference_state"], tracking.moment, tracking.bank.watch
        if watch is None or tracking.candidates is None:
            return masks
        self._hold(state, moment.frame_idx, moment.reverse)
        candidates, ious = tracking.candidates
        logits = torch.cat([masks[0], candidates[0].float()])
        best = ious if tracking.ranking is None else tracking.ranking
        told = (mask_boxes(logits > 0).flatten(), ious[0], best[0].argmax()[None], entry["object_score_logits"][0])
        *flat, last, score = torch.cat([part.float() for part in told]).tolist()
        boxes: list[Box] = [tuple(flat[i : i + 4]) for i in range(0, 4 * len(logits), 4)]
        box, ratings, chosen = boxes[0], flat[4 * len(logits) :], int(last)
        believed = not watch.doubts(box, ratings[chosen], moment)
        if not believed:
            rivals = watch.rivals(boxes[1:], ratings, chosen) if score > 0 else []
            found, agreement = self._better(original, call, tracking, watch, logits, rivals, area(box) == 0)
            if agreement is not None:
                tracking.measured["backward_iou"] = masks.new_full((), agreement.mean)
                believed = agreement.mean >= self.rule.agree
            if found is not None:
                masks, watch.replaced = found, moment.frame_idx
                self._encode(call, tracking, entry, masks)
                x0, y0, x1, y1 = mask_boxes(masks[0] > 0)[0].tolist()
                box = x0, y0, x1, y1
        watch.note(moment.frame_idx, box, believed, masks[0, 0] > 0)
        return masks

    def _better(
        self,
        original: Callable[..., Any],
        call: Mapping[str, Any],
        tracking: Tracking,
        watch: Watch,
        logits: Tensor,
        rivals: list[int],
        empty: bool,
    ) -> tuple[Tensor | None, Agreement | None]:
        """Return the logits of the candidate that passes best, (1, 1, H/4, W/4), or None; and how what is shown agrees.

        Args:
            original: As in `check`.
            call: As in `check`.
            tracking: As in `check`.
            watch: What is known of the object.
            logits: (1 + K, H/4, W/4) of the mask chosen and of the decoder's candidates.
            rivals: Which of the candidates to look at.
            empty: Whether the mask chosen is.
        """
        then = {idx: box for idx, box in watch.compared().items() if idx in call["inference_state"][FEATURES]}
        ahead = watch.motion.ahead()
        if len(then) < FEWEST or not (rivals or ahead):
            return None, None

        def agreement(mask: Tensor) -> Agreement:
            return Agreement.of(self._back(original, call, mask, list(then)), list(then.values()))

        before = None if empty else agreement(logits[0])
        found: list[tuple[Agreement, int | None, Tensor]] = []
        found += [(agreement(logits[1 + i]), i, logits[1 + i]) for i in rivals]
        if ahead and watch.centre and watch.mask is not None and (before is None or before.mean < LOST):
            shift = round(ahead[0] - watch.centre[0]), round(ahead[1] - watch.centre[1])
            copy = torch.where(_moved(watch.mask, shift), 10.0, -10.0).to(logits)
            found.append((agreement(copy), None, copy))
        passing = [each for each in found if self.rule.passes(each[0], before)]
        if not passing:
            return None, before
        agreed, index, mask = max(passing, key=lambda each: each[0].mean)
        if index is not None:
            tracking.measured["predicted_iou"] = tracking.found[1][0, index].float()
        return mask[None, None], agreed

    def _back(
        self, original: Callable[..., Any], call: Mapping[str, Any], mask: Tensor, frames: list[int]
    ) -> list[Box]:
        """Return the boxes of a mask, (h, w) logits, tracked to frames, the nearest first, by SAM 2 as it is."""
        state, now, model = call["inference_state"], call["frame_idx"], self.predictor
        apart = {**state, "cached_features": state[FEATURES]}
        output_dict: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        size = (model.image_size, model.image_size)
        prompt = (F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False) > 0).float()
        given = {**call, "inference_state": apart, "output_dict": output_dict, "reverse": not call["reverse"]}
        boxes = []
        with during(ASIDE, True):
            entry, logits = original(
                **{**given, "is_init_cond_frame": True, "mask_inputs": prompt, "run_mem_encoder": False}
            )
            full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            entry["maskmem_features"], entry["maskmem_pos_enc"] = model._run_memory_encoder(
                apart, now, 1, full, entry["object_score_logits"], True
            )
            output_dict["cond_frame_outputs"][now] = entry
            for frame_idx in _between(now, frames[-1]):
                if frame_idx in state[FEATURES]:
                    entry, logits = original(**{**given, "frame_idx": frame_idx})
                    output_dict["non_cond_frame_outputs"][frame_idx] = entry
                    if frame_idx in frames:
                        boxes.append(mask_boxes(logits[0] > 0)[0])
        return [tuple(box) for box in torch.stack(boxes).float().tolist()]

    def _encode(
        self, call: Mapping[str, Any], tracking: Tracking, entry: MutableMapping[str, Any], masks: Tensor
    ) -> None:
        """Encode a frame's memory anew, of a mask that shows the object; its pointer stays."""
        size = (self.predictor.image_size, self.predictor.image_size)
        full = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        seen = torch.full_like(entry["object_score_logits"], 10.0)

        def encode(prompted: bool) -> Tensor:
            features: Tensor = self.predictor._run_memory_encoder(
                call["inference_state"], call["frame_idx"], 1, full, seen, prompted
            )[0]
            return features

        with during(ASIDE, True):
            entry["maskmem_features"] = encode(False)
            if tracking.as_prompted is not None:
                tracking.as_prompted = encode(True)
        entry["pred_masks"] = masks.to(entry["pred_masks"].device, non_blocking=True)
        if tracking.encoded is not None:
            tracking.encoded = {**tracking.encoded, "maskmem_features": entry["maskmem_features"].to(masks.device)}

    def _hold(self, state: MutableMapping[str, Any], frame_idx: int, reverse: bool) -> None:
        """Keep the features of a frame, and of the last ones before it."""
        held: Features = state.setdefault(FEATURES, Features())
        self._held[id(held)] = held
        image, backbone = state["cached_features"][frame_idx]
        # Of the position encodings, which are the same on every frame, attention reads the last alone.
        encodings = next((kept["vision_pos_enc"] for _, kept in held.values()), None)
        if encodings is None:
            *rest, last = backbone["vision_pos_enc"]
            encodings = [*(each.new_empty(1, 0, *each.shape[-2:]) for each in rest), last]
        features = {"backbone_fpn": backbone["backbone_fpn"], "vision_pos_enc": encodings}
        held[frame_idx] = image.new_empty(1, image.shape[1], 0, 0), features
        ahead = (1 if reverse else -1) * self.rule.frames
        for idx in [
            idx for idx in held if not min(frame_idx, frame_idx + ahead) <= idx <= max(frame_idx, frame_idx + ahead)
        ]:
            del held[idx]


def _between(now: int, last: int) -> range:
    """Return the frames from the one before `now` to `last`, in either direction."""
    step = 1 if last > now else -1
    return range(now + step, last + step, step)


def _moved(mask: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return a (h, w) bool mask moved by whole pixels; what leaves the frame is gone."""
    moved = torch.zeros_like(mask)
    height, width = mask.shape
    (x, y) = shift
    to = slice(max(y, 0), min(height, height + y)), slice(max(x, 0), min(width, width + x))
    source = slice(max(-y, 0), min(height, height - y)), slice(max(-x, 0), min(width, width - x))
    moved[to] = mask[source]
    return moved
