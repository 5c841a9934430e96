"""A recipe for every row of the paper's Tables II to X: methods times tables.

The settings are those of its Section IV; what its text leaves open follows the released code of FGSM-SDI, and where
that says nothing, a row's `about` says what was chosen. A row that overfits catastrophically shows what the paper
shows, so its guard warns and does nothing. All tables: SGD with momentum 0.9 and weight decay 5e-4 on all
weights, random crops with 4 pixels of zero padding, flips, no normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...kernels import GeneratorInputs
from ...loaders import DataOptions
from ..methods import (
    FgsmCkptOptions,
    FgsmGaOptions,
    FgsmRsOptions,
    FgsmSdiOptions,
    FreeAtOptions,
    MethodOptions,
    Pgd2AtOptions,
    Pgd4AtOptions,
    PgdAtOptions,
)
from ..models import ModelOptions
from .presets import ALIASES, Group
from .recipe import OptimizerOptions, Recipe, smoothing_of
from .schedule import ScheduleOptions

# The first release of FGSM-SDI (2022-07), the nearest in time to the paper's tables, left 0.9 on the true class.
TRUE_CLASS = 0.9
INTERVALS = (1, 2, 10, 20, 30, 40)
INPUTS: tuple[GeneratorInputs, ...] = ("benign", "grad", "benign+grad")
RADII = (2, 4, 8)
SDI = FgsmSdiOptions()
COMPARED: tuple[MethodOptions, ...] = (
    PgdAtOptions(),
    FgsmRsOptions(),
    FgsmCkptOptions(),
    FgsmGaOptions(),
    FreeAtOptions(replays=8),
    SDI,
)
COMPARED_ON_IMAGENET: tuple[MethodOptions, ...] = (PgdAtOptions(), FreeAtOptions(replays=4), FgsmRsOptions(), SDI)
# Table VII takes the largest learning rate of each method's own paper.
CYCLIC_LR = {"fgsm-ckpt": 0.3, "fgsm-ga": 0.3}

PIECEWISE = Recipe(
    guard="warn",
    epochs=110,
    batch_size=128,
    data=DataOptions(name="cifar10"),
    model=ModelOptions(name="resnet18"),
    optimizer=OptimizerOptions(lr=0.1),
    schedule=ScheduleOptions(kind="multistep", milestones=(100, 105)),
)
CYCLIC = replace(PIECEWISE, epochs=30, optimizer=OptimizerOptions(lr=0.2), schedule=ScheduleOptions(kind="cyclic"))
CIFAR100 = replace(PIECEWISE, data=DataOptions(name="cifar100"))
# The release of FGSM-SDI has no BN after the last block of its PreActResNet18.
TINY_IMAGENET = replace(
    PIECEWISE,
    data=DataOptions(name="tiny-imagenet"),
    model=ModelOptions(name="preact_resnet18", final_bn=False),
)
IMAGENET = replace(
    PIECEWISE,
    epochs=90,
    batch_size=256,
    attack_step="1/255",
    crop_padding=0,
    crop_scale=(0.08, 1.0),
    data=DataOptions(name="imagenet", image_size=224),
    model=ModelOptions(name="resnet50"),
    schedule=ScheduleOptions(kind="multistep", milestones=(30, 60)),
)

# What the paper leaves open about a method, and what is done here.
OPEN = {
    "fgsm-sdi": "step size epsilon, smoothed labels (0.9 on the true class) and no projection onto [0, 1] follow the "
    "released code",
    "pgd4-at": "its start is not stated: zero, like PGD2-AT's",
}
OPEN_PIECEWISE = OPEN | {
    "fgsm-rs": "learning rate and epochs are the table's; its own paper trains 15 to 30 epochs, cyclic up to 0.2",
    "fgsm-ckpt": "learning rate and epochs are the table's; its own paper trains 30 epochs, cyclic up to 0.3",
    "fgsm-ga": "learning rate and epochs are the table's; its own paper trains 30 epochs, cyclic up to 0.3",
    "free-at": "the learning rate is the table's 0.1, its own paper has 0.04; the epochs are not divided by m",
}
OPEN_CYCLIC = OPEN | {
    "fgsm-ga": "the triangle's top is in the middle, as for all; its own paper has it at 2/5 of the run",
    "free-at": "the epochs are not divided by m",
}
OPEN_ON_IMAGENET = OPEN | {
    "fgsm-sdi": "step size, labels and projection as in the code for small images; there is none for ImageNet",
    "pgd-at": "10 steps of a quarter of epsilon",
    "free-at": "the epochs are not divided by m",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What the rows of one table share."""

    number: int
    roman: str
    where: str  # net and data set
    classes: int
    base: Recipe
    open: dict[str, str]  # by method
    of_all: str = ""  # open about every row

    def row(self, method: MethodOptions, suffix: str = "") -> Recipe:
        """The recipe of one row.

        Args:
            method: with its options.
            suffix: of the recipe's name; by default the method's name.
        """
        released = isinstance(method, FgsmSdiOptions)
        notes = [f"Table {self.roman}: {self.where}", self.open.get(method.name, ""), self.of_all]
        return replace(
            self.base,
            name=f"table{self.number}-{suffix or method.name}",
            about="; ".join(note for note in notes if note),
            method=method,
            label_smoothing=smoothing_of(TRUE_CLASS, self.classes) if released else 0.0,
            box=not released,
        )

    def group(self, what: str, rows: Iterable[Recipe]) -> Group:
        """The rows as they are listed, under a title that says what they compare."""
        return Group(title=f"Table {self.roman}: {self.where}, {what}", recipes=tuple(rows))


