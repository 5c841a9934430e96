"""DALI on the CPU, as a backend of the feeder process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt

from ..source import ImageSource
from .dali_reader import DaliReader
from .spec import Decoded, FeedSpec


class DaliBackend:
    """Decodes, crops and scales image files with DALI's CPU pipeline.

    Args:
        spec: sizes and threads; `workers` decode, at least one.
        source: an image folder (a source whose images are all encoded).

    Raises:
        DataError: DALI is not installed, or the source holds plain pixels.
    """

    def __init__(self, spec: FeedSpec, source: ImageSource) -> None:
        self._labels = source.labels
        self._reader = DaliReader(spec, source)

    def batches(self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> Iterator[Decoded]:
        """The batches of one epoch, in order; see `DaliReader.epoch`.

        Raises:
            DataError: a file is missing, changed or damaged; names it. The backend is of no use then.
        """
        with closing(self._reader.epoch(index, boxes)) as batches:
            for images, samples in batches:
                # No copy is made here: the array is DALI's memory and keeps it alive.
                yield Decoded(np.asarray(images.as_tensor()), samples, self._labels[samples])

    def close(self) -> None:
        """Ends its threads."""
        self._reader.close()
