"""What tests see of a loader's processes from outside: who lives, who holds what."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

Process = tuple[int, int]  # its number, and when it started: numbers are used again


def descendants(pid: int) -> list[int]:
    """All processes below one, parents first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        current = waiting.pop(0)
        try:
            tasks = os.listdir(f"/proc/{current}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                children = Path(f"/proc/{current}/task/{task}/children").read_text().split()
            except OSError:
                continue
            waiting += map(int, children)
            found += map(int, children)
    return found


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; its state is the first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def identify(pid: int) -> Process:
    return pid, int(_status(pid)[19])


def alive(process: Process) -> bool:
    """Whether it still runs; one that has ended and waits to be reaped does not."""
    try:
        fields = _status(process[0])
    except OSError:
        return False
    return fields[0] not in "ZX" and int(fields[19]) == process[1]


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether a condition comes true in that time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def handles(pid: int) -> list[str]:
    """What the open file descriptors of a process are of, sorted."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return sorted(found)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def resident(pid: int) -> int:
    """Bytes of memory that are its own; of shared memory, nothing."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def shared_memory(but: set[str] = frozenset()) -> set[str]:
    """Names in /dev/shm that last: tests in other processes have some there for a moment."""
    now = set(os.listdir("/dev/shm")) - but
    within(2, lambda: not now.intersection(os.listdir("/dev/shm")))
    return now & set(os.listdir("/dev/shm"))
