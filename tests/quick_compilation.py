"""Quick compilation, for programs that a test runs a few times only, and compilation that reads nothing back."""

import contextlib
import os
from collections.abc import Iterator

import jax
from jax._src import lru_cache
from jax.experimental.compilation_cache.compilation_cache import reset_cache


@contextlib.contextmanager
def few_optimizations() -> Iterator[None]:
    """Compiles faster, to slower programs. Kept programs are told apart by this option, which is part of their key."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Compiles every program anew, for a test of compilation itself: its time, its messages, what it dumps.

    The text, the memory report and the costs of a program that is read back are those of the compiled one.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # jax decides once per process whether it keeps programs
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        reset_cache()


def write_programs_whole() -> None:
    """Makes JAX write a kept program under another name first.

    JAX writes in place: another worker could read half a program, and a process that is killed would leave one behind.
    """

    def put(cache: lru_cache.LRUCache, key: str, value: bytes) -> None:
        path = cache.path / f"{key}-cache"
        if not path.exists():
            part = cache.path / f".{key}.{os.getpid()}"
            part.write_bytes(value)
            part.replace(path)

    lru_cache.LRUCache.put = put
