"""The allocator's settings reach the program, once, and only where they help."""

import os
import platform
import subprocess
import sys

import pytest

from irm_jax import allocator

PROGRAM = """
import os, sys
from irm_jax import allocator
allocator.restart_with_tunables()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def start(**environment):
    clean = {k: v for k, v in os.environ.items() if k not in (allocator.VARIABLE, "JAX_PLATFORMS")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--flag", "a b"],
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    pid, words = out.strip().split(" ", 1)
    assert int(pid) == process.pid  # the same process: signals still reach the run
    return words


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set without glibc")
def test_a_run_on_the_cpu_starts_again_with_the_tunables():
    assert start(JAX_PLATFORMS="cpu") == f"{allocator.TUNABLES} ['--flag', 'a b']"


def test_what_the_user_set_is_kept():
    assert start(JAX_PLATFORMS="cpu", GLIBC_TUNABLES="glibc.malloc.hugetlb=0").startswith("glibc.malloc.hugetlb=0 ")


def test_a_run_on_accelerators_is_left_alone():
    assert start(JAX_PLATFORMS="tpu,cpu").startswith("None ")
