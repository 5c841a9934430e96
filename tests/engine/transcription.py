"""The training methods written out plainly, equation by equation, in float64: what the engine's are compared with.

Nothing of the engine is used here. Images are float64 [N, 3, H, W] in [0, 1]; a perturbation is clipped with clamp; a
gradient is autograd's on the net itself, put into train or eval mode for each pass; SGD and label smoothing are written
out. `noise(radius)` draws U(-radius, radius) for the batch: the engine's own numbers, whose distribution is tested in
tests/kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

EPSILON, CLASSES = 8 / 255, 4
LR, MOMENTUM, DECAY, SMOOTHING = 0.01, 0.9, 5e-3, 0.1

Noise = Callable[[float], Tensor]


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy with SMOOTHING spread evenly over all classes."""
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    target = torch.full_like(logits, SMOOTHING / CLASSES)
    target[torch.arange(len(y)), y] += 1 - SMOOTHING
    return -(target * log_p).sum(dim=1).mean()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy on hard labels."""
    return (torch.logsumexp(logits, dim=1) - logits[torch.arange(len(y)), y]).mean()


class Plain:
    """What the methods share: the net and its two modes, the projection, one step of SGD.

    Args:
        f: the net; its weights and BN buffers are moved in place.
        box: whether x_adv must also lie in [0, 1].
        attack_bn: the mode of the net while x_adv is crafted. It is in train mode for the loss that moves the weights.
    """

    def __init__(self, f: nn.Module, *, box: bool, attack_bn: str) -> None:
        self.f, self.box, self.attack_bn = f, box, attack_bn
        self.velocity = [torch.zeros_like(w) for w in f.parameters()]

    def iteration(self, x: Tensor, y: Tensor, index: Tensor, noise: Noise) -> None:
        """One batch; `index` [N] are the samples' places in the data set."""
        x_adv = self.x_adv(x, y, noise)
        self.descend(smoothed(self.training(x_adv), y))

    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """For the methods that craft first and then descend on the smoothed loss."""
        raise NotImplementedError

    def attacked(self, x: Tensor) -> Tensor:
        """Logits in the mode of an attack pass.

        In eval mode with copies of the BN buffers: autograd keeps those it was given for the backward pass, and a pass
        in train mode before that moves them in place without its notice.
        """
        self.f.train(self.attack_bn == "train")
        if self.attack_bn == "train":
            return self.f(x)
        return functional_call(self.f, {name: b.clone() for name, b in self.f.named_buffers()}, (x,))

    def training(self, x: Tensor) -> Tensor:
        """Logits in train mode."""
        self.f.train()
        return self.f(x)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of plain cross entropy in the image, from an attack pass."""
        x = x.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(self.attacked(x), y), x)[0]

    def boxed(self, x: Tensor, delta: Tensor) -> Tensor:
        """delta cut so that x + delta lies in [0, 1], where there is a box."""
        return torch.clamp(x + delta, 0, 1) - x if self.box else delta

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        """delta in the ball, and x + delta in the box where there is one."""
        return self.boxed(x, torch.clamp(delta, -EPSILON, EPSILON))

    def descend(self, loss: Tensor) -> None:
        """SGD with momentum and L2 decay on every parameter."""
        gradients = torch.autograd.grad(loss, list(self.f.parameters()))
        with torch.no_grad():
            for w, g, velocity in zip(self.f.parameters(), gradients, self.velocity, strict=True):
                velocity.mul_(MOMENTUM).add_(g + DECAY * w)
                w -= LR * velocity


class Standard(Plain):
    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return x


class Pgd(Plain):
    """Madry et al. 2018, as Rice et al. 2020 run it: projected ascent from noise, or from zero."""

    def __init__(self, f: nn.Module, *, steps: int, alpha: float, random: bool, box: bool, attack_bn: str) -> None:
        super().__init__(f, box=box, attack_bn=attack_bn)
        self.steps, self.alpha, self.random = steps, alpha, random

    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        delta = self.clip(x, noise(EPSILON)) if self.random else torch.zeros_like(x)
        for _ in range(self.steps):
            delta = self.clip(x, delta + self.alpha * torch.sign(self.gradient(x + delta, y)))
        return x + delta


class FgsmRs(Plain):
    """Wong, Rice, Kolter 2020, Algorithm 3."""

    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        delta = self.boxed(x, noise(EPSILON))
        return x + self.clip(x, delta + 1.25 * EPSILON * torch.sign(self.gradient(x + delta, y)))


class NFgsm(Plain):
    """de Jorge et al. 2022, Algorithm 1: stronger noise, and no projection to the ball."""

    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        eta = self.boxed(x, noise(2 * EPSILON))
        return x + self.boxed(x, eta + EPSILON * torch.sign(self.gradient(x + eta, y)))


class Fgsm2Step(Plain):
    """FGSM-SDI with first * eps * s_x in place of the generator's initialisation."""

    def __init__(self, f: nn.Module, *, first: float, box: bool, attack_bn: str) -> None:
        super().__init__(f, box=box, attack_bn=attack_bn)
        self.first = first

    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        eta = self.boxed(x, self.first * EPSILON * torch.sign(self.gradient(x, y)))
        return x + self.clip(x, eta + EPSILON * torch.sign(self.gradient(x + eta, y)))


