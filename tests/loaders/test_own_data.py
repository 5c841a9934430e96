"""The user's own images, and .beton files of every data set: from a folder to splits, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from hardfast.loaders import REGISTRY, DataOptions, Split, StreamedSplit, find, open_dataset, prepare
from hardfast.loaders.beton.source import BetonSource
from hardfast.loaders.beton.split import beton_split
from hardfast.loaders.beton.writer import write_beton
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.imagenet import read_imagenet
from hardfast.loaders.own_images import check_labels
from hardfast.loaders.preparation import prepare_imagenet

from .makers import (
    SMALL_IMAGENET,
    WNIDS,
    refused,
    small_imagenet,
    write_photographs,
)


def own_images(root: Path, test: str = "val", **options: object) -> Path:
    write_photographs(root / "train", per_class=10, **options)  # type: ignore[arg-type]
    write_photographs(root / test, per_class=3, first=50, **options)  # type: ignore[arg-type]
    return root


def opened(root: Path, **options: object) -> tuple[StreamedSplit, StreamedSplit, StreamedSplit]:
    data = open_dataset(DataOptions(name="folder", root=str(root), **options))  # type: ignore[arg-type]
    assert all(isinstance(split, StreamedSplit) for split in (data.train, data.heldout, data.test))
    return data.train, data.heldout, data.test  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["val", "test"])
def test_own_images(name: str, tmp_path: Path) -> None:
    """Without a line of code, and without preparing: two splits, the held-out images cut as of every data set."""
    root = own_images(tmp_path / "pictures", name)
    data = open_dataset(DataOptions(name="folder", root=str(root)))
    assert (data.num_classes, data.image_shape, data.source) == (2, (24, 32, 3), f"{root}/train and {name}")
    assert (len(data.train), len(data.heldout), len(data.test), data.beton) == (18, 2, 6, None)
    train, heldout, test = opened(root)
    assert sorted([*train.records.tolist(), *heldout.records.tolist()]) == list(range(20))
    assert torch.equal(data.train_records, train.records)
    assert torch.equal(train.labels, torch.from_numpy(train.source.labels)[train.records])
    assert (train.share, heldout.share, test.share) == (1, 1, 1)
    assert np.array_equal(test.decoded().images[0].numpy(), FolderSource.open(root / name).pixels(0))
    train, heldout, test = opened(root, image_size=16, test_crop=0.75, heldout=5)
    assert (train.size, heldout.size, test.size, len(heldout)) == ((16, 16), (16, 16), (16, 16), 5)
    assert (train.share, heldout.share, test.share) == (1, 0.75, 0.75)


def test_own_images_of_several_sizes(tmp_path: Path) -> None:
    train, _, test = opened(own_images(tmp_path, size=None))
    assert (train.size, test.size, train.native_size) == ((224, 224), (224, 224), None)


@pytest.mark.parametrize("below", ["train", "."])
def test_own_images_without_a_test_set(below: str, tmp_path: Path) -> None:
    """A tenth is set apart, the same one every time, and the line about the source says so."""
    write_photographs(tmp_path / below, per_class=10)
    data = open_dataset(DataOptions(name="folder", root=str(tmp_path)))
    assert data.source == f"{tmp_path / below}, a tenth of it set apart at random as the test set"
    parts = [split.records.tolist() for split in opened(tmp_path)]
    assert [len(part) for part in parts] == [17, 1, 2]
    assert data.train_records.tolist() == parts[0]  # of the whole folder, as a .beton of it holds them
    assert sorted(record for part in parts for record in part) == list(range(20))
    assert [split.records.tolist() for split in opened(tmp_path, split_seed=1)][2] == parts[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "holds no images: --data.root must name a folder"),
        (lambda root: [shutil.rmtree(root / name) for name in ("train", "val")], "holds no images: --data.root"),
        (lambda root: write_photographs(root / "val", classes=["dog"], per_class=1), "val has a class folder 'dog'"),
        (lambda root: shutil.rmtree(root / "val" / "cat"), "train has a class folder 'cat' and .*val has none"),
        (lambda root: [shutil.rmtree(root / name / "cat") for name in ("train", "val")], "holds one class"),
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b"x"), "train/cat/1.png is damaged or no image"),
        (lambda root: (root / "val" / "cat" / "1.png").rename(root / "val" / "1.png"), "lies in no class folder"),
    ],
)
def test_own_images_that_cannot_be_used(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = own_images(tmp_path / "pictures")
    damage(root)
    refused(lambda: opened(root), message)
    refused(lambda: prepare("folder", root), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image-size must be at least 1"),
        ({"test_crop": 0.0}, "test-crop 0.0 must be a share"),
        ({"test_crop": 1.1}, "test-crop 1.1 must be a share"),
        ({"heldout": 20}, "data.heldout of 20 images cannot be cut from 20"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str, tmp_path: Path) -> None:
    own_images(tmp_path)
    refused(lambda: opened(tmp_path, **options), message)


def test_a_test_crop_is_for_photographs(tmp_path: Path) -> None:
    refused(lambda: open_dataset(DataOptions(name="digits", test_crop=0.5)), "test-crop 0.5 does not apply to digits")


def test_prepare_indexes_again_what_changed(tmp_path: Path) -> None:
    root = own_images(tmp_path)
    line = prepare("folder", root)
    assert line == f"{root}/train and val: 20 + 6 images, 2 classes"
    write_photographs(root / "train" / "cat", classes=["more"], per_class=1)
    (root / "train" / "cat" / "list.txt").write_text("x")
    refused(lambda: opened(root), "more/0.png was added")
    assert prepare("folder", root) == (
        f"{root}/train and val: 21 + 6 images, 2 classes; left out as no images: 1, like {root}/train/cat/list.txt; "
        f"since {root}/train was indexed: 1 added, like {root}/train/cat/more/0.png"
    )
    assert len(opened(root)[0]) == 19


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `SMALL_IMAGENET`, of several sizes, with its .beton files; tests change copies of it."""
    root = tmp_path_factory.mktemp("written") / "imagenet"
    small_imagenet(root.parent)
    line = prepare("folder", root, beton=True)
    assert line == f"{root}/train and val: 12 + 6 images, 3 classes; wrote {root}/train.beton and {root}/val.beton"
    return root


