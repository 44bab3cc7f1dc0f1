"""Memory for XLA on a CPU: keep freed pages instead of handing them back after every step.

XLA allocates the temporaries of a program each time it runs. glibc maps large blocks anew and unmaps them when they are
freed, so every step faults in the same hundreds of megabytes page by page, zeroed by the kernel: a tenth to a third of
the time of a training step (benchmarks/step_speed.py). With one heap that never shrinks the pages stay.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_ACCELERATORS = ("libtpu", "jax_plugins")


def runs_on_cpu() -> bool:
    """Whether jax will compute on the CPU, judged without importing it: asked to, or no other backend is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or (not platforms and not any(importlib.util.find_spec(n) for n in _ACCELERATORS))


def keep_freed_memory() -> bool:
    """Sets glibc's malloc so; returns whether it took. Call it before numpy, cv2 or jax are imported: with the first
    allocation of a second thread the number of heaps is settled.

    Costs: memory once used stays with the process. Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))  # -1: never
    return all([mallopt(name, value) for name, value in settings])
