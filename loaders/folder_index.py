"""What lies in an image folder: the listing of its files, what is known of each, and how two of these differ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import DataError, MissingDataError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)


class Names:
    """The names of many files as the bytes of one array.

    A million Python strings would cost a forked process their memory once more: it writes to each string's reference
    count when it looks at it, and gets a page of its own.

    Attributes:
        packed: the names with zeros between them, which no name contains; uint8 [bytes].
    """

    def __init__(self, packed: npt.NDArray[np.uint8]) -> None:
        self.packed = packed
        ends = np.append(np.flatnonzero(packed == 0), len(packed))
        self._starts, self._ends = np.concatenate(([0], ends[:-1] + 1)), ends  # int64 [N]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Packs at least one name."""
        return cls(np.frombuffer(os.fsencode("\0".join(names)), np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        return os.fsdecode(self.packed[self._starts[number] : self._ends[number]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return iter(os.fsdecode(self.packed.tobytes()).split("\0"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and np.array_equal(self.packed, other.packed)

    __hash__ = None  # type: ignore[assignment]  # it is compared by content, which an array may change


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
    names: Names
    sizes: npt.NDArray[np.int64]
    left_out: tuple[str, ...] = ()

    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each file, int64 [N]."""
        number = {name: label for label, name in enumerate(self.classes)}
        return np.fromiter((number[name.partition("/")[0]] for name in self.names), np.int64, len(self.names))


@dataclass(frozen=True, slots=True)
class Index:
    """A listing with what was found in each file.

    Attributes:
        heights, widths: in pixels, by the files' headers; int64 [N].
        sha256: of the files, uint8 [N, 32].
        decoded: whether each of them was decoded to its end.
    """

    listing: Listing
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    sha256: npt.NDArray[np.uint8]
    decoded: bool


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
        entries = sorted((entry for entry in os.scandir(folder) if visible(entry.name)), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise MissingDataError(f"{shown(folder)} is not there: name the folder that holds the class folders") from None
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed ({error.strerror})") from None
    classes, names, sizes, left_out = [], [], [], []
    for entry in entries:
        if not entry.is_dir():
            if is_image(entry.name):
                raise DataError(f"{shown(entry.path)} lies in no class folder: move it to {shown(folder)}/CLASS/")
            continue
        found = sorted(_walk(Path(entry.path), entry.name, (_identity(folder), _identity(entry.path))))
        images = [(name, size) for name, size in found if is_image(name)]
        left_out += [name for name, _ in found if not is_image(name)]
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
    return Listing(tuple(classes), Names.of(names), np.array(sizes, np.int64), tuple(left_out))


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """(name below the split's folder, bytes) of all visible files; links are followed, but not in a circle."""
    try:
        for entry in os.scandir(folder):
            if not visible(entry.name):
                continue
            name = f"{prefix}/{entry.name}"
            if entry.is_dir():
                identity = _identity(entry.path)
                if identity in above:
                    raise DataError(f"{shown(entry.path)} is a link to a folder that it lies in: remove the link")
                yield from _walk(Path(entry.path), name, (*above, identity))
            elif entry.is_file():
                yield name, entry.stat().st_size
            elif is_image(name):
                kind = "a link that leads nowhere" if entry.is_symlink() else "no plain file"
                raise DataError(f"{shown(entry.path)} is {kind}: remove it, or copy the image there")
    except OSError as error:
        raise DataError(f"{shown(error.filename or folder)} cannot be listed ({error.strerror})") from None


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def visible(name: str) -> bool:
    """Whether a file or folder is looked at."""
    return not name.startswith(".")


def is_image(name: str) -> bool:
    """Whether a file's name is an image's."""
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


def rows_of(listing: Listing, known: Index) -> npt.NDArray[np.int64]:
    """Where in the index each file of the listing is, by its name, int64 [N]; -1 where it is not."""
    if listing.names == known.listing.names:
        return np.arange(len(listing.names))
    row = {name: number for number, name in enumerate(known.listing.names)}
    return np.fromiter((row.get(name, -1) for name in listing.names), np.int64, len(listing.names))


def differences(folder: Path, before: Index, now: Index) -> str:
    """What was added, is gone, and has another size or sha256: how many files, and the first; empty if nothing."""
    rows = rows_of(now.listing, before)
    there = rows >= 0
    sizes, digests = before.listing.sizes[rows] != now.listing.sizes, (before.sha256[rows] != now.sha256).any(1)
    gone = np.ones(len(before.listing.names), np.bool_)
    gone[rows[there]] = False
    found = []
    changed = there & (sizes | digests)
    for what, index, which in (("added", now, ~there), ("gone", before, gone), ("changed", now, changed)):
        if which.any():
            first = folder / index.listing.names[int(which.argmax())]
            found.append(f"{np.count_nonzero(which)} {what}, like {shown(first)}")
    return f"since {shown(folder)} was indexed: {', '.join(found)}" if found else ""
