"""Some products have a form of their own on a CPU and a gradient of their own; here is how to do without."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_ASKED = contextvars.ContextVar("plain forms asked for", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """What is traced in it has the plain form on every platform, and JAX's gradients: for exporters that know no
    platforms, and to measure what the others are worth.

    JAX keeps a function's trace: give it one that was not traced before.
    """
    before = _ASKED.set(True)
    try:
        yield
    finally:
        _ASKED.reset(before)


def asked() -> bool:
    """Whether the trace under way is in `plain_forms`."""
    return _ASKED.get()
