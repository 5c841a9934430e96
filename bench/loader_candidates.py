"""The loaders that `hardfast bench loaders` compares, over one set of photographs, or over random images where none can
be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch

from ..loaders import Augmentation, Loader, ResidentLoader, Split
from ..loaders.choose import installed
from ..loaders.source import ImageSource
from ..loaders.streaming.spec import BackendName
from .loader_rows import MOST_PADDED
from .loader_timing import Candidate
from .photographs import HEIGHT, WIDTH, why_no_photographs, write_photographs
from .variants import CHANNELS, Workload

LoaderName = Literal["resident", "resident-padded", "ffcv", "dali", "torch"]
LOADERS: tuple[LoaderName, ...] = get_args(LoaderName)
STREAMING: tuple[BackendName, ...] = get_args(BackendName)
MODULES = {"ffcv": "ffcv", "dali": "nvidia.dali", "torch": "torchvision"}
EXTRAS = {"ffcv": "hardfast[ffcv]", "dali": "hardfast[dali]", "torch": "torchvision"}
CROPS, PADDED = Augmentation(scale=(0.08, 1.0), flip=True), Augmentation(padding=4, flip=True)
SEED = 0


def why_left_out(name: LoaderName, *, photographs: bool = True) -> str | None:
    """Why a loader cannot be timed here, in one line; None where it can."""
    if name not in MODULES:
        return None
    if not installed(MODULES[name]):
        return f"{name} is left out: {MODULES[name]} is not installed (pip install '{EXTRAS[name]}')"
    why = why_no_photographs() if photographs else "it reads no random images"
    return None if why is None else f"{name} is left out: {why}"


@dataclass(frozen=True, slots=True)
class Images:
    """What the loaders read; without photographs, only resident ones have something to read.

    Attributes:
        count: number of images.
        about: what they are, in a word or two.
        folder: a folder of classes; None for random images.
        beton: the same files in one, where it was asked for.
        decoded: all of the photographs as they are stored, where that was asked for.
    """

    count: int
    about: str
    folder: Path | None = None
    beton: Path | None = None
    decoded: Split | None = None


@contextmanager
def prepared_images(names: Sequence[LoaderName], count: int, *, photographs: bool) -> Iterator[Images]:
    """Photographs in a temporary folder, as the loaders of these names need them; or random images."""
    if not photographs or why_no_photographs() is not None:
        yield Images(count, "random")
        return
    from ..loaders.beton.writer import write_beton
    from ..loaders.image_folder import FolderSource
    from ..loaders.streamed import StreamedSplit

    with TemporaryDirectory(prefix="hardfast-photographs-") as folder:
        written = write_photographs(Path(folder), train=count)
        source = FolderSource.open(Path(folder) / "train")
        beton = Path(folder) / "train.beton" if "ffcv" in names else None
        if beton is not None:
            write_beton(source, beton, label="writing train.beton")
        decoded = None
        if "resident" in names:
            decoded = StreamedSplit(source, torch.arange(count), (HEIGHT, WIDTH)).decoded()
        about = f"JPEGs of {WIDTH}x{HEIGHT}, {written.mean_bytes / 1000:.0f} kB"
        yield Images(count, about, Path(folder) / "train", beton, decoded)


def candidates(
    names: Sequence[LoaderName], images: Images, workload: Workload, device: torch.device, *, workers: int
) -> dict[str, Candidate]:
    """The loaders of these names at the size of a workload; resident-padded only where recipes pad.

    Args:
        names: of loaders that can be had here.
        images: for all of them.
        workload: its size and its classes, which random images are drawn for.
        device: where batches go.
        workers: threads or processes that decode.
    """
    size = (workload.image_size, workload.image_size)
    found: dict[str, Candidate] = {}
    for name in names:
        if name in STREAMING:
            make = partial(_streaming, images, name, size, workers, device)
            found[name] = Candidate(
                make=make, augmentation=CROPS, images=images.count, data=images.about, workers=workers
            )
        elif name == "resident" or workload.image_size <= MOST_PADDED:
            how = CROPS if name == "resident" else PADDED
            split = _in_memory(images, size, workload.classes, cropped=name == "resident")
            shape = "x".join(map(str, reversed(split.images.shape[1:3])))
            data = f"{images.about}, decoded to {shape}" if images.folder is not None else f"random, {shape}"
            make = partial(_resident, split, how, size, device)
            found[name] = Candidate(make=make, augmentation=how, images=images.count, data=data)
    return found


def _resident(split: Split, how: Augmentation, size: tuple[int, int], device: torch.device, batch: int) -> Loader:
    return ResidentLoader(split, batch_size=batch, augmentation=how, seed=SEED, device=device, size=size)


def _in_memory(images: Images, size: tuple[int, int], classes: int, *, cropped: bool) -> Split:
    """Whole photographs where they are to be cropped at random scales, else at the size that is trained on."""
    if images.folder is None:
        draw = torch.Generator().manual_seed(SEED)
        pixels = torch.randint(0, 256, (images.count, *size, CHANNELS), dtype=torch.uint8, generator=draw)
        return Split(pixels, torch.randint(0, classes, (images.count,), generator=draw))
    if cropped:
        assert images.decoded is not None  # `prepared_images` was told of this loader
        return images.decoded
    from ..loaders.image_folder import FolderSource
    from ..loaders.streamed import StreamedSplit

    return StreamedSplit(FolderSource.open(images.folder), torch.arange(images.count), size).decoded()


def _streaming(
    images: Images, backend: BackendName, size: tuple[int, int], workers: int, device: torch.device, batch: int
) -> Loader:
    from ..loaders.beton.source import BetonSource
    from ..loaders.image_folder import FolderSource
    from ..loaders.streamed import StreamedSplit
    from ..loaders.streaming.loader import StreamingLoader

    assert images.folder is not None  # `why_left_out` was asked
    source: ImageSource = FolderSource.open(images.folder)
    if backend == "ffcv":
        assert images.beton is not None  # it was written for this loader
        source = BetonSource.open(images.beton)
    return StreamingLoader(
        StreamedSplit(source, torch.arange(images.count), size),
        backend=backend,
        batch_size=batch,
        augmentation=CROPS,
        seed=SEED,
        device=device,
        workers=workers,
    )
