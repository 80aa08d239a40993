"""SAM 2's inference state, made by the predictor itself from one frame, and what is replaced in it."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import torch

from sam2_keyframe.video.decode import Frame


class _Tracked(MutableMapping[int, dict[str, bool]]):
    """SAM 2's record of the frames tracked for an object, `{t: {"reverse": bool}}`, in a byte a frame from the start.

    As a dict of dicts it takes about 300 bytes a frame and object, 60 MB in two hours.
    """

    def __init__(self, num_frames: int):
        self._codes = bytearray(num_frames)  # 0: not tracked, 1: forwards, 2: in reverse

    def __getitem__(self, t: int) -> dict[str, bool]:
        if t not in self:
            raise KeyError(t)
        return {"reverse": self._codes[t] == 2}

    def __setitem__(self, t: int, how: dict[str, bool]) -> None:
        self._codes[t] = 2 if how["reverse"] else 1

    def __delitem__(self, t: int) -> None:
        if t not in self:
            raise KeyError(t)
        self._codes[t] = 0

    def __contains__(self, t: object) -> bool:
        return isinstance(t, int) and 0 <= t < len(self._codes) and self._codes[t] != 0

    def __iter__(self) -> Iterator[int]:
        return (t for t, code in enumerate(self._codes) if code)

    def __len__(self) -> int:
        return len(self._codes) - self._codes.count(0)

    def clear(self) -> None:
        """Forget all."""
        self._codes = bytearray(len(self._codes))


class TrackedPerObject(dict[int, _Tracked]):
    """`state["frames_tracked_per_obj"]`: what SAM 2 puts in as an empty dict becomes a `_Tracked`."""

    def __init__(self, num_frames: int):
        super().__init__()
        self._num_frames = num_frames

    def __setitem__(self, obj_idx: int, tracked: Any) -> None:
        if not isinstance(tracked, _Tracked):
            compact = _Tracked(self._num_frames)
            compact.update(tracked)
            tracked = compact
        super().__setitem__(obj_idx, tracked)


class _WithoutBars(io.TextIOBase):
    """A stderr that lets everything through but progress bars, which SAM 2 draws without asking."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._bar = False

    def write(self, text: str) -> int:
        """Pass on what is not a bar, nor the newline that ends one."""
        ends_bar = self._bar and text == "\n"
        self._bar = text.startswith("\r")
        if not self._bar and not ends_bar:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what is underneath."""
        self._stream.flush()


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide progress bars that are made inside; warnings and messages still reach stderr.

    For scripts: while it lasts, `sys.stderr` is another one for all threads. The package itself uses `quiet`.
    """
    with contextlib.redirect_stderr(_WithoutBars(sys.stderr)):
        yield


def quiet(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a predictor's method that does the same without progress bars, which SAM 2 draws without asking.

    It is a copy of the method's code in which the name `tqdm` stands for a bar that is off, and so are the functions
    of SAM 2 that it calls by name. Nothing of the predictor, its module or the process is changed, so threads do not
    meet. A method that was put on the predictor itself is returned as it is.
    """
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


def state_from_frame(predictor: Any, frame: Frame, **options: Any) -> dict[str, Any]:
    """Return the predictor's own inference state for a video whose first frame is `frame`, (H, W, 3) uint8 RGB.

    The predictor's `init_state` wants a folder: it is given one frame, stored without loss (SAM 2 goes by the
    file's name, PIL by its content), and so makes everything of the state itself, the first frame's features too.

    Raises:
        OSError: The system's temporary folder has no room for one frame.
    """
    from PIL import Image

    store = io.BytesIO()
    Image.fromarray(frame).save(store, format="PPM")
    with tempfile.TemporaryDirectory(prefix="sam2-keyframe-") as folder:
        try:
            Path(folder, "00000.jpg").write_bytes(store.getvalue())  # PIL itself does not notice a full disk
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; a frame has to fit into the temporary folder", folder
            ) from None
        state: dict[str, Any] = quiet(predictor.init_state)(folder, **options)
    return state
