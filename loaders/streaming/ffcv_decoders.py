"""FFCV's decoders with a box and a check for every sample, compiled by numba.

FFCV gives its decoders the numbers of a batch's records. Here it gives them rows (record, top, left, height, width), so
that boxes change between epochs without a new compilation. Two things of libffcv are not used, for what they would do
to pixels: its `imdecode` asks libjpeg-turbo for the fast DCT, which is up to 36 levels off at a pixel (1.3 on average
at quality 95), and drops the return value, so that a damaged image shows the one decoded before it; its `resize_crop`
averages areas and picks nearly the nearest pixel where it enlarges. The decoder is the libturbojpeg that libffcv is
linked with, and the filter the antialiased bilinear one of torchvision and Pillow.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ffcv._libffcv
import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State

# turbojpeg.h
TJPF_RGB = 0
TJFLAG_ACCURATEDCT = 4096

# Status of a sample
GOOD = 0
DAMAGED = 1


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the libturbojpeg that libffcv is linked with; addresses are plain integers."""
    function = getattr(ctypes.CDLL(ffcv._libffcv.__file__), name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_INT, _ADDRESS, _SIZE = ctypes.c_int, ctypes.c_size_t, ctypes.c_ulong
tj_open = _bind("tjInitDecompress", _ADDRESS)
tj_close = _bind("tjDestroy", _INT, _ADDRESS)
tj_header = _bind("tjDecompressHeader3", _INT, _ADDRESS, _ADDRESS, _SIZE, *[_ADDRESS] * 4)
tj_decode = _bind("tjDecompress2", _INT, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS, *[_INT] * 5)


def decode_jpeg(file: Any, pixels: Any) -> int:
    """Decodes a JPEG into uint8 [height, width, 3]; DAMAGED also where libjpeg only warns or the size is another."""
    height, width = pixels.shape[0], pixels.shape[1]
    handle = tj_open()
    if handle == 0:
        return DAMAGED
    header = np.zeros(4, np.int32)  # width, height, subsampling, colour space
    at = header.ctypes.data
    failed = tj_header(handle, file.ctypes.data, file.size, at, at + 4, at + 8, at + 12)
    if failed == 0 and header[0] == width and header[1] == height:
        failed = tj_decode(
            handle, file.ctypes.data, file.size, pixels.ctypes.data, width, 0, height, TJPF_RGB, TJFLAG_ACCURATEDCT
        )
    else:
        failed = 1
    tj_close(handle)
    return GOOD if failed == 0 else DAMAGED


def taps(start: int, length: int, size: int) -> tuple[Any, Any, Any]:
    """Of each of `size` outputs, the first input that it mixes, how many, and their weights: [size], [size], [size, k].

    A triangle that is as wide as two inputs, or as two outputs where those are wider.
    """
    scale = length / size
    reach = max(scale, 1.0)
    first, count = np.zeros(size, np.int64), np.zeros(size, np.int64)
    weights = np.zeros((size, int(2 * reach) + 2), np.float32)
    for i in range(size):
        center = scale * (i + 0.5)
        low = max(int(center - reach + 0.5), 0)
        first[i], count[i] = start + low, min(int(center + reach + 0.5), length) - low
        total = 0.0
        for k in range(count[i]):
            weights[i, k] = max(0.0, 1.0 - abs(low + k + 0.5 - center) / reach)
            total += weights[i, k]
        for k in range(count[i]):
            weights[i, k] /= total
    return first, count, weights


_taps = Compiler.compile(taps)


def scale_box(pixels: Any, box: Any, out: Any) -> None:
    """Scales a box of an image, uint8 [H, W, 3], to the size of `out`, uint8 [h, w, 3]; copies it where it has that."""
    stride, source, target = 3 * pixels.shape[1], pixels.reshape(-1), out.reshape(-1)
    size = (out.shape[0], out.shape[1])
    top, left, height, width = box[0], box[1], box[2], box[3]
    if height == size[0] and width == size[1]:
        for i in range(height):
            for j in range(3 * width):
                target[i * 3 * width + j] = source[(top + i) * stride + 3 * left + j]
        return
    rows, row_count, row_weights = _taps(top, height, size[0])
    columns, column_count, column_weights = _taps(0, width, size[1])
    line = np.empty(3 * width, np.float32)
    to = 0
    for i in range(size[0]):
        for j in range(3 * width):
            line[j] = 0
        for k in range(row_count[i]):
            weight = row_weights[i, k]
            at = (rows[i] + k) * stride + 3 * left
            for j in range(3 * width):
                line[j] += weight * np.float32(source[at + j])
        for j in range(size[1]):
            red = green = blue = np.float32(0.5)  # rounds
            at = 3 * columns[j]
            for k in range(column_count[j]):
                weight = column_weights[j, k]
                red += weight * line[at]
                green += weight * line[at + 1]
                blue += weight * line[at + 2]
                at += 3
            target[to], target[to + 1], target[to + 2] = np.uint8(red), np.uint8(green), np.uint8(blue)
            to += 3


_decode_jpeg, scale_box = Compiler.compile(decode_jpeg), Compiler.compile(scale_box)
_JPEG = int(IMAGE_MODES["jpg"])


class BoxDecoder(Operation):
    """Decodes the image of each row (record, top, left, height, width) and scales its box to one size.

    Its result is a pair: uint8 [N, height, width, 3], and the status of each, int32 [N]. The pixels of a sample that is
    not GOOD are undefined. A box must lie inside its image: this is not checked here.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.shape = (height, width, 3)
        self.code: Callable[..., Any] | None = None

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, AllocationQuery]]:
        """What FFCV allocates for each batch: not the decoded image, whose size differs; see `generate_code`."""
        byte = np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=self.shape, dtype=byte)
        # No status in bytes: a new FFCV loader marks numba's type of byte vectors as read-only, for the whole process.
        return state, (AllocationQuery(self.shape, byte), AllocationQuery((), np.dtype("i4")))

    def generate_code(self) -> Callable[..., Any]:
        """The function that numba compiles: the same one each time, since FFCV asks in every epoch."""
        if self.code is not None:
            return self.code
        read, samples = self.memory_read, Compiler.get_iterator()

        def decode(rows: Any, memory: Any, metadata: Any, storage: Any) -> Any:
            images, status = memory
            for i in samples(len(rows)):
                field = metadata[rows[i, 0]]
                # Whatever the bytes of the file say, these are int64: numba adds uint64 and int64 to float64.
                height, width = np.int64(field["height"]), np.int64(field["width"])
                stored = read(field["data_ptr"], storage)
                if field["mode"] == _JPEG:
                    # FFCV's own buffer for this holds the largest image of the file for every sample of every batch
                    # in flight, which is gigabytes; this one lives as long as the sample is decoded.
                    pixels = np.empty((height, width, 3), np.uint8)
                    status[i] = _decode_jpeg(stored, pixels)
                    if status[i] == GOOD:
                        scale_box(pixels, rows[i, 1:], images[i])
                elif stored.size == height * width * 3:
                    status[i] = GOOD
                    scale_box(stored.reshape((height, width, 3)), rows[i, 1:], images[i])
                else:
                    status[i] = DAMAGED
            return images, status

        decode.is_parallel = True  # type: ignore[attr-defined]
        self.code = decode
        return decode


class RecordDecoder(Operation):
    """Gives int64 [N, 2]: the number of each record as it was read, and its label."""

    def __init__(self) -> None:
        super().__init__()
        self.code: Callable[..., Any] | None = None

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Two numbers for each sample."""
        number = np.dtype("i8")
        return replace(previous_state, jit_mode=True, shape=(2,), dtype=number), AllocationQuery((2,), number)

    def generate_code(self) -> Callable[..., Any]:
        """The function that numba compiles."""
        if self.code is not None:
            return self.code

        def decode(rows: Any, records: Any, metadata: Any, storage: Any) -> Any:
            for i in range(len(rows)):
                records[i, 0] = rows[i, 0]
                records[i, 1] = metadata[rows[i, 0]]
            return records

        self.code = decode
        return decode
