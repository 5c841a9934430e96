"""A small robust net, trained once for all tests of the evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hardfast.engine import Recipe, recipes, train

EPSILON = "24/255"


@pytest.fixture(scope="session")
def quick_recipe() -> Recipe:
    """The digits recipe at 8x8 pixels and four epochs: two seconds."""
    recipe = recipes.get("digits")
    return replace(recipe, epochs=4, epsilon=EPSILON, crop_padding=0, data=replace(recipe.data, image_size=8))


@pytest.fixture(scope="session")
def quick_run(quick_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of it."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    assert train(quick_recipe, folder).finished
    return folder
