"""Raw data sets in their official layouts: one file per data set, each with `SOURCES` that say how to read it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.dataset import schema
from data_pipelines.dataset.writer import DatasetSpec

_MODULES = {
    "market1501": ("market1501", "market1501_500k"),
    "msmt17": ("msmt17", "msmt17_trainval"),
    "cuhk03": ("cuhk03_detected", "cuhk03_labeled"),
    "cuhk01": ("cuhk01",),
    "prcc": ("prcc",),
    "ltcc": ("ltcc",),
    "vcclothes": ("vcclothes",),
    "cocas_plus": ("real1_ctcc", "real2_ctcc", "real1_li", "real2_li"),
    "market1501_attributes": ("market1501_attributes",),
    "llcm": ("llcm",),
    "sysu_mm01": ("sysu_mm01",),
    "cuhk_pedes": ("cuhk_pedes",),
    "cuhk_pedes_part": ("cuhk_pedes_part",),
    "synth_pedes": ("synth_pedes",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
NAMES = tuple(_MODULE_OF)
"""The data sets that can be built from a raw folder; each belongs to a module of this package."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a raw folder holds, found from file names and lists alone.

    Attributes:
      people: names, without repeats.
      splits: split -> descriptors in final record order.
      found: counts, in the form of `Source.expected`.
      source: what the manifest says of it, plain JSON.
    """

    people: list[str]
    splits: dict[str, Sequence[Any]]
    found: dict[str, dict[str, int]]
    source: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """One raw data set.

    Attributes:
      name, task, namespace, version: of the data set that is built.
      expected: split -> counts that its authors publish; unknown ones are left out. Some are not verified on the real
        files, as their modules say; a build with --strict compares with the authors' counts.
      scan: lists the raw folder.
      load: makes the Record of a descriptor; a module's function, or a functools.partial of one, because worker
        processes receive it.
    """

    name: str
    task: str
    namespace: str
    expected: Mapping[str, Mapping[str, int]]
    scan: Callable[[Path], Scan]
    load: Callable[[Path, Any], schema.Record]
    version: str = "1.0.0"

    def spec(self, raw: Path, scan: Scan) -> DatasetSpec[Any]:
        """Returns the data set to write of a scanned raw folder."""
        return DatasetSpec(
            name=self.name,
            version=self.version,
            task=self.task,
            namespace=self.namespace,
            people=scan.people,
            splits=scan.splits,
            load=functools.partial(self.load, raw),
            source=scan.source,
        )


def get_source(name: str) -> Source:
    """Returns the source of a name in NAMES. Raises ValueError for another name."""
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; those with a raw layout are: {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{_MODULE_OF[name]}").SOURCES[name]
