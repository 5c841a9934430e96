"""A real data set on a CPU: one epoch of FGSM-SDI against one of standard training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hardfast.engine import evaluate, recipes, train
from hardfast.engine.methods import FgsmSdiOptions, StandardOptions
from hardfast.loaders import fashion_mnist

MARGIN = 20  # points of PGD-20 accuracy


@pytest.mark.slow
def test_one_epoch_beats_standard_training_under_pgd_20(tmp_path: Path) -> None:
    """59,000 images, ResNet8, the recipe's epsilon; its figures are in LOG.md."""
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    recipe = recipes.get("fashion-mnist-resnet18")
    recipe = replace(recipe, epochs=1, model=replace(recipe.model, name="resnet8"))
    found = {}
    for method in (FgsmSdiOptions(generator_width=16), StandardOptions()):
        train(replace(recipe, method=method), tmp_path / method.name)
        report = evaluate(tmp_path / method.name, attacks=("clean", "pgd-20"), samples=1000)
        found[method.name] = report["accuracy"]
    print(found)
    assert found["fgsm-sdi"]["pgd-20"] >= found["standard"]["pgd-20"] + MARGIN
    assert found["fgsm-sdi"]["clean"] > 50
