"""Reading .beton files (FFCV's format) without FFCV: the check that comes before any other use, and their images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..image_folder import decode_rgb
from ..progress import progress
from ..source import Place
from .check import Structure, check_images, check_zeros, read_structure
from .format import JPEG
from .jpeg import Integers

HASH_CHUNK = 4 << 20
LARGE = 1 << 30  # bytes of a file that is hashed with a progress bar


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check of a file found."""

    images: int
    sha256: str | None  # of the whole file, where a digest was there and agreed

    def warning(self, path: Path) -> str | None:
        """One line for the user if nothing vouches for the pixels."""
        if self.sha256 is not None:
            return None
        return f"{path}: there is no {sidecar(path).name} beside it, so damaged pixels would not be noticed"


def sidecar(path: Path) -> Path:
    """The file with the digest of a .beton file."""
    return path.with_name(f"{path.name}.sha256")


def validate(path: Path, *, digest: bool = True, thorough: bool = True, quiet: bool = False) -> Checked:
    """Checks a file before anything maps it that trusts its numbers, FFCV above all.

    The structure comes first: header, fields, tables, and that every image is where and what they say. Then, where
    NAME.beton.sha256 lies beside it, the sha256 of the whole file.

    Args:
        path: the file.
        digest: whether the whole file is read for its sha256.
        thorough: whether the header of every JPEG is looked at; without it only the tables are read.
        quiet: no progress bar.

    Raises:
        DataError: the first thing that is wrong.
    """
    structure = read_structure(path)
    if thorough:
        check_images(path, structure)
    found = _check_digest(path, len(structure.content), quiet) if digest and sidecar(path).exists() else None
    if thorough and found is None:  # a black page that is what was written is not damage
        check_zeros(path, structure)
    return Checked(len(structure), found)


def digests_beside(path: Path) -> tuple[str, ...]:
    """The digests that the sidecar of a file holds, in lower case: one, but while the file is being replaced two.

    Raises:
        DataError: there is none, or it holds something else.
    """
    beside = sidecar(path)
    try:
        lines = beside.read_text("ascii").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} cannot be read ({error}): write the .beton file again") from None
    digests = tuple(line.split()[0].lower() for line in lines if line.strip())
    if not digests or any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in digests):
        raise DataError(f"{beside} holds no sha256: write the .beton file again, or make it with sha256sum")
    return digests


def _check_digest(path: Path, size: int, quiet: bool) -> str:
    expected = digests_beside(path)
    found = sha256_of(path, size, label=f"checking {path.name}", quiet=quiet)
    if found not in expected:
        raise DataError(
            f"{path}: sha256 is {found[:16]}..., not {expected[0][:16]}... as {sidecar(path).name} says; the file is "
            "damaged, copy it again or write it again"
        )
    return found


def sha256_of(path: Path, size: int, *, label: str, quiet: bool) -> str:
    """The digest of a whole file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if quiet or size < LARGE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            total, buffer = hashlib.sha256(), memoryview(bytearray(HASH_CHUNK))
            with progress(size, label, unit="B", plain=f"{label}, {size} bytes") as advance:
                while got := file.readinto(buffer):
                    total.update(buffer[:got])
                    advance(got)
            return total.hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the disk") from None


class BetonSource:
    """The images of a .beton file, read through one map of it; an `ImageSource`."""

    def __init__(self, path: Path, structure: Structure) -> None:
        self.path = path
        self.place = Place("beton", str(path))
        self.labels: Integers = structure.labels
        self.heights: Integers = structure.heights
        self.widths: Integers = structure.widths
        self._structure = structure

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a file that `validate` has passed; reads its tables and checks them again.

        Raises:
            DataError: it is missing or its tables are damaged.
        """
        path = path.absolute()
        return cls(path, read_structure(path))

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return str(self.path)

    def name(self, sample: int) -> str:
        """What messages call a sample."""
        return f"record {sample} of {self.path}"

    def encoded(self, sample: int) -> bytes | None:
        """The JPEG of one image, as it was when the file was checked; None where the file holds its pixels."""
        if self._structure.modes[sample] != JPEG:
            return None
        return self._structure.record(sample).tobytes()

    def pixels(self, sample: int) -> npt.NDArray[np.uint8]:
        """One whole image, uint8 [H, W, 3], decoded by Pillow where it is a JPEG.

        Raises:
            DataError: it cannot be decoded or is not of the size that the table says; or Pillow is missing.
        """
        shape = (int(self.heights[sample]), int(self.widths[sample]), 3)
        content = self.encoded(sample)
        if content is None:
            return self._structure.record(sample).reshape(shape).copy()
        pixels = decode_rgb(content, self.name(sample))
        if pixels.shape != shape:
            raise DataError(f"{self.name(sample)} is not of {shape[1]}x{shape[0]} pixels: write the file again")
        return pixels
