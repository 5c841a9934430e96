"""Whether bytes are a JPEG that every decoder reads alike, seen from its markers, for many images at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Fault = Literal[
    "",
    "no JPEG begins there",
    "it does not end as a JPEG",
    "its JPEG header is damaged",
    "its JPEG is of an unusual kind",
]
FAULTS: tuple[Fault, ...] = Fault.__args__  # type: ignore[attr-defined]  # a fault's number is its place here
FINE, NO_START, NO_END, DAMAGED, UNUSUAL = range(len(FAULTS))

MOST_SEGMENTS = 1000  # before the first scan; photographs have 5 to 40
SKIPPED = (*range(0xE0, 0xF0), 0xFE, 0xDD)  # APPn, COM, DRI
QUANTISATION, HUFFMAN, SCAN = 0xDB, 0xC4, 0xDA
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; Huffman coded
OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xD0))  # lossless, hierarchical, arithmetic coding


def check_jpegs(
    content: npt.NDArray[np.uint8], places: Integers, sizes: Integers
) -> tuple[npt.NDArray[np.uint8], Integers, Integers]:
    """Walks over the markers of many JPEGs up to the first scan; reads their headers and last two bytes, no more.

    Fine is a JPEG of 8 bits with one or three components (grey or colour), Huffman coded, that has quantisation and
    Huffman tables and one frame before the first scan, and that ends with the end marker.

    Args:
        content: the bytes all of them lie in, uint8 [B].
        places: where each begins, int64 [N].
        sizes: bytes of each; place + size must not exceed B.

    Returns:
        (fault, height, width) of each; a fault is a number, named by `FAULTS`. Sizes are 0 where there is a fault.
    """
    count = len(places)
    fault = np.full(count, DAMAGED, np.uint8)
    height, width = np.zeros(count, np.int64), np.zeros(count, np.int64)
    long = sizes >= 4
    fault[~long] = NO_START
    ends = places + sizes
    rows = np.flatnonzero(long)
    starts = (content[places[rows]] == 0xFF) & (content[places[rows] + 1] == 0xD8)
    fault[rows[~starts]] = NO_START
    rows = rows[starts]
    closes = (content[ends[rows] - 2] == 0xFF) & (content[ends[rows] - 1] == 0xD9)
    fault[rows[~closes]] = NO_END
    rows = rows[closes]
    cursor = places + 2
    tables = np.zeros(count, np.uint8)  # bit 0: quantisation, bit 1: Huffman

    for _ in range(MOST_SEGMENTS):
        rows = rows[ends[rows] - cursor[rows] >= 4]  # room for a marker and a length
        if not len(rows):
            break
        at = cursor[rows]
        marker = content[at + 1]
        rows, marker = rows[content[at] == 0xFF], marker[content[at] == 0xFF]
        fill = marker == 0xFF  # a marker may be preceded by any number of these
        cursor[rows[fill]] += 1
        waiting = rows[fill]
        rows, marker = rows[~fill], marker[~fill]
        at = cursor[rows]
        length = (content[at + 2].astype(np.int64) << 8) | content[at + 3]
        fits = (length >= 2) & (length <= ends[rows] - at - 2)
        fault[rows[np.isin(marker, OTHER_FRAMES)]] = UNUSUAL
        framed = height[rows] > 0
        known = np.isin(marker, SKIPPED) & fits
        for which, bit in ((QUANTISATION, 1), (HUFFMAN, 2)):
            table = (marker == which) & fits & (length > 2)
            tables[rows[table]] |= bit
            known |= table
        frame = np.isin(marker, FRAMES) & fits & (length >= 11) & ~framed
        known[frame] = _read_frames(content, at[frame], length[frame], rows[frame], fault, height, width)
        scan = (marker == SCAN) & fits & (length >= 8) & framed & (tables[rows] == 3)
        components = content[at[scan] + 4].astype(np.int64)
        sound = (components >= 1) & (components <= 3) & (length[scan] == 6 + 2 * components)
        fault[rows[scan][sound]] = FINE
        cursor[rows] += 2 + length
        rows = np.sort(np.concatenate([rows[known], waiting]))
    height[fault != FINE] = width[fault != FINE] = 0
    return fault, height, width


def _read_frames(
    content: npt.NDArray[np.uint8],
    at: Integers,
    length: Integers,
    rows: Integers,
    fault: npt.NDArray[np.uint8],
    height: Integers,
    width: Integers,
) -> npt.NDArray[np.bool_]:
    """Takes the sizes out of frame headers; True for those that are of the usual kind."""
    bits, components = content[at + 4], content[at + 9].astype(np.int64)
    rows_high, rows_low = content[at + 5].astype(np.int64), content[at + 6]
    columns_high, columns_low = content[at + 7].astype(np.int64), content[at + 8]
    tall, wide = rows_high << 8 | rows_low, columns_high << 8 | columns_low
    sound = length == 8 + 3 * components
    usual = (bits == 8) & ((components == 1) | (components == 3)) & (tall > 0) & (wide > 0)
    for number in range(3):
        has = sound & usual & (components > number)
        sampling = content[at[has] + 11 + 3 * number]
        usual[has] &= (sampling >> 4 >= 1) & (sampling >> 4 <= 4) & (sampling & 15 >= 1) & (sampling & 15 <= 4)
        usual[has] &= content[at[has] + 12 + 3 * number] <= 3
    fault[rows[sound & ~usual]] = UNUSUAL
    good = sound & usual
    height[rows[good]], width[rows[good]] = tall[good], wide[good]
    return good


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of one image if it is a JPEG as `check_jpegs` wants it, None otherwise."""
    one = np.array([len(content)])
    fault, height, width = check_jpegs(np.frombuffer(content, np.uint8), np.zeros(1, np.int64), one)
    return (int(height[0]), int(width[0])) if fault[0] == FINE else None
