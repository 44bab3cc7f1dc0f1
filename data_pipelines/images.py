"""The one reader of pictures: decodes, resizes, and checks that a picture is complete.

Pictures are u8[H,W,3] in RGB. JPEGs are decoded by simplejpeg, every other format by OpenCV.
"""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from data_pipelines.errors import DatasetError

# Images are small: parallelism comes from threads and processes of the pipeline, with which OpenCV's own would compete.
cv2.setNumThreads(1)

Size = tuple[int, int]
"""(height, width) in pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


def decode(data: bytes, at_least: Size = (0, 0)) -> UInt8[np.ndarray, "_ _ 3"]:
    """Decodes a picture to RGB; its EXIF orientation is ignored, as by PIL's `open`.

    Args:
      data: the bytes of a JPEG or of another format that OpenCV reads.
      at_least: the size that is needed. A JPEG of twice this size or more is decoded at 1/2, 1/4 or 1/8, never below
        it.

    Returns:
      u8[H,W,3].

    Raises:
      ValueError: the bytes are truncated or no picture.
    """
    if data.startswith(_JPEG):
        if at_least == (0, 0):
            return simplejpeg.decode_jpeg(data)
        return simplejpeg.decode_jpeg(data, min_height=at_least[0], min_width=at_least[1], min_factor=2)
    if not data:
        raise ValueError("the image has 0 bytes")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"not a complete image: {len(data)} bytes beginning with {data[:4]!r}")
    return image


def decode_record(data: bytes, size: Size, where: str, record: int, file: str) -> UInt8[np.ndarray, "_ _ 3"]:
    """Decodes a picture of a record for use at `size`.

    Args:
      data: bytes of the picture.
      size: see `decode`.
      where: data set and split, for messages.
      record: number of the record in the split.
      file: name of the record's file.

    Raises:
      DatasetError: the picture does not decode; the message names data set, split, record and file.
    """
    try:
        return decode(data, size)
    except ValueError as error:
        raise DatasetError(
            f"{where}, record {record}, file {file}: the image does not decode ({error}); rebuild the data set with "
            "bad images skipped, or repair the file"
        ) from error


def resize(image: UInt8[np.ndarray, "_ _ 3"], size: Size) -> UInt8[np.ndarray, "_ _ 3"]:
    """Resizes a picture: bilinear, or area-averaged where both sides shrink, which bilinear sampling would alias."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] and width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def complete_size(data: bytes) -> Size:
    """Decodes all of a picture and returns its (height, width).

    Builds ask this of every picture once, so that training never meets a partial one.

    Raises:
      ValueError: the bytes are empty, of an unknown format, damaged or cut short; the message says which.
    """
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_JPEG):
        # libjpeg only warns about a missing end and fills the rest with grey; OpenCV gives no reason.
        return simplejpeg.decode_jpeg(data, "RGB", strict=True).shape[:2]
    if data.startswith(_PNG):
        _check_png(data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"no known picture format (the file begins with {data[:8]!r})")
    return pixels.shape[0], pixels.shape[1]


def _check_png(data: bytes) -> None:
    """Checks all chunks and their checksums: OpenCV 4 returns the upper part of a cut PNG, OpenCV 5 gives no reason."""
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
