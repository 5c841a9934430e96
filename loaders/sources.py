"""Opens a source again, from what another process was told of it."""

from __future__ import annotations

from pathlib import Path

from .beton.source import BetonSource
from .image_folder import FolderSource
from .source import ImageSource, Place


def open_source(place: Place) -> ImageSource:
    """Opens an image folder or a .beton file that has been checked before; cheap enough for every worker process.

    Raises:
        DataError: it is not there any more, or changed.
    """
    if place.kind == "folder":
        return FolderSource.open(Path(place.path))
    return BetonSource.open(Path(place.path))
