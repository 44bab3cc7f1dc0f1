"""The folders of evaluations: each is made whole in one step and never overwritten; the file `latest` names the newest.

WORKDIR/evaluations/step-600_20261130T070012Z_1a2b3c4d/   results.*, report.html, per_query/
WORKDIR/evaluations/latest                                the name of the newest of them

The name says the step of the parameters, the time, and a hash of the settings of the evaluation. Runs of earlier
versions have results.json and per_query/ in WORKDIR itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines import files, storage
from data_pipelines.files import jsonable
from irm_jax.errors import UserError

EVALUATIONS, LATEST = "evaluations", "latest"
RESULTS, PER_QUERY = "results.json", "per_query"
_NAME = re.compile(r"step-(\d+)_(\d{8}T\d{6}Z)_[0-9a-f]{8}(?:-\d+)?")


class NoEvaluation(UserError):
    """Reports a run without the evaluation that is asked for; the message names the folder and the cure."""


def settings_hash(config: Mapping[str, Any]) -> str:
    """Returns eight hexadecimal digits for `config["evaluation"]` and the seed, on which the figures depend."""
    settings = {key: config.get(key) for key in ("evaluation", "seed")}
    text = json.dumps(jsonable(settings), sort_keys=True)
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=4).hexdigest()


@contextlib.contextmanager
def new(workdir: epath.Path, config: Mapping[str, Any], step: int) -> Iterator[tuple[epath.Path, epath.Path]]:
    """Yields (the folder to write an evaluation into, its final name); `latest` names it once the block has ended.

    The caller holds the lock of `workdir`. A local folder is renamed when the block ends, and removed if that fails.
    On object storage, which renames nothing, the two are one: results.json is to be written last, and a folder without
    it is no evaluation. Raises as `files.folder_in_one_step`.
    """
    folder = workdir / EVALUATIONS
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = f"step-{step}_{stamp}_{settings_hash(config)}"
    number = 1
    while (target := folder / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    if storage.is_remote(target):
        yield target, target
    else:
        with files.folder_in_one_step(Path(target)) as made:
            yield epath.Path(made), target
    files.write_atomically(folder / LATEST, target.name + "\n")


def newest(directory: str | os.PathLike[str]) -> epath.Path:
    """Returns the folder of a run's newest evaluation, by the name in `latest`.

    `directory` is the folder of a run, or of one evaluation: that one is returned. So is the folder of a run of earlier
    versions, which holds its results itself, and one without any evaluation. Raises NoEvaluation if `latest` names no
    evaluation that is there.
    """
    workdir = epath.Path(directory).expanduser()
    folder = workdir / EVALUATIONS
    path = folder / LATEST
    if not path.exists():
        found = _by_time(folder)
        return found[-1][1] if found else workdir
    try:
        name = path.read_bytes().decode(errors="replace").strip()
    except OSError as error:
        raise NoEvaluation(f"{path} cannot be read ({error.strerror}): delete it, and evaluate again") from error
    if "/" in name or not name or not (folder / name / RESULTS).exists():
        raise NoEvaluation(
            f"{path} names {name[:100]!r}, which is no evaluation in {folder}: evaluate again (--mode evaluate), or "
            "write the name of another folder into that file"
        )
    return folder / name


def of_step(workdir: str | os.PathLike[str], step: int) -> list[epath.Path]:
    """Returns the folders of a run's evaluations of a step's parameters, the newest first."""
    found = _by_time(epath.Path(workdir).expanduser() / EVALUATIONS)
    return [path for evaluated, path in reversed(found) if evaluated == step]


def _by_time(folder: epath.Path) -> list[tuple[int, epath.Path]]:
    """The step and the folder of each evaluation in `folder`, the newest last."""
    found = [
        (match[2], path.name, int(match[1]))
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and (path / RESULTS).exists()
    ]
    return [(step, folder / name) for _, name, step in sorted(found)]


def is_evaluated(workdir: str | os.PathLike[str]) -> bool:
    """Tells whether a run has an evaluation that is there as a whole."""
    return (newest(workdir) / RESULTS).exists()
