"""FGSM-SDI against an independent, plain transcription of Algorithm 3, in float64.

The transcription shares the two nets and their initial weights with the engine, and nothing else: it clips with clamp,
takes the generator's gradient through a hand-written chain, and steps SGD and Adam by their formulas.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine.methods import FgsmSdiOptions, Position
from hardfast.engine.models import ResNet

from .steps import batch_of, training_step

EPSILON, ALPHA, K, STEPS, BATCH, CLASSES = 8 / 255, 6 / 255, 4, 25, 6, 4
LR, MOMENTUM, DECAY, SMOOTHING = 0.05, 0.9, 5e-4, 0.1
G_LR, G_DECAY, BETA1, BETA2, ADAM_EPS = 1e-3, 5e-4, 0.9, 0.999, 1e-8


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return ResNet((4, 8), (1, 1), num_classes=CLASSES).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (STEPS, BATCH, 8, 8, 3), dtype=torch.uint8, generator=draw)
    # Black and white pixels, where the box matters.
    images[torch.rand(images.shape, generator=draw) < 0.2] = 0
    images[torch.rand(images.shape, generator=draw) < 0.2] = 255
    labels = torch.randint(0, CLASSES, (STEPS, BATCH), generator=draw)
    return list(zip(images, labels, strict=True))


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy with SMOOTHING spread over all classes, written out."""
    log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    target = torch.full_like(logits, SMOOTHING / CLASSES)
    target[torch.arange(len(y)), y] += 1 - SMOOTHING
    return -(target * log_p).sum(dim=1).mean()


class Transcription:
    """Algorithm 3, line by line."""

    def __init__(self, f: nn.Module, g: nn.Module, inputs: str, box: bool, attack_bn: str) -> None:
        self.f, self.g, self.inputs, self.box, self.attack_bn = f, g, inputs, box, attack_bn
        self.velocity = [torch.zeros_like(w) for w in f.parameters()]
        self.m = [torch.zeros_like(t) for t in g.parameters()]
        self.v = [torch.zeros_like(t) for t in g.parameters()]
        self.updates = 0
        self.moving: list[float] = []  # share of eta that the clip lets a gradient through to

    def sign_of_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        F.cross_entropy(self.f(x), y).backward()
        s = torch.sign(x.grad)
        for w in self.f.parameters():
            w.grad = None
        return s

    def g_input(self, x: Tensor, s_x: Tensor) -> Tensor:
        return {"benign": x, "grad": s_x, "benign+grad": torch.cat([x, s_x], dim=1)}[self.inputs]

    def perturbation(self, x: Tensor, eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x_adv, where eta still moves it)."""
        free = eta + ALPHA * self.sign_of_gradient(x + eta, y)
        x_adv = x + free.clamp(-EPSILON, EPSILON)
        moves = free.abs() < EPSILON
        if self.box:
            moves = moves & (x + free > 0) & (x + free < 1)
            x_adv = x_adv.clamp(0, 1)
        return x_adv, moves.double()

    def iteration(self, i: int, x: Tensor, y: Tensor) -> None:
        self.f.train(self.attack_bn == "train")
        s_x = self.sign_of_gradient(x, y)  # line 3
        if i % K == 0:  # line 4
            self.g.train()
            raw = self.g(self.g_input(x, s_x))
            eta = EPSILON * torch.tanh(raw.detach())  # line 5
            x_adv, moves = self.perturbation(x, eta, y)  # line 6
            x_adv = x_adv.requires_grad_()
            smoothed(self.f(x_adv), y).backward()  # line 7, by the chain rule
            d_eta = x_adv.grad * moves
            self.moving.append(moves.mean().item())
            d_raw = d_eta * EPSILON * (1 - torch.tanh(raw.detach()) ** 2)
            raw.backward(d_raw)
            self.ascend()
            for w in self.f.parameters():
                w.grad = None
        self.g.eval()
        with torch.no_grad():
            eta = EPSILON * torch.tanh(self.g(self.g_input(x, s_x)))  # line 9
        x_adv, _ = self.perturbation(x, eta, y)  # line 10
        self.f.train()
        smoothed(self.f(x_adv), y).backward()  # line 11
        with torch.no_grad():
            for w, velocity in zip(self.f.parameters(), self.velocity, strict=True):
                velocity.mul_(MOMENTUM).add_(w.grad + DECAY * w)
                w -= LR * velocity
                w.grad = None

    @torch.no_grad()
    def ascend(self) -> None:
        """Adam on minus the loss, with L2 decay."""
        self.updates += 1
        for theta, m, v in zip(self.g.parameters(), self.m, self.v, strict=True):
            d = -theta.grad + G_DECAY * theta
            m.mul_(BETA1).add_((1 - BETA1) * d)
            v.mul_(BETA2).add_((1 - BETA2) * d * d)
            m_hat, v_hat = m / (1 - BETA1**self.updates), v / (1 - BETA2**self.updates)
            theta -= G_LR * m_hat / (v_hat.sqrt() + ADAM_EPS)
            theta.grad = None


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize("generator", ["released", "paper"])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("inputs", ["benign", "grad", "benign+grad"])
def test_25_steps_equal_the_transcription(inputs: str, box: bool, generator: str, attack_bn: str) -> None:
    net = small_net()
    options = FgsmSdiOptions(k=K, alpha="6/255", inputs=inputs, generator=generator, generator_width=5)
    step = training_step(
        options,
        net,
        box=box,
        attack_bn=attack_bn,
        label_smoothing=SMOOTHING,
        seed=3,
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        dtype=torch.float64,
    )
    method, optimizer = step.method, step.learner.optimizer
    plain = Transcription(copy.deepcopy(net), copy.deepcopy(method.generator), inputs, box, attack_bn)
    start = copy.deepcopy(method.generator.state_dict())

    for i, (images, y) in enumerate(batches()):
        step(batch_of(images, y), Position(0, i))
        plain.iteration(i, images.permute(0, 3, 1, 2).double() / 255, y)

    def same(name: str, ours: Tensor, theirs: Tensor) -> None:
        difference = (ours.double() - theirs.double()).abs().max().item()
        assert difference <= 1e-9, f"{name} differs by {difference}"

    assert plain.updates == math.ceil(STEPS / K)
    for (name, ours), theirs in zip(net.state_dict().items(), plain.f.state_dict().values(), strict=True):
        same(name, ours, theirs)  # weights, BN running statistics and their counts
    for (name, ours), theirs in zip(method.generator.state_dict().items(), plain.g.state_dict().values(), strict=True):
        same(f"generator {name}", ours, theirs)
    for w, velocity in zip(net.parameters(), plain.velocity, strict=True):
        same("momentum", optimizer.state[w]["momentum_buffer"], velocity)
    for theta, m, v in zip(method.generator.parameters(), plain.m, plain.v, strict=True):
        state = method.optimizer.state[theta]
        same("exp_avg", state["exp_avg"], m)
        same("exp_avg_sq", state["exp_avg_sq"], v)
        assert state["step"] == plain.updates
    # The comparison means something only if the generator moved, and if the clip mask masked something, not all.
    assert all(0.1 < share < 0.99 for share in plain.moving)
    assert any(not torch.equal(a, b) for a, b in zip(start.values(), plain.g.state_dict().values(), strict=True))
    passes = 2 * STEPS + 2 * plain.updates + STEPS if attack_bn == "train" else STEPS
    assert net.bn1.num_batches_tracked == passes
    assert method.generator.bn1.num_batches_tracked == plain.updates
