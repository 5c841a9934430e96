"""The resident loader: the whole data set as bytes on the device, shuffled, cropped and flipped there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import Purpose, augment, permutation, random_key
from .dataset import Split
from .errors import DataError


@dataclass(frozen=True, slots=True)
class Batch:
    """What every loader yields, on the device."""

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
    """A source of training batches in an order that is a function of (seed, epoch)."""

    def __len__(self) -> int:
        """Batches in an epoch; an incomplete last batch is dropped."""

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on."""


def check_batch_size(batch_size: int, samples: int) -> None:
    """Raises DataError unless a training set of `samples` images fills a batch."""
    if not 1 <= batch_size <= samples:
        raise DataError(f"batch-size {batch_size} does not fit {samples} training images: choose at most that")


class ResidentLoader:
    """Batches cut from a data set that lies on the device as uint8.

    Args:
        split: the training set; moved to `device`.
        batch_size: samples in a batch; the last incomplete batch of an epoch is dropped.
        padding: zero padding in pixels for the random crop; 0 is no crop.
        flip: mirror each image with probability 1/2.
        seed: of the order, the crops and the flips.
        device: where the images are kept.

    Raises:
        DataError: the data set is smaller than one batch.
    """

    def __init__(
        self, split: Split, *, batch_size: int, padding: int, flip: bool, seed: int, device: torch.device | str
    ) -> None:
        check_batch_size(batch_size, len(split))
        self.split = split.to(device)
        self.batch_size, self.padding, self.flip, self.seed = batch_size, padding, flip, seed

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on; the same ones however often they are asked for."""
        images, labels = self.split.images, self.split.labels
        order = permutation(len(labels), seed=self.seed, purpose=Purpose.ORDER, epoch=epoch, device=labels.device)
        key = random_key(self.seed, epoch=epoch, device=labels.device)
        for index in order.split(self.batch_size)[start : len(self)]:
            image = augment(images, index, key=key, padding=self.padding, flip=self.flip)
            yield Batch(index, image, labels[index], key)
