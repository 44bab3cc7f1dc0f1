"""What a gallery store promises, whichever engine keeps it, and what an index says about itself."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from irm_jax.errors import RetryError, UserError
from irm_jax.search.filters import KINDS, Filter

FORMAT = 1
"""Of `About`; an index of a later format is refused."""
SPACES = ("neutral", "caption")
"""The two embeddings of each picture: under the neutral sentence, and as sentences are compared with it."""
ID, PICTURE = "_id", "_picture"
FIXED = {"path": "text", "camera": "text", "time": "time"}
"""Columns that every index has; the rest are the user's."""


class SearchError(UserError, ValueError):
    """An index cannot be made, read or changed as asked; the message says why and what to do."""


class StoreLost(RetryError, OSError):
    """The store does not answer now; another start may succeed."""


def vector_column(space: str) -> str:
    """Name of the column of a space's vectors."""
    return f"_{space}"


@dataclasses.dataclass(frozen=True)
class About:
    """What an index says about itself. Plain values alone: nothing of an index is executed.

    model, step: the run whose checkpoint embedded the pictures. fingerprint: of its parameters, configuration and
    vocabulary. widths: of the vectors, by space. columns: kind of each column by name. thresholds: see `thresholds`.
    """

    model: str
    step: int
    fingerprint: str
    widths: dict[str, int]
    columns: dict[str, str]
    thresholds: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> About:
        """Raises SearchError naming `where` if it cannot be read."""
        try:
            values = json.loads(text)
            found = cls(**values)
            if found.format != FORMAT:
                raise SearchError(
                    f"{where} has format {found.format}, this version reads {FORMAT}: use the version that wrote it"
                )
            whole = set(found.widths) == set(SPACES) and all(
                isinstance(w, int) and w > 0 for w in found.widths.values()
            )
            known = set(FIXED) <= set(found.columns) and set(found.columns.values()) <= set(KINDS)
            if not (whole and known and isinstance(found.model, str) and isinstance(found.fingerprint, str)):
                raise ValueError("its fields have other types")
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, SearchError):
                raise
            raise SearchError(f"{where} is no search index, or a damaged one ({error}): build it anew") from error
        return found

    def schema(self) -> pa.Schema:
        """The Arrow schema of entries; vectors are float16 of `widths` numbers that bfloat16 holds as well."""
        fields = [pa.field(ID, pa.string(), nullable=False)]
        fields += [pa.field(name, KINDS[kind]) for name, kind in self.columns.items()]
        fields.append(pa.field(PICTURE, pa.binary()))
        fields += [pa.field(vector_column(s), pa.list_(pa.float16(), self.widths[s])) for s in SPACES]
        return pa.schema(fields)


class GalleryStore(abc.ABC):
    """Entries of an index, kept by an engine. Each call sees the newest committed version; an entry is whole or absent.

    `version`, `scan` and `search` read `about` anew, since another process may have replaced it.

    An entry has an id (hash of the picture's file), the columns of `About`, the picture's bytes and a vector of each
    space. What engines promise differently is in docs/search.md.
    """

    uri: str
    about: About
    erases: bool
    """Whether `compact` takes the bytes of removed entries from the disk."""

    @abc.abstractmethod
    def version(self) -> int:
        """A number that changes with every committed change."""

    @abc.abstractmethod
    def count(self) -> int:
        """Number of entries."""

    @abc.abstractmethod
    def add(self, entries: pa.Table) -> None:
        """Adds entries with new ids in one commit."""

    @abc.abstractmethod
    def remove(self, where: Filter | Sequence[str]) -> int:
        """Removes the entries that pass a filter, or have these ids; returns how many. Unfinished parts included."""

    @abc.abstractmethod
    def scan(self, columns: Sequence[str], where: Filter | None = None) -> Iterator[pa.RecordBatch]:
        """Yields some columns of all entries, or of those that pass, from one version, in no particular order."""

    @abc.abstractmethod
    def search(self, space: str, vector: np.ndarray, where: Filter | None, top: int) -> tuple[list[str], np.ndarray]:
        """Ids and inner products of the best entries that pass, by the engine itself; approximate with an index."""

    @abc.abstractmethod
    def pictures(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Picture bytes by id; entries that are gone are left out."""

    @abc.abstractmethod
    def compact(self) -> None:
        """Joins small files, and takes what was removed from the disk where the engine `erases`."""

    @abc.abstractmethod
    def sizes(self) -> dict[str, Any]:
        """What `info` prints of the engine: versions, bytes, indices."""

    @abc.abstractmethod
    def replace(self, about: About, entries: Iterator[pa.RecordBatch]) -> None:
        """Puts other entries in place of all, in one step."""

    @abc.abstractmethod
    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Holds the right to write. Raises RetryError naming the holder if another process has it."""

    def part(self, name: str) -> Part:
        """Where one of several processes gathers its entries, out of sight of readers until `commit_parts`."""
        return Direct(self)

    def commit_parts(self) -> None:  # noqa: B027
        """Makes the entries of all parts visible in one commit, those that are visible already left out."""

    def make_index(self) -> None:
        """Makes the engine's approximate index of both spaces."""
        raise SearchError(f"{self.uri}: this engine's approximate index is made by its own tools")


class Part(abc.ABC):
    """Entries that one process has gathered and committed to a place of its own."""

    @abc.abstractmethod
    def ids(self) -> set[str]:
        """Ids of all parts of unfinished builds."""

    @abc.abstractmethod
    def add(self, entries: pa.Table) -> None:
        """Adds entries in one commit."""


class Direct(Part):
    """Entries go to the store itself, one commit after the other."""

    def __init__(self, store: GalleryStore) -> None:
        self._store = store

    def ids(self) -> set[str]:
        return set()

    def add(self, entries: pa.Table) -> None:
        self._store.add(entries)


def ids_of(store: GalleryStore) -> set[str]:
    """Ids of all entries."""
    found: set[str] = set()
    for batch in store.scan([ID]):
        found.update(batch.column(0).to_pylist())
    return found
