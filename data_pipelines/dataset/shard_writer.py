"""Writes one shard, the part of a build that a worker writes and a kill leaves whole.

A shard is finished when its part files (`parts/{split}-{shard}.parquet`, then `.json`) are there and the shard still
has the recorded hash; they are written last. A worker holds one record at a time.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from data_pipelines.dataset import index, record_format, schema
from data_pipelines.dataset.folder import PEOPLE, file_sha256, shard_name, writing
from data_pipelines.dataset.index import IndexBuilder
from data_pipelines.errors import DatasetError, ImageError
from data_pipelines.files import write_json
from data_pipelines.images import decode, is_deep

# Pictures do not shrink by a general compressor, and a stored chunk is written four times as fast.
_WRITER_OPTIONS = "group_size:1,uncompressed"
SCRATCH = "scratch"
"""Folder of shards that are being written, outside the one that becomes the data set: TFDS reads every name there."""
WORKING = "working"
"""File that a process holds shared while it writes a shard: the next build waits for the processes of a killed one."""


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to write.

    Attributes:
      work: the building folder.
      people_sha256: of the names of `people.json`.
      name, split, shard, shards: of the data set; number of the shard, and how many the split has.
      first: number in the split of the shard's first record.
      items: descriptors of its records.
      load: makes the Record of a descriptor.
      skip_bad: whether pictures that cannot be read are left out.
      max_pixels: most pixels of a picture, see `images.decode`.
    """

    work: str
    people_sha256: str
    name: str
    split: str
    shard: int
    shards: int
    first: int
    items: Sequence[Any]
    load: Callable[[Any], schema.Record]
    skip_bad: bool
    max_pixels: int

    @property
    def path(self) -> Path:
        return Path(self.work, "data", shard_name(self.name, self.split, self.shard, self.shards))

    @property
    def index_file(self) -> Path:
        return Path(self.work, "parts", f"{self.split}-{self.shard:05d}.parquet")

    @property
    def summary_file(self) -> Path:
        return self.index_file.with_suffix(".json")

    def summary(self) -> dict[str, Any]:
        """Returns {"records", "bytes", "sha256", "skipped", "deep_visible", "deep_infrared"} of a finished shard."""
        return json.loads(self.summary_file.read_bytes())


def is_finished(job: ShardJob) -> bool:
    """Tells whether a shard is finished; one with skipped pictures is so only for a build that skips, too."""
    try:
        summary = job.summary()
        whole = job.index_file.exists() and summary["sha256"] == file_sha256(job.path)
    except (FileNotFoundError, ValueError):
        return False
    return whole and (job.skip_bad or not summary["skipped"])


@functools.lru_cache(maxsize=1)
def _identities(work: str, people_sha256: str) -> dict[str, int]:
    """Returns {person name: identity}, read once per worker and build."""
    return {person: at for at, person in enumerate(json.loads(Path(work, PEOPLE).read_bytes()))}


def write_shard(job: ShardJob) -> int:
    """Writes one shard and then its part files; returns its number of records.

    Raises DatasetError if a picture does not decode (all of the shard's are named) unless the job skips them; whatever
    `load` raises comes through, with a note that names the record.
    """
    with open(Path(job.work, WORKING)) as working:
        fcntl.flock(working, fcntl.LOCK_SH)
        return _write(job)


def _write(job: ShardJob) -> int:
    columns = IndexBuilder(job.shard)
    bad: list[dict[str, str]] = []
    temporary = Path(job.work, SCRATCH, f"{os.getpid()}-{job.path.name}")
    try:
        deep = _fill(job, temporary, columns, bad)
        if bad and not job.skip_bad:
            raise bad_images(job.name, {job.split: bad})
        with writing(temporary):
            _publish(job, temporary, columns, {"skipped": bad, **deep})
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(columns)


def _fill(job: ShardJob, path: Path, columns: IndexBuilder, bad: list[dict[str, str]]) -> dict[str, int]:
    """Writes the job's records to `path`; adds their rows to `columns`, and pictures that cannot be read to `bad`.

    Returns how many pictures have more than 8 bits, by modality.
    """
    deep = {"deep_visible": 0, "deep_infrared": 0}
    identities = _identities(job.work, job.people_sha256)
    with writing(path):
        writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    for number, item in enumerate(job.items, job.first):
        file = getattr(item, "file", repr(item))
        try:
            record = job.load(item)
            file = record.file
            identity = identities.get(record.person)
            if identity is None:
                raise DatasetError(f"person {record.person!r} is not among the people given to write_dataset")
            _check_pictures(record, job.max_pixels)
            data = record_format.serialize(record, identity)
            columns.add(record, identity, data)
        except ImageError as error:
            bad.append({"file": file, "reason": str(error)})
            continue
        except Exception as error:
            error.add_note(f"while building {job.name}, split {job.split}, record {number}: {item!r}")
            raise
        deep["deep_infrared" if record.modality == schema.INFRARED else "deep_visible"] += is_deep(record.image)
        with writing(path):
            writer.write(data)
    with writing(path):
        writer.close()
    return deep


def _publish(job: ShardJob, temporary: Path, columns: IndexBuilder, found: dict[str, Any]) -> None:
    reader = array_record_module.ArrayRecordReader(str(temporary))
    written = reader.num_records()
    reader.close()
    if written != len(columns):
        raise OSError(f"it holds {written} of {len(columns)} records after writing")
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    sha256 = file_sha256(temporary)
    summary = {"records": written, "bytes": temporary.stat().st_size, "sha256": sha256, **found}
    os.replace(temporary, job.path)
    index.save(job.index_file, columns.index())
    write_json(job.summary_file, summary)


def _check_pictures(record: schema.Record, max_pixels: int) -> None:
    """Decodes the record's pictures once, so that training never meets a partial one. Raises ImageError."""
    for what, data in [("", record.image), *[("instruction image: ", image) for image in record.instruction_images]]:
        try:
            decode(data, max_pixels=max_pixels)
        except ImageError as error:
            raise ImageError(f"{what}{error}") from error


def bad_images(name: str, bad: dict[str, list[dict[str, str]]]) -> DatasetError:
    """Returns the error for pictures ({split: [{"file", "reason"}]}) that do not decode."""
    lines = [f"\n  {split}: {item['file']}: {item['reason']}" for split, items in bad.items() for item in items]
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return DatasetError(
        f"{name}: {len(lines)} picture(s) do not decode:{''.join(lines[:20])}{more}\n"
        f"Replace them, or leave them out (--on_bad_image skip). Finished shards are kept."
    )
