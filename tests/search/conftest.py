"""Fixtures of the search tests: pictures, a model of the smallest size, an index of both."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import pytest
from model_stand_in import StandIn
from quick_compilation import few_optimizations
from search_pictures import picture

if TYPE_CHECKING:
    from irm_jax.search.index import Index

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


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """Each checkpoint is read once, and all have the first one's compiled programs: their parameters are arguments."""
    from irm_jax.search import model

    opened: dict[tuple[str, Any], Any] = {}
    read = model.open_checkpoint

    def open_checkpoint(workdir: str, step: Any = None) -> Any:
        key = os.path.realpath(workdir), 4 if step is None else step
        if key not in opened:
            made = read(workdir, step)
            if opened:
                programs = copy.copy(next(iter(opened.values())).model)
                programs.variables = made.model.variables
                made = dataclasses.replace(made, model=programs)
            opened[key] = made
        return opened[key]

    with pytest.MonkeyPatch.context() as patch, few_optimizations():
        patch.setattr(model, "open_checkpoint", open_checkpoint)
        yield


@contextlib.contextmanager
def stood_in() -> Iterator[None]:
    """All of search takes the stand-in for a model."""
    from irm_jax.search import index, ingest, model, rebuild

    with pytest.MonkeyPatch.context() as patch:
        for module in (index, ingest, model, rebuild):
            patch.setattr(module, "SearchModel", StandIn)
        yield


@pytest.fixture(scope="module", params=["stand-in", pytest.param("trained", marks=pytest.mark.nightly)])
def run(request: pytest.FixtureRequest, lancedb: None) -> Iterator[str]:
    """An evaluated run that embeds: a stand-in compiles nothing; nightly also the smallest model."""
    if request.param == "trained":
        with opened_once():
            yield request.getfixturevalue("run_dir")
    else:
        with stood_in():
            yield str(request.getfixturevalue("earlier_run"))


@pytest.fixture(scope="module")
def index(crops_dir: Path, run: str, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The index of `crops_dir`; not to be changed."""
    import irm_jax.search
    from irm_jax.search import ingest
    from irm_jax.search.crops import read_crops

    uri = str(tmp_path_factory.mktemp("search") / "index")
    ingest.build(uri, run, read_crops(crops_dir, crops_dir / "crops.csv"), quiet=True)
    return irm_jax.search.open(uri)
