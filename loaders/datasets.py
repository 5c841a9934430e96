"""The registry: every data set by its name, opened and checked with one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from ..kernels import Purpose
from .cifar import CIFAR10, CIFAR100, fetch_cifar, read_cifar
from .dataset import Dataset, Published, cut
from .digits import read_digits
from .errors import DataError, MissingDataError
from .fashion_mnist import fetch_fashion_mnist, read_fashion_mnist
from .synthetic import SyntheticShape, make_synthetic
from .tiny_imagenet import fetch_tiny_imagenet, read_tiny_imagenet

DatasetName = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "imagenet", "synthetic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Which images, from where, and how they are split."""

    name: DatasetName = "digits"
    """The data set; `hardfast data list` tells about each."""

    root: str = "data"
    """Folder that holds the data sets, each in a folder of its own name."""

    image_size: int | None = None
    """Pixels on a side, for `digits` (default 16), `synthetic` (default 32) and `imagenet` (default 224); the images of
    the others have their own size."""

    heldout: int | None = None
    """Images cut from the training set to select the checkpoint; default 1,000, or 10% of a set below 10,000. 0 leaves
    the training set whole, for --select-on test."""

    split_seed: int = 0
    """Seed of that cut. It is not the run's seed, so runs with other seeds are selected on the same images."""

    synthetic: SyntheticShape = field(default_factory=SyntheticShape)
    """Shape of the data set `synthetic`."""

    def at(self, root: str | None) -> DataOptions:
        """The same options with another root, if one is given."""
        return self if root is None else replace(self, root=root)

    def __post_init__(self) -> None:
        if not 0 <= self.split_seed < 1 << 64:
            raise DataError(f"data.split-seed must lie in [0, 2**64), not {self.split_seed}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the registry."""

    about: str
    read: Callable[[DataOptions], Published]
    fetch: Callable[[Path, str | None], None] | None = None  # (root, mirror); None where nothing can be fetched
    sized: bool = False  # whether the user may choose the size of its images
    embedded: bool = False  # whether it comes with the engine, so that there is nothing to fetch


def _no_imagenet(options: DataOptions) -> Published:
    side = options.image_size or 224
    raise DataError(
        "data.name imagenet needs loaders that stream its images, and there are none yet: run the recipe on random "
        f"images of that shape, with --data.name synthetic --data.image-size {side} --data.synthetic.num-classes 1000"
    )


REGISTRY: dict[DatasetName, Entry] = {
    "digits": Entry(
        "1,797 handwritten digits, embedded in scikit-learn; enlarged from 8x8, three channels",
        lambda options: read_digits(16 if options.image_size is None else options.image_size),
        sized=True,
        embedded=True,
    ),
    "fashion-mnist": Entry(
        "70,000 grey images of clothes, 28x28; IDX files, Debian's dataset-fashion-mnist, or downloaded",
        lambda options: read_fashion_mnist(Path(options.root)),
        fetch_fashion_mnist,
    ),
    "cifar10": Entry(
        "60,000 photographs, 32x32, 10 classes; the binary archive or its folder, or downloaded",
        lambda options: read_cifar(CIFAR10, Path(options.root)),
        partial(fetch_cifar, CIFAR10),
    ),
    "cifar100": Entry(
        "60,000 photographs, 32x32, 100 classes; the binary archive or its folder, or downloaded",
        lambda options: read_cifar(CIFAR100, Path(options.root)),
        partial(fetch_cifar, CIFAR100),
    ),
    "tiny-imagenet": Entry(
        "110,000 photographs, 64x64, 200 classes; tiny-imagenet-200.zip or its folder, or downloaded",
        lambda options: read_tiny_imagenet(Path(options.root)),
        fetch_tiny_imagenet,
    ),
    "imagenet": Entry(
        "1.33 million photographs, 1,000 classes; not readable yet: its recipes run on synthetic images",
        _no_imagenet,
        sized=True,
    ),
    "synthetic": Entry(
        "random bytes of any shape, for benchmarks; nothing to learn",
        lambda options: make_synthetic(options.synthetic, 32 if options.image_size is None else options.image_size),
        sized=True,
        embedded=True,
    ),
}


def prepare(name: str, root: Path, *, mirror: str | None = None) -> str:
    """Makes a data set ready: reads and checks it where it is found, and otherwise fetches what is missing first.

    Args:
        name: a data set of the registry.
        root: folder for all data sets; this one goes to root/NAME.
        mirror: address of a folder that holds the files under their published names, instead of the official one.

    Returns:
        Where the data set lies.

    Raises:
        DataError: unknown name, no connection, a file that is not the published one, or a data set that cannot be read.
    """
    options = DataOptions(name=name, root=str(root))  # type: ignore[arg-type]  # checked in the next line
    entry = _entry(options)
    if entry.embedded:
        return "nothing to fetch: it comes with the engine"
    try:
        return entry.read(options).source
    except MissingDataError:
        if entry.fetch is None:
            raise
        entry.fetch(root, mirror)
        return entry.read(options).source


def _entry(options: DataOptions) -> Entry:
    if options.name not in REGISTRY:
        raise DataError(f"data.name '{options.name}' is not a data set: choose one of {', '.join(REGISTRY)}")
    return REGISTRY[options.name]


def open_dataset(options: DataOptions) -> Dataset:
    """Reads and checks a data set and cuts the held-out images from its training set.

    Raises:
        DataError: unknown name, missing or damaged file, or an option that does not fit the data set.
    """
    entry = _entry(options)
    if options.image_size is not None and not entry.sized:
        raise DataError(
            f"data.image-size {options.image_size} does not apply to {options.name}, whose images have their own size: "
            "drop it, or pass --data.image-size None where the recipe sets it"
        )
    published = entry.read(options)
    size = options.heldout
    if size is None:
        size = 1000 if len(published.train) >= 10_000 else max(1, len(published.train) // 10)
    train, heldout = cut(published.train, size, seed=options.split_seed, purpose=Purpose.HELDOUT, name="data.heldout")
    return Dataset(options.name, published.num_classes, published.source, train, heldout, published.test)
