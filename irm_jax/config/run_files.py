"""Finds and loads run files: Python files whose `get_config` returns a configuration, such as configs/quickstart.py."""

from __future__ import annotations

import difflib
import importlib.util
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from irm_jax.errors import ConfigError, UserError

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
    path = find(file)
    spec = importlib.util.spec_from_file_location(f"irm_jax_run_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a run file ends in .py")
    module = importlib.util.module_from_spec(spec)
    _run(path, partial(spec.loader.exec_module, module))
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} is not a run file: it has no function get_config")
    config = _run(path, lambda: module.get_config(argument) if colon else module.get_config())
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config returns {type(config).__name__}, not a ConfigDict: return one")
    return config


def _run(path: Path, part: Callable[[], Any]) -> Any:
    """Runs a part of a run file. Raises ConfigError naming the line where it fails."""
    try:
        return part()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {error}. Correct the run file") from error
