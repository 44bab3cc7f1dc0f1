"""Data that all workers of a test session share, and the order in which workers take files of tests."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

DURATIONS = Path(__file__).with_name("durations.txt")


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Returns the folder `name` of this test session; the first worker that asks builds it, the others wait.

    The folder is shared by all workers of pytest-xdist: a test that changes it works on a copy.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, complete = root / name, root / f"{name}.complete"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a build that failed
            folder.mkdir()
            build(folder)
            complete.touch()
    return folder


def read_durations() -> dict[str, float]:
    """Returns the seconds per file of tests, as the last `pytest --keep-durations` measured them."""
    rows = (line.split() for line in DURATIONS.read_text().splitlines() if not line.startswith("#"))
    return {path: float(seconds) for seconds, path in rows}


def write_durations(seconds: dict[str, float]) -> None:
    """Keeps the seconds per file of tests, longest first."""
    lines = ["# Seconds per file of tests, made by pytest --keep-durations: workers start the longest first."]
    lines += [f"{value:.0f} {path}" for path, value in sorted(seconds.items(), key=lambda item: (-item[1], item[0]))]
    DURATIONS.write_text("\n".join(lines) + "\n")


def longest_first(items: list[pytest.Item]) -> None:
    """Sorts tests by their file's duration; the order within a file stays. A new file counts as half a minute."""
    known = read_durations()
    items.sort(key=lambda item: -known.get(item.nodeid.partition("::")[0], 30.0))


def seconds_per_file(reports: Iterable[Any]) -> dict[str, float]:
    """Sums the durations of setups, calls and teardowns."""
    seconds: dict[str, float] = {}
    for report in reports:
        if isinstance(report, pytest.TestReport):
            path = report.nodeid.partition("::")[0]
            seconds[path] = seconds.get(path, 0.0) + report.duration
    return seconds


class FilesInOrder(LoadFileScheduling):
    """Gives whole files to workers, in the order of the collection (pytest-xdist would sort by number of tests)."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)
