"""A data set at another size, for runs whose resolution grows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .split import Split
from .streamed import StreamedSplit

CHUNK = 256  # images that are floats at the same time


def resized(split: Split | StreamedSplit, size: int | tuple[int, int]) -> Split:
    """The same samples in memory at another size: scaled with antialiasing until it is filled, then cut to its centre.

    Args:
        split: on any device; one that is not in memory is decoded at that size.
        size: (height, width) in pixels, or one number for both; images of that size are returned as they are.

    Raises:
        DataError: an image that is decoded is damaged.
    """
    target = (size, size) if isinstance(size, int) else size
    if isinstance(split, StreamedSplit):
        return split.at(target).decoded()
    if split.image_shape[:2] == target:
        return split
    return Split(torch.cat([_resized(part, target) for part in split.images.split(CHUNK)]), split.labels)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, H, W, C] to uint8 [N, *size, C]."""
    height, width = images.shape[1:3]
    scale = max(size[0] / height, size[1] / width)
    filled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    floats = images.permute(0, 3, 1, 2).float()
    scaled = F.interpolate(floats, filled, mode="bilinear", align_corners=False, antialias=True)
    top, left = (filled[0] - size[0]) // 2, (filled[1] - size[1]) // 2
    cut = scaled[:, :, top : top + size[0], left : left + size[1]]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
