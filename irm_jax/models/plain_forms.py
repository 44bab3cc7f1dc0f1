"""Switches off the forms and gradients that some products have on a CPU."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_PLAIN = contextvars.ContextVar("plain forms", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Traces products in their plain form on every platform, with JAX's own gradients.

    For exporters that do not know platforms, and to measure what the other forms gain. JAX keeps the trace of a
    function: give it one that was not traced before.
    """
    before = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(before)


def active() -> bool:
    """Whether the trace under way is inside `plain_forms`."""
    return _PLAIN.get()
