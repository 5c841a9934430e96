"""ImageNet and the user's own images: small ones in the real formats, from archives to splits and .beton files."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from hardfast.loaders import REGISTRY, DataError, DataOptions, Split, StreamedSplit, find, open_dataset, prepare
from hardfast.loaders.beton import BetonSource
from hardfast.loaders.beton_split import beton_split
from hardfast.loaders.beton_writer import write_beton
from hardfast.loaders.image_folder import FolderSource
from hardfast.loaders.imagenet import PUBLISHED, ImageNet, read_imagenet
from hardfast.loaders.imagenet_archives import _check_space, unpack_imagenet, validation_classes
from hardfast.loaders.own_images import check_labels
from hardfast.loaders.prepare import prepare_imagenet

from .makers import (
    SMALL_IMAGENET,
    WNIDS,
    imagenet_image,
    imagenet_members,
    write_imagenet_archives,
    write_photographs,
    write_tar,
)

TRUTH = [WNIDS[label - 1] for label in (2, 2, 3, 1, 1, 3)]


def refused(call: Callable[[], object], message: str) -> str:
    with pytest.raises(DataError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_published_numbers() -> None:
    assert (PUBLISHED.num_classes, PUBLISHED.train_images, PUBLISHED.test_images) == (1000, 1_281_167, 50_000)
    for archive in (PUBLISHED.train, PUBLISHED.val, PUBLISHED.devkit):
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)


@pytest.mark.parametrize("place", ["imagenet", "."])
def test_the_archives_are_unpacked(place: str, tmp_path: Path) -> None:
    """Into class folders, the validation set by the devkit; a second time nothing is read from them."""
    spec = write_imagenet_archives(tmp_path / place, imagenet_members())
    found, line = prepare_imagenet(tmp_path, spec)
    folder = tmp_path / "imagenet"
    assert line == f"{folder}/train and val: 12 + 6 images, 3 classes"
    for wnid in WNIDS:
        for number in range(4):
            assert (folder / "train" / wnid / f"{wnid}_{number}.JPEG").read_bytes() == imagenet_image(wnid, number)
    for image, wnid in enumerate(TRUTH, start=1):
        path = folder / "val" / wnid / f"ILSVRC2012_val_{image:08d}.JPEG"
        assert path.read_bytes() == imagenet_image(wnid, 10 + image)
    assert found.test.labels.tolist() == sorted(sorted(WNIDS).index(wnid) for wnid in TRUTH)
    for archive in tmp_path.rglob("ILSVRC2012_*.*[rz]"):
        archive.unlink()
    assert not [name for name in files_below(folder) if ".part" in name]
    assert prepare_imagenet(tmp_path, spec)[1] == line


def test_a_killed_unpacking_goes_on(tmp_path: Path) -> None:
    """SIGKILL while classes are unpacked: those that have their name are whole and stay, and the rest follows."""
    members = imagenet_members()
    spec = write_imagenet_archives(tmp_path, members)
    program = f"""
    import time
    from pathlib import Path
    from hardfast.loaders import imagenet_archives
    from hardfast.loaders.imagenet import Archive, ImageNet
    inner, calls = imagenet_archives._content, []
    def halting(*words):
        calls.append(words)
        if len(calls) == 7:  # with two of the four images of the second class
            print("there", flush=True)
            time.sleep(3600)
        return inner(*words)
    imagenet_archives._content = halting
    imagenet_archives.unpack_imagenet(Path({str(tmp_path)!r}), {spec!r})
    """
    train = tmp_path / "imagenet" / "train"
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"there\n"
        finally:
            child.send_signal(signal.SIGKILL)
    part = train / f".{WNIDS[1]}.part"
    assert len(list(part.iterdir())) == 2
    done = [name for name in WNIDS if (train / name).exists()]
    assert done == [WNIDS[0]]
    kept = (train / WNIDS[0]).stat().st_mtime_ns
    (part / "rubbish").write_text("x")
    refused(lambda: read_imagenet(tmp_path, image_size=None, test_crop=None, spec=spec), "was not found")
    prepare_imagenet(tmp_path, spec)
    assert (train / WNIDS[0]).stat().st_mtime_ns == kept
    assert len(files_below(train)) == 13  # with the index
    val = tmp_path / "imagenet" / "val"
    shutil.rmtree(val)
    half = tmp_path / "imagenet" / ".val.part" / TRUTH[0]
    half.mkdir(parents=True)
    (half / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"cut short")
    (half.parent / ".member").write_bytes(b"what was being written")
    prepare_imagenet(tmp_path, spec)
    assert len(files_below(val)) == 7
    assert (val / TRUTH[0] / "ILSVRC2012_val_00000001.JPEG").read_bytes() == imagenet_image(TRUTH[0], 11)


def test_a_full_disk_leaves_no_part_of_an_image(tmp_path: Path) -> None:
    """A validation image has its name once it is whole: here files may grow to the size of a half."""
    spec = write_imagenet_archives(tmp_path, imagenet_members())
    unpack_imagenet(tmp_path, spec)
    folder = tmp_path / "imagenet"
    shutil.rmtree(folder / "val")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(imagenet_image(TRUTH[0], 11)) // 2, limits[1]))
    try:
        refused(lambda: unpack_imagenet(tmp_path, spec), "could not be unpacked .* goes on from there")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_below(folder / ".val.part") == [".member"]
    unpack_imagenet(tmp_path, spec)
    assert len(files_below(folder / "val")) == 6


def test_what_is_unpacked_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file, and nothing else of the machine."""
    spec = write_imagenet_archives(tmp_path, imagenet_members())
    synced, fsync = set(), os.fsync

    def noted(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.delattr(os, "sync")
    unpack_imagenet(tmp_path, spec)
    names = {path.name for path in (tmp_path / "imagenet").glob("*/*/*.JPEG")}
    assert len(names) == 18
    assert names < synced
    assert not {name for name in synced if "ILSVRC2012_img" in name}


def test_rubbish_beside_unpacked_images_does_not_become_the_data_set(tmp_path: Path) -> None:
    spec = write_imagenet_archives(tmp_path, imagenet_members())
    unpack_imagenet(tmp_path, spec)
    folder = tmp_path / "imagenet"
    (folder / "val").rename(folder / ".val.part")
    rubbish = folder / ".val.part" / WNIDS[0] / "ILSVRC2012_val_00000099.JPEG"
    rubbish.write_bytes(b"x")
    message = refused(lambda: unpack_imagenet(tmp_path, spec), "00000099.JPEG is not of ILSVRC2012_img_val.tar: remove")
    assert not (folder / "val").exists()
    named = message.partition("remove ")[2].partition(" and ")[0]
    rubbish.unlink()
    (folder / ".val.part" / ".member").write_bytes(b"of a process that was killed")
    unpack_imagenet(tmp_path, spec)  # which knows what it leaves itself
    (folder / "val").rename(folder / ".val.part")
    shutil.rmtree(named)
    unpack_imagenet(tmp_path, spec)
    assert len(files_below(folder / "val")) == 6


def test_an_image_twice_in_an_archive(tmp_path: Path) -> None:
    """Six entries are not six images."""
    members = imagenet_members()
    members["val"].pop(VAL)
    spec = write_imagenet_archives(tmp_path, members)
    path = tmp_path / spec.val.name
    with tarfile.open(path, "a") as tar:
        entry = tarfile.TarInfo("ILSVRC2012_val_00000002.JPEG")
        tar.addfile(entry)
    spec = replace(spec, val=replace(spec.val, md5=md5_of(path)))
    (tmp_path / "imagenet").mkdir()
    refused(lambda: unpack_imagenet(tmp_path, spec), "holds 'ILSVRC2012_val_00000002.JPEG' twice")
    assert not (tmp_path / "imagenet" / "val").exists()


def test_the_space_that_a_split_still_needs(tmp_path: Path) -> None:
    """What of it was unpacked before needs none, and the other split's images do not count. All files have holes."""
    train, part = tmp_path / "train" / WNIDS[0] / "x.JPEG", tmp_path / ".val.part" / WNIDS[0] / "x.JPEG"
    archive = tmp_path / "archive.tar"
    for path in (archive, train, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.truncate(archive, shutil.disk_usage(tmp_path).free + (16 << 30))
    os.truncate(train, 32 << 30)
    _check_space(tmp_path, archive, tmp_path / "train")
    refused(
        lambda: _check_space(tmp_path, archive, tmp_path / ".val.part"), "unpacking archive.tar needs .* free space"
    )
    os.truncate(part, 32 << 30)
    _check_space(tmp_path, archive, tmp_path / ".val.part")


def test_the_advice_about_other_images_helps(tmp_path: Path) -> None:
    """`remove FOLDER and repeat`, for either split."""
    spec = write_imagenet_archives(tmp_path, imagenet_members())
    line = prepare_imagenet(tmp_path, spec)[1]
    for part in ("train", "val"):
        folder = tmp_path / "imagenet" / part
        next(folder.glob("*/*.JPEG")).unlink()
        message = refused(lambda: prepare_imagenet(tmp_path, spec), "and repeat `hardfast data prepare imagenet`")
        assert f"remove {folder} and repeat" in message
        shutil.rmtree(folder)
        assert prepare_imagenet(tmp_path, spec)[1] == line


def rename(members: dict[str, bytes], old: str, new: str) -> None:
    members[new] = members.pop(old)


FIRST = f"{WNIDS[0]}.tar"
VAL = "ILSVRC2012_val_00000001.JPEG"
TABLE = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: rename(m["train"], FIRST, f"../{FIRST}"), "holds '../n02000000.tar', which is no class"),
        (lambda m: rename(m["train"], FIRST, f"/tmp/{FIRST}"), "which is no class"),
        (lambda m: m["train"].update({FIRST: b"no archive" * 99}), "cannot be unpacked"),
        (lambda m: m["train"].update({FIRST: m["train"][FIRST][:3000]}), "ends inside|cannot be unpacked"),
        (lambda m: m["train"].update({FIRST: m["train"][f"{WNIDS[1]}.tar"]}), "which is no image of it"),
        (lambda m: m["train"].pop(FIRST), "train has none|holds 2 classes|same ones"),
        (lambda m: rename(m["val"], VAL, f"../{VAL}"), "which is no validation image"),
        (lambda m: rename(m["val"], VAL, "ILSVRC2012_val_00000007.JPEG"), "which is no validation image"),
        (lambda m: m["val"].pop(VAL), "holds 5 images, not 6"),
        (lambda m: m["val"].update({VAL: b"no image"}), f"{VAL} is damaged or no image"),
        (lambda m: m["devkit"].pop(TABLE), "holds no .*ground_truth.txt"),
        (lambda m: m["devkit"].pop(META), "holds no .*meta.mat"),
        (lambda m: m["devkit"].update({TABLE: b"1\n2\n"}), "tells of 2 images and 3 classes, not 6 and 3"),
        (lambda m: m["devkit"].update({TABLE: b"1\n" * 5 + b"9\n"}), "its tables cannot be read"),
        (lambda m: m["devkit"].update({TABLE: b"1\n" * 5 + b"x\n"}), "its tables cannot be read"),
        (lambda m: m["devkit"].update({META: b"no table"}), "its tables cannot be read"),
    ],
)
def test_archives_of_another_content(change: Callable[..., object], message: str, tmp_path: Path) -> None:
    """Whatever their digest: nothing lands outside the folder, and an error names what is wrong."""
    members = imagenet_members()
    change(members)
    root = tmp_path / "root"
    spec = write_imagenet_archives(root, members)
    refused(lambda: prepare_imagenet(root, spec), message)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    members = imagenet_members()
    members["val"].pop("ILSVRC2012_val_00000002.JPEG")
    spec = write_imagenet_archives(tmp_path, members)
    with tarfile.open(tmp_path / spec.val.name, "a") as tar:
        entry = tarfile.TarInfo("ILSVRC2012_val_00000002.JPEG")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    (tmp_path / "imagenet").mkdir()
    spec = replace(spec, val=replace(spec.val, md5=md5_of(tmp_path / spec.val.name)))
    refused(lambda: unpack_imagenet(tmp_path, spec), "is no plain file")


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("part", ["train", "val", "devkit"])
def test_damaged_and_missing_archives(part: str, tmp_path: Path) -> None:
    spec = write_imagenet_archives(tmp_path, imagenet_members())
    path = tmp_path / getattr(spec, part).name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(lambda: prepare_imagenet(tmp_path, spec), f"{path.name} is damaged or another file: md5 is")
    path.unlink()
    message = refused(lambda: prepare_imagenet(tmp_path, spec), f"{path.name} is missing")
    assert "https://image-net.org" in message


