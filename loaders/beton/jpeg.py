"""Whether bytes are a JPEG that every decoder reads alike, seen from its headers, for many images at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]

FAULTS = (
    "",
    "no JPEG begins there",
    "it does not end as a JPEG",
    "its JPEG header is damaged",
    "its JPEG is of an unusual kind",
)
FINE, NO_START, NO_END, DAMAGED, UNUSUAL = range(len(FAULTS))

MOST_SEGMENTS = 1000  # before the first scan; photographs have 5 to 40
SKIPPED = (*range(0xE0, 0xF0), 0xFE, 0xDD)  # APPn, COM, DRI
QUANTISATION, HUFFMAN, SCAN, PROGRESSIVE = 0xDB, 0xC4, 0xDA, 0xC2
FRAMES = (0xC0, 0xC1, PROGRESSIVE)  # baseline, extended, progressive; all with Huffman codes
OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xD0))  # lossless, hierarchical, arithmetic codes


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of one image if it is a JPEG as `check_jpegs` wants it, None otherwise."""
    one = np.array([len(content)])
    fault, height, width = check_jpegs(np.frombuffer(content, np.uint8), np.zeros(1, np.int64), one)
    return (int(height[0]), int(width[0])) if fault[0] == FINE else None


def check_jpegs(content: Bytes, places: Integers, sizes: Integers) -> tuple[Bytes, Integers, Integers]:
    """Walks over the headers of many JPEGs up to the first scan; reads them and the last two bytes, no more.

    Fine is a JPEG of 8 bits with one or three components (grey or colour) and Huffman codes, which has all tables that
    its one frame and its first scan name, and which ends with the end marker.

    Args:
        content: the bytes all of them lie in, uint8 [B].
        places: where each begins, int64 [N].
        sizes: bytes of each, int64 [N]; place + size must not exceed B.

    Returns:
        (fault, height, width) of each; a fault is a number, named by `FAULTS`. Sizes are 0 where there is a fault.
    """
    walk = _Walk(content, places, places + sizes)
    rows = np.arange(len(places))
    rows = walk.keep(rows, sizes >= 4, NO_START)
    rows = walk.keep(rows, walk.word(places[rows]) == 0xFFD8, NO_START)
    rows = walk.keep(rows, walk.word(walk.ends[rows] - 2) == 0xFFD9, NO_END)
    walk.cursor += 2
    for _ in range(MOST_SEGMENTS):
        if not len(rows):
            break
        rows = walk.step(rows)
    bad = walk.fault != FINE
    walk.height[bad] = walk.width[bad] = 0
    return walk.fault, walk.height, walk.width


