"""AutoAttack through the adapter: the official code's own result, stage by stage and batch by batch."""

from __future__ import annotations

import copy
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardfast.engine import EvaluationError, UsageError, console, evaluate_net, load_model
from hardfast.engine.evaluation import autoattack
from hardfast.engine.evaluation.attack_stages import AttackPlan
from hardfast.engine.evaluation.autoattack import STANDARD, OfficialAttacks
from hardfast.engine.evaluation.stages import Progress, run_stages
from hardfast.loaders import Split

from .evaluating import EPS, LinearNet, as_it_sees_them, digits

SMALL = Fraction(4, 255)  # half of the images resist it on the linear net


@pytest.fixture(scope="module")
def net(quick_run: Path) -> nn.Module:
    return load_model(quick_run)


def floats(split: Split) -> Tensor:
    return split.images.permute(0, 3, 1, 2).float().contiguous() / 255


def official(net: nn.Module, epsilon: Fraction = EPS, seed: int = 0, classes: int = 10) -> OfficialAttacks:
    bar = console.bar(None, "attack", "passes", quiet=True)
    return OfficialAttacks(net, classes=classes, epsilon=epsilon, seed=seed, device=torch.device("cpu"), bar=bar)


def test_the_seed_reaches_the_library(net: nn.Module) -> None:
    split = digits(8)
    one, same, other = (
        official(net, seed=seed).perturb("apgd-ce", floats(split), split.labels)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_library_that_leaves_the_ball_is_not_reported(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyautoattack

    class Doctored(pyautoattack.AutoAttack):
        def run_standard_evaluation(self, x: Tensor, y: Tensor, **options: object) -> tuple[Tensor, Tensor]:
            x_adv, predicted = super().run_standard_evaluation(x, y, **options)
            return (x_adv + 1e-4).clamp(0, 1), predicted

    monkeypatch.setattr(pyautoattack, "AutoAttack", Doctored)
    with pytest.raises(EvaluationError, match="left the ball"):
        evaluate_net(net, digits(8), epsilon=EPS, attacks=("apgd",), quiet=True)


def test_it_is_the_librarys_own_result() -> None:
    """Official code, standard version, by hand and in one go: the same images resist after each of its attacks.

    Images in two batches, so that what is left is batched anew for the next attack.
    """
    from pyautoattack import AutoAttack

    net = LinearNet().eval()
    split = as_it_sees_them(net, digits(6))
    plan = AttackPlan(net, 10, SMALL, None, 3, torch.device("cpu"))
    bar = console.bar(None, "aa", "passes", quiet=True)
    progress = Progress.begin(len(split))
    run_stages(plan.stages("aa", bar), split, progress, batch_size=4, bar=bar)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("auto-attack")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        by_hand = AutoAttack(
            copy.deepcopy(net), eps=float(SMALL), norm="Linf", seed=3, version="standard", device="cpu"
        )
        _, predicted = by_hand.run_standard_evaluation(floats(split), split.labels, batch_size=4)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert torch.equal(progress.standing, predicted == split.labels)
    assert 0 < int(progress.standing.sum()) < len(split) - 1
    assert list(progress.accuracy) == ["clean", *STANDARD]
    for name, percent in progress.accuracy.items():
        line = f"initial accuracy: {percent:.2f}%" if name == "clean" else f"after {name.upper()}: {percent:.2f}%"
        assert any(line in message for message in said), line
    assert not progress.warnings


def test_one_attack_equals_the_librarys(net: nn.Module) -> None:
    from pyautoattack import AutoAttack

    split = digits(16)
    x_adv, right, _ = official(net, seed=3).perturb("apgd-ce", floats(split), split.labels)
    by_hand = AutoAttack(
        copy.deepcopy(net), eps=float(EPS), norm="Linf", seed=3, version="custom", attacks=["apgd-ce"], device="cpu"
    )
    by_hand.apgd.n_restarts = 1  # as the standard version has it
    images, predicted = by_hand.run_standard_evaluation(floats(split), split.labels, batch_size=16)
    assert torch.equal(x_adv, images)
    assert torch.equal(right, predicted == split.labels)


def test_it_leaves_no_trace(net: nn.Module) -> None:
    torch.manual_seed(7)
    before, log = torch.random.get_rng_state(), logging.getLogger("auto-attack")
    settings = (log.level, log.propagate, list(log.handlers))
    result = evaluate_net(net, digits(20), epsilon=EPS, attacks=("apgd",), quiet=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (log.level, log.propagate, list(log.handlers)) == settings
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert 0 < result.accuracy["apgd"] < 100
    assert list(result.attacks["apgd"].stages) == ["apgd-ce"]


def test_fab_computes_no_weight_gradients(net: nn.Module) -> None:
    """The library's FAB calls `backward`."""
    split = digits(2)
    attacks = official(net)
    attacks.official.fab.n_iter, attacks.official.fab.n_target_classes = 2, 1
    grads: list[bool] = []
    layer = net.get_submodule("linear")
    handle = layer.register_forward_hook(lambda module, inputs, output: grads.append(module.weight.requires_grad))
    attacks.perturb("fab-t", floats(split), split.labels)
    handle.remove()
    assert grads
    assert not any(grads[:-1])  # the last pass is our own check, without any gradient
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_apgd_alone_is_one_restart_of_100_steps(net: nn.Module) -> None:
    """The library's `custom` version would run five restarts."""
    passes = 0

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            logits: Tensor = net(x)
            return logits

    split = digits(20)
    official(Counting().eval()).perturb("apgd-ce", floats(split), split.labels)
    assert 100 < passes < 120


def test_a_net_that_answers_at_random_is_not_reported() -> None:
    """Should such a net come past the checks, its contradiction is found."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 10) + 0 * x.sum()

    split = digits(20)
    with pytest.raises(EvaluationError, match="not deterministic"):
        official(Noisy().eval()).perturb("apgd-ce", floats(split), split.labels)


def test_too_few_classes_for_the_targeted_losses() -> None:
    net = LinearNet(classes=3).eval()
    split = as_it_sees_them(net, digits(10))
    with pytest.raises(UsageError, match="aa needs at least 4 classes"):
        evaluate_net(net, split, epsilon=SMALL, attacks=("clean", "aa"), quiet=True)
    assert 0 < evaluate_net(net, split, epsilon=SMALL, attacks=("apgd",), quiet=True).accuracy["apgd"] <= 100


def test_images_that_left_the_ball_are_not_reported() -> None:
    x = torch.rand(4, 3, 8, 8)
    autoattack._check_images(x, (x + 8 / 255).clamp(0, 1), Fraction(8, 255))
    wrong: list[tuple[Any, str]] = [
        (x + 8.01 / 255, "left the ball"),
        (x * torch.nan, "left the ball"),
    ]
    for images, message in wrong:
        with pytest.raises(EvaluationError, match=message):
            autoattack._check_images(x, images, Fraction(8, 255))
    with pytest.raises(EvaluationError, match=r"outside \[0, 1\]"):
        autoattack._check_images(x * 0, x * 0 - 1 / 255, Fraction(8, 255))
