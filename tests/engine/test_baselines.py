"""FGSM-RS and PGD-AT against plain transcriptions of Algorithms 2 and 1, in float64; only the noise is shared."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine.classifier import AttackBN
from hardfast.engine.methods import FgsmRsOptions, MethodOptions, PgdAtOptions, Position
from hardfast.engine.models import ResNet
from hardfast.kernels import random_key, random_start
from hardfast.loaders import Batch

from .steps import training_step

EPSILON, STEPS, BATCH, CLASSES, EPOCH, SEED = 8 / 255, 10, 6, 4, 2, 3


def transcription(
    net: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, steps: int, alpha: float, box: bool, attack_bn: str
) -> Tensor:
    """x + delta after `steps` steps from the noise, clipped with clamp after each, the start included."""

    def clipped(delta: Tensor) -> Tensor:
        delta = delta.clamp(-EPSILON, EPSILON)
        return (x + delta).clamp(0, 1) - x if box else delta

    net.train(attack_bn == "train")
    delta = clipped(noise)
    for _ in range(steps):
        point = (x + delta).requires_grad_()
        F.cross_entropy(net(point), y).backward()
        delta = clipped(delta + alpha * point.grad.sign())
    for w in net.parameters():
        w.grad = None
    return x + delta


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize(
    ("options", "steps", "alpha"),
    [
        (FgsmRsOptions(), 1, 10 / 255),  # 1.25 epsilon by default
        (FgsmRsOptions(alpha="6/255"), 1, 6 / 255),
        (PgdAtOptions(), 10, 2 / 255),  # a quarter of epsilon by default
        (PgdAtOptions(steps=3, alpha="4/255"), 3, 4 / 255),
    ],
)
def test_10_steps_equal_the_transcription(
    options: MethodOptions, steps: int, alpha: float, box: bool, attack_bn: AttackBN
) -> None:
    torch.manual_seed(0)
    net = ResNet((4, 8), (1, 1), num_classes=CLASSES).double()
    plain = copy.deepcopy(net)
    step = training_step(
        options, net, box=box, attack_bn=attack_bn, seed=SEED, lr=0.05, weight_decay=5e-4, dtype=torch.float64
    )
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    draw = torch.Generator().manual_seed(1)
    for i in range(STEPS):
        images = torch.randint(0, 256, (BATCH, 8, 8, 3), dtype=torch.uint8, generator=draw)
        images[torch.rand(images.shape, generator=draw) < 0.3] = 0
        y = torch.randint(0, CLASSES, (BATCH,), generator=draw)
        batch = Batch(torch.arange(BATCH) + 100 * i, images, y, random_key(SEED, epoch=EPOCH))
        step.learner.classifier.begin_step()
        x_adv = step.method.craft(batch, Position(EPOCH, i))
        noise = random_start(batch.x, batch.index, key=batch.key, radius=Fraction(8, 255), dtype=torch.float64)
        x = batch.x.double() / 255
        wanted = transcription(plain, x, y, noise, steps=steps, alpha=alpha, box=box, attack_bn=attack_bn)
        assert (x_adv - wanted).abs().max() <= 1e-9
        step.learner.classifier.descend(step.learner.optimizer, x_adv, y)
        plain.train()
        optimizer.zero_grad()
        F.cross_entropy(plain(wanted), y, label_smoothing=0.1).backward()
        optimizer.step()
    for (name, ours), theirs in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        assert (ours.double() - theirs.double()).abs().max() <= 1e-9, name
    assert net.bn1.num_batches_tracked == STEPS * (steps + 1 if attack_bn == "train" else 1)
