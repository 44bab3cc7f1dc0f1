"""Pictures of a page: heat where it belongs, each picture once, all of them within the budget."""

import base64
import re

import cv2
import numpy as np
import pytest
from report_example import jpeg, person

from irm_jax.evaluation.report.pictures import LEVELS, Album, overlay


def test_overlay_is_bright_where_the_heat_is() -> None:
    image = np.full((64, 32, 3), 128, np.uint8)
    heat = np.zeros((8, 4), np.float32)
    heat[1, 3] = 0.02
    shown = overlay(image, heat, height=128).astype(int).sum(-1)
    assert shown.shape == (128, 64)
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y // 16, x // 16) == (1, 3)
    flat = overlay(image, np.ones((8, 4)), height=128)
    assert (flat == flat[0, 0]).all()
    with pytest.raises(ValueError, match="NaN"):
        overlay(image, np.full((2, 2), np.nan))


def embedded(album: Album) -> list[np.ndarray]:
    """The pictures of an album as a browser reads them, RGB."""
    found = re.findall(r'href="data:image/webp;base64,([^"]+)"', str(album.defs()))
    bytes_of = [np.frombuffer(base64.b64decode(data), np.uint8) for data in found]
    return [cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for data in bytes_of]


def test_an_album_holds_each_picture_once() -> None:
    first, second = (person(np.random.default_rng(seed)) for seed in (1, 2))
    album = Album()
    shown = [str(album.show(picture, "a < b")) for picture in (first, jpeg(second), first.copy(), jpeg(second))]
    assert [re.search(r'href="#(i\d+)"', one)[1] for one in shown] == ["i0", "i1", "i0", "i1"]
    assert 'aria-label="a &lt; b"' in shown[0]
    assert 'viewBox="0 0 64 128"' in shown[0]
    found = embedded(album)
    assert len(found) == 2
    assert np.abs(found[0].astype(int) - first).mean() < 8
    album.show(np.zeros((400, 200, 3), np.uint8), "high")
    assert embedded(album)[2].shape == (LEVELS[0][0], LEVELS[0][0] // 2, 3)


def test_many_pictures_stay_within_the_budget() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 160, 80, 3)).astype(np.uint8)
    sizes = []
    for budget in (10**6, 60_000):
        album = Album(budget)
        for picture in noise:
            album.show(picture, "noise")
        sizes.append(sum(map(len, re.findall(r'href="(data:[^"]+)"', str(album.defs())))))
        assert len(embedded(album)) == 12
    assert sizes[1] <= 60_000 < sizes[0]


def test_what_is_no_picture_is_refused() -> None:
    image = person(np.random.default_rng(1))
    for bad in (b"", b"not a picture", jpeg(image)[:40]):
        with pytest.raises(ValueError, match="is no readable image"):
            Album().show(bad, "bad")
    with pytest.raises(ValueError, match=r"u8\[H, W, 3\]"):
        Album().show(image.astype(np.float32), "float")
