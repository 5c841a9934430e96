"""What every method is made of: the input gradient of an attack, the ascent over it, the descent of the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import PixelBounds, project, signed_step

AttackBN = Literal["train", "eval"]
Objective = Callable[[Tensor, Tensor], Tensor]  # (logits [N, K], labels [N]) -> scalar to ascend


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy on hard labels, summed: the sign of its gradient is that of the mean's, without the underflow."""
    return F.cross_entropy(logits, labels, reduction="sum")


def input_gradient(
    net: nn.Module, x: Tensor, labels: Tensor, objective: Objective = summed_cross_entropy
) -> tuple[Tensor, Tensor]:
    """The gradient of an attack's objective with respect to the image; no weight gradient is computed.

    Costs two units, a forward and an input gradient: `autograd.grad` with the image as its only input asks every
    layer's backward for the gradient of its input alone.

    Args:
        net: the classifier, in whichever mode the caller has put it.
        x: float [N, C, H, W] in [0, 1] pixel units.
        labels: int64 [N].
        objective: what the attack ascends.

    Returns:
        (gradient [N, C, H, W] in x's dtype and memory format, logits [N, K]), both detached.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        loss = objective(logits, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient, logits.detach()


def projected_ascent(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    steps: int,
    alpha: Fraction,
    bounds: PixelBounds,
    objective: Objective = summed_cross_entropy,
    keep_fooled: bool = False,
) -> Tensor:
    """Projected gradient ascent with signed steps from x + start: FGSM-RS, PGD-AT, and the evaluation's attacks.

    Args:
        net: the classifier, in whichever mode the caller has put it.
        x: clean images, uint8 [N, C, H, W].
        labels: int64 [N].
        start: perturbation to start from, float [N, C, H, W]; projected first.
        steps: how many; each costs two units.
        alpha: step size in [0, 1] pixel units.
        bounds: from `pixel_bounds`, in start's dtype.
        objective: what is ascended.
        keep_fooled: leave a sample as it is once the net has misclassified it, without leaving the device.

    Returns:
        x_adv [N, C, H, W] in start's dtype, detached.
    """
    x_adv, delta = project(x, start, bounds=bounds)
    for _ in range(steps):
        gradient, logits = input_gradient(net, x_adv, labels, objective)
        stepped, moved = signed_step(x, delta, gradient, alpha=alpha, bounds=bounds)
        if keep_fooled:
            resists = (logits.argmax(dim=1) == labels)[:, None, None, None]
            stepped, moved = torch.where(resists, stepped, x_adv), torch.where(resists, moved, delta)
        x_adv, delta = stepped, moved
    return x_adv


def descend(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, *, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """One step of w against the mean cross entropy at x: line 11 of Algorithm 3. Costs three units.

    Returns:
        (loss, logits [N, K]), both detached and on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    logits = net(x)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


@contextmanager
def batch_norm_mode(net: nn.Module, mode: AttackBN) -> Iterator[None]:
    """Puts the net in train or eval mode for the passes of an attack, and back."""
    before, wanted = net.training, mode == "train"
    if before != wanted:
        net.train(wanted)
    try:
        yield
    finally:
        if before != wanted:
            net.train(before)
