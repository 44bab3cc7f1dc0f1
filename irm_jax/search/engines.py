"""Which engine keeps an index, by its address."""

from __future__ import annotations

from typing import Any

from irm_jax.search.store import About, GalleryStore


def open_store(uri: str) -> GalleryStore:
    """Opens an index: a folder, s3:// or gs:// (LanceDB), or milvus://host:port/collection. Raises SearchError."""
    return engine(uri).open(uri)


def create_store(uri: str, about: About) -> GalleryStore:
    """Makes an empty index. Raises SearchError if there is one."""
    return engine(uri).create(uri, about)


def exists(uri: str) -> bool:
    """Whether there is an index."""
    return bool(engine(uri).exists(uri))


def engine(uri: str) -> Any:
    """The class of stores that keeps an index."""
    if uri.startswith("milvus://"):
        from irm_jax.search.milvus import MilvusStore

        return MilvusStore
    from irm_jax.search.lance import LanceStore

    return LanceStore
