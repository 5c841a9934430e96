"""DALI's real CPU pipeline on image files made from photographs: order, pixels, unusual files, errors, leaks."""

from __future__ import annotations

import gc
import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from hardfast.loaders.crops import central_boxes
from hardfast.loaders.errors import DataError, LoaderDied
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.source import Place
from hardfast.loaders.streaming.dali_backend import DaliBackend
from hardfast.loaders.streaming.dali_device import DaliDeviceFeed
from hardfast.loaders.streaming.dali_files import dali_bytes, plain_jpeg, plain_png
from hardfast.loaders.streaming.dali_pipeline import build_pipeline
from hardfast.loaders.streaming.spec import FeedSpec

pytest.importorskip("nvidia.dali")
Image = pytest.importorskip("PIL.Image")
load_sample_images = pytest.importorskip("sklearn.datasets").load_sample_images

SIZES = ((75, 101), (64, 48), (33, 33), (48, 64), (90, 41), (57, 121), (120, 160), (37, 40))
JPEGS = (
    {"quality": 95, "subsampling": 0},
    {"quality": 90, "subsampling": 1},
    {"quality": 75, "subsampling": 2},
    {"quality": 85, "subsampling": 2, "progressive": True},
)
PHOTOGRAPHS = [Image.fromarray(photograph) for photograph in load_sample_images().images]


def piece(number: int, height: int, width: int):
    """A part of one of two photographs, and another one for each number."""
    left, top = 60 + 37 * number % 400, 40 + 29 * number % 200
    return PHOTOGRAPHS[number % 2].crop((left, top, left + width, top + height))


def save(folder: Path, name: str, image, kind: str, **how) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **how)


