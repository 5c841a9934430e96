"""The input gradient of an attack and the projected ascent over it: no weight gradient on any path."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import PixelBounds, project, signed_step

Objective = Callable[[Tensor, Tensor], Tensor]  # (logits [N, K], labels [N]) -> scalar to ascend
AttackLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, labels) -> (scalar to ascend, logits)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy on hard labels, summed: the sign of its gradient is that of the mean's, without the underflow."""
    return F.cross_entropy(logits, labels, reduction="sum")


def attack_loss(net: Callable[[Tensor], Tensor], objective: Objective = summed_cross_entropy) -> AttackLoss:
    """What an attack on `net` ascends, with the logits [N, K] (detached) it was computed from.

    `net` maps images to logits, in whichever mode and precision the caller has put it.
    """

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(x)
        return objective(at_least_float32(logits), labels), logits.detach()

    return loss


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits in float32, in which a softmax has to be taken; others as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def input_gradient(loss_at: AttackLoss, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of an attack's loss with respect to the image.

    Costs two units, a forward and an input gradient: the image is the only input of `autograd.grad`. Where `loss_at` is
    compiled, its backward pass is fixed when it is traced, and then the net's parameters must not require gradients
    (`frozen.FrozenTwin`), or every weight gradient is computed for nothing.

    Args:
        loss_at: from `attack_loss`, compiled or not.
        x: float [N, C, H, W] in [0, 1] pixel units.
        labels: int64 [N].

    Returns:
        (gradient [N, C, H, W] in x's dtype and memory format, logits [N, K]), both detached.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        loss, logits = loss_at(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient, logits


def projected_ascent(
    loss_at: AttackLoss,
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    steps: int,
    alpha: Fraction,
    bounds: PixelBounds,
    keep_fooled: bool = False,
    flag: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent with signed steps from x + start: FGSM-RS, PGD-AT, and the evaluation's attacks.

    Args:
        loss_at: what is ascended, from `attack_loss`.
        x: clean images, uint8 [N, C, H, W].
        labels: int64 [N].
        start: perturbation to start from, float [N, C, H, W]; projected first.
        steps: how many; each costs two units.
        alpha: step size in [0, 1] pixel units.
        bounds: from `pixel_bounds`, in start's dtype.
        keep_fooled: leave a sample as it is once the net has misclassified it, without leaving the device.
        flag: int32 [1], set to 1 if the start or a gradient holds NaN or an infinity.

    Returns:
        x_adv [N, C, H, W] in start's dtype, detached.
    """
    x_adv, delta = project(x, start, bounds=bounds, flag=flag)
    for _ in range(steps):
        gradient, logits = input_gradient(loss_at, x_adv, labels)
        stepped, moved = signed_step(x, delta, gradient, alpha=alpha, bounds=bounds, flag=flag)
        if keep_fooled:
            resists = (logits.argmax(dim=1) == labels)[:, None, None, None]
            stepped, moved = torch.where(resists, stepped, x_adv), torch.where(resists, moved, delta)
        x_adv, delta = stepped, moved
    return x_adv
