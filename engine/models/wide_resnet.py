"""Wide residual nets for small images, as TRADES and RobustBench name and compute them.

Source: Zagoruyko and Komodakis, "Wide residual networks" (2016). Parameter names are RobustBench's (`conv1`,
`block1.layer.0.bn1` .., `bn1`, `fc`). The code behind the papers' tables, TRADES' and FGSM-SDI's among it, also holds a
`sub_block1` that no forward pass uses; there is none here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .normalized import NormalizedNet


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut.

    The shortcut is the block's input; where the number of channels changes, a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = (
            None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideStage(nn.Module):
    """Blocks of one width, the first of which changes channels and size; in `layer`, as RobustBench has it."""

    def __init__(self, blocks: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(NormalizedNet):
    """A 3x3 stem of 16 channels, three stages, BN and ReLU, global average pooling, one linear layer.

    Initial weights are those of the code behind the papers' tables (FGSM-SDI, d54cac6, and TRADES before it):
    convolutions normal with deviation sqrt(2 / fan_out), the linear layer's bias 0.

    Args:
        depth: 6n + 4 with n blocks in each stage.
        widen: times 16, 32 and 64 are the channels of the stages; the second and the third halve the resolution.
        num_classes: logits.
        in_channels: channels of an image.
        mean, std: per-channel normalisation, applied inside the net; None is none.

    Input: float [N, C, H, W] in [0, 1], any size. Output: logits [N, num_classes].
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4, not {depth}")
        super().__init__(mean, std)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, 16 * widen, 1)
        self.block2 = WideStage(blocks, 16 * widen, 32 * widen, 2)
        self.block3 = WideStage(blocks, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def logits(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out))
        return self.fc(out.mean(dim=(2, 3)))
