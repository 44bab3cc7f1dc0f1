"""Every configuration key with its type, its default and what it is for, read from `keys.py` and its comments."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, FieldReference

from irm_jax.config import keys

ENTRY = "NAME"
"""Stands for the names of a table whose entries the user names: `data.train.NAME.share`."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. `default` is Python source; it is None where the model preset decides, or where the key is off."""

    name: str
    type: str
    default: str
    about: str


def described() -> list[Key]:
    """Returns every key of `get_config()`, in its order; entries that a user names, by their templates."""
    comments = _comments()
    place = {name: number for number, name in enumerate(comments)}

    def order(key: Key) -> tuple[int, int]:
        return place[key.name.partition(f".{ENTRY}.")[0]], place[key.name]

    return sorted(_keys(keys.get_config(), "", comments), key=order)


def matching(word: str) -> list[Key]:
    """Returns the keys whose name has `word` in it; if there are none, those whose description has it."""
    every, word = described(), word.removeprefix("--").removeprefix("config.").lower()
    named = [key for key in every if word in key.name.lower()]
    return named or [key for key in every if word in key.about.lower()]


def listed(word: str) -> str:
    """Returns the lines of `--keys WORD`, or "" if no key matches."""
    found = matching(word)
    wide = [max((len(getattr(key, field)) for key in found), default=0) for field in ("name", "type", "default")]
    return "\n".join(
        f"{key.name:{wide[0]}}  {key.type:{wide[1]}}  {key.default:{wide[2]}}  {key.about}" for key in found
    )


def nearest(word: str) -> list[str]:
    """Returns up to three names of keys or tables that look like `word`."""
    names = {part for key in described() for part in (key.name, *key.name.split("."))}
    return difflib.get_close_matches(word, sorted(names), n=3, cutoff=0.6)


def _keys(table: ConfigDict, path: str, comments: dict[str, str]) -> Iterator[Key]:
    for name in table:
        here = f"{path}{name}"
        template = keys.FREE_TABLES.get(here)
        if template is not None:
            yield from _keys(template, f"{here}.{ENTRY}.", comments)
        elif here in keys.OPEN_TABLES:
            yield Key(here, "table", "{}", comments[here])
        elif isinstance(table[name], ConfigDict):
            yield from _keys(table[name], f"{here}.", comments)
        else:
            yield Key(here, _type(table, name), _source(table[name], f"{path}{name}"), comments[here])


def _type(table: ConfigDict, name: str) -> str:
    field = table.get_ref(name)
    kind = field.get_type() if isinstance(field, FieldReference) else type(table[name])
    return str(kind.__name__)


def _source(value: Any, name: str) -> str:
    """The default as Python source. Entries of a table of the user's have a data set and a task of their own."""
    if f".{ENTRY}." in name and name.endswith((".data_set", ".task", ".protocols")):
        return "required"
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else repr(value)


def _comments() -> dict[str, str]:
    """Returns the comment of each key: of `config.a.b = ...`, and of the entries of the two templates."""
    found: dict[str, str] = {}
    source = inspect.getsource(keys)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    templates = {"train_unit": "data.train", "evaluation_set": "evaluation.sets"}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config."):
                name = ast.unparse(node.targets[0]).removeprefix("config.")
                found[name] = comments.get(node.end_lineno or 0, "")
            elif isinstance(node, ast.Dict) and function.name in templates:
                for key in node.keys:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        found[f"{templates[function.name]}.{ENTRY}.{key.value}"] = comments.get(key.lineno, "")
    return found
