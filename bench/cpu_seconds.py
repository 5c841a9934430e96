"""How much of the CPU is at work: seconds of this process and of all that descend from it, from Linux's /proc."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ..loaders.child_process import descendants

TICKS = os.sysconf("SC_CLK_TCK")
OWN_AND_REAPED = slice(11, 15)  # utime, stime, cutime, cstime, counted from the state, in /proc/PID/stat


def cpu_seconds() -> float:
    """CPU seconds that this process, its threads and its descendants have used, in user and kernel mode.

    Of two calls the difference is what was used between them, to 0.01 s for each process beside this one.
    """
    used = sum(
        found.ru_utime + found.ru_stime
        for found in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
    return used + sum(_ticks(pid) for pid in descendants(os.getpid())) / TICKS


def _ticks(pid: int) -> int:
    """Of a process and of its children that have ended; 0 once it has ended itself."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[OWN_AND_REAPED]))
