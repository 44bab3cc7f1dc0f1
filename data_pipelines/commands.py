"""How a command ends: one message for what its user can cause, no traceback, and a status that launchers act on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
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

    0 done; 1 worth another start: a RetryError, Ctrl-C, or a reader of the output that went away (`| head`); 2
    something that its user has to change: a UserError, or an output that cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names need more characters than some locales have
    interrupted = False

    def interrupt(_: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if _imports(frame):  # an exception would crash the extension modules that are not made for it
            with contextlib.suppress(OSError):
                _flush()
            end_now()
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    before, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        try:
            status = main() or 0
        except SystemExit:
            _flush()
            raise
        _flush()
        return status
    except (UserError, RetryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return status_of(error)
    except (KeyboardInterrupt, Exception) as error:
        # Extension modules make other errors of a KeyboardInterrupt.
        if not interrupted and not isinstance(error, KeyboardInterrupt):
            if without := _status_without_output(error):
                return without
            raise
        print(STOPPED, file=sys.stderr)
        return RetryError.exit_status
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the interpreter ends
        sys.unraisablehook = before


def _flush() -> None:
    if sys.stdout is not None:  # None: closed by the shell
        sys.stdout.flush()


def _status_without_output(error: Exception) -> int | None:
    """Returns the status where the output or another file has no room, or nobody reads the output; else None."""
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        status = RetryError.exit_status
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = error.filename or "the output, or a file,"
        print(f"error: {what} cannot be written ({error.strerror}): free space, or send it elsewhere", file=sys.stderr)
        status = status_of(UserError())
    else:
        return None
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries again at its end
    return status


def _nobody_reads() -> bool:
    """Whether the output is a pipe whose reader has ended."""
    poll = select.poll()
    with contextlib.suppress(OSError, AttributeError, ValueError):
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


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