def betons_alone(root: Path, target: Path) -> Path:
    """What is copied to a machine that only trains."""
    target.mkdir(parents=True)
    for path in root.glob("*.beton*"):
        shutil.copy(path, target)
    return target


def check_same(root: Path, alone: Path) -> None:
    """The folder, its .beton beside it, and the .beton files without it are the same data set."""
    data = open_dataset(DataOptions(name="folder", root=str(root), image_size=16))
    assert data.beton == root / "train.beton"
    stored = beton_split(data)
    assert isinstance(stored.source, BetonSource) and isinstance(data.train, StreamedSplit)
    assert torch.equal(stored.decoded().images, data.train.decoded().images)
    for split, same in zip(opened(root, image_size=16), opened(alone, image_size=16), strict=True):
        assert isinstance(same.source, BetonSource)
        assert torch.equal(split.records, same.records)
        assert torch.equal(split.decoded().images, same.decoded().images)
        assert torch.equal(split.labels, same.labels)


def test_own_images_as_beton(written: Path, tmp_path: Path) -> None:
    alone = betons_alone(written, tmp_path / "alone")
    check_same(written, alone)
    assert find("folder", alone) == alone
    sound = f"{alone}/train.beton and val.beton"
    assert open_dataset(DataOptions(name="folder", root=str(alone))).source == sound
    (alone / "val.beton.sha256").unlink()
    source = open_dataset(DataOptions(name="folder", root=str(alone))).source
    assert source == f"{sound} (without val.beton.sha256, damaged pixels would not be noticed)"
    refused(lambda: prepare("folder", alone, beton=True), "is a .beton file already")
    os.truncate(alone / "train.beton", 10_000)
    refused(lambda: opened(alone), "train.beton")


