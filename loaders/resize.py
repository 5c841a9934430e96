"""A data set in memory at another size, for runs whose resolution grows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import Split

CHUNK = 256  # images that are floats at the same time


def resized(split: Split, size: int) -> Split:
    """The same samples at size x size: the shorter side scaled with antialiasing, then cut around the centre.

    Args:
        split: on any device.
        size: pixels on a side; images of that size are returned as they are.
    """
    if tuple(split.images.shape[1:3]) == (size, size):
        return split
    return Split(torch.cat([_resized(part, size) for part in split.images.split(CHUNK)]), split.labels)


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 [N, H, W, C] to uint8 [N, size, size, C]."""
    height, width = images.shape[1:3]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    floats = images.permute(0, 3, 1, 2).float()
    scaled = F.interpolate(floats, target, mode="bilinear", align_corners=False, antialias=True)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    cut = scaled[:, :, top : top + size, left : left + size]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
