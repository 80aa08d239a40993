"""Video of any length in constant memory: frames decoded ahead on threads, and `init_state` for them.

SAM 2 loads every frame before it starts, 12 MiB each at 1024 px. It only ever asks for `state["images"][t]`, so
`LazyFrames` decodes what is asked for, keeps a small window of 8-bit frames and reads ahead of the tracking. The
pixels equal those of SAM 2's own loader for folders of images bit for bit (`sam2.utils.misc._load_img_as_tensor`:
PIL's resize, then normalisation). Video files are resized the same way, where SAM 2 lets decord resize, so their
pixels differ slightly from stock.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_keyframe.patches import driver_of
from sam2_keyframe.video.bars import without_bars
from sam2_keyframe.video.decode import Frame, Indexed, Iterated, Reader, VideoFile, folder_images
from sam2_keyframe.video.live import Live, is_live
from sam2_keyframe.video.window import Window

__all__ = ["FrameSource", "LazyFrames", "init_state", "without_bars"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@functools.lru_cache(maxsize=8)
def _lookup(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what each of the 3 x 256 values becomes (float64 division as in NumPy), and each channel's offset."""
    value = torch.from_numpy(np.arange(256) / 255.0).to(torch.float32)[None]
    table = (value - torch.tensor(_MEAN)[:, None]) / torch.tensor(_STD)[:, None]
    return table.flatten().to(device), torch.tensor([0, 256, 512], dtype=torch.int32, device=device).view(3, 1, 1)


def normalise(frame: Tensor, device: torch.device) -> Tensor:
    """Return a (3, S, S) uint8 frame as SAM 2's float32 input on `device`, bit-equal to SAM 2's own arithmetic.

    Source: sam2/utils/misc.py `load_video_frames_from_jpg_images`, as a table of the 768 values it can give.
    """
    table, offset = _lookup(device)
    if device.type == "cpu":  # NumPy's take has no threads, which a forked process has not either
        return torch.from_numpy(table.numpy().take(frame.numpy() + offset.numpy()))
    return table.index_select(0, (frame.to(device) + offset).flatten()).view(frame.shape)


