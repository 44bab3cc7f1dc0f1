"""Lists the pairs of a query and a gallery image that a protocol does not simply call negative, in bounded memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from irm_jax.evaluation.protocols import Protocol
from irm_jax.evaluation.ranking.relations import Columns

PAIRS_AT_ONCE = 1 << 22
"""Pairs looked at together: some 100 MB of intermediate arrays."""
VALUES_AT_ONCE = 1 << 15
"""Pairs whose similarity is computed together, from columns that may be hundreds of features wide."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """N pairs that are not plain negatives, in (row, column) order.

    row: place of the query among the given ones. column: gallery image. person: same identity and not junk (False
    throughout without `RelatedPairs(person=True)`).
    """

    row: Int32[np.ndarray, " N"]
    column: Int32[np.ndarray, " N"]
    positive: Bool[np.ndarray, " N"]
    junk: Bool[np.ndarray, " N"]
    person: Bool[np.ndarray, " N"]

    def padded(
        self, chosen: Bool[np.ndarray, " N"], rows: int
    ) -> tuple[Int32[np.ndarray, "rows most"], Int64[np.ndarray, " M"]]:
        """The columns of the M chosen pairs by row, -1 beyond a row's last; and each chosen pair's place in its row."""
        row = self.row[chosen]
        count = np.bincount(row, minlength=rows)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        table = np.full((rows, int(count.max(initial=0))), -1, np.int32)
        table[row, place] = self.column[chosen]
        return table, place


class _Rows:
    """Columns at some rows, gathered once when a rule reads them; `axis` is inserted for broadcasting."""

    def __init__(self, columns: Columns, rows: np.ndarray | slice, axis: int | None = None) -> None:
        self._columns, self._rows, self._axis = columns, rows, axis
        self._gathered: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._gathered:
            found = self._columns[name][self._rows]
            self._gathered[name] = found if self._axis is None else np.expand_dims(found, self._axis)
        return self._gathered[name]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of each of Q queries: its positives, its junk, and its positives and other images of its person together."""

    positives: Int64[np.ndarray, " Q"]
    junk: Int64[np.ndarray, " Q"]
    ranked: Int64[np.ndarray, " Q"]


class RelatedPairs:
    """The pairs of one protocol over the columns of Q queries and G gallery images.

    Args:
      protocol: the rule.
      query, gallery: its columns; `sizes` is (Q, G).
      person: pairs of one identity are listed as well, whatever the rule says of them.
    """

    def __init__(
        self, protocol: Protocol, query: Columns, gallery: Columns, sizes: tuple[int, int], *, person: bool = False
    ) -> None:
        self.protocol, self.query, self.gallery, self.sizes, self._person = protocol, query, gallery, sizes, person
        self._links = []
        for name in protocol.links:
            column = gallery[name]
            order = np.argsort(column, kind="stable").astype(np.int32)
            ordered = column[order]
            first = np.searchsorted(ordered, query[name], "left")
            self._links.append((order, first, np.searchsorted(ordered, query[name], "right") - first))

    @functools.cached_property
    def counts(self) -> Counts:
        """Positives, junk and ranked images of each query."""
        result = np.zeros((3, self.sizes[0]), np.int64)
        for start, stop in self._chunks(np.arange(self.sizes[0])):
            pairs = self._look(np.arange(start, stop))
            for total, chosen in zip(result, (pairs.positive, pairs.junk, pairs.positive | pairs.person), strict=True):
                total[start:stop] = np.bincount(pairs.row[chosen], minlength=stop - start)
        return Counts(*result)

    def of(self, rows: np.ndarray) -> Pairs:
        """The pairs of the queries i[n]."""
        parts = []
        for start, stop in self._chunks(rows):
            part = self._look(rows[start:stop])
            parts.append(dataclasses.replace(part, row=part.row + np.int32(start)))
        fields = [field.name for field in dataclasses.fields(Pairs)]
        return Pairs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})

    def evaluate(
        self, function: Callable[[np.ndarray, np.ndarray], Any], rows: np.ndarray, pairs: Pairs, chosen: np.ndarray
    ) -> Float64[np.ndarray, " M"]:
        """`function(queries i[m], gallery images i[m])` of the chosen (bool[N]) pairs of the queries `rows`."""
        row, column = rows[pairs.row[chosen]], pairs.column[chosen]
        result = np.zeros(len(row))
        for start in range(0, len(row), VALUES_AT_ONCE):
            part = slice(start, start + VALUES_AT_ONCE)
            result[part] = function(row[part], column[part])
        return result

    def _chunks(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Cuts the rows so that each piece has at most PAIRS_AT_ONCE candidates (or is one row)."""
        if self._links:
            candidates = np.sum([count[rows] for _, _, count in self._links], axis=0)
        else:
            candidates = np.full(len(rows), self.sizes[1])
        end = np.cumsum(candidates)
        start = 0
        while start < len(rows):
            before = end[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(end, before + PAIRS_AT_ONCE, "right")))
            yield start, stop
            start = stop

    def _look(self, rows: np.ndarray) -> Pairs:
        """Applies the rule to the candidates of these queries."""
        row = column = np.empty(0, np.int32)
        if self._links:
            row, column = self._candidates(rows)
            query, gallery = _Rows(self.query, rows[row]), _Rows(self.gallery, column)
        else:
            query, gallery = _Rows(self.query, rows, 1), _Rows(self.gallery, slice(None), 0)
        positive, junk = (np.asarray(mask) for mask in self.protocol.relate(query, gallery))
        same = query["identity"] == gallery["identity"] if self._person else np.zeros_like(junk)
        person = same & ~junk
        listed = positive | junk | person
        if self._links:
            row, column = row[listed], column[listed]
        else:
            shape = (len(rows), self.sizes[1])
            positive, junk, person, listed = (np.broadcast_to(mask, shape) for mask in (positive, junk, person, listed))
            row, column = (index.astype(np.int32) for index in np.nonzero(listed))
        return Pairs(row, column, positive[listed], junk[listed], person[listed])

    def _candidates(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that agree in a linking column, each once, in (row, column) order."""
        parts = []
        for order, first, count in self._links:
            counts = count[rows]
            row = np.repeat(np.arange(len(rows)), counts)
            place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
            parts.append(row * self.sizes[1] + order[np.repeat(first[rows], counts) + place])
        # One link alone is in order already: rows ascend, and the stable sort keeps gallery order within a value.
        pair = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))
        row, column = np.divmod(pair, self.sizes[1])
        return row.astype(np.int32), column.astype(np.int32)
