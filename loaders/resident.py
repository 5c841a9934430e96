"""The resident loader: the whole data set as bytes on the device, shuffled, cropped and flipped there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..kernels import augment, random_key
from .batch import Batch
from .box_resize import resize_boxes
from .crops import Augmentation, random_boxes
from .errors import DataError
from .order import Order
from .split import Split


class ResidentLoader:
    """Batches cut from a data set that lies on the device as uint8.

    Args:
        split: the training set; moved to `device`.
        batch_size: samples in a batch; the last incomplete batch of an epoch is dropped.
        augmentation: crops and flips.
        seed: of the order, the crops and the flips.
        device: where the images are kept.
        size: (height, width) that random resized crops are scaled to; by default the images' own.
        world_size, rank: as `Order`.

    Raises:
        DataError: the data set is smaller than one batch, or a size without random resized crops.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device | str,
        size: tuple[int, int] | None = None,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        self.order = Order(samples=len(split), batch_size=batch_size, seed=seed, world_size=world_size, rank=rank)
        self.at = (0, 0)
        self._split: Split | None = split.to(device)
        self._augmentation, self._seed = augmentation, seed
        own = (split.images.shape[1], split.images.shape[2])
        self._size = own if size is None else size
        if augmentation.scale is None and self._size != own:
            raise DataError(f"images of {own} pixels lie on the device, not of {self._size}: resize them before")

    def __len__(self) -> int:
        return len(self.order)

    def close(self) -> None:
        """Lets go of the images."""
        self._split = None

    def epoch(self, epoch: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` to `stop`; the same ones however often they are asked for."""
        if self._split is None:
            raise DataError("the resident loader was closed: make another")
        images, labels, how = self._split.images, self._split.labels, self._augmentation
        order = self.order.epoch(epoch, start=start, stop=stop, device=labels.device)
        key = random_key(self._seed, epoch=epoch, device=labels.device)
        self.at = (epoch, start)
        for step, index in enumerate(order, start + 1):
            if how.scale is None:
                image = augment(images, index, key=key, padding=how.padding, flip=how.flip)
            else:
                sides = [torch.full_like(index, side) for side in images.shape[1:3]]
                boxes = random_boxes(index, *sides, key=key, scale=how.scale)
                cropped = resize_boxes(images[index], boxes, self._size)
                image = augment(cropped, index, key=key, flip=how.flip, gathered=True)
            self.at = (epoch, step) if step < len(self) else (epoch + 1, 0)
            yield Batch(index, image, labels[index], key)
