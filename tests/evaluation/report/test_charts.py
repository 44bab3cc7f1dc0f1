"""The charts and pictures of the report: right places, round ticks, heat where it belongs."""

import math
import re

import numpy as np
import pytest
from report_example import jpeg, person

from data_pipelines.images import decode
from irm_jax.evaluation.report import charts


def test_line_chart_geometry() -> None:
    series = [charts.Series("a", [0.0, 50.0, 100.0], [0.0, math.nan, 1.0], 0)]
    svg = str(charts.line_chart("t", series, x_label="x", height=230))
    line = re.search(r'<path class="line s0"[^>]* d="(M[^"]*M[^"]*)"', svg)
    assert line is not None, "NaN must break the line"
    first, last = ([float(v) for v in p.split()] for p in line[1].strip("M").split("M"))
    assert first == [charts.LEFT, 230 - charts.BOTTOM]
    assert last[0] == charts.WIDTH - charts.RIGHT
    assert last[1] == charts.TOP
    with pytest.raises(ValueError, match="no finite value"):
        charts.line_chart("t", [charts.Series("a", [0.0], [math.nan])], x_label="x")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.013), (0, 12345), (-2.5, 7.1), (0.5, 0.9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low <= found[0] < found[-1] <= high
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_overlay_is_bright_where_the_heat_is() -> None:
    image = np.full((64, 32, 3), 128, np.uint8)
    heat = np.zeros((8, 4), np.float32)
    heat[1, 3] = 0.02
    shown = charts.overlay(image, heat, height=128).astype(int).sum(-1)
    assert shown.shape == (128, 64)
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y // 16, x // 16) == (1, 3)
    flat = charts.overlay(image, np.ones((8, 4)), height=128)
    assert (flat == flat[0, 0]).all()
    with pytest.raises(ValueError, match="NaN"):
        charts.overlay(image, np.full((2, 2), np.nan))


def test_thumbnail_keeps_the_picture() -> None:
    image = person(np.random.default_rng(1))
    uri, width, height = charts.thumbnail(jpeg(image))
    assert (width, height) == (64, 128)
    assert np.abs(decode(jpeg(image)).astype(int) - image).mean() < 8
    assert charts.thumbnail(np.zeros((400, 200, 3), np.uint8), 192)[1:] == (96, 192)
    assert uri.startswith("data:image/jpeg;base64,/9j/")
    for bad in (b"", b"not a picture", jpeg(image)[:40]):
        with pytest.raises(ValueError, match="is no readable image"):
            charts.thumbnail(bad)
    with pytest.raises(ValueError, match=r"u8\[H, W, 3\]"):
        charts.thumbnail(image.astype(np.float32))
