"""Progress bars that are hidden, for scripts."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any


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

    For scripts: while it lasts, `sys.stderr` is another one for all threads. The package itself draws none.
    """
    with contextlib.redirect_stderr(_WithoutBars(sys.stderr)):
        yield
