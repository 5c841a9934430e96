"""FGSM-SDI's generator g: from an image and its signed gradient to the raw initial perturbation.

Both variants return the output *before* the tanh of eq. 6; `kernels.initial_point` applies eps * tanh in one pass.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError

GeneratorVariant = Literal["released", "paper"]
GeneratorResolution = Literal["full", "half"]


class Generator(nn.Module):
    """From what the generator sees to its output before the tanh; subclasses define `raw` at the size they work at.

    At half resolution the input is average-pooled 2x2 and the output upsampled bilinearly to the image's size: the
    same parameters for a quarter of the multiplications. It is not the papers' generator. Sides may be odd: the last
    window then averages the pixels it has. On a GPU the backward of the upsampling adds atomically, so that the last
    bits of the generator's update are not reproducible unless `torch.use_deterministic_algorithms` is on.

    Args:
        resolution: `full` is the image's size.

    Raises:
        UsageError: another resolution.

    Input: float [N, C, H, W]. Output: float [N, C', H, W], unbounded.
    """

    def __init__(self, resolution: GeneratorResolution) -> None:
        super().__init__()
        if resolution not in get_args(GeneratorResolution):
            raise UsageError(f"method.generator-resolution '{resolution}' is not a resolution: choose full or half")
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        if self.resolution == "full":
            return self.raw(x)
        pooled = F.avg_pool2d(x, 2, ceil_mode=True)
        return F.interpolate(self.raw(pooled), size=x.shape[-2:], mode="bilinear", align_corners=False)

    def raw(self, x: Tensor) -> Tensor:
        """The layers themselves: [N, C, h, w] to [N, C', h, w]."""
        raise NotImplementedError


class PreactivationBlock(nn.Module):
    """BN - PReLU - conv - BN - PReLU - conv plus the identity; its BNs have no affine parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels, affine=False)
        self.act1 = nn.PReLU()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels, affine=False)
        self.act2 = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(conv.weight, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act1(self.bn1(x)))
        return x + self.conv2(self.act2(self.bn2(out)))


class ReleasedGenerator(Generator):
    """The generator as its authors coded it: 79,173 parameters at width 64 with 6 input channels.

    Source: the released code of FGSM-SDI, d54cac6 (its 79,174th parameter is a scalar that nothing reads).

    Args:
        in_channels: channels of `kernels.generator_input`.
        out_channels: channels of an image.
        width: hidden channels.
        resolution: of the layers, see `Generator`.

    Input: float [N, in_channels, H, W]. Output: float [N, out_channels, H, W], unbounded.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 64, resolution: GeneratorResolution = "full"
    ) -> None:
        super().__init__(resolution)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.block = PreactivationBlock(width)
        self.bn2 = nn.BatchNorm2d(width, affine=False)
        self.conv2 = nn.Conv2d(width, out_channels, 3, padding=1)

    def raw(self, x: Tensor) -> Tensor:
        out = self.block(F.relu(self.bn1(self.conv1(x))))
        return self.conv2(self.bn2(out))


class PaperGenerator(Generator):
    """The generator as Table I prints it: Conv + BN + ReLU, ResBlock, Conv + BN.

    The block is He et al.'s basic block; the last BN is followed by the tanh that eq. 6 asks for ("the output pixel
    value space of g is [-1, 1]"). Same arguments, input and output as `ReleasedGenerator`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 64, resolution: GeneratorResolution = "full"
    ) -> None:
        super().__init__(resolution)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv2 = nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def raw(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(out + self.block(out))
        return self.bn2(self.conv2(out))


VARIANTS = {"released": ReleasedGenerator, "paper": PaperGenerator}


def build_generator(
    variant: GeneratorVariant,
    in_channels: int,
    out_channels: int,
    width: int,
    resolution: GeneratorResolution = "full",
) -> Generator:
    """A freshly initialised generator of one variant, at one resolution.

    Raises:
        UsageError: unknown variant or resolution.
    """
    if variant not in VARIANTS:
        raise UsageError(f"method.generator '{variant}' is not a generator: choose {' or '.join(VARIANTS)}")
    return VARIANTS[variant](in_channels, out_channels, width, resolution)
