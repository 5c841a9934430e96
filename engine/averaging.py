"""An average over the weights of all steps, which is evaluated and kept in place of the last ones.

Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization" (2018), for the BatchNorm
statistics of its own; as an exponential moving average, the way robust training uses it (Rebuffi et al., 2021). The
FastAT benchmark averages BatchNorm's statistics along with the weights instead, and keeps the better of the two nets.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

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
        # An average is what SGD on |avg - w|^2 / 2 finds, at the rate 1 - d; fused, it can leave a bad step out.
        self._share = torch.zeros((), dtype=torch.float32, device=self._source[0].device)
        self._optimizer = torch.optim.SGD(self._average, lr=self._share, fused=True)

    @torch.no_grad()
    def update(self, left_out: Tensor) -> None:
        """Takes one step's weights in.

        Args:
            left_out: float32 [], 1.0 for a step that changes nothing, from `StepWatch`; 0.0 for others.
        """
        torch.sub(1, ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay), out=self._share)
        difference = torch._foreach_sub(self._average, self._source)
        for average, towards in zip(self._average, difference, strict=True):
            average.grad = towards
        amp: Any = self._optimizer
        amp.found_inf = left_out
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1 - left_out

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
