"""What the arithmetic says a step costs, in forward passes of the classifier, and what the paper measured for k."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.models import ModelName, ModelOptions, NetShape, build_generator, build_model
from .variants import CHANNELS, Workload

PLAIN_UNITS = 3
TABLE_II_MINUTES = {1: 134, 2: 106, 10: 84, 20: 83, 30: 82, 40: 81}
"""Minutes of 110 epochs of ResNet18 on CIFAR-10 by k, as the paper's Table II gives them, on its hardware."""
TABLE_II_K = 20
"""The k that the paper trains with."""


def sdi_units(g: float, k: int) -> float:
    """Units of one step of FGSM-SDI, averaged over a cycle.

    A unit is a forward pass of the classifier, and as much again is a gradient of its input or of its weights. Two
    attack passes of 2 and the update of 3 make 7; the generator's forward pass is g; every k-th step adds two more
    passes with input gradients (4) and the generator's own forward and backward (3 g).

    Args:
        g: the generator's forward pass over the classifier's, in operations.
        k: every k-th step updates the generator.
    """
    return 7 + g + (4 + 3 * g) / k


def modelled_over_plain(workload: Workload) -> float:
    """FGSM-SDI's step over plain training's, if time went by operations alone."""
    return sdi_units(generator_share(workload), workload.k) / PLAIN_UNITS


def modelled_over(workload: Workload, base: Workload) -> float:
    """FGSM-SDI's step over that of another workload, if time went by operations alone."""
    return _operations(workload) / _operations(base)


def generator_share(workload: Workload) -> float:
    """g: operations of the generator's forward pass over those of the classifier's."""
    return _generator(workload.generator_width, workload.image_size) / _classifier(workload.model, workload.image_size)


def _operations(workload: Workload) -> float:
    units = sdi_units(generator_share(workload), workload.k)
    return workload.batch * _classifier(workload.model, workload.image_size) * units


@lru_cache
def _classifier(model: ModelName, image_size: int) -> int:
    """Operations of one image's forward pass, those of convolutions and linear layers."""
    classes = Workload(model=model, batch=1, image_size=image_size).classes
    with torch.device("meta"):
        net = build_model(ModelOptions(name=model), NetShape(num_classes=classes, in_channels=CHANNELS))
    return _counted(net, CHANNELS, image_size)


@lru_cache
def _generator(width: int, image_size: int) -> int:
    with torch.device("meta"):
        net = build_generator("released", 2 * CHANNELS, CHANNELS, width)
    return _counted(net, 2 * CHANNELS, image_size)


@torch.no_grad()
def _counted(net: nn.Module, channels: int, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, channels, image_size, image_size, device="meta"))
    return counter.get_total_flops()
