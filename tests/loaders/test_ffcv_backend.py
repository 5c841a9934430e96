"""The real FFCV against Pillow and torchvision: pixels, order, epochs that are given up, damaged records."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

pytest.importorskip("ffcv", exc_type=ImportError)
pytest.importorskip("sklearn")
functional = pytest.importorskip("torchvision.transforms.v2.functional")

from hardfast.loaders.beton.check import read_structure  # noqa: E402
from hardfast.loaders.beton.format import ALLOCATION, JPEG  # noqa: E402
from hardfast.loaders.beton.source import BetonSource  # noqa: E402
from hardfast.loaders.beton.writer import write_beton  # noqa: E402
from hardfast.loaders.errors import DataError  # noqa: E402
from hardfast.loaders.source import Place  # noqa: E402
from hardfast.loaders.streaming.spec import Decoded, FeedSpec  # noqa: E402

from .sources import picture  # noqa: E402

SIZE = (48, 40)
BATCH = 8
PADDING = 32  # bytes of a comment in every JPEG, room for damage that keeps its length
SIZES = [SIZE, (48, 40), (97, 131), (61, 40), (48, 77), (1, 1), (1, 90), (300, 7), (33, 35), (240, 200)]
KINDS = ("raw", "4:4:4", "4:2:0", "grey")


def jpeg(pixels: npt.NDArray[np.uint8], kind: str) -> bytes:
    """A JPEG with a comment behind its first two bytes."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if kind == "grey":
        image.convert("L").save(file, "JPEG", quality=95)
    else:
        image.save(file, "JPEG", quality=95, subsampling=kind)
    content = file.getvalue()
    return content[:2] + b"\xff\xfe" + (PADDING + 2).to_bytes(2, "big") + bytes(PADDING) + content[2:]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> BetonSource:
    """40 records: every size in every kind; labels 0 to 3 are the kinds."""
    root = tmp_path_factory.mktemp("ffcv")
    for kind in range(len(KINDS)):
        for number, size in enumerate(SIZES):
            pixels = picture(10 * kind + number, size)
            path = root / "train" / f"class-{kind}" / f"{number}.{'jpg' if kind else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind:
                path.write_bytes(jpeg(pixels, KINDS[kind]))
            else:
                Image.fromarray(pixels).save(path)
    write_beton(Place("folder", str(root / "train")), root / "train.beton", label="", workers=1, quiet=True)
    found = BetonSource.open(root / "train.beton")
    assert found.labels.tolist() == [kind for kind in range(4) for _ in SIZES]
    return found


def spec_of(source: BetonSource, workers: int = 1) -> FeedSpec:
    return FeedSpec(
        backend="ffcv", place=source.place, batch_size=BATCH, height=SIZE[0], width=SIZE[1], workers=workers
    )


@pytest.fixture(scope="module")
def backend(source: BetonSource) -> Iterator[object]:
    """One backend, compiled once, for all tests but that of several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    from hardfast.loaders.streaming.ffcv_backend import FfcvBackend

    made = FfcvBackend(spec_of(source), source)
    assert torch.get_num_threads() == 3  # FFCV sets it to 1 when it is imported and with every loader
    torch.set_num_threads(before)
    yield made
    made.close()


def copied(batches: Iterator[Decoded]) -> Decoded:
    """A whole epoch in memory of its own."""
    parts = [(part.images.copy(), part.index.copy(), part.labels.copy()) for part in batches]
    return Decoded(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def whole(source: BetonSource, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The boxes of whole images."""
    zeros = np.zeros_like(index)
    return np.stack((zeros, zeros, source.heights[index], source.widths[index]), axis=1)


