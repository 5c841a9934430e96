"""Random images of any shape, for benchmarks and tests of speed; there is nothing in them to learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import Purpose, sample_words
from .dataset import Published
from .errors import DataError
from .memory import check_memory
from .option_types import check_options, option_name
from .split import Split

MOST_IMAGES = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticShape:
    """How many random images of which shape (data set `synthetic` only)."""

    train_images: int = 2048
    """Images in the training set."""

    test_images: int = 256
    """Images in the test set."""

    channels: int = 3
    """Channels of an image."""

    num_classes: int = 10
    """Classes; labels are random."""

    def __post_init__(self) -> None:
        check_options(self, "data.synthetic", DataError)
        for name, most in (
            ("train_images", MOST_IMAGES),
            ("test_images", MOST_IMAGES),
            ("channels", 64),
            ("num_classes", 100_000),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise DataError(
                    f"{option_name('data.synthetic', name)} must be at least 1 and at most {most}, not "
                    f"{getattr(self, name)}"
                )


def make_synthetic(shape: SyntheticShape, image_size: int) -> Published:
    """Random bytes and labels, the same on every machine."""
    if image_size < 1:
        raise DataError(f"data.image-size must be at least 1, not {image_size}")
    total = shape.train_images + shape.test_images
    check_memory(
        total * image_size * image_size * shape.channels,
        f"data.synthetic: {total} images of {image_size}x{image_size} pixels",
        "lower --data.synthetic.train-images or --data.image-size",
    )
    labels = sample_words(torch.arange(total), seed=0, purpose=Purpose.SYNTHETIC)[0] % shape.num_classes
    # Bytes from torch's generator: 2,048 images of 224 pixels are 300 million numbers, which Philox in plain
    # PyTorch would take a minute for, and nothing depends on them.
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (total, image_size, image_size, shape.channels), dtype=torch.uint8, generator=generator
    )
    everything = Split(images, labels)
    train, test = torch.arange(total).split([shape.train_images, shape.test_images])
    return Published(everything.take(train), everything.take(test), shape.num_classes, "made, not read")
