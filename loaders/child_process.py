"""Processes that work for this one: started from this very package, never outliving it, and looked after."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1


def command(module: str) -> list[str]:
    """What runs a module of this package. Nothing is imported from the working directory: it is the user's."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's environment, in which the package is found wherever this process found it."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def die_with_parent(parent: int) -> None:
    """Lets the kernel kill this process when the thread that started it ends, even while this one is stopped.

    Args:
        parent: the process that started it; where that is gone already, this one leaves at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def process_state(pid: int) -> str | None:
    """R, S, D, T (stopped), Z (ended and not reaped), ..., as in /proc/PID/stat; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process has started, and those that they have started, as far as they still run."""
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                children = [*map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())]
                waiting += children
                yield from children
        except OSError:  # it has ended meanwhile
            continue
