"""How fast an epoch is trained."""

from __future__ import annotations


class Pace:
    """Images a second of the newest epoch, over all its steps that this process made: pauses, probes, held-out checks
    and saves do not count, steps that were made again do.
    """

    def __init__(self) -> None:
        self._epoch, self._images, self._seconds = -1, 0, 0.0

    def add(self, epoch: int, *, images: int, seconds: float) -> None:
        """A stretch of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._images, self._seconds = epoch, 0, 0.0
        self._images += images
        self._seconds += seconds

    @property
    def images_per_second(self) -> float:
        """0 before the first step."""
        return self._images / self._seconds if self._seconds else 0.0
