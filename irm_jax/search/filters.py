"""Filters: what a user writes after `--where`, checked against the columns of an index.

    camera = 'gate' AND time < '2026-01-01' AND NOT (floor IN (1, 2) OR note IS NULL)

Comparisons `= != <> < <= > >=`, `IN`, `BETWEEN`, `LIKE` (`%` any text, `_` one character) and `IS NULL`, each with an
optional `NOT`; joined by `AND`, `OR`, `NOT` and parentheses. A missing value passes no comparison, as in SQL. A filter
is parsed here, never handed on as text: a store gets what this module writes from the parsed form.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from irm_jax.errors import UserError

KINDS = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "time": pa.timestamp("us"),
}
"""Kinds of columns, and their Arrow types."""
MOST_TOKENS = 10_000
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"[^"]+"|`[^`]+`)|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"""
    r"""|(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|==|[=<>(),]))"""
)
_COMPARED = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}


class FilterError(UserError, ValueError):
    """A filter cannot be used; the message quotes it, and says where and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Predicate:
    """One column compared: `sign` is one of = != < <= > >=, "like", "not like", "null" or "not null"."""

    column: str
    kind: str
    sign: str
    value: Any = None

    def negated(self) -> Predicate:
        """What holds where this does not, missing values aside: those pass neither."""
        if self.sign in _OPPOSITE:
            return dataclasses.replace(self, sign=_OPPOSITE[self.sign])
        return dataclasses.replace(self, sign=self.sign[4:] if self.sign.startswith("not ") else f"not {self.sign}")


@dataclasses.dataclass(frozen=True)
class Junction:
    """Several filters: all of them ("and") or at least one ("or") must hold."""

    word: str
    parts: tuple[Filter, ...]

    def negated(self) -> Junction:
        return Junction("or" if self.word == "and" else "and", tuple(part.negated() for part in self.parts))


Filter = Predicate | Junction
"""A parsed filter. NOT has been moved into the predicates, which changes nothing in the logic of missing values."""


def parse(text: str, columns: Mapping[str, str]) -> Filter:
    """Parses a filter. `columns`: kind of each column by name. Raises FilterError."""
    return _Parser(text, columns).run()


def columns_of(found: Filter) -> set[str]:
    """The columns that a filter reads."""
    if isinstance(found, Predicate):
        return {found.column}
    return set().union(*(columns_of(part) for part in found.parts))


def mask(found: Filter, table: pa.Table) -> np.ndarray:
    """Which rows of a table pass, bool[rows]."""
    passed = pc.fill_null(_evaluate(found, table), False)
    if isinstance(passed, pa.ChunkedArray):
        passed = passed.combine_chunks()
    return np.asarray(passed.to_numpy(zero_copy_only=False), bool)


def to_sql(found: Filter, quote: str = "`") -> str:
    """The filter in the dialect of DataFusion, which LanceDB reads."""
    if isinstance(found, Junction):
        return "(" + f" {found.word.upper()} ".join(to_sql(part, quote) for part in found.parts) + ")"
    name = f"{quote}{found.column}{quote}"
    if found.sign.endswith("null"):
        return f"{name} IS {'NOT ' if found.sign == 'not null' else ''}NULL"
    sign = {"!=": "<>"}.get(found.sign, found.sign.upper())
    return f"{name} {sign} {_sql_literal(found)}"


def to_milvus(found: Filter) -> str:
    """The filter as a Milvus expression; times are stored there as whole microseconds since 1970."""
    if isinstance(found, Junction):
        return "(" + f" {found.word} ".join(to_milvus(part) for part in found.parts) + ")"
    if found.sign.endswith("null"):
        return f"{found.column} is {'not ' if found.sign == 'not null' else ''}null"
    value = found.value
    if found.kind == "text":
        literal = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    elif found.kind == "time":
        literal = str(pa.scalar(value, KINDS["time"]).value)
    else:
        literal = str(value).lower() if found.kind == "boolean" else repr(value)
    if found.sign == "not like":
        return f"(not ({found.column} like {literal}) and {found.column} is not null)"
    return f"{found.column} {'==' if found.sign == '=' else found.sign} {literal}"


def _sql_literal(found: Predicate) -> str:
    if found.kind == "text":
        return "'" + found.value.replace("'", "''") + "'"
    if found.kind == "time":
        return f"timestamp '{found.value.isoformat()}'"
    return str(found.value).lower() if found.kind == "boolean" else repr(found.value)


def _evaluate(found: Filter, table: pa.Table) -> Any:
    if isinstance(found, Junction):
        join = pc.and_kleene if found.word == "and" else pc.or_kleene
        result = _evaluate(found.parts[0], table)
        for part in found.parts[1:]:
            result = join(result, _evaluate(part, table))
        return result
    column = table.column(found.column)
    if found.sign.endswith("null"):
        return pc.is_valid(column) if found.sign == "not null" else pc.is_null(column)
    if found.sign.endswith("like"):
        matched = pc.match_like(column, found.value)
        return matched if found.sign == "like" else pc.invert(matched)
    compare = {"=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater,
               ">=": pc.greater_equal}[found.sign]  # fmt: skip
    return compare(column, pa.scalar(found.value, KINDS[found.kind]))


class _Parser:
    """Reads a filter from left to right; `at` is the number of the next token."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self.text, self.columns, self.at, self.depth = text, columns, 0, 0
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while text[place:].strip():
            found = _TOKEN.match(text, place)
            if found is None:
                self.fail(place + len(text[place:]) - len(text[place:].lstrip()), "this is no part of a filter")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)], found.start(str(found.lastgroup))))
            place = found.end()
            if len(self.tokens) > MOST_TOKENS:
                self.fail(place, f"a filter has at most {MOST_TOKENS} parts")
        self.tokens.append(("end", "", len(text)))

    def run(self) -> Filter:
        found = self.junction("or")
        if self.tokens[self.at][0] != "end":
            self.fail_here("expected AND, OR or the end")
        return found

    def junction(self, word: str) -> Filter:
        part = self.negation if word == "and" else lambda: self.junction("and")
        parts = [part()]
        while self.taken(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Junction(word, tuple(parts))

    def negation(self) -> Filter:
        if self.depth > 100:
            self.fail_here("parentheses are nested too deep")
        self.depth += 1
        try:
            if self.taken("not"):
                return self.negation().negated()
            if self.taken("("):
                found = self.junction("or")
                self.expect(")")
                return found
            return self.predicate()
        finally:
            self.depth -= 1

    def predicate(self) -> Filter:
        group, name, place = self.tokens[self.at]
        if group not in ("word", "quoted"):
            self.fail_here("expected the name of a column")
        name = name[1:-1] if group == "quoted" else name
        if name not in self.columns:
            self.fail(place, f"there is no column {name!r}; the columns are {', '.join(sorted(self.columns))}")
        self.at += 1
        kind = self.columns[name]
        negate = self.taken("not")
        if self.taken("in"):
            self.expect("(")
            values = [self.literal(name, kind)]
            while self.taken(","):
                values.append(self.literal(name, kind))
            self.expect(")")
            equal = tuple(Predicate(name, kind, "=", value) for value in values)
            found: Filter = equal[0] if len(equal) == 1 else Junction("or", equal)
        elif self.taken("between"):
            low = self.literal(name, kind)
            self.expect("and")
            found = Junction("and", (Predicate(name, kind, ">=", low),
                                     Predicate(name, kind, "<=", self.literal(name, kind))))  # fmt: skip
        elif self.taken("like"):
            if kind != "text":
                self.fail_here(f"LIKE compares text, but {name} is of kind {kind}")
            found = Predicate(name, kind, "like", self.literal(name, kind))
        elif not negate and self.taken("is"):
            negate = self.taken("not")
            self.expect("null")
            found = Predicate(name, kind, "null")
        else:
            sign = _COMPARED.get(self.tokens[self.at][1])
            if negate or sign is None:
                self.fail_here(f"expected a comparison after {name}, such as = or IN")
            self.at += 1
            found = Predicate(name, kind, sign, self.literal(name, kind))
        return found.negated() if negate else found

    def literal(self, column: str, kind: str) -> Any:
        """The next token as a value of the column."""
        group, text, place = self.tokens[self.at]
        self.at += 1
        if group == "text":
            value = text[1:-1].replace("''", "'")
            if kind == "text":
                return value
            if kind == "time":
                return parse_time(value) or self.fail(place, f"{text} is no time: write '2026-01-31' or with hours")
        elif group == "number" and kind in ("integer", "number"):
            number = float(text)
            if kind == "number":
                return number
            if text.lstrip("+-").isdecimal():
                return int(text) if abs(number) < 2**63 else self.fail(place, f"{text} is too large")
            self.fail(place, f"column {column} holds whole numbers")
        elif group == "word" and kind == "boolean" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        wanted = {"text": "a text in single quotes", "time": "a time in single quotes", "boolean": "true or false"}
        self.fail(place, f"column {column} is compared with {wanted.get(kind, 'a number')}")

    def taken(self, word: str) -> bool:
        """Whether the next token is this word or sign, which is then passed."""
        group, text, _ = self.tokens[self.at]
        found = group in ("word", "sign") and text.lower() == word
        self.at += found
        return found

    def expect(self, word: str) -> None:
        if not self.taken(word):
            self.fail_here(f"expected {word.upper()!r}")

    def fail_here(self, reason: str) -> NoReturn:
        self.fail(self.tokens[self.at][2], reason)

    def fail(self, place: int, reason: str) -> NoReturn:
        raise FilterError(f"the filter {self.text!r} cannot be read at {self.text[place:][:20]!r}: {reason}")


def parse_time(text: str) -> datetime.datetime | None:
    """An ISO 8601 date or time; one with a time zone is moved to UTC. None if it is none."""
    try:
        found = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if found.tzinfo is not None:
        found = found.astimezone(datetime.UTC).replace(tzinfo=None)
    return found
