"""Images and labels in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Images as uint8 [N, H, W, C] and labels as int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, index: Tensor) -> Split:
        """The samples of `index` (int64), in that order."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """The same samples on another device."""
        return Split(self.images.to(device), self.labels.to(device))


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
