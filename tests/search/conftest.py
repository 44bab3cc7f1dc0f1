"""Fixtures of the search tests: pictures, a model of the smallest size, stores of both engines."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import pytest
from search_pictures import picture

CAMERAS = ("gate", "hall", "it's")


@pytest.fixture(scope="session")
def crops_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures and crops.csv, which gives each a camera, a time and a floor. Copy it to change it."""
    folder = tmp_path_factory.mktemp("crops")
    with open(folder / "crops.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "camera", "time", "floor"])
        for i in range(30):
            cv2.imwrite(str(folder / f"{i:02}.png"), picture(i))
            camera = "" if i == 29 else CAMERAS[i % 3]
            writer.writerow([f"{i:02}.png", camera, f"2026-01-{1 + i % 28:02} 08:00", i % 5])
    return folder


@pytest.fixture(scope="session")
def lancedb() -> None:
    """Skips tests that open an index where the engine is not installed."""
    pytest.importorskip("lancedb", reason="needs pip install -e '.[search]'")


@pytest.fixture(scope="session")
def run_dir(lancedb: None, trained_run: Path) -> str:
    """The run that embeds: the smallest model, four steps."""
    return str(trained_run)
