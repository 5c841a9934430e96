"""Classifiers and FGSM-SDI's generator, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from ...kernels import Purpose, derived_seed
from ..errors import UsageError
from .generator import (
    Generator,
    GeneratorResolution,
    GeneratorVariant,
    PaperGenerator,
    ReleasedGenerator,
    build_generator,
)
from .normalized import NormalizedNet
from .preact_resnet import PreActResNet
from .resnet import ResNet
from .stem import PaddedConv2d, pad_stem

__all__ = [
    "Generator",
    "GeneratorResolution",
    "GeneratorVariant",
    "ModelName",
    "ModelOptions",
    "NetShape",
    "NormalizedNet",
    "PaddedConv2d",
    "PaperGenerator",
    "PreActResNet",
    "ReleasedGenerator",
    "ResNet",
    "build_generator",
    "build_model",
    "channels_last",
    "pad_stem",
    "seeded_initialisation",
]

Net = TypeVar("Net", bound=nn.Module)
ModelName = Literal["resnet8", "resnet18", "preact_resnet18", "resnet50"]

# Channels and blocks of each stage.
_STAGES: dict[ModelName, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet8": ((16, 32, 64), (1, 1, 1)),
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2)),
    "preact_resnet18": ((64, 128, 256, 512), (2, 2, 2, 2)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The classifier."""

    name: ModelName = "resnet18"
    """resnet18 and preact_resnet18 are for small images, resnet50 for ImageNet, resnet8 (78,000 weights) for a CPU."""

    final_bn: bool = True
    """preact_resnet18's BN and ReLU after its last block; the release of FGSM-SDI has none."""

    mean: tuple[float, ...] | None = None
    """Per-channel mean taken from images in [0, 1], inside the net; the papers of FGSM-SDI take none."""

    std: tuple[float, ...] | None = None
    """Per-channel deviation the images are divided by, inside the net."""

    def __post_init__(self) -> None:
        if not self.final_bn and self.name != "preact_resnet18":
            raise UsageError(f"model.final-bn can be off for preact_resnet18 only: {self.name} keeps it on")
        if self.mean is not None and not all(math.isfinite(value) for value in self.mean):
            raise UsageError(f"model.mean must be finite, not {self.mean}")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"model.std must be positive, not {self.std}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetShape:
    """What the data set decides about the classifier."""

    num_classes: int
    in_channels: int


def build_model(options: ModelOptions, shape: NetShape) -> NormalizedNet:
    """A freshly initialised classifier: images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    Initial weights are PyTorch's defaults, as in the released code of the methods; resnet50's are torchvision's.

    Raises:
        UsageError: unknown name, normalisation constants that do not fit the channels, or torchvision is missing.
    """
    if options.name not in get_args(ModelName):
        raise UsageError(f"model.name '{options.name}' is not a model: choose one of {', '.join(get_args(ModelName))}")
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != shape.in_channels:
            raise UsageError(f"model.{name} has {len(values)} values but the images have {shape.in_channels} channels")
    return _architecture(options)(
        num_classes=shape.num_classes, in_channels=shape.in_channels, mean=options.mean, std=options.std
    )


def _architecture(options: ModelOptions) -> Callable[..., NormalizedNet]:
    if options.name == "resnet50":
        return _imagenet_resnet50()
    if options.name == "preact_resnet18":
        return partial(PreActResNet, *_STAGES[options.name], final_bn=options.final_bn)
    return partial(ResNet, *_STAGES[options.name])


def _imagenet_resnet50() -> type[NormalizedNet]:
    try:
        from .imagenet_resnet import ImageNetResNet50
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"model.name 'resnet50' needs torchvision, which cannot be imported ({reason}): "
            f"install the torchvision that belongs to torch {torch.__version__}, from the same index"
        ) from None
    return ImageNetResNet50


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
