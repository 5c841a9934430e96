"""An average over the weights of all steps, which is evaluated and kept in place of the last ones.

Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization" (2018), for the BatchNorm
statistics of its own; as an exponential moving average, the way robust training uses it (Rebuffi et al., 2021). The
FastAT benchmark averages BatchNorm's statistics along with the weights instead, and keeps the better of the two nets.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class WeightAverage:
    """avg <- d * avg + (1 - d) * w after every step, d = min(decay, (1 + t) / (10 + t)) in step t.

    The smaller decay of the first steps lets a short run forget its random start. Everything is on the device and in
    place, so that a captured step includes it.

    Args:
        net: what is trained, in its final place and memory format.
        decay: of the average, between 0 and 1.

    Attributes:
        net: the averaged net, in eval mode; its BatchNorm statistics are those of `recompute_statistics`.
        steps: taken in so far, a float on the device.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self._source: list[Tensor] = list(net.parameters())
        self._average: list[Tensor] = list(self.net.parameters())
        self.steps = torch.zeros((), dtype=torch.float32, device=self._source[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Takes one step's weights in."""
        share = 1 - ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay)
        difference = torch._foreach_sub(self._source, self._average)
        torch._foreach_mul_(difference, share.to(difference[0].dtype))
        torch._foreach_add_(self._average, list(difference))
        self.steps += 1

    @torch.no_grad()
    def recompute_statistics(self, batches: Iterable[Tensor]) -> None:
        """BatchNorm's running statistics of the averaged weights: the mean over batches (float [N, C, H, W])."""
        norms = [
            module for module in self.net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            for number, x in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / number  # the mean over all batches so far
                self.net(x)
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum
                norm.eval()
