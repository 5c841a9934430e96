"""Exact resume and the non-finite policy on a GPU, inside CUDA graphs too. `make test-gpu`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("pydantic")
from hardfast.engine.execution import ExecutionOptions, Mode, Precision
from hardfast.engine.methods import Position, method_options
from hardfast.engine.optimizers import set_learning_rate
from hardfast.engine.run import Run
from hardfast.engine.run_folder import RunFolder
from hardfast.loaders import open_dataset

from .test_gpu_step import recipe_of
from .test_nonfinite import bits, different
from .test_resume_every_step import DATA, EPOCH, EPOCHS
from .test_resume_every_step import Run as SavedRun

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")


@pytest.mark.parametrize(
    ("method", "mode", "precision"),
    [
        ("fgsm-sdi", "eager", "fp32"),
        ("fgsm-sdi", "captured-eager", "fp32"),
        ("fgsm-sdi", "captured-eager", "fp16"),
        ("fgsm-sdi", "captured", "bf16"),
        ("fgsm-mep", "captured-eager", "bf16"),
        ("free-at", "captured-eager", "bf16"),
        ("fgsm-rs", "captured-eager", "bf16"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(method: str, mode: Mode, precision: Precision, tmp_path: Path) -> None:
    """From a first step, a step in mid-epoch and an epoch's end: graphs are captured anew each time."""
    execution = ExecutionOptions(mode=mode, precision=precision, deterministic=True)
    recipe = replace(recipe_of(method, mode, epochs=EPOCHS), batch_size=8, data=DATA, execution=execution)
    straight = SavedRun(recipe, tmp_path)
    for step in (1, EPOCH + 4, 2 * EPOCH):
        assert straight.resumed(step) == straight.hash, step
    assert RunFolder(straight.folder).checkpoint("last").record.numerics.verdict == "bit for bit"


@pytest.mark.parametrize("mode", ["eager", "captured-eager", "captured"])
@pytest.mark.parametrize(
    ("method", "step", "precision"),
    [("fgsm-sdi", 0, "bf16"), ("fgsm-sdi", 1, "fp32"), ("fgsm-mep", 1, "bf16"), ("free-at", 1, "fp32")],
)
def test_a_bad_step_changes_nothing(method: str, step: int, precision: Precision, mode: Mode) -> None:
    """NaN in a weight: flagged in that step, every tensor as it was, and the next one trains again."""
    recipe = recipe_of(method, mode, precision)
    if method != recipe.method.name:
        recipe = replace(recipe, method=method_options(method))
    run = Run(replace(recipe, weight_average=0.9), open_dataset(recipe.data), DEVICE)
    run.prepare()
    run.method.begin_epoch(0, recipe.seed)
    batches = run.loader.epoch(0)
    set_learning_rate(run.optimizer, 0.05)
    with run.execution.numerics():
        for number in (0, 1):
            run.step(next(batches), Position(0, number))
        assert run.watch.read() == [False, False]
        batch, weight = next(batches), run.net.get_parameter("conv1.weight")
        healthy, kept = bits(run), weight.detach().clone()
        with torch.no_grad():
            weight[0, 0, 0, 0] = torch.nan
        planted = bits(run)
        run.step(batch, Position(0, step))
        assert run.watch.read() == [True]
        assert different(planted, bits(run)) == []
        with torch.no_grad():
            weight.copy_(kept)
        assert different(healthy, bits(run)) == []
        run.step(batch, Position(0, step))
        assert run.watch.read() == [False]
        assert {"conv1.weight", "bn1.running_mean"} <= {*different(healthy, bits(run))}
