"""What a feeder process is told to do, and what a backend inside it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..source import Place

BackendName = Literal["ffcv", "dali", "torch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSpec:
    """Everything that stays the same for all epochs of one feeder.

    Attributes:
        backend: what reads, decodes and crops.
        place: the source.
        batch_size: images in a batch.
        height, width: pixels that every box is scaled to.
        workers: threads (ffcv, dali) or processes (torch) that decode; 0 decodes in the feeder itself.
        ahead: batches that are decoded before they are asked for; by torch one for each worker, where that is more.
    """

    backend: BackendName
    place: Place
    batch_size: int
    height: int
    width: int
    workers: int
    ahead: int = 2

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json` in another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FeedSpec:
        """What `to_json` gave."""
        return cls(**{**values, "place": Place(**values["place"])})


@dataclass(frozen=True, slots=True)
class Decoded:
    """One batch as a backend delivers it; valid until the next one is asked for."""

    images: npt.NDArray[np.uint8]  # [N, height, width, 3]
    index: npt.NDArray[np.int64]  # [N]: which records these are, by the backend's own account
    labels: npt.NDArray[np.int64]  # [N]: theirs, read where the images were read


class Backend(Protocol):
    """Decodes batches in a given order. Made with (spec, source)."""

    def batches(self, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> Iterator[Decoded]:
        """The batches of one epoch, in order.

        Closing the iterator before its end must leave the backend ready for another epoch, and quickly.

        Args:
            index: [batches * batch_size], numbers of records of the source.
            boxes: [batches * batch_size, 4]: top, left, height, width of what is shown of each.

        Raises:
            DataError: an image is damaged; names the sample.
        """

    def close(self) -> None:
        """Ends its threads and processes."""
