"""Normalisation inside the net, so that attacks see images in [0, 1] and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class NormalizedNet(nn.Module):
    """A net that maps images in [0, 1] to logits; subclasses define `logits` on normalised images.

    The constants are not in the state dict, whose names stay those of the published architectures; they come from
    the run's config.json.

    Args:
        mean, std: per-channel constants; None is none.
        architecture: arguments of the next base class, where a subclass gets its layers from a published module:
            `class Net(NormalizedNet, ThatModule)`.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, **architecture: Any) -> None:
        super().__init__(**architecture)
        for name, values in (("mean", mean), ("std", std)):
            constant = None if values is None else torch.tensor(values).reshape(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is not None:
            x = x - self.mean
        if self.std is not None:
            x = x / self.std
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of normalised images [N, C, H, W]."""
        raise NotImplementedError
