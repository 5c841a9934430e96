"""Recipes after the protocols of others: Wong's fifteen epochs on ImageNet, and the FastAT benchmark.

Sources: Wong, Rice, Kolter, "Fast is better than free" (2020), its ImageNet configuration; Pan, Yao, "FastAT Benchmark"
(2026), its configurations and training code.
"""

from __future__ import annotations

from dataclasses import replace

from ...loaders import DataOptions
from ..methods import (
    FgsmGaOptions,
    FgsmMepOptions,
    FgsmRsOptions,
    FgsmSdiOptions,
    FreeAtOptions,
    MethodOptions,
    NFgsmOptions,
    PgdAtOptions,
)
from ..models import ModelOptions
from .presets import Group
from .recipe import OptimizerOptions, Recipe, StageOptions
from .schedule import ScheduleOptions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RADII = (2, 4, 8)
IMAGENET_CROPS = (0.08, 1.0)  # shares of the area, as in their code
FAST_IMAGENET = Recipe(
    epochs=15,
    batch_size=512,
    attack_step="1/255",
    crop_padding=0,
    crop_scale=IMAGENET_CROPS,
    stages=(
        StageOptions(epoch=0, image_size=128, batch_size=512),
        StageOptions(epoch=6, image_size=224, batch_size=224),
        StageOptions(epoch=12, image_size=288, batch_size=128),
    ),
    data=DataOptions(name="imagenet", image_size=288),
    model=ModelOptions(name="resnet50", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    optimizer=OptimizerOptions(lr=0.4, weight_decay=1e-4, decay_norms=False),
    schedule=ScheduleOptions(kind="linear", knots=((0.0, 0.0), (1.0, 1.0), (6.0, 0.1), (12.0, 0.01), (15.0, 0.001))),
)

FASTAT = Recipe(
    guard="warn",  # to stand in a table beside others
    epochs=100,
    batch_size=128,
    label_smoothing=0.4,
    weight_average=0.9995,
    data=DataOptions(name="cifar10", heldout=1000),
    model=ModelOptions(name="resnet18"),
    optimizer=OptimizerOptions(lr=0.1),
    schedule=ScheduleOptions(kind="onecycle"),
)
# By the end of the recipes' names: data set and net.
FASTAT_BASES = {
    "": FASTAT,
    "-cifar100": replace(FASTAT, data=DataOptions(name="cifar100", heldout=1000)),
    "-tiny-imagenet": replace(
        FASTAT,
        data=DataOptions(name="tiny-imagenet", heldout=2000),
        model=ModelOptions(name="preact_resnet18", final_bn=False),
    ),
}
FREE_AT_REPLAYS = 4
FREE_AT_EPOCHS = 200 // FREE_AT_REPLAYS
FASTAT_METHODS: dict[str, tuple[MethodOptions, str]] = {
    "pgd-at": (PgdAtOptions(), "its PGD-AT-WA; crafted in eval mode, as torchattacks does there"),
    "fgsm-rs": (FgsmRsOptions(), ""),
    "fgsm-ga": (FgsmGaOptions(alpha="8/255"), "its GradAlign, whose step is epsilon"),
    "free-at": (
        FreeAtOptions(replays=FREE_AT_REPLAYS),
        "200 epochs over m = 4 are 50 here; there the perturbation starts at zero in every batch, and the cycle of 200 "
        "ends after 50, while the rate still rises",
    ),
    "n-fgsm": (NFgsmOptions(), ""),
    "fgsm-mep": (FgsmMepOptions(), "its FGSM-PGI"),
    "fgsm-sdi": (FgsmSdiOptions(), "not in the benchmark; under its protocol, so boxed and smoothed as all are"),
}
FASTAT_DIFFERENCES = (
    "FastAT benchmark's protocol; there the rate moves once an epoch, here every iteration; one-step attacks there see "
    "smoothed labels, here hard ones; and the better of weights and average is kept there, here the average"
)


def imagenet_presets() -> Group:
    """Wong's recipe at three radii, and the same with FGSM-SDI."""
    return Group(
        title="ImageNet fast: ResNet50",
        recipes=tuple(
            replace(
                FAST_IMAGENET,
                name=f"imagenet-fast{suffix}-eps{radius}",
                about=f"after Wong et al.: 128 pixels, from epoch 6 224, from 12 288; random resized crops; {what}",
                epsilon=f"{radius}/255",
                method=method,
            )
            for suffix, method, what in (
                ("", FgsmRsOptions(), "theirs ran in fp16: --execution.precision fp16"),
                (
                    "-sdi",
                    FgsmSdiOptions(),
                    "with FGSM-SDI in place of FGSM-RS; plain cross entropy and boxed, as theirs",
                ),
            )
            for radius in RADII
        ),
    )


def fastat_presets() -> tuple[Group, ...]:
    """Every method of ours that stands in the FastAT benchmark, and others for that table, on its three data sets."""
    return tuple(
        Group(
            title=f"FastAT benchmark: {base.model.name} on {base.data.name}",
            recipes=tuple(_fastat(base, suffix, method, note) for method, note in FASTAT_METHODS.values()),
        )
        for suffix, base in FASTAT_BASES.items()
    )


def _fastat(base: Recipe, suffix: str, method: MethodOptions, note: str) -> Recipe:
    return replace(
        base,
        name=f"fastat-{method.name}{suffix}",
        about="; ".join(filter(None, [FASTAT_DIFFERENCES, note])),
        method=method,
        epochs=FREE_AT_EPOCHS if isinstance(method, FreeAtOptions) else base.epochs,
        attack_bn="eval" if isinstance(method, PgdAtOptions) else "auto",
    )
