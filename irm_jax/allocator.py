"""Memory for XLA on a CPU: huge pages.

XLA allocates the temporaries of a program each time it runs. glibc maps large blocks anew and unmaps them when they are
freed, so every step faults in the same gigabytes page by page. Huge pages make that 200 times fewer faults, in the same
memory; to keep freed memory as well is a little faster, but doubles the peak (benchmarks/step_speed.py). glibc reads
its tunables only when a process starts.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = "glibc.malloc.hugetlb=1"
_ACCELERATORS = ("libtpu", "jax_plugins")


def runs_on_cpu() -> bool:
    """Whether jax will compute on the CPU, judged without importing it: asked to, or no other backend is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or (not platforms and not any(importlib.util.find_spec(n) for n in _ACCELERATORS))


def restart_with_tunables() -> None:
    """Starts this program again in the same process, with the tunables set. Returns where that would not help.

    Nothing happens for a run on accelerators, without glibc, or when GLIBC_TUNABLES is set already (to anything): that
    is also how the second start knows. Call it before anything else has happened.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc" or not runs_on_cpu():
        return
    os.execve(sys.executable, sys.orig_argv, {**os.environ, VARIABLE: TUNABLES})
