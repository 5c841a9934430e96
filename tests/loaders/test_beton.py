"""The .beton writer and reader against FFCV's own, and what becomes of a writer that fails, is killed or stopped."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
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

from hardfast.kernels import Purpose
from hardfast.loaders.beton.check import read_structure
from hardfast.loaders.beton.child import MemorySource
from hardfast.loaders.beton.format import JPEG, LARGEST_PAGE, RAW, page_size
from hardfast.loaders.beton.jpeg import jpeg_size
from hardfast.loaders.beton.origin import Origin, fingerprint, origin_file, origin_of
from hardfast.loaders.beton.publish import locked, publish, temporary
from hardfast.loaders.beton.records import make_record, verify_records, write_records
from hardfast.loaders.beton.source import BetonSource, sidecar, validate
from hardfast.loaders.beton.split import beton_split
from hardfast.loaders.beton.writer import is_current, obituary, write_beton
from hardfast.loaders.child_process import process_state
from hardfast.loaders.dataset import Dataset, cut_places
from hardfast.loaders.errors import DataError, MissingDataError
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.source import Place
from hardfast.loaders.sources import open_source
from hardfast.loaders.split import Split
from hardfast.loaders.streamed import StreamedSplit

from .beton_files import digest_of, memory_source, mixed_folder, picture, write_plainly, write_with_origin
from .processes import alive, descendants, identify, within
from .sources import slow_jpeg

PATIENCE = 5.0  # seconds in which a fault must have become an error
CHILD = b"hardfast.loaders.beton.child"
START_SECONDS = 60.0  # for a process to import torch on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return mixed_folder(tmp_path_factory.mktemp("images") / "train", 24)


@pytest.fixture(scope="module")
def stuck_source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """Five JPEGs, of which the third takes a minute to decode."""
    folder = tmp_path_factory.mktemp("stuck") / "train" / "one"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.fromarray(picture(number, (48, 64))).save(folder / f"{number}.jpg")
    (folder / "2.jpg").write_bytes(slow_jpeg())
    return FolderSource.open(folder.parent)


@pytest.fixture(scope="module")
def pair(folder: FolderSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of the same name with what belongs to them: an old one of two images, and that of `folder`."""
    root = tmp_path_factory.mktemp("pair")
    for name in ("old", "new"):
        (root / name).mkdir()
    grey = Split(torch.full((2, 8, 8, 3), 7, dtype=torch.uint8), torch.arange(2))
    return write_with_origin(grey, root / "old" / "train.beton"), write_with_origin(
        folder, root / "new" / "train.beton"
    )


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- the format


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


