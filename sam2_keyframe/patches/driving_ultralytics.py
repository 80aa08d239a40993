"""Driving ultralytics' SAM2VideoPredictor over frames that are given to it, where it would open a video by itself.

It goes through a video in `inference`, which asks its data set for the frame's number alone, so a data set of one frame
is put there. Frames are letterboxed and masks scaled back by the predictor's own code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_keyframe.patches.batched import BatchedDriver
from sam2_keyframe.patches.bounded import FrameSet, keep_only
from sam2_keyframe.patches.driving import ENDLESS, Output, Prompted

FRAMES, SIZE = "frames", "frame_size"
"""Under which a state keeps what gives its frames, and their height and width; the predictor knows neither."""


class UltralyticsDriver(BatchedDriver):
    """Opens states, prompts and steps through frames; objects are prompted before the second one.

    Args:
        predictor: The predictor, its network loaded.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        side = predictor.args.imgsz
        self.image_size = int(side if isinstance(side, int) else max(side))
        self.device = torch.device(predictor.device)

    def open(self, frame: npt.NDArray[np.uint8], images: Any = None, num_frames: int = ENDLESS, **options: Any) -> Any:
        """Return a state over a video, which is the predictor's from here on; see `Driver.open`. It has no options."""
        state: dict[str, Any] = self.predictor._init_state(num_frames)
        state[FRAMES] = {} if images is None else _Native(images.source)
        state[SIZE] = frame.shape[:2]
        state["frames_already_tracked"] = FrameSet()
        predictor, side = self.predictor, self.image_size
        predictor.imgsz = [side, side]  # what follows is of its `setup_source`
        predictor.model.set_imgsz(predictor.imgsz)
        predictor._bb_feat_sizes = [[int(side / (predictor.stride * i))] * 2 for i in (1 / 4, 1 / 2, 1)]
        return state

    def frame_size(self, state: Any) -> tuple[int, int]:
        """Return height and width of the video's frames."""
        height, width = state.get(SIZE) or self.predictor.src_shape  # the predictor has opened a video by itself
        return int(height), int(width)

    def show(self, state: Any, t: int, frame: npt.NDArray[np.uint8], image: Callable[[], Tensor]) -> None:
        """Make a frame the state's only one; see `Driver.show`."""
        state[FRAMES] = {t: frame}

    def shows(self, state: Any, t: int) -> bool:
        """Return whether frame `t` is there."""
        return t in state[FRAMES]

    def _load(self, state: MutableMapping[str, Any], t: int) -> Tensor:
        """Make frame `t` the one that the predictor looks at; return it as the network takes it."""
        predictor, bgr = self.predictor, np.ascontiguousarray(state[FRAMES][t][..., ::-1])
        predictor.reset_image()
        predictor.batch = ([""], [bgr], [""])
        predictor.dataset = SimpleNamespace(frame=t, frames=state["num_frames"], mode="video")
        predictor.inference_state = state
        image: Tensor = predictor.preprocess([bgr])
        state["im"] = image
        return image

    def prompt(self, state: Any, t: int, prompts: Prompted) -> None:
        """Prompt objects on a frame that is tracked next."""
        self._add(state, t, prompts)

    def correct(self, state: Any, t: int, prompts: Prompted) -> Output:
        """Prompt or correct objects; return the masks of the frame as they are then."""
        return t, self.obj_ids(state), self._scaled(state, self._add(state, t, prompts))

    def _add(self, state: MutableMapping[str, Any], t: int, prompts: Prompted) -> Tensor:
        image, predictor = self._load(state, t), self.predictor
        for obj_id, given in prompts.items():
            one = {name: [given[name]] for name in ("points", "labels") if given.get(name) is not None}
            points, labels, masks = predictor._prepare_prompts(
                image.shape[2:],
                self.frame_size(state),
                bboxes=given.get("box"),
                points=None if "points" not in one else np.asarray(one["points"], np.float32),
                labels=None if "labels" not in one else np.asarray(one["labels"], np.int32),
                masks=None if "mask" not in given else np.asarray(given["mask"], np.float32),
            )
            inputs = {"points": points, "labels": labels} if masks is None else {"masks": masks}
            logits: Tensor = predictor.add_new_prompts(obj_id, frame_idx=t, inference_state=state, **inputs)[0]
        return logits

    def track(self, state: Any, start: int, count: int, reverse: bool = False) -> Iterator[Output]:
        """Yield the masks of frame `start` and of `count` more.

        Raises:
            TypeError: `reverse` is set, which the predictor does not know.
        """
        if reverse:
            raise TypeError("ultralytics' predictor tracks forward only")
        for t in range(start, min(start + count, state["num_frames"] - 1) + 1):
            yield self.step(state, t)

    @torch.inference_mode()
    def step(self, state: Any, t: int) -> Output:
        """Return the masks of frame `t`."""
        logits, _ = self.predictor.inference(self._load(state, t))
        return t, self.obj_ids(state), self._scaled(state, logits)

    def _scaled(self, state: MutableMapping[str, Any], logits: Tensor) -> Tensor:
        """Return (N, 1, H, W) logits at the frame's size, without the letterbox, as the predictor's `postprocess`."""
        size, sides = self.frame_size(state), (self.image_size, self.image_size)
        gain = min(side / length for side, length in zip(sides, size, strict=True))
        pairs = zip(size, logits.shape[1:], sides, strict=True)
        ratio = [round(length * gain) * stored / side / length for length, stored, side in pairs]
        ops = importlib.import_module("ultralytics.utils.ops")
        masks: Tensor = ops.scale_masks(logits[None].float(), size, (ratio, (0, 0)), padding=False)[0][:, None]
        if self.predictor.non_overlap_masks:
            masks = self.predictor.model._apply_non_overlapping_constraints(masks)
        return masks

    def take_in(self, state: Any) -> None:
        """Encode what was prompted or corrected."""
        if state["obj_ids"]:
            self.predictor.propagate_in_video_preflight(state)

    def take_back(self, state: Any) -> None:
        """Forget the frame shown: the next one takes its number."""
        state[FRAMES] = {}

    def remove(self, state: Any, obj_id: Hashable) -> None:
        """Refuse: the predictor keeps its objects.

        Raises:
            TypeError: Always.
        """
        raise TypeError("ultralytics' predictor cannot let an object go: open a new state without it")

    def trim(self, state: Any, t: int, most: int) -> None:
        """Let go of bookkeeping of frames before `t`; see `Driver.trim`."""
        tracked = {frame_idx: {"reverse": False} for frame_idx in state["frames_already_tracked"] if frame_idx == t}
        super().trim({**state, "frames_already_tracked": tracked}, t, most)
        keep_only(state[FRAMES], {t})
        state["frames_already_tracked"] = FrameSet(tracked)


class _Native:
    """Frames by index at their own size.

    Args:
        source: What gives frame t as (H, W, 3) uint8 RGB by `frame(t)`.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, t: int) -> Any:
        return self.source.frame(t)

    def __contains__(self, t: object) -> bool:
        return isinstance(t, int) and 0 <= t < len(self.source)
