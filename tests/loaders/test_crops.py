"""Which part of an image is shown, and which samples make a step: functions of a few numbers, alike for all loaders."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hardfast.kernels import random_key
from hardfast.loaders.crops import Augmentation, central_boxes, random_boxes
from hardfast.loaders.errors import DataError
from hardfast.loaders.order import Order, check_batch_size

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

few = settings(max_examples=50, deadline=None)
side = st.one_of(st.integers(1, 4), st.integers(1, 600), st.sampled_from([1, 2, 9_999, 65_535]))
images = st.lists(st.tuples(st.integers(0, 2**32 - 1), side, side), min_size=1, max_size=30)
shares = st.tuples(st.floats(1e-7, 1), st.floats(1e-7, 1)).map(lambda pair: (min(pair), max(pair)))
IMAGENET = (0.08, 1.0)


def columns(rows: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    index, heights, widths = torch.tensor(rows).unbind(1)
    return index, heights, widths


def assert_inside(boxes: Tensor, heights: Tensor, widths: Tensor) -> None:
    top, left, height, width = boxes.unbind(1)
    assert boxes.dtype == torch.int64
    assert ((top >= 0) & (left >= 0) & (height >= 1) & (width >= 1)).all()
    assert ((top + height <= heights) & (left + width <= widths)).all()


@few
@given(images, shares, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_random_boxes_lie_inside(
    rows: list[tuple[int, int, int]], scale: tuple[float, float], seed: int, epoch: int
) -> None:
    index, heights, widths = columns(rows)
    boxes = random_boxes(index, heights, widths, key=random_key(seed, epoch=epoch), scale=scale)
    assert boxes.shape == (len(rows), 4)
    assert_inside(boxes, heights, widths)


def test_the_extreme_draws_of_the_place_lie_inside() -> None:
    """All 2 * 2 corners of a narrow margin occur, and nothing beyond them."""
    index = torch.arange(4000)
    sides = torch.full((4000,), 3)
    boxes = random_boxes(index, sides, sides, key=random_key(0, epoch=0), scale=(0.45, 0.45))
    assert_inside(boxes, sides, sides)
    assert {tuple(box) for box in boxes.tolist()} == {(t, x, 2, 2) for t in range(2) for x in range(2)}


@few
@given(images, shares, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.data())
def test_a_box_is_a_function_of_seed_epoch_and_sample(
    rows: list[tuple[int, int, int]], scale: tuple[float, float], seed: int, epoch: int, data: Any
) -> None:
    index, heights, widths = columns(rows)
    options = {"key": random_key(seed, epoch=epoch), "scale": scale}
    whole = random_boxes(index, heights, widths, **options)
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))[: data.draw(st.integers(1, len(rows)))]
    part = random_boxes(index[order], heights[order], widths[order], **options)
    assert torch.equal(part, whole[order])


def test_seed_epoch_and_sample_all_count() -> None:
    index, sides = torch.arange(200), torch.full((200,), 224)

    def boxes(seed: int, epoch: int, first: int) -> Tensor:
        return random_boxes(index + first, sides, sides, key=random_key(seed, epoch=epoch), scale=IMAGENET)

    found = [boxes(seed, epoch, first) for seed in (1, 2, 2**63 + 1) for epoch in (0, 1) for first in (0, 1000)]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one == other).all(dim=1).float().mean() < 0.05  # whole images, now and then


def test_known_boxes() -> None:
    """What a run has seen once it sees again, whatever becomes of the code."""
    rows = [(0, 64, 64), (1, 375, 500), (2, 500, 375), (49_999, 32, 32), (1_281_166, 400, 1000), (2**32 - 1, 7, 3)]
    boxes = random_boxes(*columns(rows), key=random_key(2**63 + 5, epoch=3), scale=IMAGENET)
    assert boxes.tolist() == [
        [9, 8, 29, 26],
        [70, 82, 202, 174],
        [297, 184, 138, 160],
        [2, 6, 30, 25],
        [9, 651, 264, 279],
        [3, 0, 2, 3],
    ]


def statistics(boxes: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """What the boxes are like, one number each: float64 [N]."""
    top, left, rows, cols = boxes.double().unbind(1)
    return {
        "share of the area": rows * cols / (height * width),
        "log of the ratio": (cols / rows).log(),
        "height": rows,
        "width": cols,
        "top": top / (height - rows).clamp(min=1),
        "left": left / (width - cols).clamp(min=1),
        "area and place": rows * cols / (height * width) * (top + left),
    }


def greatest_distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov and Smirnov's: between two empirical distribution functions."""
    places = torch.cat([a, b])
    shares = [torch.searchsorted(t.sort().values, places, right=True) / len(t) for t in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(64, 64, IMAGENET), (375, 500, IMAGENET), (300, 90, IMAGENET), (40, 50, (0.5, 1.0)), (224, 224, (0.08, 0.1))],
)
def test_boxes_are_distributed_like_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    ours, theirs = 20_000, 2_500
    image = torch.empty(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        drawn = [
            transforms.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])  # top, left, height, width
            for _ in range(theirs)
        ]
    sides = torch.full((ours,), height), torch.full((ours,), width)
    boxes = random_boxes(torch.arange(ours), *sides, key=random_key(3, epoch=1), scale=scale)
    found, wanted = statistics(boxes, height, width), statistics(torch.tensor(drawn), height, width)
    for name, values in wanted.items():
        # Exceeded by two equal distributions with probability 1e-3.
        assert greatest_distance(found[name], values) < 1.95 * math.sqrt(1 / ours + 1 / theirs), name
        error = 4 * float(values.std()) / math.sqrt(theirs)
        assert abs(float(found[name].mean() - values.mean())) <= error + 1e-9, name


