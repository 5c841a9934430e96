"""Photographs as ImageNet has them, for benchmarks and tests: JPEG files of 500x375 pixels and about 110 kB.

They are cut from the colour photographs that the wheels of scikit-learn and scikit-image carry; nothing is downloaded.
Needs those two packages and Pillow.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engine import console
from ..engine.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTOGRAPHS = {
    "astronaut": "skimage/data/astronaut.png",
    "cat": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "dahlia": "sklearn/datasets/images/flower.jpg",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "pagoda": "sklearn/datasets/images/china.jpg",
    "rocket": "skimage/data/rocket.jpg",
}
"""Name of the class, and the file below the folder of installed packages. The other pictures that scikit-image carries
are grey, drawn, or taken through a microscope or a telescope."""

WIDTH, HEIGHT = 500, 375
AREA = (0.6, 1.0)
"""Of the largest part of a photograph with that ratio of the sides, what a crop shows."""
QUALITY, SUBSAMPLING = 96, 0
"""Of the JPEGs: colours in full resolution (4:4:4). So they have 107 kB on average, where ImageNet's have 110."""
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image"}


@dataclass(frozen=True, slots=True)
class PhotographSet:
    """What was written.

    Attributes:
        root: of the image folder.
        images: in all its splits.
        mean_bytes: of a file.
    """

    root: Path
    images: int
    mean_bytes: float


def why_no_photographs() -> str | None:
    """What keeps photographs from being cut here, in one line; None where nothing does."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    return f"no photographs without {' and '.join(missing)}: pip install {' '.join(missing)}" if missing else None


def write_photographs(root: Path, *, train: int, val: int = 0, seed: int = 0) -> PhotographSet:
    """Writes ROOT/train/CLASS/NUMBER.jpg and, where wanted, ROOT/val/CLASS/NUMBER.jpg; a class is one photograph's.

    Image i of a split is of class i modulo 7. Its pixels are a function of the seed, the split and i; its bytes also of
    the version of Pillow.

    Args:
        root: of the image folder, which is made; it must not hold the splits yet.
        train, val: images in each split.
        seed: of the crops.

    Raises:
        UsageError: a package is missing, a number is negative or there are no images, or there is such a folder.
    """
    if (why := why_no_photographs()) is not None:
        raise UsageError(why)
    if min(train, val) < 0 or not train + val:
        raise UsageError(f"{train} training and {val} validation photographs cannot be cut: choose at least one")
    splits = {"train": train, "val": val}
    for split in splits:
        if (root / split).exists():
            raise UsageError(f"{root / split} is there already: choose another folder, or remove it")
    written = 0
    with console.bar(train + val, "cutting photographs", "images") as bar:
        for place, (split, images) in enumerate(splits.items()):
            for number in range(images):
                name = list(PHOTOGRAPHS)[number % len(PHOTOGRAPHS)]
                path = root / split / name / f"{number:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = cut(photograph(name), np.random.default_rng((seed, place, number)))
                picture.save(path, quality=QUALITY, subsampling=SUBSAMPLING)
                written += path.stat().st_size
                bar.update(1)
    return PhotographSet(root, train + val, written / (train + val))


@cache
def photograph(name: str) -> Image:
    """One of `PHOTOGRAPHS`, whole, as RGB."""
    from PIL import Image

    file = PHOTOGRAPHS[name]
    package, _, inside = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{file} is not installed: pip install {PACKAGES[package]}")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError:
        raise UsageError(f"{path} cannot be read: install {PACKAGES[package]} again") from None


def cut(image: Image, draw: np.random.Generator) -> Image:
    """A part of a photograph at random, scaled to 500x375 pixels."""
    from PIL.Image import Resampling

    width, height = image.size
    scale = min(width / WIDTH, height / HEIGHT) * draw.uniform(*AREA) ** 0.5
    left, top = draw.uniform(0, width - scale * WIDTH), draw.uniform(0, height - scale * HEIGHT)
    box = (left, top, left + scale * WIDTH, top + scale * HEIGHT)
    return image.resize((WIDTH, HEIGHT), Resampling.BICUBIC, box)
