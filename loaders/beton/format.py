"""FFCV's file format, version 2 (`.beton`), as far as images with labels need it: layout, types and limits.

A file is, in this order and all little-endian:

    HEADER                          24 bytes
    FIELD x 2                       the fields "image" and "label"
    RECORD x samples                size, place and label of every image
    zeros                           up to the next multiple of the page size
    pages                           the images' bytes; no image crosses the end of a page, whose rest is zeros
    ALLOCATION x samples            (sample, place, bytes) of every image; the file ends here

The reader of FFCV takes everything from `allocations` to the end of the file as the allocation table and finds the
size of an image there by its place, so the two must agree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("allocations", "<u8")]
)  # `allocations`: where that table begins
FIELD = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
IMAGE_TYPE, LABEL_TYPE = 2, 1
FIELDS = ((IMAGE_TYPE, b"image"), (LABEL_TYPE, b"label"))
# FFCV aligns the 64-bit label as C would, after the 13 packed bytes of the image.
RECORD = np.dtype(
    {
        "names": ["mode", "width", "height", "place", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
JPEG, RAW = 0, 1  # `mode`
ALLOCATION = np.dtype([("sample", "<u8"), ("place", "<u8"), ("size", "<u8")])

RECORDS_START = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
SMALLEST_PAGE, LARGEST_PAGE = 1 << 21, 1 << 31
LARGEST_SIDE = (1 << 16) - 1  # of an image, in pixels
MOST_PIXELS = 178_956_970  # of an image; Pillow takes more for an attack, and decoding takes 3 bytes for each
MOST_CLASSES = 1 << 20  # a label beyond is taken for damage


def data_start(samples: int, page: int) -> int:
    """Where the first page begins."""
    return -(-(RECORDS_START + samples * RECORD.itemsize) // page) * page


def page_size(largest: int) -> int:
    """A page for images of at most `largest` bytes: a power of two that some of them share, if that is below 8 MiB."""
    wanted = max(SMALLEST_PAGE, largest, min(8 * largest, 4 * SMALLEST_PAGE))
    return 1 << (wanted - 1).bit_length()


def head(samples: int, page: int, allocations: int) -> bytes:
    """Header and fields of a file of `samples` images."""
    header = np.array((VERSION, len(FIELDS), page, samples, allocations), HEADER)
    fields = np.zeros(len(FIELDS), FIELD)
    for field, (number, name) in zip(fields, FIELDS, strict=True):
        field["type"] = number
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    return header.tobytes() + fields.tobytes()


def empty_tables(samples: int) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """RECORD and ALLOCATION tables to be filled in."""
    return np.zeros(samples, RECORD), np.zeros(samples, ALLOCATION)
