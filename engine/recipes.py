"""The presets: a recipe for every row that can be asked for by name."""

from __future__ import annotations

from dataclasses import replace

from ..loaders import DataOptions
from .errors import UsageError
from .methods import FgsmSdiOptions
from .models import ModelOptions
from .recipe import OptimizerOptions, Recipe, from_json, smoothing_of, to_json
from .schedule import ScheduleOptions

__all__ = ["PRESETS", "OptimizerOptions", "Recipe", "from_json", "get", "smoothing_of", "to_json"]

# The first release of FGSM-SDI (2022-07), the nearest in time to the paper's tables, left 0.9 on the true class.
_PAPER_CIFAR10 = Recipe(
    name="cifar10-resnet18",
    about="Table V: ResNet18 on CIFAR-10, 110 epochs, learning rate x0.1 at 100 and 105",
    epsilon="8/255",
    epochs=110,
    batch_size=128,
    label_smoothing=smoothing_of(0.9, 10),
    box=False,
    method=FgsmSdiOptions(),
    data=DataOptions(name="cifar10"),
    model=ModelOptions(name="resnet18"),
    optimizer=OptimizerOptions(lr=0.1),
    schedule=ScheduleOptions(kind="multistep", milestones=(100, 105)),
)

PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits",
            about="handwritten digits on a CPU in under two minutes; what `make train` runs",
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
        _PAPER_CIFAR10,
        replace(
            _PAPER_CIFAR10,
            name="cifar10-resnet18-cyclic",
            about="Table VII: ResNet18 on CIFAR-10, 30 epochs, cyclic learning rate up to 0.2",
            epochs=30,
            optimizer=OptimizerOptions(lr=0.2),
            schedule=ScheduleOptions(kind="cyclic"),
        ),
        Recipe(
            name="fashion-mnist-resnet18",
            about="ResNet18 on Fashion-MNIST, 30 epochs, cyclic; on a CPU add --model.name resnet8 --epochs 1",
            epsilon="16/255",
            epochs=30,
            batch_size=128,
            crop_padding=2,
            method=FgsmSdiOptions(),
            data=DataOptions(name="fashion-mnist"),
            model=ModelOptions(name="resnet18"),
            optimizer=OptimizerOptions(lr=0.1),
            schedule=ScheduleOptions(kind="cyclic"),
        ),
    )
}


def get(name: str) -> Recipe:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"recipe '{name}' is not known: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
