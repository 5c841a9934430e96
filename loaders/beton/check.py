"""The structure of a .beton file, checked in plain NumPy before anything maps it that trusts its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MissingDataError
from .format import (
    ALLOCATION,
    FIELD,
    FIELDS,
    HEADER,
    JPEG,
    LARGEST_PAGE,
    MOST_CLASSES,
    MOST_PIXELS,
    RAW,
    RECORD,
    RECORDS_START,
    SMALLEST_PAGE,
    VERSION,
    data_start,
)
from .jpeg import FAULTS, FINE, Integers, check_jpegs

CHUNK = 1 << 16  # images that are looked at together


@dataclass(frozen=True, slots=True)
class Structure:
    """What the tables of a sound file say."""

    content: npt.NDArray[np.uint8]  # the file, mapped read-only; [B]
    page: int  # bytes
    modes: npt.NDArray[np.uint8]  # JPEG or RAW, [N] as all of the following
    labels: Integers
    heights: Integers
    widths: Integers
    places: Integers
    sizes: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def record(self, sample: int) -> npt.NDArray[np.uint8]:
        """The bytes of one image; a view of the file."""
        place = int(self.places[sample])
        return self.content[place : place + int(self.sizes[sample])]


def damaged(path: Path, what: str) -> DataError:
    """The error of a file that is not as it was written."""
    return DataError(f"{path}: {what}; the file is damaged or not complete: copy it again or write it again")


def _foreign(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}: write the file again with an RGBImageField 'image' and an IntField 'label'")


def read_structure(path: Path) -> Structure:
    """Maps a file and checks everything that its header and tables say; no image is looked at.

    Time and memory depend on the size of the file, never on a number in it.

    Raises:
        DataError: the file is missing, or something in it is impossible; names the first record that is wrong.
    """
    try:
        size = path.stat().st_size
        if size < RECORDS_START:
            raise damaged(path, f"{size} bytes are less than the header has")
        content = np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        raise MissingDataError(
            f"{path} is not there: check the path, or write it with `hardfast data prepare NAME --beton`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): it must be a file that this user may read") from None
    size = len(content)
    header = content[: HEADER.itemsize].view(HEADER)[0]
    samples, page, table = int(header["samples"]), int(header["page"]), int(header["allocations"])
    if header["version"] != VERSION:
        raise damaged(path, f"version {header['version']} is not {VERSION}, so this is no .beton file of FFCV 1.0")
    if header["fields"] != len(FIELDS):
        raise _foreign(path, f"it has {header['fields']} fields, not {len(FIELDS)}")
    _check_fields(path, content)
    if page & (page - 1) or not SMALLEST_PAGE <= page <= LARGEST_PAGE:
        raise damaged(path, f"a page of {page} bytes is no power of two from {SMALLEST_PAGE} to {LARGEST_PAGE}")
    if not 0 < samples <= (size - RECORDS_START) // (RECORD.itemsize + ALLOCATION.itemsize):
        raise damaged(path, f"{samples} images do not fit in {size} bytes, or there is none")
    start = data_start(samples, page)
    if not start < table < size or (table - start) % page:
        raise damaged(path, f"the allocation table cannot begin at byte {table} of {size}")
    if (size - table) // ALLOCATION.itemsize != samples:  # FFCV ignores what follows the last whole entry, too
        raise damaged(path, f"{size - table} bytes of allocation table are not {samples} entries")
    records = content[RECORDS_START : RECORDS_START + samples * RECORD.itemsize].view(RECORD)
    allocations = content[table : table + samples * ALLOCATION.itemsize].view(ALLOCATION)
    places, sizes = _check_places(path, records, allocations, start, table, page)
    _check_records(path, records, sizes)
    return Structure(
        content,
        page,
        records["mode"].copy(),
        records["label"].astype(np.int64),
        records["height"].astype(np.int64),
        records["width"].astype(np.int64),
        places,
        sizes,
    )


def _check_fields(path: Path, content: npt.NDArray[np.uint8]) -> None:
    fields = content[HEADER.itemsize : RECORDS_START].view(FIELD)
    for number, (field, (kind, name)) in enumerate(zip(fields, FIELDS, strict=True)):
        if field["type"] != kind or field["name"].tobytes() != name.ljust(16, b"\0"):
            found = field["name"].tobytes().rstrip(b"\0").decode("ascii", "replace")
            raise _foreign(
                path, f"field {number} is {found!a} of type {field['type']}, not '{name.decode()}' of {kind}"
            )
        if field["arguments"].any():
            raise damaged(path, f"field {number} has arguments, and '{name.decode()}' takes none")


def _check_places(
    path: Path,
    records: npt.NDArray[np.void],
    allocations: npt.NDArray[np.void],
    start: int,
    table: int,
    page: int,
) -> tuple[Integers, Integers]:
    """(place, size) of each record, in the order of the records."""
    count = len(records)
    owner, place, size = (np.ascontiguousarray(allocations[name]) for name in ("sample", "place", "size"))
    # A limit on each of the unsigned numbers comes before they are added or made signed.
    bad = (owner >= count) | (place < start) | (place >= table) | (size == 0) | (size > page)
    if bad.any():
        entry = int(np.argmax(bad))
        raise damaged(path, f"entry {entry} of the allocation table is impossible")
    owners, places, sizes = owner.astype(np.int64), place.astype(np.int64), size.astype(np.int64)
    bad = places % page + sizes > page
    if bad.any():
        raise damaged(path, f"record {owners[np.argmax(bad)]} crosses the end of a page")
    order = np.argsort(places, kind="stable")
    bad = places[order][1:] < (places + sizes)[order][:-1]
    if bad.any():
        raise damaged(path, f"record {owners[order[1:][np.argmax(bad)]]} overlaps another")
    if places[order[0]] != start:
        raise damaged(path, f"the first image is at byte {places[order[0]]}, not at byte {start} where the pages begin")
    counts = np.bincount(owners, minlength=count)
    if (counts != 1).any():
        sample = int(np.argmax(counts != 1))
        raise damaged(path, f"record {sample} has {counts[sample]} entries in the allocation table")
    by_sample = np.empty(count, np.int64)
    by_sample[owners] = np.arange(count)
    bad = records["place"] != place[by_sample]
    if bad.any():
        raise damaged(path, f"record {np.argmax(bad)} points to a place that the allocation table does not give it")
    return places[by_sample], sizes[by_sample]


def _check_records(path: Path, records: npt.NDArray[np.void], sizes: Integers) -> None:
    height, width = records["height"].astype(np.int64), records["width"].astype(np.int64)
    label, mode = records["label"], records["mode"]
    for bad, what in (
        ((mode != JPEG) & (mode != RAW), "is of unknown mode {mode}"),
        ((height == 0) | (width == 0), "has no pixels: {width}x{height}"),
        (height * width > MOST_PIXELS, "has {width}x{height} pixels, more than any image of a training set"),
        ((mode == RAW) & (sizes != 3 * height * width), "is {width}x{height} pixels in {size} bytes"),
        ((label < 0) | (label >= MOST_CLASSES), "has the label {label}"),
    ):
        if bad.any():
            sample = int(np.argmax(bad))
            fields = {name: records[name][sample] for name in ("mode", "height", "width", "label")}
            raise damaged(path, f"record {sample} {what.format(size=sizes[sample], **fields)}")


def check_images(path: Path, structure: Structure, part: range | None = None) -> None:
    """Holds the header of every JPEG against the tables; reads the first kilobytes and the last two bytes of each.

    Args:
        part: these records; all by default.

    Raises:
        DataError: naming the first record that is no sound JPEG, or of another size than the table says.
    """
    part = range(len(structure)) if part is None else part
    for begin in range(part.start, part.stop, CHUNK):
        rows = begin + np.flatnonzero(structure.modes[begin : min(begin + CHUNK, part.stop)] == JPEG)
        fault, height, width = check_jpegs(structure.content, structure.places[rows], structure.sizes[rows])
        expected = structure.heights[rows], structure.widths[rows]
        bad = (fault != FINE) | (height != expected[0]) | (width != expected[1])
        if bad.any():
            first = int(np.argmax(bad))
            what = f"its JPEG is {width[first]}x{height[first]} pixels, not {expected[1][first]}x{expected[0][first]}"
            raise damaged(path, f"record {rows[first]}: {FAULTS[fault[first]] or what}")


def check_zeros(path: Path, structure: Structure) -> None:
    """Finds pages of several images whose bytes were never written; reads little more than a byte of other pages.

    Raises:
        DataError: all images of a page are zeros, which nothing but a file that was not written to its end has.
    """
    pages = structure.places // structure.page
    order = np.argsort(structure.places)
    _, first = np.unique(pages[order], return_index=True)
    for group in np.split(order, first[1:]):
        if len(group) > 1 and not any(_has_content(structure.record(sample)) for sample in group):
            raise damaged(path, f"records {group.min()} to {group.max()} hold nothing but zeros")


def _has_content(record: npt.NDArray[np.uint8]) -> bool:
    return any(record[begin : begin + 4096].any() for begin in range(0, len(record), 4096))
