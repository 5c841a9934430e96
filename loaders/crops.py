"""How training images are augmented, and which part of each a loader decodes: decided here, for all loaders alike.

A box is (top, left, height, width) in pixels of the image as it is stored. What it holds is scaled to the size that is
trained on; a box of that very size is not resampled. Flips, and crops out of a padded frame, happen afterwards on the
device, in the kernel `augment`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Purpose, philox
from .errors import DataError

TRIES = 10
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is done to a training image at random, by Philox(seed, epoch, sample).

    Attributes:
        padding: zero padding in pixels for a random crop of the image's own size; 0 is none.
        flip: mirror each image with probability 1/2.
        scale: share of the image's area that a random resized crop shows, like (0.08, 1); None crops none.
    """

    padding: int = 0
    flip: bool = False
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            low, high = self.scale
            if not 0 < low <= high <= 1:
                raise DataError(f"crop-scale {low} {high} must be shares of an image's area, the smaller one first")
            if self.padding:
                raise DataError("crop-scale and crop-padding do not go together: set --crop-padding 0")


def central_boxes(heights: Tensor, widths: Tensor, size: tuple[int, int], *, share: float = 1.0) -> Tensor:
    """The largest central box of each image with the aspect ratio of `size`, its sides times `share`.

    Args:
        heights, widths: of the images, int64 [N].
        size: (height, width) that the box is scaled to. Images that have it already are shown whole.
        share: of the sides of the largest box, in (0, 1]; 0.875 is the usual 224 out of 256.

    Returns:
        int64 [N, 4]: top, left, height, width.
    """
    scale = torch.minimum(heights.double() / size[0], widths.double() / size[1]) * share
    height = (scale * size[0]).round().long().clamp(min=1)
    width = (scale * size[1]).round().long().clamp(min=1)
    whole = (heights == size[0]) & (widths == size[1])
    height, width = torch.where(whole, heights, height), torch.where(whole, widths, width)
    return torch.stack(((heights - height) // 2, (widths - width) // 2, height, width), dim=1)


def random_boxes(index: Tensor, heights: Tensor, widths: Tensor, *, key: Tensor, scale: tuple[float, float]) -> Tensor:
    """Random resized crops: an area out of `scale`, an aspect ratio between 3/4 and 4/3, anywhere in the image.

    Ten tries, then the largest central box of an allowed ratio: the rule of torchvision's RandomResizedCrop (Szegedy et
    al. 2015), with Philox(seed, epoch, sample, try) instead of a generator's state.

    Args:
        index: int64 [N], the samples' places in the training set.
        heights, widths: of their images, int64 [N].
        key: from `random_key`, on their device: seed and epoch.
        scale: smallest and largest share of the area.

    Returns:
        int64 [N, 4]: top, left, height, width.
    """
    tries = range(TRIES) if index.is_cuda else range(1)  # most need one; on a GPU, to ask which would be to wait
    boxes, fit = _tried(index, heights, widths, tries, key, scale)
    if not index.is_cuda:
        rest = torch.nonzero(~fit).squeeze(1)
        boxes[rest], fit[rest] = _tried(index[rest], heights[rest], widths[rest], range(1, TRIES), key, scale)
    return torch.where(fit[:, None], boxes, _fallback(heights, widths))


def _tried(
    index: Tensor, heights: Tensor, widths: Tensor, tries: range, key: Tensor, scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """The first box of some tries that lies in its image, int64 [N, 4], and whether there is one, bool [N]."""
    numbers = torch.arange(tries.start, tries.stop, device=index.device)
    words = philox((numbers, index[:, None], key[1], int(Purpose.CROP)), key[0])
    area_draw, ratio_draw, top_draw, left_draw = (word.double() * 2.0**-32 for word in words)  # [N, tries], in [0, 1)
    h, w = heights.double()[:, None], widths.double()[:, None]
    area = h * w * (scale[0] + area_draw * (scale[1] - scale[0]))
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = (low + ratio_draw * (high - low)).exp()
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width >= 1) & (width <= w) & (height >= 1) & (height <= h)
    top, left = (top_draw * (h - height + 1)).floor(), (left_draw * (w - width + 1)).floor()
    tried = torch.stack((top, left, height, width), dim=2)
    first = fits.to(torch.uint8).argmax(dim=1)
    drawn = tried[torch.arange(len(index), device=index.device), first].long()
    return drawn, fits.any(dim=1)


def _fallback(heights: Tensor, widths: Tensor) -> Tensor:
    """The largest central boxes with an aspect ratio in RATIO: int64 [N, 4]."""
    h, w = heights.double(), widths.double()
    width = torch.minimum(w, (h * RATIO[1]).round()).clamp(min=1)
    height = torch.minimum(h, (w / RATIO[0]).round()).clamp(min=1)
    return torch.stack(((h - height) // 2, (w - width) // 2, height, width), dim=1).long()
