"""ImageNet (ILSVRC 2012): 1,281,167 + 50,000 photographs of 1,000 classes, in the usual folders or as .beton files.

ROOT/imagenet/train/nXXXXXXXX/FILE   one folder for each WordNet id
              val/nXXXXXXXX/FILE     the validation set, which everybody tests on, sorted into the same folders
or, where there are no folders,
ROOT/imagenet/train.beton, val.beton

Its licence forbids fetching it for others; `imagenet_archives` unpacks the official archives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from .dataset import Published
from .errors import DataError, MissingDataError
from .folder_index import shown
from .image_folder import FolderSource
from .own_images import Layout, beton_beside, class_count, find_layout, open_part
from .source import ImageSource
from .streamed import StreamedSplit

WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Archive:
    """One published file."""

    name: str
    md5: str  # the authors publish no better digest


@dataclass(frozen=True, slots=True)
class ImageNet:
    """What the published data set holds."""

    num_classes: int = 1000
    train_images: int = 1_281_167
    test_images: int = 50_000
    side: int = 224
    test_crop: float = 0.875
    name: str = "imagenet"
    train: Archive = Archive("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e")
    val: Archive = Archive("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622")
    devkit: Archive = Archive("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf")


PUBLISHED = ImageNet()


def imagenet_layout(root: Path, spec: ImageNet = PUBLISHED) -> Layout | None:
    """Where both splits are, in root/NAME, or in root itself if its folders are named like classes; else None."""
    layout = find_layout(root / spec.name)
    if (
        layout is None
        and (root / "train").is_dir()
        and any(WNID.fullmatch(path.name) for path in (root / "train").iterdir())
    ):
        layout = find_layout(root)
    return None if layout is None or layout.test is None else layout


def read_imagenet(
    root: Path, *, image_size: int | None, test_crop: float | None, spec: ImageNet = PUBLISHED
) -> Published:
    """The data set below `root`, its images left where they are.

    Args:
        root: holds the folder NAME, or is that folder.
        image_size: pixels on a side; by default 224.
        test_crop: share of the shorter side that test images show; by default 0.875, the usual 224 out of 256.
        spec: what must be there.

    Raises:
        DataError: it is not there, or not the published classes and numbers of images; or as `FolderSource.checked`
            and `validate` say.
    """
    layout = imagenet_layout(root, spec)
    if layout is None:
        raise MissingDataError(instructions(root, spec))
    train, test = checked_imagenet(layout, spec)
    side = spec.side if image_size is None else image_size
    share = spec.test_crop if test_crop is None else test_crop
    splits = (
        StreamedSplit(train, torch.arange(len(train)), (side, side)),
        StreamedSplit(test, torch.arange(len(test)), (side, side), share=share),
    )
    beton = beton_beside(layout.train.parent)
    return Published(*splits, spec.num_classes, str(layout), beton)


def checked_imagenet(layout: Layout, spec: ImageNet) -> tuple[ImageSource, ImageSource]:
    """Both splits, with the published classes and numbers of images.

    Raises:
        DataError: says what differs.
    """
    train, test = (open_part(part) for part in layout.parts)
    for source, part in ((train, layout.train), (test, layout.parts[-1])):
        if isinstance(source, FolderSource):
            odd = next((name for name in source.classes if not WNID.fullmatch(name)), None)
            if odd is not None:
                raise DataError(
                    f"{shown(part / odd)} is no folder of {spec.name}, whose classes are like n01440764: move it"
                )
    count = class_count([train, test], layout)
    if count != spec.num_classes:
        raise DataError(
            f"{shown(layout.train)} holds {count} classes, not the {spec.num_classes} of {spec.name}: "
            f"{_another(layout.train, spec)}"
        )
    for source, part, images in ((train, layout.train, spec.train_images), (test, layout.parts[-1], spec.test_images)):
        if len(source) != images:
            raise DataError(
                f"{shown(part)} holds {len(source)} images, not the {images} of {spec.name}: {_another(part, spec)}"
            )
    return train, test


def _another(part: Path, spec: ImageNet) -> str:
    """What to do about a folder or file that is not as published; while it is there, nothing is unpacked."""
    return (
        f"remove {shown(part)} and repeat `hardfast data prepare {spec.name}`, which unpacks the official archive, or "
        "train on it as your own images, with --data.name folder"
    )


def instructions(root: Path, spec: ImageNet) -> str:
    """One line: how to get the data set."""
    place, files = shown(root / spec.name), f"{spec.train.name}, {spec.val.name} and {spec.devkit.name}"
    return (
        f"{spec.name} was not found in {place}, and its licence forbids fetching it for you: register at "
        f"https://image-net.org/download-images, put {files} there (or the class folders as train/ and val/), and run "
        f"`hardfast data prepare {spec.name} --root {shown(root)}`"
    )
