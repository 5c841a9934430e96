"""Unpacks ImageNet's official archives into class folders; what was unpacked before is kept.

The training archive holds one archive for each class; each is unpacked to a hidden folder, which is renamed once it is
whole. The validation images lie side by side in theirs, and the devkit says of which class each is; each gets its name
once it is whole, in a hidden folder that is renamed at the end.

Before a folder gets its name, its files are brought to the disk by an fsync of each, several at a time: that waits for
nothing but them, while a sync of the machine waits for whatever else it writes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from .errors import DataError
from .folder_index import shown
from .imagenet import WNID, Archive, ImageNet, instructions
from .index_file import INDEX_NAME
from .progress import progress

LARGEST_FILE = 64 << 20  # bytes; the largest image has 16 MB
LARGEST_TABLE = 16 << 20  # bytes of one file of the devkit
CHUNK = 8 << 20
SYNCS = 16  # files at a time: a disk takes several in one go
TRAIN_NAME = re.compile(r"(n\d{8})_\d+\.JPEG")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def unpack_imagenet(root: Path, spec: ImageNet) -> None:
    """Makes ROOT/NAME/train and ROOT/NAME/val out of the archives in ROOT/NAME or ROOT, each checked by its md5.

    Killed, it goes on with the class or image at which it stopped. A split that is whole already needs no archive.

    Raises:
        DataError: an archive is missing, damaged or another one, or the disk is full.
    """
    folder = root / spec.name
    if not has_classes(folder / "train", spec):
        archive = _checked(root, spec.train, spec)
        _check_space(folder, archive, folder / "train")
        _unpack_train(archive, folder / "train", spec)
    if not (folder / "val").is_dir():
        archive, devkit = _checked(root, spec.val, spec), _checked(root, spec.devkit, spec)
        _check_space(folder, archive, folder / ".val.part")
        _unpack_val(archive, folder, validation_classes(devkit, spec), spec)


def has_classes(train: Path, spec: ImageNet) -> bool:
    """Whether the folder of every class is there, which is so once it is whole."""
    try:
        return sum(bool(WNID.fullmatch(entry.name)) for entry in os.scandir(train)) >= spec.num_classes
    except OSError:
        return False


def _checked(root: Path, archive: Archive, spec: ImageNet) -> Path:
    """The archive's path, once its digest has been compared."""
    path = next((place for place in (root / spec.name / archive.name, root / archive.name) if place.is_file()), None)
    if path is None:
        raise DataError(f"{archive.name} is missing: {instructions(root, spec)}")
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    try:
        with path.open("rb") as file, _bar(path, "checking", size) as advance:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                advance(len(chunk))
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}): copy it there again") from None
    if digest.hexdigest() != archive.md5:
        raise DataError(
            f"{shown(path)} is damaged or another file: md5 is {digest.hexdigest()}, not {archive.md5}; fetch it again"
        )
    return path


def _check_space(folder: Path, archive: Path, begun: Path) -> None:
    """Raises DataError if the disk has no place for what is still missing in `begun`, whole classes and parts."""
    needed, free = archive.stat().st_size, shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    unpacked = sum(file.stat().st_size for file in begun.rglob("*.JPEG")) if free < needed else 0
    if free < needed - unpacked:
        raise DataError(
            f"unpacking {archive.name} needs {(needed - unpacked) / 1e9:.1f} GB and {free / 1e9:.1f} are free in "
            f"{shown(folder)}: free space, or use another --root"
        )


def _bar(path: Path, what: str, size: int) -> AbstractContextManager[Callable[[int], object]]:
    return progress(size, f"{what} {path.name}", unit="B", plain=f"{what} {shown(path)}, {size} bytes")


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Errors of an archive, or of the disk that it is unpacked to, become DataErrors."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{shown(archive)} cannot be unpacked ({error}): fetch it again") from None
    except OSError as error:
        raise DataError(
            f"{shown(archive)} could not be unpacked ({error.strerror or error}): free space, or fetch it again, then "
            "repeat the command, which goes on from there"
        ) from None


def _unpack_train(archive: Path, train: Path, spec: ImageNet) -> None:
    with (
        _reading(archive),
        tarfile.open(archive, "r:") as outer,
        _bar(archive, "unpacking", archive.stat().st_size) as advance,
    ):
        train.mkdir(parents=True, exist_ok=True)
        (train / INDEX_NAME).unlink(missing_ok=True)  # of a part of the classes
        for member in outer:
            wnid = member.name.removesuffix(".tar")
            if not member.isreg() or not WNID.fullmatch(wnid) or member.name == wnid:
                raise DataError(f"{shown(archive)} holds {member.name!r}, which is no class of {spec.name}")
            if not (train / wnid).exists():
                content = outer.extractfile(member)
                if content is None:
                    raise DataError(f"{shown(archive)} holds {member.name!r} without content: fetch it again")
                _unpack_class(archive, content, train / wnid)
            advance(member.size)


