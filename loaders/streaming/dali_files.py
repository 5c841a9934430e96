"""Which bytes DALI is given of an image: the file itself, if DALI and Pillow decode files of its kind alike.

On a CPU they agree bit for bit on plain JPEGs, and on PNGs of at most 8 bits without transparency. Every other file
(CMYK, 16 bits, transparency, GIF, ...) is decoded by Pillow and handed over as PPM, which is plain pixels behind a
short header, so that no decoder's taste changes its colours.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..source import ImageSource

Bytes = npt.NDArray[np.uint8]

PNG, PNG_KINDS = b"\x89PNG\r\n\x1a\n", (0, 2, 3)  # grey, RGB, palette
ADOBE, SCAN, FRAMES, NO_FRAMES = 0xEE, 0xDA, (0xC0, 0xC1, 0xC2), (0xC4, 0xC8, 0xCC)


def dali_bytes(source: ImageSource, sample: int) -> Bytes:
    """What DALI is given of a sample: its file, or, where that is of an unusual kind, its pixels as PPM.

    Raises:
        DataError: the file is missing, changed, damaged, or the source holds plain pixels; names the sample.
    """
    try:
        content = source.encoded(sample)
        if content is None:
            fix = "name the image folder with --data.root, or use --loader.name ffcv"
            raise DataError(f"{source.name(sample)} holds plain pixels, and dali decodes image files: {fix}")
        if not (plain_jpeg(content) or plain_png(content)):
            pixels = source.pixels(sample)
            content = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
    except DataError:
        raise
    except Exception as error:  # whatever a source or a decoder raises, the file is named
        raise DataError(
            f"{source.name(sample)} cannot be read ({type(error).__name__}: {error}): copy it again"
        ) from error
    return np.frombuffer(content, np.uint8)


def plain_jpeg(content: bytes) -> bool:
    """Whether the header says JPEG, Huffman coded, 8 bits, grey or YCbCr: neither CMYK nor RGB, nor another coding."""
    at, ycbcr = 2, True
    if content[:2] != b"\xff\xd8":
        return False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        body = content[at + 4 : at + 2 + length]
        if marker == 0xFF:  # a marker may be preceded by any number of these
            at += 1
            continue
        if marker == ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            ycbcr = body[11] == 1
        elif marker in FRAMES and len(body) >= 6:
            names = body[6::3]
            return body[0] == 8 and (body[5] == 1 or (body[5] == 3 and ycbcr and names != b"RGB"))
        elif marker == SCAN or (0xC0 <= marker <= 0xCF and marker not in NO_FRAMES):
            return False
        at += 2 + length
    return False


def plain_png(content: bytes) -> bool:
    """Whether the header says PNG of at most 8 bits, grey, RGB or palette: not transparent, interlaced or animated."""
    if content[:8] != PNG or content[12:16] != b"IHDR" or len(content) < 33:
        return False
    depth, kind, interlaced = content[24], content[25], content[28]
    if depth > 8 or kind not in PNG_KINDS or interlaced:
        return False
    at = 33
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        if name == b"IDAT":
            return True
        if name in (b"tRNS", b"acTL"):
            return False
        at += 12 + length
    return False