def test_the_way_out_is_torchvisions() -> None:
    """Where no try fits, as with shares that no image has: the largest central box of an allowed ratio."""
    transforms = pytest.importorskip("torchvision.transforms")
    draw = torch.Generator().manual_seed(0)
    sizes = [(h, w) for h in range(1, 13) for w in range(1, 13)]
    sizes += [tuple(pair) for pair in torch.randint(1, 700, (60, 2), generator=draw).tolist()]
    sizes += [(1, 5000), (5000, 1), (300, 400), (400, 300), (299, 400), (300, 401), (401, 300)]
    huge = [50.0, 50.0]
    wanted = [
        transforms.RandomResizedCrop.get_params(torch.empty(1, h, w, device="meta"), huge, [3 / 4, 4 / 3])
        for h, w in sizes
    ]
    heights, widths = torch.tensor(sizes).unbind(1)
    boxes = random_boxes(torch.arange(len(sizes)), heights, widths, key=random_key(0, epoch=0), scale=(50.0, 50.0))
    assert boxes.tolist() == [list(box) for box in wanted]


@few
@given(images, st.tuples(side, side), st.floats(0.01, 1))
def test_central_boxes(rows: list[tuple[int, int, int]], size: tuple[int, int], share: float) -> None:
    """Inside, in the middle, of the wanted ratio to a pixel; at share 1 as large as they can be."""
    _, heights, widths = columns(rows)
    for part in (share, 1.0):
        boxes = central_boxes(heights, widths, size, share=part)
        assert_inside(boxes, heights, widths)
        top, left, height, width = boxes.unbind(1)
        assert ((heights - height - 2 * top).abs() <= 1).all()
        assert ((widths - width - 2 * left).abs() <= 1).all()
        other = (heights != size[0]) | (widths != size[1])
        scale = torch.minimum(heights / size[0], widths / size[1]) * part
        for found, wanted in ((height, scale * size[0]), (width, scale * size[1])):
            assert ((found - wanted.clamp(min=1)).abs() <= 0.51 + 1e-6 * wanted)[other].all()
        assert ((height == heights) & (width == widths))[~other].all()
    assert ((height == heights) | (width == widths)).all()


@pytest.mark.parametrize(
    ("height", "width", "size", "share", "box"),
    [
        (256, 320, (224, 224), 1.0, [0, 32, 256, 256]),
        (256, 256, (224, 224), 0.875, [16, 16, 224, 224]),
        (500, 375, (224, 224), 0.875, [86, 23, 328, 328]),
        (224, 224, (224, 224), 0.875, [0, 0, 224, 224]),  # has the size: shown whole
        (64, 64, (32, 64), 1.0, [16, 0, 32, 64]),  # of the size: not resampled
        (1, 9, (224, 224), 1.0, [0, 4, 1, 1]),
    ],
)
def test_central_boxes_by_hand(height: int, width: int, size: tuple[int, int], share: float, box: list[int]) -> None:
    assert central_boxes(torch.tensor([height]), torch.tensor([width]), size, share=share).tolist() == [box]


