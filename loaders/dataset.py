"""What a data set is once it is opened: byte images and labels, in three splits, in memory or where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..kernels import Purpose, permutation
from .errors import DataError
from .split import Split
from .streamed import StreamedSplit

AnySplit = TypeVar("AnySplit", Split, StreamedSplit)


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as its authors split it, before the held-out images are cut from the training set."""

    train: Split | StreamedSplit
    test: Split | StreamedSplit
    num_classes: int
    source: str  # the file or folder it was read from
    beton: Path | None = None  # the .beton that holds the training images too, where there is one


@dataclass(frozen=True, slots=True)
class Dataset:
    """One opened and checked data set.

    Attributes:
        train, heldout, test: `heldout` is cut from the training set and selects the checkpoint; `test` is for the final
            evaluation.
        cut: which records of the published training set `train` consists of, int64 [len(train)]; None is all of them.
        beton: the .beton file that holds the published training set too, where there is one; `beton_split` opens it.
    """

    name: str
    num_classes: int
    source: str
    train: Split | StreamedSplit
    heldout: Split | StreamedSplit
    test: Split | StreamedSplit
    cut: Tensor | None = None
    beton: Path | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what the training set shows."""
        return self.train.image_shape

    @property
    def train_records(self) -> Tensor:
        """Which records of the published training set `train` consists of, int64 [len(train)]."""
        return torch.arange(len(self.train)) if self.cut is None else self.cut


def cut(split: AnySplit, size: int, *, seed: int, purpose: Purpose, name: str) -> tuple[AnySplit, AnySplit]:
    """(the rest, `size` samples) at random, each in the original order; a function of the seed alone.

    Raises:
        DataError: fewer than one sample would be left.
    """
    rest, part = cut_places(len(split), size, seed=seed, purpose=purpose, name=name)
    return split.take(rest), split.take(part)


def cut_places(samples: int, size: int, *, seed: int, purpose: Purpose, name: str) -> tuple[Tensor, Tensor]:
    """The same for the numbers 0 to `samples`, int64."""
    if not 0 <= size < samples:
        raise DataError(f"{name} of {size} images cannot be cut from {samples}: choose 0 to {samples - 1}")
    order = permutation(samples, seed=seed, purpose=purpose)
    return order[size:].sort().values, order[:size].sort().values
