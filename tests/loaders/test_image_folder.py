"""Image folders: their order, index and pixels; what is damaged, added, gone or no image; and 300 damaged JPEGs."""

from __future__ import annotations

import gc
import io
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("sklearn")
from PIL import Image

from hardfast.loaders import DataError, StreamedSplit, in_memory, index_file, resized
from hardfast.loaders.crops import central_boxes
from hardfast.loaders.folder_index import Index, Listing, Names
from hardfast.loaders.image_folder import FolderSource, decode_rgb
from hardfast.loaders.index_file import INDEX_NAME, index_places, read_index, write_index
from hardfast.loaders.source import Place
from hardfast.loaders.sources import open_source
from hardfast.loaders.streamed import resampled

from .makers import photograph, write_photographs


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "BytesIO" not in message
    return message


def test_order_labels_sizes_and_pixels(tmp_path: Path) -> None:
    """Sorted by class and then by name, nested folders as well; hidden files and what is no image left out."""
    folder = tmp_path / "train"
    made = {}
    for name in ("b/2.png", "b/10.png", "a/z.PNG", "a/deep/er/x.png", "a/b.bmp"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made[name] = photograph(len(made), 20 + len(made), 30)
        Image.fromarray(made[name]).save(path)
    for name in ("a/.hidden.png", "a/notes.txt", ".trash/x.png", "README"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    source = FolderSource.open(folder)
    order = ["a/b.bmp", "a/deep/er/x.png", "a/z.PNG", "b/10.png", "b/2.png"]
    assert [source.name(i) for i in range(len(source))] == [str(folder / name) for name in order]
    assert (source.classes, source.left_out, str(source)) == (("a", "b"), ("a/notes.txt",), str(folder))
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.heights.tolist() == [made[name].shape[0] for name in order]
    assert source.widths.tolist() == [30] * 5
    for number, name in enumerate(order):
        assert np.array_equal(source.pixels(number), made[name])
        assert source.encoded(number) == (folder / name).read_bytes()
    again = open_source(Place("folder", str(folder)))
    assert np.array_equal(again.pixels(3), made["b/10.png"])
    assert sorted(os.listdir(folder)) == [".trash", "README", "a", "b", INDEX_NAME]  # and no temporary file


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, "png") for mode in ("1", "L", "LA", "P", "RGBA")] + [("L", "jpg"), ("CMYK", "jpg"), ("CMYK", "tif")],
)
def test_everything_becomes_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    """By Pillow's own rules, without transparency; grey in three equal channels."""
    write_photographs(tmp_path / "train", per_class=1)
    path = tmp_path / "train" / "bird" / f"x.{suffix}"
    Image.fromarray(photograph(1, 24, 32)).convert(mode).save(path)
    source = FolderSource.open(tmp_path / "train")
    pixels = source.pixels(1)
    with Image.open(path) as image:
        assert image.mode == mode
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert (pixels.shape, pixels.dtype) == ((24, 32, 3), np.uint8)
    assert pixels.std() > 10  # a picture, not a flat colour
    if mode in ("1", "L", "LA"):
        assert (pixels == pixels[..., :1]).all()


