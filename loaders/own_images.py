"""The data set `folder`: the user's own images, ROOT/train/CLASS/FILE and ROOT/val/CLASS/FILE (or ROOT/test)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..kernels import Purpose
from .beton.source import BetonSource, sidecar, validate
from .dataset import Published, cut
from .errors import DataError, MissingDataError
from .folder_index import is_image, shown, visible
from .image_folder import FolderSource
from .source import ImageSource
from .streamed import StreamedSplit, common_size

SIZE = 224  # pixels on a side, where images are of several sizes and none is asked for
TEST_SHARE = 10  # one in so many images is a test image, where nobody set any apart
TRAIN_BETON, TEST_BETON = "train.beton", "val.beton"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the two splits of an image folder lie: folders, or .beton files.

    Attributes:
        train: of the training images; of all images where `test` is None.
        test: of the test images.
    """

    train: Path
    test: Path | None

    @property
    def parts(self) -> Sequence[Path]:
        """Both, or the one there is."""
        return [self.train] if self.test is None else [self.train, self.test]

    def __str__(self) -> str:
        """For the line that says where the data set was read from."""
        if self.test is None:
            text = f"{shown(self.train)}, a tenth of it set apart at random as the test set"
        else:
            text = f"{shown(self.train)} and {self.test.name}"
        alone = [part for part in self.parts if part.is_file() and not sidecar(part).exists()]
        lacks = f" (without {sidecar(alone[0]).name}, damaged pixels would not be noticed)" if alone else ""
        return text + lacks


def find_layout(root: Path) -> Layout | None:
    """How the images below `root` are laid out; None where there are none. Nothing is read but the root itself."""
    if (root / "train").is_dir():
        test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        return Layout(root / "train", test)
    train, test = root / TRAIN_BETON, root / TEST_BETON
    if train.is_file() and test.is_file():
        return Layout(train, test)
    try:
        has_folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir())
    except OSError:
        return None
    if has_folders:
        return Layout(root, None)
    return Layout(train, None) if train.is_file() else None


def holds_images(part: Path) -> bool:
    """Whether a part of a layout is a file, or a folder with an image right in one of its class folders."""
    if not part.is_dir():
        return True
    try:
        folders = [entry.path for entry in os.scandir(part) if visible(entry.name) and entry.is_dir()]
        return any(is_image(entry.name) for folder in folders for entry in os.scandir(folder) if visible(entry.name))
    except OSError:
        return False


def read_image_folder(root: Path, *, image_size: int | None, test_crop: float | None) -> Published:
    """The data set below `root`, its images left where they are.

    Args:
        root: holds train/ and val/ or test/, or else the class folders themselves: then one in ten images, drawn with
            a fixed seed, is a test image. Or it holds train.beton and val.beton alone.
        image_size: pixels on a side; by default the images' own size where all have one, else 224.
        test_crop: share of the shorter side that test images show; by default 1.

    Raises:
        DataError: there is no image folder, it changed since it was indexed, a file is no image, there are fewer than
            two classes, or the test set has other classes than the training set.
    """
    layout = find_layout(root)
    if layout is None:
        raise MissingDataError(
            f"{shown(root)} holds no images: --data.root must name a folder with train/CLASS/FILE and val/CLASS/FILE, "
            "or with CLASS/FILE"
        )
    sources = [open_part(part) for part in layout.parts]
    num_classes = class_count(sources, layout)
    if num_classes < 2:
        raise DataError(
            f"{shown(layout.train)} holds one class, and a classifier needs two: put images in another folder"
        )
    whole = [StreamedSplit(source, torch.arange(len(source)), _size(sources, image_size)) for source in sources]
    if len(whole) == 1:
        tenth = max(1, len(whole[0]) // TEST_SHARE)
        whole = list(cut(whole[0], tenth, seed=0, purpose=Purpose.TEST_SPLIT, name="the test set"))
    train, test = whole
    test = StreamedSplit(test.source, test.records, test.size, share=1.0 if test_crop is None else test_crop)
    return Published(train, test, num_classes, str(layout), beton_beside(root))


def beton_beside(root: Path) -> Path | None:
    """The .beton file of the training images below `root`, if there is one."""
    path = root / TRAIN_BETON
    return path if path.is_file() else None


def _size(sources: Sequence[ImageSource], image_size: int | None) -> tuple[int, int]:
    """(height, width) that both splits are shown at."""
    if image_size is not None:
        return image_size, image_size
    heights = torch.from_numpy(np.concatenate([source.heights for source in sources]))
    widths = torch.from_numpy(np.concatenate([source.widths for source in sources]))
    return common_size(heights, widths) or (SIZE, SIZE)


def open_part(part: Path) -> ImageSource:
    """The images of one split's folder or .beton file: the folder listed, the file validated whole."""
    if part.is_dir():
        return FolderSource.checked(part)
    validate(part)
    return BetonSource.open(part)


def class_count(sources: Sequence[ImageSource], layout: Layout) -> int:
    """The number of classes.

    Raises:
        DataError: the two splits have other classes, or a class has no training image.
    """
    names = [set(source.classes) for source in sources if isinstance(source, FolderSource)]
    if len(names) == 2 and names[0] != names[1]:
        odd = min(names[0] ^ names[1])
        has, lacks = layout.parts if odd in names[0] else reversed(layout.parts)
        raise DataError(
            f"{shown(has)} has a class folder '{shown(odd)}' and {shown(lacks)} has none: both need the same ones"
        )
    count = int(sources[0].labels.max()) + 1 if len(sources[0]) else 0
    for part, source in zip(layout.parts, sources, strict=True):
        check_labels(part, source.labels, count)
    return count


def check_labels(part: Path, labels: npt.NDArray[np.int64], count: int) -> None:
    """Raises DataError unless the labels are those of `count` classes, each of which has one."""
    there = np.unique(labels)
    if len(there) and (there[0] < 0 or there[-1] >= count):
        raise DataError(f"{shown(part)} has labels outside 0..{count - 1}, the training set's: write it again")
    if len(there) < count:
        absent = next((place for place, label in enumerate(there.tolist()) if place != label), len(there))
        raise DataError(f"{shown(part)} has no image of class {absent}, of {count} classes: write it again")
