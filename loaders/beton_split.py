"""A training set as its .beton file holds it."""

from __future__ import annotations

import torch

from .beton import BetonSource
from .dataset import Dataset, Split
from .errors import DataError
from .streamed import StreamedSplit


def beton_split(data: Dataset) -> StreamedSplit:
    """The samples of `data.train`, in their order, from `data.beton`; at the size that `data.train` is shown at.

    The stored images may be smaller than those of the data set, where `--max-side` was given.

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
    return StreamedSplit(beton, records, train.image_shape[:2])
