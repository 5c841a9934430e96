"""Threads that may be left behind: a read or a decoder that hangs must not keep the process from ending."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Task = tuple[Future[Any], Callable[[], Any]]


class DaemonPool:
    """Runs functions in a few threads, in the order of their submission.

    Unlike those of `ThreadPoolExecutor`, which the interpreter waits for at its end, its threads are daemons.

    Args:
        threads: how many; with one, functions never overlap.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        for number in range(threads):
            threading.Thread(target=_work, args=(self._tasks,), daemon=True, name=f"{name}-{number}").start()
        self._end = weakref.finalize(self, _end, self._tasks, threads)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future result of a call."""
        future: Future[T] = Future()
        self._tasks.put((future, lambda: function(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Lets each thread end after the calls that were submitted before, without waiting for it."""
        self._end()


def _end(tasks: SimpleQueue[_Task | None], threads: int) -> None:
    for _ in range(threads):
        tasks.put(None)


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        _run(*task)
        del task  # not to keep a batch in memory while there is nothing to do


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # whoever waits for the result has to see it
        future.set_exception(error)
    else:
        future.set_result(result)
