"""Builds a data set into shards.

    python -m data_pipelines.build --dataset market1501 --raw DIR --out DIR

Prints the counts that were found beside the published ones before the build and, with what was written, after it. A
killed build goes on where it stopped when it is run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines import commands, sources, tasks
from data_pipelines.dataset import schema
from data_pipelines.dataset.parts import Part
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset, write_part
from data_pipelines.errors import DatasetError, RetryError, UserError
from data_pipelines.images import MAX_PIXELS
from data_pipelines.instructions import clothes_crops
from data_pipelines.people import tested_people
from data_pipelines.sources import Scan, Source, checks, datalist, reading, table

PROCEDURAL = "procedural"
DATALIST, TABLE = "datalist", "table"
OWN = (DATALIST, TABLE)
"""Data sets without an official layout: they take a task and a name."""
DATASETS = (PROCEDURAL, *sources.NAMES, *OWN)
_LISTS = ("train_list", "query_list", "gallery_list")
_FORMS = "CSV, TSV, JSON, JSON lines or Parquet, a list of files, or a folder of pictures (docs/own_data.md)"


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
      skip_missing: rows of a table whose picture is not there are left out.
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
    skip_missing: bool = False


def count_report(
    found: Mapping[str, Mapping[str, int]], expected: Mapping[str, Mapping[str, int]]
) -> tuple[str, list[str]]:
    """Compares counts that were found with published ones, both {split: {what: count}}.

    Returns:
      The counts as lines of text, and one line per difference (none: all as published). What is found but not published
      has no expected count and never differs.
    """
    rows = [("split", "what", "found", "expected", "")]
    differences = []
    for split in dict.fromkeys([*expected, *found]):
        published = expected.get(split, {})
        for what in dict.fromkeys([*published, *found.get(split, {})]):
            have, wanted = found.get(split, {}).get(what, 0), published.get(what, None)
            differs = wanted is not None and have != wanted
            rows.append((split, what, f"{have:,}", "" if wanted is None else f"{wanted:,}", "differs" * differs))
            if differs:
                differences.append(f"{split}: {have:,} {what} instead of {wanted:,}")
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    return "\n".join(lines), differences


def build(
    dataset: str,
    out: str,
    source_options: SourceOptions,
    options: BuildOptions | None = None,
    strict: bool = False,
    part: Part | None = None,
) -> None:
    """Builds one data set and prints what was found and written.

    Args:
      dataset: a name in DATASETS; the procedural benchmark is six data sets.
      out: the data folder.
      source_options: what the data set is made of.
      options: how the build runs.
      strict: counts other than the published ones are an error before anything is written, not a warning.
      part: the part to build where several machines share the work (see dataset.parts); None: everything.

    Raises:
      DatasetError: the message names the cause and the cure.
    """
    if dataset == PROCEDURAL:
        if part is not None:
            raise DatasetError("the procedural benchmark is drawn by one machine in minutes: leave --part out")
        if source_options != SourceOptions():
            raise DatasetError("the procedural benchmark takes no options of a raw data set: leave them out")
        from data_pipelines import procedural  # only here: a raw data set needs no renderer

        for manifest in procedural.build(out, options=options):
            _print_built(manifest, out)
        return
    source, raw = choose(dataset, source_options), _raw_folder(dataset, source_options)
    scan = source.scan(raw)
    _report_found(dataset, raw, scan, source, strict)
    left_out: dict[str, Any] = {}
    if source_options.leave_out:
        tested = [open_dataset(out, name) for name in source_options.leave_out]
        scan, left_out = tested_people.leave_out(scan, source.name, tested)
    built = _write(out, source.spec(raw, scan), options, part)
    if built is None:
        return
    _print_built(built, out)
    written = {split: {**found, "images": built.splits[split]["records"]} for split, found in scan.found.items()}
    # What was left out is no fault of the raw folder, whose counts were compared before.
    compared = {split: counts for split, counts in source.expected.items() if split != "train" or not left_out}
    closing, differences = count_report(written, compared)
    if compared:
        closing += "\nDIFFERENT from the published counts" if differences else "\nas published"
    if left_out:
        closing += f"\n{left_out['images']:,} pictures left out of train: {left_out['people']:,} people are tested in "
        closing += ", ".join(left_out["tested_in"])
    print(closing)


def _write(out: str, spec: DatasetSpec[Any], options: BuildOptions | None, part: Part | None) -> schema.Manifest | None:
    """Writes the data set or its part; returns the manifest, None (said in words) while other parts are missing."""
    if part is None:
        return write_dataset(out, spec, options)
    manifest = write_part(out, spec, part, options)
    if manifest is None:
        print(
            f"part {part.index}/{part.count} of {spec.name} is finished in {out}; the last of the other parts joins "
            "them all. Parts on other disks: copy their folders together, then run this build without --part"
        )
    return manifest


def _raw_folder(dataset: str, options: SourceOptions) -> Path:
    if options.raw is not None:
        return Path(options.raw)
    if options.table is not None:
        path = Path(options.table)
        return path if path.is_dir() else path.parent
    if dataset == DATALIST:
        raise DatasetError("--dataset datalist needs --raw: the folder in which the lists' paths begin")
    raise DatasetError(f"{dataset} is built from its official files: give their folder with --raw")


def _report_found(dataset: str, raw: Path, scan: Scan, source: Source, strict: bool) -> None:
    """Prints the counts beside the published ones. Raises DatasetError where they differ and `strict` is on."""
    report, differences = count_report(scan.found, source.expected)
    print(f"{dataset} in {raw}\n{report}")
    if differences:
        message = f"{raw} is not the published {dataset}: {'; '.join(differences)}"
        if strict:
            raise DatasetError(f"{message}. Get the data set again, or build without --strict.")
        logging.warning("%s. Figures from it do not compare with published ones.", message)


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
            raise DatasetError(f"--dataset table needs --table FILE: {_FORMS}")
        skip = options.skip_missing
        return table.source(options.name, options.task, people, options.table, options.clothes_crops, skip)
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


def _print_built(manifest: schema.Manifest, out: str) -> None:
    print(f"{manifest.name} {manifest.version}: {Path(out, manifest.name, manifest.version)}")
    for split, value in manifest.splits.items():
        skipped = f", {len(value['skipped'])} left out (do not decode)" if value["skipped"] else ""
        size = sum(shard["bytes"] for shard in value["shards"]) / 2**20
        print(f"  {split}: {value['records']:,} records in {len(value['shards'])} shards, {size:.1f} MiB{skipped}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Builds a data set into shards; a killed build goes on when run again.",
        epilog="Your own: --dataset table --table people.csv --task trad --name mine --out DIR (docs/data_sets.md).",
    )
    parser.add_argument("--dataset", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument(
        "--check", metavar="TABLE", help="look at a table of own pictures, and build nothing (docs/own_data.md)"
    )
    parser.add_argument("--raw", help="folder of the raw data set in its official layout (procedural needs none)")
    parser.add_argument("--out", help="folder the data set goes to: OUT/NAME/VERSION")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="build part I of N (1/8 to 8/8) of one set; the last one joins them (docs/pods.md)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse a raw folder with other counts than published")
    parser.add_argument(
        "--on_bad_image", choices=("error", "skip"), default="error", help="a damaged picture, or a table's missing one"
    )
    parser.add_argument(
        "--max_pixels", type=int, default=MAX_PIXELS, help=f"most pixels of a picture by its header ({MAX_PIXELS:,})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a finished data set of the same version")
    parser.add_argument(
        "--leave_out",
        nargs="+",
        default=(),
        metavar="NAME",
        help="data sets already in --out: people of their query, gallery or test splits do not go into train",
    )
    made = parser.add_argument_group("instruction pictures cut out of the set's own pictures")
    made.add_argument(
        "--clothes_crops",
        choices=("own", "outfit"),
        help="the upper clothes of another picture of the same outfit (ctcc), or each picture's own (read by no task)",
    )
    made.add_argument("--name", help="name of what is built, where it is not the data set's own")
    own = parser.add_argument_group("--dataset table, --dataset datalist (with --name)")
    own.add_argument(
        "--task", choices=tuple(tasks.TASKS), help="the task (a cc set with --clothes_crops outfit: also ctcc)"
    )
    own.add_argument("--namespace", help="of people and cameras (default: the name); sets that share people share it")
    own.add_argument("--table", metavar="FILE", help=f"table: {_FORMS}; --raw is its folder unless given")
    for split in ("train", "query", "gallery"):
        own.add_argument(f"--{split}_list", metavar="FILE", help=f"datalist: the list of split {split}, inside --raw")
    own.add_argument("--sentences", metavar="FILE", help="datalist: JSON file of the sentences, inside --raw (li, t2i)")
    return parser


def _check(args: Mapping[str, Any]) -> int:
    """Prints what a table holds; returns the exit status, 2 where a build would fail."""
    from data_pipelines.own import check, plan  # only here: a raw data set needs neither

    tasks_asked = (args["task"],) if args["task"] else ()
    report = check.check(plan.Options(args["check"], args["raw"] or "", tasks_asked))
    print("\n".join(report.lines))
    return 0 if report.ready else UserError.exit_status


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = vars(parser.parse_args(argv))
    if not args["check"] and not (args["dataset"] and args["out"]):
        parser.error("the following arguments are required: --dataset, --out (or --check TABLE)")
    logging.set_verbosity(logging.INFO)
    try:
        if args["check"]:
            return _check(args)
        del args["check"]
        return _build(args)
    except (UserError, RetryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def _build(args: dict[str, Any]) -> int:
    args["leave_out"] = tuple(args["leave_out"])
    args["skip_missing"] = args["dataset"] == TABLE and args["on_bad_image"] == "skip"
    source_options = SourceOptions(**{field.name: args.pop(field.name) for field in dataclasses.fields(SourceOptions)})
    dataset, out, strict, part = (args.pop(name) for name in ("dataset", "out", "strict", "part"))
    build(dataset, out, source_options, BuildOptions(**args), strict, Part.parse(part) if part else None)
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
