"""Small data sets in the real file formats, with their digests, made in a test's folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardfast.loaders import DataError
from hardfast.loaders.cifar import CIFAR10, CIFAR100, PIXEL_BYTES, Cifar
from hardfast.loaders.fashion_mnist import IdxFile
from hardfast.loaders.imagenet import Archive, ImageNet
from hardfast.loaders.tiny_imagenet import TinyImageNet


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes: magic (type 8, rank), big-endian dimensions, data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(path: Path, array: np.ndarray) -> IdxFile:
    """Writes a gzipped IDX file and returns its description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content))
    return IdxFile(path.name, hashlib.sha256(content).hexdigest(), array.shape)


def fashion_files(folder: Path, images: int = 12) -> dict[str, IdxFile]:
    """The four files of a tiny Fashion-MNIST and their descriptions, in place of the published `FILES`."""
    draw = np.random.default_rng(0)
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = draw.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        labels = (np.arange(images) % 10).astype(np.uint8)
        files[f"{split} images"] = write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
        files[f"{split} labels"] = write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return files


def cifar_members(spec: Cifar, records: int = 20, bad_label: int | None = None) -> dict[str, bytes]:
    """Binary files of a tiny CIFAR: random planes, labels counting up, perhaps one label that is no class."""
    draw = np.random.default_rng(1)
    members = {}
    for name in (*spec.train, *spec.test):
        table = draw.integers(0, 256, (records, spec.label_bytes + PIXEL_BYTES), dtype=np.uint8)
        table[:, : spec.label_bytes] = (np.arange(records) % spec.num_classes)[:, None]
        if bad_label is not None:
            table[7, spec.label_bytes - 1] = bad_label
        members[name] = table.tobytes()
    return members


def describe(spec: Cifar, members: dict[str, bytes]) -> Cifar:
    """The published description with the digests of other members."""
    digest = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    return replace(
        spec,
        train={name: digest[name] for name in spec.train},
        test={name: digest[name] for name in spec.test},
    )