def test_what_to_do_is_said_where_nothing_may_be_fetched(tmp_path: Path) -> None:
    for call in (
        lambda: open_dataset(DataOptions(name="imagenet", root=str(tmp_path))),
        lambda: prepare("imagenet", tmp_path),
    ):
        message = refused(call, "licence forbids fetching it for you: register at https://image-net.org")
        assert f"hardfast data prepare imagenet --root {tmp_path}" in message
        assert all(archive.name in message for archive in (PUBLISHED.train, PUBLISHED.val, PUBLISHED.devkit))
    assert list(tmp_path.iterdir()) == []


def small_imagenet(root: Path) -> ImageNet:
    """Its folders, as somebody else has unpacked them."""
    for split, count in (("train", 4), ("val", 2)):
        write_photographs(root / "imagenet" / split, classes=WNIDS, per_class=count, size=None, suffix="JPEG")
    return SMALL_IMAGENET


def test_imagenet_from_folders(tmp_path: Path) -> None:
    spec = small_imagenet(tmp_path)
    for root in (tmp_path, tmp_path / "imagenet"):  # the folder itself is taken as well
        found = read_imagenet(root, image_size=None, test_crop=None, spec=spec)
        train, test = found.train, found.test
        assert isinstance(train, StreamedSplit) and isinstance(test, StreamedSplit)
        assert (found.num_classes, train.size, test.size, train.share, test.share) == (
            3,
            (224, 224),
            (224, 224),
            1,
            0.875,
        )
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    found = read_imagenet(tmp_path, image_size=16, test_crop=1.0, spec=spec)
    assert isinstance(found.test, StreamedSplit)
    assert (found.train.image_shape, found.test.share) == ((16, 16, 3), 1)
    refused(lambda: read_imagenet(tmp_path, image_size=16, test_crop=1.0), "holds 3 classes, not the 1000 of imagenet")


