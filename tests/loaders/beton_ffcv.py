"""The real FFCV in a process of its own with limits: `python beton_ffcv.py JOB`, started by `beton_files.run_ffcv`.

One Loader, which takes seconds to compile, serves all files: for every further file it gets a new Reader and a new
memory manager, which is all that its constructor derives from a file of the same shape.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import numpy as np

SECONDS_PER_FILE = 30


class Pictures:
    """An indexed data set as FFCV wants it, of the pictures in an archive of arrays."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.images = [arrays[f"arr_{number}"] for number in range(len(arrays))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return self.images[number], 3 * int(number) + 1


def write(path: str, pictures: Pictures) -> None:
    """A file of FFCV's own writer, in two processes and many pages."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.writer import DatasetWriter

    IMAGE_MODES["raw"]  # numba compiles this for seconds; here once, and not in each of the writer's processes
    np.random.seed(3)
    fields = {"image": RGBImageField(write_mode="proportion", compress_probability=0.4), "label": IntField()}
    DatasetWriter(path, fields, page_size=1 << 21, num_workers=2).from_indexed_dataset(pictures, chunksize=3)


def load(paths: list[str]) -> dict[str, np.ndarray]:
    """All images and labels of each file."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    results: dict[str, np.ndarray] = {}
    loader = None
    for number, path in enumerate(paths):
        signal.alarm(SECONDS_PER_FILE)  # a thread of FFCV that died leaves its Loader waiting for ever
        if loader is None:
            loader = Loader(
                path,
                batch_size=7,
                num_workers=1,
                order=OrderOption.SEQUENTIAL,
                drop_last=False,
                pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
            )
            shape = loader.reader.metadata["f0"][["height", "width"]]
        loader.reader = Reader(path)
        if not np.array_equal(loader.reader.metadata["f0"][["height", "width"]], shape):
            raise SystemExit(f"{path} has images of other sizes")
        loader.memory_manager = OSCacheManager(loader.reader)
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        results[f"images-{number}"] = np.concatenate([images for images, _ in batches])
        results[f"labels-{number}"] = np.concatenate([labels for _, labels in batches]).reshape(-1)
    signal.alarm(0)
    return results


def main() -> None:
    """Does the job of the command line."""
    job = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    if job["write"]:
        write(job["write"], Pictures(job["pictures"]))
    results = load(job["load"])
    with Path(job["out"]).open("wb") as file:
        np.savez(file, **results)


if __name__ == "__main__":
    main()
