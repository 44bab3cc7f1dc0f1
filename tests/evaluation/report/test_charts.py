"""The charts of the report: right places, round ticks."""

import math
import re

import numpy as np
import pytest

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
