"""Every method but FGSM-SDI against its plain transcription (transcription.py), in float64, for ten steps.

Both begin with the same net and see the same batches and the same noise. Afterwards all weights, BN buffers and counts,
momenta and what a method keeps between steps must be the same to 1e-9. FGSM-SDI: test_algorithm3.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine.classifier import AttackBN
from hardfast.engine.methods import (
    METHODS,
    Fgsm2StepOptions,
    FgsmCkptOptions,
    FgsmGaOptions,
    FgsmMepOptions,
    FgsmRsOptions,
    FreeAtOptions,
    MethodOptions,
    NFgsmOptions,
    Pgd2AtOptions,
    Pgd4AtOptions,
    PgdAtOptions,
    Position,
    StandardOptions,
    method_options,
)
from hardfast.engine.models import ResNet
from hardfast.engine.step import TrainingStep
from hardfast.kernels import random_key, random_start
from hardfast.loaders import Batch

from . import transcription as plain
from .steps import training_step

SAMPLES, BATCH, EPOCHS, SIDE, SEED = 12, 6, 5, 8, 3
STEPS = EPOCHS * SAMPLES // BATCH


@dataclass(frozen=True)
class Case:
    """A method, its transcription, and how often one step of it moves the BN buffers."""

    options: MethodOptions
    transcription: Callable[..., plain.Plain]
    arguments: dict[str, Any] = field(default_factory=dict)
    attack_passes: int = 1  # those that attack_bn rules
    training_passes: int = 1  # those in train mode whatever attack_bn says


def pgd(steps: int, alpha: float, random: bool) -> dict[str, Any]:
    return {"steps": steps, "alpha": alpha * plain.EPSILON, "random": random}


CASES = {
    "standard": Case(StandardOptions(), plain.Standard, attack_passes=0),
    "pgd-at": Case(PgdAtOptions(), plain.Pgd, pgd(10, 1 / 4, True), 10),
    "pgd2-at": Case(Pgd2AtOptions(), plain.Pgd, pgd(2, 1 / 2, False), 2),
    "pgd4-at": Case(Pgd4AtOptions(), plain.Pgd, pgd(4, 1 / 4, False), 4),
    "fgsm-rs": Case(FgsmRsOptions(), plain.FgsmRs),
    "n-fgsm": Case(NFgsmOptions(), plain.NFgsm),
    "fgsm-2step": Case(Fgsm2StepOptions(), plain.Fgsm2Step, {"first": 0.5}, 2),
    "fgsm-ckpt": Case(FgsmCkptOptions(), plain.FgsmCkpt, {"c": 3}, 3),
    "fgsm-ga": Case(FgsmGaOptions(), plain.FgsmGa, {"weight": 0.2, "through": "noisy"}, 2),
    "fgsm-ga-both": Case(FgsmGaOptions(through="both"), plain.FgsmGa, {"weight": 0.2, "through": "both"}, 2),
    "free-at": Case(FreeAtOptions(replays=3), plain.FreeAt, {"m": 3}, 0, 3),
    "fgsm-mep": Case(
        FgsmMepOptions(reset_every=3), plain.FgsmMep, {"momentum": 0.3, "consistency": 10.0, "reset_every": 3}
    ),
}


def images(count: int, draw: torch.Generator) -> Tensor:
    """uint8 [count, SIDE, SIDE, 3]: each of a colour of its own, noisy, with black and white pixels for the box."""
    colour = torch.randint(0, 256, (count, 1, 1, 3), generator=draw)
    pixels = colour + torch.randint(-60, 61, (count, SIDE, SIDE, 3), generator=draw)
    pixels[torch.rand(pixels.shape, generator=draw) < 0.1] = 0
    pixels[torch.rand(pixels.shape, generator=draw) < 0.1] = 255
    return pixels.clamp(0, 255).to(torch.uint8)


def pixels_of(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2).double() / 255


def small_net() -> nn.Module:
    """A net whose running statistics fit the images, and whose predictions are of all classes, near their borders."""
    torch.manual_seed(0)
    net = ResNet((4, 8), (1, 1), num_classes=plain.CLASSES).double()
    x = pixels_of(images(120, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        for _ in range(60):
            net.train()(x)
        net.linear.bias -= net.eval()(x).mean(dim=0)
    return net


def batches(net: nn.Module) -> list[tuple[Position, Batch]]:
    """EPOCHS epochs of SAMPLES samples, augmented anew in each; three labels in four are what `net` predicts."""
    draw = torch.Generator().manual_seed(2)
    found = []
    for epoch in range(EPOCHS):
        order = torch.randperm(SAMPLES, generator=draw)
        for step, index in enumerate(order.split(BATCH)):
            image = images(BATCH, draw)
            label = net.eval()(pixels_of(image)).argmax(dim=1)
            other = torch.randint(0, plain.CLASSES, (BATCH,), generator=draw)
            label = torch.where(torch.rand(BATCH, generator=draw) < 0.75, label, other)
            found.append((Position(epoch, step), Batch(index, image, label, random_key(SEED, epoch=epoch))))
    return found


def same(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, name
    difference = (ours.double() - theirs.double()).abs().max().item()
    assert difference <= 1e-9, f"{name} differs by {difference}"


def noise_of(x: Tensor, index: Tensor, key: Tensor) -> plain.Noise:
    return lambda radius: random_start(x, index, key=key, radius=radius, dtype=torch.float64)


def train_both(
    case: Case, net: nn.Module, data: list[tuple[Position, Batch]], *, box: bool, attack_bn: AttackBN
) -> tuple[TrainingStep, plain.Plain]:
    """The engine's step on `net` and the transcription on a copy of it, over the same batches; then all is compared."""
    theirs = case.transcription(copy.deepcopy(net), box=box, attack_bn=attack_bn, **case.arguments)
    step = training_step(
        case.options,
        net,
        box=box,
        attack_bn=attack_bn,
        label_smoothing=plain.SMOOTHING,
        seed=SEED,
        lr=plain.LR,
        momentum=plain.MOMENTUM,
        weight_decay=plain.DECAY,
        dtype=torch.float64,
        image=(3, SIDE, SIDE),
        batch_size=BATCH,
        samples=SAMPLES,
    )
    everyone = torch.empty(SAMPLES, 3, SIDE, SIDE)
    for position, batch in data:
        if position.step == 0:
            step.method.begin_epoch(position.epoch, SEED)
            if isinstance(theirs, plain.FgsmMep):
                theirs.begin_epoch(position.epoch, noise_of(everyone, torch.arange(SAMPLES), batch.key)(plain.EPSILON))
        step(batch, position)
        theirs.iteration(pixels_of(batch.image), batch.label, batch.index, noise_of(batch.x, batch.index, batch.key))

    for (entry, value), other in zip(net.state_dict().items(), theirs.f.state_dict().values(), strict=True):
        same(entry, value, other)  # weights, BN running statistics and their counts
    for w, velocity in zip(net.parameters(), theirs.velocity, strict=True):
        same("momentum", step.learner.optimizer.state[w]["momentum_buffer"], velocity)
    return step, theirs


