"""Which images a .beton file was made of: noted beside it, in NAME.beton.json, so that one of others is noticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import DataError
from ..image_folder import FolderSource
from ..source import ImageSource
from ..split import Split
from .jpeg import Integers
from .source import digests_beside

Digests = npt.NDArray[np.uint8]  # [N, 32]


@dataclass(frozen=True, slots=True)
class Origin:
    """What the bytes of a file depend on.

    Attributes:
        source: the `fingerprint` of the images.
        max_side: pixels that the longer side of an image has at most; None is not limited.
    """

    source: str
    max_side: int | None


def origin_file(path: Path) -> Path:
    """The file that keeps the origin of a .beton file."""
    return path.with_name(f"{path.name}.json")


def origin_of(path: Path) -> Origin | None:
    """What is noted beside a .beton file; None where nothing is, or it is not of the file that its sidecar is of."""
    try:
        values = json.loads(origin_file(path).read_text())
        found = Origin(values["source"], values["max_side"])
        return found if digests_beside(path) == (values["sha256"],) else None
    except (OSError, ValueError, KeyError, TypeError):  # a DataError is a ValueError
        return None


def fingerprint(source: ImageSource | Split) -> str | None:
    """Of an image folder as it was indexed, or of images in memory; None for others, which would have to be read."""
    if isinstance(source, FolderSource):
        return combined(source.labels, source.sha256)
    if isinstance(source, Split):
        return combined(source.labels.numpy(force=True), image_digests(source.images))
    return None


def combined(labels: Integers, digests: Digests) -> str:
    """The sha256 over the labels, int64 [N], and the sha256 of each image, in their order."""
    total = hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").data)
    total.update(np.ascontiguousarray(digests).data)
    return total.hexdigest()


def image_digests(images: Tensor) -> Digests:
    """The sha256 of each image, uint8 [N, H, W, C], as it is stored: grey ones with three equal channels.

    Raises:
        DataError: they are of another layout.
    """
    arrays = checked_images(images)
    found = np.empty((len(arrays), 32), np.uint8)
    for row, image in zip(found, arrays, strict=True):
        stored = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image)
        row[:] = np.frombuffer(hashlib.sha256(stored.data).digest(), np.uint8)
    return found


def checked_images(images: Tensor) -> npt.NDArray[np.uint8]:
    """The images as an array.

    Raises:
        DataError: they are not uint8 [N, H, W, 1 or 3].
    """
    array = images.numpy(force=True)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"images of {array.dtype} {list(array.shape)} cannot be written: give uint8 [N, H, W, 1 or 3]")
    return array
