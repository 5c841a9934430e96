"""Stopping on request: a first signal ends the work in order, a second one ends the process at once.

SIGINT (Ctrl-C), SIGTERM (`kill`, cluster schedulers) and SIGUSR1 (schedulers, ahead of a job's time limit) are treated
alike. The first lets training finish its step and save, and an evaluation, whose progress is on disk at any time, break
off; the command then exits with 75. From then on each of the three has the effect it has by default: the kernel ends
the process, even in the middle of a compilation or of a save, and the shell sees 128 + the signal's number (130, 143,
138). Nothing is lost by that but what came after the last whole checkpoint: the same command resumes from it.
coreutils' `timeout` signals twice, the command and then its group: use `timeout --foreground`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from .errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """A context in which the first signal asks for a clean stop; `requested` tells whether one came.

    Outside the main thread, where Python allows no handlers, it never asks.

    Args:
        doing: what happens until the stop, for the line on stderr.
    """

    def __init__(self, doing: str = "finishing this step and saving") -> None:
        self.requested = False
        self._doing = doing
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:  # not the handlers of before: Python's own run only between two lines of Python
            signal.signal(each, signal.SIG_DFL)
        self.requested = True
        # Not through sys.stderr, which this may have interrupted in the middle of a line.
        with suppress(OSError):
            os.write(2, f"\nhardfast: {signal.Signals(number).name}: {self._doing}; again to leave at once\n".encode())


class _Left(BaseException):
    """Out of whatever runs; no `except Exception` of a library may swallow it."""


class _LeaveAtOnce(StopRequest):
    def _receive(self, number: int, frame: FrameType | None) -> None:
        super()._receive(number, frame)
        raise _Left


@contextmanager
def broken_off(message: str) -> Iterator[None]:
    """A context that the first signal leaves at once: for work whose progress is on disk at any time.

    Args:
        message: what is said then.

    Raises:
        Stopped: a signal came.
    """
    try:
        with _LeaveAtOnce("leaving"):
            yield
    except _Left:
        raise Stopped(message) from None
