"""Errors of checkpoints: what is raised for a failure of orbax, and how its own messages are kept out of the log."""

from __future__ import annotations

import errno
import logging as python_logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging

from irm_jax.errors import RetryError, UserError

_LOST = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "Connection reset", "Temporary failure in name resolution")
"""How tensorstore and storage clients name a service that does not answer, in the texts of their errors."""


class CheckpointError(UserError):
    """A checkpoint cannot be saved, found or used; the message names the directory, the cause and the cure."""


class StorageLost(RetryError):
    """The storage of checkpoints does not answer; complete checkpoints are untouched, and another start may succeed."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk or quota caused the error: tensorstore raises a ValueError with the system's text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    texts = tuple(map(os.strerror, full))
    return any(
        (isinstance(cause, OSError) and cause.errno in full) or any(text in str(cause) for text in texts)
        for cause in _causes(error)
    )


def is_storage_lost(error: BaseException) -> bool:
    """Whether a storage service that does not answer caused the error."""
    return any(
        isinstance(cause, ConnectionError | TimeoutError) or any(text in str(cause) for text in _LOST)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The type and the first line of an error, of at most 300 characters."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 300 else text[:297] + "..."


class _OrbaxFilter(python_logging.Filter):
    """Keeps warnings and errors of orbax's log, without tracebacks: every failure is raised as well."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        if _is_orbax(record.pathname):
            record.exc_info = record.exc_text = None
            return record.levelno >= python_logging.WARNING
        return True


_ORBAX_FILTER = _OrbaxFilter()


def quieten_orbax() -> None:
    """Keeps the message of a failed save or restore readable; process-wide, harmless to repeat.

    After a failure orbax abandons its other reads and writes. Each of them would print a traceback, when it reports to
    an event loop that is closed or when its coroutine is collected.
    """
    logging.get_absl_logger().addFilter(_ORBAX_FILTER)
    previous = sys.unraisablehook
    if getattr(previous, "knows_orbax", False):
        return

    def hook(unraisable: Any) -> None:
        error, code = unraisable.exc_value, getattr(unraisable.object, "cr_code", None)
        closed_loop = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not closed_loop and not (code is not None and _is_orbax(code.co_filename)):
            previous(unraisable)

    hook.knows_orbax = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _is_orbax(source_file: str) -> bool:
    return f"{os.sep}orbax{os.sep}" in source_file
