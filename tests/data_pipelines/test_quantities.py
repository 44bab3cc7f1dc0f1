"""Quantities in words."""

import pytest

from data_pipelines import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (50, "50 s"),
        (89, "89 s"),
        (120, "2 min"),
        (600, "10 min"),
        (7_200, "2 h 0 min"),
        (12_000, "3 h 20 min"),
        (186_000, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 KiB"), (3_200, "3.1 KiB"), (2**22, "4.0 MiB"), (3e9, "2.79 GiB")])
def test_sizes(count: float, text: str) -> None:
    assert words.size(count) == text
