"""ImageNet: small ones in the real formats, from archives to splits."""

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

import pytest

pytest.importorskip("PIL")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from hardfast.loaders import DataOptions, StreamedSplit, open_dataset, prepare
from hardfast.loaders.imagenet import PUBLISHED, read_imagenet
from hardfast.loaders.imagenet_archives import _check_space, unpack_imagenet, validation_classes
from hardfast.loaders.preparation import prepare_imagenet

from .makers import (
    SMALL_IMAGENET,
    WNIDS,
    imagenet_image,
    imagenet_members,
    refused,
    small_imagenet,
    write_imagenet_archives,
    write_tar,
)

TRUTH = [WNIDS[label - 1] for label in (2, 2, 3, 1, 1, 3)]


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


def test_the_devkit_of_the_published_form(tmp_path: Path) -> None:
    """The classes that have no children are numbered; validation images from 1 on."""
    members = imagenet_members()
    devkit = write_tar(tmp_path / SMALL_IMAGENET.devkit.name, members["devkit"])
    assert validation_classes(devkit, SMALL_IMAGENET) == dict(enumerate(TRUTH, start=1))
