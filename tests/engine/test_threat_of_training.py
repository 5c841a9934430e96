"""Every adversarial training image of a whole epoch lies exactly in the ball, and in [0, 1] where asked."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hardfast.engine import recipes
from hardfast.engine.methods import METHODS, FreeAtOptions, Position, method_options
from hardfast.engine.run import Run
from hardfast.loaders import DataOptions, open_dataset
from hardfast.loaders.synthetic import SyntheticShape


def assert_in_ball(x: Tensor, x_adv: Tensor, epsilon: Fraction) -> None:
    """Exactly, in rationals: around the byte k/255 and around the float that stores it."""
    for k in x.unique().tolist():
        reached = x_adv[x == k].double()
        for pixel in (Fraction(k, 255), Fraction((torch.tensor(k).float() / 255).item())):
            assert Fraction(reached.max().item()) - pixel <= epsilon
            assert pixel - Fraction(reached.min().item()) <= epsilon


SYNTHETIC = DataOptions(name="synthetic", image_size=16, synthetic=SyntheticShape(train_images=512, test_images=1))


@pytest.mark.parametrize("data", [DataOptions(name="digits"), SYNTHETIC], ids=["digits", "all 256 bytes"])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "standard"])
def test_whole_epoch_stays_in_the_ball(
    name: str, box: bool, data: DataOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FreeAtOptions(replays=2) if name == "free-at" else method_options(name)
    recipe = replace(recipes.get("digits"), box=box, epsilon="8/255", method=method, data=data)
    run = Run(recipe, open_dataset(recipe.data), torch.device("cpu"))
    reach = Fraction(3 * 8 if name == "n-fgsm" else 8, 255)  # which alone leaves the ball: by noise of two radii
    descend, seen = run.classifier.descend, []

    def watched(optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.append(x.detach().clone())
        return descend(optimizer, x, labels, **options)

    monkeypatch.setattr(run.classifier, "descend", watched)
    run.method.begin_epoch(0, recipe.seed)
    outside_box = images = 0
    for step, batch in enumerate(run.loader.epoch(0)):
        seen.clear()
        run.step(batch, Position(0, step))
        assert len(seen) == (2 if name == "free-at" else 1)
        for x_adv in seen:
            assert x_adv.dtype == torch.float32
            assert_in_ball(batch.x, x_adv, reach)
            outside_box += int(((x_adv < 0) | (x_adv > 1)).sum())
        images += len(batch.label)
    assert images == len(run.loader) * recipe.batch_size
    assert outside_box == 0 if box else outside_box > 0


def test_the_usual_clamp_would_be_caught() -> None:
    """The negative control: the projection everyone writes fails the same assertion."""
    x = torch.arange(256, dtype=torch.float32).repeat(100) / 255
    eps = torch.tensor(8 / 255)
    d = (torch.rand(len(x), generator=torch.Generator().manual_seed(0)) * 2 - 1) * 2 * eps
    usual = torch.clamp(x + torch.clamp(d, -eps, eps), 0, 1)
    assert Fraction((usual.double() - x.double()).abs().max().item()) > Fraction(8, 255)
