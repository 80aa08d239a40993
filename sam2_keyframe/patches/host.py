"""What a host is to the rest of the package. A new host is one file with a class of this form, and a line in `HOSTS`.

A host runs one method on one predictor: it wraps the predictor's methods on the instance, finds each object's frames in
the host's own state, and speaks to the bank in the one form that `sam2_keyframe.bank.store` describes. What it does in
a frame is `Tracking.begin`, `Tracking.plan` where the host reads its memories, `Tracking.finish`; everything else
(what is decided, held, compressed, let go and counted) is the bank's.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, NamedTuple, Protocol

from sam2_keyframe.bank.bank import KEY, Banks, MemoryBank
from sam2_keyframe.bank.reading import Geometry
from sam2_keyframe.bank.store import Entry
from sam2_keyframe.memory import KeyframeMemory
from sam2_keyframe.patches.driving import Driver
from sam2_keyframe.patches.wrapping import Wrapping
from sam2_keyframe.types import TrackedFrame


class ObjectFrames(NamedTuple):
    """One object's frames in a host's state.

    Attributes:
        cond: The prompted ones, by index.
        tracked: The others.
        place: Where the object's bank lies, under `KEY`.
    """

    cond: MutableMapping[int, Entry]
    tracked: MutableMapping[int, Entry]
    place: MutableMapping[str, Any]

    @property
    def bank(self) -> MemoryBank | None:
        """The object's bank, if it has one."""
        bank = self.place.get(KEY)
        return bank if isinstance(bank, MemoryBank) else None


def first_of_video(output_dicts: Mapping[Any, Mapping[str, Any]]) -> int | None:
    """Return 0 where frames of another video were prompted, before this one's first; None leaves it to the host."""
    prompted = (t for output_dict in output_dicts.values() for t in output_dict["cond_frame_outputs"])
    return 0 if min(prompted, default=0) < 0 else None


class Host(Protocol):
    """Runs one method on one predictor; made by `wrap`, and unchanged until `install`.

    Attributes:
        NAME: What it supports, for people.
        AGAIN: Whether a frame can be inferred a second time, under other memories or masks (`KeyframeMemory.again`).
        TESTED: Versions of its package that the tests ran with.
        predictor: The predictor.
        method: The method.
        banks: The banks of the objects that it met.
    """

    NAME: ClassVar[str]
    AGAIN: ClassVar[bool]
    TESTED: ClassVar[tuple[str, ...]]
    predictor: Any
    method: KeyframeMemory
    banks: Banks

    def __init__(self, predictor: Any, method: KeyframeMemory) -> None: ...

    @staticmethod
    def knows(predictor: object) -> bool:
        """Return whether a predictor is of this host's kind, by its class's name."""
        ...

    @staticmethod
    def refuses(predictor: object) -> str | None:
        """Return why this host cannot take a predictor of its kind, in a sentence; None when it can."""
        ...

    def batch_objects(self) -> None:
        """Track the objects of a frame in one batch from now on; raises, in a sentence, where the host cannot."""
        ...

    def facts(self) -> Geometry:
        """Return what the model stores and how far it reads, as it is set now."""
        ...

    def install(self) -> None:
        """Put the wrappers in place, on the instance."""
        ...

    def look(self, wrapping: Wrapping) -> None:
        """Put those wrappers in place that take note of what scorers look at; `wrapping` is of the predictor.

        `install` does so where the method measures something.
        """
        ...

    def adopted(self, session: Any, frame_idx: int, entry: Entry) -> TrackedFrame | None:
        """Return a frame that was prompted earlier as scorers see it; None where its pixels are gone."""
        ...

    def uninstall(self) -> None:
        """Restore what was there before, and hand the host back what it can read by itself."""
        ...

    @staticmethod
    def objects(session: Any) -> Mapping[Any, ObjectFrames] | None:
        """Return each object's frames in an inference state, by object id; None where the state is another host's."""
        ...

    @staticmethod
    def forget(session: Any) -> None:
        """Remove all that the plugin has put into an inference state."""
        ...

    @staticmethod
    def driver(predictor: Any) -> Driver:
        """Return what opens states of a predictor and drives it frame by frame."""
        ...
