"""Driving a video model of transformers: its session over frames that are read as they are needed."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.patches.driving import ENDLESS, Driver, Output
from sam2_keyframe.patches.frames import IMAGENET, Colours


class LazyPixels(Mapping[int, Tensor]):
    """A session's `processed_frames` whose frames are read when they are asked for.

    Args:
        images: What gives frame t as (3, S, S), normalised as for SAM 2.
        num_frames: How many there are.
        colours: Mean and deviation that the model wants instead.
        dtype: In which it wants them.
    """

    def __init__(self, images: Any, num_frames: int, colours: Colours, dtype: torch.dtype) -> None:
        self.source = images
        self._num_frames = num_frames
        self._colours = colours
        self._dtype = dtype

    def __len__(self) -> int:
        return self._num_frames

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._num_frames))

    def __getitem__(self, frame_idx: int) -> Tensor:
        if not 0 <= frame_idx < self._num_frames:
            raise KeyError(frame_idx)
        image: Tensor = self.source[frame_idx]
        if self._colours != IMAGENET:
            (mean, std), (wanted_mean, wanted_std) = (
                (torch.tensor(values, device=image.device).view(3, 1, 1) for values in colours)
                for colours in (IMAGENET, self._colours)
            )
            image = (image * std + mean - wanted_mean) / wanted_std
        return image.to(self._dtype)


class SessionDriver(Driver):
    """Opens sessions of a model over whole videos, prompts them and steps through them.

    Args:
        predictor: The model, wrapped or not.
        colours: Mean and deviation by which its frames are normalised.
    """

    def __init__(self, predictor: Any, colours: Colours) -> None:
        self.predictor = predictor
        self.image_size = int(predictor.config.image_size)
        self._colours = colours

    def open(self, frame: npt.NDArray[np.uint8], images: Any = None, num_frames: int = ENDLESS, **options: Any) -> Any:
        """Return a session over a video.

        Args:
            frame: Its first frame, (H, W, 3) uint8 RGB.
            images: What gives the frames, by index.
            num_frames: How many there are.
            **options: `offload_state_to_cpu`; others have no meaning here.

        Raises:
            TypeError: There are no `images`, as for a live stream.
        """
        if images is None:
            self._refuse("Stream takes facebookresearch's predictors. Give frames to a session one by one, as in")
        model = self.predictor
        known = next(cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))
        session_class = getattr(sys.modules[known.__module__], known.__name__.replace("Model", "InferenceSession"))
        session = session_class(
            video_height=frame.shape[0],
            video_width=frame.shape[1],
            inference_device=model.device,
            inference_state_device="cpu" if options.get("offload_state_to_cpu") else model.device,
            dtype=model.dtype,
        )
        session.processed_frames = LazyPixels(images, num_frames, self._colours, model.dtype)
        return session

    def _refuse(self, why: str) -> NoReturn:
        raise TypeError(f"{type(self.predictor).__name__}: {why} model(inference_session=session, frame=pixels)")

    def prompt(self, state: Any, t: int, obj_id: Hashable, prompt: Mapping[str, Any]) -> Output:
        """Prompt or correct an object: `prompt` has a mask, or points and labels, or a box, or those and it.

        transformers infers all objects of the frame with it.
        """
        index, size = state.obj_id_to_idx(obj_id), self.image_size
        if "mask" in prompt:
            mask = torch.as_tensor(prompt["mask"]).float()[None, None]
            if mask.shape[-2:] != (size, size):
                mask = F.interpolate(mask, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
            state.add_mask_inputs(index, t, (mask >= 0.5).float())
            state.remove_point_inputs(index, t)
        else:
            points = [torch.as_tensor(prompt[key]).float().reshape(-1, 2) for key in ("box", "points") if key in prompt]
            labels = [2, 3] if "box" in prompt else []
            labels += [int(label) for label in prompt.get("labels", ())]
            scale = torch.tensor([size / state.video_width, size / state.video_height])
            clicks = {
                "point_coords": (torch.cat(points) * scale)[None, None],
                "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None],
            }
            state.add_point_inputs(index, t, clicks)
            state.remove_mask_inputs(index, t)
        if obj_id not in state.obj_with_new_inputs:
            state.obj_with_new_inputs.append(obj_id)
        return self.step(state, t)

    def take_in(self, state: Any) -> None:
        """Do nothing: prompts are encoded as they are given."""

    def track(self, state: Any, start: int, count: int, reverse: bool = False) -> Iterator[Output]:
        """Yield the masks of frame `start` and of `count` more."""
        last = max(start - count, 0) if reverse else min(start + count, len(state.processed_frames) - 1)
        for t in range(start, last - 1, -1) if reverse else range(start, last + 1):
            yield self.step(state, t, reverse)

    def step(self, state: Any, t: int, reverse: bool = False) -> Output:
        """Return the masks of frame `t`."""
        output = self.predictor(inference_session=state, frame_idx=t, reverse=reverse)
        size = int(state.video_height), int(state.video_width)
        masks = F.interpolate(output.pred_masks.float(), size=size, mode="bilinear", align_corners=False)
        return t, list(output.object_ids), masks

    def remove(self, state: Any, obj_id: Hashable) -> None:
        """Refuse: sessions of transformers keep their objects.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a session of transformers cannot let an object go: open one without it")
