"""Classifiers and FGSM-SDI's generator, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from ...kernels import Purpose, derived_seed
from ..errors import UsageError
from .elsewhere import NetFromElsewhere, check_net, net_from_elsewhere
from .generator import (
    Generator,
    GeneratorResolution,
    GeneratorVariant,
    PaperGenerator,
    ReleasedGenerator,
    build_generator,
)
from .normalized import NormalizedNet
from .options import NAMES, ModelName, ModelOptions, NetShape
from .preact_resnet import PreActResNet
from .resnet import ResNet
from .stem import PaddedConv2d, pad_stem
from .wide_resnet import WideResNet

__all__ = [
    "NAMES",
    "Generator",
    "GeneratorResolution",
    "GeneratorVariant",
    "ModelName",
    "ModelOptions",
    "NetFromElsewhere",
    "NetShape",
    "NormalizedNet",
    "PaddedConv2d",
    "PaperGenerator",
    "PreActResNet",
    "ReleasedGenerator",
    "ResNet",
    "WideResNet",
    "build_generator",
    "build_model",
    "channels_last",
    "check_net",
    "pad_stem",
    "seeded_initialisation",
]

Net = TypeVar("Net", bound=nn.Module)


def build_model(options: ModelOptions, shape: NetShape, *, image_size: tuple[int, int] | None = None) -> NormalizedNet:
    """A freshly initialised classifier: images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    Initial weights are those of the released code of the methods: PyTorch's defaults, WideResNet's own, torchvision's.

    Args:
        options: which one.
        shape: channels and classes.
        image_size: (height, width) of the images. A net of timm's or of the user's own is tried on one of that size;
            the others take any.

    Raises:
        UsageError: normalisation constants that do not fit the channels, torchvision or timm is missing, or a net from
            elsewhere that cannot be found or used.
    """
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != shape.in_channels:
            raise UsageError(
                f"model.{name} has {len(values)} values but the images have {shape.in_channels} channels: give one "
                "for each"
            )
    if options.name not in NAMES:
        return net_from_elsewhere(options.name, shape, mean=options.mean, std=options.std, image_size=image_size)
    return _architecture(options)(
        num_classes=shape.num_classes, in_channels=shape.in_channels, mean=options.mean, std=options.std
    )


def _architecture(options: ModelOptions) -> Callable[..., NormalizedNet]:
    match options.name:
        case "resnet8":
            return partial(ResNet, (16, 32, 64), (1, 1, 1))
        case "resnet18":
            return partial(ResNet, (64, 128, 256, 512), (2, 2, 2, 2))
        case "preact_resnet18":
            return partial(
                PreActResNet,
                (64, 128, 256, 512),
                (2, 2, 2, 2),
                final_bn=options.final_bn,
                shortcut=options.shortcut,
            )
        case "wide_resnet34_10":
            return partial(WideResNet, 34, 10)
        case _:
            return _imagenet_resnet50()


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
