"""Filters: parsed, evaluated in memory, and written for the engines; what is malformed is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from irm_jax.search import filters
from irm_jax.search.filters import FilterError

COLUMNS = {"camera": "text", "floor": "integer", "score": "number", "night": "boolean", "time": "time"}
TABLE = pa.table(
    {
        "camera": ["gate", "hall", None, "it's"],
        "floor": pa.array([1, 2, 3, None], pa.int64()),
        "score": [0.5, -1.5, None, 2e3],
        "night": [True, False, None, True],
        "time": pa.array([datetime.datetime(2026, 1, day) for day in (1, 2, 3, 4)], pa.timestamp("us")),
    }
)
CASES = {
    "camera = 'gate'": [0],
    "camera != 'gate'": [1, 3],
    "NOT camera = 'gate'": [1, 3],
    "camera = 'it''s'": [3],
    "camera IN ('gate', 'hall')": [0, 1],
    "camera not in ('gate', 'hall')": [3],
    "camera is null": [2],
    "camera IS NOT NULL and floor > 1": [1],
    "camera LIKE '%a%'": [0, 1],
    "camera NOT LIKE 'g_te'": [1, 3],
    "floor BETWEEN 2 AND 3": [1, 2],
    "floor not between 2 and 3": [0],
    "not (floor = 1 or camera = 'hall')": [],  # the third has no camera, the fourth no floor
    "floor = 1 or camera = 'hall' and floor = 9": [0],
    "(floor = 1 or camera = 'hall') and floor = 2": [1],
    "score < 0.6": [0, 1],
    "score >= -15e-1": [0, 1, 3],
    "night = true": [0, 3],
    "NOT NOT night = false": [1],
    "time < '2026-01-03'": [0, 1],
    "time >= '2026-01-03T00:00:00+02:00'": [2, 3],
    '"floor" <> 2': [0, 2],
}


@pytest.mark.parametrize("text", CASES)
def test_rows_that_pass(text: str) -> None:
    found = filters.parse(text, COLUMNS)
    assert np.flatnonzero(filters.mask(found, TABLE)).tolist() == CASES[text]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("foo = 3", "there is no column 'foo'"),
        ("camera = 3", "compared with a text"),
        ("floor = 'one'", "compared with a number"),
        ("floor = 1.5", "whole numbers"),
        ("floor = 99999999999999999999", "too large"),
        ("time < 'soon'", "is no time"),
        ("night = 1", "compared with true or false"),
        ("floor LIKE '1'", "LIKE compares text"),
        ("camera = 'gate' OR", "expected the name of a column"),
        ("camera = 'gate' hall", "expected AND, OR or the end"),
        ("camera 'gate'", "expected a comparison"),
        ("camera = 'gate'; DROP TABLE gallery", "this is no part of a filter"),
        ("camera = 'gate", "this is no part of a filter"),
        ("(camera = 'gate'", "expected"),
        ("camera = gate", "compared with a text"),
        ("(" * 200 + "floor = 1", "nested too deep"),
        ("not " * 5000 + "floor = 1", "nested too deep"),
        ("_id = 'x'", "there is no column '_id'"),
    ],
)
def test_malformed_filters_are_refused(text: str, reason: str) -> None:
    with pytest.raises(FilterError, match=reason):
        filters.parse(text, COLUMNS)


def test_what_engines_get_is_written_from_the_parsed_form() -> None:
    found = filters.parse("camera != 'it''s' AND NOT (floor IN (1, 2) OR time >= '2026-01-02')", COLUMNS)
    assert filters.to_sql(found) == (
        "(`camera` <> 'it''s' AND ((`floor` <> 1 AND `floor` <> 2) AND `time` < timestamp '2026-01-02T00:00:00'))"
    )
    assert filters.to_milvus(found) == (
        '(camera != "it\'s" and ((floor != 1 and floor != 2) and time < 1767312000000000))'
    )
    assert filters.to_milvus(filters.parse("camera LIKE '\"%'", COLUMNS)) == 'camera like "\\"%"'
    assert filters.columns_of(found) == {"camera", "floor", "time"}
