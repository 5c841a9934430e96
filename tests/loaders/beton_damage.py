"""Damaged .beton files: what killed writers, broken copies and bad disks leave, and random damage from a seed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from hardfast.loaders.beton.check import Structure, read_structure
from hardfast.loaders.beton.format import ALLOCATION, FIELD, HEADER, JPEG, RAW, RECORD, RECORDS_START, head

Change = Callable[[bytearray], None]
BLOCK = 4096  # bytes that a file system writes or loses together


@dataclass(frozen=True)
class Mutant:
    """A name and the bytes of a damaged file."""

    name: str
    content: bytes


class Base:
    """A sound file, and where in it things lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.structure: Structure = read_structure(path)
        self.samples = len(self.structure)
        self.table = len(self.content) - self.samples * ALLOCATION.itemsize
        self.start = int(self.structure.places.min())
        self.page = self.structure.page

    def of_mode(self, mode: int) -> list[int]:
        """Records of that mode."""
        return np.flatnonzero(self.structure.modes == mode).tolist()

    def place(self, sample: int) -> int:
        """Where a record begins."""
        return int(self.structure.places[sample])

    def end(self, sample: int) -> int:
        """Where a record ends."""
        return self.place(sample) + int(self.structure.sizes[sample])

    def frame(self, sample: int) -> int:
        """Where the frame header of a JPEG begins."""
        at = self.place(sample) + 2
        while self.content[at + 1] not in (0xC0, 0xC1, 0xC2):
            at += 2 + int.from_bytes(self.content[at + 2 : at + 4], "big")
        return at


def put(at: int, value: bytes, content: bytearray) -> None:
    """Overwrites some bytes."""
    content[at : at + len(value)] = value


def _number(dtype: np.dtype, name: str, row: int, base: int, value: int) -> Change:
    """Sets one little-endian number of a table that begins at `base`."""
    kind, offset = dtype.fields[name][:2]
    value %= 1 << 8 * kind.itemsize
    return partial(put, base + row * dtype.itemsize + offset, value.to_bytes(kind.itemsize, "little"))


def structural(base: Base) -> Iterator[Mutant]:
    """Files whose structure alone gives the damage away."""
    for size in sorted(_cuts(base)):
        yield Mutant(f"cut to {size} bytes", base.content[:size])
    yield Mutant("two more entries", base.content + bytes(2 * ALLOCATION.itemsize))
    yield Mutant("twice the file", base.content * 2)
    for changes in (_header, _fields, _records, _allocations, _swaps, _jpegs, _bombs, _zeros, _killed):
        for name, change in changes(base):
            content = bytearray(base.content)
            change(content)
            assert content != base.content, name
            yield Mutant(name, bytes(content))


