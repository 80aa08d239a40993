"""wrap() and unwrap(): one call puts a memory method on a predictor, one call undoes it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

from sam2_keyframe.bank.statistics import MIB, MemoryStats
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.methods import make_method
from sam2_keyframe.patches import find_host, host_of, objects_of
from sam2_keyframe.patches.host import Host
from sam2_keyframe.patches.saving import read, supported, write

ATTRIBUTE = "_sam2_keyframe"
"""Instance attribute of a wrapped predictor that holds its handle."""


class Handle:
    """What `wrap` returns: undoes the wrapping with `unwrap()` or at the end of a `with` block.

    Attributes:
        predictor: The wrapped predictor; keep calling it.
        method: The method it runs.
        host: What runs it.
    """

    def __init__(self, host: Host) -> None:
        self.predictor = host.predictor
        self.method = host.method
        self.host = host
        self._entered = False

    @property
    def active(self) -> bool:
        """Whether the predictor still runs this method."""
        return vars(self.predictor).get(ATTRIBUTE) is self

    def unwrap(self) -> None:
        """Undo the wrapping; does nothing when it was undone or replaced already."""
        if self.active:
            del vars(self.predictor)[ATTRIBUTE]
            self.host.uninstall()

    def __enter__(self) -> Handle:
        if not self.active:
            raise RuntimeError("this wrap was undone or replaced; call wrap(predictor, ...) again for the with block")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self.unwrap()

    def __repr__(self) -> str:
        rows = [bank.stats.last for bank in self.host.banks]
        now = sum(row.memory.nbytes for row in rows if row is not None) / MIB
        stock = sum(row.stock.nbytes for row in rows if row is not None) / MIB
        held = sum(len(row.keyframes) for row in rows if row is not None)
        return (
            f"<sam2_keyframe {'active' if self.active else 'undone'}: {self.method!r}\n"
            f" {len(rows)} objects, {held} keyframes held, {now:.2f} MiB now, {stock:.2f} MiB under stock>"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("__") and hasattr(self.__dict__.get("predictor"), name):
            raise AttributeError(
                f"wrap() changes the predictor in place and returns a handle; keep calling predictor.{name}(...)"
            )
        raise AttributeError(f"the handle that wrap() returns has no attribute {name!r}")


def wrap(
    predictor: Any, method: str | KeyframeMemory = "keyframe", *, batch_objects: bool = False, **overrides: Any
) -> Handle:
    """Run a memory method on a SAM 2 video predictor, in place.

    Wrapping again replaces the method. Inference states made before or after can be used; what they store already is
    adopted.

    Args:
        predictor: A `SAM2VideoPredictor` (facebookresearch sam2 of December 2024 or later), or a `Sam2VideoModel`,
            `Sam3TrackerVideoModel`, `EdgeTamVideoModel` or `Sam3VideoModel` of transformers 5.
        method: A name in `METHODS` or a `KeyframeMemory`.
        batch_objects: Whether the objects of a frame are tracked in one batch (facebookresearch's predictors). Faster
            where small computations wait for each other, as on a GPU; masks then differ from those of objects tracked
            one by one as two kernels' roundings do.
        **overrides: Choices to replace, as in `wrap(predictor, "fifo", recent=4)`.

    Returns:
        A handle: `handle.unwrap()` or the end of `with wrap(...):` undoes the wrapping.

    Raises:
        TypeError: The predictor is of no supported host, or a choice is of the wrong kind.
        ValueError: A name, keyword or value is unknown, or the method does not fit the predictor.
        RuntimeError: The predictor is wrapped by an open `with` block.
    """
    if isinstance(predictor, Handle):
        raise TypeError("this is the handle that wrap() returned; give the predictor itself, handle.predictor")
    chosen = make_method(method, **overrides)
    host = find_host(predictor)(predictor, chosen)
    chosen.check_fits(host.facts().num_maskmem - 1)
    if chosen.again is not None and not host.AGAIN:
        raise ValueError(
            f"{chosen.again} has frames inferred a second time, which sam2_keyframe does on facebookresearch SAM 2's "
            "SAM2VideoPredictor of December 2024 or later alone: choose None here"
        )
    if batch_objects:
        host.batch_objects()
    current = handle_of(predictor)
    if current is not None:
        if current._entered:
            raise RuntimeError("the predictor is wrapped by an open `with` block; leave it before wrapping again")
        current.unwrap()
    handle = Handle(host)
    host.install()
    vars(predictor)[ATTRIBUTE] = handle
    return handle


def handle_of(predictor: Any) -> Handle | None:
    """Return the handle of a wrapped predictor; None where it is not wrapped."""
    handle = getattr(predictor, "__dict__", {}).get(ATTRIBUTE)
    return handle if isinstance(handle, Handle) else None


def unwrap(predictor: Any) -> None:
    """Undo `wrap`: takes the predictor or the handle; does nothing on a predictor that is not wrapped.

    Raises:
        RuntimeError: The predictor is wrapped by an open `with` block, which undoes it at its end.
    """
    handle = predictor if isinstance(predictor, Handle) else handle_of(predictor)
    if handle is not None:
        if handle._entered:
            raise RuntimeError("the predictor is wrapped by an open `with` block, which unwraps it at its end")
        handle.unwrap()


def memory_stats(inference_state: Any) -> dict[Any, MemoryStats]:
    """Return the memory statistics of each object of a video, by object id; they stay after `unwrap`.

    Raises:
        TypeError: This is no inference state of a supported predictor.
    """
    stats = {}
    for obj_id, frames in objects_of(inference_state).items():
        bank = frames.bank
        if bank is not None:
            bank.settle()
            stats[obj_id] = bank.stats
    return stats


def save_memory(inference_state: Any, path: str | Path) -> None:
    """Write the memory of a video's objects to a file, so that `load_memory` goes on with it elsewhere.

    In it are the objects' prompts, stored frames, banks, records and statistics as they are now: tensors in a file of
    safetensors, and one text of JSON. Pixels are not in it, nor weights, nor anything that could be run. It is written
    under another name first, so that a file of that name is whole or as it was before.

    Args:
        inference_state: Of a SAM 2 video predictor, or a session of transformers, that a wrapped predictor tracks.
        path: The file, `.safetensors` by custom; one that is there is replaced.

    Raises:
        TypeError: The state is of another host, or an object's id is neither a whole number nor a text.
        ValueError: The predictor is not wrapped any more, another method tracked an object, or there is none.
        OSError: The file cannot be written.
        ImportError: safetensors is not installed.
    """
    host = _host_tracking(inference_state, None)
    supported(host, inference_state)
    write(inference_state, host, Path(path))


def load_memory(
    inference_state: Any, path: str | Path, predictor: Any = None, video: Literal["same", "other"] = "same"
) -> None:
    """Take what `save_memory` wrote into a new inference state.

    In the same video tracking goes on behind the last frame, `propagate_in_video(state, start_frame_idx=...)`, with
    the masks that it would have had, to the last bit. In another video of the same objects, their prompted frames and
    keyframes count as prompted before frame 0: it is tracked from its first frame without any prompt. The predictor
    has to stay wrapped for that.

    Args:
        inference_state: A new one, without objects; a session of transformers.
        path: The file.
        predictor: Who goes on, wrapped with the same method. It may be left out where it made the state or tracked it.
        video: Whether the state is of the video that was saved, or of another one.

    Raises:
        TypeError: The state is of another host.
        ValueError: The file is damaged, foreign or of another version; it was saved with another model, method or
            video; the state has objects already; or no wrapped predictor is known.
        OSError: The file cannot be read.
        ImportError: safetensors is not installed.
    """
    if video not in ("same", "other"):
        raise ValueError(f"video={video!r}: choose 'same' or 'other'")
    host = _host_tracking(inference_state, predictor)
    supported(host, inference_state)
    read(inference_state, host, Path(path), video)


def _host_tracking(inference_state: Any, predictor: Any) -> Host:
    """Return the patch on the predictor that tracks a state."""
    asked = host_of(inference_state)
    if predictor is None:
        predictor = asked.tracked_by(inference_state) if hasattr(asked, "tracked_by") else None
    elif isinstance(predictor, Handle):
        predictor = predictor.predictor
    handle = handle_of(predictor)
    if handle is None:
        raise ValueError(
            "no wrapped predictor is known to track this state: wrap() one before the state is made or tracked, keep "
            "it wrapped, or give it as load_memory(state, path, predictor)"
        )
    return handle.host


def forget(inference_state: Any) -> None:
    """Remove all that the plugin has put into an inference state: banks, statistics, the shared frame.

    Raises:
        TypeError: This is no inference state of a supported predictor.
    """
    host_of(inference_state).forget(inference_state)
