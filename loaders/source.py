"""Where a streaming loader reads from: an image folder or a .beton file, behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

SourceKind = Literal["folder", "beton"]


@dataclass(frozen=True, slots=True)
class Place:
    """What is needed to open a source again in another process; its fields are plain JSON values."""

    kind: SourceKind
    path: str


class ImageSource(Protocol):
    """Numbered colour images with labels, each read and checked on demand; safe to read from several threads."""

    place: Place
    labels: npt.NDArray[np.int64]  # [N]
    heights: npt.NDArray[np.int64]  # [N], in pixels as stored: no EXIF rotation is applied
    widths: npt.NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        """Images."""

    def __str__(self) -> str:
        """What messages call it: its path."""

    def name(self, sample: int) -> str:
        """What messages call a sample: its file, or its number in the file."""

    def encoded(self, sample: int) -> bytes | None:
        """The file of one image (JPEG, PNG, ...), its digest checked; None where the source holds plain pixels.

        Raises:
            DataError: it is missing or not what it was when the source was made; names the sample.
        """

    def pixels(self, sample: int) -> npt.NDArray[np.uint8]:
        """One whole image, uint8 [H, W, 3], decoded by Pillow where it is encoded.

        Raises:
            DataError: as `encoded`, or it cannot be decoded; names the sample.
        """