def drawn(source: BetonSource, index: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Boxes of any size and place."""
    draw = np.random.default_rng(seed)
    height, width = (draw.integers(1, sides[index] + 1) for sides in (source.heights, source.widths))
    top, left = draw.integers(0, source.heights[index] - height + 1), draw.integers(0, source.widths[index] - width + 1)
    return np.stack((top, left, height, width), axis=1)


def shown(source: BetonSource, record: int, box: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What Pillow decodes and torchvision makes of a box."""
    top, left, height, width = box.tolist()
    part = source.pixels(record)[top : top + height, left : left + width]
    image = functional.resize(torch.from_numpy(part.copy()).permute(2, 0, 1), list(SIZE), antialias=True)
    return image.permute(1, 2, 0).numpy().astype(np.int64)


def compare(source: BetonSource, epoch: Decoded, index: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64]) -> None:
    """Asserts order, labels and pixels. Two roundings of one sum are a level apart at most."""
    assert epoch.index.tolist() == index.tolist()
    assert epoch.labels.tolist() == source.labels[index].tolist()
    for image, record, box in zip(epoch.images, index, boxes, strict=True):
        apart = np.abs(image - shown(source, int(record), box))
        if source.labels[record] == 0:  # raw
            assert apart.max() <= (0 if tuple(box[2:]) == SIZE else 1), (record, box)
        else:
            assert apart.max() <= 4 and apart.mean() <= 0.5, (record, box)


def test_whole_images_of_every_kind_and_size(source: BetonSource, backend) -> None:
    modes = read_structure(source.path).modes.reshape(len(KINDS), -1)
    assert (modes == [[1], [JPEG], [JPEG], [JPEG]]).all()  # or else this tests half of what it says
    index = np.random.default_rng(0).permutation(len(source))
    boxes = whole(source, index)
    compare(source, copied(backend.batches(index, boxes)), index, boxes)


def test_a_box_of_the_very_size_is_copied(source: BetonSource, backend) -> None:
    index = np.flatnonzero((source.heights >= SIZE[0]) & (source.widths >= SIZE[1]))
    top, left = source.heights[index] - SIZE[0], source.widths[index] - SIZE[1]
    boxes = np.stack((top, left, *(np.full_like(top, side) for side in SIZE)), axis=1)
    compare(source, copied(backend.batches(index, boxes)), index, boxes)


