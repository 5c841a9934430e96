"""The optimisers of a step, ready for CUDA graphs on a GPU, and the loss scaling of fp16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .execution import Execution


def make_sgd(
    net: nn.Module, execution: Execution, *, lr: float, momentum: float, weight_decay: float, decay_norms: bool = True
) -> torch.optim.SGD:
    """SGD without Nesterov's correction over every parameter; BatchNorm's are decayed if `decay_norms`.

    On a GPU it is one fused kernel, and the learning rate lies on the device, where a captured graph reads it. The
    momenta begin at zero, which gives the same first step as none: torch's fused SGD would allocate them in its first
    step, and where loss scaling leaves that step out, go on with whatever that memory held.
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
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=weight_decay, fused=_fused(execution))
    if momentum:
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_adam(net: nn.Module, execution: Execution, *, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with a constant learning rate over every parameter; on a GPU one fused kernel that counts its own steps."""
    return torch.optim.Adam(
        net.parameters(), lr=lr, weight_decay=weight_decay, fused=_fused(execution), capturable=execution.capture
    )


def _fused(execution: Execution) -> bool | None:
    """On a GPU, and for fp16: only the fused optimisers unscale gradients and skip a step without asking the host."""
    return True if execution.device.type == "cuda" or execution.precision == "fp16" else None


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
    """Keeps fp16 gradients above the smallest fp16 number; passes everything through in other precisions.

    torch's GradScaler, which never waits for the device where the optimisers are fused, with a floor: after a row of
    skipped steps the scale would fall to zero, and the next healthy step would write NaN into every weight.
    """

    FLOOR = 2.0**-10

    def __init__(self, execution: Execution) -> None:
        self.enabled = execution.precision == "fp16"
        self._scaler = torch.amp.GradScaler(execution.device.type, enabled=self.enabled)
        self._one = torch.ones((), device=execution.device)

    @property
    def at_floor(self) -> bool:
        """Whether the scale is as low as it goes: steps are being left out. Waits for the device."""
        return self.enabled and self.tensors()["scale"].item() <= self.FLOOR

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimiser's step with unscaled gradients; none if one of them is not finite."""
        self._scaler.step(optimizer)

    def update(self) -> None:
        """The scale of the next step; after the last optimiser of this one."""
        self._scaler.update()
        if self.enabled:
            self._scaler.update(self.scale(self._one).clamp(min=self.FLOOR))

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, on the CPU; waits for the device. Empty where nothing is scaled."""
        state = self._scaler.state_dict()
        return {
            name: torch.tensor(float(state[key]), dtype=torch.float64)
            for name, key in (("scale", "scale"), ("healthy_steps", "_growth_tracker"))
            if state
        }

    def renew(self) -> None:
        """Forgets a step that an error has left half done; the scale stays."""
        tensors = self.tensors()
        self._scaler = torch.amp.GradScaler(self._one.device.type, enabled=self.enabled)
        self.restore(tensors)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, in place."""
        if self.enabled:
            state = self._scaler.state_dict()
            state |= {"scale": tensors["scale"].item(), "_growth_tracker": int(tensors["healthy_steps"].item())}
            self._scaler.load_state_dict(state)
