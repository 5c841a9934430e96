"""Our own recipes: small enough to try, named after their data set and net."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...loaders import DataOptions
from ..methods import FgsmSdiOptions
from ..models import ModelOptions
from .recipe import OptimizerOptions, Recipe, StageOptions
from .schedule import ScheduleOptions

# Recipes with names of their own that are rows of the paper's tables.
ALIASES = {"cifar10-resnet18": "table5-fgsm-sdi", "cifar10-resnet18-cyclic": "table7-fgsm-sdi"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Recipes that are listed together, such as those of one table."""

    title: str
    recipes: tuple[Recipe, ...]


def own_presets() -> Group:
    """The digits, which need no download and no GPU, and Fashion-MNIST."""
    fashion = Recipe(
        name="fashion-mnist-resnet18",
        about="Fashion-MNIST, cyclic; on a CPU add --model.name resnet8 --epochs 1",
        epsilon="16/255",
        epochs=30,
        batch_size=128,
        crop_padding=2,
        method=FgsmSdiOptions(),
        data=DataOptions(name="fashion-mnist"),
        model=ModelOptions(name="resnet18"),
        optimizer=OptimizerOptions(lr=0.1),
        schedule=ScheduleOptions(kind="cyclic"),
    )
    return Group(
        title="To begin with",
        recipes=(
            Recipe(
                name="digits",
                about="digits, minutes on a CPU; what `make train` runs: ResNet8 on handwritten digits of 16x16 pixels",
                epsilon="32/255",
                epochs=30,
                batch_size=64,
                crop_padding=2,
                flip=False,
                method=FgsmSdiOptions(k=5, generator_width=16),
                data=DataOptions(name="digits", image_size=16),
                model=ModelOptions(name="resnet8"),
                optimizer=OptimizerOptions(lr=0.1),
                schedule=ScheduleOptions(kind="cyclic"),
            ),
            fashion,
            replace(
                fashion,
                name="fashion-mnist-resnet8",
                about="Fashion-MNIST at 14x14; one epoch, all methods in hours on a CPU: `hardfast bench methods`",
                guard="warn",  # to compare methods with, those that overfit included
                epochs=1,
                crop_padding=1,
                stages=(StageOptions(epoch=0, image_size=14, batch_size=128),),
                method=FgsmSdiOptions(k=5, generator_width=16),
                model=ModelOptions(name="resnet8"),
                optimizer=OptimizerOptions(lr=0.2),
            ),
        ),
    )
