"""A first convolution with as many input channels as tensor cores like, whatever the image has.

They read channels in groups of 4 (an image of 3) or 8 (the generator's 6 in 16 bits). Padding is done where the
convolution is computed, so parameters, state dicts and optimisers know nothing of it.
"""

from __future__ import annotations

from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError


class PaddedConv2d(nn.Conv2d):
    """A Conv2d that computes with zeros appended to its input channels: the same sums, plus zeros.

    The weight keeps its shape [out, in_channels, kh, kw] and is padded in every forward; autograd cuts the gradients
    of weight and input back to the real channels.

    Args:
        args, kwargs: `nn.Conv2d`'s; groups must be 1.
        padded_channels: input channels to compute with, at least in_channels.

    Input: [N, in_channels, H, W], or [N, padded_channels, H, W] whose channels after in_channels are finite (zeros,
    as our kernels write them). Output: `nn.Conv2d`'s, channels-last where weight or input is.

    Raises:
        UsageError: more groups, fewer padded channels, or an input with another number of channels.
    """

    padded_channels: int

    def __init__(self, *args: Any, padded_channels: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pad_to(padded_channels)

    @classmethod
    def of(cls, conv: nn.Conv2d, padded_channels: int) -> Self:
        """The same convolution, padded: it shares the very parameters and hooks of `conv`, which it is to replace."""
        padded = cls.__new__(cls)
        padded.__dict__.update(conv.__dict__)
        padded._pad_to(padded_channels)
        return padded

    def _pad_to(self, padded_channels: int) -> None:
        if self.groups != 1:
            raise UsageError(f"only a convolution of 1 group can be padded, not one of {self.groups}")
        if padded_channels < self.in_channels:
            raise UsageError(f"padded_channels {padded_channels} is less than the {self.in_channels} input channels")
        self.padded_channels = padded_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-3] not in (self.in_channels, self.padded_channels):
            raise UsageError(
                f"an input of {x.shape[-3]} channels does not fit the first convolution: "
                f"give it {self.in_channels}, or {self.padded_channels} with zeros in the last ones"
            )
        return self._conv_forward(
            append_zero_channels(x, self.padded_channels),
            append_zero_channels(self.weight, self.padded_channels),
            self.bias,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, padded_channels={self.padded_channels}"


def append_zero_channels(x: Tensor, channels: int) -> Tensor:
    """[..., C, H, W] with zeros appended up to `channels`, in x's memory format; x itself where C is that already."""
    missing = channels - x.shape[-3]
    return x if missing == 0 else F.pad(x, (0, 0, 0, 0, 0, missing))


def pad_stem(net: nn.Module, image_channels: int, padded: int) -> bool:
    """Makes the first convolution of a net compute with padded input channels; in place.

    The first, in module order, is the first `nn.Conv2d` with image_channels input channels and one group. Parameters
    stay the same objects under the same names, so this may be done after an optimiser holds them, and again with
    another number. A subclass of `nn.Conv2d` may compute something else and is left alone, as is a net that is
    nothing but a convolution.

    Args:
        net: any net.
        image_channels: channels of its input.
        padded: channels to compute with.

    Returns:
        whether the net now computes with them.

    Raises:
        UsageError: fewer padded channels than the image has.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == image_channels and module.groups == 1:
            if name == "" or type(module) not in (nn.Conv2d, PaddedConv2d):
                return False
            net.set_submodule(name, PaddedConv2d.of(module, padded))
            return True
    return False