class _Walk:
    """Where the walk over each JPEG is, and what was seen so far; all arrays are [N], and `rows` number their rows."""

    def __init__(self, content: Bytes, places: Integers, ends: Integers) -> None:
        count = len(places)
        self.content, self.cursor, self.ends = content, places.copy(), ends
        self.fault = np.full(count, DAMAGED, np.uint8)
        self.height, self.width, self.frame = (np.zeros(count, np.int64) for _ in range(3))  # frame: its place, 0: none
        self.quantisation = np.zeros(count, np.int64)  # bit of each table that was defined
        self.huffman = np.zeros(count, np.int64)  # bits 0 to 3 are tables for DC, 4 to 7 for AC

    def word(self, at: Integers) -> Integers:
        """Two bytes as a number, the high one first."""
        return self.content[at].astype(np.int64) << 8 | self.content[at + 1]

    def keep(self, rows: Integers, good: Truths, fault: int) -> Integers:
        """The rows that are good; the others get the fault."""
        self.fault[rows[~good]] = fault
        return rows[good]

    def step(self, rows: Integers) -> Integers:
        """Goes past one segment of each of these rows; returns those that go on."""
        rows = rows[self.ends[rows] - self.cursor[rows] >= 4]  # room for a marker and a length
        rows = rows[self.content[self.cursor[rows]] == 0xFF]
        marker = self.content[self.cursor[rows] + 1]
        filled = rows[marker == 0xFF]  # a marker may be preceded by any number of these bytes
        self.cursor[filled] += 1
        rows, marker = rows[marker != 0xFF], marker[marker != 0xFF]
        at = self.cursor[rows] + 2
        length = self.word(at)
        fits = (length >= 2) & (length <= self.ends[rows] - at)
        self.fault[rows[np.isin(marker, OTHER_FRAMES)]] = UNUSUAL
        known = fits & np.isin(marker, SKIPPED)
        for which, read in (
            ((marker == QUANTISATION), self.read_quantisation),
            ((marker == HUFFMAN), self.read_huffman),
            (np.isin(marker, FRAMES), self.read_frame),
        ):
            here = fits & which
            known[here] = read(rows[here], at[here], length[here])
        here = fits & (marker == SCAN)
        self.read_scan(rows[here], at[here], length[here])
        self.cursor[rows] = at + length
        return np.sort(np.concatenate([rows[known], filled]))

    def read_quantisation(self, rows: Integers, at: Integers, length: Integers) -> Truths:
        """Notes the tables of segments; False for those that are no list of tables."""
        cursor, end = at + 2, at + length
        good = cursor < end
        for _ in range(4):
            more = np.flatnonzero(good & (cursor < end))
            head = self.content[cursor[more]].astype(np.int64)
            good[more] = (head & 15 <= 3) & (head >> 4 <= 1)
            self.quantisation[rows[more]] |= 1 << (head & 3)
            cursor[more] += 65 + 64 * (head >> 4 & 1)
        return good & (cursor == end)

    def read_huffman(self, rows: Integers, at: Integers, length: Integers) -> Truths:
        """The same for segments of Huffman tables."""
        cursor, end = at + 2, at + length
        good = cursor < end
        for _ in range(8):
            more = np.flatnonzero(good & (cursor < end))
            good[more] = cursor[more] + 17 <= end[more]
            more = more[good[more]]
            head = self.content[cursor[more]].astype(np.int64)
            codes = self.content[cursor[more, None] + np.arange(1, 17)].astype(np.int64).sum(axis=1)
            good[more] = (head & 15 <= 3) & (head >> 4 <= 1) & (codes <= 256)
            self.huffman[rows[more]] |= 1 << (head >> 2 & 4 | head & 3)
            cursor[more] += 17 + codes
        return good & (cursor == end)

    def read_frame(self, rows: Integers, at: Integers, length: Integers) -> Truths:
        """Takes the sizes out of frame headers; False for those that are not of the usual kind, or not the first."""
        parts = self.content[at[:, None] + np.minimum(np.arange(2, 17), length[:, None] - 1)].astype(np.int64)
        bits, components = parts[:, 0], parts[:, 5]
        height, width = parts[:, 1] << 8 | parts[:, 2], parts[:, 3] << 8 | parts[:, 4]
        sound = (length == 8 + 3 * components) & (self.frame[rows] == 0)
        usual = (bits == 8) & ((components == 1) | (components == 3)) & (height > 0) & (width > 0)
        for sampling, table in ((7, 8), (10, 11), (13, 14)):
            across, down = parts[:, sampling] >> 4, parts[:, sampling] & 15
            fair = (across >= 1) & (across <= 4) & (down >= 1) & (down <= 4) & (parts[:, table] <= 3)
            usual &= fair | (sampling > 7) & (components == 1)
        self.fault[rows[sound & ~usual]] = UNUSUAL
        good = sound & usual
        self.frame[rows[good]] = at[good]
        self.height[rows[good]], self.width[rows[good]] = height[good], width[good]
        return good

    def read_scan(self, rows: Integers, at: Integers, length: Integers) -> None:
        """Ends the walk: fine where the scan's components are of the frame and all tables are there."""
        framed = self.frame[rows] > 0
        rows, at, length = rows[framed], at[framed], length[framed]
        frame = self.frame[rows]
        progressive = self.content[frame - 1] == PROGRESSIVE
        components = self.content[frame + 7]
        scanned = self.content[at + 2].astype(np.int64)
        good = (length == 6 + 2 * scanned) & (scanned >= 1) & (scanned <= components)
        for number in range(3):
            has = np.flatnonzero(good & (components > number))
            table = self.content[frame[has] + 10 + 3 * number]
            good[has] = self.quantisation[rows[has]] >> table & 1 == 1
            has = np.flatnonzero(good & (scanned > number))
            ids = self.content[frame[has, None] + 8 + 3 * np.arange(3)]
            ids[:, 1:][components[has] == 1] = ids[components[has] == 1, :1]
            selected = self.content[at[has] + 3 + 2 * number]
            tables = self.content[at[has] + 4 + 2 * number].astype(np.int64)
            direct, alternating = tables >> 4, tables & 15
            defined = self.huffman[rows[has]]
            complete = (direct <= 3) & (defined >> direct & 1 == 1)
            complete &= progressive[has] | (alternating <= 3) & (defined >> (4 + (alternating & 3)) & 1 == 1)
            good[has] = complete & (ids == selected[:, None]).any(axis=1)
        self.fault[rows[good]] = FINE
