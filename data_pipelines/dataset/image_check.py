"""Does a picture decode completely? Asked once, when shards are built, so that training never meets half an image."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import simplejpeg

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


def image_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) in pixels of a JPEG, PNG or other picture OpenCV reads, after decoding all of it.

    Raises ValueError with the reason if the bytes are empty, of an unknown format, damaged or cut short.
    """
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_JPEG):
        # strict: libjpeg only warns about a missing end and fills the rest with grey. OpenCV 4 did so without a word;
        # OpenCV 5 returns nothing for a file that is cut short, and does not say why.
        return simplejpeg.decode_jpeg(data, "RGB", strict=True).shape[:2]
    if data.startswith(_PNG):
        _check_png(data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"no known picture format (the file begins with {data[:8]!r})")
    return pixels.shape[0], pixels.shape[1]


def _check_png(data: bytes) -> None:
    """Walks the chunks and their checksums: OpenCV 4 returned the upper part of a cut PNG, OpenCV 5 gives no reason."""
    at = len(_PNG)
    while True:
        if at + 12 > len(data):
            raise ValueError("the PNG is cut short: it has no end chunk")
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"the PNG is cut short in chunk {data[at + 4 : at + 8]!r}")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"the PNG is damaged: wrong checksum in chunk {data[at + 4 : at + 8]!r}")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end + 4
