"""Which loader reads a training set, and why; and that loader, made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import torch

from .batch import Loader
from .beton.source import validate
from .beton.split import beton_split
from .crops import Augmentation
from .dataset import Dataset
from .errors import DataError
from .loader_options import LoaderName, LoaderOptions
from .resident import ResidentLoader
from .resize import resized
from .split import Split
from .streamed import StreamedSplit
from .streaming.loader import StreamingLoader
from .streaming.spec import BackendName

Installed = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Choice:
    """A loader, and why it was taken."""

    name: Literal["resident"] | BackendName
    why: str
    notes: tuple[str, ...] = ()  # a line each, about what could not be checked


def installed(module: str) -> bool:
    """Whether a module, or one of a package, can be imported; nothing is."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package it is in
        return False


def choose_loader(
    data: Dataset,
    size: tuple[int, int],
    *,
    options: LoaderOptions,
    augmentation: Augmentation,
    device: torch.device | str,
    is_installed: Installed = installed,
) -> Choice:
    """The loader that `options` come to for a training set.

    Args:
        data: the data set.
        size: (height, width) that is trained on.
        options: what the user wants.
        augmentation: of the training images.
        device: that is trained on.
        is_installed: whether a module can be imported.

    Raises:
        DataError: the loader that is asked for cannot read this data set, or is not installed.
    """
    if augmentation.padding >= min(size):
        raise DataError(
            f"crop-padding {augmentation.padding} must be smaller than the images of {size[0]}x{size[1]} pixels, which "
            "a crop could miss: lower it"
        )
    if options.name != "auto":
        _check_asked(options.name, data, augmentation, is_installed)
        return _checked(Choice(options.name, "as asked"), data)
    if isinstance(data.train, Split):
        return Choice("resident", "the images are in memory")
    needed = _resident_bytes(data.train, size, augmentation)
    limit = options.resident_limit * (1 << 30)
    if needed is not None and needed <= limit:
        return Choice("resident", f"{_size_words(needed)} of images fit --loader.resident-limit")
    why = (
        "images of many sizes are cropped at random scales"
        if needed is None
        else f"{_size_words(needed)} of images are more than --loader.resident-limit {options.resident_limit:g}"
    )
    if data.beton is not None:
        if is_installed("ffcv"):
            return _checked(Choice("ffcv", f"{why}, and {data.beton.name} is there"), data)
        why += f"; {data.beton.name} is there, but ffcv is not installed"
    if data.train.source.place.kind == "folder" and is_installed("nvidia.dali"):
        return Choice("dali", why)
    return Choice("torch", f"{why}; neither a .beton with ffcv nor DALI is at hand")


def _checked(choice: Choice, data: Dataset) -> Choice:
    """The choice, once the .beton file that it reads has been checked: FFCV itself trusts every number in it."""
    if isinstance(data.train, Split):
        unchecked = choice.name in ("ffcv", "torch")
    else:  # a data set that consists of it was checked when it was opened
        unchecked = choice.name == "ffcv" and data.train.source.place.kind != "beton"
    if data.beton is None or not unchecked:
        return choice
    warning = validate(data.beton).warning(data.beton)
    return choice if warning is None else replace(choice, notes=(warning,))


def _check_asked(name: LoaderName, data: Dataset, augmentation: Augmentation, is_installed: Installed) -> None:
    """Raises DataError where a loader cannot be had."""
    train = data.train
    package = {"ffcv": "ffcv", "dali": "nvidia.dali"}.get(name)
    if package is not None and not is_installed(package):
        raise DataError(f"loader.name {name} needs {package}, which is not installed: pip install 'hardfast[{name}]'")
    if name == "ffcv" and data.beton is None:
        raise DataError(
            f"loader.name ffcv needs a .beton file of {data.name}, and there is none: run `hardfast data prepare "
            f"{data.name} --beton`, or choose another loader"
        )
    if name == "resident":
        if isinstance(train, StreamedSplit) and augmentation.scale is not None and train.native_size is None:
            raise DataError(
                "loader.name resident cannot crop images of many sizes at random scales: choose another loader, or "
                "--crop-scale None"
            )
        return
    if isinstance(train, Split):
        if data.image_shape[2] != 3:
            raise DataError(f"loader.name {name} delivers colour images, those of {data.name} are grey: use resident")
        if data.beton is None:
            raise DataError(
                f"loader.name {name} reads image folders and .beton files, and {data.name} is neither: use resident, "
                f"or run `hardfast data prepare {data.name} --beton` for ffcv and torch"
            )
    if name == "dali" and (isinstance(train, Split) or train.source.place.kind != "folder"):
        raise DataError(f"loader.name dali reads image folders, and {data.name} is none: use ffcv or torch")


def _size_words(size: int) -> str:
    return f"{size / (1 << 30):,.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):,.1f} MiB"


def _resident_bytes(train: StreamedSplit, size: tuple[int, int], augmentation: Augmentation) -> int | None:
    """What a training set takes on the device; None where it cannot lie there."""
    side = size if augmentation.scale is None else train.native_size
    return None if side is None else len(train) * side[0] * side[1] * 3


def make_loader(
    choice: Choice,
    data: Dataset,
    size: tuple[int, int],
    *,
    options: LoaderOptions,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    world_size: int = 1,
    rank: int = 0,
) -> Loader:
    """The loader of a choice, at one size.

    Args:
        choice: from `choose_loader`.
        data, size, options, augmentation, device: as there.
        batch_size: images in a batch.
        seed: of the order, the crops and the flips.
        world_size, rank: as `Order`.

    Raises:
        DataError: the batch does not fit, or the images cannot be read.
        LoaderDied: what decodes does not start.
    """
    common = {
        "batch_size": batch_size,
        "augmentation": augmentation,
        "seed": seed,
        "device": device,
        "world_size": world_size,
        "rank": rank,
    }
    if choice.name == "resident":
        return ResidentLoader(_in_memory(data, size, augmentation), size=size, **common)  # type: ignore[arg-type]
    if choice.name != "ffcv" and isinstance(data.train, StreamedSplit):
        split = data.train.at(size)
    else:
        split = beton_split(data).at(size)
    return StreamingLoader(
        split,
        backend=choice.name,
        workers=options.worker_count,
        watchdog=options.watchdog,
        **common,  # type: ignore[arg-type]
    )


def _in_memory(data: Dataset, size: tuple[int, int], augmentation: Augmentation) -> Split:
    """The training set at the size that a resident loader cuts from."""
    train = data.train
    if isinstance(train, Split):
        return train if augmentation.scale is not None else resized(train, size)
    native = train.native_size
    return train.at(size if augmentation.scale is None or native is None else native).decoded()
