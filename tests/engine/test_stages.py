"""Growing resolution: which stage rules when, what a batch then is, and in which mode its steps are prepared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hardfast.engine import Recipe, UsageError, train
from hardfast.engine.execution import Execution, ExecutionOptions
from hardfast.engine.methods import Position, method_options
from hardfast.engine.recipes.recipe import StageOptions
from hardfast.engine.run import Preparation, Run
from hardfast.loaders import Batch, Split, open_dataset, resized

STAGES = (StageOptions(epoch=0, image_size=6, batch_size=32), StageOptions(epoch=2, image_size=8, batch_size=16))


def test_stages_change_size_batch_and_rate(quick_recipe: Recipe) -> None:
    recipe = replace(quick_recipe, stages=STAGES, method=method_options("free-at"))
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    samples = len(run.data.train)
    assert (run.batch_size, len(run.loader)) == (32, samples // 32)
    assert next(run.loader.epoch(0)).image.shape == (32, 6, 6, 3)
    assert run.method.state()["delta"].shape == (32, 3, 6, 6)
    run.at.epoch = 1
    assert run.enter_stage() is None
    run.at.epoch = 2
    assert run.enter_stage() == STAGES[1]
    assert (run.batch_size, len(run.loader)) == (16, samples // 16)
    batch = next(run.loader.epoch(2))
    assert batch.image.shape == (16, 8, 8, 3)
    assert run.method.state()["delta"].shape == (16, 3, 8, 8)
    assert run.learning_rate(0) == pytest.approx(recipe.optimizer.lr)  # the triangle's top is in the middle
    run.follow_schedule()
    run.step(batch, Position(2, 0))
    assert run.tally.read()[0] > 0


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((StageOptions(epoch=1, image_size=8, batch_size=8),), "first must begin at 0"),
        ((STAGES[0], replace(STAGES[1], epoch=0)), "one after the other"),
        ((STAGES[0], replace(STAGES[1], epoch=4)), "before --epochs 4"),
    ],
)
def test_wrong_stages(stages: tuple[StageOptions, ...], message: str, quick_recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=message):
        replace(quick_recipe, stages=stages)


def test_every_stage_is_prepared_in_train_mode(
    quick_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured graph keeps the mode it was captured in; the held-out check in between needs the other one."""
    found = []
    monkeypatch.setattr(Run, "unprepared", property(lambda run: run.prepared is None))

    def noted(run: Run, batch: Batch, positions: object) -> Preparation:
        found.append((run.at.epoch, batch.image.shape[1], run.net.training))
        return Preparation(0.0, 0.0)

    monkeypatch.setattr(Run, "_warmed_up", noted)
    monkeypatch.setattr(Execution, "compiled", lambda self, function: function)
    recipe = replace(quick_recipe, epochs=3, stages=STAGES, execution=ExecutionOptions(mode="compiled"))
    train(recipe, tmp_path / "run")
    assert found == [(0, 6, True), (2, 8, True)]


def test_the_best_is_chosen_at_the_size_of_the_test(quick_recipe: Recipe) -> None:
    recipe = replace(quick_recipe, stages=(STAGES[0], replace(STAGES[1], image_size=7)))
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    assert run.selecting.images.shape[1:3] == (7, 7)


def test_resizing_scales_and_cuts_the_centre() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 12, 20, 3), dtype=torch.uint8, generator=draw)
    small = resized(Split(images, torch.arange(3)), 6)
    assert small.images.shape == (3, 6, 6, 3)
    scaled = F.interpolate(images.permute(0, 3, 1, 2).double(), (6, 10), mode="bilinear", antialias=True)
    wanted = scaled[:, :, :, 2:8].permute(0, 2, 3, 1)
    assert (small.images.double() - wanted).abs().max() <= 0.5 + 1e-3
    same = resized(Split(images[:, :, :12], torch.arange(3)), 12)
    assert torch.equal(same.images, images[:, :, :12])
