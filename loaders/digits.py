"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, embedded in the package, nothing to download."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..kernels import Purpose
from .dataset import Published, cut
from .errors import DataError
from .memory import check_memory
from .split import checked_split

CLASSES = 10
IMAGES, TEST_IMAGES = 1797, 360
_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def read_digits(image_size: int) -> Published:
    """1,437 training and 360 test images, enlarged to `image_size` and three equal channels.

    The set has no official split; the test images are drawn once with a fixed seed, whatever the run's seed. Grey
    levels 0..16 become bytes round(level * 255 / 16); each pixel becomes a square (nearest neighbour).

    Raises:
        DataError: image_size is not a multiple of 8, scikit-learn is not installed, or the file in it is not the
            published one.
    """
    if image_size % 8 or image_size <= 0:
        raise DataError(f"data.image-size {image_size} does not fit the 8x8 digits: choose 8, 16, 24 or 32")
    check_memory(
        2 * IMAGES * image_size**2 * 3, f"digits of {image_size}x{image_size} pixels", "lower --data.image-size"
    )
    table = np.loadtxt(_embedded_file(), delimiter=",").astype(np.uint8)  # 64 grey levels and a label a line
    levels, labels = table[:, :-1].reshape(-1, 8, 8), np.ascontiguousarray(table[:, -1])
    found = hashlib.sha256(levels.tobytes() + labels.tobytes()).hexdigest()
    if found != _SHA256:
        raise DataError(f"scikit-learn's digits have sha256 {found}, not {_SHA256}: reinstall scikit-learn")
    pixels = torch.from_numpy(np.rint(levels.astype(np.float64) * 255 / 16).astype(np.uint8))
    scale = image_size // 8
    images = pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    images = images[..., None].expand(*images.shape, 3).contiguous()
    everything = checked_split(
        images, torch.from_numpy(labels.astype(np.int64)), num_classes=CLASSES, source="scikit-learn's digits"
    )
    train, test = cut(everything, TEST_IMAGES, seed=0, purpose=Purpose.TEST_SPLIT, name="the digits' test set")
    return Published(train, test, CLASSES, "scikit-learn")


def _embedded_file() -> Path:
    """What `sklearn.datasets.load_digits` reads. Not through it: its imports take longer than to train an epoch.

    Raises:
        DataError: scikit-learn is not installed.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("data set digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    return Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
