"""Nets whose numbers nobody should report: the planted defects are refused or flagged, sound nets are not."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardfast.engine import Recipe, UsageError, evaluate_net, load_model, train
from hardfast.engine.evaluation.net_checks import check_net
from hardfast.engine.methods import METHODS, method_options
from hardfast.engine.models import NAMES, ModelOptions, NetShape, build_model
from hardfast.loaders import Split

from .evaluating import EPS, LinearNet, as_it_sees_them, digits


@pytest.fixture(scope="module")
def net(quick_run: Path) -> nn.Module:
    return load_model(quick_run)


def floats(split: Split) -> Tensor:
    return split.images.permute(0, 3, 1, 2).float() / 255


class Around(nn.Module):
    """A net with something done to its images or to its logits."""

    def __init__(
        self,
        net: nn.Module,
        images: Callable[[Tensor], Tensor] = lambda x: x,
        logits: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.images, self.logits = net, images, logits
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.net(self.images(x)))


class Killed(torch.autograd.Function):
    """The identity, whose gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 0 * gradients[0]


class Clamped(Killed):
    """The identity, whose gradient is next to nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(-1e-9, 1e-9)


class Shattered(Killed):
    """The identity, whose gradient is another one's."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].roll(1, dims=0).flip(1, 2, 3)


def rounded(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * levels).round() / levels


def straight_through(quantised: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: x + (quantised(x) - x).detach()


def batch_statistics(net: nn.Module) -> nn.Module:
    """BatchNorm as in train mode, although every flag says eval."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    return net


def one_bn_in_train_mode(net: nn.Module) -> nn.Module:
    net.get_submodule("layer2.0.bn1").train()
    return net


def dropout_layer(net: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Dropout(0.1), net).eval()
    net[0].train()
    return net


REFUSED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "dropout: a module in train mode": (dropout_layer, "0 is in train mode: call net.eval()"),
    "dropout: in eval mode": (lambda net: Around(net, images=lambda x: F.dropout(x, 0.1, True)), "in every call"),
    "dropout: little": (lambda net: Around(net, logits=lambda z: F.dropout(z, 0.01, True)), "in every call"),
    "softmax head": (lambda net: Around(net, logits=lambda z: z.softmax(dim=1)), "remove its softmax"),
    "x100 logits": (lambda net: Around(net, logits=lambda z: 100 * z), "saturated softmax.*divide the net's logits"),
    "gradient killer: zero": (lambda net: Around(net, images=Killed.apply), "input gradients are zero.*let gradients"),
    "gradient killer: detached": (lambda net: Around(net, images=lambda x: x.detach()), "no gradient reaches"),
    "gradient killer: no_grad": (lambda net: Around(net, logits=torch.no_grad()(lambda z: z.clone())), "no gradient"),
    "quantised input": (lambda net: Around(net, images=rounded(255)), "gradients are zero.*rounds .quantised input"),
    "train-mode BN: by flag": (one_bn_in_train_mode, "layer2.0.bn1 is in train mode"),
    "train-mode BN: by statistics": (batch_statistics, "depends on the others of its batch"),
    "half": (lambda net: net.half(), "full precision"),
    "double": (lambda net: net.double(), "full precision"),
    "bfloat16": (lambda net: net.bfloat16(), "full precision"),
    "features": (lambda net: Around(net, logits=lambda z: z[:, :, None]), "not their logits"),
    "too few outputs": (lambda net: Around(net, logits=lambda z: z[:, :7]), "7 outputs.*another data set"),
    "NaN weights": (lambda net: Around(net, logits=lambda z: z * torch.nan), "logits that are not finite"),
    "NaN gradients": (
        lambda net: Around(net, images=lambda x: x + 0 * (x - x.detach()).abs().sqrt()),
        "input gradients are not finite",
    ),
}

FLAGGED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "quantised input, straight-through": (lambda net: Around(net, images=straight_through(rounded(255))), "rounds its"),
    "few levels, straight-through": (lambda net: Around(net, images=straight_through(rounded(15))), "rounds its input"),
    "gradient killer: clamped": (lambda net: Around(net, images=Clamped.apply), "the gradients are not its own"),
    "gradient killer: shattered": (lambda net: Around(net, images=Shattered.apply), "the gradients are not its own"),
    "logits a little too large": (lambda net: Around(net, logits=lambda z: 16 * z), "underflow.*are blunted"),
    "one answer for all": (lambda net: Around(net, logits=lambda z: 0 * z + torch.arange(10.0)), "250 images are zero"),
}


@pytest.mark.parametrize("defect", REFUSED)
def test_refused(defect: str, net: nn.Module) -> None:
    spoil, message = REFUSED[defect]
    with pytest.raises(UsageError, match=message) as refused:
        evaluate_net(spoil(copy.deepcopy(net)), digits(250), epsilon=EPS, quiet=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("defect", FLAGGED)
def test_flagged(defect: str, net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = FLAGGED[defect]
    found = evaluate_net(spoil(copy.deepcopy(net)), digits(250), epsilon=EPS, attacks=("clean", "fgsm"))
    (warning,) = found.attacks["fgsm"].warnings
    assert re.search(message, warning)
    assert not found.attacks["clean"].warnings  # no attack has a part in that number
    assert f"doubtful: {warning}" in capsys.readouterr().out


def test_a_sound_net_passes(net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("clean", "fgsm", "pgd-10", "pgd-20", "cw", "apgd")
    found = evaluate_net(net, digits(200), epsilon=EPS, attacks=names)
    assert not any(report.warnings for report in found.attacks.values())
    assert "doubtful" not in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sound_net_passes_on_few_images(count: int, net: nn.Module) -> None:
    assert not check_net(net, floats(digits(count)), digits(count).labels, epsilon=EPS).warnings
    refused, _ = REFUSED["train-mode BN: by statistics"]
    with pytest.raises(UsageError):
        check_net(refused(copy.deepcopy(net)), floats(digits(count)), digits(count).labels)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_nets_that_pass(method: str, quick_recipe: Recipe, tmp_path: Path) -> None:
    """One epoch of each, whose nets are far from done: neither refused nor flagged."""
    recipe = replace(quick_recipe, epochs=1, method=method_options(method))
    train(recipe, tmp_path / "run")
    split = digits(100)
    found = check_net(load_model(tmp_path / "run"), floats(split), split.labels, epsilon=EPS)
    assert (found.classes, found.warnings) == (10, ())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"wide_resnet34_10", "resnet50"}))
def test_untrained_nets_pass(name: str) -> None:
    """With random weights and few classes."""
    net = build_model(ModelOptions(name=name), NetShape(num_classes=2, in_channels=3)).eval()
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert check_net(net, x, torch.tensor([0, 1, 0, 1])).warnings == ()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_nets_with_few_classes_pass(classes: int) -> None:
    net = LinearNet(classes).eval()
    split = as_it_sees_them(net, digits(50))
    found = evaluate_net(net, split, epsilon=Fraction(4, 255), attacks=("clean", "fgsm", "pgd-10", "cw"), quiet=True)
    assert not any(report.warnings for report in found.attacks.values())


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


def test_the_checks_cost_ten_passes_and_leave_no_trace(net: nn.Module) -> None:
    passes = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return x

    torch.manual_seed(3)
    before, buffers = torch.random.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    check_net(Around(net, images=counted), floats(digits(20)), digits(20).labels, epsilon=EPS)
    assert passes == 8
    check_net(Around(net, images=counted), floats(digits(20)), digits(20).labels, thorough=False)
    assert passes == 9
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(v, buffers[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
