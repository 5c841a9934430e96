"""A split whose images stay in their folder or file until they are asked for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .crops import central_boxes
from .errors import DataError
from .memory import check_memory
from .progress import progress
from .source import ImageSource
from .split import Split

CHUNK = 32  # images that a thread decodes before the bar moves


class StreamedSplit:
    """Some records of a source, shown at one size.

    Args:
        source: holds the images.
        records: which of its images these are, int64 [N].
        size: (height, width) that images are shown at, in pixels.
        share: of the sides of the largest central box with that aspect ratio, which `decoded` shows.

    Attributes:
        labels, heights, widths: of the N images, int64 [N]; sizes in pixels as stored.
    """

    def __init__(self, source: ImageSource, records: Tensor, size: tuple[int, int], *, share: float = 1.0) -> None:
        if min(size) < 1:
            raise DataError(f"data.image-size must be at least 1, not {min(size)}")
        if not 0 < share <= 1:
            raise DataError(f"data.test-crop {share} must be a share of the image's shorter side, in (0, 1]")
        self.source, self.records, self.size, self.share = source, records, size, share
        self.labels = torch.from_numpy(source.labels)[records]
        self.heights = torch.from_numpy(source.heights)[records]
        self.widths = torch.from_numpy(source.widths)[records]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) that images are shown with."""
        return *self.size, 3

    @property
    def native_size(self) -> tuple[int, int] | None:
        """The (height, width) that all images are stored with; None where there are several."""
        return common_size(self.heights, self.widths)

    def take(self, index: Tensor) -> StreamedSplit:
        """The samples of `index` (int64), in that order; nothing is decoded."""
        return StreamedSplit(self.source, self.records[index], self.size, share=self.share)

    def at(self, size: tuple[int, int]) -> StreamedSplit:
        """The same samples at another (height, width)."""
        return StreamedSplit(self.source, self.records, size, share=self.share)

    def decoded(self) -> Split:
        """All images in memory: the central box of each, scaled with antialiasing where it has another size.

        Raises:
            DataError: an image is damaged, which names it; or there is not enough memory.
        """
        height, width = self.size
        check_memory(
            len(self) * height * width * 3,
            f"{self.source}: {len(self)} images of {height}x{width} pixels",
            "use fewer of them, or a smaller --data.image-size",
        )
        images = torch.empty((len(self), height, width, 3), dtype=torch.uint8)
        boxes = central_boxes(self.heights, self.widths, self.size, share=self.share)
        plain = f"decoding {self.source}, {len(self)} images"
        with progress(len(self), f"decoding {self.source}", unit="images", plain=plain) as advance:
            pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # Pillow decodes without holding Python's lock
            try:
                for done in pool.map(partial(self._decode, images, boxes), range(0, len(self), CHUNK)):
                    advance(done)
            finally:
                pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is not waited for
        return Split(images, self.labels)

    def _decode(self, images: Tensor, boxes: Tensor, start: int) -> int:
        part = range(start, min(start + CHUNK, len(self)))
        for number in part:
            pixels = self.source.pixels(int(self.records[number]))
            images[number] = resampled(pixels, boxes[number], self.size)
        return len(part)


def resampled(pixels: npt.NDArray[np.uint8], box: Tensor, size: tuple[int, int]) -> Tensor:
    """What a box of one image shows, scaled to `size`; a box of that size is not resampled.

    Args:
        pixels: uint8 [H, W, 3].
        box: int64 [4]: top, left, height, width, inside the image.
        size: (height, width).

    Returns:
        uint8 [height, width, 3].
    """
    top, left, height, width = box.tolist()
    shown = torch.from_numpy(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
    if (height, width) == size:
        return shown
    floats = shown.permute(2, 0, 1)[None].float()
    scaled = F.interpolate(floats, size, mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


def in_memory(split: Split | StreamedSplit) -> Split:
    """The split itself where its images are in memory; otherwise they are decoded now.

    Raises:
        DataError: as `StreamedSplit.decoded`.
    """
    return split.decoded() if isinstance(split, StreamedSplit) else split


def common_size(heights: Tensor, widths: Tensor) -> tuple[int, int] | None:
    """The (height, width) of all images; None where they differ, or there are none."""
    if not len(heights) or bool((heights != heights[0]).any()) or bool((widths != widths[0]).any()):
        return None
    return int(heights[0]), int(widths[0])
