"""Builds a data set into shards: python -m data_pipelines.build --dataset market1501 --raw DIR --out DIR.

Prints found beside expected counts before the build and, with what was written, after it. A killed build goes on where
it stopped when run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines import sources, tasks
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import OnBadImage, write_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.people import tested_people
from data_pipelines.sources import choice
from data_pipelines.sources.choice import SourceOptions

PROCEDURAL = "procedural"
DATASETS = (PROCEDURAL, *sources.NAMES, *choice.OWN)


def count_table(
    found: Mapping[str, Mapping[str, int]], expected: Mapping[str, Mapping[str, int]]
) -> tuple[str, list[str]]:
    """Returns the table of counts as text, and what differs, one line each (empty: all as published).

    What is found but not published stands there without an expected count, and never differs.
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
    raw: str | None,
    out: str,
    *,
    options: SourceOptions | None = None,
    workers: int | None = None,
    strict: bool = False,
    on_bad_image: OnBadImage = "error",
    overwrite: bool = False,
    leave_out: Sequence[str] = (),
) -> None:
    """Builds one data set (a name in DATASETS; the procedural benchmark is six), and prints what was found.

    Raises DatasetError, cause and cure in the message. Counts other than the published ones are a warning, with
    `strict` an error before anything is written. `leave_out`: data sets built in `out` whose test people do not become
    training people here.
    """
    options = options or SourceOptions()
    if dataset == PROCEDURAL:
        if options != SourceOptions() or leave_out:
            raise DatasetError("the procedural benchmark takes no options of a raw data set: leave them out")
        _build_procedural(out, workers, overwrite)
        return
    source = choice.choose(dataset, options)
    if raw is None and options.table is not None:
        raw = str(Path(options.table).parent)
    if raw is None:
        if dataset == choice.DATALIST:
            raise DatasetError("--dataset datalist needs --raw: the folder in which the lists' paths begin")
        raise DatasetError(f"{dataset} is built from its official files: give their folder with --raw")
    scan = source.scan(Path(raw))
    table, differences = count_table(scan.found, source.expected)
    print(f"{dataset} in {raw}\n{table}")
    if differences:
        message = f"{raw} is not the published {dataset}: {'; '.join(differences)}"
        if strict:
            raise DatasetError(f"{message}. Get the data set again, or build without --strict.")
        logging.warning("%s. Figures from it do not compare with published ones.", message)
    left_out: dict[str, Any] = {}
    if leave_out:
        tested = [open_dataset(out, name) for name in leave_out]
        scan, left_out = tested_people.leave_out(scan, source.name, tested)
    manifest = write_dataset(
        out,
        name=source.name,
        version=source.version,
        task=source.task,
        namespace=source.namespace,
        people=scan.people,
        splits=scan.splits,
        load=functools.partial(source.load, Path(raw)),
        source=scan.source,
        workers=workers,
        on_bad_image=on_bad_image,
        overwrite=overwrite,
    )
    _print_built(manifest, out)
    written = {split: {**found, "images": manifest.splits[split]["records"]} for split, found in scan.found.items()}
    # What was left out is no fault of the raw folder, whose counts stand above.
    compared = {split: counts for split, counts in source.expected.items() if split != "train" or not left_out}
    closing, still = count_table(written, compared)
    if compared:
        closing += "\nDIFFERENT from the published counts" if still else "\nas published"
    if left_out:
        tested_in = ", ".join(left_out["tested_in"])
        closing += f"\n{left_out['images']:,} pictures left out of train: {left_out['people']:,} people are tested in "
        closing += tested_in
    print(closing)


def _build_procedural(out: str, workers: int | None, overwrite: bool) -> None:
    from data_pipelines import procedural  # only here: a raw data set needs no renderer

    for manifest in procedural.build(out, workers=workers, overwrite=overwrite):
        _print_built(manifest, out)


def _print_built(manifest: schema.Manifest, out: str) -> None:
    print(f"{manifest.name} {manifest.version}: {Path(out, manifest.name, manifest.version)}")
    for split, value in manifest.splits.items():
        skipped = f", {len(value['skipped'])} left out (do not decode)" if value["skipped"] else ""
        size = sum(shard["bytes"] for shard in value["shards"]) / 2**20
        print(f"  {split}: {value['records']:,} records in {len(value['shards'])} shards, {size:.1f} MiB{skipped}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Builds a data set into shards; a killed build goes on when run again.",
        epilog="Your own pictures: --dataset table --table people.csv --task trad --name mine --out DIR (README).",
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("--raw", help="folder of the raw data set in its official layout (procedural needs none)")
    parser.add_argument("--out", required=True, help="folder the data set goes to: OUT/NAME/VERSION")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument("--strict", action="store_true", help="refuse a raw folder with other counts than published")
    parser.add_argument("--on_bad_image", choices=("error", "skip"), default="error", help="a picture that is damaged")
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
    own.add_argument(
        "--table", metavar="FILE", help="table: .csv with a header, or .jsonl; --raw is its folder unless given"
    )
    for split in ("train", "query", "gallery"):
        own.add_argument(f"--{split}_list", metavar="FILE", help=f"datalist: the list of split {split}, inside --raw")
    own.add_argument("--sentences", metavar="FILE", help="datalist: JSON file of the sentences, inside --raw (li, t2i)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(_parser().parse_args(argv))
    logging.set_verbosity(logging.INFO)
    options = SourceOptions(**{field.name: args.pop(field.name) for field in dataclasses.fields(SourceOptions)})
    try:
        build(args.pop("dataset"), args.pop("raw"), args.pop("out"), options=options, **args)
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
