"""What every loader is and yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What every loader yields, on the device, in memory of its own: it may be kept."""

    index: Tensor  # int64 [N]: each sample's place in the training set
    image: Tensor  # uint8 [N, H, W, C], augmented
    label: Tensor  # int64 [N]
    key: Tensor  # int64 [3], from `random_key`: what the noise for these samples is drawn with

    @property
    def x(self) -> Tensor:
        """The image as a logical NCHW tensor in channels-last memory format; no copy."""
        return self.image.permute(0, 3, 1, 2)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of them, in the order of the fields."""
        return self.index, self.image, self.label, self.key


class Loader(Protocol):
    """A source of training batches in an order that is a function of (seed, epoch, world size, rank)."""

    at: tuple[int, int]
    """(epoch, step) of the batch that comes next; `epoch(epoch, start=step)` goes on there, in another process too."""

    def __len__(self) -> int:
        """Batches in an epoch; an incomplete last batch is dropped."""

    def epoch(self, epoch: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch from number `start` to `stop`, by default its end. Asking for another ends this."""

    def close(self) -> None:
        """Ends what works for the loader, processes and threads; it cannot be used after that. May be called twice."""
