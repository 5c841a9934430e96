"""Loaders on a GPU: the batches that a CPU gets, while the step before them is still at work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("torchvision")
from hardfast.loaders import Augmentation, DataOptions, Loader, LoaderOptions, open_dataset
from hardfast.loaders.choose import choose_loader, make_loader

from .sources import write_folder

pytestmark = pytest.mark.gpu
SIZE = (40, 40)
PADDED = Augmentation(padding=3, flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("gpu")
    write_folder(root, 64, size=SIZE)
    write_folder(root, 6, size=SIZE, split="val")
    return root


def opened(folder: Path, name: str, device: str, how: Augmentation = PADDED) -> Loader:
    data = open_dataset(DataOptions(name="folder", root=str(folder)))
    options = LoaderOptions(name=name, workers=2)
    choice = choose_loader(data, SIZE, options=options, augmentation=how, device=device)
    return make_loader(choice, data, SIZE, options=options, augmentation=how, batch_size=8, seed=5, device=device)


@pytest.mark.parametrize("name", ["resident", "torch", "dali"])
def test_the_batches_of_a_cpu(name: str, folder: Path) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    gpu, cpu = opened(folder, name, "cuda"), opened(folder, "resident", "cpu")
    matrix = torch.randn(2048, 2048, device="cuda")
    try:
        kept = []
        for epoch in (0, 1):
            for a, b in zip(gpu.epoch(epoch), cpu.epoch(epoch), strict=True):
                for _ in range(20):  # a step that is still running when the next batch is copied
                    matrix = torch.tanh(matrix @ matrix)
                kept.append((a, b))
        next(gpu.epoch(0))  # given up
        kept += zip(gpu.epoch(1, start=2), cpu.epoch(1, start=2), strict=True)
        for a, b in kept:
            assert all(torch.equal(x.cpu(), y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
    finally:
        gpu.close()
        gpu.close()


def test_an_epoch_that_was_given_up_delivers_nothing_more(folder: Path) -> None:
    """Its buffers belong to the next one; the batch that it gave stays what it was."""
    gpu, cpu = opened(folder, "torch", "cuda"), opened(folder, "resident", "cpu")
    try:
        old = gpu.epoch(0)
        kept = next(old)
        new = gpu.epoch(1)
        first = next(new)
        assert next(old, None) is None
        for a, b in [(kept, next(cpu.epoch(0))), *zip([first, *new], cpu.epoch(1), strict=True)]:
            assert all(torch.equal(x.cpu(), y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
    finally:
        gpu.close()


@pytest.mark.parametrize("name", ["resident", "torch"])
@pytest.mark.parametrize("how", [PADDED, Augmentation(scale=(0.2, 1), flip=True)])
def test_the_device_is_not_waited_for(name: str, how: Augmentation, folder: Path) -> None:
    """But for events of earlier copies, which this switch of torch's does not see."""
    loader = opened(folder, name, "cuda", how)
    try:
        batches = loader.epoch(0)
        next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                next(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    finally:
        loader.close()
