"""Driving a video model of transformers: its session over frames that are read as they are needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_keyframe.patches.bounded import keep_only
from sam2_keyframe.patches.driving import ENDLESS, Driver, Output, Prompted, trim_prompts
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
    """Opens sessions of a model, prompts them and steps through them.

    Args:
        predictor: The model, wrapped or not.
        colours: Mean and deviation by which its frames are normalised.
    """

    def __init__(self, predictor: Any, colours: Colours) -> None:
        self.predictor = predictor
        self.image_size = int(predictor.config.image_size)
        self.device = torch.device(predictor.device)
        self._colours = colours

    def open(self, frame: npt.NDArray[np.uint8], images: Any = None, num_frames: int = ENDLESS, **options: Any) -> Any:
        """Return a session over a video; see `Driver.open`. Of the options, `offload_state_to_cpu` has a meaning."""
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
        frames = {} if images is None else images
        session.processed_frames = LazyPixels(frames, num_frames, self._colours, model.dtype)
        return session

    def length(self, state: Any) -> int:
        """Return how many frames the video has."""
        return len(state.processed_frames)

    def frame_size(self, state: Any) -> tuple[int, int]:
        """Return height and width of its frames."""
        return int(state.video_height), int(state.video_width)

    def obj_ids(self, state: Any) -> list[Any]:
        """Return the ids of its objects."""
        return list(state.obj_ids)

    def show(self, state: Any, t: int, frame: npt.NDArray[np.uint8], image: Callable[[], Tensor]) -> None:
        """Make a frame the session's only one; see `Driver.show`."""
        state.processed_frames.source = {t: image()}

    def shows(self, state: Any, t: int) -> bool:
        """Return whether frame `t` is there."""
        return t in state.processed_frames.source

    def prompt(self, state: Any, t: int, prompts: Prompted) -> None:
        """Prompt objects on a frame that is tracked next, which infers them. Clicks are added to those of the frame."""
        for obj_id, prompt in prompts.items():
            index, size = state.obj_id_to_idx(obj_id), self.image_size
            if "mask" in prompt:
                mask = torch.as_tensor(prompt["mask"]).float()[None, None]
                if mask.shape[-2:] != (size, size):
                    mask = F.interpolate(mask, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
                state.add_mask_inputs(index, t, (mask >= 0.5).float())
                state.remove_point_inputs(index, t)
            else:
                state.add_point_inputs(index, t, self._clicks(state, t, index, prompt))
                state.remove_mask_inputs(index, t)
            if obj_id not in state.obj_with_new_inputs:
                state.obj_with_new_inputs.append(obj_id)

    def _clicks(self, state: Any, t: int, index: int, prompt: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the inputs of a box and points; transformers has no mask of the frame to refine, so all are given."""
        names = [name for name in ("box", "points") if prompt.get(name) is not None]
        points = torch.cat([torch.as_tensor(prompt[name]).float().reshape(-1, 2) for name in names])
        labels = [2, 3] if "box" in names else []
        labels += [int(label) for label in prompt["labels"]] if "points" in names else []
        scale = torch.tensor([self.image_size / state.video_width, self.image_size / state.video_height])
        clicks = {
            "point_coords": (points * scale)[None, None],
            "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None],
        }
        given = state.point_inputs_per_obj[index].get(t)
        if given is not None and "box" not in names:
            clicks = {name: torch.cat([given[name].cpu(), clicks[name]], dim=2) for name in clicks}
        return clicks

    def correct(self, state: Any, t: int, prompts: Prompted) -> Output:
        """Prompt or correct objects; return the masks. transformers tracks the frame's other objects over again."""
        self.prompt(state, t, prompts)
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
        size = self.frame_size(state)
        masks = F.interpolate(output.pred_masks.float(), size=size, mode="bilinear", align_corners=False)
        return t, list(output.object_ids), masks

    def take_back(self, state: Any) -> None:
        """Forget the frame shown and prompts that were not inferred: the next one takes its number."""
        state.cache.clear_all()
        state.obj_with_new_inputs.clear()
        for index, obj_id in reversed(list(enumerate(state.obj_ids))):
            if not state.output_dict_per_obj[index]["cond_frame_outputs"]:
                self.remove(state, obj_id)

    def remove(self, state: Any, obj_id: Hashable) -> None:
        """Let an object go; those after it are numbered anew."""
        gone = state.obj_ids.index(obj_id)
        left = [other for other in state.obj_ids if other != obj_id]
        for per_object in self._tables(state):
            moved = [value for index, value in sorted(per_object.items()) if index != gone]
            per_object.clear()
            per_object.update(enumerate(moved))
        for table in (state._obj_id_to_idx, state._obj_idx_to_id):
            table.clear()
        state._obj_id_to_idx.update((other, index) for index, other in enumerate(left))
        state._obj_idx_to_id.update(enumerate(left))
        state.obj_ids = left
        state.obj_with_new_inputs = [other for other in state.obj_with_new_inputs if other != obj_id]

    def _tables(self, state: Any) -> tuple[MutableMapping[int, Any], ...]:
        """Return all that a session keeps by an object's number."""
        return (
            *(state.output_dict_per_obj, state.frames_tracked_per_obj),
            *(state.point_inputs_per_obj, state.mask_inputs_per_obj),
        )

    def trim(self, state: Any, t: int, most: int) -> None:
        """Let go of bookkeeping of frames before `t`; see `Driver.trim`."""
        for per_frame in (table for per_object in self._tables(state)[1:] for table in per_object.values()):
            keep_only(per_frame, [t])
        trim_prompts(state.output_dict_per_obj.values(), most)
