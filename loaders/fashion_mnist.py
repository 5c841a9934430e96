"""Fashion-MNIST from its four gzipped IDX files: 60,000 + 10,000 grey images of 28x28 pixels, 10 classes.

Source of the format: Yann LeCun's description of the MNIST files; of the data: Xiao, Rasul, Vollgraf (2017).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .dataset import Published
from .download import fetch
from .errors import DataError, MissingDataError
from .split import Split, checked_split

CLASSES = 10
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts them
URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"


@dataclass(frozen=True, slots=True)
class IdxFile:
    """One published file: its name, the sha256 of what it holds once unpacked, and the shape of that array."""

    name: str
    sha256: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of what it holds once unpacked."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)

    @property
    def largest(self) -> int:
        """Bytes that the gzipped file has at most, however it was packed."""
        return self.bytes + self.bytes // 1000 + 4096


# The digests are of the unpacked bytes: mirrors pack the same bytes anew, with other digests of the .gz.
FILES = {
    "train images": IdxFile(
        "train-images-idx3-ubyte.gz",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        (60_000, 28, 28),
    ),
    "train labels": IdxFile(
        "train-labels-idx1-ubyte.gz", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", (60_000,)
    ),
    "test images": IdxFile(
        "t10k-images-idx3-ubyte.gz",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        (10_000, 28, 28),
    ),
    "test labels": IdxFile(
        "t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", (10_000,)
    ),
}


def read_fashion_mnist(root: Path) -> Published:
    """The data set, images uint8 [N, 28, 28, 1], from root/fashion-mnist, root itself, or Debian's package.

    Raises:
        DataError: a file is missing, damaged or not the published one.
    """
    candidates = (root / "fashion-mnist", root, DEBIAN_FOLDER)
    present = (folder for folder in candidates if any((folder / file.name).exists() for file in FILES.values()))
    folder = next(present, candidates[0])
    return Published(_read_split(folder, "train"), _read_split(folder, "test"), CLASSES, str(folder))


def fetch_fashion_mnist(root: Path, mirror: str | None) -> None:
    """Downloads those of the four files that root/fashion-mnist lacks, from `mirror` or the authors' repository."""
    folder = root / "fashion-mnist"
    for file in FILES.values():
        if not (folder / file.name).exists():
            check = partial(read_idx, file=file)
            fetch(f"{mirror or URL}/{file.name}", folder / file.name, check=check, largest=file.largest)


def _read_split(folder: Path, split: str) -> Split:
    images, labels = FILES[f"{split} images"], FILES[f"{split} labels"]
    return checked_split(
        torch.from_numpy(read_idx(folder / images.name, images))[..., None],
        torch.from_numpy(read_idx(folder / labels.name, labels).astype(np.int64)),
        num_classes=CLASSES,
        source=str(folder / labels.name),
    )


def read_idx(path: Path, file: IdxFile) -> np.ndarray:
    """The uint8 array of one gzipped IDX file, its digest checked.

    Raises:
        DataError: the file is missing, cannot be unpacked, or does not hold the published bytes.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read(file.bytes + 1)  # bounded: a bomb is not unpacked
    except FileNotFoundError:
        raise MissingDataError(
            f"{path} is missing: run `hardfast data prepare fashion-mnist --root ROOT` and use --data.root ROOT, "
            "or install Debian's package dataset-fashion-mnist"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}): delete it and fetch it again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path} is damaged or another file: sha256 of its content is {found[:16]}..., not "
            f"{file.sha256[:16]}...; delete it and fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(file.shape)).reshape(file.shape).copy()
