"""The attacks against plain transcriptions, AutoAttack against itself, and nets that must be refused."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine import (
    EvaluationError,
    Recipe,
    UsageError,
    autoattack,
    console,
    evaluate,
    evaluate_net,
    load_model,
    recipes,
)
from hardfast.engine.attacks import gradient_attacks, summed_margin
from hardfast.engine.autoattack import AutoAttackResult, Version, run_autoattack
from hardfast.engine.evaluation import check_net
from hardfast.engine.threat import parse_pixels
from hardfast.kernels import Purpose, pixel_bounds, random_key, random_start
from hardfast.loaders import DataOptions, Split, open_dataset

from .conftest import EPSILON

EPS = parse_pixels(EPSILON, "epsilon")


@pytest.fixture(scope="module")
def net(quick_run: Path) -> nn.Module:
    return load_model(quick_run)


@pytest.fixture(scope="module")
def test_images() -> Split:
    test = open_dataset(DataOptions(name="digits", image_size=8)).test
    return test.take(torch.arange(100))


def plain_pgd(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, steps: int, alpha: float, margin: bool) -> Tensor:
    """PGD as the released evaluations write it, on float images: which images stay right at every iterate."""
    eps = float(EPS)
    delta, right = start.clone(), torch.ones(len(x), dtype=torch.bool)
    for step in range(steps + 1):
        x_adv = (x + delta).clamp(0, 1).requires_grad_()
        logits = net(x_adv)
        right &= logits.argmax(dim=1) == y
        if step == steps:
            break
        if margin:
            others = logits.clone()
            others[torch.arange(len(y)), y] = -1e9
            loss = (others.max(dim=1).values - logits[torch.arange(len(y)), y]).sum()
        else:
            loss = F.cross_entropy(logits, y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        delta = (x_adv.detach() - x + alpha * gradient.sign()).clamp(-eps, eps)
    return right


@pytest.mark.parametrize("name", ["fgsm", "pgd-10", "pgd-20", "cw"])
def test_attacks_equal_plain_ones(name: str, net: nn.Module, test_images: Split) -> None:
    attack = gradient_attacks(EPS)[name]
    x_bytes, y = test_images.images.permute(0, 3, 1, 2), test_images.labels
    index = torch.arange(len(y))
    x_adv = attack.perturb(net, x_bytes, y, index, epsilon=EPS, seed=0)
    bounds = pixel_bounds(EPS, box=True)
    assert (x_adv >= bounds.lower[x_bytes.int()]).all()
    assert (x_adv <= bounds.upper[x_bytes.int()]).all()
    x = x_bytes.float() / 255
    start = torch.zeros_like(x)
    if attack.random_start:
        start = random_start(x_bytes, index, key=random_key(0), radius=EPS, purpose=Purpose.EVALUATE)
    with torch.no_grad():
        ours = net(x_adv).argmax(dim=1) == y
    alpha = float(EPS) if name == "fgsm" else float(EPS) / 4
    theirs = plain_pgd(net, x, y, start, attack.steps, alpha, margin=name == "cw")
    # The plain ball is a little larger (its clamp rounds): at most one image may lie on that edge.
    assert (ours != theirs).sum() <= 1
    assert 0.05 < ours.float().mean() < 0.98


def test_margin_objective() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 2.0]])
    assert summed_margin(logits, torch.tensor([1, 1])) == (2 - 3) + (5 - 1)


def test_attacks_grow_stronger(net: nn.Module, test_images: Split) -> None:
    names = ("clean", "fgsm", "pgd-10", "pgd-50")
    accuracy = evaluate_net(net, test_images, epsilon=EPS, attacks=names, quiet=True).accuracy
    assert accuracy["clean"] > accuracy["fgsm"] >= accuracy["pgd-10"] >= accuracy["pgd-50"]


def test_no_batch_size_and_no_weight_gradient_shows(net: nn.Module, test_images: Split) -> None:
    one = evaluate_net(net, test_images, epsilon=EPS, attacks=("pgd-10",), batch_size=100, quiet=True)
    other = evaluate_net(net, test_images, epsilon=EPS, attacks=("pgd-10",), batch_size=33, quiet=True)
    assert abs(one.accuracy["pgd-10"] - other.accuracy["pgd-10"]) <= 1  # fp32 sums differ with the batch
    assert all(p.grad is None for p in net.parameters())


def attack(net: nn.Module, images: Tensor, labels: Tensor, version: Version, seed: int = 0) -> AutoAttackResult:
    bar = console.bar(None, "attack", "passes", quiet=True)
    return run_autoattack(net, images, labels, epsilon=EPS, version=version, seed=seed, batch_size=250, bar=bar)


def test_the_seed_reaches_the_library(net: nn.Module, test_images: Split) -> None:
    images = test_images.images[:8].permute(0, 3, 1, 2).float() / 255
    one, same, other = (attack(net, images, test_images.labels[:8], "apgd-ce", seed) for seed in (0, 0, 1))
    assert torch.equal(one.x_adv, same.x_adv)
    assert not torch.equal(one.x_adv, other.x_adv)


def test_a_library_that_leaves_the_ball_is_not_reported(
    net: nn.Module, test_images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyautoattack

    class Doctored(pyautoattack.AutoAttack):
        def run_standard_evaluation(self, x: Tensor, y: Tensor, **options: object) -> tuple[Tensor, Tensor]:
            x_adv, predicted = super().run_standard_evaluation(x, y, **options)
            return (x_adv + 1e-4).clamp(0, 1), predicted

    monkeypatch.setattr(pyautoattack, "AutoAttack", Doctored)
    with pytest.raises(EvaluationError, match="left the ball"):
        evaluate_net(net, test_images, epsilon=EPS, attacks=("apgd",), quiet=True)


def test_autoattack_equals_the_library_used_by_hand(net: nn.Module, test_images: Split) -> None:
    """The adapter changes nothing: official code, standard version, by hand, on 16 images."""
    from pyautoattack import AutoAttack

    images = test_images.images[:16].permute(0, 3, 1, 2).float().contiguous() / 255
    labels = test_images.labels[:16]
    found = attack(net, images, labels, "standard", seed=3)
    by_hand = AutoAttack(copy.deepcopy(net), eps=float(EPS), norm="Linf", seed=3, version="standard", device="cpu")
    x_adv, predicted = by_hand.run_standard_evaluation(images, labels, batch_size=250)
    assert torch.equal(found.robust, predicted == labels)
    assert torch.equal(found.x_adv, x_adv)
    assert list(found.stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.stages["square"] == pytest.approx(100 * found.robust.float().mean().item(), abs=0.01)
    assert list(found.stages.values()) == sorted(found.stages.values(), reverse=True)


def test_autoattack_leaves_no_trace(net: nn.Module, test_images: Split) -> None:
    torch.manual_seed(7)
    before, log = torch.random.get_rng_state(), logging.getLogger("auto-attack")
    settings = (log.level, log.propagate, list(log.handlers))
    result = evaluate_net(net, test_images.take(torch.arange(20)), epsilon=EPS, attacks=("apgd",), quiet=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (log.level, log.propagate, list(log.handlers)) == settings
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert result.accuracy["apgd"] <= 100


def test_apgd_alone_is_one_restart_of_100_steps(net: nn.Module, test_images: Split) -> None:
    """The library's `custom` version would run five restarts."""
    passes = 0

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            logits: Tensor = net(x)
            return logits

    images = test_images.images[:20].permute(0, 3, 1, 2).float() / 255
    attack(Counting().eval(), images, test_images.labels[:20], "apgd-ce")
    assert 100 < passes < 120


