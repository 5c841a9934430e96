"""Every loader delivers the same batches: order, labels, crops and flips, and, for raw and PNG data, every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hardfast.kernels import Purpose, augment, permutation, random_key
from hardfast.loaders import Augmentation, Batch, DataOptions, Loader, LoaderOptions, open_dataset
from hardfast.loaders.choose import choose_loader, make_loader
from hardfast.loaders.crops import random_boxes
from hardfast.loaders.dataset import Dataset
from hardfast.loaders.streamed import resampled

pytest.importorskip("PIL")
from .sources import write_folder

SEED, SAMPLES = 11, 53
PADDED = Augmentation(padding=3, flip=True)
RESIZED = Augmentation(scale=(0.2, 1.0), flip=True)
BACKENDS = {"ffcv": "ffcv", "dali": "nvidia.dali", "torch": "torchvision", "resident": "torch"}


@dataclass(frozen=True)
class Case:
    """A loader, its workers, and how many ranks share an epoch."""

    name: str
    workers: int
    world_size: int

    def __str__(self) -> str:
        return f"{self.name}, {self.workers} workers, {self.world_size} ranks"


QUICK = (
    *(Case("resident", 0, 1), Case("resident", 0, 2)),
    Case("torch", 2, 2),
    *(Case("dali", 0, 2), Case("dali", 1, 2), Case("dali", 3, 1)),
    Case("ffcv", 1, 2),
)
SLOW_STARTERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "ffcv")]
RESUMED = (Case("resident", 0, 1), Case("dali", 3, 1))  # by loaders made anew, which takes seconds
ALL = [
    pytest.param(case, id=str(case), marks=[] if case in QUICK else [pytest.mark.slow])
    for case in (Case(name, w, ranks) for name in BACKENDS for w in range(4) for ranks in (1, 2))
]


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Uniform PNGs of 40x40 pixels, and the same as raw records of a .beton."""
    return prepared(tmp_path_factory.mktemp("png"), "png", (40, 40))


@pytest.fixture(scope="module")
def jpg(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """JPEGs of many sizes, and the same bytes in a .beton."""
    return prepared(tmp_path_factory.mktemp("jpg"), "jpg", None)


def prepared(root: Path, kind: str, size: tuple[int, int] | None) -> Dataset:
    """A folder and its .beton, opened; one image in ten is held out, so records and samples have other numbers."""
    from hardfast.loaders import prepare

    write_folder(root, SAMPLES + 5, kind=kind, size=size)
    write_folder(root, 6, kind=kind, size=size, split="val")
    prepare("folder", root, beton=True)
    data = open_dataset(DataOptions(name="folder", root=str(root), image_size=40, heldout=5))
    assert (len(data.train), data.beton) == (SAMPLES, root / "train.beton")
    return data


def opened(case: Case, data: Dataset, how: Augmentation, batch_size: int, rank: int = 0) -> Loader:
    if case.name != "resident":
        pytest.importorskip(BACKENDS[case.name])
    options = LoaderOptions(name=case.name, workers=case.workers, watchdog=120)
    choice = choose_loader(data, (40, 40), options=options, augmentation=how, device="cpu")
    assert choice.name == case.name
    return make_loader(
        choice,
        data,
        (40, 40),
        options=options,
        augmentation=how,
        batch_size=batch_size,
        seed=SEED,
        device="cpu",
        world_size=case.world_size,
        rank=rank,
    )


def expected(data: Dataset, epoch: int, how: Augmentation, batch_size: int) -> Iterator[Batch]:
    """The batches of one rank, put together sample by sample with Pillow."""
    train = data.train
    order = permutation(SAMPLES, seed=SEED, purpose=Purpose.ORDER, epoch=epoch)
    key = random_key(SEED, epoch=epoch)
    for index in order[: SAMPLES // batch_size * batch_size].split(batch_size):
        pixels = [train.source.pixels(int(train.records[i])) for i in index]
        heights, widths = train.heights[index], train.widths[index]
        if how.scale is None:
            boxes = torch.tensor([[0, 0, 40, 40]] * len(index))
        else:
            boxes = random_boxes(index, heights, widths, key=key, scale=how.scale)
        shown = torch.stack([resampled(p, box, (40, 40)) for p, box in zip(pixels, boxes, strict=True)])
        image = augment(shown, index, key=key, padding=how.padding, flip=how.flip, gathered=True)
        yield Batch(index, image, train.labels[index], key)


def joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks at one step as that of one rank."""
    index, image, label = (torch.cat([part.tensors()[i] for part in parts]) for i in range(3))
    return Batch(index, image, label, parts[0].key)


def test_the_order_is_not_that_of_the_folder(png: Dataset) -> None:
    """Negative control: what the loaders have to agree about is nothing trivial."""
    assert png.train.records.tolist() != list(range(SAMPLES))
    first, second = (torch.cat([b.index for b in expected(png, epoch, PADDED, 12)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert first.tolist() != sorted(first.tolist())
    assert len(first.unique()) == 48


@pytest.mark.parametrize("case", ALL)
def test_the_same_batches_to_the_pixel(case: Case, png: Dataset) -> None:
    """Two epochs of all ranks, and the rest of one by other loaders, as after a stop in the middle."""
    each = 12 // case.world_size
    with ExitStack() as stack:

        def opened_all() -> list[Loader]:
            loaders = [opened(case, png, PADDED, each, rank) for rank in range(case.world_size)]
            for loader in loaders:
                stack.callback(loader.close)
            return loaders

        loaders = opened_all()
        assert [len(loader) for loader in loaders] == [4] * case.world_size
        for epoch, start in ((0, 0), (1, 0), (0, 2)):
            if start and case in RESUMED:
                loaders = opened_all()
            wanted = list(expected(png, epoch, PADDED, 12))[start:]
            found = [joined(list(p)) for p in zip(*(x.epoch(epoch, start=start) for x in loaders), strict=True)]
            assert len(found) == len(wanted)
            for a, b in zip(found, wanted, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
            assert {loader.at for loader in loaders} == {(epoch + 1, 0)}


@pytest.mark.parametrize("name", ["resident", *SLOW_STARTERS, "dali"])
def test_pngs_cropped_at_random_scales(name: str, png: Dataset) -> None:
    """The same crops, but for how filters round: two levels at a pixel, a tenth of one on average of each image."""
    check_scaled(Case(name, 1, 1), png, at_a_pixel=2, on_average=0.2)


@pytest.mark.parametrize("name", ["torch", "dali", "ffcv"])
def test_jpegs_cropped_at_random_scales(name: str, jpg: Dataset) -> None:
    """The same crops of the same samples, but for how decoders and filters round: two levels on average of each."""
    check_scaled(Case(name, 1, 1), jpg, at_a_pixel=255, on_average=2)


def check_scaled(case: Case, data: Dataset, *, at_a_pixel: int, on_average: float) -> None:
    """An epoch's batches, image by image, beside those put together with Pillow and torch."""
    loader = opened(case, data, RESIZED, 12)
    try:
        for a, b in zip(loader.epoch(1, start=1), list(expected(data, 1, RESIZED, 12))[1:], strict=True):
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.label, b.label)
            assert a.image.float().std(dim=(1, 2, 3)).median() > 10  # they are photographs, not planes
            apart = (a.image.int() - b.image.int()).abs()
            assert apart.max() <= at_a_pixel
            assert apart.float().mean(dim=(1, 2, 3)).max() <= on_average
    finally:
        loader.close()