def test_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    write_photographs(tmp_path / "train", per_class=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(photograph(3, 24, 32)).save(tmp_path / "train" / "bird" / "x.jpg", exif=exif)
    source = FolderSource.open(tmp_path / "train")
    assert (source.heights[1], source.widths[1], source.pixels(1).shape) == (24, 32, (24, 32, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four PNGs, not indexed yet."""
    return write_photographs(tmp_path / "train")


def empty_class(folder: Path) -> None:
    (folder / "dog").mkdir()
    (folder / "dog" / "note.txt").write_text("to come")


def loop(folder: Path) -> None:
    (folder / "cat" / "all").symlink_to(folder)


def deep(folder: Path) -> None:
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(folder / "cat" / "2.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "train is not there"),
        (lambda folder: [shutil.rmtree(folder / name) for name in ("bird", "cat")], "holds no class folders"),
        (empty_class, "dog holds no images: remove this class folder"),
        (lambda folder: (folder / "cat/0.png").rename(folder / "0.png"), "0.png lies in no class folder: move it"),
        (lambda folder: (folder / "cat/0.png").write_bytes(b""), r"cat/0.png is empty \(0 bytes\)"),
        (lambda folder: (folder / "cat/0.png").write_bytes(b"x" * 99), r"cat/0.png is damaged or no image \(cannot id"),
        (lambda folder: (folder / "cat/x.png").symlink_to("gone"), "cat/x.png is a link that leads nowhere"),
        (lambda folder: os.mkfifo(folder / "cat/x.png"), "cat/x.png is no plain file"),
        (loop, "cat/all is a link to a folder that it lies in"),
        (deep, "cat/2.png has more than 8 bits a channel"),
        (lambda folder: os.truncate(folder / "cat/1.png", 300 << 20), "cat/1.png has .* more than 256 MiB"),
        (lambda folder: (folder / "cat" / "a\nb.png").write_bytes(b"x"), r"cat/a\\nb.png is damaged or no image"),
        (lambda folder: (folder / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"x"), r"xff.png is damaged or no im"),
    ],
)
def test_what_cannot_be_indexed(damage: Callable[[Path], object], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as error:
        FolderSource.open(folder)
    one_line(error)
    assert not (folder / INDEX_NAME).exists()


def test_links_to_files_and_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    (folder / "cat").rename(moved)
    (folder / "cat").symlink_to(moved)
    (folder / "bird" / "4.png").symlink_to(moved / "0.png")
    assert FolderSource.open(folder).labels.tolist() == [0] * 5 + [1] * 4


def test_one_class_alone_is_a_source(tmp_path: Path) -> None:
    assert FolderSource.open(write_photographs(tmp_path / "train", classes=["a"])).classes == ("a",)


def grow(folder: Path) -> None:
    with (folder / "cat" / "2.png").open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.copy(folder / "cat/0.png", folder / "cat/new.png"), "cat/new.png was added"),
        (lambda folder: (folder / "cat/1.png").unlink(), "cat/1.png is gone"),
        (lambda folder: shutil.rmtree(folder / "cat"), "cat/0.png is gone"),
        (lambda folder: (folder / "cat").rename(folder / "dog"), "cat/0.png is gone"),
        (grow, "cat/2.png has [0-9]+ bytes, not [0-9]+ any more"),
    ],
)
def test_a_folder_that_changed_says_so(change: Callable[[Path], object], message: str, folder: Path) -> None:
    """Names the first file and the command, which helps."""
    FolderSource.index(folder)
    FolderSource.checked(folder).check()
    change(folder)
    with pytest.raises(DataError, match=message) as error:
        FolderSource.checked(folder)
    assert f"`hardfast data prepare folder --root {folder.parent}` indexes it again" in one_line(error)
    assert len(FolderSource.refreshed(folder)) == len(FolderSource.checked(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "is not the file that was indexed, by its sha256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes, not [0-9]+ as when it was indexed"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, not [0-9]+ as when it was indexed"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: shutil.copy(path.with_name("1.png"), path), "indexed"),
        (pipe, "is no plain file"),
    ],
)
def test_a_sample_that_changed_is_not_delivered(change: Callable[[Path], object], message: str, folder: Path) -> None:
    source = FolderSource.open(folder)
    change(folder / "cat" / "3.png")
    for read in (source.pixels, source.encoded):
        with pytest.raises(DataError, match=f"cat/3.png .*{message}") as error:
            read(7)
        one_line(error)
    assert source.pixels(6).shape == (24, 32, 3)


def test_an_image_that_was_cut_short_before_it_was_indexed(folder: Path) -> None:
    """Its header is whole, so indexing takes it; reading does not, and neither does `prepare`, which decodes."""
    path = folder / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-400])
    source = FolderSource.open(folder)
    with pytest.raises(DataError, match=r"cat/3.png is damaged or no image \(.*truncated") as error:
        source.pixels(7)
    one_line(error)
    with pytest.raises(DataError, match=r"cat/3.png is damaged or no image"):
        FolderSource.index(folder, decode=True)


def test_300_damaged_jpegs(tmp_path: Path) -> None:
    """Flipped bits, cut ends, lost blocks, files that changed places: none is delivered, each error names its file.

    And where they are indexed as they are, so that no digest helps: an error that names the file, or an image.
    """
    folder = write_photographs(tmp_path / "train", classes=["a"], per_class=30, size=None, suffix="jpg")
    shutil.copytree(folder / "a", folder / "b")
    source, draw = FolderSource.open(folder), np.random.default_rng(5)
    refused = decoded = 0
    for case in range(300):
        sample = int(draw.integers(30))
        path = Path(source.name(sample))
        original = path.read_bytes()
        content = bytearray(original)
        kind = case % 4
        if kind == 0:
            for place in draw.integers(len(content), size=int(draw.integers(1, 9))):
                content[place] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            del content[int(draw.integers(len(content))) :]
        elif kind == 2:
            start = int(draw.integers(len(content) - 64))
            content[start : start + 64] = bytes(64)
        else:
            other = (sample + int(draw.integers(1, 30))) % 30
            content = bytearray(Path(source.name(other)).read_bytes())
        if content == original:  # two flips of one bit
            content[-1] ^= 1
        path.write_bytes(content)
        for read in (source.pixels, source.encoded):
            with pytest.raises(DataError, match=r"copy it (there )?again") as error:
                read(sample)
            assert str(path) in one_line(error)
        path.write_bytes(original)
        if kind != 3:
            try:
                assert decode_rgb(bytes(content), path.name).shape[2] == 3
                decoded += 1
            except DataError as failure:
                assert str(failure).startswith(f"{path.name} is damaged or no image")
                refused += 1
    assert refused > 60 and decoded > 60  # both happen, which is why there are digests
    assert source.pixels(0).shape == (24, 40, 3)


@pytest.mark.parametrize("damage", ["bit", "cut", "other file", "version", "rows", "path", "pickle"])
def test_a_damaged_index_is_not_believed(damage: str, folder: Path) -> None:
    FolderSource.index(folder)
    path = folder / INDEX_NAME
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "other file":
        path.write_bytes(b"nothing")
    else:
        with np.load(path) as file:
            table = dict(file)
        if damage == "version":
            table["version"] = np.array(99)
        elif damage == "rows":
            table["heights"] = table["heights"][:-1]
        elif damage == "path":
            names = table["names"].tobytes().replace(b"bird/0.png", b"bird/../x/")
            table["names"] = np.frombuffer(names, np.uint8)
        else:
            table["version"] = np.array([{}], dtype=object)
        np.savez(path, **table)
    with pytest.raises(DataError, match=f"{INDEX_NAME}, the index of its folder, is damaged") as error:
        FolderSource.open(folder)
    assert "indexes it again" in one_line(error)
    assert len(FolderSource.refreshed(folder)) == 8


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (["a", "b"], ["a/0.png", "/b/0.png"], "none of a visible file below"),
        (["a", "b"], ["a/0.png", "b/../0.png"], "none of a visible file below"),
        (["a", "b"], ["a/0.png", "b/./0.png"], "none of a visible file below"),
        (["a", "b"], ["a/0.png", "b//0.png"], "none of a visible file below"),
        (["a", "b"], ["a/0.png", "b/"], "none of a visible file below"),
        (["a", "b"], ["a/0.png", ""], "none of a visible file below"),
        (["", "a"], ["/0.png", "a/0.png"], "none of a visible file below"),
        ([".", "a"], ["./0.png", "a/0.png"], "none of a visible file below"),
        (["..", "a"], ["../0.png", "a/0.png"], "none of a visible file below"),
        (["a", "b"], ["a/0.png", "b"], "classes are not those of its names"),
        (["a", "c"], ["a/0.png", "b/0.png"], "classes are not those of its names"),
        (["a"], ["a/0.png", "a/0.png"], "not in order, or not different"),
        (["a"], ["a/1.png", "a/0.png"], "not in order, or not different"),
        (["a", "b"], ["b/0.png", "a/0.png"], "not in order, or not different"),
        (["a", "a b"], ["a b/0.png", "a/0.png"], "not in order, or not different"),
    ],
)
def test_an_index_of_names_that_no_listing_gives(
    classes: list[str], names: list[str], message: str, folder: Path
) -> None:
    ones = np.ones(2, np.int64)

    def write(classes: list[str], names: list[str]) -> None:
        listing = Listing(tuple(classes), Names.of(names), ones)
        write_index(folder, Index(listing, ones, ones, np.zeros((2, 32), np.uint8), True))

    write(["a", "a b"], ["a/0.png", "a b/0.png"])  # by class first, though a blank sorts before a slash
    assert FolderSource.open(folder).labels.tolist() == [0, 1]
    write(classes, names)
    with pytest.raises(DataError, match=f"{message}.* indexes it again") as error:
        FolderSource.open(folder)
    one_line(error)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("more", "other tables"),
        ("twice", "other tables"),
        ("less", "other tables"),
        ("packed", "tables are packed"),
        ("shared", "claim more bytes than it has"),
        ("header", "cannot reshape|buffer"),
        ("floats", "a table holds float64"),
    ],
)
def test_an_index_takes_no_more_memory_than_its_file(damage: str, message: str, folder: Path) -> None:
    """Known tables only, none of them packed, and none allocated on the word of its header."""
    FolderSource.index(folder)
    path = folder / INDEX_NAME
    with np.load(path) as file:
        table = dict(file)
    if damage in ("more", "less", "floats", "packed"):
        table |= {"more": np.zeros(3)} if damage == "more" else {}
        table |= {"heights": table["heights"].astype(float)} if damage == "floats" else {}
        if damage == "less":
            del table["decoded"]
        (np.savez_compressed if damage == "packed" else np.savez)(path, **table)
    else:
        content = {name: io.BytesIO() for name in table}
        for name, buffer in content.items():
            np.save(buffer, table[name])
        with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings(action="ignore"):
            for name, buffer in content.items():
                whole = buffer.getvalue()
                if damage == "header" and name == "heights":
                    whole = whole.replace(b"(8,), }            ", b"(8888888888888,), }")
                file.writestr(f"{name}.npy", whole)
            if damage == "twice":
                file.writestr("heights.npy", content["heights"].getvalue())
            if damage == "shared":  # one table's bytes, claimed by another entry of the directory as well
                first = file.getinfo("sha256.npy")
                for info in file.infolist():
                    info.file_size = info.compress_size = first.file_size * 9
    with pytest.raises(DataError, match=f"is damaged .*{message}.* indexes it again") as error:
        FolderSource.open(folder)
    one_line(error)


def strings_of(root: object) -> set[str]:
    """All strings that an object holds, in whatever it holds them."""
    found, seen, todo = set(), set(), [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            found.add(thing)
        todo += gc.get_referents(thing)
    return found


def test_a_source_holds_no_string_for_each_file(folder: Path) -> None:
    """A forked process would copy them page by page, by counting its references to them."""
    source = FolderSource.open(folder)
    assert Path(source.name(7)) == folder / "cat" / "3.png"
    held = strings_of(vars(source))
    assert "cat" in held  # a class
    assert not [text for text in held if text.endswith(".png")]


def test_what_an_index_of_before_is_good_for(folder: Path) -> None:
    """Files that it has the digest of are not decoded again, but only if they were decoded then."""
    FolderSource.open(folder)
    for decoded in (True, False):
        index = read_index(folder)
        assert index is not None
        write_index(folder, replace(index, heights=np.arange(1, 9), decoded=decoded))
        source = FolderSource.refreshed(folder)
        assert (source.heights.tolist() == list(range(1, 9))) == decoded
        assert source.changes == ""
        index = read_index(folder)
        assert index is not None and index.decoded


def test_what_has_changed_is_said_and_decoded(folder: Path) -> None:
    """Also if its size is the same, and no index is written that calls a damaged file sound."""
    FolderSource.refreshed(folder)
    before = (folder / INDEX_NAME).read_bytes()
    path = folder / "cat" / "1.png"
    sound = path.read_bytes()
    flip(path)
    with pytest.raises(DataError, match=r"cat/1.png is damaged or no image"):
        FolderSource.refreshed(folder)
    assert (folder / INDEX_NAME).read_bytes() == before
    path.write_bytes(sound)
    Image.fromarray(photograph(9, 30, 30)).save(folder / "cat" / "2.png")
    shutil.copy(folder / "bird" / "0.png", folder / "bird" / "00.png")
    (folder / "cat" / "0.png").unlink()
    (folder / "cat" / "3.png").unlink()
    source = FolderSource.refreshed(folder)
    assert source.changes == (
        f"since {folder} was indexed: 1 added, like {folder}/bird/00.png, 2 gone, like {folder}/cat/0.png, "
        f"1 changed, like {folder}/cat/2.png"
    )
    assert source.heights.tolist() == [24] * 6 + [30]
    path.write_bytes(sound + b"1")  # which decoders ignore
    assert "1 changed" in FolderSource.refreshed(folder).changes
    path.write_bytes(sound + b"2")
    assert FolderSource.refreshed(folder).changes == f"since {folder} was indexed: 1 changed, like {path}"
    assert FolderSource.refreshed(folder).changes == ""
    (folder / INDEX_NAME).write_bytes(b"x")
    assert "could not be used" in FolderSource.refreshed(folder).changes


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may write to, as the cache, and one beside it that only its owner may."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        cache = Path(name) / "cache"
        cache.mkdir()
        os.chmod(cache, 0o777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user for a moment")
def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(open_to_all: Path) -> None:
    folder = write_photographs(open_to_all / "train")
    Image.init()
    os.seteuid(65534)
    try:
        FolderSource.open(folder)
        cached, beside = index_places(folder)
        assert cached.parent == open_to_all / "cache" / "hardfast"
        assert cached.exists() and not beside.exists()
        assert read_index(folder) is not None
        os.environ["XDG_CACHE_HOME"] = str(open_to_all)
        with pytest.raises(DataError, match=r"can be written neither there .* set XDG_CACHE_HOME") as error:
            FolderSource.index(folder)
        one_line(error)
        os.environ["XDG_CACHE_HOME"] = str(open_to_all / "cache")
    finally:
        os.seteuid(0)
    FolderSource.index(folder)  # by its owner: now beside the images, and the other one is gone
    assert beside.exists() and not cached.exists()


def test_an_interrupted_index_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one gets its name only when it is whole."""
    FolderSource.index(folder)
    before = (folder / INDEX_NAME).read_bytes()

    def full(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_file.os, "fsync", full)
    with pytest.raises(KeyboardInterrupt):
        FolderSource.index(folder)
    assert (folder / INDEX_NAME).read_bytes() == before
    assert len(os.listdir(folder)) == 3


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs Pillow .*pip install pillow"):
        FolderSource.open(folder)


def test_a_streamed_split(tmp_path: Path) -> None:
    """Central boxes in the order of its records; whole images, bit for bit, where they have the size."""
    source = FolderSource.open(write_photographs(tmp_path / "train", size=None))
    records = torch.tensor([5, 0, 7, 0])
    split = StreamedSplit(source, records, (16, 20), share=0.75)
    assert (len(split), split.labels.tolist(), split.image_shape) == (4, [1, 0, 1, 0], (16, 20, 3))
    assert split.heights.tolist() == source.heights[records.numpy()].tolist()
    decoded = in_memory(split)
    assert in_memory(decoded) is decoded
    assert (decoded.images.shape, decoded.images.dtype) == ((4, 16, 20, 3), torch.uint8)
    assert torch.equal(decoded.labels, split.labels)
    boxes = central_boxes(split.heights, split.widths, (16, 20), share=0.75)
    for image, record, box in zip(decoded.images, records.tolist(), boxes, strict=True):
        top, left, height, width = box.tolist()
        cut = Image.fromarray(source.pixels(record)[top : top + height, left : left + width])
        by_pillow = np.asarray(cut.resize((20, 16), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(image.numpy() - by_pillow).max() <= 1  # its antialiased filter, in fixed point
    one = split.take(torch.tensor([1]))
    assert one.native_size == (24, 40)
    assert split.native_size is None
    assert np.array_equal(one.at((24, 40)).decoded().images[0].numpy(), source.pixels(0))
    assert torch.equal(resized(split, 12).images, split.at((12, 12)).decoded().images)
    assert len(split.take(torch.tensor([], dtype=torch.int64)).decoded()) == 0


def test_a_box_of_the_size_is_not_resampled() -> None:
    pixels = photograph(0, 40, 50)
    assert np.array_equal(resampled(pixels, torch.tensor([3, 4, 30, 20]), (30, 20)).numpy(), pixels[3:33, 4:24])


def test_what_a_streamed_split_refuses(folder: Path) -> None:
    source = FolderSource.open(folder)
    for size, share, message in (((0, 8), 1.0, "image-size"), ((8, 8), 0.0, "test-crop"), ((8, 8), 1.5, "test-crop")):
        with pytest.raises(DataError, match=message):
            StreamedSplit(source, torch.arange(8), size, share=share)
    huge = StreamedSplit(source, torch.arange(8), (1 << 20, 1 << 20))
    with pytest.raises(DataError, match=r"need 24576.0 GiB of memory .* smaller --data.image-size"):
        huge.decoded()
    (folder / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cat/0.png cannot be read"):
        StreamedSplit(source, torch.arange(8), (8, 8)).decoded()


def test_an_animated_image_shows_its_first_frame(folder: Path) -> None:
    frames = [Image.fromarray(photograph(number, 20, 20)).convert("P") for number in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    (folder / "cat" / "9.gif").write_bytes(buffer.getvalue())
    source = FolderSource.open(folder)
    assert np.array_equal(source.pixels(8), np.asarray(frames[0].convert("RGB")))