def test_a_file_appears_whole(folder: FolderSource, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """From a folder; an older file and the remains of a killed writer make room for it, and nothing is done twice."""
    path = tmp_path / "train.beton"
    for one in pair[0].parent.iterdir():
        shutil.copy(one, tmp_path)
    for name in ("train.beton.tmp", "train.beton.sha256.tmp", "train.beton.lock"):
        (tmp_path / name).write_bytes(b"half" * (1 << 21))
    (tmp_path / "train.beton.tmp-mine").write_bytes(b"of somebody else")
    with watched(tmp_path) as seen:
        digest = write_beton(folder.place, path, label="train.beton", quiet=True)
    whole = ["train.beton", "train.beton.json", "train.beton.sha256", "train.beton.tmp-mine"]
    assert names(tmp_path) == whole
    assert {"train.beton.tmp", "train.beton.lock"} < seen
    assert sidecar(path).read_text() == f"{digest}  train.beton\n"
    checked = validate(path)
    assert (checked.images, checked.sha256) == (len(folder), digest)
    assert path.read_bytes() == pair[1].read_bytes()
    assert origin_of(path) == origin_of(pair[1])

    before, started = path.stat(), children()
    assert write_beton(folder, path, label="train.beton", quiet=True) == digest
    assert path.stat() == before or path.stat().st_mtime_ns == before.st_mtime_ns
    assert children() == started and names(tmp_path) == whole


def test_what_is_current(folder: FolderSource, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A file that is as it would be written again; one that is damaged is not."""
    path, made_of = tmp_path / "train.beton", fingerprint(folder)
    for one in pair[1].parent.iterdir():
        shutil.copy(one, tmp_path)
    assert is_current(path, made_of, None, quiet=True)
    assert (
        not is_current(path, made_of, 48) and not is_current(path, "0" * 64, None) and not is_current(path, None, None)
    )
    for name in ("train.beton.json", "train.beton.sha256", "train.beton"):
        content = (tmp_path / name).read_bytes()
        for other in (content[:-30], content[:50] + b"x" + content[51:]):
            (tmp_path / name).write_bytes(other)
            assert not is_current(path, made_of, None), name
        (tmp_path / name).unlink()
        assert not is_current(path, made_of, None), name
        (tmp_path / name).write_bytes(content)
    assert is_current(path, made_of, None)


@pytest.mark.parametrize("shape", [(2, 4, 4, 2), (2, 4, 4)])
def test_images_of_another_layout_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="N, H, W, 1 or 3"):
        write_beton(Split(torch.zeros(shape, dtype=torch.uint8), torch.zeros(2)), tmp_path / "a.beton", label="a")
    assert names(tmp_path) == []


def test_a_sample_that_raises_is_named(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "train", 12)
    damaged = Path(source.name(7))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=damaged.name) as caught:
        write_records(source, tmp_path / "train.beton", max_side=None, workers=2, advance=lambda done: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("side", "max_side"), [(13_378, None), (65_535, None), (40_000, 13_378)])
def test_an_image_of_too_many_pixels_is_not_written(tmp_path: Path, side: int, max_side: int | None) -> None:
    """Nothing of it is read: it would be refused by whoever reads the file."""
    descriptor = os.memfd_create("empty")
    os.ftruncate(descriptor, 8 + side * side)
    source = MemorySource(descriptor, (1, side, side, 1), "images in memory")
    os.close(descriptor)
    with pytest.raises(DataError, match=r"image 0 of images in memory has \d+x\d+ pixels, and 178956970 are the most"):
        write_records(source, tmp_path / "a.beton", max_side=max_side, workers=1, advance=lambda done: None)
    assert names(tmp_path) == []


def test_a_disk_that_is_full(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A limit on the length of files gives the writer an error in the middle of its work, as a full disk would.

    The images are grey, so that the file in memory which hands them over is shorter than that.
    """
    images = torch.randint(0, 256, (1200, 28, 28, 1), dtype=torch.uint8)
    path = tmp_path / "new folder" / "train.beton"
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
    try:
        with pytest.raises(DataError, match=r"train\.beton cannot be written \(File too large\)"):
            write_beton(Split(images, torch.arange(1200) % 7), path, label="train.beton", workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(path.parent) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr().out == ""


def children() -> set[int]:
    """Processes that this one has started."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(number) for path in lists for number in path.read_text().split()}


def command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def striking(sent: signal.Signals, *, at_child: bool) -> Iterator[dict[str, float]]:
    """Sends a signal as soon as this process has started another one: to that, or to this process itself."""
    before, struck = children(), {}

    def started() -> bool:
        # Until a new process runs its own program, its parent waits for it: stopped then, it would stop both.
        return any(not at_child or CHILD in command_line(process) for process in children() - before)

    def strike() -> None:
        if within(START_SECONDS, started):
            (process,) = children() - before
            struck.update(process=process, at=time.monotonic())
            os.kill(process if at_child else os.getpid(), sent)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    yield struck
    thread.join()
    assert struck, "no writer was started"


@pytest.mark.parametrize(
    ("sent", "message"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "was stopped")]
)
def test_a_writer_that_is_killed_or_stopped(
    folder: FolderSource, tmp_path: Path, sent: signal.Signals, message: str
) -> None:
    with striking(sent, at_child=True) as struck:
        with pytest.raises(DataError, match=message):
            write_beton(folder, tmp_path / "train.beton", label="a", quiet=True)
        assert time.monotonic() - struck["at"] < PATIENCE
    assert process_state(int(struck["process"])) is None
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("sent", "said", "unsaid"),
    [
        (signal.SIGKILL, "was killed by SIGKILL, perhaps because memory ran out", "disk"),
        (signal.SIGBUS, "was killed by SIGBUS, since a mapped file could not be read: check the disk", "memory"),
        (signal.SIGSEGV, "was killed by SIGSEGV; start again", "memory"),
    ],
)
def test_what_is_said_of_a_death(tmp_path: Path, sent: signal.Signals, said: str, unsaid: str) -> None:
    with subprocess.Popen(["/bin/sh", "-c", f"ulimit -c 0; kill -{int(sent)} $$"]) as process:
        line = obituary(process, tmp_path / "train.beton", io.BytesIO())
    assert said in line and unsaid not in line and "\n" not in line


def test_a_writer_that_is_stuck(stuck_source: FolderSource, tmp_path: Path) -> None:
    """In mid-write, at an image that takes a minute to decode."""
    with watched(tmp_path) as seen, pytest.raises(DataError, match=r"made no progress after \d+ images in 1 s"):
        write_beton(stuck_source, tmp_path / "train.beton", label="a", quiet=True, workers=1, patience=1.0)
    assert "train.beton.tmp" in seen
    assert names(tmp_path) == []


def test_an_interrupt_ends_the_writer(folder: FolderSource, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's worker processes ignore it
    try:
        with striking(signal.SIGINT, at_child=False) as struck, pytest.raises(KeyboardInterrupt):
            write_beton(folder, tmp_path / "train.beton", label="a", quiet=True)
            time.sleep(START_SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
    # Where it struck before the process had a handle, that ends as soon as it has begun and sees that nobody is there.
    process = int(struck["process"])
    assert within(START_SECONDS, lambda: process_state(process) in (None, "Z"))
    assert names(tmp_path) == []


# --- who writes, and what is there at any time


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """Many that begin and end at the same time: never two of them, although each removes the lock's file."""
    path, inside, most, times = tmp_path / "train.beton", 0, 0, 0

    def write() -> None:
        nonlocal inside, most, times
        for _ in range(100):
            try:
                with locked(path):
                    inside += 1
                    most = max(most, inside)
                    times += 1
                    time.sleep(0.0002)
                    inside -= 1
            except DataError as error:
                assert "is being written by another process" in str(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0) and times > 10
    assert names(tmp_path) == []


def is_free(path: Path) -> bool:
    try:
        with locked(path):
            return True
    except DataError:
        return False


def prepared(pair: tuple[Path, Path], folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A folder with the old file and the new one as its writer has left it, waiting for its name."""
    folder.mkdir()
    for one in pair[0].parent.iterdir():
        if one.name not in without:
            os.link(one, folder / one.name)
    os.link(pair[1], temporary(folder / "train.beton"))
    return folder / "train.beton"


def check_state(path: Path, pair: tuple[Path, Path], *, vouched: bool) -> str:
    """What is there is one of the two files, and nothing that lies beside it says that it is the other one."""
    which = next(one for one in pair if one.read_bytes() == path.read_bytes())
    checked = validate(path, quiet=True)
    assert checked.sha256 is not None or not vouched
    origin = origin_of(path)
    if which is pair[0]:
        assert origin in (None, origin_of(pair[0]))
    else:
        assert origin in (None, Origin("new", None))
    return "old" if which is pair[0] else "new"


@pytest.mark.parametrize("obstacle", ["train.beton.sha256.tmp", "train.beton.tmp"])
def test_a_failed_replacement_leaves_the_old_file(pair: tuple[Path, Path], tmp_path: Path, obstacle: str) -> None:
    path = prepared(pair, tmp_path / "here")
    if obstacle == "train.beton.tmp":
        temporary(path).unlink()
    else:
        (path.parent / obstacle).mkdir()
    with pytest.raises(OSError):
        publish(path, digest_of(pair[1]), Origin("new", None))
    assert check_state(path, pair, vouched=True) == "old"
    for one in pair[0].parent.iterdir():
        assert (path.parent / one.name).read_bytes() == one.read_bytes()


def test_kills_while_a_file_is_published_and_while_it_is_written(
    pair: tuple[Path, Path], stuck_source: FolderSource, tmp_path: Path
) -> None:
    """No file is taken for another, a writer does not outlive the process that started it, and the next may begin."""
    steps = 30
    folders = [prepared(pair, tmp_path / f"whole-{step}").parent for step in range(steps)]
    bare = ("train.beton.sha256", "train.beton.json")
    folders += [prepared(pair, tmp_path / f"bare-{step}", without=bare).parent for step in range(steps)]
    job = {"folders": list(map(str, folders)), "steps": steps, "digest": digest_of(pair[1])}
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "train.beton"
    job |= {"source": str(stuck_source), "path": str(path)}
    program = Path(__file__).with_name("beton_deaths.py")
    parent = subprocess.Popen(
        [sys.executable, str(program), json.dumps(job)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with parent:
        try:
            statuses = json.loads(parent.stdout.readline())
            assert within(START_SECONDS, temporary(path).exists)
            (child,) = map(identify, descendants(parent.pid))
            with pytest.raises(DataError, match=r"train\.beton is being written by another process"):
                write_beton(stuck_source, path, label="a", quiet=True)
            assert alive(child) and temporary(path).exists()
        finally:
            parent.kill()
    assert within(PATIENCE, lambda: not alive(child))
    assert names(path.parent) == ["train.beton.lock", "train.beton.tmp"]
    assert within(PATIENCE, lambda: is_free(path))  # as soon as the last thread has ended

    for begin, vouched in ((0, True), (steps, False)):
        part = statuses[begin : begin + steps]
        killed = part.index(0)
        assert killed > 8 and set(part[:killed]) == {-signal.SIGKILL} and set(part[killed:]) == {0}
        states = [
            check_state(one / "train.beton", pair, vouched=vouched) for one in folders[begin : begin + killed + 1]
        ]
        assert states == sorted(states, reverse=True) and set(states) == {"old", "new"}
        assert names(folders[begin + killed]) == ["train.beton", "train.beton.json", "train.beton.sha256"]


# --- a file of other images


def streamed(folder: Path, beton: Path) -> Dataset:
    """A data set of a folder's images."""
    source = FolderSource.open(folder)
    split = StreamedSplit(source, torch.arange(len(source)), (64, 96))
    return Dataset("folder", 3, str(folder), split, split, split, beton=beton)


@pytest.mark.parametrize("sample", [4, 5])  # a JPEG, and a PNG
def test_a_file_of_other_images_is_refused(
    folder: FolderSource, pair: tuple[Path, Path], tmp_path: Path, sample: int
) -> None:
    """Also one of unknown origin. The labels are the same, and so are the sizes."""
    path = tmp_path / "train.beton"
    for one in pair[1].parent.iterdir():
        shutil.copy(one, tmp_path)
    changed = tmp_path / "train"
    shutil.copytree(str(folder), changed, ignore=shutil.ignore_patterns("*.npz"))
    assert len(beton_split(streamed(changed, path))) == len(folder)
    file = changed / Path(folder.name(sample)).relative_to(str(folder))
    Image.fromarray(picture(99, (64, 96))).save(file)
    FolderSource.index(changed)
    with pytest.raises(
        DataError, match=r"written from other images than folder has now: .*data prepare folder --beton"
    ):
        beton_split(streamed(changed, path))
    origin_file(path).unlink()
    with pytest.raises(DataError, match=f"record {sample} of .* holds another image than folder has there: write it"):
        beton_split(streamed(changed, path))


def test_a_file_of_unknown_origin_may_hold_less_of_the_same_images(folder: FolderSource, tmp_path: Path) -> None:
    """Scaled down, or encoded again as FFCV's own writer does."""
    small, again = tmp_path / "small.beton", tmp_path / "again.beton"
    write_records(folder, small, max_side=48, workers=1, advance=lambda done: None)
    shutil.copytree(str(folder), tmp_path / "again", ignore=shutil.ignore_patterns("*.npz"))
    for file in (tmp_path / "again").glob("*/*.jpg"):
        Image.open(file).convert("RGB").save(file, quality=85, subsampling=2)
    write_plainly(FolderSource.open(tmp_path / "again"), again)
    for path in (small, again):
        assert len(beton_split(streamed(Path(str(folder)), path))) == len(folder)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_set_in_memory_that_has_changed(tmp_path: Path, part: str) -> None:
    images = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = Split(images, torch.arange(40) % 4)
    path = write_with_origin(whole, tmp_path / "train.beton")
    kept, held = cut_places(40, 10, seed=3, purpose=Purpose.HELDOUT, name="heldout")

    def data(split: Split) -> Dataset:
        return Dataset("made", 4, "made", split.take(kept), split.take(held), split, cut=kept, beton=path)

    assert torch.equal(beton_split(data(whole)).decoded().images, images[kept])
    other = images.clone()
    other[(kept if part == "train" else held)[7], 3, 3, 0] ^= 1
    with pytest.raises(DataError, match="was written from other images than made has now"):
        beton_split(data(Split(other, whole.labels)))
    origin_file(path).unlink()
    assert len(beton_split(data(whole))) == 30
    if part == "train":
        with pytest.raises(DataError, match=f"record {int(kept[7])} of .* holds another image"):
            beton_split(data(Split(other, whole.labels)))
