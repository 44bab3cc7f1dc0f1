"""Raw data sets in their official layouts: one file a data set, each with a `SOURCE` that says how to read it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines import schema

NAMES = ("market1501",)
"""The data sets that can be built from a raw folder; each is a module of this package."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a raw folder holds, found from file names alone.

    `splits` maps a split to descriptors in final record order; `found` has the same form as `Source.expected`;
    `source` goes into the manifest (plain JSON).
    """

    people: list[str]
    splits: dict[str, Sequence[Any]]
    found: dict[str, dict[str, int]]
    source: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """One raw data set: `scan(raw)` lists it, `load(raw, descriptor)` makes a Record.

    `expected` maps a split to the counts its authors publish. `load` is a module's function, so that worker processes
    can be given it.
    """

    name: str
    version: str
    task: str
    namespace: str
    expected: Mapping[str, Mapping[str, int]]
    scan: Callable[[Path], Scan]
    load: Callable[[Path, Any], schema.Record]


def get_source(name: str) -> Source:
    """Returns the source of a name in NAMES. Raises ValueError for another name."""
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; those with a raw layout are: {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}").SOURCE
