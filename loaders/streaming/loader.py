"""The loader for images that do not fit the device: a feeder decodes them, the device augments them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ...kernels import augment, random_key
from ..batch import Batch
from ..crops import Augmentation, central_boxes, random_boxes
from ..errors import DataError
from ..order import Order
from ..streamed import StreamedSplit
from .host_feed import HostFeed
from .spec import BackendName, FeedSpec

CHUNK = 1 << 14  # samples whose crops are drawn at once: ten tries of each lie in the cache


class Feed(Protocol):
    """Delivers decoded batches to the device."""

    def epoch(self, records: Tensor, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, records, labels) of each batch.

        Args:
            records: int64 [batches * batch_size] on the CPU.
            boxes: int64 [batches * batch_size, 4] on the CPU.

        Yields:
            Images uint8 [N, H, W, 3] on the device, valid until the next batch is asked for; the records and labels
            that they are of by the account of what decoded them, int64 [N] on the CPU.
        """

    def close(self) -> None:
        """Ends its processes and threads."""


class StreamingLoader:
    """Batches of a training set that is decoded while it is trained on.

    What decodes is a process that ends with the thread that makes this; DALI on a GPU decodes in this process instead.

    Args:
        split: the training set, at the size that is trained on.
        backend: what decodes.
        batch_size: images in a batch; the last incomplete batch of an epoch is dropped.
        augmentation: crops and flips.
        seed: of the order, the crops and the flips.
        device: where the batches go.
        workers: threads or processes that decode.
        watchdog: seconds without a batch after which what decodes counts as hung.
        world_size, rank: as `Order`.

    Raises:
        DataError: the data set is smaller than one batch, or the backend cannot read it.
        LoaderDied: what decodes does not start.
    """

    def __init__(
        self,
        split: StreamedSplit,
        *,
        backend: BackendName,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device | str,
        workers: int,
        watchdog: float = 120.0,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        self.order = Order(samples=len(split), batch_size=batch_size, seed=seed, world_size=world_size, rank=rank)
        self.at = (0, 0)
        self._split, self._augmentation, self._seed = split, augmentation, seed
        self._device = torch.device(device)
        self._labels = split.labels.to(self._device)
        height, width = split.size
        spec = FeedSpec(
            backend=backend,
            place=split.source.place,
            batch_size=batch_size,
            height=height,
            width=width,
            workers=workers,
        )
        self._feed = self._open(spec, watchdog)

    def _open(self, spec: FeedSpec, watchdog: float) -> Feed:
        if spec.backend == "dali" and self._device.type == "cuda":
            from .dali_device import DaliDeviceFeed  # imports DALI

            return DaliDeviceFeed(spec, self._split.source, self._device, watchdog)
        return HostFeed(spec, self._device, watchdog=watchdog)

    def __len__(self) -> int:
        return len(self.order)

    def close(self) -> None:
        """Ends the feeder; the loader cannot be used after that."""
        self._feed.close()

    def epoch(self, epoch: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` to `stop`; asking for another one ends this one.

        Raises:
            DataError: an image is damaged.
            LoaderDied: what decodes has died, was stopped, or delivers nothing.
        """
        order = self.order.epoch(epoch, start=start, stop=stop)
        records = self._split.records[order]
        key = random_key(self._seed, epoch=epoch, device=self._device)
        samples = order.to(self._device)
        batches = self._feed.epoch(records.flatten(), self._boxes(order.flatten(), epoch))
        self.at = (epoch, start)
        for step, (images, found, labels) in enumerate(batches):
            if not torch.equal(found, records[step]) or not torch.equal(labels, self._split.labels[order[step]]):
                raise DataError(
                    f"{self._split.source}: the loader delivered other images, or labels, than those of step "
                    f"{start + step}: it and the data set do not belong together, prepare it again"
                )
            index, how = samples[step], self._augmentation
            image = augment(images, index, key=key, padding=how.padding, flip=how.flip, gathered=True)
            done = start + step + 1
            self.at = (epoch, done) if done < len(self) else (epoch + 1, 0)
            yield Batch(index, image, self._labels[index], key)

    def _boxes(self, index: Tensor, epoch: int) -> Tensor:
        """What is shown of each sample: int64 [len(index), 4]."""
        heights, widths = self._split.heights[index], self._split.widths[index]
        scale = self._augmentation.scale
        if scale is None:
            return central_boxes(heights, widths, self._split.size)
        key = random_key(self._seed, epoch=epoch)
        parts = zip(index.split(CHUNK), heights.split(CHUNK), widths.split(CHUNK), strict=True)
        return torch.cat([random_boxes(*part, key=key, scale=scale) for part in parts])
