"""torchvision's ResNet50, the papers' net for ImageNet.

The only file that imports torchvision, which some machines lack: `build_model` imports it when this net is asked for.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from .normalized import NormalizedNet


class ImageNetResNet50(NormalizedNet, ResNet):
    """torchvision's ResNet50 under torchvision's parameter names, so that its published weights load unchanged.

    Args:
        num_classes: logits.
        in_channels: channels of an image.
        mean, std: per-channel normalisation, applied inside the net; None is none.

    Input: float [N, C, H, W] in [0, 1], any size. Output: logits [N, num_classes].
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(mean, std, block=Bottleneck, layers=[3, 4, 6, 3], num_classes=num_classes)
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's

    def logits(self, x: Tensor) -> Tensor:
        return ResNet.forward(self, x)
