"""Boxes of images that lie on the device, scaled to one size: the random resized crops of the resident loader.

Each output row is a weighted mean of the box's rows, and each column of its columns: two matrix products for the whole
batch, with weight matrices made for each image on its device, so nothing loops over images or waits for them.

The products are exact, on any device, in any order of summation and with TF32 on: the factors are bytes, and weights
rounded to 11 significant bits (all that TF32 keeps) and multiples of 2**-16, so a sum of products, below 256, fits
the 24 bits of an fp32 number. Between the two products the means are rounded to whole levels, halves upwards, as
torchvision and Pillow do for bytes. So a sample's crop is the same to the bit on a CPU and on a GPU, in every batch and
at every precision of the run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import DataError

ONE = 1 << 16  # weights are multiples of 1 / ONE
DROPPED = 13  # bits of an fp32 number that TF32 has not


def resize_boxes(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The box of each image scaled to `size`: bilinear, antialiased where it shrinks, as by torchvision's `resize`.

    At most one level from the exact means rounded once (F.interpolate with antialias=True on floats) where a box
    shrinks less than 60 times; a box of exactly `size` is not changed at all. Pixels outside the box have no influence.

    Args:
        images: uint8 [N, H, W, C], on any device.
        boxes: int64 [N, 4] on that device: top, left, height, width in pixels, inside the image. A CPU raises DataError
            if they are not; a GPU, which could not say so without waiting, gives pixels of no meaning.
        size: (height, width) of the result.

    Returns:
        uint8 [N, height, width, C], contiguous.

    Raises:
        DataError: an argument of another dtype, shape, device or range.
    """
    _check(images, boxes, size)
    n, height, width, channels = images.shape
    top, left, rows, columns = boxes.unbind(1)
    # Half precision of an autocast around us would round the sums.
    with torch.autocast(images.device.type, enabled=False):
        across = _weights(left, columns, width, size[1])
        pixels = images.permute(0, 1, 3, 2).reshape(n, height * channels, width).float()
        narrow = torch.bmm(pixels, across.transpose(1, 2)).add_(0.5).floor_()
        down = _weights(top, rows, height, size[0])
        scaled = torch.bmm(down, narrow.view(n, height, channels * size[1])).add_(0.5)
    # Weights add up to less than 1 + 2**-10, so 255 is the most that comes out, and nothing needs clamping.
    return scaled.view(n, size[0], channels, size[1]).to(torch.uint8).permute(0, 1, 3, 2).contiguous()


def _weights(start: Tensor, length: Tensor, stored: int, wanted: int) -> Tensor:
    """What each of `stored` pixels counts in each of `wanted` ones that show a part of them: [N, wanted, stored].

    Output pixel i lies at (i + 1/2) * length / wanted of the part. Weights fall linearly to 0 at a distance of one
    output pixel, or of one stored pixel where that is more. In units of 1 / (2 * wanted) all of it is whole numbers,
    and so the same on every device.

    Args:
        start, length: of the part, in stored pixels, int64 [N].
        stored, wanted: pixels before and after.
    """
    device = start.device
    place = torch.arange(stored, device=device) - start[:, None]
    inside = (place >= 0) & (place < length[:, None])
    centre = (2 * torch.arange(wanted, device=device) + 1) * length[:, None]
    reach = 2 * length.clamp(min=wanted)
    distance = ((2 * place + 1) * wanted)[:, None, :] - centre[:, :, None]
    tent = (reach[:, None, None] - distance.abs_()).clamp_(min=0).mul_(inside[:, None, :])
    total = tent.sum(2, keepdim=True).clamp_(min=1)
    share = (tent.double() * ONE / total).round_().float()
    # To the nearest number that ends in DROPPED zero bits: an fp32 number is an integer that grows with it.
    bits = share.view(torch.int32)
    bits += 1 << (DROPPED - 1)
    bits &= -1 << DROPPED
    return share / ONE


def _check(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(f"images must be uint8 [N, H, W, C], not {images.dtype} {tuple(images.shape)}")
    if boxes.dtype != torch.int64 or boxes.shape != (len(images), 4):
        wanted = f"int64 [{len(images)}, 4], one for each image"
        raise DataError(f"boxes must be {wanted}, not {boxes.dtype} {tuple(boxes.shape)}")
    if boxes.device != images.device:
        raise DataError(f"boxes are on {boxes.device} but the images on {images.device}: move one of them")
    if min(size) < 1:
        raise DataError(f"size {size} must be a height and a width of at least one pixel")
    if images.device.type == "cpu":
        sides = boxes.new_tensor(images.shape[1:3])
        wrong = (boxes[:, :2] < 0) | (boxes[:, 2:] < 1) | (boxes[:, :2] + boxes[:, 2:] > sides)
        if wrong.any():
            first = int(wrong.any(1).nonzero()[0])
            shape = "x".join(map(str, sides.tolist()))
            raise DataError(f"boxes[{first}] is {boxes[first].tolist()}: not inside its image of {shape} pixels")
