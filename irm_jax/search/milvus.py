"""A gallery store in Milvus, for galleries that outgrow one machine: milvus://HOST:PORT/COLLECTION.

`milvus:///PATH.db/COLLECTION` is Milvus Lite, embedded, for tests. Vectors are float32. What an index says about itself
is in a collection of its own, COLLECTION_about. Milvus has no snapshots: a scan during a change may see a part of it.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from irm_jax.errors import pip_line
from irm_jax.search import filters
from irm_jax.search.filters import KINDS, Filter
from irm_jax.search.store import ID, PICTURE, SPACES, About, GalleryStore, SearchError, StoreLost, vector_column

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs a traceback of each error that it raises
try:
    from pymilvus import DataType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ImportError as error:
    raise SearchError(f"milvus:// needs pymilvus, which is missing here: {pip_line('milvus')}") from error

_ADDRESS = re.compile(r"milvus://(?P<place>.*)/(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_BATCH = 512
"""Rows per request: with vectors and pictures they stay below Milvus's 64 MiB."""
T = TypeVar("T")


class MilvusStore(GalleryStore):
    """A collection, see `GalleryStore`. A version is the number in COLLECTION_about, which each change raises."""

    erases = False

    def __init__(self, uri: str, client: Any, name: str) -> None:
        self.uri, self._client, self._name = uri, client, name
        self.about = About.from_json(self._state()["about"], uri)

    @classmethod
    def open(cls, uri: str) -> MilvusStore:
        client, name = _connect(uri)
        if not _said(uri, client.has_collection, f"{name}_about"):
            raise SearchError(f"there is no search index at {uri}: make one with python -m irm_jax.search build")
        return cls(uri, client, name)

    @classmethod
    def create(cls, uri: str, about: About) -> MilvusStore:
        client, name = _connect(uri)
        if _said(uri, client.has_collection, f"{name}_about"):
            raise SearchError(f"there is an index at {uri} already: choose another name, or add to it")
        _make_gallery(uri, client, name, about)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=16)
        schema.add_field("about", DataType.VARCHAR, max_length=65535)
        schema.add_field("version", DataType.INT64)
        schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # a collection needs a vector
        index = client.prepare_index_params()
        index.add_index("unused", index_type="FLAT", metric_type="IP")
        # Made last: an index without it is none.
        _said(uri, client.create_collection, f"{name}_about", schema=schema, index_params=index)
        _said(uri, client.upsert, f"{name}_about", [_state_row(about.to_json(), 1)])
        return cls(uri, client, name)

    @classmethod
    def exists(cls, uri: str) -> bool:
        client, name = _connect(uri)
        return bool(_said(uri, client.has_collection, f"{name}_about"))

    def version(self) -> int:
        state = self._state()
        self.about = About.from_json(state["about"], self.uri)
        return int(state["version"])

    def count(self) -> int:
        found = _said(self.uri, self._client.query, self._name, filter="", output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def add(self, entries: pa.Table) -> None:
        for start in range(0, len(entries), _BATCH):
            rows = [self._to_row(row) for row in entries.slice(start, _BATCH).to_pylist()]
            _said(self.uri, self._client.upsert, self._name, rows)
        self._changed()

    def remove(self, where: Filter | Sequence[str]) -> int:
        ids = [str(one) for one in where] if isinstance(where, list | tuple) else [
            one for batch in self.scan([ID], where) for one in batch.column(0).to_pylist()  # type: ignore[arg-type]
        ]  # fmt: skip
        for start in range(0, len(ids), _BATCH):
            _said(self.uri, self._client.delete, self._name, ids=ids[start : start + _BATCH])
        if ids:
            self._changed()
        return len(ids)

    def scan(self, columns: Sequence[str], where: Filter | None = None) -> Iterator[pa.RecordBatch]:
        self.version()
        schema = pa.schema([self.about.schema().field(name) for name in columns])
        rows = _said(
            self.uri, self._client.query_iterator, self._name, batch_size=_BATCH, output_fields=list(columns),
            filter="" if where is None else filters.to_milvus(where),
        )  # fmt: skip
        try:
            while batch := _said(self.uri, rows.next):
                yield pa.RecordBatch.from_arrays([_column(batch, field) for field in schema], schema=schema)
        finally:
            rows.close()

    def search(self, space: str, vector: np.ndarray, where: Filter | None, top: int) -> tuple[list[str], np.ndarray]:
        self.version()
        found = _said(
            self.uri, self._client.search, self._name, data=[np.asarray(vector, np.float32).tolist()],
            anns_field=vector_column(space), limit=top, filter="" if where is None else filters.to_milvus(where),
        )[0]  # fmt: skip
        return [str(hit["id"] if "id" in hit else hit[ID]) for hit in found], np.array(
            [hit["distance"] for hit in found], np.float32
        )

    def pictures(self, ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for start in range(0, len(ids), _BATCH):
            rows = _said(self.uri, self._client.get, self._name, ids=list(ids[start : start + _BATCH]),
                         output_fields=[ID, PICTURE])  # fmt: skip
            found |= {row[ID]: base64.b64decode(row[PICTURE] or "") for row in rows}
        return found

    def compact(self) -> None:
        _said(self.uri, self._client.flush, self._name)
        _said(self.uri, self._client.compact, self._name)

    def sizes(self) -> dict[str, Any]:
        return {"engine": f"Milvus {_said(self.uri, self._client.get_server_version)}", "version": self.version()}

    def replace(self, about: About, entries: Iterator[pa.RecordBatch]) -> None:
        """Not in one step: entries are kept beside the collection until all are there, then the names change."""
        beside = f"{self._name}_new"
        if _said(self.uri, self._client.has_collection, beside):
            _said(self.uri, self._client.drop_collection, beside)
        _make_gallery(self.uri, self._client, beside, about)
        for batch in entries:
            _said(self.uri, self._client.upsert, beside, [self._to_row(row) for row in batch.to_pylist()])
        _said(self.uri, self._client.flush, beside)
        _said(self.uri, self._client.drop_collection, self._name)
        _said(self.uri, self._client.rename_collection, beside, self._name)
        _said(self.uri, self._client.load_collection, self._name)
        self._changed(about)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """None: entries are written by id, so that two writers of one picture write one entry."""
        return contextlib.nullcontext()

    def _state(self) -> dict[str, Any]:
        found = _said(
            self.uri, self._client.get, f"{self._name}_about", ids=["about"], output_fields=["about", "version"]
        )  # fmt: skip
        if not found:
            raise SearchError(f"{self.uri} is no search index, or an interrupted one: drop it and build it anew")
        return dict(found[0])

    def _changed(self, about: About | None = None) -> None:
        version = self.version()  # which reads `about` as well
        self.about = about or self.about
        _said(self.uri, self._client.upsert, f"{self._name}_about", [_state_row(self.about.to_json(), version + 1)])

    def _to_row(self, entry: dict[str, Any]) -> dict[str, Any]:
        row = dict(entry)
        row[PICTURE] = base64.b64encode(row[PICTURE] or b"").decode()
        for name, kind in self.about.columns.items():
            if kind == "time" and row[name] is not None:
                row[name] = int(pa.scalar(row[name], KINDS["time"]).value)
        return row


def _make_gallery(uri: str, client: Any, name: str, about: About) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(ID, DataType.VARCHAR, is_primary=True, max_length=64)
    kinds = {"text": DataType.VARCHAR, "integer": DataType.INT64, "number": DataType.DOUBLE,
             "boolean": DataType.BOOL, "time": DataType.INT64}  # fmt: skip
    for column, kind in about.columns.items():
        more = {"max_length": 4096} if kind == "text" else {}
        schema.add_field(column, kinds[kind], nullable=True, **more)
    schema.add_field(PICTURE, DataType.VARCHAR, max_length=65535)
    index = client.prepare_index_params()
    for space in SPACES:
        schema.add_field(vector_column(space), DataType.FLOAT_VECTOR, dim=about.widths[space])
        index.add_index(vector_column(space), index_type="FLAT", metric_type="IP")
    _said(uri, client.create_collection, name, schema=schema, index_params=index, consistency_level="Strong")


def _state_row(about: str, version: int) -> dict[str, Any]:
    return {"key": "about", "about": about, "version": version, "unused": [0.0, 0.0]}


def _column(rows: Sequence[dict[str, Any]], field: pa.Field) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    if field.name == PICTURE:
        return pa.array([base64.b64decode(value or "") for value in values], field.type)
    if pa.types.is_fixed_size_list(field.type):
        flat = np.asarray(values, np.float32).astype(np.float16).ravel()
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), field.type.list_size)
    if field.type == KINDS["time"]:
        return pa.array(values, pa.int64()).cast(field.type)
    return pa.array(values, field.type)


def _connect(uri: str) -> tuple[Any, str]:
    found = _ADDRESS.fullmatch(uri)
    if found is None:
        raise SearchError(f"{uri!r} is no address of a collection: write milvus://HOST:PORT/COLLECTION")
    place = found["place"]
    return _said(uri, MilvusClient, place if place.startswith("/") else f"http://{place}"), found["name"]


def _said(uri: str, call: Callable[..., T], *given: Any, **named: Any) -> T:
    """Calls the engine; its errors become one message."""
    try:
        return call(*given, **named)
    except MilvusException as error:
        text = str(getattr(error, "message", error)).split("\n")[0][:300]
        if re.search(r"connect|timeout|timed out|unavailable", text, re.IGNORECASE):
            raise StoreLost(f"{uri} does not answer ({text}): is the server up? Start again then") from error
        raise SearchError(f"{uri}: {text}") from error