class FrameSource:
    """Frames of a video, read as they are asked for and ahead of that on threads; only a small window is held.

    Any order works; forwards and backwards are read ahead. A context manager: leaving it, `close()` or dropping the
    last reference ends the threads. A copy, a pickled one and the one that a forked process inherits read the same
    frames on threads of their own; what can be read only once, such as a generator, can do none of that. What there
    is to know of the frames (a video begins between key frames, pictures carry an EXIF orientation) is said in a
    warning when the first is asked for.

    Args:
        source: A video file, a folder of images (its JPEGs where it has any, in the order of the numbers in their
            names), a (T, H, W, 3) uint8 array, a (T, 3, H, W) tensor (uint8, or float in [0, 1]), a list
            of images or of paths, or any iterable of (H, W, 3) uint8 RGB frames. An iterable is read once, forwards; so
            are the number of a camera and an address ("rtsp://...", "https://..."), see `sam2_keyframe.video.live`.
        num_frames: Number of frames, for iterables without a length; elsewhere an upper bound.
        ahead: Frames read ahead; at least 1. A window holds at most twice as many (and 3 more).
        threads: Threads that decode and resize; at least 1.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The folder holds no images, the file no video, the collection no frames; or `ahead`, `threads` or
            `num_frames` is out of range or missing.
        TypeError: `source` is none of the above.
    """

    def __init__(self, source: Any, *, num_frames: int | None = None, ahead: int = 16, threads: int = 2):
        for name, value in (("ahead", ahead), ("threads", threads), ("num_frames", num_frames)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        reader = _reader(source, num_frames)
        self._begin(reader, min(len(reader), num_frames or len(reader)), ahead, threads)

    def _begin(self, reader: Reader, num_frames: int, ahead: int, threads: int) -> None:
        self._window = Window(reader, ahead, threads)
        self._num_frames = num_frames
        self._end = weakref.finalize(self, self._window.stop)

    def __getstate__(self) -> tuple[Reader, int, int, int]:
        return self._window.reader, self._num_frames, self._window.ahead, self._window.threads

    def __setstate__(self, state: tuple[Reader, int, int, int]) -> None:
        self._begin(*state)

    def __copy__(self) -> FrameSource:
        twin = type(self).__new__(type(self))
        reader, num_frames, ahead, threads = self.__getstate__()
        twin.__setstate__((copy.copy(reader), num_frames, ahead, threads))  # frames of arrays and lists are shared
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> FrameSource:
        return self.__copy__()

    def __len__(self) -> int:
        return self._num_frames

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and close files; frames cannot be asked for afterwards. A second call does nothing."""
        self._end()

    @property
    def fps(self) -> float | None:
        """Frames per second; None where the source does not say."""
        return self._window.reader.fps

    def time(self, t: int) -> float | None:
        """Seconds from frame 0 to frame `t` as the file's time stamps have it; None where the source has none."""
        times = self._window.reader.times
        return times[t] if 0 <= t < len(times) else None

    @property
    def rewinds(self) -> bool:
        """Whether frames can be gone back to."""
        return self._window.reader.rewinds

    @property
    def ended(self) -> str:
        """Why a camera or a stream gives no more frames; "" while it may, and for all that has a length."""
        ended: str = getattr(self._window.reader, "ended", "")
        return ended

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames, known from frame 0 (which is read for it where none was before)."""
        if self._window.frame_size is None:
            self.first()
        return self._window.frame_size or (0, 0)

    @property
    def held_bytes(self) -> int:
        """Bytes of the frames in the window."""
        held = list(self._window.held.values())
        return sum(
            (0 if h.native is None else h.native.nbytes) + (0 if h.resized is None else h.resized.nbytes) for h in held
        )

    def _check(self, t: int) -> int:
        if not 0 <= t < len(self):
            raise IndexError(f"frame {t} is outside the {len(self)} frames 0..{len(self) - 1} of the source")
        return int(t)

    def frame(self, t: int) -> Frame:
        """Return frame `t` at native size: (H, W, 3) uint8 RGB.

        Asking for one makes the window keep native frames too, so that later ones come from the same reading.

        Raises:
            IndexError: There is no frame `t`.
            RuntimeError: The frame is damaged or missing, or the source was closed.
            ValueError: The frame's size is not that of the frames before it.
        """
        self._window.want(native=True)
        frame: Frame = self._window.get(self._check(t), "native")
        return frame

    def resized(self, t: int, image_size: int) -> Tensor:
        """Return frame `t` as SAM 2 resizes it: (3, image_size, image_size) uint8 RGB. Raises as `frame`."""
        self._window.want(image_size=image_size)
        frame: Tensor = self._window.get(self._check(t), "resized")
        return frame

    def first(self, image_size: int | None = None) -> Frame:
        """Return frame 0 at native size, without keeping native frames from then on; the window is for `image_size`.

        Raises as `frame`.
        """
        kept = self._window.native
        self._window.want(native=True, image_size=image_size)
        try:
            frame: Frame = self._window.get(0, "native")
        finally:
            self._window.want(native=kept)
        return frame


def _reader(source: Any, num_frames: int | None) -> Reader:
    if is_live(source):
        return Live(source)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return Indexed(folder_images(path), f"folder {str(path)!r}")
        if not path.exists():
            raise FileNotFoundError(f"{str(path)!r} does not exist; give a video file, a folder of images or frames")
        if not path.is_file():
            raise ValueError(
                f"{str(path)!r} is a pipe or a device, in which frames cannot be counted or gone back to; save it to "
                "a file, or use sam2_keyframe.Stream for a live source"
            )
        return VideoFile(path)
    if isinstance(source, np.ndarray | Tensor) and source.ndim != 4:
        raise ValueError(f"an array of frames has shape {tuple(source.shape)}; give (T, H, W, 3), or a list of frames")
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return Indexed(source, f"the {type(source).__name__}")
    if not isinstance(source, Iterable):
        raise TypeError(
            f"frames come from a video file, a folder, an array or an iterable of frames, not from a "
            f"{type(source).__name__}; open it first"
        )
    if num_frames is None:
        raise ValueError(
            f"num_frames is missing: the length of a {type(source).__name__} is not known beforehand; pass num_frames, "
            "give a list, or use sam2_keyframe.Stream for a live source"
        )
    return Iterated(source, num_frames)


class LazyFrames:
    """A predictor's `images`: `frames[t]` is frame `t` as SAM 2 expects it, read when it is asked for.

    Args:
        source: Where frames come from.
        image_size: The model's input side S.
        device: Where the frames go.
    """

    def __init__(self, source: FrameSource, image_size: int, device: torch.device | str):
        self.source = source
        self.image_size = image_size
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, t: int) -> Tensor:
        """Return (3, S, S) float32, ImageNet-normalised, on `device`. Raises as `FrameSource.frame`."""
        return normalise(self.source.resized(t, self.image_size), self.device)


def init_state(
    predictor: Any,
    source: Any,
    offload_video_to_cpu: bool = False,
    offload_state_to_cpu: bool = False,
    async_loading_frames: bool = True,
    *,
    num_frames: int | None = None,
    ahead: int = 16,
    threads: int = 2,
) -> dict[str, Any]:
    """Return an inference state that reads its frames as they are needed: a drop-in for `predictor.init_state`.

    Masks equal stock's bit for bit for folders of images. Memory does not grow with the video's length, apart from
    SAM 2's memory bank (which `sam2_keyframe.wrap` bounds).

    Args:
        predictor: A SAM 2 video predictor, or a video model of transformers.
        source: A `FrameSource`, or anything that one is made of: a video file, a folder of images, an array, an
            iterable of frames.
        offload_video_to_cpu: Normalise frames on the CPU; they are moved when they are tracked. Rarely useful here.
        offload_state_to_cpu: Keep memories and mask logits on the CPU, as in SAM 2.
        async_loading_frames: Accepted for compatibility; frames are always read ahead on threads.
        num_frames: As in `FrameSource`.
        ahead: As in `FrameSource`.
        threads: As in `FrameSource`.

    Returns:
        SAM 2's inference state; `state["images"].source` is the `FrameSource`, whose threads end with the state. For a
        model of transformers, its session: `session.processed_frames.source.source`.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: `source` holds no frames.
        RuntimeError: The first frame is damaged.

    Source: sam2/sam2_video_predictor.py `init_state`, which is called on the first frame.
    """
    frames = source
    if not isinstance(frames, FrameSource):
        frames = FrameSource(source, num_frames=num_frames, ahead=ahead, threads=threads)
    driver = driver_of(predictor)
    first = frames.first(driver.image_size)
    device = torch.device("cpu" if offload_video_to_cpu else predictor.device)
    state: dict[str, Any] = driver.open(
        first,
        LazyFrames(frames, driver.image_size, device),
        len(frames),
        offload_video_to_cpu=offload_video_to_cpu,
        offload_state_to_cpu=offload_state_to_cpu,
    )
    return state
