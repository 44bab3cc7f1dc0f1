"""Lists the (query, gallery image) pairs that a protocol does not simply call negative, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from irm_jax.evaluation.protocols import Columns, Protocol

PAIRS_AT_ONCE = 1 << 22
"""Pairs looked at together: some 100 MB of intermediate arrays."""
VALUES_AT_ONCE = 1 << 15
"""Pairs whose similarity is computed together, from columns that may be hundreds of features wide."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """N pairs that are not plain negatives, in (row, column) order; `row` counts within the rows asked for.

    `person`: same identity and not junk (False throughout unless asked for).
    """

    row: np.ndarray  # i32[N]
    column: np.ndarray  # i32[N], gallery index
    positive: np.ndarray  # bool[N]
    junk: np.ndarray  # bool[N]
    person: np.ndarray  # bool[N]

    def padded(self, chosen: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the chosen (bool[N]) pairs, i32[rows, most in a row], -1 beyond; each pair's place in its row."""
        row = self.row[chosen]
        count = np.bincount(row, minlength=rows)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        table = np.full((rows, int(count.max(initial=0))), -1, np.int32)
        table[row, place] = self.column[chosen]
        return table, place


class _Taken(Mapping[str, Any]):
    """Columns at some records, gathered when a rule asks for them; `axis` is inserted for broadcasting."""

    def __init__(self, columns: Columns, records: np.ndarray | slice, axis: int | None = None):
        self._columns, self._records, self._axis = columns, records, axis

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            raise ValueError(f"the rule reads column {name!r}, but given are only {', '.join(self._columns)}")
        taken = self._columns[name][self._records]
        return taken if self._axis is None else np.expand_dims(taken, self._axis)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class RelatedPairs:
    """The relation of one protocol over given columns; with `person`, pairs of one identity are listed as well."""

    def __init__(
        self, protocol: Protocol, query: Columns, gallery: Columns, sizes: tuple[int, int], *, person: bool = False
    ):
        self._protocol, self._person = protocol, person
        self._query = {name: np.asarray(column) for name, column in query.items()}
        self._gallery = {name: np.asarray(column) for name, column in gallery.items()}
        self._sizes = sizes
        for side, columns, size in (("query", self._query, sizes[0]), ("gallery", self._gallery, sizes[1])):
            for name, column in columns.items():
                if len(column) != size:
                    raise ValueError(f"{side} column {name!r} has {len(column)} entries for {size} embeddings")
            for name in (*protocol.linked_by, *(("identity",) if person else ())):
                if name not in columns:
                    raise ValueError(
                        f"protocol {protocol.name} needs the {side} column {name!r}; given are {', '.join(columns)}"
                    )
        self._links = []
        for name in protocol.linked_by:
            order = np.argsort(self._gallery[name], kind="stable").astype(np.int32)
            ordered = self._gallery[name][order]
            first = np.searchsorted(ordered, self._query[name], "left")
            self._links.append((order, first, np.searchsorted(ordered, self._query[name], "right") - first))

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each query: its positives, its junk, and its positives and same-person images together, i64[Q]."""
        result = np.zeros((3, self._sizes[0]), np.int64)
        for start, stop in self._chunks(np.arange(self._sizes[0])):
            pairs = self._look(np.arange(start, stop))
            for total, chosen in zip(result, (pairs.positive, pairs.junk, pairs.positive | pairs.person), strict=True):
                total[start:stop] = np.bincount(pairs.row[chosen], minlength=stop - start)
        return result[0], result[1], result[2]

    def of(self, rows: np.ndarray) -> Pairs:
        """The pairs of these queries."""
        parts = []
        for start, stop in self._chunks(rows):
            part = self._look(rows[start:stop])
            parts.append(dataclasses.replace(part, row=part.row + np.int32(start)))
        fields = [field.name for field in dataclasses.fields(Pairs)]
        return Pairs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})

    def evaluate(
        self, function: Callable[[Columns, Columns], Any], rows: np.ndarray, pairs: Pairs, chosen: np.ndarray
    ) -> np.ndarray:
        """f64[chosen pairs]: `function` of the columns of the chosen (bool[N]) pairs of these queries."""
        row, column = rows[pairs.row[chosen]], pairs.column[chosen]
        result = np.zeros(len(row))
        for start in range(0, len(row), VALUES_AT_ONCE):
            part = slice(start, start + VALUES_AT_ONCE)
            result[part] = function(_Taken(self._query, row[part]), _Taken(self._gallery, column[part]))
        return result

    def _chunks(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Cuts the rows so that each piece has at most PAIRS_AT_ONCE candidates (or is one row)."""
        if self._protocol.linked_by:
            candidates = np.sum([count[rows] for _, _, count in self._links], axis=0)
        else:
            candidates = np.full(len(rows), self._sizes[1])
        end = np.cumsum(candidates)
        start = 0
        while start < len(rows):
            before = end[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(end, before + PAIRS_AT_ONCE, "right")))
            yield start, stop
            start = stop

    def _look(self, rows: np.ndarray) -> Pairs:
        """Applies the rule to the candidates of these queries."""
        if self._protocol.linked_by:
            row, column = self._candidates(rows)
            query, gallery = _Taken(self._query, rows[row]), _Taken(self._gallery, column)
        else:
            query, gallery = _Taken(self._query, rows, 1), _Taken(self._gallery, slice(None), 0)
        positive, junk = (np.asarray(mask) for mask in self._protocol.relate(query, gallery))
        positive = positive & ~junk
        same = query["identity"] == gallery["identity"] if self._person else np.zeros_like(junk)
        person = same & ~junk
        listed = positive | junk | person
        if not self._protocol.linked_by:
            shape = (len(rows), self._sizes[1])
            positive, junk, person, listed = (np.broadcast_to(mask, shape) for mask in (positive, junk, person, listed))
            row, column = (index.astype(np.int32) for index in np.nonzero(listed))
        else:
            row, column = row[listed], column[listed]
        return Pairs(row, column, positive[listed], junk[listed], person[listed])

    def _candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that agree in a linking column, each once, in (row, column) order."""
        parts = []
        for order, first, count in self._links:
            counts = count[rows]
            row = np.repeat(np.arange(len(rows)), counts)
            place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
            parts.append(row * self._sizes[1] + order[np.repeat(first[rows], counts) + place])
        # One link alone is in order already: rows ascend, and the stable sort keeps gallery order within a value.
        pair = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))
        row, column = np.divmod(pair, self._sizes[1])
        return row.astype(np.int32), column.astype(np.int32)