@pytest.fixture(scope="module")
def pngs(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    folder = tmp_path_factory.mktemp("png")
    for number, size in enumerate(SIZES):
        save(folder, f"{'abc'[number % 3]}/{number}.png", piece(number, *size), "PNG")
    return FolderSource.index(folder)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    folder = tmp_path_factory.mktemp("jpeg")
    for number, how in enumerate(JPEGS):
        save(folder, f"{'ab'[number % 2]}/{number}.jpg", piece(number, 151, 201), "JPEG", **how)
    return FolderSource.index(folder)


def spec(source, batch_size: int, size: tuple[int, int], workers: int = 1) -> FeedSpec:
    height, width = size
    return FeedSpec(
        backend="dali", place=source.place, batch_size=batch_size, height=height, width=width, workers=workers
    )


@pytest.fixture
def backend() -> Iterator[Callable[..., DaliBackend]]:
    """Makes backends, and closes them."""
    made: list[DaliBackend] = []

    def make(source, batch_size: int, size: tuple[int, int], workers: int = 1) -> DaliBackend:
        made.append(DaliBackend(spec(source, batch_size, size, workers), source))
        return made[-1]

    yield make
    for one in made:
        one.close()


def whole(source, index: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(index)
    return np.stack((zero, zero, source.heights[index], source.widths[index]), axis=1)


def boxes_of(source, index: np.ndarray, size: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """Boxes of one size, anywhere in each image."""
    top = draw.integers(0, source.heights[index] - size[0] + 1)
    left = draw.integers(0, source.widths[index] - size[1] + 1)
    return np.stack((top, left, np.full_like(top, size[0]), np.full_like(top, size[1])), axis=1)


def shown(source, sample: int, box: np.ndarray) -> np.ndarray:
    top, left, height, width = box
    return source.pixels(int(sample))[top : top + height, left : left + width]


def all_images(backend: DaliBackend, index: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([batch.images.copy() for batch in backend.batches(index, boxes)])


@pytest.mark.parametrize("workers", [0, 2])
def test_order_repeats_epochs_and_boxes_that_need_no_scaling(pngs, backend, workers: int) -> None:
    draw, size = np.random.default_rng(workers), (31, 29)
    decode = backend(pngs, 4, size, workers)
    for _ in range(2):
        index = draw.integers(0, len(pngs), 36)
        boxes = boxes_of(pngs, index, size, draw)
        seen = 0
        for batch in decode.batches(index, boxes):
            part = slice(seen, seen + 4)
            seen += 4
            assert batch.index.dtype == batch.labels.dtype == np.int64
            assert np.array_equal(batch.index, index[part])
            assert np.array_equal(batch.labels, pngs.labels[index[part]])
            wanted = np.stack([shown(pngs, sample, box) for sample, box in zip(index[part], boxes[part], strict=True)])
            assert batch.images.dtype == np.uint8 and np.array_equal(batch.images, wanted)
        assert seen == len(index)
    assert list(decode.batches(index[:0], boxes[:0])) == []


def test_jpegs_at_full_size_are_pillows_and_so_are_their_boxes(jpegs, backend) -> None:
    index = np.arange(len(jpegs))
    images = all_images(backend(jpegs, len(jpegs), (151, 201)), index, whole(jpegs, index)).astype(int)
    apart = np.abs(images - np.stack([jpegs.pixels(sample) for sample in index]))
    assert apart.max() <= 4 and apart.mean() <= 0.5
    draw = np.random.default_rng(0)
    index = np.repeat(index, 6)
    boxes = boxes_of(jpegs, index, (50, 43), draw)  # chroma is interpolated across the box's edges
    images = all_images(backend(jpegs, 8, (50, 43)), index, boxes).astype(int)
    apart = np.abs(images - np.stack([shown(jpegs, sample, box) for sample, box in zip(index, boxes, strict=True)]))
    assert apart.max() <= 4 and apart.mean() <= 0.5


@pytest.mark.parametrize("size", [(32, 32), (64, 80), (160, 130)], ids=["smaller", "mixed", "larger"])
def test_scaled_boxes_are_torchs_antialiased_bilinear_ones(pngs, jpegs, backend, size: tuple[int, int]) -> None:
    for source in (pngs, jpegs):
        index = np.arange(len(source))
        heights, widths = torch.from_numpy(source.heights), torch.from_numpy(source.widths)
        for share in (1.0, 0.6):
            boxes = central_boxes(heights, widths, size, share=share).numpy()
            for image, sample, box in zip(
                all_images(backend(source, 4, size), index, boxes), index, boxes, strict=True
            ):
                pixels = torch.from_numpy(shown(source, sample, box).copy()).permute(2, 0, 1)[None].float()
                wanted = interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
                assert np.abs(image - wanted).mean() <= 0.5


def png16(pixels: np.ndarray) -> bytes:
    """An RGB PNG with 16 bits a channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def unusual_files() -> dict[str, tuple[bool, bytes]]:
    """Files of 45 x 61 pixels, and whether DALI is handed them as they are."""
    image, exif = piece(3, 45, 61), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    draw = np.random.default_rng(1)
    files: dict[str, tuple[bool, bytes]] = {"deep.png": (False, png16(draw.integers(0, 65536, (45, 61, 3))))}
    for name, plain, made, kind, how in (
        ("grey.jpg", True, image.convert("L"), "JPEG", {}),
        ("grey.png", True, image.convert("L"), "PNG", {}),
        ("palette.png", True, image.quantize(200), "PNG", {}),
        ("four-bits.png", True, image.quantize(16), "PNG", {"bits": 4}),
        ("one-bit.png", True, image.convert("1"), "PNG", {}),
        ("rotated.jpg", True, image, "JPEG", {"exif": exif}),
        ("rotated.png", True, image, "PNG", {"exif": exif}),
        ("comment.jpg", True, image, "JPEG", {"comment": b"\xff\xc0" * 99}),
        ("cmyk.jpg", False, image.convert("CMYK"), "JPEG", {}),
        ("rgb.jpg", False, image, "JPEG", {"keep_rgb": True}),
        ("alpha.png", False, alpha, "PNG", {}),
        ("grey-alpha.png", False, alpha.convert("LA"), "PNG", {}),
        ("transparent.png", False, image.quantize(64), "PNG", {"transparency": 3}),
        ("a.gif", False, image.quantize(100), "GIF", {}),
        ("a.webp", False, image, "WEBP", {"quality": 70}),
        ("a.tif", False, image, "TIFF", {}),
        ("a.bmp", False, image, "BMP", {}),
    ):
        stream = io.BytesIO()
        made.save(stream, kind, **how)
        files[name] = (plain, stream.getvalue())
    files["png-named.jpg"] = files["palette.png"]
    rgb = files["rgb.jpg"][1]
    adobe = rgb.index(b"\xff\xee")  # without this segment, only the components' names tell
    files["rgb-by-name.jpg"] = (
        False,
        rgb[:adobe] + rgb[adobe + 2 + int.from_bytes(rgb[adobe + 2 : adobe + 4], "big") :],
    )
    return files


def test_unusual_files_are_what_pillow_makes_of_them(tmp_path: Path, backend) -> None:
    files = unusual_files()
    (tmp_path / "a").mkdir()
    for name, (_, content) in files.items():
        (tmp_path / "a" / name).write_bytes(content)
    source = FolderSource.index(tmp_path)
    index = np.arange(len(source))
    assert (source.heights == 45).all() and (source.widths == 61).all()  # no EXIF rotation either
    images = all_images(backend(source, len(source), (45, 61)), index, whole(source, index))
    for image, sample in zip(images, index, strict=True):
        name = Path(source.name(sample)).name
        apart = np.abs(image.astype(int) - source.pixels(sample))
        assert apart.max() <= (4 if name.endswith(".jpg") else 0) and apart.mean() <= 0.5, name
        if name.startswith("grey"):
            assert (image == image[:, :, :1]).all(), name
        plain, content = files[name]
        assert (dali_bytes(source, sample).tobytes() == content) == plain, name


def test_cut_headers_are_not_plain() -> None:
    for name, (plain, content) in unusual_files().items():
        assert (plain_jpeg(content) or plain_png(content)) == plain, name
        for length in range(60):
            assert not plain_jpeg(content[:length]) and not plain_png(content[:33])


def test_a_cut_jpeg_ends_the_epoch_with_an_error_that_names_it(tmp_path: Path, backend) -> None:
    for number in range(12):
        save(tmp_path, f"a/{number:02}.jpg", piece(number, 60, 80), "JPEG", quality=90)
    path = tmp_path / "a" / "06.jpg"
    path.write_bytes(path.read_bytes()[:-1500])
    source = FolderSource.index(tmp_path)  # its digest is right, and its header too
    decode, index = backend(source, 2, (60, 80)), np.arange(12)
    seen = []
    with pytest.raises(DataError, match=r"a/06\.jpg") as caught:
        for batch in decode.batches(index, whole(source, index)):
            seen += batch.index.tolist()
    assert "\n" not in str(caught.value)
    assert seen == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"a/06\.jpg"):  # and not the batch behind the lost one
        next(decode.batches(index, whole(source, index)))
    # Given up before anybody asks for the batch, the file is nobody's business yet.
    other = backend(source, 2, (60, 80))
    for _ in range(2):
        with closing(other.batches(index[4:], whole(source, index[4:]))) as batches:
            assert next(batches).index.tolist() == [4, 5]
    assert all_images(other, index[8:], whole(source, index[8:])).shape == (4, 60, 80, 3)


def test_changed_missing_and_wrongly_indexed_files_are_named(tmp_path: Path, backend) -> None:
    for number in range(6):
        save(tmp_path, f"a/{number}.jpg", piece(number, 60, 80), "JPEG")
    source, index = FolderSource.index(tmp_path), np.arange(6)
    content = bytearray((tmp_path / "a" / "2.jpg").read_bytes())
    content[700] ^= 4
    (tmp_path / "a" / "2.jpg").write_bytes(content)
    (tmp_path / "a" / "4.jpg").unlink()
    for bad, order in ((2, index), (4, index[3:])):
        with pytest.raises(DataError, match=rf"a/{bad}\.jpg"):
            all_images(backend(source, 3, (60, 80)), order, whole(source, order))
    beyond = np.array([[0, 0, 60, 80], [10, 0, 60, 80]])
    with pytest.raises(DataError, match=r"a/1\.jpg.*cropping window"):
        all_images(backend(source, 2, (60, 80)), index[:2], beyond)
    with pytest.raises(DataError, match="whole batches"):
        all_images(backend(source, 4, (60, 80)), index[:2], beyond)


class Pixels:
    """Plain pixels, as in a raw .beton file."""

    place = Place("beton", "raw.beton")
    labels, heights, widths = np.zeros(4, np.int64), np.full(4, 8), np.full(4, 8)

    def __len__(self) -> int:
        return 4

    def name(self, sample: int) -> str:
        return f"record {sample} of raw.beton"

    def encoded(self, sample: int) -> None:
        return None


def test_plain_pixels_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"record 0 of raw\.beton.*--loader\.name ffcv"):
        DaliBackend(spec(Pixels(), 2, (8, 8)), Pixels())


def count_threads() -> int:
    """Of this process, DALI's own among them."""
    return len(os.listdir("/proc/self/task"))


def resources() -> tuple[int, int, int]:
    """Threads, open files, and resident KiB of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return count_threads(), len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") // 1024


def test_500_abandoned_epochs_leave_nothing_and_spoil_nothing(pngs, backend) -> None:
    decode, draw, size = backend(pngs, 4, (31, 29)), np.random.default_rng(0), (31, 29)
    index = draw.integers(0, len(pngs), 32)
    boxes = boxes_of(pngs, index, size, draw)
    wanted = np.stack([shown(pngs, sample, box) for sample, box in zip(index, boxes, strict=True)])
    for number in range(550):
        if number == 50:
            before = resources()
        with closing(decode.batches(index, boxes)) as batches:
            for _ in range(number % 4):
                next(batches)
    threads, files, kib = resources()
    assert threads <= before[0] and files <= before[1]
    assert kib - before[2] < 8 * 1024
    assert np.array_equal(all_images(decode, index, boxes), wanted)
    old = decode.batches(index, boxes)
    next(old)
    assert np.array_equal(all_images(decode, index[4:], boxes[4:]), wanted[4:])  # asked for while another one is open
    assert list(old) == []


def test_closing_ends_the_threads(pngs) -> None:
    before, index = count_threads(), np.arange(8)
    for _ in range(3):
        decode = DaliBackend(spec(pngs, 4, (31, 29), workers=2), pngs)
        batches = decode.batches(index, whole(pngs, index))
        next(batches)
        assert count_threads() > before
        decode.close()
        decode.close()
        for iterator in (batches, decode.batches(index, whole(pngs, index))):
            with pytest.raises(DataError, match="closed"):
                next(iterator)
    until = time.monotonic() + 10
    while count_threads() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert count_threads() <= before


def on_device(source, feed: DaliDeviceFeed, index: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """All images of an epoch; their records and labels are checked."""
    seen, images = 0, []
    for batch, records, labels in feed.epoch(torch.from_numpy(index), torch.from_numpy(boxes)):
        assert np.array_equal(records.numpy(), index[seen : seen + len(batch)])
        assert np.array_equal(labels.numpy(), source.labels[records.numpy()])
        images.append(batch.cpu().numpy().copy())
        seen += len(batch)
    assert seen == len(index)
    return np.concatenate(images)


def test_without_a_feeder_process_the_same_images_arrive(pngs, backend) -> None:
    draw, size = np.random.default_rng(2), (31, 29)
    index = draw.integers(0, len(pngs), 24)
    boxes = boxes_of(pngs, index, size, draw)
    wanted = all_images(backend(pngs, 4, size), index, boxes)
    with closing(DaliDeviceFeed(spec(pngs, 4, size), pngs, torch.device("cpu"), 60.0)) as feed:
        old = feed.epoch(torch.from_numpy(index), torch.from_numpy(boxes))
        for _ in range(3):
            next(old)
        assert np.array_equal(on_device(pngs, feed, index, boxes), wanted)
        assert list(old) == []
        with closing(feed.epoch(torch.from_numpy(index), torch.from_numpy(boxes))) as batches:
            next(batches)
        assert np.array_equal(on_device(pngs, feed, index, boxes), wanted)
        with pytest.raises(DataError, match=r"cropping window"):
            on_device(pngs, feed, index, boxes + 1000)
        with pytest.raises(DataError, match=r"cropping window"):
            on_device(pngs, feed, index, boxes)
    with pytest.raises(LoaderDied, match="closed"):
        on_device(pngs, feed, index, boxes)


class Hangs(FolderSource):
    """A folder one of whose files is on a disk that does not answer."""

    silent = threading.Event()

    def encoded(self, sample: int) -> bytes:
        if sample == 5:
            self.silent.wait()
        return super().encoded(sample)


def test_a_read_that_hangs_ends_the_epoch(pngs) -> None:
    source, index = Hangs.index(Path(pngs.place.path)), np.arange(8)
    feed = DaliDeviceFeed(spec(source, 2, (33, 33)), source, torch.device("cpu"), 0.5)
    try:
        for _ in range(2):
            with pytest.raises(LoaderDied, match=r"delivered nothing"):
                on_device(source, feed, index, whole(source, index))
        feed.close()  # does not wait
    finally:
        source.silent.set()


def test_the_graph_for_a_gpu_decodes_and_scales_there() -> None:
    how = {"batch_size": 4, "height": 8, "width": 9, "threads": 2, "ahead": 2}
    graphs = [build_pipeline(**how, mixed=mixed).serialize() for mixed in (True, False)]
    for graph, decoder, scaler in zip(graphs, (b"\x05mixed", b"\x03cpu"), (b"\x03gpu", b"\x03cpu"), strict=True):
        decode, scale = graph[graph.index(b"decoders__ImageSlice") :].split(b"\x06Resize")
        assert b"\x06device\x12\x06string*" + decoder in decode
        assert b"\x06device\x12\x06string*" + scaler in scale
        assert b"adjust_orientation\x12\x04bool0\x00" in decode
        assert b"jpeg_fancy_upsampling\x12\x04bool0\x01" in decode


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(31, 29), (48, 40)], ids=["boxes as they are", "scaled"])
def test_gpu_and_cpu_pipelines_agree(pngs, jpegs, backend, size: tuple[int, int]) -> None:
    draw = np.random.default_rng(3)
    for source, most in ((pngs, 0 if size == (31, 29) else 1), (jpegs, 4)):
        index = np.concatenate([draw.permutation(len(source)) for _ in range(8)])
        boxes = boxes_of(source, index, (31, 29), draw)
        wanted = all_images(backend(source, 4, size), index, boxes).astype(int)
        with closing(DaliDeviceFeed(spec(source, 4, size), source, torch.device("cuda"), 120.0)) as feed:
            for _ in range(2):
                assert np.abs(on_device(source, feed, index, boxes) - wanted).max() <= most


@pytest.mark.gpu
def test_a_damaged_file_is_named_on_a_gpu_too(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path, f"a/{number}.jpg", piece(number, 60, 80), "JPEG", quality=90)
    path = tmp_path / "a" / "3.jpg"
    path.write_bytes(path.read_bytes()[:900])
    source, index = FolderSource.index(tmp_path), np.arange(6)
    feed = DaliDeviceFeed(spec(source, 2, (60, 80)), source, torch.device("cuda"), 120.0)
    with closing(feed), pytest.raises(DataError, match=r"a/3\.jpg"):
        on_device(source, feed, index, whole(source, index))
