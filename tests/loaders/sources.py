"""Image folders for tests: small pictures cut out of scikit-learn's two sample photographs, in real file formats."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDES = ((40, 56), (48, 48), (64, 44), (33, 71))  # (height, width) of the pictures in turn, where no size is given


@cache
def photographs() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """china.jpg and flower.jpg: uint8 [427, 640, 3] each."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg"), load_sample_image("flower.jpg")


def picture(number: int, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Picture `number`, uint8 [H, W, 3]: a part of one of the photographs, another one for each number below 1,000."""
    height, width = SIDES[number % len(SIDES)] if size is None else size
    photograph = photographs()[number % 2]
    top = 37 * number % (photograph.shape[0] - height + 1)
    left = 101 * number % (photograph.shape[1] - width + 1)
    return photograph[top : top + height, left : left + width]


def write_folder(
    root: Path,
    images: int = 12,
    *,
    kind: str = "png",
    size: tuple[int, int] | None = None,
    classes: int = 3,
    split: str = "train",
    quality: int = 90,
) -> Path:
    """Writes pictures 0 to images - 1 as root/SPLIT/CLASS/NUMBER.KIND; returns the split's folder.

    Picture i is sample i: the first ones are of class 0, and so on, in equal parts as far as that goes.

    Args:
        root: of the data set.
        images: number of pictures.
        kind: "png", or "jpg" (with 4:2:0 colours).
        size: (height, width) of all; None for those of `SIDES` in turn.
        classes: number of class folders.
        split: name of the split's folder.
        quality: of JPEGs.
    """
    for number in range(images):
        name = f"{number:05d}.{kind}"
        path = root / split / f"class-{number * classes // images}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"quality": quality, "subsampling": 2} if kind == "jpg" else {}
        Image.fromarray(picture(number, size)).save(path, **options)
    return root / split


def write_odd_files(folder: Path, size: tuple[int, int] = (40, 56)) -> dict[str, Path]:
    """Pictures in many layouts, and in none that has to be refused; their paths by name, in sorted order."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = [Image.fromarray(picture(number, size)) for number in range(20)]
    grey = colour[0].convert("L")
    alpha = colour[1].convert("RGBA")
    alpha.putalpha(grey)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: a quarter turn
    made = {
        "alpha.png": (alpha, {}),
        "bilevel.png": (grey.convert("1"), {}),
        "cmyk.jpg": (colour[2].convert("CMYK"), {}),
        "grey.jpg": (grey, {}),
        "grey.png": (grey, {}),
        "grey-alpha.png": (alpha.convert("LA"), {}),
        "key.png": (colour[3], {"transparency": (0, 0, 0)}),
        "key-grey.png": (grey, {"transparency": 128}),
        "palette.gif": (colour[4].quantize(64), {}),
        "palette.png": (colour[5].quantize(64), {}),
        "palette-4.png": (colour[6].quantize(16), {"bits": 4}),
        "palette-alpha.png": (colour[7].quantize(32), {"transparency": 3}),
        "plain.bmp": (colour[8], {}),
        "plain.jpg": (colour[9], {"quality": 90}),
        "plain.png": (colour[10], {}),
        "progressive.jpg": (colour[11], {"progressive": True}),
        "rotated.jpg": (colour[12], {"exif": rotated}),
        "rotated.png": (colour[13], {"exif": rotated}),
        "plain.webp": (colour[14], {"lossless": True}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    (folder / "sixteen.png").write_bytes(png_of_16_bits(picture(15, size).astype(np.uint16) * 256 + 255))
    return {name: folder / name for name in sorted([*made, "sixteen.png"])}


def png_of_16_bits(pixels: npt.NDArray[np.uint16]) -> bytes:
    """A PNG with 16 bits a channel, which Pillow reads but cannot write: [H, W, 3] in colour, [H, W] in grey."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def slow_jpeg(scans: int = 25_000, side: int = 2000) -> bytes:
    """A sound header and 14 bytes for each of many progressive scans: a minute of work for a decoder, and more."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True, quality=50)
    content = buffer.getvalue()
    end = content.rindex(b"\xff\xd9")
    last = content[content.rindex(b"\xff\xda") : end]
    return content[:end] + scans * last + content[end:]
