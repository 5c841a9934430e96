"""The ImageNet recipes at full size, on synthetic images: 1,000 classes, ResNet50, every resolution they name."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from hardfast.engine import Recipe, recipes
from hardfast.engine.methods import Position
from hardfast.engine.recipes.recipe import StageOptions
from hardfast.engine.run import Run
from hardfast.loaders import Batch, DataOptions, open_dataset
from hardfast.loaders.synthetic import SyntheticShape

RADII = (pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow))
BATCH = 2


def on_synthetic_images(recipe: Recipe) -> Run:
    """The recipe as it is, but for where its images come from and how many are in a batch."""
    assert recipe.data.name == "imagenet"
    shape = SyntheticShape(train_images=3 * BATCH, test_images=2, num_classes=1000)
    size = recipe.data.image_size or 224
    data = DataOptions(name="synthetic", image_size=size, heldout=2, synthetic=shape)
    stages = tuple(replace(stage, batch_size=BATCH) for stage in recipe.stages)
    run = Run(replace(recipe, data=data, stages=stages, batch_size=BATCH), open_dataset(data), torch.device("cpu"))
    run.net.train()
    return run


def trained(run: Run, steps: int) -> float:
    """The mean loss of the next steps; all that was computed is finite."""
    run.tally.clear()
    run.method.begin_epoch(run.at.epoch, run.recipe.seed)
    for batch in islice(run.loader.epoch(run.at.epoch), steps):
        run.follow_schedule()
        run.step(batch, Position(run.at.epoch, run.at.step))
        run.at.step += 1
    loss, _ = run.tally.read()
    assert all(value.isfinite().all() for value in run.net.state_dict().values())
    assert 0 < loss < float("inf")
    return loss


@pytest.mark.parametrize("radius", RADII)
def test_two_steps_of_table_x_at_224_pixels(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = on_synthetic_images(recipes.get(f"table10-fgsm-sdi-eps{radius}"))
    assert run.recipe.epochs == 90
    assert run.recipe.schedule.milestones == (30, 60)
    reached = []
    craft = run.method.craft

    def measured(batch: Batch, position: Position) -> Tensor:
        assert batch.image.shape == (BATCH, 224, 224, 3)
        x_adv = craft(batch, position)
        reached.append((x_adv.double() - batch.x.double() / 255).abs().max().item() * 255)
        return x_adv

    monkeypatch.setattr(run.method, "craft", measured)
    before = run.net.fc.weight.clone()
    trained(run, 2)
    assert len(reached) == 2
    assert all(radius * 0.999 < distance <= radius + 1e-9 for distance in reached)
    assert not torch.equal(run.net.fc.weight, before)


@pytest.mark.parametrize("radius", RADII)
def test_the_growing_recipe_grows(radius: int) -> None:
    run = on_synthetic_images(recipes.get(f"imagenet-fast-eps{radius}"))
    begun = [run.stage]
    for epoch in range(run.recipe.epochs):
        run.at.epoch, run.at.step = epoch, 0
        stage = run.enter_stage()
        if stage is not None:
            begun.append(stage)
        if stage is not None or epoch == 0:
            size = run.stage.image_size
            assert next(run.loader.epoch(epoch)).image.shape == (BATCH, size, size, 3)
            trained(run, 1)
    assert [(stage.epoch, stage.image_size) for stage in begun] == [(0, 128), (6, 224), (12, 288)]
    assert [stage.batch_size for stage in recipes.get(f"imagenet-fast-eps{radius}").stages] == [512, 224, 128]


def test_norms_are_not_decayed() -> None:
    """A BatchNorm's scale with no gradient stays; a convolution's weight shrinks."""
    recipe = replace(
        recipes.get("imagenet-fast-eps4"), stages=(StageOptions(epoch=0, image_size=32, batch_size=BATCH),)
    )
    run = on_synthetic_images(recipe)
    for parameter in run.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    scale, weight = run.net.bn1.weight.clone(), run.net.conv1.weight.clone()
    run.optimizer.step()
    assert torch.equal(run.net.bn1.weight, scale)
    torch.testing.assert_close(run.net.conv1.weight, weight * (1 - 0.4 * 1e-4))
