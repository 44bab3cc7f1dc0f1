"""run.json: how a run was made. A list with one entry per start: config, versions, seed, git revision, devices."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from data_pipelines.files import jsonable, parse_json, write_atomically
from irm_jax.errors import UserError

RUN_FILE = "run.json"
PACKAGES = (
    "irm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy",
    "opencv-python-headless", "tokenizers", "transformers",
)  # fmt: skip
"""Distributions whose version can change a result, by their registry names."""


class RunRecordError(UserError):
    """run.json cannot be read; the message names the file and the cure."""


def run_record(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Describes this start of a run: config, versions, seed, git revision, devices, command line; JSON values."""
    devices = jax.devices()
    return {
        "config": jsonable(config),
        "seed": int(seed),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": git_revision(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "platform": platform.platform(),
        "command": shlex.join([sys.executable, *sys.argv]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def append_run_record(workdir: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Appends to run.json, newest last; in process 0 only. Raises RunRecordError if the file there is damaged."""
    if jax.process_index() != 0:
        return
    path = epath.Path(workdir) / RUN_FILE
    write_atomically(path, json.dumps([*_starts(path), jsonable(record)], indent=2) + "\n")


def _starts(path: epath.Path) -> list[Any]:
    if not path.exists():
        return []
    try:
        starts = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:  # a folder, not UTF-8, or not JSON
        raise RunRecordError(f"{path} is damaged ({error}): move it away, then start again") from error
    if not isinstance(starts, list):
        raise RunRecordError(f"{path} is no list of the run's starts: move it away, then start again")
    return starts


def git_revision(folder: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """Returns {"revision": commit hash, "dirty": whether files differ from it} of the checkout that holds `folder`.

    `folder` defaults to that of this source file. None outside a checkout, in an ignored folder of one (an installed
    copy), and without git.
    """
    where = Path(__file__).resolve().parent if folder is None else Path(folder)
    # Inside a git hook GIT_DIR and related variables name another checkout. Optional locks would disturb a running git.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(where), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None or git("check-ignore", "--quiet", str(where)) is not None:
        return None
    status = git("status", "--porcelain")
    return {"revision": revision, "dirty": status is None or status != ""}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
