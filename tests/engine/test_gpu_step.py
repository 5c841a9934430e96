"""The captured step on a GPU: the same bits as without its graphs, and never a wait for the device. `make test-gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from hardfast.engine import Recipe, recipes
from hardfast.engine.execution import ExecutionOptions, Mode, Precision
from hardfast.engine.methods import METHODS, Position, method_options
from hardfast.engine.run import Run
from hardfast.engine.schedule import ScheduleOptions
from hardfast.kernels import random_key
from hardfast.loaders import Batch, open_dataset

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


def test_other_k_other_kinds_of_step() -> None:
    """Graphs of k = 1, where every step updates the generator, and of k = 5."""
    for k in (1, 5):
        both = []
        for mode in ("captured-eager", "eager"):
            recipe = recipe_of("fgsm-sdi", mode)
            both.append(trained(replace(recipe, method=replace(recipe.method, k=k)), 60))
        assert all(torch.equal(tensor, both[1][key]) for key, tensor in both[0].items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_replays_equal_steps(precision: Precision) -> None:
    """fp16 with its loss scale, which grows and falls on the device."""
    ours, theirs = (trained(recipe_of("fgsm-sdi", mode, precision), 200) for mode in ("captured-eager", "eager"))
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode", ["eager", "compiled", "captured"])
def test_a_step_never_waits_for_the_device(name: str, mode: Mode) -> None:
    recipe = recipe_of(name, mode)
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    run.prepare()
    batches = [batch for _, batch in zip(range(8), run.loader.epoch(0), strict=False)]
    run.step(batches[0], Position(0, 0))  # the optimisers' first step makes their state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, batch in enumerate(batches):
            run.follow_schedule()
            run.step(batch, Position(0, step))
            run.at.total += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.tally.read()[0] > 0


def test_the_noise_is_fresh_in_every_replay() -> None:
    """One graph of FGSM-RS on the same images: the epoch in the batch's key decides the noise."""
    recipe = recipe_of("fgsm-rs", "captured")
    run = Run(recipe, open_dataset(recipe.data), DEVICE)
    run.prepare()
    run.follow_schedule()
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
