"""Tiny ImageNet read from a small made folder and archive: pixels, labels, counts, and what is missing or damaged."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from hardfast.loaders import REGISTRY, DataError, DataOptions, open_dataset, prepare
from hardfast.loaders.image_files import LARGEST_FILE, ZipFiles
from hardfast.loaders.tiny_imagenet import PUBLISHED, fetch_tiny_imagenet, read_tiny_imagenet

from .makers import (
    SMALL_TINY_IMAGENET,
    WNIDS,
    tiny_imagenet_pixels,
    write_jpeg,
    write_tiny_imagenet,
    zip_folder,
)


@pytest.mark.parametrize("kind", ["folder", "archive", "root itself"])
def test_what_is_delivered(kind: str, tmp_path: Path) -> None:
    """Classes by sorted WNID, grey images in three channels, the validation set in the order of its annotations."""
    source = folder = write_tiny_imagenet(tmp_path)
    if kind == "archive":
        source = zip_folder(folder)
        shutil.rmtree(folder)
    root = folder.parent if kind == "root itself" else tmp_path
    found = read_tiny_imagenet(root, SMALL_TINY_IMAGENET)
    assert found.source == str(source)
    assert found.num_classes == 3
    assert found.train.images.shape == (12, 64, 64, 3)
    assert found.train.images.dtype == torch.uint8
    assert found.train.labels.dtype == found.test.labels.dtype == torch.int64
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.test.labels.tolist() == [2, 0, 1, 1, 1]
    for number, wnid in enumerate(sorted(WNIDS)):
        of_class = found.train.images[4 * number : 4 * number + 4].int()
        for image, colour in zip(of_class[:3], (tiny_imagenet_pixels(wnid, i) for i in range(3)), strict=True):
            assert (image - torch.tensor(colour)).abs().max() <= 3  # JPEG rounds
        assert of_class[3].eq(40).all()
    for number, wnid in enumerate(WNIDS[index] for index in (2, 1, 0, 0, 0)):
        colour = torch.tensor(tiny_imagenet_pixels(wnid, number))
        assert (found.test.images[number].int() - colour).abs().max() <= 3


def test_the_published_counts() -> None:
    assert (PUBLISHED.num_classes, PUBLISHED.train_per_class, PUBLISHED.test_images) == (200, 500, 10_000)


def refold(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "val" / "val_annotations.txt"
        path.write_text(path.read_text().replace(old, new))

    return change


def cut(folder: Path) -> None:
    path = folder / "val" / "images" / "val_2.JPEG"
    path.write_bytes(path.read_bytes()[:-200])


IMAGE = f"train/{WNIDS[2]}/images/{WNIDS[2]}_1.JPEG"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / IMAGE).unlink(), rf"train/{WNIDS[2]}/images holds 3 .JPEG files, not 4"),
        (lambda folder: shutil.rmtree(folder / "train" / WNIDS[0]), rf"train/{WNIDS[0]}/images holds 0"),
        (lambda folder: (folder / IMAGE).write_bytes(b"nothing"), rf"{IMAGE} is damaged or no image \(cannot identify"),
        (cut, "val/images/val_2.JPEG is damaged or no image .*[Tt]runcated"),
        (lambda folder: write_jpeg(folder / IMAGE, 9, side=65), rf"{IMAGE} has 65x65 pixels, not 64x64"),
        (lambda folder: (folder / "wnids.txt").unlink(), r"wnids.txt cannot be read"),
        (lambda folder: (folder / "wnids.txt").write_text("n1\n"), "wnids.txt names 1 classes, not 3"),
        (lambda folder: (folder / "wnids.txt").write_bytes(b"\xff\xfe"), "wnids.txt is not text"),
        (refold(WNIDS[2], "n09"), "val_annotations.txt, line 1, names no file and class"),
        (refold("val_1.JPEG\t", "val_1.JPEG "), "val_annotations.txt, line 2, names no file and class"),
        (refold("val_1.JPEG", "val_0.JPEG"), "names val_0.JPEG 2 times"),
        (refold("val_1.JPEG", "../../x"), "line 2, names no file and class"),
        (lambda folder: (folder / "val/val_annotations.txt").write_text(""), "names 0 images, not 5"),
        (lambda folder: (folder / "val/images/val_4.JPEG").unlink(), "val/images/val_4.JPEG cannot be read"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_what_is_missing_or_damaged(
    damage: Callable[[Path], object], message: str, archive: bool, tmp_path: Path
) -> None:
    source = folder = write_tiny_imagenet(tmp_path)
    damage(folder)
    if archive:
        source = zip_folder(folder)
        shutil.rmtree(folder)
    with pytest.raises(DataError, match=message) as error:
        read_tiny_imagenet(tmp_path, SMALL_TINY_IMAGENET)
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)
    assert "BytesIO" not in str(error.value)


@pytest.mark.parametrize("place", ["middle", "end"])
def test_a_damaged_archive(place: str, tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    archive = zip_folder(folder)
    shutil.rmtree(folder)
    content = archive.read_bytes()
    half = content.rindex(b"\xff\xd8\xff") + 300  # inside the last JPEG, whose CRC is then another
    archive.write_bytes(content[:half] + b"\0\1" + content[half + 2 :] if place == "middle" else content[:-50])
    with pytest.raises(DataError, match="again") as error:
        read_tiny_imagenet(tmp_path, SMALL_TINY_IMAGENET)
    assert str(archive) in str(error.value)


def test_it_is_fetched_and_its_digest_checked(tmp_path: Path) -> None:
    made = write_tiny_imagenet(tmp_path / "made")
    archive = zip_folder(made)
    root = tmp_path / "data"
    mirror = archive.parent.resolve().as_uri()
    with pytest.raises(DataError, match="md5"):
        fetch_tiny_imagenet(root, mirror, SMALL_TINY_IMAGENET)
    spec = replace(SMALL_TINY_IMAGENET, archive_md5=hashlib.md5(archive.read_bytes()).hexdigest())
    fetch_tiny_imagenet(root, mirror, spec)
    assert len(read_tiny_imagenet(root, spec).train) == 12
    assert [path.name for path in root.rglob("*") if path.is_file()] == [archive.name]


def test_the_official_addresses_are_tried_in_order(tmp_path: Path) -> None:
    """The encrypted one first; the next where the one before gives nothing or another file."""
    assert [url.partition(":")[0] for url in PUBLISHED.urls] == ["https", "http"]
    archive = zip_folder(write_tiny_imagenet(tmp_path / "made"))
    good, missing, damaged = archive.parent, tmp_path / "missing", tmp_path / "damaged"
    damaged.mkdir()
    (damaged / archive.name).write_bytes(archive.read_bytes()[:-1])
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    for number, places in enumerate([(good, missing), (missing, good), (damaged, good)]):
        urls = tuple(place.resolve().as_uri() for place in places)
        root = tmp_path / f"data {number}"
        fetch_tiny_imagenet(root, None, replace(SMALL_TINY_IMAGENET, archive_md5=digest, urls=urls))
        assert (root / "tiny-imagenet" / archive.name).read_bytes() == archive.read_bytes()
    urls = tuple(place.resolve().as_uri() for place in (missing, damaged))
    with pytest.raises(DataError, match=r"missing/.* could not be fetched .*damaged/.* md5 is") as error:
        fetch_tiny_imagenet(tmp_path / "data", None, replace(SMALL_TINY_IMAGENET, archive_md5=digest, urls=urls))
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_a_member_that_unpacks_without_end(tmp_path: Path) -> None:
    """Refused as such, and never cut: up to the limit it is read whole."""
    folder = write_tiny_imagenet(tmp_path)
    (folder / "large").write_bytes(b"\0" * LARGEST_FILE)
    (folder / "larger").write_bytes(b"\0" * (LARGEST_FILE + 1))
    files = ZipFiles(zip_folder(folder), folder.name)
    assert len(files.read("large")) == LARGEST_FILE
    with pytest.raises(DataError, match="larger has more than 8 MiB"):
        files.read("larger")


def test_the_registry_reads_it(tmp_path: Path) -> None:
    """By its name: nothing there, and a folder with too few classes."""
    options = DataOptions(name="tiny-imagenet", root=str(tmp_path))
    with pytest.raises(DataError, match=r"hardfast data prepare tiny-imagenet --root .*tiny-imagenet-200.zip"):
        open_dataset(options)
    write_tiny_imagenet(tmp_path)
    with pytest.raises(DataError, match=r"wnids.txt names 3 classes, not 200"):
        open_dataset(options)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_imagenet(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs Pillow .*pip install pillow"):
        read_tiny_imagenet(tmp_path, SMALL_TINY_IMAGENET)


def test_a_picture_that_is_no_jpeg_is_read_all_the_same(tmp_path: Path) -> None:
    """What decides is that it decodes; a palette with transparency becomes RGB as well."""
    folder = write_tiny_imagenet(tmp_path)
    Image.new("P", (64, 64), 0).save(folder / IMAGE, "PNG")
    assert read_tiny_imagenet(tmp_path, SMALL_TINY_IMAGENET).train.images[9].eq(0).all()


def test_nothing_to_fetch_is_said_of_what_is_embedded_alone() -> None:
    for name, entry in REGISTRY.items():
        assert entry.embedded == (name in ("digits", "synthetic"))
        if entry.embedded:
            assert "nothing to fetch" in prepare(name, Path("data"))
