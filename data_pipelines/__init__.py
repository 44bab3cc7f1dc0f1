"""From raw pictures to batches: sources, shards, sampling, augmentation. NumPy only; nothing here imports jax."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

STOPPED = "stopped by Ctrl-C. What is finished is kept: run the same command again to continue"


def end_at_ctrl_c() -> None:
    """Lets Ctrl-C end the program with one line and status 1, where it would print a traceback of imports."""
    import signal

    signal.signal(signal.SIGINT, end_now)


def end_now(*_: object) -> NoReturn:
    """Ends the program at once, as after a kill, but with the line and status of Ctrl-C."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(1)


def _is_a_command() -> bool:
    """Whether this is the first import of `python -m data_pipelines.X`, `python -m irm_jax.X` or the script irm_jax.

    While Python looks for the module, sys.argv begins with "-m".
    """
    first = sys.argv[0] if sys.argv else ""
    if first == "-m":
        return any(word.split(".")[0] in ("data_pipelines", "irm_jax") for word in sys.orig_argv)
    return os.path.basename(first) == "irm_jax"


if _is_a_command():
    end_at_ctrl_c()
