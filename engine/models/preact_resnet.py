"""Pre-activation ResNets for small images, with the 3x3 stem.

Source: He, Zhang, Ren, Sun, "Identity mappings in deep residual networks" (2016), in the CIFAR form of ResNet18.
Parameter names are RobustBench's (`conv1, layer1.., bn, linear`), which has two blocks of these names, so that a weight
file does not say which one it was trained with:

* its PreActBlockV2, the paper's, whose 1x1 shortcut reads the activated input; RobustBench's Rice2020Overfitting (L2)
  and Kireev2021Effectiveness, with the final BN, and the release of FGSM-SDI, without it;
* its PreActBlock, whose shortcut reads the input itself; RobustBench's Wong2020Fast and
  Andriushchenko2020Understanding, without the final BN, and the code of Wong et al. and N-FGSM, with it.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .options import Shortcut
from .resnet import StagedNet


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut.

    The shortcut is the block's input; where the shape changes, a 1x1 convolution, without BN, of what `reads` says.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, reads: Shortcut) -> None:
        super().__init__()
        self.reads = reads
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        if self.shortcut is None:
            return out + x
        return out + self.shortcut(activated if self.reads == "activated" else x)


class PreActResNet(StagedNet):
    """A 3x3 stem, stages of pre-activation blocks, BN and ReLU, global average pooling, one linear layer.

    Args:
        widths: channels of each stage; every stage after the first halves the resolution.
        blocks: pre-activation blocks in each stage.
        num_classes: logits.
        in_channels: channels of an image.
        mean, std: per-channel normalisation, applied inside the net; None is none.
        final_bn: the BN and the ReLU after the last stage, as He et al., Rice et al. and Wong et al. have them; without
            them (the release of FGSM-SDI) the output of the last block is averaged as it is.
        shortcut: what the 1x1 shortcuts read, `activated` or `input`.

    Input: float [N, C, H, W] in [0, 1], any size. Output: logits [N, num_classes].
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
        final_bn: bool = True,
        shortcut: Shortcut = "activated",
    ) -> None:
        super().__init__(mean, std)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.add_stages(partial(PreActBlock, reads=shortcut), widths, blocks)
        self.bn = nn.BatchNorm2d(widths[-1]) if final_bn else None
        self.linear = nn.Linear(widths[-1], num_classes)

    def logits(self, x: Tensor) -> Tensor:
        out = self.through_stages(self.conv1(x))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(out.mean(dim=(2, 3)))
