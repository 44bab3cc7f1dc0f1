"""From the options of the build command to the source of a data set, with its instructions made where asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines import sources, tasks
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import clothes_crops
from data_pipelines.sources import Scan, Source, checks, datalist, reading, table

DATALIST, TABLE = "datalist", "table"
OWN = (DATALIST, TABLE)
"""Data sets without an official layout: they take a task and a name."""


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """What is built, as the options of the command line say; None is not given.

    Attributes:
      raw: the folder of the raw data set.
      task: of a datalist or table.
      name: of the built data set, also of an official one.
      namespace: of people and cameras of a datalist or table; its name unless given.
      table: the table's file.
      train_list, query_list, gallery_list: datalists.
      sentences: the datalists' JSON file of sentences.
      clothes_crops: instruction pictures cut out of the set's own pictures.
      leave_out: built data sets whose test people do not become training people here.
    """

    raw: str | None = None
    task: str | None = None
    name: str | None = None
    namespace: str | None = None
    table: str | None = None
    train_list: str | None = None
    query_list: str | None = None
    gallery_list: str | None = None
    sentences: str | None = None
    clothes_crops: clothes_crops.Kind | None = None
    leave_out: tuple[str, ...] = ()


_LISTS = ("train_list", "query_list", "gallery_list")


def _refuse(options: SourceOptions, dataset: str, *names: str) -> None:
    given = [name for name in names if getattr(options, name) is not None]
    if given:
        raise DatasetError(f"--{given[0]} does not belong to --dataset {dataset}: leave it out")


def choose(dataset: str, options: SourceOptions) -> Source:
    """Returns the source. Raises DatasetError for options that are missing or do not belong to the data set."""
    if dataset not in OWN:
        _refuse(options, dataset, "namespace", "table", *_LISTS, "sentences")
        source = sources.get_source(dataset)
        if options.task not in (None, source.task) and (options.task, options.clothes_crops) != ("ctcc", "outfit"):
            raise DatasetError(
                f"{dataset} is of task {source.task}: leave --task out (a set with clothes numbers also serves as "
                f"ctcc, with --clothes_crops outfit)"
            )
        source = dataclasses.replace(source, name=options.name or source.name, task=options.task or source.task)
    else:
        source = _own(dataset, options)
    return source if options.clothes_crops is None else _with_crops(source, options.clothes_crops)


def _own(dataset: str, options: SourceOptions) -> Source:
    if not options.task or not options.name:
        raise DatasetError(f"--dataset {dataset} needs --task ({', '.join(tasks.TASKS)}) and --name")
    people = options.namespace or options.name
    if dataset == TABLE:
        _refuse(options, dataset, *_LISTS, "sentences")
        if options.table is None:
            raise DatasetError("--dataset table needs --table FILE, a .csv or .jsonl file")
        return table.source(options.name, options.task, people, options.table, options.clothes_crops)
    _refuse(options, dataset, "table")
    lists = {name.removesuffix("_list"): getattr(options, name) for name in _LISTS if getattr(options, name)}
    if not lists or ("query" in lists) != ("gallery" in lists):
        raise DatasetError("--dataset datalist needs --train_list, or --query_list and --gallery_list, or all three")
    return datalist.source(options.name, options.task, people, lists, options.sentences)


def _with_crops(source: Source, kind: clothes_crops.Kind) -> Source:
    if source.load is not reading.load:
        raise DatasetError(f"{source.name} has no picture files with clothes: leave --clothes_crops out")

    def scan(raw: Path) -> Scan:
        found = source.scan(raw)
        return dataclasses.replace(
            found,
            splits=dict(checks.with_crops(found.splits, kind, source.name)),
            source={**found.source, **clothes_crops.describe(kind)},
        )

    return dataclasses.replace(source, scan=scan)
