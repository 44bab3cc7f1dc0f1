"""Checks that a configuration has every key, no other, and values of the right type. Loads nothing heavy: it answers
at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from irm_jax.config import keys
from irm_jax.errors import ConfigError

PAIRS = ("image_size", "instruction_image_size", "template_size", "erase_area", "erase_aspect")
"""Keys that hold two numbers."""
LARGEST = 2**31 - 1
"""Whole numbers are 32 bits wide on the devices. Seeds have a range of their own (`check.SEEDS`)."""


def check_keys(config: ConfigDict) -> None:
    """Raises ConfigError for a key that is missing or does not exist, naming the nearest, and for a value of another
    type: tables, whole and other numbers (finite ones), texts, and tuples of them."""
    _check_table(config, keys.get_config(), "config")


def _check_table(config: Any, reference: ConfigDict, path: str) -> None:
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path} is a table of keys, not {config!r}")
    for key in config:
        if key not in reference:
            raise ConfigError(f"unknown configuration key {path}.{key}; {_hint(key, reference, path)}")
    for key in reference:
        here = f"{path}.{key}"
        if key not in config:
            raise ConfigError(f"{here} is missing: a run file sets keys, and takes none out; leave it at its default")
        value, name = config[key], here.removeprefix("config.")
        template = keys.FREE_TABLES.get(name)
        if template is not None or name in keys.OPEN_TABLES:
            if not isinstance(value, ConfigDict | dict):
                raise ConfigError(f"{here} is a table of keys, not {value!r}")
            for entry in value if template is not None else ():
                _check_table(value[entry], template, f"{here}.{entry}")
        elif isinstance(reference[key], ConfigDict):
            _check_table(value, reference[key], here)
        else:
            _check_type(value, reference, key, here)


def unknown_override(config: ConfigDict, arguments: Sequence[str]) -> str | None:
    """The message for the first argument `--config.a.b=...` whose key does not exist in `config`, or None."""
    for argument in arguments:
        name = argument.partition("=")[0].lstrip("-")
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        table, path = config, "config"
        for key in name.split(".")[1:]:
            if not isinstance(table, ConfigDict):
                return f"unknown configuration key {name}; {path} is a value, it holds no keys"
            if key not in table:
                return f"unknown configuration key {path}.{key}; {_hint(key, table, path)}"
            table, path = table[key], f"{path}.{key}"
    return None


def _hint(key: str, table: ConfigDict, path: str) -> str:
    near = difflib.get_close_matches(key, list(table), n=1, cutoff=0.5)
    return f"did you mean {path}.{near[0]}?" if near else f"the keys there are {', '.join(sorted(table))}"


def _check_type(value: Any, reference: ConfigDict, key: str, path: str) -> None:
    field = reference.get_ref(key)
    expected = field.get_type() if isinstance(field, FieldReference) else type(reference[key])
    if value is None and reference[key] is None:
        return
    if expected is not tuple:
        _check_one(value, expected, path)
        return
    if not isinstance(value, tuple | list):
        raise ConfigError(f"{path} = {value!r} is of type {type(value).__name__}; it must be tuple")
    inner = type(reference[key][0]) if reference[key] else str
    for item in value:
        _check_one(item, int if key in ("image_size", "instruction_image_size") else inner, path, within=value)
    if key in PAIRS and len(value) != 2:
        size = key.endswith("_size")
        raise ConfigError(
            f"{path} = {tuple(value)}; it must be {'(height, width) in pixels' if size else 'two numbers, (low, high)'}"
        )


def _check_one(value: Any, expected: Any, path: str, within: Any = None) -> None:
    """Raises ConfigError for a value of another type, for a number that is not finite or too large, and for a text
    with a zero byte. `within`: the tuple that it is an item of."""
    said = f"{path} = {value!r}" if within is None else f"{path} = {tuple(within)!r}: {value!r}"
    if not isinstance(value, (int, float) if expected is float else expected) or (
        isinstance(value, bool) and expected is not bool
    ):
        raise ConfigError(f"{said} is of type {type(value).__name__}; it must be {expected.__name__}")
    if expected is float and not math.isfinite(value):
        raise ConfigError(f"{said}; it must be a finite number")
    if expected is int and abs(value) > LARGEST and not path.endswith("seed"):
        raise ConfigError(f"{said}; it must be at most {LARGEST:,}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{said} holds a zero byte")