def test_a_net_that_answers_at_random_is_not_reported(test_images: Split) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 10) + 0 * x.sum()

    with pytest.raises(EvaluationError, match="not deterministic"):
        evaluate_net(Noisy().eval(), test_images, epsilon=EPS, attacks=("apgd",), quiet=True)


def test_images_that_left_the_ball_are_not_reported() -> None:
    x = torch.rand(4, 3, 8, 8)
    autoattack._check_images(x, (x + 8 / 255).clamp(0, 1), Fraction(8, 255))
    with pytest.raises(EvaluationError, match="left the ball"):
        autoattack._check_images(x, x + 8.01 / 255, Fraction(8, 255))
    with pytest.raises(EvaluationError, match="left the ball"):
        autoattack._check_images(x, x * torch.nan, Fraction(8, 255))
    with pytest.raises(EvaluationError, match=r"outside \[0, 1\]"):
        autoattack._check_images(x * 0, x * 0 - 1 / 255, Fraction(8, 255))


class Softmaxed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(dim=1)


class NaNGradients(Softmaxed):
    """Finite logits, and a gradient that no attack can use."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (0 * (x - x.detach()).abs().sqrt()).sum(dim=(1, 2, 3))[:, None]


def in_train_mode(net: nn.Module) -> nn.Module:
    net.layer2[0].bn1.train()
    return net


def with_nan(net: nn.Module) -> nn.Module:
    net.linear.bias.data[0] = torch.nan
    return net


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (in_train_mode, "layer2.0.bn1 is in train mode"),
        (lambda net: net.half(), "full precision"),
        (lambda net: net.double(), "full precision"),
        (lambda net: net.bfloat16(), "full precision"),
        (lambda net: Softmaxed(net).eval(), "probabilities"),
        (with_nan, "logits that are not finite"),
        (lambda net: NaNGradients(net).eval(), "input gradients are not finite"),
    ],
)
def test_nets_that_are_refused(spoil: object, message: str, net: nn.Module, test_images: Split) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_net(spoil(copy.deepcopy(net)), test_images, epsilon=EPS, quiet=True)


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 8, 8) * 255, torch.rand(2, 3, 8, 8) - 0.5, torch.rand(2, 3, 8, 8).double()]
)
def test_images_that_are_refused(images: Tensor, net: nn.Module) -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    check_net(net, torch.rand(2, 3, 8, 8), labels)
    with pytest.raises(UsageError, match=r"float32 in \[0, 1\]"):
        check_net(net, images, labels)


def test_autocast_is_refused(net: nn.Module) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match="autocast"):
        check_net(net, torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))


def test_evaluation_json(quick_run: Path) -> None:
    def stored() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((quick_run / "evaluation.json").read_text())
        return found

    report = evaluate(quick_run, attacks=("clean", "pgd-10"), samples=50, samples_of={"pgd-10": 30})
    assert report == stored()
    assert (report["checkpoint"], report["samples"], report["epsilon"]) == ("best", 50, EPSILON)
    assert list(report["accuracy"]) == ["clean", "pgd-10"]
    assert {name: found["samples"] for name, found in report["attacks"].items()} == {"clean": 50, "pgd-10": 30}
    # The newest result of every attack on one checkpoint is kept, each with its own number of images.
    evaluate(quick_run, attacks=("pgd-10",))
    evaluate(quick_run, attacks=("fgsm",), samples=40)
    assert {name: found["samples"] for name, found in stored()["attacks"].items()} == {
        "clean": 50,
        "pgd-10": 360,
        "fgsm": 40,
    }
    assert stored()["accuracy"].keys() == stored()["attacks"].keys()
    # Another checkpoint's or seed's results replace them; the history keeps all.
    evaluate(quick_run, attacks=("clean",), seed=1)
    assert list(stored()["accuracy"]) == ["clean"]
    history = [json.loads(line) for line in (quick_run / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["attack"], line["samples"]) for line in history[-5:]] == [
        ("clean", 50),
        ("pgd-10", 30),
        ("pgd-10", 360),
        ("fgsm", 40),
        ("clean", 360),
    ]


def test_what_was_done_before_a_failure_is_kept(quick_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(autoattack, "run_autoattack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(quick_run, attacks=("fgsm", "aa"), seed=5)
    found = json.loads((quick_run / "evaluation.json").read_text())
    assert found["seed"] == 5
    assert list(found["accuracy"]) == ["fgsm"]


def test_warnings_stay_with_their_attack(quick_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flagged(net: nn.Module, images: Tensor, labels: Tensor, **options: object) -> AutoAttackResult:
        return AutoAttackResult(labels >= 0, images, {"square": 100.0}, ["Square did better"])

    monkeypatch.setattr(autoattack, "run_autoattack", flagged)
    evaluate(quick_run, attacks=("aa",), samples=10, seed=6)
    evaluate(quick_run, attacks=("fgsm",), samples=10, seed=6)
    found = json.loads((quick_run / "evaluation.json").read_text())
    assert found["attacks"]["aa"]["warnings"] == ["Square did better"]


def test_the_recipes_attack_step_is_used(quick_recipe: Recipe, quick_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "run"))
    (run / "config.json").write_text(recipes.to_json(replace(quick_recipe, attack_step="1/255")))
    small = evaluate(run, attacks=("pgd-10",))["accuracy"]["pgd-10"]
    usual = evaluate(quick_run, attacks=("pgd-10",))["accuracy"]["pgd-10"]
    net, test = load_model(run), open_dataset(quick_recipe.data).test
    wanted = evaluate_net(net, test, epsilon=EPS, attacks=("pgd-10",), step=Fraction(1, 255), quiet=True)
    assert small == wanted.accuracy["pgd-10"] != usual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ("pdg-10",)}, "pdg-10"),
        ({"attacks": ()}, "choose from"),
        ({"samples": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch-size"),
    ],
)
def test_bad_requests(options: dict[str, object], message: str, quick_run: Path) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(quick_run, **options)