def test_a_beton_of_other_images_is_refused(written: Path, tmp_path: Path) -> None:
    root = shutil.copytree(written, tmp_path / "copy")
    first, second, _ = sorted(WNIDS)

    def split() -> StreamedSplit:
        prepare("folder", root)
        return beton_split(open_dataset(DataOptions(name="folder", root=str(root))))

    assert len(split()) == 11
    (root / "train" / first / "3.JPEG").rename(root / "train" / second / "30.JPEG")
    refused(split, "train.beton: record 3 has label 0, and in folder it has 1: write it again")
    (root / "train" / second / "30.JPEG").unlink()
    refused(split, "holds 12 images and folder has 11")
    (root / "train.beton").unlink()
    refused(split, "folder has no .beton file")


def test_imagenet_from_beton_files_alone(written: Path, tmp_path: Path) -> None:
    betons_alone(written, tmp_path / "imagenet")
    spec = SMALL_IMAGENET
    alone, there = (
        read_imagenet(root, image_size=None, test_crop=None, spec=spec) for root in (tmp_path, written.parent)
    )
    for split, same in ((alone.train, there.train), (alone.test, there.test)):
        assert isinstance(split, StreamedSplit) and isinstance(same, StreamedSplit)
        assert isinstance(split.source, BetonSource) and isinstance(same.source, FolderSource)
        assert torch.equal(split.labels, same.labels)
        assert (split.size, split.share) == (same.size, same.share)
    assert alone.beton == tmp_path / "imagenet" / "train.beton"
    assert prepare_imagenet(tmp_path, spec)[1] == f"{alone.source}: 12 + 6 images, 3 classes"
    refused(lambda: read_imagenet(tmp_path, image_size=None, test_crop=None), "holds 3 classes, not the 1000")


def test_a_set_in_memory_as_beton(tmp_path: Path) -> None:
    """The digits: the records are the training set before the held-out images were cut."""
    whole = open_dataset(DataOptions(heldout=0))
    assert isinstance(whole.train, Split)
    write_beton(whole.train, tmp_path / "digits" / "train.beton", label="writing", quiet=True)
    data = open_dataset(DataOptions(root=str(tmp_path), split_seed=3))
    assert isinstance(data.train, Split)
    assert data.beton == tmp_path / "digits" / "train.beton"
    stored = beton_split(data)
    assert torch.equal(stored.decoded().images, data.train.images)
    assert torch.equal(stored.labels, data.train.labels)
    larger = open_dataset(DataOptions(root=str(tmp_path), image_size=32))
    refused(lambda: beton_split(larger), "holds images of another size than 32x32")


@pytest.mark.slow
def test_prepare_writes_the_digits(tmp_path: Path) -> None:
    line = prepare("digits", tmp_path, beton=True)
    assert line == f"scikit-learn; wrote {tmp_path}/digits/train.beton and {tmp_path}/digits/val.beton"
    data = open_dataset(DataOptions(root=str(tmp_path)))
    assert isinstance(data.train, Split)
    assert torch.equal(beton_split(data).decoded().images, data.train.images)
    assert BetonSource.open(tmp_path / "digits" / "val.beton").labels.tolist() == data.test.labels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("below", ["train", "."])
def test_one_folder_as_beton(below: str, tmp_path: Path) -> None:
    """It holds all images, and test images are drawn from it as they are from the folder."""
    root = tmp_path / "pictures"
    write_photographs(root / below, per_class=10, size=None, suffix="jpg")
    assert prepare("folder", root, beton=True).endswith(f"18 + 2 images, 2 classes; wrote {root}/train.beton")
    check_same(root, betons_alone(root, tmp_path / "alone"))


@pytest.mark.slow
def test_a_largest_side(tmp_path: Path) -> None:
    """What is stored is smaller, and `beton_split` knows its sizes."""
    root = own_images(tmp_path, size=None)
    prepare("folder", root, beton=True, max_side=32)
    stored = beton_split(open_dataset(DataOptions(name="folder", root=str(root), image_size=16)))
    assert torch.maximum(stored.heights, stored.widths).max() == 32
    assert stored.decoded().images.shape == (18, 16, 16, 3)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("digits", {"max_side": 8, "beton": True}, "max-side is for the .beton files of `folder` and `imagenet`"),
        ("folder", {"max_side": 8}, "max-side is for the .beton files"),
        ("synthetic", {"beton": True}, "nothing to write as .beton"),
        (
            "fashion-mnist",
            {"beton": True},
            "fashion-mnist is grey, and .beton files are of colour images: drop --beton",
        ),
    ],
)
def test_wrong_use_of_prepare(name: str, words: dict[str, int], message: str, tmp_path: Path) -> None:
    refused(lambda: prepare(name, tmp_path, **words), message)  # type: ignore[arg-type]


