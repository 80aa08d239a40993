"""wrap() and unwrap(): one call puts a memory method on a predictor, one call undoes it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn

from sam2_keyframe.bank.statistics import MIB, MemoryStats
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.methods import make_method
from sam2_keyframe.patches import find_host, host_of, objects_of
from sam2_keyframe.patches.host import Host

ATTRIBUTE = "_sam2_keyframe"
"""Instance attribute of a wrapped predictor that holds its handle."""


class Handle:
    """What `wrap` returns: undoes the wrapping with `unwrap()` or at the end of a `with` block.

    Attributes:
        predictor: The wrapped predictor; keep calling it.
        method: The method it runs.
    """

    def __init__(self, host: Host) -> None:
        self.predictor = host.predictor
        self.method = host.method
        self._host = host
        self._entered = False

    @property
    def active(self) -> bool:
        """Whether the predictor still runs this method."""
        return vars(self.predictor).get(ATTRIBUTE) is self

    def unwrap(self) -> None:
        """Undo the wrapping; does nothing when it was undone or replaced already."""
        if self.active:
            del vars(self.predictor)[ATTRIBUTE]
            self._host.uninstall()

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
        rows = [bank.stats.last for bank in self._host.banks]
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


def wrap(predictor: Any, method: str | KeyframeMemory = "keyframe", **overrides: Any) -> Handle:
    """Run a memory method on a SAM 2 video predictor, in place.

    Wrapping again replaces the method. Inference states made before or after can be used; what they store already is
    adopted.

    Args:
        predictor: A `SAM2VideoPredictor` (facebookresearch sam2 of December 2024 or later), or a `Sam2VideoModel`,
            `Sam3TrackerVideoModel`, `EdgeTamVideoModel` or `Sam3VideoModel` of transformers 5.
        method: A name in `METHODS` or a `KeyframeMemory`.
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
    current = vars(predictor).get(ATTRIBUTE)
    if isinstance(current, Handle):
        if current._entered:
            raise RuntimeError("the predictor is wrapped by an open `with` block; leave it before wrapping again")
        current.unwrap()
    handle = Handle(host)
    host.install()
    vars(predictor)[ATTRIBUTE] = handle
    return handle


def unwrap(predictor: Any) -> None:
    """Undo `wrap`: takes the predictor or the handle; does nothing on a predictor that is not wrapped.

    Raises:
        RuntimeError: The predictor is wrapped by an open `with` block, which undoes it at its end.
    """
    handle = predictor if isinstance(predictor, Handle) else vars(predictor).get(ATTRIBUTE)
    if isinstance(handle, Handle):
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


def forget(inference_state: Any) -> None:
    """Remove all that the plugin has put into an inference state: banks, statistics, the shared frame.

    Raises:
        TypeError: This is no inference state of a supported predictor.
    """
    host_of(inference_state).forget(inference_state)
