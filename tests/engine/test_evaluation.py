"""The attacks against plain transcriptions, AutoAttack against itself, and nets that must be refused."""

from __future__ import annotations

import copy
import json
import logging
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine import EvaluationError, UsageError, autoattack, evaluate, evaluate_net, load_model
from hardfast.engine.attacks import gradient_attacks, summed_margin
from hardfast.engine.autoattack import run_autoattack
from hardfast.engine.evaluation import check_net
from hardfast.engine.threat import parse_pixels
from hardfast.kernels import Purpose, pixel_bounds, random_start
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
        start = random_start(x_bytes, index, radius=EPS, seed=0, epoch=0, purpose=Purpose.EVALUATE)
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


def test_autoattack_equals_the_library_used_by_hand(net: nn.Module, test_images: Split) -> None:
    """The adapter changes nothing: official code, standard version, by hand, on 16 images."""
    from pyautoattack import AutoAttack

    images = test_images.images[:16].permute(0, 3, 1, 2).float().contiguous() / 255
    labels = test_images.labels[:16]
    found = run_autoattack(net, images, labels, epsilon=EPS, version="standard", seed=0, batch_size=250, label="aa")
    by_hand = AutoAttack(copy.deepcopy(net), eps=float(EPS), norm="Linf", seed=0, version="standard", device="cpu")
    _, predicted = by_hand.run_standard_evaluation(images, labels, batch_size=250)
    assert torch.equal(found.robust, predicted == labels)
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


def test_apgd_alone_is_one_restart_of_100_steps(
    net: nn.Module, test_images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's `custom` version would run five restarts."""
    passes = 0

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            logits: Tensor = net(x)
            return logits

    images = test_images.images[:20].permute(0, 3, 1, 2).float() / 255
    run_autoattack(
        Counting().eval(), images, test_images.labels[:20], epsilon=EPS, version="apgd-ce", seed=0, batch_size=20,
        label="apgd",
    )  # fmt: skip
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
        (lambda net: net.bfloat16(), "full precision"),
        (lambda net: Softmaxed(net).eval(), "probabilities"),
        (with_nan, "not finite"),
    ],
)
def test_nets_that_are_refused(spoil: object, message: str, net: nn.Module, test_images: Split) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_net(spoil(copy.deepcopy(net)), test_images, epsilon=EPS, quiet=True)


@pytest.mark.parametrize(
    "images", [torch.rand(2, 3, 8, 8) * 255, torch.rand(2, 3, 8, 8) - 0.5, torch.rand(2, 3, 8, 8).double()]
)
def test_images_that_are_refused(images: Tensor, net: nn.Module) -> None:
    check_net(net, torch.rand(2, 3, 8, 8))
    with pytest.raises(UsageError, match=r"float32 in \[0, 1\]"):
        check_net(net, images)


def test_autocast_is_refused(net: nn.Module) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match="autocast"):
        check_net(net, torch.rand(2, 3, 8, 8))


def test_evaluation_json(quick_run: Path) -> None:
    report = evaluate(quick_run, attacks=("clean", "pgd-10"), samples=50, samples_of={"pgd-10": 30})
    assert report == json.loads((quick_run / "evaluation.json").read_text())
    assert report["checkpoint"] == "best"
    assert report["samples"] == 50
    assert report["epsilon"] == EPSILON
    assert report["samples_of"] == {"pgd-10": 30}
    assert list(report["accuracy"]) == ["clean", "pgd-10"]
    added = evaluate(quick_run, attacks=("fgsm",), samples=50)
    assert set(added["accuracy"]) == {"clean", "pgd-10", "fgsm"}  # same checkpoint, same images: kept
    replaced = evaluate(quick_run, attacks=("fgsm",), samples=40)
    assert set(replaced["accuracy"]) == {"fgsm"}


@pytest.mark.parametrize(("options", "message"), [({"attacks": ("pdg-10",)}, "pdg-10"), ({"samples": 0}, "at least 1")])
def test_bad_requests(options: dict[str, object], message: str, quick_run: Path) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(quick_run, **options)
