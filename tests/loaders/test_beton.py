"""The .beton writer and reader against FFCV's own, and what becomes of a writer that fails, is killed or stopped."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from hardfast.loaders.beton import BetonSource, sidecar, validate
from hardfast.loaders.beton_check import read_structure
from hardfast.loaders.beton_format import JPEG, LARGEST_PAGE, RAW, page_size
from hardfast.loaders.beton_jpeg import jpeg_size
from hardfast.loaders.beton_records import make_record, verify_records, write_records
from hardfast.loaders.beton_writer import process_state, write_beton
from hardfast.loaders.dataset import Split
from hardfast.loaders.errors import DataError, MissingDataError
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.source import Place, open_source

from .beton_files import memory_source, mixed_folder, picture, run_ffcv, write_plainly

PATIENCE = 5.0  # seconds in which a fault must have become an error
START_SECONDS = 60.0  # for a process to import torch on a busy machine
CHILD = b"hardfast.loaders.beton_child"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return mixed_folder(tmp_path_factory.mktemp("images") / "train", 24)


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> BetonSource:
    """400 JPEGs of 640x480 that take seconds to scale down, all made from a few."""
    root = tmp_path_factory.mktemp("slow")
    for number in range(400):
        path = root / "train" / "one" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < 4:
            Image.fromarray(picture(number, (480, 640))).save(path)
        else:
            path.write_bytes(path.with_name(f"{number % 4:03d}.jpg").read_bytes())
    return FolderSource.open(root / "train")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- the format


def test_ffcv_reads_ours_and_ours_reads_ffcvs(folder: FolderSource, tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    ours, theirs = write_plainly(folder, tmp_path / "ours.beton"), tmp_path / "theirs.beton"
    pictures = [picture(number) for number in range(50)]
    loaded = run_ffcv(tmp_path, [ours], write=(theirs, pictures))

    assert loaded["labels-0"].tolist() == folder.labels.tolist()
    for sample, image in enumerate(loaded["images-0"]):
        apart = np.abs(image.astype(int) - folder.pixels(sample))
        if sample % 2:  # a PNG, stored as plain pixels
            assert apart.max() == 0
        else:  # FFCV decodes JPEGs with libjpeg's less exact transform
            assert apart.max() <= 12 and apart.mean() <= 2

    checked = validate(theirs)
    assert (checked.images, checked.sha256) == (50, None)
    source = BetonSource.open(theirs)
    assert source.labels.tolist() == [3 * number + 1 for number in range(50)]
    modes = read_structure(theirs).modes
    assert 5 < np.count_nonzero(modes == JPEG) < 45
    for sample, image in enumerate(pictures):
        pixels = source.pixels(sample)
        assert pixels.shape == image.shape == (source.heights[sample], source.widths[sample], 3)
        if modes[sample] == RAW:
            assert np.array_equal(pixels, image)
        else:
            assert np.abs(pixels.astype(int) - image).mean() < 4
    assert len(set((read_structure(theirs).places // (1 << 21)).tolist())) > 2  # pages, of two processes


def test_a_source_gives_back_what_was_written(folder: FolderSource, tmp_path: Path) -> None:
    path = write_plainly(folder, tmp_path / "train.beton")
    source = open_source(Place("beton", str(path)))
    assert len(source) == len(folder) and str(source) == str(path)
    for name in ("labels", "heights", "widths"):
        assert np.array_equal(getattr(source, name), getattr(folder, name))
    for sample in range(len(folder)):
        assert source.encoded(sample) == (None if sample % 2 else folder.encoded(sample))
        assert np.array_equal(source.pixels(sample), folder.pixels(sample))
    assert source.name(5) == f"record 5 of {path}"


def test_the_bytes_do_not_depend_on_threads(folder: FolderSource, tmp_path: Path) -> None:
    digests = []
    for workers in (1, 3):
        path = tmp_path / f"{workers}.beton"
        write_records(folder, path, max_side=None, workers=workers, advance=lambda done: None)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_unusual_jpegs_are_stored_as_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(picture(1, (40, 60)))
    (tmp_path / "one").mkdir()
    for name, picked, options in (
        ("baseline", image, {}),
        ("cmyk", image.convert("CMYK"), {}),
        ("grey", image.convert("L"), {}),
        ("long", image, {"exif": bytes(60_000)}),
        ("progressive", image, {"progressive": True}),
        ("rotated", image, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        ("trailing", image, {}),
        ("444", image, {"subsampling": 0}),
    ):
        picked.save(tmp_path / "one" / f"{name}.jpg", **options)
    with (tmp_path / "one" / "trailing.jpg").open("ab") as file:
        file.write(b"what a camera appends")
    source = FolderSource.open(tmp_path)
    order = ["444", "baseline", "cmyk", "grey", "long", "progressive", "rotated", "trailing"]
    for sample, name in enumerate(order):
        assert f"{name}.jpg" in source.name(sample)
        record = make_record(source, sample, limit=1 << 21, max_side=None)
        if name in ("cmyk", "trailing"):
            assert (record.mode, record.content) == (RAW, source.pixels(sample).tobytes())
        else:
            assert (record.mode, record.content) == (JPEG, source.encoded(sample))
        assert (record.height, record.width) == (40, 60)
    small = make_record(source, order.index("long"), limit=50_000, max_side=None)  # larger than a page
    assert small.mode == RAW


def test_larger_images_are_scaled_down(folder: FolderSource, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    write_records(folder, path, max_side=48, workers=1, advance=lambda done: None)
    validate(path)
    source = BetonSource.open(path)
    assert set(source.heights.tolist()) == {32} and set(source.widths.tolist()) == {48}
    assert set(read_structure(path).modes.tolist()) == {JPEG}
    for sample in range(len(source)):
        small = Image.fromarray(folder.pixels(sample)).resize((48, 32), Image.Resampling.LANCZOS)
        assert np.abs(source.pixels(sample).astype(int) - np.asarray(small)).mean() < 8
    write_records(folder, tmp_path / "same.beton", max_side=96, workers=1, advance=lambda done: None)
    write_records(folder, tmp_path / "none.beton", max_side=None, workers=1, advance=lambda done: None)
    assert (tmp_path / "same.beton").read_bytes() == (tmp_path / "none.beton").read_bytes()


@pytest.mark.parametrize("largest", [1, 1 << 18, (1 << 20) + 1, 1 << 21, (1 << 23) + 1, LARGEST_PAGE])
def test_a_page_holds_the_largest_image(largest: int) -> None:
    page = page_size(largest)
    assert page & (page - 1) == 0 and max(largest, 1 << 21) <= page <= LARGEST_PAGE


def test_an_image_larger_than_the_usual_page(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1700, 1700, 1), dtype=np.uint8)
    path = write_plainly(memory_source(images), tmp_path / "train.beton")
    assert validate(path).images == 3 and read_structure(path).page == 1 << 24
    assert np.array_equal(BetonSource.open(path).pixels(2), images[2].repeat(3, axis=2))


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text"])
def test_what_is_no_beton_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train.beton"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "not what it seems " * 1000)
    with pytest.raises(MissingDataError if kind == "missing" else DataError, match=str(path)):
        validate(path)


def test_jpeg_size_agrees_with_pillow() -> None:
    """Over photographs and made images; and a header cut at any place is no header."""
    rng = np.random.default_rng(0)
    for number in range(21):
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        image = Image.fromarray(picture(number, (height, width)))
        file = io.BytesIO()
        options = {"quality": int(rng.integers(1, 100)), "progressive": number % 2 == 0, "subsampling": number % 3}
        (image.convert("L") if number % 5 == 0 else image).save(file, "JPEG", optimize=number % 7 == 0, **options)
        content = file.getvalue()
        assert jpeg_size(content) == (height, width)
        for length in rng.integers(0, content.index(b"\xff\xda") + 4, 9):
            assert jpeg_size(content[:length]) is None
            assert jpeg_size(content[:length] + b"\xff\xd9") is None


def test_a_jpeg_of_two_frames_is_none() -> None:
    """Decoders would disagree on its size."""
    file = io.BytesIO()
    Image.fromarray(picture(0, (40, 60))).save(file, "JPEG")
    content = file.getvalue()
    begin = content.index(b"\xff\xc0")
    frame = content[begin : begin + 2 + int.from_bytes(content[begin + 2 : begin + 4], "big")]
    assert jpeg_size(content) == (40, 60)
    assert jpeg_size(content[:begin] + frame + content[begin:]) is None
    assert jpeg_size(content[: begin + 1] + b"\xff" * 5 + content[begin + 1 :]) == (40, 60)  # which the format allows


def test_a_disk_that_gives_back_other_bytes(folder: FolderSource, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    digests = write_records(folder, path, max_side=None, workers=1, advance=lambda done: None)
    assert verify_records(path, digests, lambda done: None) == hashlib.sha256(path.read_bytes()).hexdigest()
    content = bytearray(path.read_bytes())
    content[int(read_structure(path).places[9]) + 99] ^= 1
    path.write_bytes(content)
    assert verify_records(path, digests, lambda done: None) is None


# --- the process that writes


@contextmanager
def watched(folder: Path) -> Iterator[set[str]]:
    """All names that are seen in a folder meanwhile, and whenever there is a train.beton it must be whole."""
    seen: set[str] = set()
    broken: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            seen.update(names(folder))
            try:
                validate(folder / "train.beton", digest=False)
            except MissingDataError:
                pass
            except DataError as error:
                broken.append(str(error))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert not broken, broken[0]


def test_a_file_appears_whole(folder: FolderSource, tmp_path: Path) -> None:
    """From a folder; an older file and the remains of a killed writer make room for it."""
    path = tmp_path / "train.beton"
    write_plainly(memory_source(np.full((2, 8, 8, 3), 7, np.uint8)), path)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for name in (f"train.beton.tmp-{int(dead.stdout)}", f"train.beton.sha256.tmp-{int(dead.stdout)}"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "train.beton.tmp-mine").write_bytes(b"of somebody else")
    with watched(tmp_path) as seen:
        digest = write_beton(folder.place, path, label="train.beton", quiet=True)
    assert names(tmp_path) == ["train.beton", "train.beton.sha256", "train.beton.tmp-mine"]
    assert any(name.startswith("train.beton.tmp-") and name[16:].isdecimal() for name in seen)
    assert sidecar(path).read_text() == f"{digest}  train.beton\n"
    checked = validate(path)
    assert (checked.images, checked.sha256) == (len(folder), digest)
    write_records(folder, tmp_path / "here.beton", max_side=None, workers=2, advance=lambda done: None)
    assert path.read_bytes() == (tmp_path / "here.beton").read_bytes()


def test_images_in_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = torch.randint(0, 256, (50, 28, 28, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    path = tmp_path / "new folder" / "train.beton"
    before = len(os.listdir("/proc/self/fd"))
    write_beton(Split(images, labels), path, label="train.beton", workers=1)
    assert len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr().out == ""
    validate(path)
    source = BetonSource.open(path)
    assert source.labels.tolist() == labels.tolist()
    for sample in range(50):
        assert source.encoded(sample) is None
        assert np.array_equal(source.pixels(sample), images[sample].numpy().repeat(3, axis=2))


@pytest.mark.parametrize("shape", [(2, 4, 4, 2), (2, 4, 4)])
def test_images_of_another_layout_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="N, H, W, 1 or 3"):
        write_beton(Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(2)), tmp_path / "a.beton", label="a")
    assert names(tmp_path) == []


def test_a_sample_that_raises_is_named(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "train", 12)
    path = tmp_path / "out" / "train.beton"
    damaged = Path(source.name(7))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=damaged.name) as caught:
        write_beton(source, path, label="train.beton", quiet=True)
    assert "\n" not in str(caught.value)
    assert names(path.parent) == []


def test_a_disk_that_is_full(slow_source: FolderSource, tmp_path: Path) -> None:
    """A limit on the length of files gives the writer an error in the middle of its work, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
    try:
        with pytest.raises(DataError, match=r"train\.beton cannot be written \(File too large\)"):
            write_beton(slow_source, tmp_path / "train.beton", label="train.beton", quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def writer_in(folder: Path) -> int:
    """The process that has begun to write in a folder."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        for name in names(folder):
            process = int(name.removeprefix("train.beton.tmp-"))
            assert CHILD in Path(f"/proc/{process}/cmdline").read_bytes()
            return process
        time.sleep(0.005)
    raise AssertionError("no writer has begun")


@pytest.mark.parametrize(
    ("sent", "message"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "was stopped")]
)
def test_a_writer_that_is_killed_or_stopped(
    slow_source: FolderSource, tmp_path: Path, sent: signal.Signals, message: str
) -> None:
    struck = {}

    def strike() -> None:
        struck["process"] = writer_in(tmp_path)
        struck["at"] = time.monotonic()
        os.kill(struck["process"], sent)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(DataError, match=message):
        write_beton(slow_source, tmp_path / "train.beton", label="a", quiet=True, workers=1, max_side=300)
    assert time.monotonic() - struck["at"] < PATIENCE
    thread.join()
    assert process_state(struck["process"]) is None
    assert names(tmp_path) == []


def test_a_writer_that_says_nothing(slow_source: FolderSource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"made no progress in 0\.1 s"):
        write_beton(slow_source, tmp_path / "train.beton", label="train.beton", quiet=True, patience=0.1)
    assert names(tmp_path) == []


def children() -> set[int]:
    """Processes that this one has started."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(number) for path in lists for number in path.read_text().split()}


def test_an_interrupt_ends_the_writer(slow_source: FolderSource, tmp_path: Path) -> None:
    struck: set[int] = set()
    before = children()

    def strike() -> None:
        while not struck:
            time.sleep(0.01)
            struck.update(children() - before)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        write_beton(slow_source, tmp_path / "train.beton", label="a", quiet=True)
    thread.join()
    # Where it struck before the process had a handle, that ends as soon as it has begun and sees that nobody is there.
    end = time.monotonic() + START_SECONDS
    while any(process_state(process) not in (None, "Z") for process in struck) and time.monotonic() < end:
        time.sleep(0.01)
    assert struck and {process_state(process) for process in struck} <= {None, "Z"}
    assert names(tmp_path) == []


def test_a_writer_dies_with_its_parent(slow_source: FolderSource, tmp_path: Path) -> None:
    """What it leaves has no final name, and goes when the next one starts; one that lives is not disturbed."""
    path = tmp_path / "train.beton"
    parent = os.fork()
    if parent == 0:
        try:
            write_beton(slow_source, path, label="a", quiet=True, workers=1, max_side=300)
        finally:
            os._exit(1)
    child = writer_in(tmp_path)
    with pytest.raises(DataError, match=f"is being written by process {child}"):
        write_beton(slow_source, path, label="train.beton", quiet=True)
    os.kill(parent, signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    assert os.waitpid(parent, 0)[1] == signal.SIGKILL
    while process_state(child) not in (None, "Z") and time.monotonic() < end:
        time.sleep(0.01)
    assert process_state(child) in (None, "Z")
    assert set(names(tmp_path)) <= {f"train.beton.tmp-{child}"}
    (tmp_path / f"train.beton.tmp-{child}").touch()  # in case it could still remove it
    with pytest.raises(DataError, match="made no progress"):
        write_beton(slow_source, path, label="train.beton", quiet=True, patience=0.01)
    assert names(tmp_path) == []
