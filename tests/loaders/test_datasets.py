"""Opening data sets: what is delivered, and what a missing, damaged or mislabelled file gets."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from hardfast.loaders import DataError, DataOptions, Split, cifar, fashion_mnist, open_dataset
from hardfast.loaders.cifar import Cifar, read_cifar
from hardfast.loaders.fashion_mnist import read_fashion_mnist, read_idx
from hardfast.loaders.synthetic import SyntheticShape

pytest.importorskip("PIL")
from .makers import SPECS, cifar_members, describe, fashion_files, write_cifar, write_idx


def test_digits() -> None:
    data = open_dataset(DataOptions(name="digits"))
    assert (len(data.train), len(data.heldout), len(data.test)) == (1294, 143, 360)
    assert data.image_shape == (16, 16, 3)
    assert data.num_classes == 10
    for split in (data.train, data.heldout, data.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert torch.equal(split.images[..., 0], split.images[..., 2])
        assert torch.equal(split.images[:, ::2, ::2], split.images[:, 1::2, 1::2])  # each pixel is a 2x2 square
    assert data.train.images.max() == 255
    assert (torch.bincount(data.test.labels) > 20).all()


def test_splits_do_not_share_an_image_and_move_with_their_seed_alone() -> None:
    one, same, other = (open_dataset(DataOptions(name="digits", split_seed=seed)) for seed in (0, 0, 1))
    parts = [{image.numpy().tobytes() for image in s.images} for s in (one.train, one.heldout, one.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert torch.equal(one.heldout.images, same.heldout.images)
    assert not torch.equal(one.heldout.images, other.heldout.images)
    assert torch.equal(one.test.images, other.test.images)


def test_no_image_needs_to_be_held_out() -> None:
    data = open_dataset(DataOptions(name="digits", heldout=0))
    assert (len(data.train), len(data.heldout), len(data.test)) == (1437, 0, 360)
    few = SyntheticShape(train_images=5, test_images=5)
    assert len(open_dataset(DataOptions(name="synthetic", synthetic=few)).heldout) == 1  # 0 only where it is asked for


def test_synthetic_has_the_shape_that_is_asked_for() -> None:
    shape = SyntheticShape(train_images=50, test_images=9, channels=1, num_classes=7)
    data = open_dataset(DataOptions(name="synthetic", image_size=20, synthetic=shape))
    assert (len(data.train), len(data.heldout), len(data.test)) == (45, 5, 9)
    assert data.image_shape == (20, 20, 1)
    assert set(data.train.labels.tolist()) <= set(range(7))


def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fashion_files(tmp_path / "fashion-mnist")
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    found = read_fashion_mnist(tmp_path)
    assert found.train.images.shape == (12, 28, 28, 1)
    assert found.test.labels.tolist() == [i % 10 for i in range(12)]
    assert read_fashion_mnist(tmp_path / "fashion-mnist").source == found.source  # the folder itself is as good


def test_published_fashion_mnist_where_debian_installed_it() -> None:
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = open_dataset(DataOptions(name="fashion-mnist"))
    assert (len(data.train), len(data.heldout), len(data.test)) == (59_000, 1_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10


@pytest.mark.parametrize("damage", ["flip", "cut", "not gzip", "missing", "wrong label", "longer"])
def test_damaged_fashion_mnist(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion-mnist"
    files = fashion_files(folder)
    path = folder / files["train labels"].name
    content = gzip.decompress(path.read_bytes())
    if damage == "flip":
        path.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "not gzip":
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    elif damage == "longer":
        path.write_bytes(gzip.compress(content + bytes(1)))
    else:
        files["train labels"] = write_idx(path, np.array([0] * 11 + [10], np.uint8))
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    with pytest.raises(DataError, match=path.name) as error:
        read_fashion_mnist(tmp_path)
    assert "\n" not in str(error.value)
    assert "label 10" in str(error.value) or damage != "wrong label"


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    file = write_idx(tmp_path / "x.gz", np.zeros(10, np.uint8))
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DataError, match="sha256"):
        read_idx(tmp_path / "x.gz", file)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_cifar(name: str, archive: bool, tmp_path: Path) -> None:
    members = cifar_members(SPECS[name])
    spec = describe(SPECS[name], members)
    source = write_cifar(spec, tmp_path, members, archive=archive)
    found = read_cifar(spec, tmp_path)
    assert found.source == str(source)
    assert len(found.train) == 20 * len(spec.train)
    assert found.test.labels.tolist() == [i % spec.num_classes for i in range(20)]
    first = np.frombuffer(members[next(iter(spec.train))], np.uint8)[spec.label_bytes :][: 3 * 32 * 32]
    assert np.array_equal(found.train.images[0].numpy(), first.reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    spec = SPECS["cifar100"]
    members = {name: bytes([3, 77]) + bytes(3072) for name in (*spec.train, *spec.test)}
    spec = describe(spec, members)
    write_cifar(spec, tmp_path, members, archive=False)
    assert read_cifar(spec, tmp_path).train.labels.tolist() == [77]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip", "sha256"),
        ("cut", "cut short"),
        ("missing", "cannot be read"),
        ("wrong label", "record 7 has label 200"),
        ("nothing", "was not found"),
        ("cut archive", "cannot be read"),
        ("archive without a member", "cannot be read"),
    ],
)
def test_damaged_cifar(damage: str, message: str, tmp_path: Path) -> None:
    members = cifar_members(SPECS["cifar10"], bad_label=200 if damage == "wrong label" else None)
    spec = describe(SPECS["cifar10"], members)
    if damage == "archive without a member":
        del members["data_batch_3.bin"]
    if damage != "nothing":
        source = write_cifar(spec, tmp_path, members, archive="archive" in damage)
    if damage == "cut archive":
        source.write_bytes(source.read_bytes()[:5000])
    elif damage in ("flip", "cut", "missing"):
        path = source / "data_batch_3.bin"
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-5])
        if damage == "missing":
            path.unlink()
    with pytest.raises(DataError, match=message) as error:
        read_cifar(spec, tmp_path)
    assert "\n" not in str(error.value)


def test_the_published_digests_are_used(tmp_path: Path) -> None:
    """Files of the right form that are not the published ones are refused under the real description."""
    write_cifar(SPECS["cifar10"], tmp_path, cifar_members(SPECS["cifar10"]), archive=False)
    with pytest.raises(DataError, match="sha256"):
        open_dataset(DataOptions(name="cifar10", root=str(tmp_path)))
    assert isinstance(cifar.CIFAR10, Cifar)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataOptions(name="digits", image_size=12), "multiple|choose 8"),
        (DataOptions(name="digits", heldout=1437), "cannot be cut"),
        (DataOptions(name="digits", heldout=-1), "cannot be cut"),
        (DataOptions(name="cifar10", image_size=64), "does not apply"),
    ],
)
def test_options_that_do_not_fit(options: DataOptions, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(options)


def test_a_data_set_that_there_is_not() -> None:
    with pytest.raises(DataError, match=r"data\.name must be one of digits, .*, not 'mnist'"):
        DataOptions(name="mnist")  # type: ignore[arg-type]


def test_a_training_set_knows_its_records(tmp_path: Path) -> None:
    """Which of the published training images are left when the held-out ones are cut."""
    whole = open_dataset(DataOptions(heldout=0))
    assert whole.train_records.tolist() == list(range(1437))
    data = open_dataset(DataOptions(root=str(tmp_path), heldout=100, split_seed=2))
    assert isinstance(data.train, Split) and isinstance(whole.train, Split)
    assert torch.equal(data.train.images, whole.train.images[data.train_records])
    assert torch.equal(data.train.labels, whole.train.labels[data.train_records])
    assert (data.beton, data.image_shape, len(data.train)) == (None, (16, 16, 3), 1337)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "train.beton").touch()
    assert open_dataset(DataOptions(root=str(tmp_path))).beton == tmp_path / "digits" / "train.beton"
