"""Being asked to stop: Ctrl-C, SIGTERM (containers, schedulers, `kill`) and SIGHUP (a closed terminal) do the same."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; unwinds as Ctrl-C does, so that what cleans up after one does after both.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(reason(number))
        self.number = number


@dataclass
class Request:
    """Whether a stop was asked for.

    Attributes:
        number: Of the signal; 0 while there was none.
    """

    number: int = 0


def reason(number: int) -> str:
    """Return what a signal is told as."""
    return "stopped by Ctrl-C" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


@contextmanager
def stops() -> Iterator[None]:
    """Let every such signal end what runs inside by `Stopped`."""

    def end(number: int, frame: object) -> None:
        raise Stopped(number)

    with _handled(end):
        yield


@contextmanager
def requests() -> Iterator[Request]:
    """Turn the first such signal into a request, so that no file is cut short; the second one acts as before."""
    request = Request()

    def note(number: int, frame: object) -> None:
        request.number = number
        restore()

    with _handled(note) as restore:
        yield request


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[Callable[[], None]]:
    """Handle the signals by a function and yield what restores them; those that are ignored (`nohup`) stay so."""
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handled in before.items():
            signal.signal(number, handled)

    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        for number in SIGNALS:
            handled = signal.getsignal(number)
            if handled is not signal.SIG_IGN and handled is not None:
                before[number] = handled
                signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()
