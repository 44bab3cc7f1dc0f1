"""Search: finds a person in one's own pictures by picture, picture and instruction, or sentence (docs/search.md).

    index = irm_jax.search.open("INDEX")
    hits = index.query(image="q.jpg", instruction="wearing a green shirt", where="camera != 'gate'", top=20)

Commands: `python -m irm_jax.search --help`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irm_jax.search.index import Index

__all__ = ["open"]


def open(uri: str | os.PathLike[str], *, model: str | None = None, approximate: bool = False) -> Index:
    """Opens an index, see `Index`. Raises SearchError if there is none, or LanceDB is not installed."""
    from irm_jax.search.index import Index

    return Index(uri, model=model, approximate=approximate)
