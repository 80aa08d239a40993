"""Live video: one frame in, its masks out, in memory that does not grow with time."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_keyframe.bank.statistics import MemoryStats
from sam2_keyframe.methods import KeyframeMemory, make_method
from sam2_keyframe.patches import driver_of
from sam2_keyframe.patches.driving import Output
from sam2_keyframe.plugin import ATTRIBUTE, Handle, memory_stats, wrap
from sam2_keyframe.video.confidence import Confidence, with_confidence
from sam2_keyframe.video.decode import to_rgb
from sam2_keyframe.video.prompts import Prompts, read_prompts
from sam2_keyframe.video.source import normalise
from sam2_keyframe.video.window import resize


class Stream:
    """Tracks objects through frames as they come, for as long as they come.

    Holds the current frame, the method's bounded memory, and a fixed number of prompted frames an object. Masks are
    those of SAM 2 tracking the whole video (of at least 16 frames) when all prompts are on the first frame, and
    those of SAM 2 driven frame by frame otherwise, under the same method.

    A context manager; `close()`, the end of the `with` or dropping the stream gives the predictor back unwrapped.

    Args:
        predictor: A SAM 2 video predictor or a video model of transformers, of the stream's own while it is open.
        method: What `sam2_keyframe.wrap` takes; None leaves the predictor as it is, wrapped or not. "stock" grows.
        channels: Order of the channels in the arrays given to `step`: "rgb", or "bgr" as OpenCV has them.
        max_prompts: Prompted frames kept for each object: the first and the newest; at least 2.
        offload_state_to_cpu: Keep memories on the CPU, as in SAM 2.
        confidence: Whether confidence is measured, for `confidence()`.
        **overrides: Choices of the method to replace, as in `wrap`.

    Raises:
        ValueError: `channels` or `max_prompts` is out of range, or the method is unknown.
        TypeError: The predictor is not supported.
        RuntimeError: The predictor is wrapped already, and `method` is not None.
    """

    def __init__(
        self,
        predictor: Any,
        method: str | KeyframeMemory | None = "keyframe",
        *,
        channels: Literal["rgb", "bgr"] = "rgb",
        max_prompts: int = 8,
        offload_state_to_cpu: bool = False,
        confidence: bool = False,
        **overrides: Any,
    ):
        if channels not in ("rgb", "bgr"):
            raise ValueError(f"channels is {channels!r}; give 'rgb' or 'bgr'")
        if max_prompts < 2:
            raise ValueError(f"max_prompts is {max_prompts}; give at least 2, for the first and the newest")
        self.predictor = predictor
        self._driver = driver_of(predictor)
        self.frame_idx = -1
        self._channels = channels
        self._max_prompts = max_prompts
        self._offload = offload_state_to_cpu
        self._state: Any = None
        self._corrected = False
        self._closed = False
        self._measures = confidence and method is not None
        self._handle: Handle | None = None
        if method is not None:
            if ATTRIBUTE in vars(predictor):
                raise RuntimeError(
                    "the predictor is wrapped already: close the stream that did it, call "
                    "sam2_keyframe.unwrap(predictor), or give method=None to stream with the method it has"
                )
            # a stream cannot go back to click on a past frame, so it keeps no masks of them
            chosen = make_method(method, **{"keep_masks": False, **overrides})
            self._handle = wrap(predictor, with_confidence(chosen) if confidence else chosen)
            self._end = weakref.finalize(self, self._handle.unwrap)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the frame and the memory, and undo the wrapping. A second call does nothing."""
        self._closed = True
        self._state = None
        if self._handle is not None:
            self._end()

    @property
    def obj_ids(self) -> list[Any]:
        """Ids of the objects that are tracked."""
        return [] if self._state is None else self._driver.obj_ids(self._state)

    @property
    def stats(self) -> dict[Any, MemoryStats]:
        """The memory statistics of each object: totals, and the last 1,000 frames."""
        return {} if self._state is None else memory_stats(self._state)

    def confidence(self) -> dict[Any, Confidence]:
        """Return how far the masks that `step` returned last are to be trusted, by object id.

        The numbers cross to the host with the scores of the frame; asking for them waits for the device. Objects that
        were prompted on the frame have none, because SAM 2 does not track them there.

        Raises:
            RuntimeError: The stream was made without `confidence=True`.
        """
        if not self._measures:
            raise RuntimeError("confidence is not measured: make the stream with confidence=True and a method")
        last = {obj_id: stats.last for obj_id, stats in self.stats.items()}
        rows = {obj_id: row for obj_id, row in last.items() if row is not None and row.frame_idx == self.frame_idx}
        return {obj_id: Confidence.of(row) for obj_id, row in rows.items()}

    @torch.inference_mode()
    def step(
        self,
        frame: npt.NDArray[np.uint8] | Tensor,
        *,
        masks: Prompts | None = None,
        points: Prompts | None = None,
        boxes: Prompts | None = None,
    ) -> Output:
        """Track every object to the next frame, after prompting those that prompts are given for.

        Args:
            frame: (H, W, 3) uint8 array in the stream's channel order, or a (3, H, W) tensor in that order, uint8 or
                float in [0, 1]. All frames have one size.
            masks: By object id, (H, W) boolean masks. An unknown id adds an object.
            points: By object id, a pair: (n, 2) x and y in pixels on the frame, and n labels (1: on the object, 0: off
                it); at least one point.
            boxes: By object id, (4,) x0, y0, x1, y1 in pixels, some of it on the frame. Points and a box for one
                object go together.

        Returns:
            Frame index (0, 1, ...), object ids, and (N, 1, H, W) float32 mask logits on the predictor's device, which
            the stream does not keep. Without objects N is 0, and the model does not run.

        Raises:
            RuntimeError: The stream is closed.
            ValueError: The frame is of another size or no image, or a prompt is malformed or off the frame; the frame
                then counts as not given.
            TypeError: The frame is no image at all, or prompts are not given by object id.
        """
        rgb = to_rgb(frame)
        prompts = read_prompts(masks, points, boxes, (rgb.shape[0], rgb.shape[1]))
        if self._channels == "bgr":
            rgb = np.ascontiguousarray(rgb[..., ::-1])
        state, t = self._open(rgb), self.frame_idx + 1
        try:
            if prompts or self.obj_ids:
                self._show(state, t, rgb)
            if prompts:
                self._driver.prompt(state, t, prompts)
            if not self.obj_ids:
                output: Output = (t, [], torch.zeros((0, 1, *rgb.shape[:2]), device=self._driver.device))
            else:
                frame_idx, obj_ids, logits = self._driver.step(state, t)
                output = (frame_idx, list(obj_ids), logits)
        except BaseException:
            self._driver.take_back(state)  # the next frame takes this one's number
            raise
        self.frame_idx = t
        self._driver.trim(state, t, self._max_prompts)
        return output

    @torch.inference_mode()
    def correct(
        self, *, masks: Prompts | None = None, points: Prompts | None = None, boxes: Prompts | None = None
    ) -> Output:
        """Correct the frame that `step` returned last: show the object's mask, then say what is wrong with it.

            frame_idx, obj_ids, mask_logits = stream.step(frame)
            frame_idx, obj_ids, mask_logits = stream.correct(points={1: ([[x, y]], [0])})   # not that part

        Clicks and boxes refine the mask that the frame has, earlier corrections included; a mask replaces it. The
        corrected frame goes into the memory before the next `step`, and what it teaches holds from there on: frames
        returned already stay as they were. Other objects are untouched; an unknown id adds an object here.

        On the frame that an object was first prompted on, SAM 2 shows a correction and then discards it; set
        `predictor.add_all_frames_to_correct_as_cond = True` to have it kept. Give all that is known of a new object to
        `step` at once instead.

        Args:
            masks: As in `step`.
            points: As in `step`.
            boxes: As in `step`.

        Returns:
            As `step`: the same frame index, all object ids, and (N, 1, H, W) logits with the correction.

        Raises:
            RuntimeError: There is no frame yet, the last one had no object, or the stream is closed.
            ValueError: No prompt is given, or one is malformed or off the frame.
        """
        state = self._state
        if self._closed:
            raise RuntimeError("the stream was closed; make a new Stream")
        if state is None or not self._driver.shows(state, self.frame_idx):
            raise RuntimeError("there is no frame to correct; call step() with a frame and a prompt first")
        prompts = read_prompts(masks, points, boxes, self._driver.frame_size(state))
        if not prompts:
            raise ValueError("correct() was given no prompt; give masks, points or boxes by object id")
        frame_idx, obj_ids, logits = self._driver.correct(state, self.frame_idx, prompts)
        self._corrected = True
        return frame_idx, list(obj_ids), logits

    def remove(self, obj_id: Hashable) -> None:
        """Stop tracking an object and let go of all that is held for it.

        Raises:
            KeyError: There is no such object.
        """
        if obj_id not in self.obj_ids:
            raise KeyError(f"object {obj_id!r} is not tracked; the objects are {self.obj_ids}")
        self._driver.remove(self._state, obj_id)

    # -- one frame ----------------------------------------------------------------------------------------------

    def _open(self, rgb: npt.NDArray[np.uint8]) -> Any:
        if self._closed:
            raise RuntimeError("the stream was closed; make a new Stream")
        if self._handle is not None and not self._handle.active:
            raise RuntimeError(
                "the predictor was wrapped again or unwrapped while this stream was open, so its method no longer "
                "runs; close the stream, and give each stream a predictor of its own"
            )
        if self._state is None:
            self._state = self._driver.open(rgb, offload_state_to_cpu=self._offload)
        size = self._driver.frame_size(self._state)
        if rgb.shape[:2] != size:
            raise ValueError(
                f"the frame is {rgb.shape[1]}x{rgb.shape[0]} and the first one was {size[1]}x{size[0]}; "
                "resize it, or make a new Stream"
            )
        return self._state

    def _show(self, state: Any, t: int, rgb: npt.NDArray[np.uint8]) -> None:
        """Make `rgb` the state's only frame."""
        if self._corrected:
            self._driver.take_in(state)
        self._corrected = False
        size, device = self._driver.image_size, self._driver.device
        self._driver.show(state, t, rgb, lambda: normalise(resize(rgb, size), device))