def _unpack_class(archive: Path, content: IO[bytes], target: Path) -> None:
    """One class to a hidden folder, which is renamed when it is whole."""
    part = target.with_name(f".{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    with tarfile.open(fileobj=content, mode="r:") as inner:
        for member in inner:
            name = TRAIN_NAME.fullmatch(member.name)
            if name is None or name[1] != target.name:
                raise DataError(f"{shown(archive)}: {target.name}.tar holds {member.name!r}, which is no image of it")
            (part / member.name).write_bytes(_content(archive, inner, member))
    _sync(part.iterdir())  # the files are on the disk before their folder's name says that they are whole
    part.rename(target)
    _sync([target.parent])


def _sync(paths: Iterable[Path]) -> None:
    """Brings files, or the entries of folders, to the disk."""

    def sync(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(SYNCS) as pool:
        for _ in pool.map(sync, paths):
            pass


def _unpack_val(archive: Path, folder: Path, class_of: dict[int, str], spec: ImageNet) -> None:
    """All images into class folders below a hidden folder, which is renamed when it is whole."""
    part = folder / ".val.part"
    scratch = part / ".member"  # in which a file is written; it then gets its name
    with (
        _reading(archive),
        tarfile.open(archive, "r:") as tar,
        _bar(archive, "unpacking", archive.stat().st_size) as advance,
    ):
        for wnid in set(class_of.values()):
            (part / wnid).mkdir(parents=True, exist_ok=True)
        names: set[str] = set()
        for member in tar:
            name = VAL_NAME.fullmatch(member.name)
            if name is None or int(name[1]) not in class_of:
                raise DataError(f"{shown(archive)} holds {member.name!r}, which is no validation image")
            if member.name in names:
                raise DataError(f"{shown(archive)} holds {member.name!r} twice: fetch it again")
            names.add(member.name)
            target = part / class_of[int(name[1])] / member.name
            if not target.exists() or target.stat().st_size != member.size:  # another size: the machine went down
                scratch.write_bytes(_content(archive, tar, member))
                scratch.replace(target)
            advance(member.size)
        if len(names) != spec.test_images:
            raise DataError(f"{shown(archive)} holds {len(names)} images, not {spec.test_images}: fetch it again")
        scratch.unlink(missing_ok=True)
        files = [path for path in part.rglob("*") if not path.is_dir()]
        odd = next((path for path in files if path.name not in names), None)
        if odd is not None or len(files) != len(names):
            raise DataError(f"{shown(odd or part)} is not of {archive.name}: remove {shown(part)} and repeat")
        _sync(files)
        _sync(part.iterdir())
        part.rename(folder / "val")
        _sync([folder])


def _content(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """A plain file of a bounded size."""
    file = tar.extractfile(member) if member.isreg() and member.size <= LARGEST_FILE else None
    if file is None:
        raise DataError(f"{shown(archive)}: {member.name!r} is no plain file of at most {LARGEST_FILE >> 20} MiB")
    content = file.read()
    if len(content) != member.size:
        raise DataError(f"{shown(archive)} ends inside {member.name!r}: fetch it again")
    return content


def validation_classes(devkit: Path, spec: ImageNet) -> dict[int, str]:
    """The WordNet id of each validation image, by its number, from 1 on.

    Raises:
        DataError: the devkit does not hold the two tables, or they do not fit each other.
    """
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(f"reading {devkit.name} needs scipy ({error}): pip install scipy") from None
    folder = devkit.name.removesuffix(".tar.gz")
    with _reading(devkit), tarfile.open(devkit, "r:gz") as tar:
        tables = []
        for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
            try:
                file = tar.extractfile(f"{folder}/data/{name}")
            except KeyError:
                file = None
            if file is None:
                raise DataError(f"{shown(devkit)} holds no {folder}/data/{name}: fetch it again")
            tables.append(file.read(LARGEST_TABLE))
    try:
        synsets = loadmat(io.BytesIO(tables[0]), squeeze_me=True)["synsets"]
        leaves = [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets if int(row["num_children"]) == 0]
        wnid_of = dict(leaves)
        numbers = [int(line) for line in tables[1].split()]
        found = {image: wnid_of[number] for image, number in enumerate(numbers, start=1)}
    except Exception as error:  # the reader of .mat files raises nearly everything where one is damaged
        raise DataError(f"{shown(devkit)}: its tables cannot be read ({error!r}): fetch it again") from None
    odd = next((wnid for wnid in wnid_of.values() if not WNID.fullmatch(wnid)), None)
    if odd is not None or len(set(wnid_of.values())) != spec.num_classes or len(found) != spec.test_images:
        raise DataError(
            f"{shown(devkit)} tells of {len(found)} images and {len(wnid_of)} classes, not {spec.test_images} and "
            f"{spec.num_classes}: fetch it again"
        )
    return found
