"""The one reader of pictures: what each format gives, and one message for everything that is no picture."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg

from data_pipelines import images
from data_pipelines.batches.image_batches import StoredImages
from data_pipelines.errors import ImageError
from data_pipelines.images import decode, pixels_of, resize

PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 3, 3), np.uint8), (24, 48))
RGB = PIL.Image.fromarray(PIXELS)
GREY = RGB.convert("L")
LEVELS = (29_760 + np.arange(48 * 24) % 31 * 272 // 30).astype(np.uint16).reshape(48, 24)
"""A thermal picture: 31 levels between 29,760 and 30,032, of which the upper 8 bits tell 2 apart."""


def encoded(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


LOSSLESS = {
    "PNG": encoded(RGB, "PNG"),
    "PNG with alpha": encoded(RGB.convert("RGBA"), "PNG"),
    "animated PNG": encoded(RGB, "PNG", save_all=True, append_images=[RGB.transpose(PIL.Image.Transpose.ROTATE_180)]),
    "BMP": encoded(RGB, "BMP"),
    "WebP": encoded(RGB, "WEBP", lossless=True),
    "TIFF": encoded(RGB, "TIFF"),
    "compressed TIFF": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF of two pages": encoded(RGB, "TIFF", save_all=True, append_images=[GREY]),
    "PPM": encoded(RGB, "PPM"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_formats_are_told_by_their_content_and_the_first_frame_counts(name: str, tmp_path: Path) -> None:
    path = tmp_path / "named as another.jpg"
    path.write_bytes(LOSSLESS[name])
    np.testing.assert_array_equal(pixels_of(path), PIXELS)


@pytest.mark.parametrize("picture", [GREY, GREY.convert("1"), RGB.quantize(16)], ids=lambda picture: picture.mode)
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_grey_and_palettes_are_as_pil_has_them(picture: PIL.Image.Image, kind: str) -> None:
    np.testing.assert_array_equal(decode(encoded(picture, kind)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes([0, 128] * 8)])
def test_transparency_of_a_palette_is_dropped(transparency: object) -> None:
    picture = RGB.quantize(16)
    found = decode(encoded(picture, "PNG", transparency=transparency))
    np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    found = decode(encoded(RGB.convert("CMYK"), kind))
    assert np.abs(found.astype(int) - PIXELS).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    turns = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.swapaxes(0, 1),
        6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(PIXELS),
    }  # fmt: skip
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(decode(encoded(RGB, kind, exif=exif, **options)), turns[orientation])
    large = PIL.Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1))
    small = decode(encoded(large, "JPEG", quality=95, subsampling=0, exif=exif), turns[orientation].shape[:2])
    assert small.shape == turns[orientation].shape
    assert np.abs(small.astype(int) - turns[orientation]).mean() < 3


def test_grey_of_16_bits_is_scaled_by_its_own_range() -> None:
    """Each of 31 levels is kept, whatever holds them."""
    wanted = np.rint((LEVELS - 29_760.0) / 272 * 255)
    pictures = [
        encoded(PIL.Image.fromarray(LEVELS), "PNG"),
        encoded(PIL.Image.fromarray(LEVELS), "TIFF"),
        encoded(PIL.Image.fromarray(LEVELS.astype(np.float32)), "TIFF"),
        png16(np.repeat(LEVELS[..., None], 3, 2)),
        png16(np.dstack([LEVELS, LEVELS, LEVELS, np.full_like(LEVELS, 65_535)])),
        b"P5\n24 48\n65535\n" + LEVELS.astype(">u2").tobytes(),
    ]
    for data in pictures:
        np.testing.assert_array_equal(decode(data), np.repeat(wanted[..., None], 3, 2))
        assert images.is_deep(data)
    dead = LEVELS.copy()
    dead[5, 5] = 0  # one pixel does not take the range
    assert len(np.unique(decode(png16(dead)))) == 31
    assert decode(png16(np.full((4, 4), 777, np.uint16))).max() == 0
    with pytest.raises(ImageError, match="no finite numbers"):
        decode(encoded(PIL.Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))
    assert not images.is_deep(encoded(GREY, "PNG"))


def test_colour_of_16_bits_keeps_its_upper_8_and_says_where_they_tell_nothing() -> None:
    deep = PIXELS[..., ::-1].astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(png16(deep)), PIXELS)
    with pytest.raises(ImageError, match="16 bits per colour, of which only values up to 3,919 are used: scale"):
        decode(png16(deep // 16))
    header = b"P6\n# of a camera of 12 bits\n24 48\n65535\n"
    np.testing.assert_array_equal(decode(header + deep[..., ::-1].astype(">u2").tobytes()), PIXELS)
    with pytest.raises(ImageError, match="16 bits per colour, of which only values up to 3,919 are used: scale"):
        decode(header + (deep // 16)[..., ::-1].astype(">u2").tobytes())


def test_a_palette_that_is_missing_is_said() -> None:
    """Decoders give a black picture."""
    data = encoded(RGB.convert("P"), "PNG")
    at = data.index(b"PLTE") - 4
    with pytest.raises(ImageError, match="it has no palette"):
        decode(data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4], "big") :])


def test_a_header_that_is_not_understood_is_said_in_words() -> None:
    """Not by the address of a buffer, or the name of a plugin of Pillow."""
    with pytest.raises(ImageError, match="it is a WebP that is damaged, or of a form that is not read"):
        decode(b"RIFF\x24\0\0\0WAVEfmt " + bytes(30))


NO_PICTURES = {
    "is empty": b"",
    "Git LFS pointer, not the picture: run `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "an HTML page": b"\n <!DOCTYPE html><html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a ZIP archive": b"PK\x03\x04abc",
    "HEIC picture, which is not read: convert it": b"\0\0\0\x18ftypheic\0\0\0\0",
    "only zeros": bytes(9_000),
    "no known picture format .*b'hello wo'": b"hello world",
}


@pytest.mark.parametrize("reason", NO_PICTURES)
def test_what_is_no_picture_is_said(reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(NO_PICTURES[reason])


@pytest.mark.parametrize("name", [*LOSSLESS, "JPEG", "GIF"])
def test_a_cut_picture_is_named_by_its_format(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = {**LOSSLESS, "JPEG": encoded(RGB, "JPEG"), "GIF": encoded(RGB, "GIF")}[name]
    kind = "TIFF" if "TIFF" in name else "PNG" if "PNG" in name else name
    end = data.index(b"IEND") if kind == "PNG" else len(data)
    for length in {16, end // 2, end - 3}:
        if name == "TIFF of two pages" and length == end - 3:
            continue  # the first page is whole
        if name == "WebP" or length < len(data):
            with pytest.raises(ImageError, match=f"it is a {kind} that is (damaged|cut)"):
                decode(data[:length])
    capfd.readouterr()  # libtiff's own complaints


def test_pixel_limit_is_read_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 x 30,000 pixels would take 5.2 GB."""
    bomb = encoded(PIL.Image.new("1", (9_000, 9_000)), "PNG")
    jpeg = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    jpeg = jpeg.replace(b"\0\x40\0\x40", b"\xff\xdc\xff\xdc", 1)  # height and width of the frame
    monkeypatch.setattr(PIL.Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    for data, size in ((bomb, "9,000 x 9,000"), (jpeg, "65,500 x 65,500")):
        with pytest.raises(ImageError, match=rf"{size} pixels, more than the limit of 50,000,000: .*data\.max_pixels"):
            decode(data)
    with pytest.raises(ImageError, match="24 x 48 pixels, more than the limit of 1,000"):
        decode(LOSSLESS["BMP"], max_pixels=1_000)
    # Its header is refused by Pillow itself.
    huge = LOSSLESS["PPM"].replace(b"24 48", b"30000 30000")
    with pytest.raises(ImageError, match="pixels"):
        decode(huge, max_pixels=images.MOST_MAX_PIXELS)


def test_files_that_are_no_regular_files_are_named_at_once(tmp_path: Path) -> None:
    """To open a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name, reason in {
        "pipe.jpg": "it is a pipe, not a picture: remove it",
        "folder.jpg": "it is a folder",
        "device.jpg": "it is a device",
        "loop.jpg": "symbolic links",
        "broken.jpg": "No such file",
        "nul\0.jpg": "null",
    }.items():
        with pytest.raises(ImageError, match=rf"{name} is no readable image.*{reason}"):
            pixels_of(tmp_path / name)
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # no disk holds it, no memory could
    with pytest.raises(ImageError, match="more bytes than any picture of 1,000 pixels"):
        pixels_of(large, max_pixels=1_000)


@pytest.mark.parametrize(
    "array", [np.zeros((10, 0, 3), np.uint8), np.zeros((0, 10, 3), np.uint8), np.zeros((4, 4), np.uint8),
              np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)], ids=lambda array: str(array.shape),
)  # fmt: skip
def test_an_array_that_is_no_picture(array: np.ndarray) -> None:
    """Such as u8[10,0,3]."""
    with pytest.raises(ImageError, match=r"an image array must be u8\[H, W, 3\] in RGB with at least one pixel, not"):
        pixels_of(array)


@pytest.mark.parametrize("factor", [2, 4, 9])
def test_evaluation_and_embedder_read_a_large_jpeg_alike(factor: int) -> None:
    """Decoded at 1/2 to 1/8 the embeddings would have cosine .9991."""
    rng = np.random.default_rng(1)
    data = simplejpeg.encode_jpeg(rng.integers(0, 256, (48 * factor, 24 * factor, 3), np.uint8))
    stored = StoredImages({0: {"image": data, "file": "0.jpg"}})
    np.testing.assert_array_equal(stored.load(0, (48, 24)), resize(pixels_of(data), (48, 24)))