def test_epochs_of_other_boxes_are_not_compiled_again(source: BetonSource, backend, capfd) -> None:
    code = backend.loader.code
    functions = [value for name, value in code[0][0][0].__globals__.items() if name.startswith("code_")]
    assert len(functions) == 2
    compiled = [list(function.overloads.values()) for function in functions]
    for seed in range(3):
        index = np.random.default_rng(seed).integers(0, len(source), 5 * BATCH)  # with repeats
        boxes = drawn(source, index, seed)
        compare(source, copied(backend.batches(index, boxes)), index, boxes)
    assert backend.loader.code is code
    again = [list(function.overloads.values()) for function in functions]
    assert [[id(one) for one in each] for each in again] == [[id(one) for one in each] for each in compiled]
    assert [len(each) for each in again] == [1, 1]
    assert capfd.readouterr() == ("", "")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def counts() -> tuple[int, int]:
    """Threads, native ones too, and open files."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def test_500_epochs_given_up_leave_nothing_behind(source: BetonSource, backend) -> None:
    index = np.random.default_rng(5).integers(0, len(source), 8 * BATCH)
    boxes = drawn(source, index, 5)
    for given_up in range(520):
        if given_up == 20:
            time.sleep(0.2)
            before, memory = counts(), resident_bytes()
        batches = backend.batches(index, boxes)
        for _ in range(given_up % 4):  # 0: never begun
            next(batches)
        batches.close()
    deadline = time.monotonic() + 5  # a thread that was joined is still seen for a moment
    while counts() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counts() == before
    assert resident_bytes() - memory < 16 << 20
    compare(source, copied(backend.batches(index, boxes)), index, boxes)


def test_the_rest_of_an_epoch_given_up_is_not_decoded(backend) -> None:
    from hardfast.loaders.streaming.ffcv_backend import Epoch

    batches = 1000
    epoch = Epoch(backend.loader, np.tile([0, 0, 0, *SIZE], (batches * BATCH, 1)))
    left = epoch.iter_ixes
    assert epoch.take() is not None
    epoch.end()
    assert len(list(left)) > batches - 10


def test_a_failure_in_the_thread_is_raised(backend) -> None:
    from hardfast.loaders.streaming.ffcv_backend import Epoch

    epoch = Epoch(backend.loader, np.zeros((BATCH, 5)))  # no integers: numba has no code for these
    with pytest.raises(RuntimeError, match="thread ended in mid-epoch"):
        epoch.take()
    epoch.end()
    assert not epoch.is_alive()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([40, 0, 0, 1, 1], "has 40 records"),
        ([-1, 0, 0, 1, 1], "has 40 records"),
        ([0, 0, 0, 49, 40], "not inside"),
        ([0, -1, 0, 4, 4], "not inside"),
        ([0, 1, 0, 48, 40], "not inside"),
        ([0, 0, 0, 0, 4], "not inside"),
    ],
)
def test_what_is_outside_is_not_read(backend, row: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        backend.batches(np.array(row[:1]), np.array([row[1:]]))


def test_an_image_folder_is_refused(source: BetonSource, tmp_path: Path) -> None:
    from hardfast.loaders.streaming.ffcv_backend import FfcvBackend

    with pytest.raises(DataError, match=r"hardfast data prepare NAME --beton"):
        FfcvBackend(replace(spec_of(source), place=Place("folder", str(tmp_path))), source)


def warned(content: bytes) -> bytes:
    """Two bytes too many before a marker, which libjpeg warns of and skips."""
    return content[:4] + PADDING.to_bytes(2, "big") + content[6:]


def smaller(content: bytes) -> bytes:
    """A sound JPEG of another size."""
    image, file = Image.open(io.BytesIO(content)), io.BytesIO()
    image.crop((0, 0, image.width - 8, image.height - 16)).save(file, "JPEG", quality=90)
    return file.getvalue()


def cut(content: bytes) -> bytes:
    """Half of the file."""
    return content[: len(content) // 2]


def garbled(content: bytes) -> bytes:
    """Without its tables."""
    return content.replace(b"\xff\xc4", b"\xff\xfe").replace(b"\xff\xdb", b"\xff\xfe")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, source: BetonSource) -> tuple[BetonSource, list[int]]:
    """The same file, no longer as the validator saw it, and which records were changed."""
    structure, content = read_structure(source.path), bytearray(source.path.read_bytes())
    table = len(content) - len(source) * ALLOCATION.itemsize
    changes = {12: warned, 14: smaller, 22: cut, 24: garbled}
    for record, change in changes.items():
        place, old = int(structure.places[record]), structure.record(record).tobytes()
        new = change(old)
        assert new != old
        content[place : place + len(new)] = new
        size = table + record * ALLOCATION.itemsize + 16
        content[size : size + 8] = len(new).to_bytes(8, "little")
    path = tmp_path_factory.mktemp("damaged") / "train.beton"
    path.write_bytes(content)
    return BetonSource.open(path), list(changes)


@pytest.fixture(scope="module")
def threads(damaged: tuple[BetonSource, list[int]]) -> object:
    """A backend for the damaged file, of two threads."""
    from hardfast.loaders.streaming.ffcv_backend import FfcvBackend

    return FfcvBackend(spec_of(damaged[0], workers=2), damaged[0])


def test_two_threads_decode_the_same(source: BetonSource, backend, damaged, threads) -> None:
    index = np.delete(np.arange(len(source)), damaged[1])
    index = np.random.default_rng(9).permutation(np.concatenate((index, index[:4])))
    boxes = drawn(source, index, 9)
    np.testing.assert_array_equal(
        copied(threads.batches(index, boxes)).images, copied(backend.batches(index, boxes)).images
    )


def test_a_jpeg_with_a_harmless_warning_loads(source: BetonSource, damaged, threads) -> None:
    index = np.full(BATCH, 12)
    boxes = np.concatenate((whole(source, index[:1]), drawn(source, index[1:], 0)))
    compare(source, copied(threads.batches(index, boxes)), index, boxes)


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_damaged_jpeg_is_named_and_never_another_image(source: BetonSource, damaged, threads, which: int) -> None:
    bad = damaged[1][which]
    index = np.array([10, 11, 13, bad, 20, 21, 23, 25])
    with pytest.raises(DataError, match=rf"record {bad} of .*train\.beton"):
        next(threads.batches(index, whole(source, index)))
    good = np.where(index == bad, 13, index)
    boxes = whole(source, good)
    compare(source, copied(threads.batches(good, boxes)), good, boxes)
