"""Which samples are in which batch: a function of seed, epoch, world size and rank, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Purpose, permutation
from .errors import DataError


def check_batch_size(batch_size: int, samples: int, world_size: int = 1) -> None:
    """Raises DataError unless a training set of `samples` images fills a batch on every rank."""
    most = samples // world_size
    if not 1 <= batch_size <= most:
        ranks = "" if world_size == 1 else f" on each of {world_size} ranks"
        fix = f"choose from 1 to {most}" if most else "bring more images, or fewer ranks"
        raise DataError(f"batch-size {batch_size}{ranks} does not fit {samples} training images: {fix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of a training set, cut into batches for the ranks of a run.

    A step's samples are world_size * batch_size neighbours of one permutation, and each rank takes its part of them:
    the steps of two ranks with 128 images are those of one rank with 256.

    Args:
        samples: in the training set.
        batch_size: images in a batch of this rank.
        seed: of the permutation, with the epoch.
        world_size, rank: ranks of the run, and which of them this is.

    Raises:
        DataError: the data set is smaller than a step, or there is no such rank.
    """

    samples: int
    batch_size: int
    seed: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise DataError(f"world size {self.world_size} is no number of ranks: choose 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is not one of {self.world_size}: choose 0 to {self.world_size - 1}")
        check_batch_size(self.batch_size, self.samples, self.world_size)

    def __len__(self) -> int:
        """Batches in an epoch; what does not fill a step of all ranks is dropped."""
        return self.samples // (self.batch_size * self.world_size)

    def epoch(
        self, epoch: int, *, start: int = 0, stop: int | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The samples of this rank's batches from number `start` to `stop`: int64 [batches, batch_size]."""
        if not 0 <= start <= len(self):
            raise DataError(f"an epoch of {len(self)} batches has no batch {start}: choose 0 to {len(self)}")
        order = permutation(self.samples, seed=self.seed, purpose=Purpose.ORDER, epoch=epoch, device=device)
        steps = order[: len(self) * self.batch_size * self.world_size]
        return steps.view(len(self), self.world_size, self.batch_size)[start:stop, self.rank]
