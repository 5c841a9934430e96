"""Classifiers and FGSM-SDI's generator, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from ...kernels import Purpose, derived_seed
from ..errors import UsageError
from .generator import GeneratorVariant, PaperGenerator, ReleasedGenerator, build_generator
from .resnet import ResNet

__all__ = [
    "GeneratorVariant",
    "ModelName",
    "ModelOptions",
    "NetShape",
    "PaperGenerator",
    "ReleasedGenerator",
    "ResNet",
    "build_generator",
    "build_model",
    "channels_last",
    "seeded_initialisation",
]

Net = TypeVar("Net", bound=nn.Module)
ModelName = Literal["resnet8", "resnet18"]

# Channels and basic blocks of each stage.
_RESNETS: dict[ModelName, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet8": ((16, 32, 64), (1, 1, 1)),
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The classifier."""

    name: ModelName = "resnet18"
    """resnet18 is the papers' net for small images; resnet8 (78,000 parameters) is for a CPU."""

    mean: tuple[float, ...] | None = None
    """Per-channel mean taken from images in [0, 1], inside the net; the papers of FGSM-SDI take none."""

    std: tuple[float, ...] | None = None
    """Per-channel deviation the images are divided by, inside the net."""

    def __post_init__(self) -> None:
        if self.mean is not None and not all(math.isfinite(value) for value in self.mean):
            raise UsageError(f"model.mean must be finite, not {self.mean}")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"model.std must be positive, not {self.std}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetShape:
    """What the data set decides about the classifier."""

    num_classes: int
    in_channels: int


def build_model(options: ModelOptions, shape: NetShape) -> ResNet:
    """A freshly initialised classifier with PyTorch's default initialisation, as the released code of the methods.

    Raises:
        UsageError: unknown name, or normalisation constants that do not fit the channels.
    """
    if options.name not in _RESNETS:
        raise UsageError(f"model.name '{options.name}' is not a model: choose one of {', '.join(_RESNETS)}")
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != shape.in_channels:
            raise UsageError(f"model.{name} has {len(values)} values but the images have {shape.in_channels} channels")
    widths, blocks = _RESNETS[options.name]
    return ResNet(
        widths,
        blocks,
        num_classes=shape.num_classes,
        in_channels=shape.in_channels,
        mean=options.mean,
        std=options.std,
    )


def seeded_initialisation(build: Callable[[], Net], seed: int, purpose: Purpose = Purpose.INITIALISE) -> Net:
    """Builds a net whose initial weights are a function of the seed alone; no other random state is touched.

    Built on the CPU, so that they do not depend on the device either.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, purpose))
        return build()


def channels_last(net: Net) -> Net:
    """The same net with its weights in NHWC order, in which convolutions are fastest on both CPU and GPU."""
    placed: Net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return placed
