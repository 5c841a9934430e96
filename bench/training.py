"""What `bench train` trains: a recipe for each data set, and its images cut to number and size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F

from ..engine import console, recipes
from ..engine.errors import UsageError
from ..engine.execution import ExecutionOptions
from ..engine.methods import method_options
from ..engine.models import ModelName, ModelOptions
from ..engine.recipes.recipe import Recipe
from ..engine.recipes.schedule import ScheduleOptions
from ..loaders import DataOptions, Dataset, DatasetName, Split, in_memory, open_dataset
from ..loaders.errors import MissingDataError
from ..loaders.synthetic import SyntheticShape

TrainData = Literal["auto", "fashion-mnist", "cifar10", "digits", "synthetic"]
IMAGES, IMAGE_SIZE, CHANNELS = 50_000, 32, 3

# The recipe that each data set is trained by, but for what the user chooses and the cyclic schedule.
RECIPE_OF: dict[DatasetName, str] = {
    "fashion-mnist": "fashion-mnist-resnet18",
    "cifar10": "cifar10-resnet18-cyclic",
    "digits": "digits",
    "synthetic": "cifar10-resnet18-cyclic",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is trained.

    Attributes:
        data: where the images come from; auto is Fashion-MNIST where its files are found, else random images.
        data_root: folder of the data sets.
        epochs: of one cycle of the learning rate.
        images: the first so many of the training set; None is 50,000, or all of a smaller set.
        model: the classifier.
        batch: images in a step.
        method: how adversarial images are made.
        epsilon: like 8/255; None is the data set's own.
        execution: of the steps.
    """

    data: TrainData = "auto"
    data_root: str = "data"
    epochs: int = 30
    images: int | None = None
    model: ModelName = "resnet18"
    batch: int = 128
    method: str = "fgsm-sdi"
    epsilon: str | None = None
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)


def data_options(training: Training, name: DatasetName) -> DataOptions:
    """Where the images of one data set come from, before they are cut to the number that is wanted."""
    if name == "synthetic":
        shape = SyntheticShape(train_images=(training.images or IMAGES) + 1, test_images=1, channels=CHANNELS)
        return DataOptions(name=name, image_size=IMAGE_SIZE, heldout=1, synthetic=shape)
    size = recipes.get(RECIPE_OF[name]).data.image_size
    return DataOptions(name=name, root=training.data_root, image_size=size)


def recipe_for(training: Training, name: DatasetName) -> Recipe:
    """The recipe of a training on one data set."""
    base = recipes.get(RECIPE_OF[name])
    return replace(
        base,
        name="bench-train",
        about="",
        epsilon=training.epsilon or base.epsilon,
        epochs=training.epochs,
        batch_size=training.batch,
        method=base.method if training.method == base.method.name else method_options(training.method),
        data=data_options(training, name),
        model=ModelOptions(name=training.model),
        schedule=ScheduleOptions(kind="cyclic"),
        execution=training.execution,
    )


def open_images(training: Training) -> tuple[DatasetName, Dataset]:
    """A data set and its name, with as many training images as are wanted; grey ones made 32x32 with three channels.

    Raises:
        UsageError: there are not so many images, or fewer than a batch.
    """
    name, data = _opened(training)
    train, heldout, test = (in_memory(split) for split in (data.train, data.heldout, data.test))
    limit = len(train) + len(heldout)
    wanted = min(IMAGES, limit) if training.images is None else training.images
    if wanted > limit:
        raise UsageError(f"--images {wanted}: {name} has {limit} for training, choose at most that")
    if wanted < training.batch:
        raise UsageError(f"--batch {training.batch} does not fit the {wanted} images of {name}")
    if wanted > len(train):  # no checkpoint is selected here, so the held-out images are free
        train = Split(*(torch.cat(pair) for pair in zip(_tensors(train), _tensors(heldout), strict=True)))
    train = train.take(torch.arange(wanted))
    data = replace(data, train=_in_colour(train), heldout=_in_colour(heldout), test=_in_colour(test))
    return name, data


def _opened(training: Training) -> tuple[DatasetName, Dataset]:
    if training.data != "auto":
        return training.data, open_dataset(data_options(training, training.data))
    try:
        return "fashion-mnist", open_dataset(data_options(training, "fashion-mnist"))
    except MissingDataError as error:
        console.line(f"random images, whose accuracy means nothing, because {error}")
        return "synthetic", open_dataset(data_options(training, "synthetic"))


def _tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.images, split.labels


def _in_colour(split: Split) -> Split:
    """Grey images with zeros around them up to 32x32, repeated to three channels; others as they are."""
    _, height, width, channels = split.images.shape
    if channels != 1:
        return split
    across, down = IMAGE_SIZE - width, IMAGE_SIZE - height
    border = (0, 0, across // 2, across - across // 2, down // 2, down - down // 2)
    return Split(F.pad(split.images, border).repeat(1, 1, 1, CHANNELS), split.labels)
