"""The loader ffcv in a process of its own with limits: `python beton_ffcv.py JOB`, started by `beton_files.run_ffcv`.

One FfcvBackend, which takes seconds to compile, serves all files: for every further one it gets that as its source, a
new Reader and a new memory manager, which is all that its constructor derives from a file.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

SECONDS_PER_FILE = 60
BATCH = 7


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


def load(paths: list[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The upper left corner of all images of each file, their labels, and what was raised instead."""
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    from hardfast.loaders.beton.source import BetonSource
    from hardfast.loaders.streaming.ffcv_backend import FfcvBackend
    from hardfast.loaders.streaming.spec import FeedSpec

    height, width = size
    results: dict[str, np.ndarray] = {}
    backend = None
    for number, path in enumerate(paths):
        signal.alarm(SECONDS_PER_FILE)  # whatever hangs is a failure
        source = BetonSource.open(Path(path))
        if backend is None:
            spec = FeedSpec(backend="ffcv", place=source.place, batch_size=BATCH, height=height, width=width, workers=1)
            backend = FfcvBackend(spec, source)
        backend.source, backend.loader.reader = source, Reader(path)
        backend.loader.memory_manager = OSCacheManager(backend.loader.reader)
        images, labels = np.zeros((len(source), height, width, 3), np.uint8), np.full(len(source), -1)
        errors = deliver(backend, images, labels)
        results |= {f"images-{number}": images, f"labels-{number}": labels}
        results[f"errors-{number}"] = np.array(json.dumps(errors))
    signal.alarm(0)
    return results


def deliver(backend: Any, images: np.ndarray, labels: np.ndarray) -> dict[int, str]:
    """Puts what is delivered into its rows; after an error the epoch begins again, without the record that it names."""
    from hardfast.loaders.errors import DataError

    left, errors = list(range(len(images))), {}
    while left:
        corner = [0, 0, *images.shape[1:3]]
        try:
            for part in backend.batches(np.array(left), np.tile(corner, (len(left), 1))):
                if part.index.tolist() != left[: len(part.index)]:
                    raise SystemExit(f"records {part.index.tolist()} came for {left[:BATCH]}")
                images[part.index], labels[part.index] = part.images, part.labels
                left = left[len(part.index) :]
        except DataError as error:
            record = next((one for one in left[:BATCH] if f"record {one} of {backend.source}" in str(error)), None)
            if record is None:
                raise
            errors[record] = str(error)
            left.remove(record)
    return errors


def main() -> None:
    """Does the job of the command line."""
    job = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    if job["write"]:
        write(job["write"], Pictures(job["pictures"]))
    results = load(job["load"], tuple(job["size"]))
    with Path(job["out"]).open("wb") as file:
        np.savez(file, **results)


if __name__ == "__main__":
    main()
