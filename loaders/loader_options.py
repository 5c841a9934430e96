"""What a user may say about the loader."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from .errors import DataError
from .option_types import check_options

LoaderName = Literal["auto", "resident", "ffcv", "dali", "torch"]
MOST_WORKERS = 16  # of the default
LARGEST_WORKERS, LONGEST_WATCHDOG = 1024, 7 * 24 * 3600  # beyond these nothing is meant


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderOptions:
    """How training images get to the device. No loader changes the order, the crops or the flips."""

    name: LoaderName = "auto"
    """resident: all images on the device, decoded once. ffcv: from a .beton file, which `hardfast data prepare NAME
    --beton` writes. dali: from an image folder, decoded on the GPU where there is one. torch: from an image folder or a
    .beton file, without further packages. auto: resident where the images fit, else ffcv where there is a
    .beton, else dali, else torch; the line at the start says which and why."""

    workers: int | None = None
    """Threads (torch: processes) that decode, beside the one that trains; default: all CPU cores but one, up to 16."""

    resident_limit: float = 4.0
    """GiB of images that auto puts on the device."""

    watchdog: float = 120.0
    """Seconds without a batch after which what decodes counts as hung; more for large batches of large photographs."""

    def __post_init__(self) -> None:
        check_options(self, "loader", DataError)
        if self.workers is not None and not 0 <= self.workers <= LARGEST_WORKERS:
            raise DataError(f"loader.workers must not be negative, nor above {LARGEST_WORKERS}, not {self.workers}")
        if not 0 < self.watchdog <= LONGEST_WATCHDOG:
            raise DataError(
                f"loader.watchdog must be a positive number of seconds up to {LONGEST_WATCHDOG}, not {self.watchdog}"
            )
        if self.resident_limit < 0:
            raise DataError(f"loader.resident-limit must be a number of GiB, not {self.resident_limit}")

    @property
    def worker_count(self) -> int:
        """`workers`, with its default decided."""
        if self.workers is not None:
            return self.workers
        return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
