"""How a command ends: one message for what its user can cause, no traceback, and a status that launchers act on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from absl import flags

from data_pipelines import STOPPED, end_now
from data_pipelines.errors import RetryError, UserError

MISTAKE = "IRM_JAX_MISTAKE"
"""Environment variable: a file that a command makes before it ends with status 2."""


def run(main: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status.

    0 done; 1 worth another start: a RetryError, or Ctrl-C; 2 something that its user has to change: a UserError.
    """
    interrupted = False

    def interrupt(_: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if _imports(frame):  # an exception would crash the extension modules that are not made for it
            sys.stdout.flush()
            end_now()
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    before, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        return main() or 0
    except (UserError, RetryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return status_of(error)
    except (KeyboardInterrupt, Exception) as error:
        # Extension modules make other errors of a KeyboardInterrupt.
        if not interrupted and not isinstance(error, KeyboardInterrupt):
            raise
        print(STOPPED, file=sys.stderr)
        return RetryError.exit_status
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the interpreter ends
        sys.unraisablehook = before


def _raise_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Sends a Ctrl-C again that came within a finalizer or a callback of the garbage collector, where it is lost."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # From a thread and later: here it would be lost as well.
        again = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def status_of(error: UserError | RetryError) -> int:
    """Returns the exit status for an error, and makes the file IRM_JAX_MISTAKE, where that is set, for a UserError.

    Of several processes the first to end takes the others along, whose statuses may hide its own from a launcher.
    """
    if isinstance(error, UserError) and (file := os.environ.get(MISTAKE)):
        with contextlib.suppress(OSError):
            Path(file).touch()
    return error.exit_status


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The arguments that are no flags, for `absl.app.run(main, flags_parser=parse_flags)`; a mistake is status 2."""
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UserError.exit_status)
