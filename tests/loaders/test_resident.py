"""The resident loader: one order, each sample once, the same batches from any starting point."""

from __future__ import annotations

import pytest
import torch

from hardfast.kernels import augment, random_key
from hardfast.loaders import DataError, ResidentLoader, Split


def loader(n: int = 103, **changes: object) -> ResidentLoader:
    images = torch.randint(0, 256, (n, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"batch_size": 10, "padding": 2, "flip": True, "seed": 1, "device": "cpu"} | changes
    return ResidentLoader(Split(images, torch.arange(n) % 7), **options)


def test_each_sample_once_and_the_rest_dropped() -> None:
    batches = list(loader().epoch(0))
    assert len(batches) == len(loader()) == 10
    index = torch.cat([batch.index for batch in batches])
    assert len(index.unique()) == 100
    for batch in batches:
        assert batch.image.shape == (10, 6, 5, 3)
        assert batch.image.dtype == torch.uint8
        assert batch.x.shape == (10, 3, 6, 5)
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        assert batch.x.data_ptr() == batch.image.data_ptr()
        assert torch.equal(batch.label, batch.index % 7)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        return [int(i) for batch in loader(seed=seed).epoch(epoch) for i in batch.index]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(e, s)) for e in (0, 1) for s in (1, 2)}) == 4


def test_start_in_mid_epoch_continues_the_same_epoch() -> None:
    one = loader()
    whole, rest = list(one.epoch(3)), list(one.epoch(3, start=4))
    assert len(rest) == 6
    for a, b in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("index", "image", "label"))


def test_images_are_the_augmented_ones_of_their_index() -> None:
    one = loader()
    batch = next(one.epoch(2))
    wanted = augment(one.split.images, batch.index, key=random_key(1, epoch=2), padding=2, flip=True)
    assert torch.equal(batch.image, wanted)
    plain = loader(padding=0, flip=False)
    batch = next(plain.epoch(0))
    assert torch.equal(batch.image, plain.split.images[batch.index])


@pytest.mark.parametrize("batch_size", [0, 104])
def test_a_batch_that_does_not_fit(batch_size: int) -> None:
    with pytest.raises(DataError, match="batch-size"):
        loader(batch_size=batch_size)
