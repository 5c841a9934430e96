"""Tiny ImageNet from its published folder or zip archive: 100,000 + 10,000 JPEGs of 64x64 pixels, 200 classes.

tiny-imagenet-200/wnids.txt                         the classes
                  train/WNID/images/*.JPEG          500 of each
                  val/images/*.JPEG                 10,000, whose classes are in
                  val/val_annotations.txt           file name, WNID and a box, separated by tabs

Source: Stanford's course CS231n. Its test set has no labels, so the validation set is what everybody tests on.
Classes are numbered in the sorted order of their WordNet ids, as torchvision's ImageFolder numbers folders; wnids.txt
itself is in another order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from .dataset import Published
from .download import check_md5, fetch, kept_part
from .errors import DataError, MissingDataError
from .image_files import Files, FolderFiles, ZipFiles, decode_images
from .split import Split


@dataclass(frozen=True, slots=True)
class TinyImageNet:
    """What the published data set holds."""

    num_classes: int = 200
    train_per_class: int = 500
    test_images: int = 10_000
    side: int = 64
    name: str = "tiny-imagenet"
    folder: str = "tiny-imagenet-200"
    archive: str = "tiny-imagenet-200.zip"
    archive_md5: str = "90528d7ca1a48142e341f4ef8d21d0de"  # no authors' digest is known: public loaders check this one
    archive_bytes: int = 248_100_043
    # In the order in which they are tried: on the way of the second, nothing but the digest protects the archive.
    urls: tuple[str, ...] = ("https://cs231n.stanford.edu", "http://cs231n.stanford.edu")


PUBLISHED = TinyImageNet()


def read_tiny_imagenet(root: Path, spec: TinyImageNet = PUBLISHED) -> Published:
    """The data set from root/NAME or root itself, which holds the extracted folder or the archive.

    Images are uint8 [N, 64, 64, 3]; the test set is the validation set, in the order of its annotations.

    Raises:
        DataError: neither is there, a file is missing or damaged, or there are not as many images as were published.
    """
    files = _files(root, spec)
    number_of = {wnid: number for number, wnid in enumerate(_wnids(files, spec))}
    train = [path for wnid in number_of for path in _train_paths(files, wnid, spec)]
    labels = torch.arange(spec.num_classes).repeat_interleave(spec.train_per_class)
    test, test_labels = _annotated(files, number_of, spec)
    return Published(
        Split(decode_images(files, train, side=spec.side, label=f"{spec.name}, training"), labels),
        Split(decode_images(files, test, side=spec.side, label=f"{spec.name}, test"), torch.tensor(test_labels)),
        spec.num_classes,
        str(files),
    )


def fetch_tiny_imagenet(root: Path, mirror: str | None, spec: TinyImageNet = PUBLISHED) -> None:
    """Downloads the archive to root/NAME, from `mirror` or else Stanford's page, and checks its md5.

    An address that an earlier attempt has a part of comes first. Where an address has just sent a part, no other one is
    asked, since that would begin anew: the next attempt goes on.

    Raises:
        DataError: none of the addresses that were asked gave it; says what is wrong with each.
    """
    target = root / spec.name / spec.archive
    urls = [f"{url}/{spec.archive}" for url in (spec.urls if mirror is None else (mirror,))]
    kept, causes = kept_part(target), []
    for url in sorted(urls, key=lambda url: kept is None or url != kept.url):
        try:
            return fetch(url, target, check=partial(check_md5, md5=spec.archive_md5), largest=spec.archive_bytes)
        except DataError as error:
            causes.append(str(error))
        before, kept = kept, kept_part(target)
        if kept is not None and kept != before:
            break
    raise DataError("; ".join(causes))


def _files(root: Path, spec: TinyImageNet) -> Files:
    for place in (root / spec.name, root):
        if (place / spec.folder).is_dir():
            return FolderFiles(place / spec.folder)
        if (place / spec.archive).exists():
            return ZipFiles(place / spec.archive, spec.folder)
    raise MissingDataError(
        f"{spec.name} was not found: {root} holds neither {spec.folder}/ nor {spec.archive}; "
        f"run `hardfast data prepare {spec.name} --root {root}`, or put {spec.archive} from {spec.urls[0]} there"
    )


def _lines(files: Files, path: str) -> list[str]:
    try:
        return files.read(path).decode().splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{files}: {path} is not text: fetch the data set again") from None


def _wnids(files: Files, spec: TinyImageNet) -> list[str]:
    wnids = sorted({line.strip() for line in _lines(files, "wnids.txt")} - {""})
    if len(wnids) != spec.num_classes:
        raise DataError(
            f"{files}: wnids.txt names {len(wnids)} classes, not {spec.num_classes}: fetch the data set again"
        )
    return wnids


def _train_paths(files: Files, wnid: str, spec: TinyImageNet) -> list[str]:
    folder = f"train/{wnid}/images"
    names = [name for name in files.names(folder) if name.endswith(".JPEG") and not name.startswith(".")]
    if len(names) != spec.train_per_class:
        raise DataError(
            f"{files}: {folder} holds {len(names)} .JPEG files, not {spec.train_per_class}: "
            "extract or fetch the data set again"
        )
    return [f"{folder}/{name}" for name in names]


def _annotated(files: Files, number_of: dict[str, int], spec: TinyImageNet) -> tuple[list[str], list[int]]:
    """(paths, labels) of the validation images."""
    source = "val/val_annotations.txt"
    rows = [line.split("\t") for line in _lines(files, source) if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2 or row[1] not in number_of or "/" in row[0]:
            raise DataError(f"{files}: {source}, line {number}, names no file and class: fetch the data set again")
    names = [row[0] for row in rows]
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if len(names) != spec.test_images or times > 1:
        found = f"names {name} {times} times" if times > 1 else f"names {len(names)} images, not {spec.test_images}"
        raise DataError(f"{files}: {source} {found}: fetch the data set again")
    return [f"val/images/{name}" for name in names], [number_of[row[1]] for row in rows]
