"""What the tests of the evaluation share: images, and the smallest net that AutoAttack can be run on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardfast.engine.threat import parse_pixels
from hardfast.loaders import DataOptions, Split, open_dataset

from .conftest import EPSILON

EPS = parse_pixels(EPSILON, "epsilon")


def digits(count: int) -> Split:
    """The first so many test images of the digits, as the quick run sees them."""
    return open_dataset(DataOptions(name="digits", image_size=8)).test.take(torch.arange(count))


class LinearNet(nn.Module):
    """A fixed linear classifier of 8x8 images: AutoAttack on it takes seconds, and some of the images resist."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, 3 * 8 * 8, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def as_it_sees_them(net: nn.Module, split: Split) -> Split:
    """The same images with the net's own answers as labels: it is right on all of them."""
    with torch.no_grad():
        return Split(split.images, net(split.images.permute(0, 3, 1, 2).float() / 255).argmax(dim=1))
