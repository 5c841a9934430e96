"""Shared memory between a feeder process and its parent: a few slots, each holding one batch.

The memory is an anonymous file (memfd_create), reached through an inherited file descriptor. It has no name in any file
system, so nothing is left of it however the two processes end.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Slot:
    """Arrays over the memory of one slot."""

    images: npt.NDArray[np.uint8]  # [N, H, W, 3]
    index: npt.NDArray[np.int64]  # [N]
    labels: npt.NDArray[np.int64]  # [N]


class Ring:
    """Slots for batches of one shape.

    Args:
        shape: of the images of a batch: (N, H, W, 3).
        slots: how many batches there is room for.
        descriptor: of the memory, inherited from the process that made it; None makes it.
    """

    def __init__(self, shape: tuple[int, int, int, int], slots: int, descriptor: int | None = None) -> None:
        self.shape, self.slots = shape, slots
        pixels, numbers = int(np.prod(shape)), 8 * shape[0]
        self._offsets = (0, _aligned(pixels), _aligned(pixels) + _aligned(numbers))
        self._stride = self._offsets[2] + _aligned(numbers)
        if descriptor is None:
            descriptor = os.memfd_create("hardfast-ring")
            os.ftruncate(descriptor, self.nbytes)
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self._stride * self.slots

    def slot(self, number: int) -> Slot:
        """One slot, 0 to slots - 1; its arrays keep the memory alive."""
        at, count = number * self._stride, self.shape[0]
        images, index, labels = (at + offset for offset in self._offsets)
        return Slot(
            np.frombuffer(self.memory, np.uint8, int(np.prod(self.shape)), images).reshape(self.shape),
            np.frombuffer(self.memory, np.int64, count, index),
            np.frombuffer(self.memory, np.int64, count, labels),
        )

    def close(self) -> None:
        """Gives the descriptor back; the memory goes with the last array over it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
