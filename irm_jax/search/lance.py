"""A gallery store in LanceDB: one columnar table with versions, in a local folder, on s3:// or gs://.

`INDEX/gallery.lance` is the table; `INDEX/part-*.lance` are entries of several processes, or of a rebuild, that are not
committed yet. Every change of a table is one new version, whose manifest appears in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from etils import epath

from data_pipelines import files, storage
from irm_jax.errors import pip_line
from irm_jax.search.filters import Filter, to_sql
from irm_jax.search.store import (
    ID,
    PICTURE,
    SPACES,
    About,
    GalleryStore,
    Part,
    SearchError,
    StoreLost,
    vector_column,
)

for _name in ("RUST_LOG", "LANCE_LOG"):
    os.environ.setdefault(_name, "error")  # it warns of every table that is made
try:
    import lancedb
except ImportError as error:
    raise SearchError(f"search needs LanceDB, which is missing here: {pip_line('search')}") from error

GALLERY, PART = "gallery", "part-"
METADATA = b"irm_jax.search"
IDS_AT_ONCE = 500
LEAST = 256
"""Vectors that Lance wants for each part of an approximate index."""
T = TypeVar("T")


class LanceStore(GalleryStore):
    """A table of a LanceDB database, see `GalleryStore`."""

    erases = True

    def __init__(self, uri: str, database: Any, table: Any) -> None:
        self.uri, self._database, self._table = uri, database, table
        self._read_about()

    def _read_about(self) -> None:
        metadata = self._table.schema.metadata or {}
        self.about = About.from_json(metadata.get(METADATA, b"null"), self.uri)

    @classmethod
    def open(cls, uri: str) -> LanceStore:
        found = _gallery(uri)
        if found is None:
            raise SearchError(
                f"there is no search index at {uri}: make one, python -m irm_jax.search build {uri} --model RUN "
                "--images FOLDER"
            )
        return cls(uri, *found)

    @classmethod
    def create(cls, uri: str, about: About) -> LanceStore:
        if cls.exists(uri):
            raise SearchError(f"there is an index at {uri} already: choose another place, or add to it")
        database = connect(uri)
        table = _said(uri, database.create_table, GALLERY, schema=_stored(about))
        return cls(uri, database, table)

    @classmethod
    def exists(cls, uri: str) -> bool:
        return _gallery(uri) is not None

    def version(self) -> int:
        self._latest()
        return int(self._table.version)

    def count(self) -> int:
        self._latest()
        return int(_said(self.uri, self._table.count_rows))

    def add(self, entries: pa.Table) -> None:
        self._latest()
        _said(self.uri, lambda: self._table.add(entries.cast(self.about.schema())))

    def remove(self, where: Filter | Sequence[str]) -> int:
        self._latest()
        removed = 0
        for table in [self._table, *self._open_parts().values()]:
            for text in _conditions(where):
                removed += int(_said(self.uri, table.delete, text).num_deleted_rows)
        return removed

    def scan(self, columns: Sequence[str], where: Filter | None = None) -> Iterator[pa.RecordBatch]:
        self._latest()
        yield from self._scan(self._table, columns, where)

    def _scan(self, table: Any, columns: Sequence[str], where: Filter | None = None) -> Iterator[pa.RecordBatch]:
        query = table.search().select(list(columns))
        if where is not None:
            query = query.where(to_sql(where))
        reader = _said(self.uri, query.to_batches)
        while (batch := _said(self.uri, next, reader, None)) is not None:
            yield batch.select(list(columns))

    def search(self, space: str, vector: np.ndarray, where: Filter | None, top: int) -> tuple[list[str], np.ndarray]:
        self._latest()
        query = self._table.search(np.asarray(vector, np.float32), vector_column_name=vector_column(space))
        query = query.distance_type("dot").select([ID, "_distance"]).limit(top).refine_factor(10).nprobes(20)
        if where is not None:
            query = query.where(to_sql(where), prefilter=True)
        found = _said(self.uri, query.to_arrow)
        # Lance's dot distance is one minus the product.
        return found[ID].to_pylist(), 1 - np.asarray(found["_distance"].to_numpy(), np.float32)

    def pictures(self, ids: Sequence[str]) -> dict[str, bytes]:
        self._latest()
        found: dict[str, bytes] = {}
        for text in _conditions(ids):
            query = self._table.search().where(text).select([ID, PICTURE]).limit(IDS_AT_ONCE)
            rows = _said(self.uri, query.to_arrow)
            found |= dict(zip(rows[ID].to_pylist(), rows[PICTURE].to_pylist(), strict=True))
        return found

    def compact(self) -> None:
        """Joins fragments and removes every version but the newest, with the files that only those had.

        The caller holds the `lock`: files that no version names are of killed processes then, and go as well.
        """
        self._latest()
        if self._deleted(self._table):
            # Lance leaves the bytes of a few removed rows among many others: all are written again without them.
            indexed = bool(self._table.list_indices())
            self.replace(self.about, self._scan(self._table, self.about.schema().names))
            if indexed:
                self.make_index()
        readable = self._open_parts()
        self._drop(name for name in self._parts() if name not in readable)
        for name, part in readable.items():
            if self._deleted(part):
                rows = pa.Table.from_batches(list(self._scan(part, part.schema.names)), schema=part.schema)
                readable[name] = _said(self.uri, self._database.create_table, name, data=rows, mode="overwrite")
        for table in [self._table, *readable.values()]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that readers of older versions fail: they look up the newest again
                _said(self.uri, table.optimize, cleanup_older_than=timedelta(0), delete_unverified=True)
                _said(self.uri, table.optimize, cleanup_older_than=timedelta(0), delete_unverified=True)

    def _deleted(self, table: Any) -> int:
        """Removed rows whose bytes the newest version still has."""
        return int(table.list_versions()[-1]["metadata"].get("total_deletion_file_rows", "1"))

    def sizes(self) -> dict[str, Any]:
        self._latest()
        waiting = sum(int(part.count_rows()) for part in self._open_parts().values())
        stats = _said(self.uri, self._table.stats)
        total = stats["total_bytes"] if isinstance(stats, dict) else stats.total_bytes
        return {
            "engine": f"LanceDB {lancedb.__version__}",
            "version": int(self._table.version),
            "versions kept": len(self._table.list_versions()),
            "bytes": int(total),
            "entries of unfinished builds": waiting,
            "approximate index": ", ".join(sorted(index.name for index in self._table.list_indices())) or "none",
        }

    def replace(self, about: About, entries: Iterator[pa.RecordBatch]) -> None:
        schema = _stored(about)
        cast = (pa.Table.from_batches([batch]).cast(schema).combine_chunks().to_batches() for batch in entries)
        rows = pa.RecordBatchReader.from_batches(schema, (batch for batches in cast for batch in batches))
        made = _said(
            self.uri, lambda: self._database.create_table(GALLERY, data=rows, schema=schema, mode="overwrite")
        )  # fmt: skip
        self._table = made
        self._read_about()

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return files.lock(epath.Path(self.uri) if storage.is_remote(self.uri) else Path(self.uri))

    def part(self, name: str) -> Part:
        return _LancePart(self, f"{PART}{name}")

    def commit_parts(self) -> None:
        self._latest()
        parts = self._open_parts()
        known = self._ids(self._table) if parts else set()
        schema = self.about.schema()

        def new_entries() -> Iterator[pa.RecordBatch]:
            for part in parts.values():
                for batch in self._scan(part, schema.names):
                    fresh = [i for i, one in enumerate(batch.column(0).to_pylist()) if one not in known]
                    known.update(batch.column(0).to_pylist())
                    if fresh:
                        rows = pa.Table.from_batches([batch]).take(pa.array(fresh)).cast(schema)
                        yield from rows.combine_chunks().to_batches()

        if any(part.count_rows() for part in parts.values()):
            _said(self.uri, self._table.add, pa.RecordBatchReader.from_batches(schema, new_entries()))
        self._drop(self._parts())

    def _drop(self, names: Iterable[str]) -> None:
        """Removes parts, also those that were half removed when a process was killed."""
        for name in names:
            try:
                _said(self.uri, self._database.drop_table, name)
            except SearchError:
                folder = epath.Path(self.uri) / f"{name}.lance"
                if folder.exists():
                    folder.rmtree()

    def _open_parts(self) -> dict[str, Any]:
        """The parts of this index's model that can be read. One that cannot was half removed when its process was
        killed: its entries are in the gallery, and if not they are embedded again."""
        found = {}
        for name in self._parts():
            try:
                table = _said(self.uri, self._database.open_table, name)
                self._ids(table)  # every file of the part has ids
                about = About.from_json((table.schema.metadata or {}).get(METADATA, b"null"), name)
            except SearchError:
                continue
            if (about.fingerprint, about.columns) == (self.about.fingerprint, self.about.columns):
                found[name] = table
        return found

    def _ids(self, table: Any) -> set[str]:
        return {one for batch in self._scan(table, [ID]) for one in batch.column(0).to_pylist()}

    def make_index(self) -> None:
        from lancedb.index import IvfPq

        self._latest()
        rows = self.count()
        if rows < LEAST:
            raise SearchError(
                f"{self.uri} has {rows} entries; an approximate index needs {LEAST}, and is of use for millions"
            )
        for space in SPACES:
            width = self.about.widths[space]
            pieces = next(n for n in (width // 8, width // 4, width // 2, width) if n and width % n == 0)
            parts = max(1, min(round(rows**0.5 / 4), rows // LEAST))
            config = IvfPq(distance_type="dot", num_partitions=parts, num_sub_vectors=pieces)
            name = vector_column(space)
            _said(self.uri, self._table.create_index, name, config=config, replace=True)

    def _latest(self) -> None:
        _said(self.uri, self._table.checkout_latest)
        self._read_about()  # another process may have embedded the index anew

    def _parts(self) -> list[str]:
        return [name for name in _tables(self.uri, self._database) if name.startswith(PART)]


class _LancePart(Part):
    """A table beside the gallery."""

    def __init__(self, store: LanceStore, name: str) -> None:
        self._store, self._name = store, name
        self._table: Any = store._open_parts().get(name)
        if self._table is None:
            store._drop([name] if name in store._parts() else [])  # half removed, or of another model
            self._table = _said(store.uri, store._database.create_table, name, schema=_stored(store.about))

    def ids(self) -> set[str]:
        found: set[str] = set()
        for table in self._store._open_parts().values():
            found |= self._store._ids(table)
        return found

    def add(self, entries: pa.Table) -> None:
        _said(self._store.uri, lambda: self._table.add(entries.cast(self._store.about.schema())))


def connect(uri: str) -> Any:
    """Opens the database; the credentials of object storage come from the environment, as for its other tools."""
    options = {}
    if uri.startswith("s3://") and (endpoint := os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")):
        options = {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
    if uri.startswith("gs://") and (endpoint := os.environ.get("STORAGE_EMULATOR_HOST")):
        nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        key = {"gcs_base_url": f"http://{endpoint.split('://')[-1]}", "disable_oauth": True, **nobody}
        options = {"google_service_account_key": json.dumps(key), "allow_http": "true"}
    return _said(uri, lancedb.connect, uri, storage_options=options or None)


def _gallery(uri: str) -> tuple[Any, Any] | None:
    """The database and its gallery; None if there is none, or a process was killed before its first version."""
    if not storage.is_remote(uri) and not Path(uri).is_dir():
        return None
    database = connect(uri)
    try:
        return database, _said(uri, database.open_table, GALLERY)
    except SearchError as error:
        if str(error.__cause__) == f"Table '{GALLERY}' was not found":
            return None
        raise


def _tables(uri: str, database: Any) -> list[str]:
    found: list[str] = []
    token = None
    while True:
        page = _said(uri, database.list_tables, page_token=token)
        found += page.tables
        token = page.page_token
        if not token:
            return found


def _stored(about: About) -> pa.Schema:
    return about.schema().with_metadata({METADATA: about.to_json().encode()})


def _conditions(where: Filter | Sequence[str]) -> Iterator[str]:
    """The filter, or ids in groups, in Lance's dialect."""
    if not isinstance(where, (list, tuple)):
        yield to_sql(where)  # type: ignore[arg-type]
        return
    for start in range(0, len(where), IDS_AT_ONCE):
        group = [one for one in where[start : start + IDS_AT_ONCE] if re.fullmatch(r"[0-9a-f]+", one)]
        if group:
            yield f"`{ID}` IN (" + ", ".join(f"'{one}'" for one in group) + ")"


def _said(uri: str, call: Callable[..., T], *given: Any, **named: Any) -> T:
    """Calls the engine; its errors, which are of several plain types, become one message."""
    try:
        return call(*given, **named)
    except (SearchError, StoreLost):
        raise
    except StopIteration:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        text = re.sub(r",? /\S*\.rs:\d+:\d+", "", str(error).strip()).split("\n")[0][:300]
        if re.search(r"timed? ?out|connect|too many concurrent|concurrent transaction|503|500", text, re.IGNORECASE):
            raise StoreLost(f"{uri}: {text}; start again") from error
        raise SearchError(f"{uri} cannot be read or written ({text}): correct the path, or build it anew") from error
