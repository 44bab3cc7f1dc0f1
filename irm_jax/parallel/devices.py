"""Devices as a user meets them: memory that ran out or was used, a GPU that JAX does not see, kept programs."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import words
from irm_jax.errors import UserError, pip_line

_EXHAUSTED = "RESOURCE_EXHAUSTED"
"""How XLA begins the message of an allocation that failed, on every kind of device."""


class DeviceMemoryError(UserError):
    """The devices' memory does not suffice; the message names what was computed and the keys to lower."""


@contextlib.contextmanager
def memory_named(what: str, cure: str) -> Iterator[None]:
    """Raises DeviceMemoryError for an allocation that fails in the block: "no memory for WHAT ... CURE"."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        wanted = re.search(r"allocat\w+ ([\d.]+ ?[KMGT]?i?B|\d+ bytes)|Used ([\d.]+[KMGT] of [\d.]+[KMGT])", str(error))
        device = jax.local_devices()[0]
        asked = f" ({_readable(wanted[1] or wanted[2])} were asked for)" if wanted else ""
        raise DeviceMemoryError(
            f"the memory of the devices ({jax.local_device_count()} x {device.device_kind}) does not suffice for "
            f"{what}{asked}: {cure}"
        ) from error


def _readable(text: str) -> str:
    count = re.fullmatch(r"(\d+) bytes", text)
    return words.size(int(count[1])) if count else text


def enable_compilation_cache(config: ConfigDict) -> None:
    """Keeps compiled programs in the configured folder. JAX's own JAX_COMPILATION_CACHE_DIR, where set, decides."""
    if config.compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = epath.Path(config.compilation_cache).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logging.warning("config.compilation_cache: %s; compiled programs are not kept", error)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # an evaluation has dozens of small ones


def warn_of_unseen_gpu() -> None:
    """Warns in one line if this machine has an NVIDIA GPU and JAX computes on the CPU without being asked to."""
    seen = next((sign for sign in _signs_of_gpu() if sign), None)
    if seen and not os.environ.get("JAX_PLATFORMS") and jax.default_backend() == "cpu":
        logging.warning(
            "this machine has an NVIDIA GPU (%s), but JAX does not see it and computes on the CPU: %s installs JAX for "
            "it, and JAX_PLATFORMS=cpu says that the CPU is meant",
            seen, pip_line("gpu"),
        )  # fmt: skip


def _signs_of_gpu() -> Iterator[str | None]:
    yield "/dev/nvidia0" if Path("/dev/nvidia0").exists() else None
    yield shutil.which("nvidia-smi")


def peak_memory() -> tuple[int, int | None]:
    """Returns the most memory that was in use so far, in bytes, and how much there is (None: unknown).

    Of the fullest device of this process; of this process itself where devices do not count, as on a CPU.
    """
    counted = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if fullest := max(counted, key=lambda stats: stats.get("peak_bytes_in_use", 0), default=None):
        return fullest.get("peak_bytes_in_use", 0), fullest.get("bytes_limit")
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        return used, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return used, None
