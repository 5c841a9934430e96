"""The resident loader: one order, each sample once, the same batches from any starting point."""

from __future__ import annotations

import pytest
import torch

from hardfast.kernels import augment, random_key
from hardfast.loaders import Augmentation, DataError, ResidentLoader, Split
from hardfast.loaders.crops import random_boxes
from hardfast.loaders.streamed import resampled

IMAGES = torch.randint(0, 256, (103, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MOVED = Augmentation(padding=2, flip=True)


def loader(**changes: object) -> ResidentLoader:
    options = {"batch_size": 10, "augmentation": MOVED, "seed": 1, "device": "cpu"} | changes
    return ResidentLoader(Split(IMAGES, torch.arange(len(IMAGES)) % 7), **options)


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


def test_its_state_is_the_batch_that_comes_next() -> None:
    one = loader()
    assert one.at == (0, 0)
    batches = one.epoch(2, start=7)
    next(batches)
    assert one.at == (2, 8)
    rest = list(batches)
    assert one.at == (3, 0)
    assert len(rest) == 2
    assert list(one.epoch(2, start=10)) == []
    with pytest.raises(DataError, match="no batch 11"):
        next(one.epoch(2, start=11))


def test_images_are_the_augmented_ones_of_their_index() -> None:
    batch = next(loader().epoch(2))
    wanted = augment(IMAGES, batch.index, key=random_key(1, epoch=2), padding=2, flip=True)
    assert torch.equal(batch.image, wanted)
    batch = next(loader(augmentation=Augmentation()).epoch(0))
    assert torch.equal(batch.image, IMAGES[batch.index])


def test_crops_at_random_scales_are_those_of_every_loader() -> None:
    batch = next(loader(augmentation=Augmentation(scale=(0.3, 1), flip=False), size=(4, 4)).epoch(1))
    sides = torch.full_like(batch.index, 6), torch.full_like(batch.index, 5)
    boxes = random_boxes(batch.index, *sides, key=random_key(1, epoch=1), scale=(0.3, 1))
    wanted = [resampled(IMAGES[i].numpy(), box, (4, 4)) for i, box in zip(batch.index, boxes, strict=True)]
    assert batch.image.shape == (10, 4, 4, 3)
    assert (batch.image.int() - torch.stack(wanted).int()).abs().max() <= 1
    assert len({tuple(box) for box in boxes.tolist()}) > 5


def test_a_closed_loader_says_so() -> None:
    one = loader()
    one.close()
    one.close()
    with pytest.raises(DataError, match="was closed"):
        next(one.epoch(0))


def test_another_size_needs_crops() -> None:
    with pytest.raises(DataError, match="resize them before"):
        loader(size=(4, 4))


@pytest.mark.parametrize("batch_size", [0, 104])
def test_a_batch_that_does_not_fit(batch_size: int) -> None:
    with pytest.raises(DataError, match="batch-size"):
        loader(batch_size=batch_size)
