"""An fp16 step that overflows: it changes nothing but the loss scale, and is a bad step only at the scale's floor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hardfast.engine import Recipe
from hardfast.engine.execution import ExecutionOptions
from hardfast.engine.methods import METHODS, Position, method_options
from hardfast.engine.optimizers import LossScaler
from hardfast.engine.run import Run
from hardfast.loaders import open_dataset


def run_of(name: str, recipe: Recipe) -> Run:
    method = recipe.method if name == recipe.method.name else method_options(name)
    recipe = replace(recipe, method=method, weight_average=0.9, execution=ExecutionOptions(precision="fp16"))
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    run.method.begin_epoch(0, recipe.seed)
    return run


def scale(run: Run, value: float, healthy_steps: float = 0.0) -> None:
    tensors = {"scale": torch.tensor(value), "healthy_steps": torch.tensor(healthy_steps)}
    run.classifier.scaler.restore(tensors)


def changing(run: Run) -> dict[str, torch.Tensor]:
    """All that training changes, but the loss scale."""
    assert run.average is not None
    average = {f"average/{name}": value for name, value in run.average.net.state_dict().items()}
    tensors = {**run.tensors(), **run.net.state_dict(), **average}
    return {name: value.clone() for name, value in tensors.items() if not name.startswith("scaler/")}


def unchanged(run: Run, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in changing(run).items())


@pytest.mark.parametrize("name", METHODS)
def test_an_overflow_leaves_no_trace_and_is_not_flagged(name: str, quick_recipe: Recipe) -> None:
    run = run_of(name, quick_recipe)
    scaler = run.classifier.scaler
    scale(run, 2.0**40, healthy_steps=7.0)
    before = changing(run)
    with run.execution.numerics():
        for step, batch in zip(range(2), run.loader.epoch(0), strict=False):
            run.step(batch, Position(0, step))
        assert unchanged(run, before)
        assert run.watch.read() == [False, False]
        assert scaler.tensors() == {"scale": 2.0**38, "healthy_steps": 0}
        scale(run, 2.0**8)
        run.follow_schedule()
        run.step(next(run.loader.epoch(0, start=2)), Position(0, 2))
    assert run.watch.read() == [False]
    assert not unchanged(run, before)
    assert not any(not value.isfinite().all() for value in run.method.state().values())
    assert 0 < run.tally.read()[0] < 20
    assert scaler.tensors() == {"scale": 2.0**8, "healthy_steps": 1}


@pytest.mark.parametrize("name", ["fgsm-sdi", "free-at"])
def test_an_overflow_at_the_floor_is_a_bad_step(name: str, quick_recipe: Recipe) -> None:
    run = run_of(name, quick_recipe)
    batch = next(run.loader.epoch(0))
    for value, flagged, then in ((2.0**-9, False, LossScaler.FLOOR), (LossScaler.FLOOR, True, LossScaler.FLOOR)):
        scale(run, value)
        before, fired = changing(run), []
        handle = run.net.linear.weight.register_hook(lambda g, fired=fired: fired.append(1) or g * float("inf"))
        run.step(batch, Position(0, 0))
        handle.remove()
        assert fired
        assert run.watch.read() == [flagged]
        assert unchanged(run, before)
        assert run.classifier.scaler.tensors()["scale"] == then


def test_the_scale_doubles_after_2000_steps_without_an_overflow(quick_recipe: Recipe) -> None:
    run = run_of("standard", quick_recipe)
    scale(run, 2.0**8, healthy_steps=1998.0)
    batch, found = next(run.loader.epoch(0)), []
    for step in range(3):
        run.step(batch, Position(0, step))
        found.append([value.item() for value in run.classifier.scaler.tensors().values()])
    assert found == [[2.0**8, 1999], [2.0**9, 0], [2.0**9, 1]]