def write_cifar(spec: Cifar, root: Path, members: dict[str, bytes], *, archive: bool) -> Path:
    """The extracted folder, or the archive, under root/NAME."""
    folder = root / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    if not archive:
        for name, content in members.items():
            (folder / spec.folder).mkdir(exist_ok=True)
            (folder / spec.folder / name).write_bytes(content)
        return folder / spec.folder
    with tarfile.open(folder / spec.archive, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{spec.folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder / spec.archive


SPECS = {"cifar10": CIFAR10, "cifar100": CIFAR100}

SMALL_TINY_IMAGENET = TinyImageNet(num_classes=3, train_per_class=4, test_images=5)
WNIDS = ("n02000000", "n01000000", "n03000000")  # not in sorted order, as in the published wnids.txt


def tiny_imagenet_pixels(wnid: str, number: int) -> tuple[int, int, int]:
    """The one colour of a made image."""
    return 60 * WNIDS.index(wnid), 30 * number, 200


def write_jpeg(path: Path, colour: tuple[int, int, int] | int, side: int = 64) -> None:
    """One colour, or one grey level, all over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", (side, side), colour).save(path, "JPEG", quality=95)


def write_tiny_imagenet(root: Path) -> Path:
    """The extracted folder of a data set like `SMALL_TINY_IMAGENET`, under root/tiny-imagenet; returns the folder.

    Training image 3 of each class is grey. Validation images are of classes 2, 1, 0, 0, 0 in the order of `WNIDS`.
    """
    folder = root / "tiny-imagenet" / "tiny-imagenet-200"
    for wnid in WNIDS:
        for number in range(4):
            colour = 40 if number == 3 else tiny_imagenet_pixels(wnid, number)
            write_jpeg(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", colour)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    lines = []
    for number, wnid in enumerate(WNIDS[index] for index in (2, 1, 0, 0, 0)):
        write_jpeg(folder / "val" / "images" / f"val_{number}.JPEG", tiny_imagenet_pixels(wnid, number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write_jpeg(folder / "test" / "images" / "test_0.JPEG", 0)  # without labels, never read
    return folder


def zip_folder(folder: Path) -> Path:
    """The folder as the published archive beside it; the folder itself is kept."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder.parent))
    return archive


@cache
def photographs() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's two sample photographs, uint8 [427, 640, 3]."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return china, flower


def photograph(number: int, height: int, width: int) -> np.ndarray:
    """A part of one of the sample photographs, another one for each number: uint8 [height, width, 3]."""
    whole = photographs()[number % 2]
    draw = np.random.default_rng(number)
    top, left = (int(draw.integers(have - want + 1)) for have, want in zip(whole.shape, (height, width), strict=False))
    return whole[top : top + height, left : left + width]


def write_photographs(
    folder: Path,
    *,
    classes: Sequence[str] = ("bird", "cat"),
    per_class: int = 4,
    size: tuple[int, int] | None = (24, 32),
    suffix: str = "png",
    first: int = 0,
) -> Path:
    """An image folder of cut photographs: FOLDER/CLASS/0.png and so on; without a size, of several sizes."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = size or (24 + number % 8 * 4, 40 - number % 5 * 3)
            pixels = photograph(first + 100 * label + number, height, width)
            Image.fromarray(pixels).save(folder / name / f"{number}.{suffix}", quality=90)
    return folder


SMALL_IMAGENET = ImageNet(num_classes=3, train_images=12, test_images=6)


def imagenet_image(wnid: str, number: int) -> bytes:
    """A JPEG, cut from the sample photographs, another one for each class and number."""
    buffer = io.BytesIO()
    seed = 1000 * WNIDS.index(wnid) + number
    Image.fromarray(photograph(seed, 30 + number, 40)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar archive; gzipped if it is named so."""
    with tarfile.open(path, "w:gz" if path.name.endswith(".gz") else "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def imagenet_members() -> dict[str, dict[str, bytes]]:
    """What the three archives of a data set like `SMALL_IMAGENET` hold, by their places in its spec.

    Validation images 1 to 6 are of the classes 2, 2, 3, 1, 1, 3 of the devkit, which are WNIDS in that order.
    """
    from scipy.io import savemat

    train = {}
    for wnid in WNIDS:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(4):
                content = imagenet_image(wnid, number)
                entry = tarfile.TarInfo(f"{wnid}_{number}.JPEG")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        train[f"{wnid}.tar"] = buffer.getvalue()
    truth = (2, 2, 3, 1, 1, 3)
    val = {
        f"ILSVRC2012_val_{image:08d}.JPEG": imagenet_image(WNIDS[label - 1], 10 + image)
        for image, label in enumerate(truth, start=1)
    }
    rows = [(number, wnid, 0) for number, wnid in enumerate(WNIDS, start=1)] + [
        (4, "n09000000", 3)
    ]  # a class of classes
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", float), ("WNID", object), ("num_children", float)])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    folder = "ILSVRC2012_devkit_t12/data"
    devkit = {
        f"{folder}/meta.mat": meta.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{label}\n" for label in truth).encode(),
    }
    return {"train": train, "val": val, "devkit": devkit}


def write_imagenet_archives(folder: Path, members: dict[str, dict[str, bytes]]) -> ImageNet:
    """The three archives, and the description that they fit."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {}
    for part, files in members.items():
        name = getattr(SMALL_IMAGENET, part).name
        content = write_tar(folder / name, files).read_bytes()
        archives[part] = Archive(name, hashlib.md5(content).hexdigest())
    return replace(SMALL_IMAGENET, **archives)


def refused(call: Callable[[], object], message: str) -> str:
    """What a call says that must raise a DataError of one line."""
    with pytest.raises(DataError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def small_imagenet(root: Path) -> ImageNet:
    """Its folders, as somebody else has unpacked them."""
    for split, count in (("train", 4), ("val", 2)):
        write_photographs(root / "imagenet" / split, classes=WNIDS, per_class=count, size=None, suffix="JPEG")
    return SMALL_IMAGENET
