"""The optimisers of a step, which leave out bad updates without asking the host, and the loss scaling of fp16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .execution import Execution
from .nonfinite import StepWatch


def make_sgd(
    net: nn.Module, execution: Execution, *, lr: float, momentum: float, weight_decay: float, decay_norms: bool = True
) -> torch.optim.SGD:
    """SGD without Nesterov's correction over every parameter; BatchNorm's are decayed if `decay_norms`.

    It is fused, which is what can leave out an update that the device finds bad; on a GPU one kernel, and the learning
    rate lies on the device, where a captured graph reads it. The momenta begin at zero, which gives the same first step
    as none: torch's fused SGD would allocate them in its first step, and where that step is left out, go on with
    whatever that memory held.
    """
    cuda = execution.device.type == "cuda"
    rate = torch.tensor(lr, device=execution.device) if cuda else lr
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if not decay_norms:
        norms = [p for module in net.modules() if isinstance(module, _BatchNorm) for p in module.parameters()]
        known = set(norms)
        groups = [
            {"params": [p for p in net.parameters() if p not in known]},
            {"params": norms, "weight_decay": 0.0},
        ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=weight_decay, fused=True)
    if momentum:
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_adam(net: nn.Module, execution: Execution, *, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with a constant learning rate over every parameter; fused, and its state exists before its first step."""
    optimizer = torch.optim.Adam(
        net.parameters(), lr=lr, weight_decay=weight_decay, fused=True, capturable=execution.capture
    )
    for parameter in net.parameters():
        optimizer.state[parameter] |= {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def moved_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a step of an optimiser changes: its parameters, and their momenta or moments and step counts."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [*parameters, *(value for p in parameters for value in optimizer.state[p].values())]


def set_momentum(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the momentum of the next step."""
    for group in optimizer.param_groups:
        group["momentum"] = value


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the rate of the next step; one that lies on a device is filled, without waiting."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class LossScaler:
    """Steps optimisers where their gradients are finite, and keeps those of fp16 above its smallest number.

    It scales the loss by torch's GradScaler's rule, halving at every step whose scaled gradients overflow and doubling
    after 2,000 without one, with a floor: after a row of skipped steps the scale would fall to zero, and the next
    healthy step would write NaN into every weight. In other precisions nothing is scaled.

    Args:
        execution: in which precision, and where.
        watch: told of every loss and gradient; asked whether an update is to be made.

    Attributes:
        enabled: whether losses are scaled.
    """

    FLOOR, FIRST, CEILING, HEALTHY_STEPS = 2.0**-10, 2.0**16, 2.0**100, 2000

    def __init__(self, execution: Execution, watch: StepWatch) -> None:
        self.enabled, self.watch = execution.precision == "fp16", watch
        self._scale = torch.full((), self.FIRST, device=execution.device)
        self._healthy_steps = torch.zeros((), device=execution.device)

    @property
    def at_floor(self) -> bool:
        """Whether the scale is as low as it goes: steps are being left out. Waits for the device."""
        return self.enabled and self._scale.item() <= self.FLOOR

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self._scale if self.enabled else loss

    def step(self, optimizer: torch.optim.Optimizer, *observed: Tensor) -> None:
        """A fused optimiser's step with unscaled gradients, unless the training step is bad already or they are.

        Args:
            optimizer: from `make_sgd` or `make_adam`, after the backward pass of `scale(loss)`.
            observed: what must be finite too: the loss before scaling. Autograd needs them no more.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.enabled:
            self.watch.observe(*observed)  # first: a loss that is not finite is no overflow of the scale
            self.watch.observe_scaled(*gradients)
        else:
            self.watch.observe(*gradients, *observed)
        # As torch's GradScaler does: with found_inf at 1 a fused optimiser changes nothing, step counts included.
        amp: Any = optimizer
        amp.found_inf, amp.grad_scale = self.watch.left_out, self._scale if self.enabled else None
        optimizer.step()

    @torch.no_grad()
    def update(self) -> None:
        """The scale of the next step, at the end of this one; a flagged step leaves it as it is.

        At the floor an overflow is flagged: what halving does not cure is no everyday event any more.
        """
        if not self.enabled:
            return
        self.watch.count_overflow(self._scale <= self.FLOOR)
        flagged, overflowed = self.watch.flag[0] > 0, self.watch.overflow[0] > 0
        healthy_steps = self._healthy_steps + 1
        grown = healthy_steps >= self.HEALTHY_STEPS
        scale = torch.where(overflowed, self._scale / 2, torch.where(grown, self._scale * 2, self._scale))
        scale = scale.clamp(self.FLOOR, self.CEILING)
        self._scale.copy_(torch.where(flagged, self._scale, scale))
        kept = torch.where(overflowed | grown, 0, healthy_steps)
        self._healthy_steps.copy_(torch.where(flagged, self._healthy_steps, kept))

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, on the CPU; waits for the device. Empty where nothing is scaled."""
        if not self.enabled:
            return {}
        return {
            "scale": self._scale.to("cpu", torch.float64),
            "healthy_steps": self._healthy_steps.to("cpu", torch.float64),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, in place."""
        if self.enabled:
            self._scale.copy_(tensors["scale"])
            self._healthy_steps.copy_(tensors["healthy_steps"])
