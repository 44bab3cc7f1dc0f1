"""Relations between a query and a gallery image, joined by `&`, `|` and `~`: what protocols are made of.

A relation is computed on columns (see `records.Records`) whose leading axes broadcast, so that it serves
[Q,1(,8)] against [1,G(,8)] as well as lists of pairs [N(,8)]; a vector per record lies on axis -1. It uses operators
only, and works on NumPy and JAX arrays alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol


class Columns(Protocol):
    """Arrays by column name: `Records`, or some rows of them."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Relation:
    """A test of pairs: `relation(query, gallery) -> bool[...]`. Relations of one text are equal.

    text: the relation in words.
    columns: what it reads.
    links: every pair for which it holds agrees in one of these columns, so that no other pair has to be tested; ()
      if there are no such columns. `a & b` has the links of `a`; if `a` has none, the links of `b`.
    """

    text: str
    holds: Callable[[Columns, Columns], Any] = dataclasses.field(compare=False)
    columns: frozenset[str] = dataclasses.field(compare=False)
    links: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __call__(self, query: Columns, gallery: Columns) -> Any:
        return self.holds(query, gallery)

    def __and__(self, other: Relation) -> Relation:
        return Relation(
            f"{self.text} and {other.text}", lambda q, g: self(q, g) & other(q, g), self.columns | other.columns,
            self.links or other.links,
        )  # fmt: skip

    def __or__(self, other: Relation) -> Relation:
        links = tuple(dict.fromkeys((*self.links, *other.links))) if self.links and other.links else ()
        return Relation(
            f"({self.text} or {other.text})", lambda q, g: self(q, g) | other(q, g), self.columns | other.columns, links
        )

    def __invert__(self) -> Relation:
        text = f"not ({self.text})" if " and " in self.text else f"not {self.text}"
        return Relation(text, lambda q, g: ~self(q, g), self.columns)


def same(column: str, *, known: bool = False) -> Relation:
    """Equal values of a column; with `known`, unknown (negative) ones are equal to nothing."""

    def holds(q: Columns, g: Columns) -> Any:
        equal = q[column] == g[column]
        return equal & (q[column] >= 0) if known else equal

    return Relation(f"same {column.replace('_', ' ')}", holds, frozenset([column]), (column,))


def camera_numbers(query: int, gallery: int) -> Relation:
    """The query is of one camera and the gallery image of another one, numbered from 0 within their data set."""
    return Relation(
        f"camera {query + 1} against camera {gallery + 1}",
        lambda q, g: (q["camera_number"] == query) & (g["camera_number"] == gallery),
        frozenset(["camera_number"]),
    )


same_identity = same("identity")
same_camera = same("camera", known=True)
same_outfit = dataclasses.replace(same("clothes", known=True), text="same outfit")  # of one person: numbered per person
same_modality = same("modality")
same_source = same("source")
same_file = dataclasses.replace(same("content"), text="same file")
copy_of_query = same_file & Relation(
    "unknown camera", lambda q, g: (q["camera"] < 0) | (g["camera"] < 0), frozenset(["camera"])
)
"""The query's own picture in the gallery, under whatever name. Where both cameras are known, they decide."""
copy_of_another_camera = (
    same_file & same_identity & ~same_camera
    & Relation("known cameras", lambda q, g: (q["camera"] >= 0) & (g["camera"] >= 0), frozenset(["camera"]))
)  # fmt: skip
"""The query's own picture in the gallery, said to be of another camera: a mistake of the data set."""
other_outfit = Relation(
    "another outfit",
    lambda q, g: (q["clothes"] >= 0) & (g["clothes"] >= 0) & (q["clothes"] != g["clothes"]),
    frozenset(["clothes"]),
)
"""Both outfits are known, and differ."""
wears_requested = Relation(
    "the outfit that the instruction asks for",
    lambda q, g: (q["instruction_clothes"] >= 0) & (q["instruction_clothes"] == g["clothes"]),
    frozenset(["instruction_clothes", "clothes"]),
)
wears_named = Relation(
    "every attribute that the instruction names",
    lambda q, g: ((q["instruction_attributes"] < 0) | (q["instruction_attributes"] == g["attributes"])).all(axis=-1),
    frozenset(["instruction_attributes", "attributes"]),
)
