"""Boxes scaled on the device: like torchvision's antialiased resize, by arithmetic without a rounding of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hardfast.loaders.box_resize import ONE, _weights, resize_boxes
from hardfast.loaders.errors import DataError

SIZES = [(9, 9), (16, 7), (31, 40), (33, 2), (64, 64), (5, 90)]


def drawn(seed: int, n: int, channels: int, *, extreme: bool = False) -> tuple[Tensor, Tensor]:
    """Images of one random size below 80x80, and a random box of each; some reach the borders, some are one pixel."""
    draw = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 80, (2,), generator=draw).tolist()
    images = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=draw)
    if extreme:
        images = (images > 127).to(torch.uint8) * 255
    rows, columns = (torch.randint(1, side + 1, (n,), generator=draw) for side in (height, width))
    share = torch.rand(2, n, generator=draw).mul(1.5).sub(0.25).clamp(0, 1)  # a third of them at a border
    top, left = (share * torch.stack((height - rows, width - columns))).round().long()
    return images, torch.stack((top, left, rows, columns), dim=1)


def crops(images: Tensor, boxes: Tensor) -> list[Tensor]:
    """What is in each box, as [1, C, height, width]."""
    parts = zip(images, boxes.tolist(), strict=True)
    return [image[t : t + h, x : x + w].permute(2, 0, 1)[None] for image, (t, x, h, w) in parts]


@pytest.mark.parametrize("extreme", [False, True], ids=["noise", "black and white"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_within_a_level_of_antialiased_bilinear(size: tuple[int, int], channels: int, extreme: bool) -> None:
    """Of one rounding, where we round twice."""
    apart = []
    for seed in range(12):
        images, boxes = drawn(seed, 4, channels, extreme=extreme)
        result = resize_boxes(images, boxes, size)
        assert result.shape == (4, *size, channels)
        assert result.dtype == torch.uint8
        assert result.is_contiguous()
        for crop, found in zip(crops(images, boxes), result, strict=True):
            wanted = F.interpolate(crop.double(), size, mode="bilinear", antialias=True, align_corners=False)
            apart.append((found.permute(2, 0, 1) - wanted.round()[0]).abs().flatten())
    assert torch.cat(apart).max() <= 1
    assert torch.cat(apart).mean() < 0.2


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 8), (8, 1)], ids=str)
def test_it_agrees_with_what_torchvision_calls_for_bytes(size: tuple[int, int]) -> None:
    """Which rounds twice as well, with other roundings of the weights."""
    apart = []
    for seed in range(12):
        images, boxes = drawn(seed, 4, 3)
        for crop, found in zip(crops(images, boxes), resize_boxes(images, boxes, size), strict=True):
            wanted = F.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False)[0]
            apart.append((found.permute(2, 0, 1).int() - wanted.int()).abs().flatten())
    levels = torch.cat(apart)
    assert levels.max() <= 2
    assert (levels == 2).float().mean() < 1e-4
    assert levels.float().mean() < 0.1


@pytest.mark.parametrize(
    ("column", "size", "wanted"),
    [
        ([0, 255], 1, [128]),  # halves upwards
        ([10, 20], 4, [10, 13, 18, 20]),  # 10, 12.5, 17.5, 20
        ([0, 0, 80, 0], 2, [11, 34]),  # 80/7 and 3 * 80/7: weights of 3, 3, 1, 0 sevenths, then 0, 1, 3, 3
        ([7], 3, [7, 7, 7]),
    ],
)
def test_by_hand(column: list[int], size: int, wanted: list[int]) -> None:
    image = torch.tensor(column, dtype=torch.uint8).view(1, -1, 1, 1)
    assert resize_boxes(image, torch.tensor([[0, 0, len(column), 1]]), (size, 1)).flatten().tolist() == wanted
    turned = resize_boxes(image.transpose(1, 2).contiguous(), torch.tensor([[0, 0, 1, len(column)]]), (1, size))
    assert turned.flatten().tolist() == wanted


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_of_the_size_is_only_cut_out(channels: int) -> None:
    images = torch.randint(0, 256, (40, 23, 31, channels), dtype=torch.uint8)
    boxes = torch.stack([torch.arange(40) % 11, torch.arange(40) % 15, torch.full((40,), 13), torch.full((40,), 17)], 1)
    wanted = torch.cat(crops(images, boxes)).permute(0, 2, 3, 1)
    assert torch.equal(resize_boxes(images, boxes, (13, 17)), wanted)
    whole = torch.tensor([[0, 0, 23, 31]]).expand(40, 4)
    assert torch.equal(resize_boxes(images, whole, (23, 31)), images)


@pytest.mark.parametrize("size", [(3, 5), (40, 17), (200, 130)], ids=str)
def test_even_areas_stay_what_they_are(size: tuple[int, int]) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 30, 40, 1).contiguous()
    _, boxes = drawn(3, 256, 1)
    boxes = torch.minimum(boxes, torch.tensor([14, 19, 16, 21])).clamp(min=torch.tensor([0, 0, 1, 1]))
    assert torch.equal(resize_boxes(images, boxes, size), images[:, :1, :1].expand(-1, *size, -1))


def test_what_is_outside_the_box_has_no_influence() -> None:
    images, boxes = drawn(5, 8, 3)
    wanted = resize_boxes(images, boxes, (12, 10))
    alone = torch.zeros_like(images)
    for image, crop, (top, left, height, width) in zip(alone, crops(images, boxes), boxes.tolist(), strict=True):
        image[top : top + height, left : left + width] = crop[0].permute(1, 2, 0)
    assert not torch.equal(alone, images)
    assert torch.equal(resize_boxes(alone, boxes, (12, 10)), wanted)


def test_weights_and_sums_fit_what_they_are_kept_in() -> None:
    """11 significant bits in multiples of 2**-16; and the fp32 result is that of whole numbers."""
    for seed in range(20):
        images, boxes = drawn(seed, 3, 3, extreme=seed % 2 == 0)
        height, width = images.shape[1:3]
        across, down = _weights(boxes[:, 1], boxes[:, 3], width, 14), _weights(boxes[:, 0], boxes[:, 2], height, 11)
        for weights in (across, down):
            assert not (weights.view(torch.int32) & 0x1FFF).any()
            assert torch.equal(weights * ONE, (weights * ONE).round())
            assert (weights.sum(2) - 1).abs().max() < 2**-10
        whole = [(weights * ONE).long() for weights in (across, down)]
        rows = torch.einsum("nxX,nyXc->nyxc", whole[0], images.long()) + ONE // 2 >> 16
        wanted = torch.einsum("nyY,nYxc->nyxc", whole[1], rows) + ONE // 2 >> 16
        assert torch.equal(resize_boxes(images, boxes, (11, 14)), wanted.to(torch.uint8))


def test_neither_batch_nor_autocast_changes_a_bit() -> None:
    images, boxes = drawn(7, 33, 3)
    whole = resize_boxes(images, boxes, (32, 24))
    for part in (slice(0, 1), slice(5, 12), slice(32, None)):
        assert torch.equal(resize_boxes(images[part], boxes[part], (32, 24)), whole[part])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize_boxes(images, boxes, (32, 24)), whole)
    assert resize_boxes(images[:0], boxes[:0], (32, 24)).shape == (0, 32, 24, 3)


IMAGES, BOXES = torch.zeros(2, 6, 8, 3, dtype=torch.uint8), torch.tensor([[0, 0, 6, 8], [1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("images", "boxes", "size", "message"),
    [
        (IMAGES.float(), BOXES, (4, 4), r"images must be uint8 \[N, H, W, C\], not torch.float32"),
        (IMAGES[0], BOXES, (4, 4), r"images must be uint8 \[N, H, W, C\]"),
        (IMAGES, BOXES.int(), (4, 4), r"boxes must be int64 \[2, 4\]"),
        (IMAGES, BOXES[:1], (4, 4), r"boxes must be int64 \[2, 4\]"),
        (IMAGES, BOXES[:, :3], (4, 4), r"boxes must be int64 \[2, 4\]"),
        (IMAGES, BOXES.to("meta"), (4, 4), "boxes are on meta"),
        (IMAGES, BOXES, (0, 4), r"size \(0, 4\)"),
        (IMAGES, BOXES + torch.tensor([[0], [4]]), (4, 4), r"boxes\[1\] is \[5, 6, 7, 8\]: not inside .* 6x8"),
        (IMAGES, BOXES - torch.tensor([[0], [2]]), (4, 4), r"boxes\[1\] is \[-1, 0, 1, 2\]"),
        (IMAGES, BOXES * torch.tensor([1, 1, 1, 0]), (4, 4), r"boxes\[0\] is \[0, 0, 6, 0\]"),
    ],
)
def test_what_does_not_fit_is_named(images: Tensor, boxes: Tensor, size: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        resize_boxes(images, boxes, size)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_gpu_gives_the_same_bits(size: tuple[int, int], tf32: bool) -> None:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        for seed in range(6):
            images, boxes = drawn(seed, 65, 3)
            found = resize_boxes(images.cuda(), boxes.cuda(), size)
            assert torch.equal(found.cpu(), resize_boxes(images, boxes, size))
    finally:
        matmul.allow_tf32 = before