@pytest.mark.parametrize("scale", [(0.0, 1.0), (-0.1, 1.0), (0.5, 0.2), (0.08, 1.01), (math.nan, 1.0), (0.1, math.nan)])
def test_shares_of_an_area(scale: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="crop-scale"):
        Augmentation(scale=scale)


def test_one_kind_of_crop() -> None:
    with pytest.raises(DataError, match="--crop-padding 0"):
        Augmentation(scale=IMAGENET, padding=4)
    assert Augmentation(scale=IMAGENET, flip=True).padding == 0
    assert Augmentation(scale=(1.0, 1.0)).scale == (1.0, 1.0)
    assert Augmentation(padding=4).scale is None


# Order.


@few
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_ranks_share_the_steps_of_one(samples: int, batch_size: int, world_size: int, seed: int, epoch: int) -> None:
    """Joined they are one rank's, with its batch as many times as large; each sample comes once at the most."""
    if batch_size * world_size > samples:
        return
    one = Order(samples=samples, batch_size=batch_size * world_size, seed=seed)
    ranks = [
        Order(samples=samples, batch_size=batch_size, seed=seed, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    parts = [order.epoch(epoch) for order in ranks]
    steps = samples // (batch_size * world_size)
    assert [len(order) for order in (one, *ranks)] == [steps] * (world_size + 1)
    assert all(part.shape == (steps, batch_size) and part.dtype == torch.int64 for part in parts)
    joined = torch.cat(parts, dim=1)
    assert torch.equal(joined, one.epoch(epoch))
    assert len(joined.unique()) == joined.numel()
    assert ((joined >= 0) & (joined < samples)).all()


def test_an_order_starts_anywhere_and_ends_with_the_epoch() -> None:
    order = Order(samples=103, batch_size=5, seed=1, world_size=2, rank=1)
    whole = order.epoch(4)
    assert len(order) == len(whole) == 10
    for start in range(11):
        assert torch.equal(order.epoch(4, start=start), whole[start:])
    for start in (-1, 11):
        with pytest.raises(DataError, match=f"10 batches has no batch {start}"):
            order.epoch(4, start=start)


def test_seed_and_epoch_are_all_that_orders() -> None:
    def order(seed: int, epoch: int, batch_size: int = 50) -> list[int]:
        return Order(samples=500, batch_size=batch_size, seed=seed).epoch(epoch).flatten().tolist()

    assert order(1, 2) == order(1, 2) == order(1, 2, batch_size=100)
    found = [order(seed, epoch) for seed in (1, 2, 2**40 + 1) for epoch in (0, 1, 2)]
    assert all(sorted(samples) == list(range(500)) for samples in found)
    assert len({tuple(samples) for samples in found}) == len(found)


def test_a_known_order() -> None:
    order = Order(samples=12, batch_size=3, seed=7, world_size=2, rank=1)
    assert order.epoch(2).tolist() == [[5, 9, 7], [0, 8, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch-size 0 does not fit 100 training images: choose from 1 to 100"),
        ({"batch_size": 101}, "batch-size 101 does not fit 100 training images: choose from 1 to 100"),
        ({"batch_size": 34, "world_size": 3}, "batch-size 34 on each of 3 ranks does not fit .* from 1 to 33"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2: choose 0 to 1"),
        ({"rank": -1, "world_size": 2}, "rank -1 is not one of 2"),
        ({"world_size": 0}, "world size 0"),
        ({"world_size": -2, "rank": -3}, "world size -2"),
        ({"samples": 0}, "does not fit 0 training images: bring more"),
        (
            {"samples": 2, "batch_size": 1, "world_size": 3},
            "does not fit 2 training images: bring more images, or fewer",
        ),
    ],
)
def test_an_order_that_cannot_be(changes: dict[str, int], message: str) -> None:
    options = {"samples": 100, "batch_size": 10, "seed": 0} | changes
    with pytest.raises(DataError, match=message) as caught:
        Order(**options)
    assert "\n" not in str(caught.value)


def test_a_full_set_is_one_batch() -> None:
    check_batch_size(100, 100)
    assert len(Order(samples=100, batch_size=50, seed=0, world_size=2)) == 1
