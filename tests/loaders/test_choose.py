"""Which loader is taken: what fits the device lies there, what does not is streamed by the fastest that is at hand."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hardfast.loaders import Augmentation, DataError, DataOptions, LoaderOptions, StreamedSplit, open_dataset
from hardfast.loaders.beton.source import sidecar
from hardfast.loaders.choose import Choice, choose_loader, make_loader
from hardfast.loaders.dataset import Dataset

pytest.importorskip("PIL")
from .sources import write_folder

PADDED, RESIZED = Augmentation(padding=2), Augmentation(scale=(0.08, 1))
NOTHING_FITS = LoaderOptions(resident_limit=0)
GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes, and their .beton files in a copy."""
    root = tmp_path_factory.mktemp("choose")
    write_folder(root / "plain", 20)
    return root / "plain"


def opened(folder: Path, *, beton: Path | None = None) -> Dataset:
    data = open_dataset(DataOptions(name="folder", root=str(folder), image_size=32))
    return data if beton is None else replace(data, beton=beton)


def chosen(
    data: Dataset,
    options: LoaderOptions = NOTHING_FITS,
    how: Augmentation = PADDED,
    installed: Collection[str] = ("ffcv", "nvidia.dali"),
) -> Choice:
    return choose_loader(
        data, (32, 32), options=options, augmentation=how, device="cpu", is_installed=lambda name: name in installed
    )


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    from hardfast.loaders.beton.writer import write_beton
    from hardfast.loaders.image_folder import FolderSource

    path = folder.parent / "train.beton"
    write_beton(FolderSource.open(folder / "train"), path, label="writing", quiet=True)
    return path


def test_what_fits_lies_on_the_device(folder: Path) -> None:
    data = opened(folder)
    needed = len(data.train) * 32 * 32 * 3 / GIB
    assert chosen(data, LoaderOptions()).name == "resident"
    assert chosen(data, LoaderOptions(resident_limit=needed)).name == "resident"
    assert chosen(data, LoaderOptions(resident_limit=needed * 0.99)).name == "dali"
    assert "resident-limit" in chosen(data, LoaderOptions(resident_limit=needed * 0.99)).why
    digits = open_dataset(DataOptions(name="digits"))
    assert chosen(digits) == Choice("resident", "the images are in memory")


def test_crops_at_random_scales_need_the_images_as_they_are(folder: Path, tmp_path: Path) -> None:
    assert chosen(opened(folder), LoaderOptions(), RESIZED).name == "dali"
    write_folder(tmp_path, 20, size=(48, 40))
    assert chosen(opened(tmp_path), LoaderOptions(), RESIZED).name == "resident"
    data = opened(tmp_path)
    natives = len(data.train) * 48 * 40 * 3
    assert chosen(data, LoaderOptions(resident_limit=natives / GIB), RESIZED).name == "resident"
    assert chosen(data, LoaderOptions(resident_limit=natives * 0.99 / GIB), RESIZED).name == "dali"


def test_the_fastest_at_hand(folder: Path, written: Path) -> None:
    plain, with_beton = opened(folder), opened(folder, beton=written)
    assert chosen(with_beton).name == "ffcv"
    assert chosen(with_beton).notes == ()
    assert chosen(plain).name == "dali"
    without_ffcv = chosen(with_beton, installed=("nvidia.dali",))
    assert (without_ffcv.name, "ffcv is not installed" in without_ffcv.why) == ("dali", True)
    nothing = chosen(plain, installed=())
    assert (nothing.name, "neither a .beton with ffcv nor DALI" in nothing.why) == ("torch", True)


def test_a_beton_is_checked_before_anything_maps_it(folder: Path, written: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    content = bytearray(written.read_bytes())
    path.write_bytes(content)
    (note,) = chosen(opened(folder, beton=path)).notes
    assert "damaged pixels would not be noticed" in note
    sidecar(path).write_text(sidecar(written).read_text())
    assert chosen(opened(folder, beton=path)).notes == ()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for name in ("auto", "ffcv"):
        with pytest.raises(DataError, match="sha256"):
            chosen(opened(folder, beton=path), replace(NOTHING_FITS, name=name))
    assert chosen(opened(folder, beton=path), replace(NOTHING_FITS, name="torch")).name == "torch"  # reads the folder


@pytest.mark.parametrize(
    ("options", "how", "installed", "message"),
    [
        ({"name": "ffcv"}, PADDED, ("ffcv",), r"needs a .beton file .*hardfast data prepare folder --beton"),
        ({"name": "ffcv"}, PADDED, (), r"ffcv, which is not installed: pip install 'hardfast\[ffcv\]'"),
        ({"name": "dali"}, PADDED, (), r"nvidia.dali, which is not installed: pip install 'hardfast\[dali\]'"),
        ({"name": "resident"}, RESIZED, (), "resident cannot crop images of many sizes at random scales"),
    ],
)
def test_what_cannot_be_had(
    options: dict[str, str], how: Augmentation, installed: Collection[str], message: str, folder: Path
) -> None:
    with pytest.raises(DataError, match=message):
        chosen(opened(folder), LoaderOptions(**options), how, installed)


@pytest.mark.parametrize("name", ["ffcv", "torch", "dali"])
def test_data_sets_in_memory_stream_from_a_beton_alone(name: str) -> None:
    digits = open_dataset(DataOptions(name="digits"))
    with pytest.raises(DataError, match="hardfast data prepare digits --beton"):
        chosen(digits, LoaderOptions(name=name))


@pytest.mark.parametrize("values", [{"workers": -1}, {"watchdog": 0.0}, {"resident_limit": -1.0}])
def test_wrong_options(values: dict[str, float]) -> None:
    with pytest.raises(DataError, match=f"loader.{next(iter(values)).replace('_', '-')} must"):
        LoaderOptions(**values)


def test_a_resident_loader_of_a_folder_holds_what_the_others_show(folder: Path) -> None:
    data = opened(folder)
    assert isinstance(data.train, StreamedSplit)
    choice = chosen(data, LoaderOptions())
    loader = make_loader(
        choice,
        data,
        (24, 24),
        options=LoaderOptions(),
        augmentation=Augmentation(),
        batch_size=4,
        seed=0,
        device="cpu",
    )
    whole = data.train.at((24, 24)).decoded()
    for batch in loader.epoch(0):
        assert torch.equal(batch.image, whole.images[batch.index])
        assert torch.equal(batch.label, data.train.labels[batch.index])
