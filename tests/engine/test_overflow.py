"""An fp16 pass that overflows: its update is left out, and no method keeps what it brought."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hardfast.engine import Recipe
from hardfast.engine.execution import ExecutionOptions
from hardfast.engine.methods import METHODS, Position, method_options
from hardfast.engine.run import Run
from hardfast.loaders import open_dataset


@pytest.mark.parametrize("name", METHODS)
def test_an_overflow_leaves_no_trace(name: str, quick_recipe: Recipe) -> None:
    method = quick_recipe.method if name == quick_recipe.method.name else method_options(name)
    recipe = replace(quick_recipe, method=method, execution=ExecutionOptions(precision="fp16"))
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    scaler = run.classifier.scaler
    scaler.restore({"scale": torch.tensor(2.0**40), "healthy_steps": torch.tensor(0.0)})
    run.method.begin_epoch(0, recipe.seed)
    before = run.net.conv1.weight.clone()
    with run.execution.numerics():
        for step, batch in zip(range(2), run.loader.epoch(0), strict=False):
            run.step(batch, Position(0, step))
        assert torch.equal(run.net.conv1.weight, before)  # both were left out
        assert scaler.tensors()["scale"] < 2.0**40
        scaler.restore({"scale": torch.tensor(2.0**8), "healthy_steps": torch.tensor(0.0)})
        run.tally.clear()
        run.follow_schedule()
        run.step(next(run.loader.epoch(0, start=2)), Position(0, 2))
    assert not any(not value.isfinite().all() for value in run.method.state().values())
    assert 0 < run.tally.read()[0] < 20
