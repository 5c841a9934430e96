"""The torch backend over image folders: pixels against Pillow's, in order, from any number of workers; and faults."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")

from PIL import Image

from hardfast.loaders.errors import DataError
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.source import ImageSource
from hardfast.loaders.streaming.backends import open_backend
from hardfast.loaders.streaming.spec import Decoded, FeedSpec
from hardfast.loaders.streaming.torch_backend import TorchBackend, decode

from .processes import descendants, handles, resident, shared_memory, threads
from .sources import picture, png_of_16_bits, write_folder, write_odd_files

BATCH = 4
SIZE = (32, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """24 PNGs of `SIZE` in three classes; no test changes them."""
    return FolderSource.open(write_folder(tmp_path_factory.mktemp("png"), 24, size=SIZE))


@contextmanager
def opened(
    source: ImageSource, workers: int, size: tuple[int, int] = SIZE, batch_size: int = BATCH, ahead: int = 2
) -> Iterator[TorchBackend]:
    spec = FeedSpec(
        backend="torch",
        place=source.place,
        batch_size=batch_size,
        height=size[0],
        width=size[1],
        workers=workers,
        ahead=ahead,
    )
    backend = open_backend(spec, source)
    assert isinstance(backend, TorchBackend)
    with closing(backend):
        yield backend


def whole(count: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.int64]:
    """Boxes that show the whole of images of one size."""
    return np.tile(np.array([0, 0, *size]), (count, 1))


def copied(decoded: Decoded) -> Decoded:
    return Decoded(decoded.images.copy(), decoded.index.copy(), decoded.labels.copy())


@pytest.mark.parametrize("ahead", [1, 5])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_png_pixel_for_pixel(workers: int, ahead: int, folder: FolderSource) -> None:
    """Two epochs in two orders, the second with repeated records, and a third one after one that was given up."""
    draw = np.random.default_rng(workers)
    orders = [draw.permutation(24), draw.integers(0, 24, 24), draw.permutation(24)[:12]]
    with opened(folder, workers, ahead=ahead) as backend:
        for number, order in enumerate(orders):
            if number == 2:
                given_up = backend.batches(draw.permutation(24), whole(24))
                next(given_up)
                given_up.close()
            batches = [copied(batch) for batch in backend.batches(order, whole(len(order)))]
            assert len(batches) == len(order) // BATCH
            assert np.concatenate([batch.index for batch in batches]).tolist() == order.tolist()
            assert np.concatenate([batch.labels for batch in batches]).tolist() == (order // 8).tolist()
            images = np.concatenate([batch.images for batch in batches])
            np.testing.assert_array_equal(images, np.stack([picture(record, SIZE) for record in order]))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_batch_is_valid_until_the_next_is_asked_for(workers: int, folder: FolderSource) -> None:
    """Whatever the workers write meanwhile: they get all the time they need for it."""
    order = np.arange(24)
    with opened(folder, workers) as backend:
        for batch in backend.batches(order, whole(24)):
            before = copied(batch)
            threading.Event().wait(0.02)
            np.testing.assert_array_equal(batch.images, before.images)
            assert batch.index.tolist() == before.index.tolist()
            np.testing.assert_array_equal(batch.images[0], picture(before.index[0], SIZE))


def test_a_box_of_the_size_is_cut_and_not_resampled(tmp_path: Path) -> None:
    source = FolderSource.open(write_folder(tmp_path, 8, size=(50, 60)))
    boxes = np.array([(top, 2 * top, 30, 30) for top in range(8)])
    with opened(source, 2, (30, 30)) as backend:
        images = np.concatenate([batch.images.copy() for batch in backend.batches(np.arange(8), boxes)])
    for record, (top, left, _, _) in enumerate(boxes):
        expected = picture(record, (50, 60))[top : top + 30, left : left + 30]
        np.testing.assert_array_equal(images[record], expected)


def test_other_boxes_are_resampled_as_by_pillow(tmp_path: Path) -> None:
    """Smaller and larger, by different factors in the two directions; at most one level apart."""
    source = FolderSource.open(write_folder(tmp_path, 8, size=(120, 160)))
    boxes = np.array([(3, 5, 100, 150), (0, 0, 120, 160), (10, 20, 16, 20), (60, 70, 20, 80)] * 2)
    with opened(source, 0) as backend:
        images = np.concatenate([batch.images.copy() for batch in backend.batches(np.arange(8), boxes)])
    for record, (top, left, height, width) in enumerate(boxes):
        part = Image.fromarray(picture(record, (120, 160))[top : top + height, left : left + width])
        expected = np.asarray(part.resize(SIZE[::-1], Image.Resampling.BILINEAR))
        difference = np.abs(images[record].astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() <= 0.1


@pytest.mark.parametrize("quality", [50, 90, 97])
def test_jpeg_at_full_size(quality: int, tmp_path: Path) -> None:
    size = (121, 163)  # no multiple of a block
    source = FolderSource.open(write_folder(tmp_path, 8, kind="jpg", size=size, quality=quality))
    with opened(source, 2, size) as backend:
        images = np.concatenate([batch.images.copy() for batch in backend.batches(np.arange(8), whole(8, size))])
    for record in range(8):
        difference = np.abs(images[record].astype(int) - source.pixels(record))
        assert difference.max() <= 4
        assert difference.mean() <= 0.5


def test_files_of_many_layouts(tmp_path: Path) -> None:
    """Grey, palette, transparency, CMYK, 1 to 16 bits, formats that torchvision does not read, EXIF rotation."""
    files = write_odd_files(tmp_path / "train" / "class-0", SIZE)
    source = FolderSource.open(tmp_path / "train")
    order = np.arange(len(source))
    assert len(order) == len(files) > 15
    with opened(source, 1, batch_size=1) as backend:
        images = [batch.images[0].copy() for batch in backend.batches(order, whole(len(order)))]
    for found, (name, path) in zip(images, files.items(), strict=True):
        with Image.open(path) as image:
            difference = np.abs(found.astype(int) - np.asarray(image.convert("RGB")))
        if name.endswith(".jpg"):
            assert difference.max() <= 4, name
            assert difference.mean() <= 0.5, name
        else:
            assert difference.max() == 0, name
        if "grey" in name or "bilevel" in name:
            assert (found == found[..., :1]).all(), name


class Counting(FolderSource):
    """Notes which images Pillow decodes."""

    by_pillow: tuple[int, ...] = ()

    def pixels(self, sample: int) -> npt.NDArray[np.uint8]:
        self.by_pillow += (sample,)
        return super().pixels(sample)


def test_torchvision_decodes_what_it_can(tmp_path: Path) -> None:
    """Pillow decodes the rest: the files whose names say so."""
    names = list(write_odd_files(tmp_path / "train" / "class-0", SIZE))
    source = Counting.open(tmp_path / "train")
    for record in range(len(source)):
        decode(source, record)
    others = ("alpha", "bilevel", "cmyk", "palette", "bmp", "webp", "sixteen")
    left = [number for number, name in enumerate(names) if any(word in name for word in others)]
    assert list(source.by_pillow) == left


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) * 3 // 4])
    elif how == "zeros":
        path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))
    else:
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 4]) + content[-19:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("kind", "how"), [("jpg", "cut"), ("png", "cut"), ("png", "zeros"), ("png", "flip")])
def test_a_damaged_file_is_named(kind: str, how: str, workers: int, tmp_path: Path) -> None:
    """Its digest is right, since it was damaged before the folder was indexed; what comes before it is delivered."""
    root = write_folder(tmp_path, 16, kind=kind, size=SIZE)
    damage(root / "class-1" / f"00009.{kind}", how)
    source = FolderSource.open(root)
    with opened(source, workers) as backend:
        batches = backend.batches(np.arange(16), whole(16))
        assert [next(batches).index.tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with pytest.raises(DataError, match=rf"class-1/00009\.{kind} is damaged.* \(.+\): copy it") as caught:
            next(batches)
        assert "\n" not in str(caught.value)
        after = np.array([0, 15, 3, 12])
        assert [batch.index.tolist() for batch in backend.batches(after, whole(4))] == [after.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_file_that_was_changed_is_named(kind: str, workers: int, tmp_path: Path) -> None:
    root = write_folder(tmp_path, 8, kind=kind, size=SIZE)
    source = FolderSource.open(root)
    damage(root / "class-1" / f"00004.{kind}", "flip")
    with (
        opened(source, workers) as backend,
        pytest.raises(DataError, match=rf"00004\.{kind} is not the file") as caught,
    ):
        list(backend.batches(np.arange(8), whole(8)))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 8, size=SIZE)
    source = FolderSource.open(root)
    (root / "class-2" / "00007.png").unlink()
    with opened(source, 1) as backend, pytest.raises(DataError, match=r"00007\.png cannot be read \(No such file"):
        list(backend.batches(np.arange(8), whole(8)))


@pytest.mark.parametrize("box", [(0, 0, 33, 40), (1, 0, 32, 40), (0, 1, 32, 40), (-1, 0, 32, 40), (0, 0, 0, 40)])
def test_a_box_outside_of_the_image_is_refused(box: tuple[int, int, int, int], folder: FolderSource) -> None:
    boxes = whole(4)
    boxes[2] = box
    with opened(folder, 0) as backend, pytest.raises(DataError, match=r"00002\.png has 32x40 pixels, and no box of"):
        list(backend.batches(np.arange(4), boxes))


def test_16_bits_of_grey_are_refused(tmp_path: Path) -> None:
    """Pillow would clip them: they are no source's."""
    (tmp_path / "train" / "class-0").mkdir(parents=True)
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    (tmp_path / "train" / "class-0" / "deep.png").write_bytes(png_of_16_bits(deep))
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits a channel"):
        FolderSource.open(tmp_path / "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_that_are_given_up_leave_nothing(workers: int, folder: FolderSource) -> None:
    """500 of them: no process, thread or file handle more, and memory that does not grow."""

    me = os.getpid()

    def own() -> list[int]:
        return [pid for pid in descendants(me) if pid not in earlier]

    def state() -> tuple[list[int], int, list[str]]:
        return own(), threads(me), handles(me)

    def memory() -> int:
        return sum(map(resident, (me, *own())))

    order = np.arange(24)
    gc.collect()  # what earlier tests left to it
    earlier = set(descendants(me))  # such as the processes that torch.compile keeps
    with opened(folder, workers) as backend:
        for number in range(500):
            batches = backend.batches(order, whole(24))
            if number % 5:  # some are not even begun
                next(batches)
            batches.close()
            if number == 50:
                before, used = state(), memory()
        assert len(before[0]) == workers
        assert state() == before
        assert memory() - used < 4 << 20
        assert sum(1 for _ in backend.batches(order, whole(24))) == 6


def test_an_epoch_ends_where_another_begins(folder: FolderSource) -> None:
    with opened(folder, 2) as backend:
        first = backend.batches(np.arange(24), whole(24))
        next(first)
        second = backend.batches(np.arange(24)[::-1].copy(), whole(24))
        assert next(second).index.tolist() == [23, 22, 21, 20]
        assert list(first) == []
        assert next(second).index.tolist() == [19, 18, 17, 16]
        assert sum(1 for _ in second) == 4


@pytest.mark.parametrize("begun", [False, True])
def test_close_ends_the_workers(begun: bool, folder: FolderSource) -> None:
    """In mid-epoch too; and nothing has a name in /dev/shm, neither then nor before."""
    shared = set(os.listdir("/dev/shm"))
    already = set(descendants(os.getpid()))
    with opened(folder, 2) as backend:
        batches = backend.batches(np.arange(24), whole(24))
        if begun:
            next(batches)
            assert len(set(descendants(os.getpid())) - already) == 2
            assert not shared_memory(but=shared)
        backend.close()
        assert set(descendants(os.getpid())) <= already
        if begun:
            assert list(batches) == []
        backend.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(backend.batches(np.arange(24), whole(24)))
    assert not shared_memory(but=shared)