@pytest.mark.parametrize("attack_bn", ["train", "eval"])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_ten_steps_equal_the_transcription(name: str, box: bool, attack_bn: AttackBN) -> None:
    case, net = CASES[name], small_net()
    start = copy.deepcopy(net)
    step, theirs = train_both(case, net, batches(start), box=box, attack_bn=attack_bn)
    kept = step.method.state()
    assert sorted(kept) == {"free-at": ["delta"], "fgsm-mep": ["delta", "momentum"]}.get(name, [])
    for entry, value in kept.items():
        same(entry, value, getattr(theirs, entry))

    passes = case.training_passes + (case.attack_passes if attack_bn == "train" else 0)
    assert net.bn1.num_batches_tracked - start.bn1.num_batches_tracked == STEPS * passes
    assert net.training
    # The comparison means something only if the net moved, and if what tells the images apart has happened.
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(net.parameters(), start.parameters(), strict=True))
    if isinstance(theirs, plain.FgsmCkpt):
        assert set(theirs.used) == {0, 1, 2, 3}


def blind_net() -> nn.Module:
    """A net that sees nothing below mid-grey, so that the gradient at a dark image is zero, wherever in the ball."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (SIDE - 2) ** 2, plain.CLASSES))
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.copy_(-net[0].weight.sum(dim=(1, 2, 3)) / 2)
    return net.double()


@pytest.mark.parametrize("through", ["noisy", "both"])
def test_grad_align_leaves_out_samples_without_a_gradient(through: str) -> None:
    """As the released code does; a batch that has none adds no penalty."""
    case = CASES["fgsm-ga" if through == "noisy" else "fgsm-ga-both"]
    net = blind_net()
    data, seen = [], []
    for dark, (position, batch) in zip([3, 0, BATCH, 5] * 3, batches(small_net()), strict=False):
        image = batch.image | 0xC0
        image[:dark] = 0
        x = pixels_of(image).requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        seen.append(int((gradient.flatten(1) != 0).any(dim=1).sum()))
        data.append((position, Batch(batch.index, image, batch.label, batch.key)))
    assert seen == ([3, 6, 0, 1] * 3)[:STEPS]
    train_both(case, net, data, box=True, attack_bn="train")


def test_only_the_checkpoints_paper_crafts_in_eval_mode() -> None:
    assert [name for name in METHODS if method_options(name).paper_attack_bn == "eval"] == ["fgsm-ckpt"]
