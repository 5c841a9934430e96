"""The registry: every data set by its name, opened and checked with one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from ..kernels import Purpose
from . import fashion_mnist
from .cifar import CIFAR10, CIFAR100, fetch_cifar, read_cifar
from .dataset import Dataset, Published, cut_places
from .digits import read_digits
from .errors import DataError
from .fashion_mnist import fetch_fashion_mnist, read_fashion_mnist
from .imagenet import imagenet_layout, read_imagenet
from .option_types import check_options
from .own_images import beton_beside, find_layout, holds_images, read_image_folder
from .split import Split
from .streamed import StreamedSplit
from .synthetic import SyntheticShape, make_synthetic
from .tiny_imagenet import PUBLISHED as TINY_IMAGENET
from .tiny_imagenet import fetch_tiny_imagenet, read_tiny_imagenet

LARGEST_SIDE = 4096  # pixels; beyond it nothing is meant
DatasetName = Literal[
    "digits", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "imagenet", "folder", "synthetic"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Which images, from where, and how they are split."""

    name: DatasetName = "digits"
    """The data set; `hardfast data list` tells about each."""

    root: str = "data"
    """Folder that holds the data sets, each in a folder of its own name. For `folder`, that folder itself: with
    train/CLASS/FILE and val/CLASS/FILE (or test/), or with CLASS/FILE, of which a tenth is then the test set."""

    image_size: int | None = None
    """Pixels on a side, for `digits` (default 16), `synthetic` (default 32), `imagenet` (default 224) and `folder` (by
    default the images' own size where all have the same, else 224); the images of the others have their own size."""

    test_crop: float | None = None
    """Share of the shorter side that held-out and test images show, for `folder` (default 1) and `imagenet` (default
    0.875)."""

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
        check_options(self, "data", DataError)
        if not self.root.strip():
            raise DataError("data.root is empty: name the folder that holds the data sets, `.` for the current one")
        if not 0 <= self.split_seed < 1 << 64:
            raise DataError(f"data.split-seed must lie in [0, 2**64), not {self.split_seed}")
        if self.image_size is not None and self.image_size < 1:
            raise DataError(f"data.image-size must be at least 1, not {self.image_size}")
        if self.image_size is not None and self.image_size > LARGEST_SIDE:
            raise DataError(f"data.image-size must be at most {LARGEST_SIDE}, not {self.image_size}")
        if self.test_crop is not None and not 0 < self.test_crop <= 1:
            raise DataError(f"data.test-crop {self.test_crop} must be a share of the shorter side, in (0, 1]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the registry."""

    about: str
    read: Callable[[DataOptions], Published]
    fetch: Callable[[Path, str | None], None] | None = None  # (root, mirror); None where nothing can be fetched
    sized: bool = False  # whether the user may choose the size of its images
    embedded: bool = False  # whether it comes with the engine, so that there is nothing to fetch
    grey: bool = False  # whether its images have one channel, which no .beton file has
    streamed: bool = False  # whether its images stay where they are and have sizes of their own
    files: tuple[str, ...] = ()  # one of these, in ROOT/NAME or ROOT, means that it was found


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
        grey=True,
        files=tuple(file.name for file in fashion_mnist.FILES.values()),
    ),
    "cifar10": Entry(
        "60,000 photographs, 32x32, 10 classes; the binary archive or its folder, or downloaded",
        lambda options: read_cifar(CIFAR10, Path(options.root)),
        partial(fetch_cifar, CIFAR10),
        files=(CIFAR10.folder, CIFAR10.archive),
    ),
    "cifar100": Entry(
        "60,000 photographs, 32x32, 100 classes; the binary archive or its folder, or downloaded",
        lambda options: read_cifar(CIFAR100, Path(options.root)),
        partial(fetch_cifar, CIFAR100),
        files=(CIFAR100.folder, CIFAR100.archive),
    ),
    "tiny-imagenet": Entry(
        "110,000 photographs, 64x64, 200 classes; tiny-imagenet-200.zip or its folder, or downloaded",
        lambda options: read_tiny_imagenet(Path(options.root)),
        fetch_tiny_imagenet,
        files=(TINY_IMAGENET.folder, TINY_IMAGENET.archive),
    ),
    "imagenet": Entry(
        "1.33 million photographs, 1,000 classes; image folders, .beton files, or the official archives",
        lambda options: read_imagenet(Path(options.root), image_size=options.image_size, test_crop=options.test_crop),
        sized=True,
        streamed=True,
    ),
    "folder": Entry(
        "your own images: ROOT/train/CLASS/FILE and ROOT/val/CLASS/FILE, or ROOT/CLASS/FILE",
        lambda options: read_image_folder(
            Path(options.root), image_size=options.image_size, test_crop=options.test_crop
        ),
        sized=True,
        streamed=True,
    ),
    "synthetic": Entry(
        "random bytes of any shape, for benchmarks; nothing to learn",
        lambda options: make_synthetic(options.synthetic, 32 if options.image_size is None else options.image_size),
        sized=True,
        embedded=True,
    ),
}


def find(name: DatasetName, root: Path) -> Path | None:
    """Where a data set seems to lie; nothing is read or checked. None where it was not found, or is embedded."""
    entry = REGISTRY[name]
    if name in ("folder", "imagenet"):
        layout = find_layout(root) if name == "folder" else imagenet_layout(root)
        if layout is None or not holds_images(layout.train):
            return None
        return layout.train if layout.test is None else layout.train.parent
    places = [folder / file for folder in (root / name, root) for file in entry.files]
    if name == "fashion-mnist":
        places += [fashion_mnist.DEBIAN_FOLDER / file for file in entry.files]
    return next((place for place in places if place.exists()), None)


def open_dataset(options: DataOptions) -> Dataset:
    """Reads and checks a data set and cuts the held-out images from its training set.

    Raises:
        DataError: a missing or damaged file, or an option that does not fit the data set.
    """
    entry = REGISTRY[options.name]
    if options.image_size is not None and not entry.sized:
        raise DataError(
            f"data.image-size {options.image_size} does not apply to {options.name}, whose images have their own size: "
            "drop it, or pass --data.image-size None where the recipe sets it"
        )
    if options.test_crop is not None and not entry.streamed:
        raise DataError(
            f"data.test-crop {options.test_crop} does not apply to {options.name}, whose images are shown whole: drop "
            "it"
        )
    published = entry.read(options)
    train, beton = published.train, published.beton
    size = options.heldout
    if size is None:
        size = 1000 if len(train) >= 10_000 else max(1, len(train) // 10)
    rest, part = cut_places(len(train), size, seed=options.split_seed, purpose=Purpose.HELDOUT, name="data.heldout")
    heldout: Split | StreamedSplit
    if isinstance(train, StreamedSplit):
        share = published.test.share if isinstance(published.test, StreamedSplit) else train.share
        heldout = StreamedSplit(train.source, train.records[part], train.size, share=share)
        records = train.records[rest]
    else:
        heldout, records = train.take(part), rest
        beton = beton or beton_beside(Path(options.root) / options.name)
    return Dataset(
        options.name,
        published.num_classes,
        published.source,
        train.take(rest),
        heldout,
        published.test,
        cut=records,
        beton=beton,
    )
