"""The resident loader: the whole data set as bytes on the device, shuffled, cropped and flipped there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..kernels import augment, random_key
from .batch import Batch
from .crops import Augmentation
from .dataset import Split
from .order import Order


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
