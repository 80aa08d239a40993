"""Wrapping a method on an instance, with an undo recorded as it is done."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MISSING = object()


class Wrapping:
    """What was put over a predictor's methods, and how to take it off again.

    Args:
        predictor: The instance; its class is never changed.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self._undo: list[Callable[[], None]] = []

    def wrap(self, name: str, wrapper: Callable[..., Any]) -> None:
        """Put `wrapper(original, arguments by name)` over the method `name`; `over` puts it over another original."""
        signature = method_signature(self.predictor, name)
        rest = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]

        def over(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                bound = signature.bind(self.predictor, *args, **kwargs)
                bound.apply_defaults()
                _, *given = bound.arguments.items()
                arguments = dict(given)
                for name in rest:
                    arguments.update(arguments.pop(name))
                return wrapper(original, arguments)

            wrapped.over = over  # type: ignore[attr-defined]
            return wrapped

        self.put(name, over(getattr(self.predictor, name)))

    def put(self, name: str, value: Any) -> None:
        """Set an instance attribute, past `nn.Module`'s own bookkeeping."""
        attributes = vars(self.predictor)
        before = attributes.get(name, MISSING)

        def restore() -> None:
            if before is MISSING:
                del attributes[name]
            else:
                attributes[name] = before

        attributes[name] = value
        self.on_undo(restore)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Have `action` called by `undo`."""
        self._undo.append(action)

    def undo(self) -> None:
        """Restore, newest first, what was there before."""
        while self._undo:
            self._undo.pop()()


def method_signature(predictor: object, name: str) -> inspect.Signature:
    """Return the signature that the class gives a method, `self` included, whatever lies over it on the instance."""
    return inspect.signature(getattr(type(predictor), name))


def missing(predictor: object, required: Mapping[str, set[str]]) -> str | None:
    """Return which private method the wrappers rely on and do not find as they know it, in a sentence; or None."""
    for name, wanted in required.items():
        if not hasattr(type(predictor), name):
            return f"it has no method {name}()"
        lacking = wanted - set(method_signature(predictor, name).parameters)
        if lacking:
            return f"its method {name}() does not take {', '.join(sorted(lacking))}"
    return None


class WithSettings:
    """A predictor with some settings of its own: the predictor itself, which other threads may be using, keeps its."""

    def __init__(self, predictor: Any, settings: dict[str, Any]) -> None:
        self.__dict__.update(settings)
        self.__dict__["_predictor"] = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    @classmethod
    def bind(cls, method: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        """Return a predictor's bound method as called on the predictor with other settings.

        Raises:
            RuntimeError: It is no bound method, because something else was put over it.
        """
        predictor = getattr(method, "__self__", None)
        if predictor is None:
            raise RuntimeError(
                f"{getattr(method, '__name__', method)} was replaced on this predictor before sam2_keyframe wrapped "
                "it: undo that, then wrap again"
            )
        if all(getattr(predictor, name) == value for name, value in settings.items()):
            return method
        return functools.partial(method.__func__, cls(predictor, settings))  # type: ignore[attr-defined]


TRACKED_BY = "_keyframe_predictor"
"""Under which a state knows the predictor that tracks it."""


class TrackedBy:
    """Which predictor tracks a state, without keeping it alive; a copy of the state does not know.

    Args:
        predictor: The predictor.
    """

    def __init__(self, predictor: Any = None) -> None:
        self._predictor = weakref.ref(predictor) if predictor is not None else lambda: None

    def predictor(self) -> Any:
        """Return the predictor, or None where it is gone or not known."""
        return self._predictor()

    def __reduce__(self) -> Any:
        return TrackedBy, ()


@contextmanager
def during(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Set a variable of this thread for the duration of a block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def refuse_copying() -> Any:
    """Stand in for `__getstate__` of a wrapped predictor, which copy, deepcopy, pickle and torch.save ask for.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "a wrapped predictor cannot be copied or saved, as its copy would run the original: do that after "
        "sam2_keyframe.unwrap(). Its inference states can be copied and saved"
    )
