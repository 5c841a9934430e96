"""Many small JPEGs, in a folder or in a zip archive, decoded into one tensor."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .progress import progress

LARGEST_FILE = 8 << 20  # bytes; a member that has more is refused before all of it is unpacked
CHUNK = 256


class Files(Protocol):
    """Files by their path below a root, parts joined by `/`; `str` names the root."""

    def names(self, folder: str) -> list[str]:
        """The files right in a folder, sorted; empty where there is no such folder."""

    def read(self, path: str) -> bytes:
        """One file.

        Raises:
            DataError: it is missing or cannot be read.
        """


class FolderFiles:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root / folder) if not entry.is_dir())
        except OSError:
            return []

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.root / path} cannot be read ({error.strerror}): extract the archive again"
            ) from None


class ZipFiles:
    """The files below a folder inside a zip archive; nothing is extracted to disk.

    Raises:
        DataError: it is no zip archive, or cut short.
    """

    def __init__(self, archive: Path, root: str) -> None:
        self.archive, self.root = archive, root
        try:
            self._zip = zipfile.ZipFile(archive)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{archive} cannot be read ({error}): delete it and fetch it again") from None
        self._lock = Lock()  # a ZipFile has one place in its file
        self._names: dict[str, list[str]] = defaultdict(list)
        for name in self._zip.namelist():
            folder, _, file = name.removeprefix(f"{root}/").rpartition("/")
            if file:
                self._names[folder].append(file)

    def __str__(self) -> str:
        return str(self.archive)

    def names(self, folder: str) -> list[str]:
        return sorted(self._names.get(folder, []))

    def read(self, path: str) -> bytes:
        try:
            with self._lock, self._zip.open(f"{self.root}/{path}") as file:
                content = file.read(LARGEST_FILE + 1)
        except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
            cause = str(error).strip("'\"") or type(error).__name__
            raise DataError(f"{self.archive}: {path} cannot be read ({cause}): fetch the archive again") from None
        if len(content) > LARGEST_FILE:
            raise DataError(
                f"{self.archive}: {path} has more than {LARGEST_FILE >> 20} MiB, which no file of the published "
                "archive has: fetch the archive again"
            )
        return content


def decode_images(files: Files, paths: Sequence[str], *, side: int, label: str) -> Tensor:
    """All images as uint8 [N, side, side, 3] in RGB, grey ones with three equal channels; decoded in threads.

    Args:
        files: where they are.
        paths: of each image.
        side: pixels that every image must have on a side.
        label: for the progress bar.

    Raises:
        DataError: naming the first file that is missing, no image, cut short, or of another size; or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading {files} needs Pillow ({error}): pip install pillow") from None
    images = np.empty((len(paths), side, side, 3), np.uint8)

    def decode(start: int) -> int:
        for number, path in enumerate(paths[start : start + CHUNK], start=start):
            content = files.read(path)
            try:
                with Image.open(io.BytesIO(content)) as image:
                    size = image.size
                    if size == (side, side):
                        images[number] = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                cause = str(error).partition(" <_io")[0]  # Pillow names the buffer, which tells nobody anything
                raise DataError(f"{files}: {path} is damaged or no image ({cause}): fetch the data set again") from None
            if size != (side, side):
                raise DataError(
                    f"{files}: {path} has {size[0]}x{size[1]} pixels, not {side}x{side}: it is of another data set"
                )
        return min(CHUNK, len(paths) - start)

    plain = f"decoding {label}, {len(paths)} images"
    with progress(len(paths), label, unit="images", plain=plain) as advance:
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # Pillow decodes without holding Python's lock
        try:
            for done in pool.map(decode, range(0, len(paths), CHUNK)):
                advance(done)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is not waited for
    return torch.from_numpy(images)
