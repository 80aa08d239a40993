"""Driving a host frame by frame: facebookresearch's SAM 2, its inference state made from one frame.

SAM 2 reads a whole video before it begins, and draws progress bars without asking. `Stream`, `init_state`, `record` and
the command line come to a host through a `Driver` alone; that of another host overrides what it does otherwise.
"""

from __future__ import annotations

import functools
import tempfile
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_keyframe.bank.bank import KEY
from sam2_keyframe.patches.bounded import TrackedFrames, keep_only

Output = tuple[int, list[Any], Tensor]
"""SAM 2's own: frame index, object ids, (N, 1, H, W) mask logits (> 0 is object) at the frame's size."""

ENDLESS = 10**9
"""Frames of a video that does not end: SAM 2 scales the time between frames by min(num_frames, 16)."""

Prompted = Mapping[Hashable, Mapping[str, Any]]
"""By object id, its prompt on a frame, in pixels: a mask, or points and labels, or a box, or those and it."""


class TrackedPerObject(dict[int, TrackedFrames]):
    """`state["frames_tracked_per_obj"]`: what SAM 2 puts in as an empty dict becomes a `TrackedFrames`.

    As dicts of dicts they take about 300 bytes a frame and object, 60 MB in two hours.
    """

    def __setitem__(self, obj_idx: int, tracked: Any) -> None:
        super().__setitem__(obj_idx, tracked if isinstance(tracked, TrackedFrames) else TrackedFrames(tracked))


class Driver:
    """Opens a state, prompts, steps and removes, for one predictor.

    Args:
        predictor: A SAM 2 video predictor, wrapped or not.

    Attributes:
        image_size: Side of the square that the model sees, in pixels.
        device: Where it runs.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self.image_size: int = predictor.image_size
        self.device = torch.device(predictor.device)

    def open(self, frame: npt.NDArray[np.uint8], images: Any = None, num_frames: int = ENDLESS, **options: Any) -> Any:
        """Return an inference state of a video.

        Args:
            frame: Its first frame, (H, W, 3) uint8 RGB.
            images: Where SAM 2 finds frames, by index; None: nowhere, until `show`.
            num_frames: How many there are.
            **options: Of the predictor's `init_state`.

        Raises:
            OSError: The system's temporary folder has no room for one frame.
        """
        state = state_from_frame(self.predictor, frame, **options)
        state["num_frames"] = num_frames
        if images is not None:
            state["images"] = images
            state["frames_tracked_per_obj"] = TrackedPerObject()
        return state

    def length(self, state: Any) -> int:
        """Return how many frames the video has."""
        return int(state["num_frames"])

    def frame_size(self, state: Any) -> tuple[int, int]:
        """Return height and width of its frames."""
        return int(state["video_height"]), int(state["video_width"])

    def obj_ids(self, state: Any) -> list[Any]:
        """Return the ids of its objects."""
        return list(state["obj_ids"])

    def show(self, state: Any, t: int, frame: npt.NDArray[np.uint8], image: Callable[[], Tensor]) -> None:
        """Make a frame the state's only one.

        Args:
            state: The state.
            t: The frame's number.
            frame: (H, W, 3) uint8 RGB.
            image: Gives it as (3, S, S), as SAM 2 resizes and normalises it.
        """
        state["images"] = {t: image()}

    def shows(self, state: Any, t: int) -> bool:
        """Return whether frame `t` is there."""
        return t in state["images"]

    def prompt(self, state: Any, t: int, prompts: Prompted) -> None:
        """Prompt objects on a frame that is tracked next."""
        self.correct(state, t, prompts)

    def correct(self, state: Any, t: int, prompts: Prompted) -> Output:
        """Prompt or correct objects, at least one; return the masks of the frame as they are then."""
        for obj_id, prompt in prompts.items():
            if "mask" in prompt:
                output: Output = self.predictor.add_new_mask(state, t, obj_id, prompt["mask"])
            else:
                output = self.predictor.add_new_points_or_box(state, t, obj_id, **prompt)
        return output

    def take_in(self, state: Any) -> None:
        """Encode what was prompted or corrected; SAM 2 does so when tracking goes on, from that frame's features."""
        if state["obj_ids"]:
            self.predictor.propagate_in_video_preflight(state)

    def track(self, state: Any, start: int, count: int, reverse: bool = False) -> Iterator[Output]:
        """Yield the masks of frame `start` and of `count` more, without a progress bar."""
        propagate = quiet(self.predictor.propagate_in_video)
        yield from propagate(state, start_frame_idx=start, max_frame_num_to_track=count, reverse=reverse)

    def step(self, state: Any, t: int) -> Output:
        """Return the masks of frame `t`."""
        tracking = self.track(state, t, 0)
        try:
            return next(tracking)
        finally:
            tracking.close()  # type: ignore[attr-defined]

    def take_back(self, state: Any) -> None:
        """Forget the frame shown: the next one takes its number."""
        state["cached_features"].clear()

    def remove(self, state: Any, obj_id: Hashable) -> None:
        """Let an object go."""
        self.predictor.remove_object(state, obj_id, need_output=False)

    def trim(self, state: Any, t: int, most: int) -> None:
        """Let go of bookkeeping of frames before `t`; of prompted ones the first and the newest stay, `most` in all."""
        for name in ("frames_tracked_per_obj", "point_inputs_per_obj", "mask_inputs_per_obj"):
            for per_frame in state[name].values():
                keep_only(per_frame, [t])
        trim_prompts(state["output_dict_per_obj"].values(), most)