class FgsmCkpt(Plain):
    """Kim, Lee, Lee 2021, Algorithm 1: the smallest of c parts of FGSM-RS's perturbation that fools the net.

    Attributes:
        used: which image each sample was trained on: 0 the clean one, j the checkpoint x + j/c * delta.
    """

    def __init__(self, f: nn.Module, *, c: int, box: bool, attack_bn: str) -> None:
        super().__init__(f, box=box, attack_bn=attack_bn)
        self.c, self.used = c, list[int]()

    def x_adv(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        start = (x + self.boxed(x, noise(EPSILON))).requires_grad_()
        logits = self.attacked(start)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y), start)
        delta = self.clip(x, start.detach() - x + 1.25 * EPSILON * torch.sign(gradient))
        points = [x + j / self.c * delta for j in range(self.c + 1)]
        # In this order, which running statistics in train mode depend on and nothing else does.
        predictions = {j: self.attacked(points[j]).argmax(dim=1) for j in reversed(range(1, self.c))}
        x_adv = []
        for i in range(len(y)):
            use = self.c
            if logits[i].argmax() != y[i]:
                use = 0
            else:
                for j in reversed(range(1, self.c)):
                    if predictions[j][i] != y[i]:
                        use = j
            self.used.append(use)
            x_adv.append(points[use][i])
        return torch.stack(x_adv)


class FgsmGa(Plain):
    """GradAlign, Andriushchenko and Flammarion 2020.

    Args:
        through: "noisy" holds the gradient at x constant in the regulariser, as the released code does; "both" is the
            paper's regulariser, in which it also depends on the weights.

    Both gradients are of the same function: the net in the mode of an attack pass.
    """

    def __init__(self, f: nn.Module, *, weight: float, through: str, box: bool, attack_bn: str) -> None:
        super().__init__(f, box=box, attack_bn=attack_bn)
        self.weight, self.through = weight, through

    def iteration(self, x: Tensor, y: Tensor, index: Tensor, noise: Noise) -> None:
        at_x, at_noise = x.clone().requires_grad_(), (x + noise(EPSILON)).requires_grad_()
        (g1,) = torch.autograd.grad(cross_entropy(self.attacked(at_x), y), at_x, create_graph=True)
        if self.through == "noisy":
            g1 = g1.detach()
        delta = self.clip(x, 1.25 * EPSILON * torch.sign(g1.detach()))
        loss = smoothed(self.training(x + delta), y)
        (g2,) = torch.autograd.grad(cross_entropy(self.attacked(at_noise), y), at_noise, create_graph=True)
        cosines = [
            (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())
            for a, b in zip(g1, g2, strict=True)
            if a.detach().abs().max() > 0 and b.detach().abs().max() > 0
        ]
        self.descend(loss + (self.weight * (1 - sum(cosines) / len(cosines)) if cosines else 0))


class FreeAt(Plain):
    """Shafahi et al. 2019, Algorithm 1: every backward pass moves the weights and the perturbation, m times a batch.

    Attributes:
        delta: [N, 3, H, W], kept from batch to batch.
    """

    def __init__(self, f: nn.Module, *, m: int, box: bool, attack_bn: str) -> None:
        super().__init__(f, box=box, attack_bn=attack_bn)
        self.m = m

    def iteration(self, x: Tensor, y: Tensor, index: Tensor, noise: Noise) -> None:
        if not hasattr(self, "delta"):
            self.delta = torch.zeros_like(x)
        for _ in range(self.m):
            self.delta = self.clip(x, self.delta)
            x_adv = (x + self.delta).requires_grad_()
            loss = smoothed(self.training(x_adv), y)
            (gradient,) = torch.autograd.grad(loss, x_adv, retain_graph=True)
            self.descend(loss)
            self.delta = self.clip(x, self.delta + EPSILON * torch.sign(gradient))


class FgsmMep(Plain):
    """FGSM-MEP, Jia et al. 2022: a start for every sample, from the momentum of its gradients; logits held together.

    Attributes:
        delta, momentum: [samples, 3, H, W], of every sample of the data set.
    """

    def __init__(
        self, f: nn.Module, *, momentum: float, consistency: float, reset_every: int, box: bool, attack_bn: str
    ) -> None:
        super().__init__(f, box=box, attack_bn=attack_bn)
        self.decay, self.consistency, self.reset_every = momentum, consistency, reset_every

    def begin_epoch(self, epoch: int, noise: Tensor) -> None:
        """`noise`: U(-eps, eps) for every sample of the data set, of this epoch."""
        if epoch % self.reset_every == 0:
            self.delta = torch.clamp(EPSILON * torch.sign(noise), -EPSILON, EPSILON)
            self.momentum = torch.zeros_like(noise)

    def iteration(self, x: Tensor, y: Tensor, index: Tensor, noise: Noise) -> None:
        delta = self.delta[index]
        start = (x + delta).requires_grad_()
        logits0 = self.attacked(start)
        (g,) = torch.autograd.grad(smoothed(logits0, y), start, retain_graph=True)
        momentum = g / g.abs().sum() + self.decay * self.momentum[index]
        x_adv = x + self.clip(x, delta + EPSILON * torch.sign(g))
        logits = self.training(x_adv)
        self.descend(smoothed(logits, y) + self.consistency * ((logits - logits0) ** 2).mean())
        self.momentum[index] = momentum
        self.delta[index] = self.clip(x, delta + EPSILON * torch.sign(momentum))
