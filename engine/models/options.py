"""Which classifier: the options of a recipe's `model`, and the names they know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ...loaders.option_types import check_options, shown
from ..errors import UsageError

ModelName = Literal["resnet8", "resnet18", "preact_resnet18", "resnet50"]  # those that the benchmarks sweep
Shortcut = Literal["activated", "input"]

NAMES = ("resnet8", "resnet18", "preact_resnet18", "wide_resnet34_10", "resnet50")
TIMM = "timm:"
LARGEST_CONSTANT = 1000  # of a normalisation: pixels lie in [0, 1], and fp16 has to hold what they become
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The classifier."""

    name: str = "resnet18"
    """resnet18, preact_resnet18 and wide_resnet34_10 are for small images, resnet50 for ImageNet, resnet8 (78,000
    weights) for a CPU. timm:NAME is a net of timm, freshly initialised. package.module:factory is your own: a function
    that gets num_classes and in_channels and returns an nn.Module; it may lie in the current directory."""

    final_bn: bool = True
    """preact_resnet18's BN and ReLU after its last block; the release of FGSM-SDI has none."""

    shortcut: Shortcut = "activated"
    """What preact_resnet18's 1x1 shortcuts read. activated: the block's input after BN and ReLU, as He et al., Rice et
    al. and the release of FGSM-SDI have it. input: that input itself, as Wong et al. and N-FGSM have it."""

    mean: tuple[float, ...] | None = None
    """Per-channel mean taken from images in [0, 1], inside the net; the papers of FGSM-SDI take none."""

    std: tuple[float, ...] | None = None
    """Per-channel deviation the images are divided by, inside the net."""

    def __post_init__(self) -> None:
        check_options(self, "model", UsageError)
        elsewhere = self.name.removeprefix(TIMM) != "" if self.name.startswith(TIMM) else _DOTTED.fullmatch(self.name)
        if self.name not in NAMES and not elsewhere:
            raise UsageError(
                f"model.name {shown(self.name)} is not a model: choose one of {', '.join(NAMES)}, timm:NAME, or your "
                "own as package.module:factory"
            )
        if self.name != "preact_resnet18":
            if not self.final_bn:
                raise UsageError(f"model.final-bn can be off for preact_resnet18 only: {self.name} has no such switch")
            if self.shortcut != "activated":
                raise UsageError(f"model.shortcut is for preact_resnet18 only: {self.name} has no such switch")
        if self.mean is not None and not all(abs(value) <= LARGEST_CONSTANT for value in self.mean):
            raise UsageError(f"model.mean must lie within {LARGEST_CONSTANT} of zero, not {shown(self.mean)}")
        if self.std is not None and not all(1 / LARGEST_CONSTANT <= value <= LARGEST_CONSTANT for value in self.std):
            raise UsageError(
                f"model.std must be positive, from 1/{LARGEST_CONSTANT} to {LARGEST_CONSTANT}, not {shown(self.std)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NetShape:
    """What the data set decides about the classifier."""

    num_classes: int
    in_channels: int