def trim_prompts(places: Iterable[MutableMapping[str, Any]], most: int) -> None:
    """Let go, of each object, all prompted frames but the first and the newest, and corrections likewise."""
    for place in places:
        prompted = sorted(place["cond_frame_outputs"])
        keep_only(place["cond_frame_outputs"], prompted[:1] + prompted[1:][1 - most :])
        bank = place.get(KEY)
        if bank is not None:
            bank.let_go_corrections(most)


def quiet(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a predictor's method that does the same without progress bars, which SAM 2 draws without asking.

    It is a copy of the method's code in which the name `tqdm` stands for a bar that is off, and so are the functions
    of SAM 2 that it calls by name. Nothing of the predictor, its module or the process is changed, so threads do not
    meet. A method that `Wrapping` put on the predictor goes on over the quiet original; any other is returned as it is.
    """
    if hasattr(method, "over"):
        return method.over(quiet(method.__wrapped__))  # type: ignore[attr-defined, no-any-return]
    function = getattr(method, "__func__", None)
    if not isinstance(function, types.FunctionType):
        return method
    if function.__module__.startswith("torch.") or function.__code__.co_filename.endswith("_contextlib.py"):
        function = getattr(function, "__wrapped__", None)  # SAM 2 puts torch.inference_mode() around it
    if not isinstance(function, types.FunctionType):
        return method
    return types.MethodType(torch.inference_mode()(_without_tqdm(function, {})), method.__self__)  # type: ignore[attr-defined]


def _without_tqdm(function: types.FunctionType, made: dict[Any, Any]) -> types.FunctionType:
    names = dict(function.__globals__)
    made[function] = twin = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    package = str(names.get("__name__", "")).partition(".")[0]
    for name in function.__code__.co_names:
        value = names.get(name)
        if name == "tqdm" and callable(value):
            names[name] = functools.partial(value, disable=True)
        elif isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == package:
            names[name] = made.get(value) or _without_tqdm(value, made)
    return twin


def state_from_frame(predictor: Any, frame: npt.NDArray[np.uint8], **options: Any) -> dict[str, Any]:
    """Return the predictor's own inference state for a video whose first frame is `frame`, (H, W, 3) uint8 RGB.

    The predictor's `init_state` wants a folder: it is given one frame, stored without loss (SAM 2 goes by the
    file's name, PIL by its content), and so makes everything of the state itself, the first frame's features too.

    Raises:
        OSError: The system's temporary folder has no room for one frame.
    """
    content = f"P6 {frame.shape[1]} {frame.shape[0]} 255\n".encode() + np.ascontiguousarray(frame).tobytes()  # a PPM
    with tempfile.TemporaryDirectory(prefix="sam2-keyframe-") as folder:
        try:
            Path(folder, "00000.jpg").write_bytes(content)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; a frame has to fit into the temporary folder", folder
            ) from None
        state: dict[str, Any] = quiet(predictor.init_state)(folder, **options)
    return state