def test_what_is_found(tmp_path: Path) -> None:
    assert find("cifar10", tmp_path) is find("folder", tmp_path) is find("imagenet", tmp_path) is None
    (tmp_path / "cifar10" / "cifar-10-batches-bin").mkdir(parents=True)
    assert find("cifar10", tmp_path) == tmp_path / "cifar10" / "cifar-10-batches-bin"
    small_imagenet(tmp_path)
    assert find("imagenet", tmp_path) == tmp_path / "imagenet"
    own_images(tmp_path / "mine")
    assert find("folder", tmp_path / "mine") == tmp_path / "mine"
    assert find("imagenet", tmp_path / "mine") is None


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("cifar10/batch.bin", False),
        ("cat/.hidden.png", False),
        (".trash/x.png", False),
        ("x.png", False),
        ("cat/x.png", True),
        ("dog/x.JPEG", True),
    ],
)
def test_a_folder_is_found_by_an_image_in_a_class(file: str, found: bool, tmp_path: Path) -> None:
    """The folder of all data sets is not one just because it has folders in it."""
    (tmp_path / "cat").mkdir()
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert find("folder", tmp_path) == (tmp_path if found else None)


def test_the_missing_class_of_many(tmp_path: Path) -> None:
    """Named within moments: a step for each class, not one for each pair of them."""
    count = 40_000
    part, labels = tmp_path / "train.beton", np.arange(count)
    check_labels(part, labels, count)
    for absent in ([0], [count - 3, count - 2], [count - 1]):
        message = f"train.beton has no image of class {absent[0]}, of {count} classes"
        refused(lambda absent=absent: check_labels(part, np.delete(labels, absent), count), message)
    refused(lambda: check_labels(part, labels, count - 1), "labels outside")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`hardfast data`: a line for each data set, and one line for every mistake."""
    pytest.importorskip("tyro")
    from hardfast.engine import cli

    root = own_images(tmp_path / "mine")
    assert cli.run(["data", "list", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(REGISTRY)
    places = {line.split()[0]: line[line.rindex("[") :] for line in lines}
    assert places["folder"] == f"[{root}]"
    assert places["digits"] == "[comes with the engine]"
    assert places["imagenet"] == places["cifar10"] == "[not found]"
    assert cli.run(["data", "list", "--root", str(tmp_path)]) == 0  # it holds folders, but none with an image
    assert "ROOT/CLASS/FILE [not found]" in capsys.readouterr().out
    assert cli.run(["data", "prepare", "folder", "--root", str(root)]) == 0
    assert capsys.readouterr().out == f"folder: {root}/train and val: 20 + 6 images, 2 classes\n"
    (tmp_path / "file").write_text("x")
    (root / "train" / "cat" / "0.png").write_bytes(b"x")
    for words, part in (
        (["folder", "--root", str(tmp_path / "none")], "holds no images"),
        (["folder", "--root", str(tmp_path / "file")], "holds no images"),
        (["folder", "--root", str(root)], "train/cat/0.png is damaged or no image"),
        (["imagenet", "--root", str(tmp_path)], "image-net.org"),
        (["folder", "--root", str(root), "--max-side", "9"], "--beton"),
        (["folder", "--root", str(root), "--max-side", "x", "--beton"], "max-side"),
        (["digits", "--beton", "--max-side", "9"], "`folder` and `imagenet`"),
        (["synthetic", "--beton", "--root", str(tmp_path)], "nothing to write"),
        (["fashion-mnist", "--beton"], "is grey"),
        (["nothing"], "folder"),
    ):
        assert cli.run(["data", "prepare", *words]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        errors = [line for line in said.err.splitlines() if "indexing" not in line]
        assert len(errors) == 1 and part in errors[0], said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]