def test_imagenet_is_decoded_and_what_changed_is_said(tmp_path: Path) -> None:
    """Whether there is an index or not, and where training has made it, which looks at headers alone."""
    spec = small_imagenet(tmp_path)
    path = tmp_path / "imagenet" / "val" / WNIDS[0] / "1.JPEG"
    sound = path.read_bytes()
    path.write_bytes(sound[:-200])
    for _ in range(2):
        refused(lambda: prepare_imagenet(tmp_path, spec), f"{WNIDS[0]}/1.JPEG is damaged or no image .*truncated")
        read_imagenet(tmp_path, image_size=None, test_crop=None, spec=spec)
    path.write_bytes(sound)
    line = prepare_imagenet(tmp_path, spec)[1]
    assert line.endswith(f"3 classes; since {path.parents[1]} was indexed: 1 changed, like {path}")
    path.write_bytes(path.with_name("0.JPEG").read_bytes())
    other = tmp_path / "imagenet" / "train" / WNIDS[1] / "3.JPEG"
    other.rename(other.with_name("4.JPEG"))
    assert prepare_imagenet(tmp_path, spec)[1].endswith(
        f"; since {other.parents[1]} was indexed: 1 added, like {other.with_name('4.JPEG')}, 1 gone, like {other}; "
        f"since {path.parents[1]} was indexed: 1 changed, like {path}"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "train" / WNIDS[0] / "0.JPEG").unlink(), "train holds 11 images, not the 12"),
        (lambda root: (root / "val" / WNIDS[0] / "0.JPEG").unlink(), "val holds 5 images, not the 6"),
        (lambda root: shutil.rmtree(root / "val" / WNIDS[0]), f"class folder '{WNIDS[0]}' and .*val has none"),
        (lambda root: (root / "val" / WNIDS[0]).rename(root / "val" / "cat"), "val/cat is no folder of imagenet"),
        (
            lambda root: [shutil.rmtree(root / part / WNIDS[0]) for part in ("train", "val")],
            "holds 2 classes, not the 3",
        ),
        (lambda root: shutil.rmtree(root / "val"), "was not found"),
    ],
)
def test_other_folders_than_the_published(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    spec = small_imagenet(tmp_path)
    damage(tmp_path / "imagenet")
    refused(lambda: read_imagenet(tmp_path, image_size=None, test_crop=None, spec=spec), message)


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


def test_the_devkit_of_the_published_form(tmp_path: Path) -> None:
    """The classes that have no children are numbered; validation images from 1 on."""
    members = imagenet_members()
    devkit = write_tar(tmp_path / SMALL_IMAGENET.devkit.name, members["devkit"])
    assert validation_classes(devkit, SMALL_IMAGENET) == dict(enumerate(TRUTH, start=1))


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
