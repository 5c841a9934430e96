"""FGSM-SDI and plain training as a user would run them without this engine: what our step is measured against.

`released` follows what the authors' code does (their repository at d54cac6, described, not copied): float32, NCHW,
eager. It differs from ours in what it computes for nothing: the generator's backward in every step of the classifier,
the classifier's weight gradients in every step of the generator, and labels smoothed in NumPy on the host. With
`weight_gradients` every attack pass computes them too, as torch did in 2022. `tuned` is the loop of somebody who knows
PyTorch: channels-last, autocast where the device gains by it, `autograd.grad` for input gradients, no generator
backward for the classifier, labels smoothed on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a step of FGSM-SDI moves, and how far it may go.

    Attributes:
        net: the classifier, in train mode.
        generator: from [x, sign of the gradient] to the raw perturbation, before its tanh.
        optimizer: of the classifier.
        generator_optimizer: of the generator.
        epsilon: radius and step size in [0, 1] pixel units.
        smoothing: of the labels, torch's definition.
        k: the generator is updated on every k-th step.
    """

    net: nn.Module
    generator: nn.Module
    optimizer: torch.optim.Optimizer
    generator_optimizer: torch.optim.Optimizer
    epsilon: float
    smoothing: float
    k: int


class Released:
    """A step of the released algorithm; `weight_gradients` as torch computed them in attack passes in 2022."""

    def __init__(self, parts: Parts, *, weight_gradients: bool) -> None:
        self.parts, self.weight_gradients = parts, weight_gradients

    def __call__(self, x: Tensor, y: Tensor, step: int) -> None:
        """One step on float32 images x [N, C, H, W] in [0, 1], contiguous, with labels y [N]."""
        parts = self.parts
        seen = torch.cat([x, torch.sign(self.input_gradient(x, y))], dim=1)
        if step % parts.k == 0:
            parts.generator.train()
            loss = self.smoothed_loss(parts.net(x + self.perturbation(x, y, seen)), y)
            parts.generator_optimizer.zero_grad()
            (-loss).backward()  # through the classifier, whose weights collect gradients too
            parts.generator_optimizer.step()
        parts.generator.eval()
        loss = self.smoothed_loss(parts.net(x + self.perturbation(x, y, seen)), y)
        parts.optimizer.zero_grad()
        loss.backward()  # on through delta into the generator
        parts.optimizer.step()

    def perturbation(self, x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
        """delta, with the generator's graph behind it."""
        epsilon = self.parts.epsilon
        eta = epsilon * torch.tanh(self.parts.generator(seen))
        gradient = self.input_gradient(x + eta.detach(), y)
        return torch.clamp(eta + epsilon * torch.sign(gradient), -epsilon, epsilon)

    def input_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the cross entropy at x."""
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(self.parts.net(x), y)
        wanted = [x, *self.parts.net.parameters()] if self.weight_gradients else [x]
        return torch.autograd.grad(loss, wanted)[0]

    def smoothed_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross entropy on soft labels that NumPy makes on the host."""
        classes, smoothing = logits.shape[1], self.parts.smoothing
        soft = np.eye(classes)[y.cpu().numpy()] * (1 - smoothing) + smoothing / classes
        target = torch.from_numpy(soft).to(logits.device, logits.dtype)
        return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


class Tuned:
    """A step of the same algorithm in good plain PyTorch.

    With compiled nets its attack passes compute every weight gradient again: `net.compile()` fixes the backward pass
    when it traces the forward, whatever `autograd.grad` asks for later. That is what whoever compiles such a loop gets.

    Args:
        parts: with nets in channels-last memory format, compiled or not.
        autocast: makes the context of each forward pass.
    """

    def __init__(self, parts: Parts, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        self.parts, self.autocast = parts, autocast

    def __call__(self, x: Tensor, y: Tensor, step: int) -> None:
        """One step on float32 images x [N, C, H, W] in [0, 1], channels-last, with labels y [N]."""
        parts = self.parts
        seen = torch.cat([x, torch.sign(self.input_gradient(x, y))], dim=1)
        if step % parts.k == 0:
            parts.generator.train()
            loss = self.loss(x + self.perturbation(x, y, seen), y)
            theta = list(parts.generator.parameters())
            for parameter, gradient in zip(theta, torch.autograd.grad(loss, theta), strict=True):
                parameter.grad = -gradient
            parts.generator_optimizer.step()
            parts.generator.eval()
        with torch.no_grad():
            x_adv = x + self.perturbation(x, y, seen)
        parts.optimizer.zero_grad()
        self.loss(x_adv, y).backward()
        parts.optimizer.step()

    def perturbation(self, x: Tensor, y: Tensor, seen: Tensor) -> Tensor:
        """delta, with the generator's graph behind it where gradients are enabled."""
        epsilon = self.parts.epsilon
        with self.autocast():
            raw = self.parts.generator(seen)
        eta = epsilon * torch.tanh(raw.to(x.dtype))
        gradient = self.input_gradient(x + eta.detach(), y)
        return torch.clamp(eta + epsilon * torch.sign(gradient), -epsilon, epsilon)

    @torch.enable_grad()
    def input_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the cross entropy at x."""
        x = x.detach().requires_grad_()
        with self.autocast():
            loss = F.cross_entropy(self.parts.net(x), y)
        return torch.autograd.grad(loss, x)[0]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy on smoothed labels, on the device."""
        with self.autocast():
            return F.cross_entropy(self.parts.net(x), y, label_smoothing=self.parts.smoothing)
