"""What lies in an image folder: the listing of its files, and the index that is kept of them.

The index holds each file's name, size in pixels and bytes, and sha256: `hardfast-index.npz` in the folder itself, or,
where nothing can be written there, a file in `$XDG_CACHE_HOME/hardfast/` with a name made from the folder's path.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import DataError, MissingDataError

INDEX_NAME = "hardfast-index.npz"
VERSION = 1
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder in the order of their numbers.

    Attributes:
        classes: names of the class folders, sorted; a label is a place in this list.
        names: of the files, relative to the folder, parts joined by `/`; sorted by class, then by name.
        sizes: of the files in bytes, int64 [N].
        left_out: visible files in class folders whose suffix is no image's.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    left_out: tuple[str, ...] = ()

    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each file, int64 [N]."""
        number = {name: label for label, name in enumerate(self.classes)}
        return np.fromiter((number[name.partition("/")[0]] for name in self.names), np.int64, len(self.names))


@dataclass(frozen=True, slots=True)
class Index:
    """A listing with what was found in each file."""

    listing: Listing
    heights: npt.NDArray[np.int64]  # [N], pixels
    widths: npt.NDArray[np.int64]  # [N]
    sha256: npt.NDArray[np.uint8]  # [N, 32]


def shown(path: Path | str) -> str:
    """A path as messages print it: one line, whatever its characters are."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def again(folder: Path) -> str:
    """The command that indexes a folder again, for messages."""
    root = folder.parent if folder.name in ("train", "val", "test") else folder
    return f"`hardfast data prepare folder --root {shown(root)}` indexes it again"


def list_folder(folder: Path) -> Listing:
    """The images below the class folders of `folder`. Hidden files and folders, and what is no image, are left out.

    Raises:
        DataError: there is no class folder, one of them is empty, an image lies in none, a link leads nowhere or in a
            circle, or an image is empty or no plain file; names it.
    """
    try:
        entries = sorted((entry for entry in os.scandir(folder) if _visible(entry.name)), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise MissingDataError(f"{shown(folder)} is not there: name the folder that holds the class folders") from None
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed ({error.strerror})") from None
    classes, names, sizes, left_out = [], [], [], []
    for entry in entries:
        if not entry.is_dir():
            if _is_image(entry.name):
                raise DataError(f"{shown(entry.path)} lies in no class folder: move it to {shown(folder)}/CLASS/")
            continue
        found = sorted(_walk(Path(entry.path), entry.name, (_identity(folder), _identity(entry.path))))
        images = [(name, size) for name, size in found if _is_image(name)]
        left_out += [name for name, _ in found if not _is_image(name)]
        if not images:
            raise DataError(f"{shown(entry.path)} holds no images: remove this class folder, or put images there")
        empty = next((name for name, size in images if not size), None)
        if empty is not None:
            raise DataError(f"{shown(folder / empty)} is empty (0 bytes): remove it, or copy it again")
        classes.append(entry.name)
        names += [name for name, _ in images]
        sizes += [size for _, size in images]
    if not classes:
        raise DataError(f"{shown(folder)} holds no class folders: put images in {shown(folder)}/CLASS/FILE")
    return Listing(tuple(classes), tuple(names), np.array(sizes, np.int64), tuple(left_out))


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """(name below the split's folder, bytes) of all visible files; links are followed, but not in a circle."""
    try:
        for entry in os.scandir(folder):
            if not _visible(entry.name):
                continue
            name = f"{prefix}/{entry.name}"
            if entry.is_dir():
                identity = _identity(entry.path)
                if identity in above:
                    raise DataError(f"{shown(entry.path)} is a link to a folder that it lies in: remove the link")
                yield from _walk(Path(entry.path), name, (*above, identity))
            elif entry.is_file():
                yield name, entry.stat().st_size
            elif _is_image(name):
                kind = "a link that leads nowhere" if entry.is_symlink() else "no plain file"
                raise DataError(f"{shown(entry.path)} is {kind}: remove it, or copy the image there")
    except OSError as error:
        raise DataError(f"{shown(error.filename or folder)} cannot be listed ({error.strerror})") from None


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def check_listing(folder: Path, index: Index) -> None:
    """Raises DataError, naming the first file, unless the folder holds the files of the index in the same sizes."""
    found, kept = list_folder(folder), index.listing
    if found.names == kept.names and np.array_equal(found.sizes, kept.sizes):
        return
    now = dict(zip(found.names, found.sizes.tolist(), strict=True))
    then = dict(zip(kept.names, kept.sizes.tolist(), strict=True))
    name = next(name for name in sorted(now.keys() | then.keys()) if now.get(name) != then.get(name))
    if name not in then:
        what = "was added"
    elif name not in now:
        what = "is gone"
    else:
        what = f"has {now[name]} bytes, not {then[name]} any more"
    raise DataError(f"{shown(folder / name)} {what} since the folder was indexed: {again(folder)}")


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
                version=np.array(VERSION),
                classes=_packed(listing.classes),
                names=_packed(listing.names),
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


def _packed(names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Names as bytes with zeros between them, which no name contains."""
    return np.frombuffer(os.fsencode("\0".join(names)), np.uint8)


def read_index(folder: Path) -> Index | None:
    """The index of a folder; None where there is none.

    Raises:
        DataError: it is damaged, or of another version of this program.
    """
    path = next((place for place in index_places(folder) if place.exists()), None)
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
        classes, names = (tuple(os.fsdecode(table[key].tobytes()).split("\0")) for key in ("classes", "names"))
        columns = [table[key].astype(np.int64) for key in ("bytes", "heights", "widths")]
        wrong = (
            int(table["version"]) != VERSION
            or any(column.shape != (len(names),) or column.min() < 1 for column in columns)
            or table["sha256"].shape != (len(names), 32)
            or table["sha256"].dtype != np.uint8
            or list(classes) != sorted({name.partition("/")[0] for name in names})
            or any(".." in name and ".." in name.split("/") for name in names)
        )
        if wrong:
            raise ValueError("its parts do not fit each other")
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{shown(path)}, the index of its folder, is damaged ({cause}): {again(folder)}") from None
    return Index(Listing(classes, names, columns[0]), columns[1], columns[2], table["sha256"])