def _cuts(base: Base) -> set[int]:
    size, last = len(base.content), base.samples * RECORD.itemsize + RECORDS_START
    edges = [HEADER.itemsize, HEADER.itemsize + FIELD.itemsize, RECORDS_START, last, base.start, base.table]
    edges += range(base.start + base.page, base.table, base.page)
    cuts = {0, 1, 2, 100, size // 3, size // 2, 2 * size // 3, size - 1, size - 23, size - 24, size - 25, size - 1000}
    return cuts | {edge + shift for edge in edges for shift in (-1, 0, 1)}


def _header(base: Base) -> Iterator[tuple[str, Change]]:
    size, count = len(base.content), base.samples
    huge = (1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 24)
    values = {
        "version": (0, 1, 3, 258, 65535),
        "fields": (0, 1, 3, 65535),
        "page": (0, 1, 1 << 20, base.page << 1, base.page << 2, base.page + 1, base.page - 1, 1 << 31, (1 << 32) - 1),
        "samples": (0, 1, count - 1, count + 1, 2 * count, count << 8, size // 48, *huge),
        "allocations": (0, 24, base.start, size, size - 24, *huge),
    }
    values["allocations"] += tuple(base.table + shift for shift in (-base.page, -24, -1, 1, 24, base.page))
    for name, numbers in values.items():
        for number in dict.fromkeys(numbers):
            yield f"header {name} {number}", _number(HEADER, name, 0, 0, number)


def _fields(base: Base) -> Iterator[tuple[str, Change]]:
    for row, (kind, length) in enumerate(((2, 5), (1, 5))):
        begin = HEADER.itemsize + row * FIELD.itemsize
        for number in {0, 1, 2, 3, 5, 255} - {kind}:
            yield f"field {row} type {number}", partial(put, begin, bytes([number]))
        for place in range(length + 1):
            yield f"field {row} name {place}", partial(put, begin + 1 + place, b"x")
        yield f"field {row} without name", partial(put, begin + 1, bytes(16))
        yield f"field {row} arguments", partial(put, begin + 17, b"\x01")
        yield f"field {row} last argument", partial(put, begin + FIELD.itemsize - 1, b"\x01")


def _some(base: Base) -> list[int]:
    """A JPEG and a raw record in the middle, the first and the last record."""
    return sorted({0, base.of_mode(JPEG)[3], base.of_mode(RAW)[4], base.samples - 1})


def _records(base: Base) -> Iterator[tuple[str, Change]]:
    height, width = base.structure.heights, base.structure.widths
    for row in _some(base):
        other = base.place((row + 1) % base.samples)
        values = {
            "mode": (RAW if base.structure.modes[row] == JPEG else JPEG, 2, 255),
            "height": (0, int(height[row]) + 1, int(height[row]) - 1, int(width[row]), 65535),
            "width": (0, int(width[row]) + 1, int(width[row]) - 1, 65535),
            "place": (0, base.place(row) + 1, base.place(row) - 1, other, base.table, 1 << 63, (1 << 64) - 1),
            "label": (-1, 1 << 20, 1 << 62, -(1 << 63)),
        }
        for name, numbers in values.items():
            for number in numbers:
                yield f"record {row} {name} {number}", _number(RECORD, name, row, RECORDS_START, number)


def _allocations(base: Base) -> Iterator[tuple[str, Change]]:
    for row in _some(base):
        size, other = int(base.structure.sizes[row]), (row + 2) % base.samples
        values = {
            "sample": (other, base.samples, (1 << 64) - 1),
            "place": (0, base.place(row) + 1, base.place(other), base.table, (1 << 64) - 1, (1 << 64) - size),
            "size": (0, 1, size + 1, size - 1, base.page + 1, 1 << 63, (1 << 64) - 1),
        }
        for name, numbers in values.items():
            for number in numbers:
                yield f"allocation {row} {name} {number}", _number(ALLOCATION, name, row, base.table, number)


def _swaps(base: Base) -> Iterator[tuple[str, Change]]:
    jpegs, raws = base.of_mode(JPEG), base.of_mode(RAW)

    def swap(dtype: np.dtype, at: int, names: list[str], pair: tuple[int, int], content: bytearray) -> None:
        rows = np.frombuffer(content, dtype, base.samples, at)
        for name in names:
            rows[name][list(pair)] = rows[name][list(pair[::-1])]

    for pair in ((jpegs[0], jpegs[-1]), (raws[0], raws[-1]), (jpegs[2], raws[2])):
        whole = list(RECORD.names)
        yield f"swapped records {pair}", partial(swap, RECORD, RECORDS_START, whole, pair)
        yield f"swapped places {pair}", partial(swap, RECORD, RECORDS_START, ["place"], pair)
        yield f"swapped owners {pair}", partial(swap, ALLOCATION, base.table, ["sample"], pair)
        yield f"swapped sizes and places {pair}", partial(swap, ALLOCATION, base.table, ["place", "size"], pair)
    short, long = sorted(jpegs[:2], key=lambda row: base.end(row) - base.place(row))
    for one, other in ((short, long), (jpegs[2], raws[2])):
        there = base.content[base.place(other) : base.place(other) + base.end(one) - base.place(one)]
        yield f"bytes of record {other} in {one}", partial(put, base.place(one), there)


def _jpegs(base: Base) -> Iterator[tuple[str, Change]]:
    for row in (base.of_mode(JPEG)[0], base.of_mode(JPEG)[-1]):
        begin, end, frame = base.place(row), base.end(row), base.frame(row)
        scan = base.content.index(b"\xff\xda", frame)
        bytes_at = {
            "no start": (begin, b"\0\0"),
            "start cut": (begin + 1, b"\xd9"),
            "no end": (end - 2, b"\0\0"),
            "end cut": (end - 1, b"\xd8"),
            "segment of no length": (begin + 4, b"\0\0"),
            "segment of length 1": (begin + 4, b"\0\1"),
            "segment beyond the end": (begin + 4, b"\xff\xff"),
            "no marker": (begin + 2, b"\0"),
            "no first table": (base.content.index(b"\xff\xdb", begin) + 1, b"\xfe"),
            "no Huffman table": (base.content.index(b"\xff\xc4", begin) + 1, b"\xfe"),
            "scan of another component": (scan + 5, b"\x77"),
            "scan with another table": (scan + 6, b"\x33"),
            "scan of another length": (scan + 3, b"\x20"),
            "end before the frame": (frame + 1, b"\xd9"),
            "arithmetic coding": (frame + 1, b"\xc9"),
            "lossless": (frame + 1, b"\xc3"),
            "no frame": (frame + 1, b"\xfe"),
            "12 bits": (frame + 4, b"\x0c"),
            "taller": (frame + 6, bytes([base.content[frame + 6] ^ 1])),
            "much taller": (frame + 5, b"\x7f"),
            "wider": (frame + 8, bytes([base.content[frame + 8] ^ 1])),
            "no height": (frame + 5, b"\0\0"),
            "two components": (frame + 9, b"\x02"),
            "four components": (frame + 9, b"\x04"),
            "sampled 15 times": (frame + 11, b"\xff"),
            "table 200": (frame + 12, b"\xc8"),
        }
        for name, (at, value) in bytes_at.items():
            yield f"JPEG {row} {name}", partial(put, at, value)
        room = end - begin
        yield f"JPEG {row} of another size", partial(put, begin, padded_jpeg((8, 8), room))
        yield f"JPEG {row} with garbage behind it", partial(put, begin, padded_jpeg((8, 8), room - 9) + b"garbage..")


def _bombs(base: Base) -> Iterator[tuple[str, Change]]:
    for row, side in zip(base.of_mode(JPEG), (65535, 13378), strict=False):
        yield f"JPEG {row} claims {side}x{side} pixels, and so does its record", partial(claim, base, row, side)


def claim(base: Base, row: int, side: int, content: bytearray) -> None:
    """Lets a JPEG and its record say that it is a square of that side."""
    number = side.to_bytes(2, "big")
    put(base.frame(row) + 5, number + number, content)
    for name in ("height", "width"):
        _number(RECORD, name, row, RECORDS_START, side)(content)


def padded_jpeg(size: tuple[int, int], length: int) -> bytes:
    """A sound JPEG of that size (height, width) and of that many bytes."""
    file = io.BytesIO()
    Image.new("RGB", size[::-1], (200, 30, 90)).save(file, "JPEG")
    content, room = file.getvalue(), length - len(file.getvalue())
    comments = b""
    while room:
        part = room if room < 60_000 else 50_000
        comments += b"\xff\xfe" + (part - 2).to_bytes(2, "big") + bytes(part - 4)
        room -= part
    return content[:2] + comments + content[2:]


def _zeros(base: Base) -> Iterator[tuple[str, Change]]:
    size = len(base.content)
    for page in range(base.start, base.table, base.page):
        yield f"page at {page} zero", partial(put, page, bytes(base.page))
    places = {f"JPEG {row}": -(-base.place(row) // BLOCK) * BLOCK - BLOCK for row in base.of_mode(JPEG)[1:4]}
    places |= {f"end of JPEG {row}": (base.end(row) - 1) // BLOCK * BLOCK for row in base.of_mode(JPEG)[2:4]}
    for name, place in places.items():
        yield f"block of {name} zero", partial(put, place, bytes(min(BLOCK, size - place)))
    yield "records zero", partial(put, RECORDS_START, bytes(base.samples * RECORD.itemsize))
    yield "last record zero", partial(put, RECORDS_START + (base.samples - 1) * RECORD.itemsize, bytes(RECORD.itemsize))
    yield "table zero", partial(put, base.table, bytes(size - base.table))
    yield "last entry zero", partial(put, size - ALLOCATION.itemsize, bytes(ALLOCATION.itemsize))
    yield "all zero", partial(put, 0, bytes(size))
    yield "all ones", partial(put, 0, b"\xff" * size)


def _killed(base: Base) -> Iterator[tuple[str, Change]]:
    """What is in the file when its writer dies: FFCV's writes the tables and the table's place last, ours the head."""

    def ffcv(content: bytearray, end: int) -> None:
        content[end:] = b""
        content[: base.start] = head(base.samples, base.page, 0).ljust(base.start, b"\0")

    def ours(content: bytearray, end: int) -> None:
        content[end:] = b""
        content[: base.start] = bytes(base.start)

    ends = (*range(base.start, base.table + 1, base.page), base.start + 12345, len(base.content))
    for end in ends:
        yield f"FFCV's writer killed at {end}", partial(ffcv, end=end)
        yield f"our writer killed at {end}", partial(ours, end=end)


def random(base: Base, count: int, seed: int) -> Iterator[Mutant]:
    """Bits flipped, bytes replaced, inserted, deleted or moved: half of them in headers and tables, half anywhere."""
    draw = np.random.default_rng(seed)
    heads = [(0, RECORDS_START + base.samples * RECORD.itemsize), (base.table, len(base.content))]
    heads += [(base.place(row), base.place(row) + 700) for row in base.of_mode(JPEG)]
    images = [(base.place(row), base.end(row)) for row in range(base.samples)]
    made, seen = 0, {hash(base.content)}
    while made < count:
        regions = (heads, images, [(0, len(base.content))])[draw.choice(3, p=(0.5, 0.3, 0.2))]
        begin, end = regions[draw.integers(len(regions))]
        at = int(draw.integers(begin, end))
        length = int(draw.choice((1, 2, 4, 24, 100, BLOCK)))
        kind = ("bit", "bits", "bytes", "insert", "delete", "move")[draw.integers(6)]
        content = bytearray(base.content)
        if kind in ("bit", "bits"):
            for place in [at] if kind == "bit" else draw.integers(begin, end, 8):
                content[place] ^= 1 << int(draw.integers(8))
        elif kind == "bytes":
            put(at, draw.bytes(min(length, len(content) - at)), content)
        elif kind == "insert":
            content[at:at] = draw.bytes(length)
        elif kind == "delete":
            del content[at : at + length]
        else:
            origin = int(draw.integers(begin, end))
            put(at, base.content[origin : origin + min(length, len(content) - at)], content)
        mutant = Mutant(f"seed {seed}, mutant {made}: {kind} at {at}, {length}", bytes(content))
        if hash(mutant.content) not in seen:  # zeros moved over zeros, or cut from different places among zeros
            seen.add(hash(mutant.content))
            made += 1
            yield mutant
