"""Which execution is chosen and why, the switches it sets, and loss scaling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hardfast.engine import Recipe, UsageError, recipes, train
from hardfast.engine.execution import Execution, ExecutionOptions, choose_execution
from hardfast.engine.methods import Position
from hardfast.engine.nonfinite import StepWatch
from hardfast.engine.optimizers import LossScaler, make_sgd, set_learning_rate
from hardfast.engine.run import Run, why_uncapturable
from hardfast.loaders import open_dataset

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen for a GPU is tested without one: as if it were an A100 or later."""
    monkeypatch.setattr("hardfast.engine.execution.tensor_cores", lambda device: device.type == "cuda")


def test_on_a_v100_there_is_neither_tf32_nor_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardfast.engine.execution.tensor_cores", lambda device: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla V100")
    assert choose_execution(ExecutionOptions(), CUDA).describe() == "captured (the default on a GPU), fp32"
    with pytest.raises(UsageError, match="no tensor cores on Tesla V100: use fp16"):
        choose_execution(ExecutionOptions(precision="bf16"), CUDA)


def test_defaults() -> None:
    assert choose_execution(ExecutionOptions(), CPU).mode == "eager"
    chosen = choose_execution(ExecutionOptions(), CUDA)
    assert (chosen.mode, chosen.precision, chosen.tf32, chosen.pad_channels) == ("captured", "fp32", True, False)
    assert chosen.describe() == "captured (the default on a GPU), fp32 with products in TF32"
    assert choose_execution(ExecutionOptions(precision="fp16"), CUDA).pad_channels
    assert not choose_execution(ExecutionOptions(precision="bf16"), CPU).pad_channels
    assert choose_execution(ExecutionOptions(pad_channels="on"), CPU).pad_channels


@pytest.mark.parametrize(("mode", "instead"), [("captured", "compiled"), ("captured-eager", "eager")])
def test_what_cannot_be_captured_says_why(mode: str, instead: str) -> None:
    chosen = choose_execution(ExecutionOptions(mode=mode), CUDA, uncapturable="its momentum moves")
    assert (chosen.mode, chosen.why) == (instead, "not captured: its momentum moves")


def test_a_momentum_that_moves_cannot_be_captured() -> None:
    recipe = recipes.get("cifar10-resnet18-cyclic")
    moving = replace(recipe, schedule=replace(recipe.schedule, cycle_momentum=True))
    for one, reason in ((recipe, None), (moving, "cycle-momentum")):
        found = why_uncapturable(one)
        assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("mode", ["captured", "captured-eager"])
def test_no_graphs_on_a_cpu(mode: str) -> None:
    with pytest.raises(UsageError, match="needs a CUDA device"):
        choose_execution(ExecutionOptions(mode=mode), CPU)


def test_compiling_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="needs a C"):
        choose_execution(ExecutionOptions(mode="compiled"), CPU)


def test_the_switches_are_put_back() -> None:
    def switches() -> tuple[bool, bool, bool]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark

    before = switches()
    with Execution(tf32=False).numerics():
        assert switches() == (False, False, True)
    with pytest.raises(KeyError), Execution(tf32=True).numerics():
        assert switches() == (True, True, True)
        raise KeyError
    assert switches() == before


FP16 = Execution(precision="fp16")


def scaler_of(execution: Execution) -> LossScaler:
    return LossScaler(execution, StepWatch(execution.device))


def overflowing(net: nn.Module, scaler: LossScaler, optimizer: torch.optim.Optimizer, factor: float) -> None:
    scaler.watch.begin()
    optimizer.zero_grad()
    loss = net.weight.sum()
    (scaler.scale(loss) * factor).backward()
    scaler.step(optimizer, loss)
    scaler.update()
    scaler.watch.end()


def test_a_step_that_overflows_is_left_out_and_the_scale_has_a_floor() -> None:
    net = nn.Linear(2, 2)
    scaler, optimizer = scaler_of(FP16), make_sgd(net, FP16, lr=0.5, momentum=0.9, weight_decay=0)
    before = net.weight.clone()
    overflowing(net, scaler, optimizer, float("inf"))
    assert torch.equal(net.weight, before)
    assert scaler.tensors()["scale"] == 2**15
    for _ in range(40):
        overflowing(net, scaler, optimizer, float("inf"))
    assert scaler.tensors()["scale"] == 2**-10
    assert scaler.at_floor
    assert torch.equal(net.weight, before)
    overflowing(net, scaler, optimizer, 1.0)
    assert torch.equal(net.weight, before - 0.5)  # the gradient is 1, unscaled


def test_the_scale_is_saved_and_restored_in_place() -> None:
    net = nn.Linear(2, 2)
    scaler, other = scaler_of(FP16), scaler_of(FP16)
    optimizer = make_sgd(net, FP16, lr=0.5, momentum=0.9, weight_decay=0)
    for factor in (float("inf"), 1.0, 1.0, 1.0):
        overflowing(net, scaler, optimizer, factor)
    saved = scaler.tensors()
    assert (saved["scale"], saved["healthy_steps"]) == (2**15, 3)
    assert other.scale(torch.ones(())) == 2**16  # it has a scale of its own already
    other.restore(saved)
    assert other.tensors() == saved
    assert other.scale(torch.ones(())) == 2**15
    assert scaler_of(Execution()).tensors() == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_rewinding_puts_every_tensor_back(precision: str, quick_recipe: Recipe) -> None:
    """What a capture's warm-up relies on: after it, training goes on as if nothing had been."""
    recipe = replace(quick_recipe, batch_size=16, execution=ExecutionOptions(precision=precision))

    def losses(*, rewound: bool) -> list[float]:
        run = Run(recipe, open_dataset(recipe.data), CPU)
        batches = [batch for _, batch in zip(range(4), run.loader.epoch(0), strict=False)]
        if rewound:
            before = {**run.tensors(), **run.net.state_dict()}
            before = {name: tensor.clone() for name, tensor in before.items()}
            with run.rewind():
                for position in (0, 1, 2):
                    set_learning_rate(run.optimizer, 0.1)  # the schedule begins at 0
                    run.step(batches[3], Position(0, position))
                assert not torch.equal(run.net.conv1.weight, before["conv1.weight"])
            after = {**run.tensors(), **run.net.state_dict()}
            for name, tensor in after.items():
                assert torch.equal(tensor, before.get(name, torch.zeros_like(tensor))), name
        found = []
        for step, batch in enumerate(batches[:3]):
            run.follow_schedule()
            run.at.total += 1
            run.step(batch, Position(0, step))
            found.append(run.tally.read()[0])
        return found

    assert losses(rewound=True) == losses(rewound=False)


def test_a_run_says_how_it_is_executed(
    quick_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(quick_recipe, epochs=1, attack_bn="eval", execution=ExecutionOptions(precision="bf16"))
    train(recipe, tmp_path / "run")
    assert "eager (the default on a CPU), bf16" in capsys.readouterr().out
    other = replace(recipe, execution=ExecutionOptions(precision="fp32"))
    with pytest.raises(UsageError, match=r"its execution.precision is bf16, yours fp32"):
        train(other, tmp_path / "run")
