"""The one reader of pictures: files, encoded bytes and arrays to u8[H,W,3] in RGB, for shards, training and evaluation.

A format is told by the content, never by the name. JPEGs are decoded by simplejpeg, every other format by Pillow. The
pixel limit is applied to the size that the header states, before anything is decoded. The rules (docs/pictures.md):

* EXIF orientation is applied.
* An animation or a file of several pages is its first frame.
* Transparency is dropped: the stored colours count, as by PIL's `convert("RGB")`.
* CMYK is converted without its colour profile.
* Grey of more than 8 bits, as infrared cameras deliver it, is scaled by the picture's own range (`_scaled`); colour of
  16 bits keeps its upper 8 bits.
"""

from __future__ import annotations

import io
import os
import re
import stat
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

from data_pipelines.errors import DatasetError, ImageError

# Images are small: parallelism comes from threads and processes of the pipeline, with which OpenCV's own would compete.
cv2.setNumThreads(1)

Size = tuple[int, int]
"""(height, width) in pixels."""
Pixels = UInt8[np.ndarray, "_ _ 3"]
Picture = str | os.PathLike[str] | bytes | np.ndarray
"""A path, encoded bytes, or u8[H,W,3] in RGB."""

MAX_PIXELS = 50_000_000
"""Default of `config.data.max_pixels`: 150 MB decoded."""
MOST_MAX_PIXELS = 2 * 89_478_485
"""Largest limit that can be set: beyond it Pillow itself refuses a picture."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm", ".pgm")
"""Names by which folders are searched for pictures, in lower case."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_FORMATS = ("PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "JPEG")
_BEGINNINGS = {
    _JPEG: "JPEG",
    _PNG: "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"P5": "PGM",
    b"P6": "PPM",
}
_FOREIGN = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the picture: run `git lfs pull` where it comes from",
    b"<!doctype html": "it is an HTML page (of a failed download?): get the picture again",
    b"<html": "it is an HTML page (of a failed download?): get the picture again",
    b"<svg": "it is a drawing in SVG: convert it to PNG",
    b"<?xml": "it is XML text, no picture: get the picture again, or convert a drawing to PNG",
    b"%pdf": "it is a PDF: convert its page to PNG",
    b"pk\x03\x04": "it is a ZIP archive: unpack it",
    b"\x1f\x8b": "it is compressed by gzip: unpack it",
}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_LEAST_COLOUR_RANGE = 1 << 13  # less than an eighth of 16 bits leaves fewer than 32 of 256 levels


