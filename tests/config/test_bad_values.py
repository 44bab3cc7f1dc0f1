"""Every key with every kind of wrong value: one message, or a configuration that runs; never a traceback."""

import functools
import math

import pytest
from ml_collections import ConfigDict

from irm_jax.config import irm_plus_plus, load
from irm_jax.config.check import check
from irm_jax.errors import ConfigError

GONE = object()
NEVER = {
    "no number": math.nan, "infinite": math.inf, "minus infinite": -math.inf, "huge": 10**10, "gone": GONE,
    "bytes": b"x", "zero byte": "\0", "empty tuple in a tuple": ((),), "nothing in a tuple": (None,),
    "no number in a tuple": (math.nan, math.nan), "another type": ConfigDict,
}  # fmt: skip
"""Values that no key takes."""
SOME = {
    "negative": -1, "negative number": -1.5, "zero": 0, "word": "x", "empty": "", "none": None, "large": 1e10,
    "true": True, "empty tuple": (), "empty list": [], "one": (1,), "words": ("x",), "zeros": (0, 0), "pair": (2, 1),
    "empty table": {}, "table": {"x": 1}, "other digit": "\u00b2", "letters": "\ud83d",
}  # fmt: skip
"""Values that some keys take."""


def paths(table, above=()):
    for key in table:
        yield (*above, key)
        if isinstance(table[key], ConfigDict):
            yield from paths(table[key], (*above, key))


@pytest.fixture(scope="module")
def config():
    """IRM++ on the drawn benchmark, with one training set of each kind and one test set."""
    config = irm_plus_plus(load("quickstart_pp"))
    config.model.fusion_depth = 2
    config.unlock()
    for name in set(config.data.train) - {"procedural_ctcc", "procedural_t2i"}:
        del config.data.train[name]
    for name in set(config.evaluation.sets) - {"procedural_li"}:
        del config.evaluation.sets[name]
    check(config)
    return config


def value_at(config, path):
    return functools.reduce(lambda table, key: table[key], path.split("."), config)


def answers(config, value):
    """Path -> the message for the value there, or None where it is accepted."""
    found = {}
    for path in list(paths(config)):
        table = config
        for key in path[:-1]:
            table = table[key]
        with config.ignore_type():
            before = table._fields[path[-1]]
            if value is GONE:
                del table._fields[path[-1]]
            else:
                table._fields[path[-1]] = value
            try:
                check(config)
                found[".".join(path)] = None
            except ConfigError as error:
                found[".".join(path)] = str(error)
            finally:
                table._fields[path[-1]] = before
    return found


@pytest.mark.parametrize(
    "name", [n if n in ("no number", "gone") else pytest.param(n, marks=pytest.mark.nightly) for n in NEVER]
)
def test_no_key_takes_it(config, name):
    found = answers(config, NEVER[name])
    taken = [path for path, message in found.items() if message is None]
    if name == "gone":  # a data set may be left out
        taken = [path for path in taken if path not in ("data.train.procedural_ctcc", "data.train.procedural_t2i")]
    if name == "huge":  # is no number of steps or rows, but a weight like any other
        taken = [path for path in taken if not isinstance(value_at(config, path), (float, type(None)))]
    assert taken == []
    assert all(message is None or "config" in message for message in found.values())


@pytest.mark.nightly
@pytest.mark.parametrize("name", SOME)
def test_it_is_taken_or_refused_in_words(config, name):
    found = answers(config, SOME[name])
    assert all(message is None or "config" in message for message in found.values())
    assert any(found.values())
