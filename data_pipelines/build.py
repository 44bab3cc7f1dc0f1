"""Builds a data set into shards: python -m data_pipelines.build --dataset market1501 --raw DIR --out DIR.

Prints found against expected counts before the build. A killed build goes on where it stopped when run again.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from data_pipelines import schema, shards, sources
from data_pipelines.shards import DatasetError

PROCEDURAL = "procedural"
DATASETS = (PROCEDURAL, *sources.NAMES)


def count_table(
    found: Mapping[str, Mapping[str, int]], expected: Mapping[str, Mapping[str, int]]
) -> tuple[str, list[str]]:
    """Returns the table of counts as text, and what differs, one line each (empty: all as published)."""
    rows = [("split", "what", "found", "expected", "")]
    differences = []
    for split, counts in expected.items():
        for what, wanted in counts.items():
            have = found.get(split, {}).get(what, 0)
            rows.append((split, what, f"{have:,}", f"{wanted:,}", "" if have == wanted else "differs"))
            if have != wanted:
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
    workers: int | None = None,
    strict: bool = False,
    on_bad_image: shards.OnBadImage = "error",
    overwrite: bool = False,
) -> None:
    """Builds one raw data set (a name in `sources.NAMES`) or the procedural benchmark's six, and prints what was found.

    Raises DatasetError, cause and cure in the message. Counts other than the published ones are a warning, with
    `strict` an error before anything is written.
    """
    if dataset == PROCEDURAL:
        _build_procedural(out, workers, overwrite)
        return
    if raw is None:
        raise DatasetError(f"{dataset} is built from its official files: give their folder with --raw")
    source = sources.get_source(dataset)
    scan = source.scan(Path(raw))
    table, differences = count_table(scan.found, source.expected)
    print(f"{dataset} in {raw}\n{table}")
    if differences:
        message = f"{raw} is not the published {dataset}: {'; '.join(differences)}"
        if strict:
            raise DatasetError(f"{message}. Get the data set again, or build without --strict.")
        logging.warning("%s. Figures from it do not compare with published ones.", message)
    manifest = shards.write_dataset(
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Builds a data set into shards; a killed build goes on when run again."
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS, help="what to build")
    parser.add_argument("--raw", help="folder of the raw data set in its official layout (procedural needs none)")
    parser.add_argument("--out", required=True, help="folder the data set goes to: OUT/NAME/VERSION")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument("--strict", action="store_true", help="refuse a raw folder with other counts than published")
    parser.add_argument("--on_bad_image", choices=("error", "skip"), default="error", help="a picture that is damaged")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished data set of the same version")
    args = vars(parser.parse_args(argv))
    logging.set_verbosity(logging.INFO)
    try:
        build(args.pop("dataset"), args.pop("raw"), args.pop("out"), **args)
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
