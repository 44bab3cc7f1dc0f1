"""Checks that every key of a configuration exists and has the right type. Loads nothing heavy: it answers at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from irm_jax.config import keys
from irm_jax.errors import ConfigError


def check_keys(config: ConfigDict) -> None:
    """Raises ConfigError for a key that does not exist, naming the nearest, and for a value of another type."""
    _check_table(config, keys.get_config(), "config")


def _check_table(config: ConfigDict, reference: ConfigDict, path: str) -> None:
    for key in config:
        here = f"{path}.{key}"
        if key not in reference:
            raise ConfigError(f"unknown configuration key {here}; {_hint(key, reference, path)}")
        value = config[key]
        if here.removeprefix("config.") in keys.OPEN_TABLES:
            continue
        template = keys.FREE_TABLES.get(here.removeprefix("config."))
        if template is not None:
            for name in value:
                _check_table(value[name], template, f"{here}.{name}")
        elif isinstance(reference[key], ConfigDict):
            if not isinstance(value, ConfigDict):
                raise ConfigError(f"{here} is a table of keys, not {value!r}")
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
    fits = (
        isinstance(value, expected)
        or (expected is float and isinstance(value, int))
        or (expected is tuple and isinstance(value, list))
    )
    if not fits or (isinstance(value, bool) and expected in (int, float)):
        raise ConfigError(f"{path} = {value!r} is of type {type(value).__name__}; it must be {expected.__name__}")
