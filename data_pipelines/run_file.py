"""Loads a run file: Python code whose `get_config` returns a configuration, such as configs/quickstart.py."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.errors import ConfigError, UserError


def load(path: Path, *argument: str) -> ConfigDict:
    """Returns `get_config(*argument)` of a file.

    Raises ConfigError if there is no such file, it has no `get_config`, or one of the two fails, naming the line.
    """
    if not path.is_file():
        raise ConfigError(f"there is no run file {path}")
    spec = importlib.util.spec_from_file_location(f"irm_jax_run_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a run file ends in .py")
    module = importlib.util.module_from_spec(spec)
    _run(path, partial(spec.loader.exec_module, module))
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} is not a run file: it has no function get_config")
    config = _run(path, lambda: module.get_config(*argument))
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
        where = f"{path}, line {line}" if line else path
        raise ConfigError(f"{where}: {type(error).__name__}: {error}. Correct the run file") from error
