"""Whether images fit into the machine's memory: asked before they are made or decoded, since a full machine kills."""

from __future__ import annotations

from .errors import DataError


def check_memory(needed: int, what: str, fix: str) -> None:
    """Raises DataError where `needed` bytes for `what` cannot be had without swapping."""
    free = free_memory()
    if free is not None and needed > free:
        raise DataError(f"{what} need {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} are free: {fix}")


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say (it is not Linux)."""
    try:
        with open("/proc/meminfo") as file:
            words = next((line.split() for line in file if line.startswith("MemAvailable:")), None)
    except OSError:
        return None
    return None if words is None else int(words[1]) << 10
