"""Sound .beton files for tests, made by the writer's functions in this process, and the real FFCV in another one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hardfast.loaders.beton.child import MemorySource
from hardfast.loaders.beton.origin import Origin, fingerprint
from hardfast.loaders.beton.publish import publish, temporary
from hardfast.loaders.beton.records import write_records
from hardfast.loaders.beton.source import sidecar
from hardfast.loaders.beton.writer import into_memory
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.source import ImageSource
from hardfast.loaders.split import Split

SIZE = (64, 96)  # (height, width)


@dataclass(frozen=True)
class Loaded:
    """The upper left corner of each image of a file."""

    images: np.ndarray  # uint8 [N, *SIZE, 3]
    labels: np.ndarray  # [N]
    errors: dict[int, str]  # what was raised, by record; these have no pixels and the label -1


def picture(number: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Picture `number`, uint8 [H, W, 3]: waves with a little noise; of many sizes where none is given."""
    draw = np.random.default_rng(number)
    height, width = (int(side) for side in draw.integers(100, 400, 2)) if size is None else size
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / a + columns / b) for a, b in draw.uniform(5, 30, (3, 2))]
    noise = draw.integers(-4, 5, (height, width, 3))
    return np.clip(127 + 120 * np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)


def mixed_folder(root: Path, images: int, size: tuple[int, int] | None = SIZE, *, classes: int = 3) -> FolderSource:
    """Pictures, every other one a PNG, the others JPEGs: some progressive, some grey."""
    for number in range(images):
        folder = root / f"class-{number * classes // images}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture(number, size))
        if number % 2:
            image.save(folder / f"{number:04d}.png", compress_level=1)
        else:
            image = image.convert("L") if number % 8 == 6 else image
            image.save(folder / f"{number:04d}.jpg", quality=85, progressive=number % 8 == 4)
    return FolderSource.open(root)


def memory_source(images: np.ndarray, labels: torch.Tensor | None = None) -> MemorySource:
    """Images in plain pixels, uint8 [N, H, W, C], with labels that by default count up to 9 again and again."""
    labels = torch.arange(len(images)) % 10 if labels is None else labels
    memory = into_memory(Split(torch.from_numpy(images), labels))
    try:
        return MemorySource(memory["memory"], tuple(memory["shape"]), "images in memory")
    finally:
        os.close(memory["memory"])


def write_plainly(source: ImageSource, path: Path) -> Path:
    """A .beton file with its sidecar, without a process of its own."""
    write_records(source, path, max_side=None, workers=1, advance=lambda done: None)
    seal(path)
    return path


def write_with_origin(source: ImageSource | Split, path: Path, *, max_side: int | None = None) -> Path:
    """The same with the note of what it was made of, as `write_beton` leaves it."""
    made_of = fingerprint(source)
    assert made_of is not None
    if isinstance(source, Split):
        source = memory_source(source.images.numpy(), source.labels)
    write_records(source, temporary(path), max_side=max_side, workers=1, advance=lambda done: None)
    publish(path, digest_of(temporary(path)), Origin(made_of, max_side))
    return path


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seal(path: Path) -> None:
    """Writes the sidecar of a file as it is now."""
    sidecar(path).write_text(f"{digest_of(path)}  {path.name}\n")


def run_ffcv(
    folder: Path, load: list[Path], *, write: tuple[Path, list[np.ndarray]] | None = None, seconds: int = 300
) -> list[Loaded]:
    """What the loader ffcv makes of files, in a process with limits; see `beton_ffcv`.

    Args:
        folder: for its results.
        load: the files, all of images of SIZE or larger.
        write: where FFCV's DatasetWriter writes these pictures, with labels 1, 4, 7, ..., before any file is loaded.
        seconds: after which it is killed.
    """
    job = {"load": list(map(str, load)), "size": SIZE, "out": str(folder / "ffcv.npz"), "write": None}
    if write is not None:
        job |= {"write": str(write[0]), "pictures": str(folder / "pictures.npz")}
        np.savez(folder / "pictures.npz", *write[1])
    program = Path(__file__).with_name("beton_ffcv.py")
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(job)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    with np.load(folder / "ffcv.npz") as found:
        return [
            Loaded(
                found[f"images-{number}"],
                found[f"labels-{number}"],
                {int(record): said for record, said in json.loads(str(found[f"errors-{number}"])).items()},
            )
            for number in range(len(load))
        ]