def decode(data: bytes, at_least: Size = (0, 0), max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a whole picture to RGB by the rules above.

    Args:
      data: the content of a picture's file.
      at_least: the size that is needed. A JPEG of twice this size or more is decoded at 1/2, 1/4 or 1/8, never below
        it. (0, 0): full size.
      max_pixels: most pixels that the header may state.

    Returns:
      u8[H,W,3].

    Raises:
      ImageError: no picture, damaged, cut short or above the limit; the message says which, and the cure.
    """
    if data.startswith(_JPEG):
        pixels = _decode_jpeg(data, at_least, max_pixels)
        if pixels is not None:
            return pixels
    if data.startswith(_PNG):
        _check_png(data)
    return _decode_by_pillow(data, max_pixels)


def decode_record(data: bytes, where: str, at_least: Size = (0, 0), max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a picture of a record, see `decode`.

    Raises:
      DatasetError: the picture does not decode; the message begins with `where`: data set, split, record and file.
    """
    try:
        return decode(data, at_least, max_pixels)
    except ImageError as error:
        raise DatasetError(
            f"{where}: the image does not decode: {error}. Or rebuild the data set with bad images skipped "
            "(--on_bad_image skip)"
        ) from error


def pixels_of(picture: Picture, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Returns a picture given as a path, encoded bytes or array, decoded at full size.

    Raises:
      ImageError: it cannot be read; the message names the file, or describes the array.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
            given = f"{picture.dtype}{list(picture.shape)}"
            raise ImageError(f"an image array must be u8[H, W, 3] in RGB with at least one pixel, not {given}")
        return picture
    name = f"a picture given as {len(picture):,} bytes" if isinstance(picture, bytes) else os.fspath(picture)
    try:
        data = picture if isinstance(picture, bytes) else read_file(Path(picture).expanduser(), max_pixels)
        return decode(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{name} is no readable image: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user's ~, a null character in a name
        raise ImageError(f"{name} is no readable image ({error}): correct the path, or leave it out") from error


def read_file(path: Path, max_pixels: int = MOST_MAX_PIXELS) -> bytes:
    """Returns the content of a picture's file; only a regular file is opened, so that nothing waits for a pipe.

    Raises:
      ImageError: it is no regular file, or larger than any picture of `max_pixels`; the message does not name it.
      OSError: it is missing, or cannot be read now.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ImageError(
            f"it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a picture: remove it, or leave it out"
        )
    # Should a pipe have taken its place meanwhile, this does not wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        most = 8 * max_pixels + (1 << 20)  # four channels of 16 bits, and what surrounds them
        data = file.read(most + 1)
    if len(data) > most:
        raise ImageError(f"it has more bytes than any picture of {max_pixels:,} pixels: {_ABOVE_LIMIT}")
    return data


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_ABOVE_LIMIT = "make it smaller, or raise the limit (config.data.max_pixels; of a build --max_pixels)"


def resize(image: Pixels, size: Size) -> Pixels:
    """Resizes a picture: bilinear, or area-averaged where both sides shrink, which bilinear sampling would alias."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] and width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def is_deep(data: bytes) -> bool:
    """Tells whether a picture that decodes has more than 8 bits per colour, as infrared cameras deliver it."""
    if data.startswith(_JPEG):
        return False
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
        return _is_deep_grey(image.mode) or _bits(image, data) == 16
    except Exception:
        return False


def _is_deep_grey(mode: str) -> bool:
    return mode.startswith("I") or mode == "F"


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(f"it has {width:,} x {height:,} pixels, more than the limit of {max_pixels:,}: {_ABOVE_LIMIT}")


def _decode_jpeg(data: bytes, at_least: Size, max_pixels: int) -> Pixels | None:
    """Decodes a JPEG in grey or YCbCr; None: leave it to Pillow (CMYK)."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, max_pixels)
        if colours in ("CMYK", "YCCK"):
            return None
        orientation = _jpeg_orientation(data)
        if at_least == (0, 0):
            return _upright(simplejpeg.decode_jpeg(data), orientation)
        least_height, least_width = at_least if orientation < 5 else at_least[::-1]
        return _upright(
            simplejpeg.decode_jpeg(data, min_height=least_height, min_width=least_width, min_factor=2), orientation
        )
    except ImageError:
        raise
    except ValueError as error:
        raise _damaged(data, error) from error


def _jpeg_orientation(data: bytes) -> int:
    # Few pictures of persons have EXIF data, and looking for its mark takes microseconds.
    if b"Exif\0\0" not in data:
        return 1
    try:
        return _orientation(PIL.Image.open(io.BytesIO(data), formats=("JPEG", "MPO")))
    except Exception:  # the pixels are not part of what is damaged
        return 1


def _orientation(image: PIL.Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [H,W,...] pixels as EXIF's orientation 1 to 8 says."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    down = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if right else 1])


def _decode_by_pillow(data: bytes, max_pixels: int) -> Pixels:
    """Decodes any format but JPEG in grey or YCbCr. Raises ImageError."""
    if not data:
        raise ImageError("it is empty: get the picture again")
    try:
        # No `with`: the buffer needs no closing, and a failing decoder may close it itself.
        image = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(image.height, image.width, max_pixels)
        orientation = _orientation(image)
        image.load()
        _check_size(image.height, image.width, max_pixels)
        if image.mode in ("RGB", "RGBA", "LA") and _bits(image, data) == 16:
            return _upright(_deep_colour(data), orientation)
        # Pillow turns a TIFF while loading it, and then forgets its orientation.
        return _upright(_eight_bits(image), _orientation(image))
    except ImageError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(
            f"it has more than {MOST_MAX_PIXELS:,} pixels, too many for any limit: make it smaller"
        ) from error
    except Exception as error:  # Pillow's plugins have many errors for damaged bytes
        raise _damaged(data, error) from error


def _eight_bits(image: PIL.Image.Image) -> np.ndarray:
    """Returns the pixels of a loaded picture as u8[H,W,3]."""
    if _is_deep_grey(image.mode):
        return _grey(_scaled(np.asarray(image)))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _deep_colour(data: bytes) -> np.ndarray:
    """Returns the pixels of a picture of 16 bits per colour, which Pillow reduces to 8 without a word, as u8[H,W,3]."""
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        raise ImageError("it has 16 bits per colour in a form that is not read: convert it to 8 bits")
    colours = deep[..., 2::-1]
    if (colours == colours[..., :1]).all():
        return _grey(_scaled(colours[..., 0]))
    if colours.max() < _LEAST_COLOUR_RANGE:
        raise ImageError(
            f"it has 16 bits per colour, of which only values up to {colours.max():,} are used: scale it to 8 bits"
        )
    return (colours // 256).astype(np.uint8)


def _bits(image: PIL.Image.Image, data: bytes) -> int:
    """Returns the bits per colour of a PNG or TIFF, 16 for a PPM of the largest range; 8 for other formats."""
    if image.format == "PNG":
        return data[24]  # signature 8, chunk header 8, width 4, height 4
    if image.format == "TIFF":
        stated = image.tag_v2.get(_BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        return int(max(stated)) if isinstance(stated, tuple) else int(stated)
    if image.format == "PPM":
        words = re.sub(rb"#[^\n]*\n", b" ", data[:4096]).split(maxsplit=4)
        return 16 if len(words) > 3 and words[3] == b"65535" else 8
    return 8


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=2)


def _scaled(grey: np.ndarray) -> np.ndarray:
    """Scales [H,W] grey values of any range to 0..255 -> u8[H,W].

    A thousandth of the pixels on either side may lie outside: one dead pixel would otherwise take the whole range.
    """
    if not np.isfinite(grey).all():
        raise ImageError("it has values that are no finite numbers: convert it to 8 or 16 bits")
    ordered = np.sort(grey, axis=None) if grey.size < 1 << 20 else np.sort(grey.ravel()[:: grey.size >> 19])
    outside = (ordered.size - 1) // 1000
    low, high = float(ordered[outside]), float(ordered[-1 - outside])
    if low == high:
        return np.zeros(grey.shape, np.uint8)
    return np.rint((np.clip(grey, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _damaged(data: bytes, error: Exception) -> ImageError:
    """Returns the error for bytes that do not decode: what they are instead, or which format is damaged."""
    beginning = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, message in _FOREIGN.items():
        if beginning.startswith(start):
            return ImageError(message)
    if not any(data[:4096]):
        return ImageError("it holds only zeros (a copy that never finished?): get the picture again")
    if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif"):
        return ImageError("it is a HEIC picture, which is not read: convert it to JPEG or PNG")
    name = "AVIF" if data[4:8] == b"ftyp" and data[8:11] == b"avi" else ""
    for start, format_name in _BEGINNINGS.items():
        if data.startswith(start) or start.startswith(data):
            name = format_name
    if name and isinstance(error, PIL.UnidentifiedImageError):  # whose text is the address of a buffer
        return ImageError(
            f"it is a {name} that is damaged, or of a form that is not read: get the picture again, or convert it to 8 "
            f"bits"
        )
    if name:
        return ImageError(f"it is a {name} that is damaged or cut short ({error}): get the picture again")
    return ImageError(f"it is of no known picture format (it begins with {data[:8]!r}): convert it to JPEG or PNG")


def _check_png(data: bytes) -> None:
    """Checks all chunks and their checksums: decoders return the upper part of a cut PNG."""
    again = "get the picture again"
    at, needs_palette = len(_PNG), data[25:26] == b"\3"
    while True:
        if at + 12 > len(data):
            raise ImageError(f"it is a PNG that is cut short: it has no end chunk: {again}")
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        kind = data[at + 4 : at + 8]
        if end + 4 > len(data):
            raise ImageError(f"it is a PNG that is cut short in chunk {kind!r}: {again}")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError(f"it is a PNG that is damaged: wrong checksum in chunk {kind!r}: {again}")
        if needs_palette and kind == b"IDAT":
            raise ImageError(f"it is a PNG that is damaged: it has no palette, and decodes to black: {again}")
        needs_palette = needs_palette and kind != b"PLTE"
        if kind == b"IEND":
            return
        at = end + 4
