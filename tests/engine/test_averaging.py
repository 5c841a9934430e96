"""The average over weights: its formula, its BatchNorm statistics, and that it is what a run keeps and evaluates."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hardfast.engine import Recipe, evaluate_net, load_model, train
from hardfast.engine.averaging import WeightAverage
from hardfast.engine.checkpoint import MODEL
from hardfast.engine.models import ResNet
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.engine.signals import StopRequest
from hardfast.engine.trainer import train_epoch
from hardfast.loaders import open_dataset


def test_the_average_is_the_formula() -> None:
    torch.manual_seed(0)
    net = ResNet((4, 8), (1, 1), num_classes=3).double()
    average = WeightAverage(net, 0.5)
    wanted = [p.detach().clone() for p in net.parameters()]
    for t in range(12):
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn_like(p)
        average.update(torch.zeros(()))
        decay = min(0.5, (1 + t) / (10 + t))
        wanted = [decay * mean + (1 - decay) * p.detach() for mean, p in zip(wanted, net.parameters(), strict=True)]
    for mean, ours in zip(wanted, average.net.parameters(), strict=True):
        torch.testing.assert_close(ours, mean, rtol=1e-6, atol=1e-6)  # the decay is computed in float32
        assert not ours.requires_grad
    assert average.steps.item() == 12


def test_statistics_are_the_mean_over_batches() -> None:
    """Against sums by hand at the first BN, and against frozen statistics elsewhere."""
    torch.manual_seed(0)
    net = ResNet((4, 8), (1, 1), num_classes=3).double()
    average = WeightAverage(net, 0.5)
    batches = [torch.rand(6, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
    average.net.bn1.running_mean.fill_(100)  # what was there before does not count
    weights = [p.clone() for p in average.net.parameters()]
    average.recompute_statistics(batches)
    seen = [average.net.conv1(x) for x in batches]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(dim=1) for x in seen]).mean(dim=0)
    torch.testing.assert_close(average.net.bn1.running_mean, means)
    torch.testing.assert_close(average.net.bn1.running_var, variances)
    assert not any(module.training for module in average.net.modules())
    assert {m.momentum for m in average.net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert all(torch.equal(a, b) for a, b in zip(weights, average.net.parameters(), strict=True))


@pytest.fixture(scope="module")
def averaged(quick_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    recipe = replace(quick_recipe, epochs=2, weight_average=0.9)
    train(recipe, tmp_path_factory.mktemp("averaged") / "run")
    return recipe, tmp_path_factory.getbasetemp() / "averaged0" / "run"


def test_a_run_keeps_and_evaluates_the_average(averaged: tuple[Recipe, Path]) -> None:
    recipe, folder = averaged
    last = RunFolder(folder).checkpoint("last")
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    run.restore(last)
    kept, trained = load_model(folder, checkpoint="last").state_dict(), run.net.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in run.average.net.state_dict().items())
    assert not torch.equal(kept["conv1.weight"], trained["conv1.weight"])
    log = (folder / "log.jsonl").read_text().splitlines()[-1]
    found = evaluate_net(
        load_model(folder, checkpoint="last"), run.data.heldout, epsilon=run.epsilon, attacks=("clean",), quiet=True
    )
    assert f'"clean": {found.accuracy["clean"]}' in log
    assert (last.path / MODEL).stat().st_size > 0


def test_averaging_leaves_training_alone(averaged: tuple[Recipe, Path], quick_recipe: Recipe) -> None:
    """The trained weights are those of a run without an average."""
    recipe, folder = averaged
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    run.restore(RunFolder(folder).checkpoint("last"))
    plain = Run(replace(recipe, weight_average=None), open_dataset(recipe.data), torch.device("cpu"))
    for _ in range(recipe.epochs):
        assert train_epoch(plain, poll=plain.watch.read, pause=lambda: False)
        plain.at.epoch, plain.at.step = plain.at.epoch + 1, 0
    for name, value in plain.net.state_dict().items():
        assert torch.equal(value, run.net.state_dict()[name]), name


def test_rewinding_puts_the_average_back(quick_recipe: Recipe) -> None:
    recipe = replace(quick_recipe, weight_average=0.9)
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    before = copy.deepcopy(run.average.net.state_dict())
    with run.rewind():
        train_epoch(run, poll=run.watch.read, pause=lambda: False)
        assert not torch.equal(run.average.net.conv1.weight, before["conv1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in run.average.net.state_dict().items())
    assert run.average.steps.item() == 0


class StopAfterAStep(StopRequest):
    """Asks for a stop as soon as training has begun."""

    asked = 0

    @property
    def requested(self) -> bool:
        type(self).asked += 1
        return type(self).asked > 2

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def test_what_a_stop_in_mid_epoch_keeps_has_statistics_of_its_own(
    quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardfast.engine.trainer.StopRequest", StopAfterAStep)
    assert not train(replace(quick_recipe, weight_average=0.9), tmp_path / "run").finished
    kept = load_model(tmp_path / "run", checkpoint="last")
    assert RunFolder(tmp_path / "run").checkpoint("last").record.at.epoch == 0
    assert not torch.equal(kept.bn1.running_mean, torch.zeros_like(kept.bn1.running_mean))
    assert not torch.equal(kept.bn1.running_var, torch.ones_like(kept.bn1.running_var))
