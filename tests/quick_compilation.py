"""Programs that are compiled quickly, for tests that run them a few times only."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache


@contextlib.contextmanager
def few_optimizations() -> Iterator[None]:
    """XLA compiles faster, to slower programs; afterwards nothing is read from the folder of compiled programs."""
    reset_cache()  # jax decides once a process whether it keeps programs
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()
