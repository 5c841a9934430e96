"""A training set as its .beton file holds it, once it is known to be of the same images."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..dataset import Dataset
from ..errors import DataError
from ..image_folder import FolderSource
from ..source import ImageSource
from ..split import Split
from ..streamed import StreamedSplit
from .origin import combined, fingerprint, image_digests, origin_of
from .source import BetonSource

COMPARED = 32  # records of a file of unknown origin
REENCODED = 12.0  # levels that a JPEG of the same image is off on average, at most


def beton_split(data: Dataset) -> StreamedSplit:
    """The samples of `data.train`, in their order, from `data.beton`; at the size that `data.train` is shown at.

    The stored images may be smaller than those of the data set, where `--max-side` was given. Whether they are the same
    is known from what the writer has noted beside the file; of a file without such a note, some are compared.

    Raises:
        DataError: there is no such file, its tables are damaged, or it holds other images than the data set.
    """
    if data.beton is None:
        raise DataError(f"{data.name} has no .beton file: `hardfast data prepare {data.name} --beton` writes it")
    train, beton = data.train, BetonSource.open(data.beton)
    again = f"write it again with `hardfast data prepare {data.name} --beton`"
    if isinstance(train, Split):
        records, total = data.train_records, len(train) + len(data.heldout)
        height, width, channels = train.image_shape
        if channels != 3:
            raise DataError(f"{data.beton} holds colour images and those of {data.name} are grey: use loader resident")
        if bool((beton.heights != height).any() or (beton.widths != width).any()):
            raise DataError(f"{data.beton} holds images of another size than {height}x{width}: {again}")
    else:
        records, total = train.records, len(train.source)
    if len(beton) != total:
        raise DataError(f"{data.beton} holds {len(beton)} images and {data.name} has {total}: {again}")
    labels = torch.from_numpy(beton.labels)[records]
    if not torch.equal(labels, train.labels):
        sample = int((labels != train.labels).nonzero()[0])
        raise DataError(
            f"{data.beton}: record {int(records[sample])} has label {int(labels[sample])}, and in {data.name} it has "
            f"{int(train.labels[sample])}: {again}"
        )
    _check_images(data, beton, again)
    return StreamedSplit(beton, records, train.image_shape[:2])


def _check_images(data: Dataset, beton: BetonSource, again: str) -> None:
    train = data.train
    if isinstance(train, StreamedSplit) and not isinstance(train.source, FolderSource):
        return  # the file is the data set
    origin = origin_of(beton.path)
    if origin is not None:
        expected = fingerprint(train.source) if isinstance(train, StreamedSplit) else _whole_fingerprint(data)
        if origin.source != expected:
            raise DataError(f"{beton} was written from other images than {data.name} has now: {again}")
        return
    numbers = np.linspace(0, len(train) - 1, min(COMPARED, len(train))).astype(int).tolist()
    records = train.records if isinstance(train, StreamedSplit) else data.train_records
    for number in numbers:
        record = int(records[number])
        if isinstance(train, StreamedSplit):
            same = _is_same(beton, train.source, record)
        else:
            same = _shows(beton, record, train.images[number].numpy(force=True))
        if not same:
            raise DataError(f"{beton.name(record)} holds another image than {data.name} has there: {again}")


def _whole_fingerprint(data: Dataset) -> str | None:
    """Of a data set in memory as it was before images were held out."""
    if not isinstance(data.train, Split) or not isinstance(data.heldout, Split):
        return None
    total = len(data.train) + len(data.heldout)
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[data.train_records] = True
    digests, labels = np.empty((total, 32), np.uint8), np.empty(total, np.int64)
    parts: tuple[tuple[Split, Tensor], ...] = (
        (data.train, data.train_records),
        (data.heldout, torch.arange(total)[~chosen]),
    )
    for split, records in parts:
        digests[records.numpy()] = image_digests(split.images)
        labels[records.numpy()] = split.labels.numpy(force=True)
    return combined(labels, digests)


def _is_same(beton: BetonSource, source: ImageSource, record: int) -> bool:
    """Whether a record may be an image of a folder: its very file, its pixels, or what is left of it as a JPEG."""
    content = beton.encoded(record)
    if isinstance(source, FolderSource) and content is not None:  # most JPEGs are stored as they are
        digest = hashlib.sha256(content).digest()
        if digest == source.sha256[record].tobytes():
            return True
    height, width = int(source.heights[record]), int(source.widths[record])
    stored = int(beton.heights[record]), int(beton.widths[record])
    if stored == (height, width):
        return _shows(beton, record, source.pixels(record))
    factor = max(stored) / max(height, width)  # scaled down to a largest side: what it shows is not compared
    return factor < 1 and abs(stored[0] - factor * height) <= 1 and abs(stored[1] - factor * width) <= 1


def _shows(beton: BetonSource, record: int, pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a record shows these pixels, of its size; a JPEG may be an encoding of them, as by FFCV's own writer."""
    apart = np.abs(beton.pixels(record).astype(np.int16) - pixels)
    return bool(apart.mean() <= REENCODED) if beton.encoded(record) is not None else not apart.any()
