"""The attacks against plain transcriptions, and what an evaluation writes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardfast.engine import Recipe, UsageError, evaluate, evaluate_net, load_model, recipes
from hardfast.engine.evaluation.attack_stages import AttackPlan
from hardfast.engine.evaluation.attacks import gradient_attacks, margins, summed_margin
from hardfast.engine.evaluation.autoattack import OfficialAttacks
from hardfast.engine.evaluation.stages import Stage
from hardfast.kernels import Purpose, pixel_bounds, random_key, random_start
from hardfast.loaders import Split, open_dataset

from .conftest import EPSILON
from .counting import ConvolutionCounter
from .evaluating import EPS, digits


@pytest.fixture(scope="module")
def net(quick_run: Path) -> nn.Module:
    return load_model(quick_run)


@pytest.fixture(scope="module")
def test_images() -> Split:
    return digits(100)


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
    logits, labels = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 2.0]]), torch.tensor([1, 1])
    assert margins(logits, labels).tolist() == [2 - 3, 5 - 1]
    assert summed_margin(logits, labels) == (2 - 3) + (5 - 1)


def test_attacks_grow_stronger(net: nn.Module, test_images: Split) -> None:
    names = ("clean", "fgsm", "pgd-10", "pgd-50")
    accuracy = evaluate_net(net, test_images, epsilon=EPS, attacks=names, quiet=True).accuracy
    assert accuracy["clean"] > accuracy["fgsm"] >= accuracy["pgd-10"] >= accuracy["pgd-50"]


def test_no_batch_size_shows(net: nn.Module, test_images: Split) -> None:
    one = evaluate_net(net, test_images, epsilon=EPS, attacks=("pgd-10",), batch_size=100, quiet=True)
    other = evaluate_net(net, test_images, epsilon=EPS, attacks=("pgd-10",), batch_size=33, quiet=True)
    assert abs(one.accuracy["pgd-10"] - other.accuracy["pgd-10"]) <= 1  # fp32 sums differ with the batch


@pytest.mark.parametrize("name", ["clean", "fgsm", "pgd-10", "cw", "apgd"])
def test_no_attack_computes_a_weight_gradient(name: str, net: nn.Module, test_images: Split) -> None:
    """Also of a net whose parameters require gradients; passes are those of the attack and of the checks."""
    assert all(parameter.requires_grad for parameter in net.parameters())
    with ConvolutionCounter(set()) as counter:
        evaluate_net(net, test_images.take(torch.arange(8)), epsilon=EPS, attacks=(name,), quiet=True)
    calls = counter.calls
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert calls["net weight"] == 0
    steps = {"clean": 0, "fgsm": 1, "pgd-10": 10, "cw": 20, "apgd": 101}[name]
    assert calls["net input"] == convolutions * (2 + steps)  # two of the checks
    # Of the checks: logits, two repeats, one among others, two gradients, two probes.
    outside = {"apgd": 1 + 7 + 1 + 1 + 1 + 1}.get(name, 1)  # what the library asks besides, and our check of its answer
    assert calls["net forward"] == convolutions * (8 + steps + outside)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


class HostReads(TorchDispatchMode):
    """Counts operations whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"):
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["fgsm", "pgd-10", "cw"])
def test_attacks_stay_on_the_device(name: str, net: nn.Module, test_images: Split) -> None:
    attack, x = gradient_attacks(EPS)[name], test_images.images.permute(0, 3, 1, 2)
    index = torch.arange(len(x))
    attack.perturb(net, x, test_images.labels, index, epsilon=EPS, seed=0)  # the constants are on the device now
    with HostReads() as reads:
        attack.perturb(net, x, test_images.labels, index, epsilon=EPS, seed=0)
    assert not reads.calls
    with HostReads() as reads:
        x.sum().item()
    assert reads.calls


def test_a_fooled_sample_stays_as_it_is(net: nn.Module, test_images: Split) -> None:
    """An image fooled by step n is the very same after more steps, and still fools the net."""
    x, labels = test_images.images.permute(0, 3, 1, 2), test_images.labels
    attack = replace(gradient_attacks(EPS)["pgd-10"])
    few, many = (
        replace(attack, steps=steps).perturb(net, x, labels, torch.arange(len(x)), epsilon=EPS, seed=0)
        for steps in (4, 10)
    )
    with torch.no_grad():
        fooled = net(few).argmax(dim=1) != labels
    assert fooled.any()
    assert torch.equal(few[fooled], many[fooled])
    assert not torch.equal(few[~fooled], many[~fooled])


def test_evaluation_json(quick_run: Path, tmp_path: Path) -> None:
    quick_run = Path(shutil.copytree(quick_run, tmp_path / "run"))

    def stored() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((quick_run / "evaluation.json").read_text())
        return found

    report = evaluate(quick_run, attacks=("clean", "pgd-10"), samples=50, samples_of={"pgd-10": 30})
    assert report == stored()
    assert (report["checkpoint"], report["samples"], report["epsilon"]) == ("best", 50, EPSILON)
    assert (report["test_images"], report["attacks"]["pgd-10"]["test_images"]) == (360, 360)
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

    monkeypatch.setattr(OfficialAttacks, "stages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(quick_run, attacks=("fgsm", "aa"), seed=5)
    found = json.loads((quick_run / "evaluation.json").read_text())
    assert found["seed"] == 5
    assert list(found["accuracy"]) == ["fgsm"]


def test_warnings_stay_with_their_attack(quick_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flagged(self: AttackPlan, name: str, bar: object) -> tuple[Stage, ...]:
        return (Stage(name, 1, lambda x, labels, index: (labels >= 0, ["something is odd"])),)

    with monkeypatch.context() as patch:
        patch.setattr(AttackPlan, "stages", flagged)
        evaluate(quick_run, attacks=("aa",), samples=10, seed=6)
    evaluate(quick_run, attacks=("fgsm",), samples=10, seed=6)
    found = json.loads((quick_run / "evaluation.json").read_text())
    assert found["attacks"]["aa"]["warnings"] == ["something is odd"]
    assert found["attacks"]["fgsm"]["warnings"] == []


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
        ({"attacks": ()}, "name at least one of clean"),
        ({"attacks": ("clean", "fgsm", "fgsm")}, "fgsm more than once"),
        ({"samples": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch-size"),
    ],
)
def test_bad_requests(options: dict[str, object], message: str, quick_run: Path) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(quick_run, **options)


@pytest.mark.parametrize("options", [{"epsilon": Fraction(0)}, {"epsilon": EPS, "step": Fraction(0)}])
def test_attacks_that_change_nothing(options: dict[str, Fraction], net: nn.Module, test_images: Split) -> None:
    """Their accuracy would be the clean one, under the name of an attack."""
    with pytest.raises(UsageError, match="epsilon and attack-step must be positive"):
        evaluate_net(net, test_images, **options)
