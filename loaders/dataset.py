"""What a data set is once it is in memory: byte images and labels, in three splits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Purpose, permutation
from .errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Images as uint8 [N, H, W, C] and labels as int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The samples of `index` (int64), in that order."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """The same samples on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as its authors split it, before the held-out images are cut from the training set."""

    train: Split
    test: Split
    num_classes: int
    source: str  # the file or folder it was read from


@dataclass(frozen=True, slots=True)
class Dataset:
    """One opened and checked data set.

    `heldout` is cut from the training set and selects the checkpoint; `test` is for the final evaluation.
    """

    name: str
    num_classes: int
    source: str
    train: Split
    heldout: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels


def checked_split(images: Tensor, labels: Tensor, *, num_classes: int, source: str) -> Split:
    """A split whose images and labels agree in number and whose labels are classes.

    Raises:
        DataError: naming `source` and the first wrong record.
    """
    if len(images) != len(labels):
        raise DataError(f"{source}: {len(images)} images but {len(labels)} labels; fetch the data set again")
    wrong = torch.nonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        record = int(wrong[0])
        raise DataError(
            f"{source}: record {record} has label {int(labels[record])}, outside 0..{num_classes - 1}; "
            "the file is damaged or of another data set, fetch it again"
        )
    return Split(images, labels)


def cut(split: Split, size: int, *, seed: int, purpose: Purpose, name: str) -> tuple[Split, Split]:
    """(the rest, `size` samples) at random, each in the original order; a function of the seed alone.

    Raises:
        DataError: fewer than one sample would be left.
    """
    if not 0 <= size < len(split):
        raise DataError(f"{name} of {size} images cannot be cut from {len(split)}: choose 0 to {len(split) - 1}")
    order = permutation(len(split), seed=seed, purpose=purpose)
    return split.take(order[size:].sort().values), split.take(order[:size].sort().values)
