"""The captured step on a GPU: the same bits as without its graphs, and never a wait for the device. `make test-gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hardfast.engine import Recipe, recipes, train
from hardfast.engine.capture import WARMUP_STEPS, CapturedStep
from hardfast.engine.classifier import AttackBN
from hardfast.engine.execution import ExecutionOptions, Mode, Precision
from hardfast.engine.methods import METHODS, FgsmMepOptions, FreeAtOptions, Position, method_options
from hardfast.engine.optimizers import set_learning_rate
from hardfast.engine.recipes.recipe import StageOptions
from hardfast.engine.recipes.schedule import ScheduleOptions
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.kernels import random_key
from hardfast.loaders import Batch, open_dataset

from .counting import ConvolutionCounter

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
REPLAYS = 1000


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums in one order, so that equal work gives equal bits."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def recipe_of(method: str, mode: Mode, precision: Precision = "fp32", *, epochs: int = 50) -> Recipe:
    """The digits at 8x8, small enough for thousands of steps, with a learning rate that moves in every step."""
    digits = recipes.get("digits")
    options = replace(digits.method, k=3) if method == digits.method.name else method_options(method)
    return replace(
        digits,
        method=options,
        epochs=epochs,
        data=replace(digits.data, image_size=8),
        optimizer=replace(digits.optimizer, lr=0.02),
        schedule=ScheduleOptions(kind="cyclic"),
        execution=ExecutionOptions(mode=mode, precision=precision),
    )


def trained(recipe: Recipe, steps: int) -> dict[str, torch.Tensor]:
    """Every tensor of a run after so many steps: other images in every step, other noise in every epoch."""
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    assert run.execution.mode == recipe.execution.mode
    with run.execution.numerics():
        assert run.prepare() is None
        done = 0
        while done < steps:
            if run.enter_stage() is not None:
                assert run.prepare() is None
            run.method.begin_epoch(run.at.epoch, run.recipe.seed)
            for batch in run.loader.epoch(run.at.epoch):
                run.follow_schedule()
                run.step(batch, Position(run.at.epoch, run.at.step))
                run.at.step += 1
                run.at.total = done = done + 1
                if done == steps:
                    break
            run.at.epoch, run.at.step = run.at.epoch + 1, 0
    return {name: tensor.cpu() for name, tensor in {**run.tensors(), **run.net.state_dict()}.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("captured", "plain"), [("captured-eager", "eager"), ("captured", "compiled")])
def test_1000_replays_equal_1000_steps_to_the_bit(name: str, captured: Mode, plain: Mode) -> None:
    steps = REPLAYS if captured == "captured-eager" else 100
    ours, theirs = (trained(recipe_of(name, mode), steps) for mode in (captured, plain))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert tensor.isfinite().all(), key
        assert torch.equal(tensor, theirs[key]), key


STAGES = (StageOptions(epoch=0, image_size=12, batch_size=64), StageOptions(epoch=1, image_size=16, batch_size=32))


@pytest.mark.parametrize(
    "options",
    [
        {"weight_average": 0.99},
        {"stages": STAGES},
        {"stages": STAGES, "method": FreeAtOptions(replays=3)},
        {"method": FgsmMepOptions(reset_every=2)},
    ],
    ids=["average", "stages", "free-at in stages", "resets"],
)
@pytest.mark.parametrize(("captured", "plain"), [("captured-eager", "eager"), ("captured", "compiled")])
def test_what_a_run_remembers_is_captured_too(options: dict[str, Any], captured: Mode, plain: Mode) -> None:
    ours, theirs = (trained(replace(recipe_of("fgsm-sdi", mode), **options), 100) for mode in (captured, plain))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


def test_other_k_other_kinds_of_step() -> None:
    """Graphs of k = 1, where every step updates the generator, and of k = 5."""
    for k in (1, 5):
        both = []
        for mode in ("captured-eager", "eager"):
            recipe = recipe_of("fgsm-sdi", mode)
            both.append(trained(replace(recipe, method=replace(recipe.method, k=k)), 60))
        assert all(torch.equal(tensor, both[1][key]) for key, tensor in both[0].items())


@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("captured", "plain"), [("captured-eager", "eager"), ("captured", "compiled")])
def test_half_precision_replays_equal_steps(captured: Mode, plain: Mode, precision: Precision, bn: AttackBN) -> None:
    ours, theirs = (
        trained(replace(recipe_of("fgsm-sdi", mode, precision), attack_bn=bn), 100) for mode in (captured, plain)
    )
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("mode", ["eager", "captured-eager"])
def test_an_overflow_halves_the_scale_and_leaves_the_step_out(mode: Mode) -> None:
    recipe = recipe_of("fgsm-sdi", mode, "fp16")
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    assert run.prepare() is None
    batch = next(run.loader.epoch(0))
    run.classifier.scaler.restore({"scale": torch.tensor(2.0**40), "healthy_steps": torch.tensor(0.0)})
    before = run.net.conv1.weight.clone()
    set_learning_rate(run.optimizer, 0.1)
    run.step(batch, Position(0, 1))
    assert torch.equal(run.net.conv1.weight, before)
    assert run.classifier.scaler.tensors()["scale"] == 2.0**39
    run.classifier.scaler.restore({"scale": torch.tensor(2.0**10), "healthy_steps": torch.tensor(0.0)})
    run.step(batch, Position(0, 1))
    assert not torch.equal(run.net.conv1.weight, before)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode", ["eager", "compiled", "captured"])
def test_a_step_never_waits_for_the_device(name: str, mode: Mode, precision: Precision) -> None:
    """Nor does drawing its batch, after the first one of an epoch."""
    recipe = recipe_of(name, mode, precision)
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    run.prepare()
    with run.execution.numerics():
        batches = run.loader.epoch(0)
        for step in (0, 1):  # of each kind, which eager mode has not made yet
            run.step(next(batches), Position(0, step))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(2, 10):
                run.follow_schedule()
                run.step(next(batches), Position(0, step))
                run.at.total += 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert run.tally.read()[0] > 0


def test_a_captured_step_is_2_2_3() -> None:
    """Counted while it warms up and is captured: as often as it is made, and so in every replay."""
    recipe = recipe_of("fgsm-sdi", "captured-eager")
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    assert isinstance(run.step, CapturedStep)
    with ConvolutionCounter(set()) as seen:
        run.step.prepare(next(run.loader.epoch(0)), Position(0, 1))
    made, n, g = WARMUP_STEPS + 1, 9, 4
    wanted = {"net forward": 3 * n + g, "net input": 3 * n - 1, "net weight": n}
    assert seen.calls == {name: made * count for name, count in wanted.items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_waits_is_refused_with_its_reason_and_trains_without_graphs(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(recipe_of("fgsm-sdi", "eager", precision), 20)
    recipe = recipe_of("fgsm-sdi", "captured-eager", precision)
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    craft = run.method.craft

    def waiting(batch: Batch, position: Position) -> torch.Tensor:
        x_adv = craft(batch, position)
        x_adv.sum().item()
        return x_adv

    monkeypatch.setattr(run.method, "craft", waiting)
    stream = torch.cuda.current_stream()
    refused = run.prepare()
    assert "synchron" in str(refused)
    assert torch.cuda.current_stream() == stream
    assert run.execution.mode == "eager"
    with run.execution.numerics():
        for step, batch in zip(range(20), run.loader.epoch(0), strict=False):
            run.follow_schedule()
            run.step(batch, Position(0, step))
            run.at.step += 1  # which the schedule follows
            run.at.total += 1
    ours = {name: tensor.cpu() for name, tensor in {**run.tensors(), **run.net.state_dict()}.items()}
    assert all(torch.equal(tensor, plain[key]) for key, tensor in ours.items())
    torch.rand(3, device=DEVICE)  # the generator was not left in a capture


def test_two_epochs_of_the_loop_equal_eager_ones(tmp_path: Path) -> None:
    """Evaluations and checkpoints between epochs change nothing that the graphs hold."""
    finals = []
    for mode in ("captured-eager", "eager"):
        recipe = recipe_of("fgsm-sdi", mode, epochs=2)
        assert train(recipe, tmp_path / mode, device="cuda").finished
        last = RunFolder(tmp_path / mode).checkpoint("last")
        finals.append({**last.model(), **last.state()})
    assert all(torch.equal(tensor, finals[1][key]) for key, tensor in finals[0].items())


def test_the_noise_is_fresh_in_every_replay() -> None:
    """One graph of FGSM-RS on the same images: the epoch in the batch's key decides the noise."""
    recipe = recipe_of("fgsm-rs", "captured")
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    run.prepare()
    set_learning_rate(run.optimizer, 0.1)
    batch = next(run.loader.epoch(0))
    losses = []
    for epoch in (1, 2, 1):
        with run.rewind():
            key = random_key(0, epoch=epoch, device=DEVICE)
            run.step(Batch(batch.index, batch.image, batch.label, key), Position(epoch, 0))
            losses.append(run.tally.read()[0])
    assert losses[0] == losses[2] != losses[1]


def test_a_batch_of_another_size_is_refused() -> None:
    recipe = recipe_of("standard", "captured")
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    run.prepare()
    batch = next(run.loader.epoch(0))
    half = Batch(*(t if t is batch.key else t[: len(t) // 2] for t in batch.tensors()))
    with pytest.raises(ValueError, match="does not fit the captured"):
        run.step(half, Position(0, 0))
