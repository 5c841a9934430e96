"""The file with the index of an image folder: each file's name, size in pixels and bytes, and sha256.

`hardfast-index.npz` in the folder itself, or, where nothing can be written there, a file in `$XDG_CACHE_HOME/hardfast/`
with a name made from the folder's path. What is read is checked whole, since it comes with the images.
"""

from __future__ import annotations

import hashlib
import io
import operator
import os
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .folder_index import Index, Listing, Names, again, shown

INDEX_NAME = "hardfast-index.npz"
VERSION = 2
NUMBERS, COLUMNS = ("version", "decoded"), ("bytes", "heights", "widths")
MEMBERS = sorted(f"{name}.npy" for name in (*NUMBERS, *COLUMNS, "classes", "names", "sha256"))
WRONG_PAIRS = ("\0\0", "\0/", "//", "/\0", "\0.", "/.")  # in names between zeros: nothing, or hidden, between slashes


def index_places(folder: Path) -> tuple[Path, Path]:
    """Where the index of a folder may be: in the user's cache, which comes first, and in the folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return Path(home) / "hardfast" / f"{key}.npz", folder / INDEX_NAME


def write_index(folder: Path, index: Index) -> Path:
    """Writes the index beside the images, or else to the cache, and returns where.

    Raises:
        DataError: neither can be written.
    """
    cached, beside = index_places(folder)
    try:
        _write(beside, index)
    except OSError as cause:
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            _write(cached, index)
        except OSError as error:
            raise DataError(
                f"the index of {shown(folder)} can be written neither there ({cause.strerror}) nor to {cached} "
                f"({error.strerror}): free space, or set XDG_CACHE_HOME to a folder that can be written"
            ) from None
        return cached
    cached.unlink(missing_ok=True)  # an older one of a time when nothing could be written beside the images
    return beside


def _write(path: Path, index: Index) -> None:
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    listing = index.listing
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                version=np.array(VERSION, np.int64),
                decoded=np.array(index.decoded, np.int64),
                classes=Names.of(listing.classes).packed,
                names=listing.names.packed,
                bytes=listing.sizes,
                heights=index.heights,
                widths=index.widths,
                sha256=index.sha256,
            )
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_index(folder: Path) -> Index | None:
    """The index of a folder; None where there is none.

    Raises:
        DataError: it is damaged, or of another version of this program.
    """
    path = next((place for place in index_places(folder) if place.exists()), None)
    if path is None:
        return None
    try:
        return _index(_tables(path))
    except Exception as error:  # of damaged bytes, the readers of zip and npy files raise nearly everything
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{shown(path)}, the index of its folder, is damaged or of another version ({cause}): {again(folder)}"
        ) from None


def _tables(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of the file, which all together have fewer bytes than the file itself.

    Raises:
        ValueError: it holds others, or packed ones, or one whose header does not tell its size.
    """
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        if sorted(member.filename for member in members) != MEMBERS:
            raise ValueError("it holds other tables than an index")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its tables are packed")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its tables claim more bytes than it has")
        return {member.filename.removesuffix(".npy"): _array(file.read(member)) for member in members}


def _array(content: bytes) -> npt.NDArray[np.generic]:
    """An npy file's array, its memory that of the content: nothing is allocated on the word of a header."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a table is of another version")
    shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    if fortran or kind not in (np.dtype("<i8"), np.dtype(np.uint8)):
        raise ValueError(f"a table holds {kind}")
    return np.frombuffer(content, kind, offset=file.tell()).reshape(shape)


def _index(table: dict[str, npt.NDArray[np.generic]]) -> Index:
    """Raises ValueError unless the tables are those of a folder as `list_folder` gives it."""
    if int(table["version"]) != VERSION:
        raise ValueError(f"it is of version {table['version']}, not {VERSION}")
    sizes, heights, widths = (table[key].astype(np.int64) for key in COLUMNS)
    packed, sha256 = (table[key].astype(np.uint8, copy=False) for key in ("names", "sha256"))
    names, classes = Names(packed), tuple(os.fsdecode(table["classes"].tobytes()).split("\0"))
    if any(column.shape != (len(names),) or column.min() < 1 for column in (sizes, heights, widths)):
        raise ValueError("its parts do not fit each other")
    if packed.ndim != 1 or sha256.shape != (len(names), 32):
        raise ValueError("its parts do not fit each other")
    text = os.fsdecode(b"\0%b\0" % packed.tobytes())
    if any(pair in text for pair in WRONG_PAIRS):
        raise ValueError("a name in it is none of a visible file below the folder")
    keys = [name.replace("/", "\0", 1) for name in names]  # in this form names sort by class, and then by name
    if not all(map(operator.lt, keys, keys[1:])):
        raise ValueError("its names are not in order, or not different")
    if not all("\0" in key for key in keys) or classes != tuple(dict.fromkeys(key.partition("\0")[0] for key in keys)):
        raise ValueError("its classes are not those of its names")
    return Index(Listing(classes, names, sizes), heights, widths, sha256, bool(table["decoded"]))
