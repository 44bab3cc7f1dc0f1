"""Finds and loads run files: Python files whose `get_config` returns a configuration, such as configs/quickstart.py."""

from __future__ import annotations

import difflib
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines import run_file
from irm_jax.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "run_files", _PACKAGE.parent / "configs")
"""Where the shipped run files are: in an installed wheel, or in a checkout."""


def shipped() -> dict[str, Path]:
    """The run files that come with the library, by bare name."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find(name: str) -> Path:
    """The file of a bare name such as `quickstart`, or of a path such as `mine/small.py`.

    Raises ConfigError if there is none; the message names the nearest shipped run file.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py" or len(path.parts) > 1:
        if path.is_file():
            return path
        problem = f"there is no run file {name}"
    else:
        if name in shipped():
            return shipped()[name]
        problem = f"there is no run file of the name {name!r}"
    near = difflib.get_close_matches(path.stem, list(shipped()), n=1, cutoff=0.5)
    cure = f"did you mean --config {near[0]}?" if near else f"the shipped ones are {', '.join(shipped())}"
    raise ConfigError(f"{problem}; {cure}")


def load(name: str) -> ConfigDict:
    """The configuration of a run file, by bare name or path, with its argument after a colon if it takes one.

    For example `load("procedural")`, `load("mine/small.py")`, `load("transfer:market1501:msmt17")`.
    Raises ConfigError if there is no such file, it has no `get_config`, or one of the two fails, naming the line.
    """
    file, colon, argument = name.partition(":")
    return run_file.load(find(file), *([argument] if colon else []))