def paper_presets() -> tuple[Group, ...]:
    """Tables II to X, rows in the tables' order; the rows of FGSM-SDI with k = 20 stand in several of them."""
    cifar10 = Table(number=5, roman="V", where="ResNet18 on CIFAR-10", classes=10, base=PIECEWISE, open=OPEN_PIECEWISE)
    table2 = replace(cifar10, number=2, roman="II")
    table3 = replace(cifar10, number=3, roman="III")
    table4 = replace(cifar10, number=4, roman="IV")
    table6 = replace(
        cifar10,
        number=6,
        roman="VI",
        where="WideResNet34-10 on CIFAR-10",
        base=replace(PIECEWISE, model=ModelOptions(name="wide_resnet34_10")),
    )
    table7 = replace(cifar10, number=7, roman="VII", base=CYCLIC, open=OPEN_CYCLIC)
    table8 = replace(cifar10, number=8, roman="VIII", where="ResNet18 on CIFAR-100", classes=100, base=CIFAR100)
    table9 = replace(
        cifar10,
        number=9,
        roman="IX",
        where="PreActResNet18 on Tiny ImageNet",
        classes=200,
        base=TINY_IMAGENET,
        of_all="the paper's accuracies are of 5,000 images, ours of the 10,000 of the validation set",
    )
    all_methods = "all methods"
    cyclic = (replace(table7.row(method), optimizer=_cyclic_sgd(method)) for method in COMPARED)
    return (
        table2.group("how often the generator learns", (table2.row(replace(SDI, k=k), f"k{k}") for k in INTERVALS)),
        table3.group(
            "what the generator sees",
            (table3.row(replace(SDI, inputs=inputs), inputs.replace("+", "-")) for inputs in INPUTS),
        ),
        table4.group("PGD of few steps", (table4.row(method) for method in (Pgd2AtOptions(), Pgd4AtOptions(), SDI))),
        cifar10.group(all_methods, (cifar10.row(method) for method in COMPARED)),
        table6.group(all_methods, (table6.row(method) for method in COMPARED)),
        table7.group(all_methods, cyclic),
        table8.group(all_methods, (table8.row(method) for method in COMPARED)),
        table9.group(all_methods, (table9.row(method) for method in COMPARED)),
        _table10(),
    )


def named_rows(groups: Iterable[Group]) -> tuple[Recipe, ...]:
    """The two rows of FGSM-SDI that have names of their own: to train a net with, so that their guard goes back."""
    rows = {recipe.name: recipe for group in groups for recipe in group.recipes}
    return tuple(
        replace(rows[row], name=name, guard="rollback", about=f"same as {row}; {rows[row].about}")
        for name, row in ALIASES.items()
    )


def _cyclic_sgd(method: MethodOptions) -> OptimizerOptions:
    return replace(CYCLIC.optimizer, lr=CYCLIC_LR.get(method.name, CYCLIC.optimizer.lr))


def _table10() -> Group:
    table = Table(
        number=10,
        roman="X",
        where="ResNet50 on ImageNet",
        classes=1000,
        base=IMAGENET,
        open=OPEN_ON_IMAGENET,
        of_all="batch size, precision, augmentation and normalisation are not given: 256, fp32, flips and random "
        "resized crops of 8 to 100 % of the area, none; the paper's figures are quoted as reported",
    )
    return table.group(
        "as reported",
        (
            replace(table.row(method, f"{method.name}-eps{radius}"), epsilon=f"{radius}/255")
            for method in COMPARED_ON_IMAGENET
            for radius in RADII
        ),
    )
