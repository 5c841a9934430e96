"""ResNets for small images: the 3x3 stem, as every paper of the tables trains them.

Source: He, Zhang, Ren, Sun, "Deep residual learning" (2016), section 4.2 for ResNet8 (6n + 2 with n = 1), and the
CIFAR form of ResNet18 with 64..512 channels. Parameter names are RobustBench's (`conv1, bn1, layer1.., linear`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .normalized import NormalizedNet


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus a shortcut, then ReLU; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class StagedNet(NormalizedNet):
    """What the ResNets for small images share: stages `layer1`, `layer2`, ..., all but the first halving the size."""

    stages: int

    def add_stages(
        self, block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], blocks: tuple[int, ...]
    ) -> None:
        """Adds the stages, whose input has the channels of the first one.

        Args:
            block: makes one from input channels, output channels and stride.
            widths: channels of each stage.
            blocks: blocks in each stage.
        """
        self.stages = len(widths)
        channels = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            strides = [1 if number == 1 else 2] + [1] * (count - 1)
            stage = [block(channels if i == 0 else width, width, stride) for i, stride in enumerate(strides)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            channels = width

    def through_stages(self, x: Tensor) -> Tensor:
        """The output of the last stage."""
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x


class ResNet(StagedNet):
    """A 3x3 stem, stages of basic blocks, global average pooling, one linear layer.

    Args:
        widths: channels of each stage; every stage after the first halves the resolution.
        blocks: basic blocks in each stage.
        num_classes: logits.
        in_channels: channels of an image.
        mean, std: per-channel normalisation, applied inside the net; None is none.

    Input: float [N, C, H, W] in [0, 1], any size of at least 2**(stages - 1). Output: logits [N, num_classes].
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        *,
        num_classes: int,
        in_channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(mean, std)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.add_stages(BasicBlock, widths, blocks)
        self.linear = nn.Linear(widths[-1], num_classes)

    def logits(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.through_stages(out)
        return self.linear(out.mean(dim=(2, 3)))
