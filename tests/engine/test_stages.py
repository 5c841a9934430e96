"""Growing resolution: which stage rules when, what a batch then is, and the ImageNet recipes at full size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hardfast.engine import Recipe, UsageError
from hardfast.engine.methods import Position, method_options
from hardfast.engine.recipe import StageOptions
from hardfast.engine.run import Run
from hardfast.loaders import Split, open_dataset, resized

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


def test_stored_perturbations_do_not_fit_stages(quick_recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="fgsm-mep stores a perturbation of one size"):
        replace(quick_recipe, stages=STAGES, method=method_options("fgsm-mep"))


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
